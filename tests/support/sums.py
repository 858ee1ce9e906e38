"""A secure sum played by hand: n silos and an aggregator in this process, any of whom may fall silent."""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from foedus.documents import Envelope, SigningKey
from foedus.privacy.secagg.aggregator import Aggregator
from foedus.privacy.secagg.client import Silo
from foedus.privacy.secagg.codec import Whole
from foedus.privacy.secagg.journal import Journal
from foedus.privacy.secagg.keys import Context, Roster
from foedus.privacy.secagg.rings import Integers, Ring

BOUND = 2**28
RING = Ring(32)


_MEMORY = Path("/dev/shm")  # noqa: S108 - a place, not a file name
_ROOT = tempfile.TemporaryDirectory(prefix="foedus-tests-", dir=_MEMORY if _MEMORY.is_dir() else None)
atexit.register(_ROOT.cleanup)


def scratch() -> Path:
    """A fresh directory, in memory if there is one: these tests sync to disk thousands of times."""
    return Path(tempfile.mkdtemp(dir=_ROOT.name))


class Cast:
    """Silos ``s1`` … ``sn`` under a roster that withstands `c` colluders; one batch of `rounds`."""

    def __init__(
        self, n: int = 4, c: int = 1, rounds: Iterable[int] = (1,), folder: Path | None = None
    ) -> None:
        self.names = [f"s{i}" for i in range(1, n + 1)]
        self.keys = {name: SigningKey.generate() for name in self.names}
        self.roster = Roster({name: key.public for name, key in self.keys.items()}, c)
        self.context = Context("7" * 64, "5" * 64, "1", 0, tuple(rounds))
        self.folder = folder or scratch()
        self.silos = {name: self.silo(name) for name in self.names}
        self.aggregator = Aggregator(self.roster, self.context)
        self.answered: dict[int, dict[str, tuple[dict[str, bytes], dict[str, bytes]]]] = {}

    @property
    def t(self) -> int:
        return self.roster.threshold

    def silo(self, name: str, **changes: object) -> Silo:
        """A new process of that silo over the same journal; `changes` replace fields of the context."""
        context = replace(self.context, **changes)  # type: ignore[arg-type]
        return Silo(name, self.keys[name], self.roster, context, Journal(self.folder / f"{name}.db"))

    def set_up(
        self,
        *,
        advertise: Collection[str] | None = None,
        deal: Collection[str] | None = None,
        ready: Collection[str] | None = None,
    ) -> None:
        """Both trips (three on a sparse graph); the others fall silent before the first, second or third."""
        aggregator = self.aggregator
        for name in self.names if advertise is None else sorted(advertise):
            aggregator.add_advertisement(name, self.silos[name].advertise())
        present = list(aggregator.digests)
        aggregator.require(len(present), "keys")
        digests = aggregator.digests if aggregator.topology.sparse else None
        for name in present if deal is None else sorted(deal):
            aggregator.add_boxes(name, self.silos[name].share(aggregator.keys_for(name), digests))
        parts = aggregator.participants
        aggregator.require(len(parts), "shares")
        for name in parts:
            self.silos[name].receive(aggregator.boxes_for(name))
        if aggregator.topology.sparse:
            for name in parts if ready is None else sorted(ready):
                aggregator.add_ready(name, self.silos[name].ready(parts))
            for name in parts if ready is None else sorted(ready):
                self.silos[name].take_ready(aggregator.ready_for(name))

    def upload(
        self, number: int, name: str, vector: Integers, ring: Ring = RING
    ) -> tuple[bytearray, Envelope]:
        return self.silos[name].mask(number, Whole(vector, BOUND), ring, task="train")

    def round(
        self,
        number: int,
        vectors: Mapping[str, Integers],
        *,
        uploads: Collection[str] | None = None,
        answers: Collection[str] | None = None,
        ring: Ring = RING,
    ) -> Integers:
        """One secure sum in which only `uploads` send a vector and only `answers` of them answer.

        Everybody is shown the sum and checks it.
        """
        aggregator = self.aggregator
        parts = aggregator.participants
        self.answered[number] = {}
        aggregator.open_round(number, next(iter(vectors.values())).size, "train", ring)
        for name in sorted(parts if uploads is None else uploads):
            aggregator.add_vector(number, name, *self.upload(number, name, vectors[name], ring))
        survivors = aggregator.survivors(number)
        confirmed = None
        if aggregator.topology.sparse:
            for name in survivors:
                aggregator.add_confirmation(number, name, self.silos[name].confirm(number, survivors))
            confirmed = aggregator.confirmed(number)
        while True:
            asked = aggregator.ask(number)
            told = () if confirmed else asked
            for name in asked if answers is None else sorted(set(answers) & set(asked)):
                statement, seeds, mask_keys = self.silos[name].answer(
                    number, survivors, answering=told, confirmed=confirmed
                )
                self.answered[number][name] = (seeds, mask_keys)
                aggregator.add_answer(number, name, statement, seeds, mask_keys)
            if aggregator.answered(number):
                break
        opened = aggregator.total(number)
        for name in survivors:
            self.silos[name].verify_sum(number, survivors, opened.total, opened.check)
        return opened.total


def vectors(names: Iterable[str], d: int = 6, *, seed: int = 3) -> dict[str, Integers]:
    """A different vector of each silo, negative and extreme values among them."""
    rng = np.random.default_rng(seed)
    made = {name: rng.integers(-BOUND, BOUND + 1, d) for name in names}
    for place, name in enumerate(made):
        made[name][place % d] = (-BOUND, BOUND, 0, -1)[place % 4]
    return made


def total(made: Mapping[str, Integers], names: Iterable[str]) -> list[int]:
    """The plain sum over `names`."""
    return [int(x) for x in sum((made[name] for name in names), np.zeros_like(next(iter(made.values()))))]
