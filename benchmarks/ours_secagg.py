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
from foedus.privacy.secagg import masks
from foedus.privacy.secagg.aggregator import Aggregator
from foedus.privacy.secagg.client import Silo
from foedus.privacy.secagg.codec import Fixed, Grid, Whole
from foedus.privacy.secagg.journal import Journal
from foedus.privacy.secagg.keys import Context, Roster
from foedus.privacy.secagg.rings import Integers, Ring

VERSION = foedus.__version__
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
        """Both trips; the three steps of silo `timed` are timed. (n of the rows is below the sparse graph's.)"""

        def step(name: str) -> Watch:
            return watch if watch is not None and name == timed else Watch()

        for name, silo in self.silos.items():
            with step(name):
                advertisement = silo.advertise()
            self.server.add_advertisement(name, advertisement)
        for name, silo in self.silos.items():
            keys = self.server.keys_for(name)
            with step(name):
                boxes = silo.share(keys)
            self.server.add_boxes(name, boxes)
        for name, silo in self.silos.items():
            received = self.server.boxes_for(name)
            with step(name):
                silo.receive(received)


SIGMA, PEAK = 1 / 4, 1 / 64
"""The rows' noise and their largest coordinate, in clips. (Flower's own example of DP, fl-dp-sa, adds 0.2 clips.)"""


def bits(n: int, d: int) -> int:
    """Of the modulus of the sum and of an element on the wire: the least that cost 1% more noise."""
    return Grid.choose(silos=n, clip=1.0, sigma=SIGMA, dimension=d, peak=PEAK).ring.bits


def _grid(vector: npt.NDArray[np.float32], n: int, width: int | None = None) -> Grid:
    """The finest grid on which the sum of n such vectors fits the ring (no DP noise: the rival adds none)."""
    ring = Ring(width or bits(n, vector.size))
    clip, peak = float(np.linalg.norm(vector)) * 1.01, float(np.abs(vector).max())
    return Grid(ring, (ring.half / n - 1) / peak * 0.999, clip, vector.size)


def verify(n: int) -> None:
    """A whole round over all n, one lost, gives the right sum; raises if not."""
    vector = np.random.default_rng(5).normal(size=256).astype(np.float32)
    next(server_sum(n, vector, 1, 1))(Watch())


def client_mask(
    n: int, vector: npt.NDArray[np.float32], rounds: int, width: int | None = None
) -> Iterator[Job]:
    """Encode, mask, tag, pack and sign one vector; at `width` bits an element, or `bits`."""
    cast = Cast(n, rounds)
    cast.set_up()
    silo = cast.silos[cast.names[0]]
    grid = _grid(vector, n, width)
    for number in range(1, rounds + 1):

        def job(watch: Watch, number: int = number) -> None:
            with watch:
                data, header = silo.mask(number, Fixed(vector, grid), grid.ring, task=TASK)
            watch.size = len(data) + len(header.dumps())

        yield job


def _rounded(vector: npt.NDArray[np.float32], grid: Grid) -> Integers:
    source = Fixed(vector, grid)
    return np.concatenate([source.chunk(a, b).astype(np.int64) for a, b in masks.chunks(vector.size)])


def server_sum(n: int, vector: npt.NDArray[np.float32], dropped: int, rounds: int) -> Iterator[Job]:
    """Take in the vectors and answers of the n − dropped who stayed, open the sum, give the mean as floats."""
    cast = Cast(n, rounds)
    cast.set_up()
    grid, staying, server = _grid(vector, n), cast.names[dropped:], cast.server
    bound = grid.ring.half // n
    for number in range(1, rounds + 1):

        def job(watch: Watch, number: int = number) -> None:
            integers = {name: _rounded(vector, grid) for name in staying}
            uploads = {
                name: cast.silos[name].mask(number, Whole(integers[name], bound), grid.ring, task=TASK)
                for name in staying
            }
            answers = {name: cast.silos[name].answer(number, staying, answering=staying) for name in staying}
            with watch:
                server.open_round(number, vector.size, TASK, grid.ring)
                for name, (data, header) in uploads.items():
                    server.add_vector(number, name, data, header)
                server.survivors(number)
                server.ask(number)
                for name, (statement, seeds, keys) in answers.items():
                    server.add_answer(number, name, statement, seeds, keys)
                opened = server.total(number)
                mean = grid.decode(opened.total) / len(staying)
            if (
                not np.array_equal(opened.total, sum(integers.values()))
                or np.abs(mean - vector).max() > 1 / grid.scale
            ):
                raise AssertionError("our sum is wrong")
            for name in staying:
                cast.silos[name].verify_sum(number, staying, opened.total, opened.check)

        yield job


def set_up(n: int) -> Iterator[Job]:
    """One silo's three steps of set-up among n, by the round: one set-up serves BATCH of them."""
    while True:

        def job(watch: Watch) -> None:
            cast = Cast(n, BATCH)
            cast.set_up(cast.names[n // 2], watch)
            watch.cpu, watch.wall = watch.cpu / BATCH, watch.wall / BATCH

        yield job


def keystream(d: int, times: int, width: int) -> Iterator[Job]:
    """Masks alone: `times` masks put on d elements of `width` bits, 16 or 32."""
    ring = Ring(width)
    words = ring.zeros(d)
    while True:

        def job(watch: Watch) -> None:
            with watch:
                on = masks.Masks([(bytes([i]) * 32, False) for i in range(times)], ring)
                for start, stop in masks.chunks(d):
                    on.put_on(words[start:stop])
            watch.size = times * words.nbytes

        yield job


def extra_noise(n: int, d: int) -> float:
    """By what part the grid raises the noise's standard deviation over a central Gaussian's, at σ = clip = 1.

    Measured: the rounding of n silos; computed: the noise that covers the sensitivity rounding adds.
    """
    rng = np.random.default_rng(3)
    vectors = [(v / np.linalg.norm(v)).astype(np.float32) for v in rng.normal(size=(n, d))]
    grid = Grid.choose(silos=n, clip=1.0, sigma=1.0, dimension=d)
    error = np.sum([_rounded(v, grid) for v in vectors], axis=0) / grid.scale
    rounding = float(np.var(error - np.sum(vectors, axis=0, dtype=np.float64)))
    sensitivity = grid.norm_bound / (grid.clip * grid.scale)
    return float(np.sqrt(sensitivity**2 + rounding) - 1)
