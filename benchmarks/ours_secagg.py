"""Our side of `make bench-secagg`: the secure sum as the node and the server call it.

This file is all that knows our API; each function gives repetitions (`measure.Job`).
"""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from measure import Job, Watch

import foedus
from foedus.documents import SigningKey
from foedus.privacy.clipping import clipped_sum
from foedus.privacy.noise import Keystream
from foedus.privacy.secagg import codec, masks
from foedus.privacy.secagg.aggregator import Aggregator
from foedus.privacy.secagg.client import Silo
from foedus.privacy.secagg.journal import Journal
from foedus.privacy.secagg.keys import Context, Roster

VERSION = foedus.__version__
BITS = 32  # of the modulus of the sum; a word on the wire has as many
BATCH = 100  # rounds one set-up serves (server.coordinator.BATCH_ROUNDS)
TASK = "train"
_ROOT = tempfile.TemporaryDirectory(prefix="foedus-bench-")  # journals, on disk as at a node
atexit.register(_ROOT.cleanup)


def colluders(n: int) -> int:
    """c of the rows: a fifth of the silos."""
    return max(1, n // 5)


def threshold(n: int) -> int:
    """t of the rows, which the rival gets too."""
    return (n + colluders(n)) // 2 + 1


class Cast:
    """n silos and a server, strangers to each other until `set_up`."""

    def __init__(self, n: int, rounds: int) -> None:
        self.names = [f"s{i:03}" for i in range(n)]
        keys = {name: SigningKey.generate() for name in self.names}
        roster = Roster({name: key.public for name, key in keys.items()}, colluders(n))
        context = Context("7" * 64, "5" * 64, "1", 0, tuple(range(1, rounds + 1)))
        folder = tempfile.mkdtemp(dir=_ROOT.name)
        self.silos = {
            name: Silo(name, keys[name], roster, context, Journal(Path(folder, f"{name}.db")))
            for name in self.names
        }
        self.server = Aggregator(roster, context)

    def set_up(self, timed: str = "", watch: Watch | None = None) -> None:
        """Both trips; the three steps of silo `timed` are timed."""

        def step(name: str) -> Watch:
            return watch if watch is not None and name == timed else Watch()

        for name, silo in self.silos.items():
            with step(name):
                advertisement = silo.advertise()
            self.server.add_advertisement(name, advertisement)
        advertisements = self.server.advertisements
        for name, silo in self.silos.items():
            with step(name):
                boxes = silo.share(advertisements)
            self.server.add_boxes(name, boxes)
        for name, silo in self.silos.items():
            received = self.server.boxes_for(name)
            with step(name):
                silo.receive(received)


def _scale(vector: npt.NDArray[np.float32], n: int) -> tuple[float, int]:
    """A clip the vector is within, and the finest grid on which n of it do not wrap."""
    clip = float(np.linalg.norm(vector)) * 1.01
    return clip, int((2 ** (BITS - 1) - 1) // n / (float(np.abs(vector).max()) * 1.01))


def encode(vector: npt.NDArray[np.float32], n: int) -> masks.Words:
    """A silo's vector on the integer grid, as the node's trainer puts it there (no DP noise: the rival adds none)."""
    clip, scale = _scale(vector, n)
    integers = clipped_sum(vector[None].astype(np.float64), clip, scale, Keystream())
    return codec.wrap(integers, bound=(2 ** (BITS - 1) - 1) // n)


def verify(n: int) -> None:
    """A whole round over all n, one lost, gives the right sum; raises if not."""
    vector = np.random.default_rng(5).normal(size=256).astype(np.float32)
    next(server_sum(n, vector, 1, 1))(Watch())


def client_mask(n: int, vector: npt.NDArray[np.float32], rounds: int) -> Iterator[Job]:
    """Encode, mask, pack and sign one vector."""
    cast = Cast(n, rounds)
    cast.set_up()
    silo = cast.silos[cast.names[0]]
    for number in range(1, rounds + 1):

        def job(watch: Watch, number: int = number) -> None:
            with watch:
                masked, header = silo.mask(number, encode(vector, n), task=TASK)
                data = masks.to_wire(masked)
            watch.size = len(data) + len(header.dumps())

        yield job


def server_sum(n: int, vector: npt.NDArray[np.float32], dropped: int, rounds: int) -> Iterator[Job]:
    """Take in the vectors and answers of the n − dropped who stayed, open the sum, give the mean as floats."""
    cast = Cast(n, rounds)
    cast.set_up()
    _, scale = _scale(vector, n)
    staying = cast.names[dropped:]
    for number in range(1, rounds + 1):

        def job(watch: Watch, number: int = number) -> None:
            words = {name: encode(vector, n) for name in staying}
            true = np.sum([codec.unwrap(w) for w in words.values()], axis=0) / (scale * len(staying))
            uploads = {}
            for name in staying:
                masked, header = cast.silos[name].mask(number, words[name], task=TASK)
                uploads[name] = (masks.to_wire(masked), header)
            answers = {name: cast.silos[name].answer(number, staying) for name in staying}
            with watch:
                cast.server.open_round(number, vector.size, TASK)
                for name, (data, header) in uploads.items():
                    cast.server.add_vector(number, name, data, header)
                cast.server.survivors(number)
                for name, (statement, seeds, keys) in answers.items():
                    cast.server.add_answer(number, name, statement, seeds, keys)
                mean = cast.server.total(number) / (scale * len(staying))
            if not np.array_equal(mean, true):
                raise AssertionError("our sum is wrong")

        yield job


def set_up(n: int) -> Iterator[Job]:
    """One silo's three steps of set-up among n, by the round: one set-up serves BATCH of them."""
    while True:

        def job(watch: Watch) -> None:
            cast = Cast(n, BATCH)
            cast.set_up(cast.names[n // 2], watch)
            watch.cpu, watch.wall = watch.cpu / BATCH, watch.wall / BATCH

        yield job


def keystream(d: int, times: int) -> Iterator[Job]:
    """Masks alone: `times` masks added to d words."""
    words = np.zeros(d, np.uint32)
    while True:

        def job(watch: Watch) -> None:
            with watch:
                for _ in range(times):
                    masks.apply(words, bytes(range(32)))
            watch.size = times * words.nbytes

        yield job


def extra_noise(n: int, d: int) -> float:
    """By what part the grid raises the noise's standard deviation over a central Gaussian's, at σ = clip = 1.

    Measured: the rounding of n silos; computed: the noise that covers the sensitivity rounding adds.
    """
    rng = np.random.default_rng(3)
    vectors = [(v / np.linalg.norm(v)).astype(np.float32) for v in rng.normal(size=(n, d))]
    scale = int((2 ** (BITS - 1) - 1) // (n + 8))  # sums of n, and 8 σ of noise, fit the ring
    integers = [clipped_sum(v[None].astype(np.float64), 1.0, scale, Keystream()) for v in vectors]
    rounding = float(np.var(np.sum(integers, axis=0) / scale - np.sum(vectors, axis=0, dtype=np.float64)))
    sensitivity = 1 + np.sqrt(d) / scale  # privacy.clipping: clip · scale + √d, in units of scale
    return float(np.sqrt(sensitivity**2 + rounding) - 1)
