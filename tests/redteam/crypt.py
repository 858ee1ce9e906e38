"""Secure sums in which a defence may be removed; this file and `spy` alone know the inside of the secure sum."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from redteam import spy
from redteam.spy import Spy
from support.sums import Cast

from foedus.clients.follower import Follower
from foedus.errors import FoedusError, VerificationError
from foedus.federation.secure_sum import Sum
from foedus.privacy.secagg import client, masks
from foedus.privacy.secagg.aggregator import Aggregator, Opened
from foedus.privacy.secagg.client import Silo
from foedus.privacy.secagg.journal import Journal, Step
from foedus.privacy.secagg.keys import BatchKeys, Roster
from foedus.privacy.secagg.rings import Integers

# The cast of most checks; c = 1, so t = 3.
ALL = ("s1", "s2", "s3", "s4")
TARGET = "s4"
SERVER = "server"
HELPED = "server + 1 silo"


# ── defences removed ─────────────────────────────────────────────────────────────────────────────


class Amnesiac(Journal):
    """A journal that never refuses."""

    def once(self, study: str, run: str, step: Step, number: int, detail: str = "") -> None:
        if self.done(study, run, step, number) is None:
            super().once(study, run, step, number, detail)

    def require_new(self, study: str, run: str, step: Step, number: int) -> None:
        pass


class Plain(Silo):
    """A silo that gives its shares as they are, as the protocol before answers were bound to their set."""

    def _weight(self, answering: Sequence[str]) -> int:
        return 1

    def _blinds(self, number: int, survivors: Sequence[str], answering: Sequence[str]) -> list[int]:
        return [0 for _ in super()._blinds(number, survivors, answering)]


class ShortKeys(BatchKeys):
    """Secrets of 16 bits."""

    def __init__(self, rounds: Sequence[int]) -> None:
        super().__init__(rounds)
        self._mask_secrets = {r: secrets.randbelow(2**16) for r in rounds}
        self._seeds = {r: secrets.randbelow(2**16) for r in rounds}


class Low(Roster):
    """A roster whose threshold the server has talked down to two."""

    @property
    def threshold(self) -> int:
        return 2


class Stage(Cast):
    """A cast of real silos, or of weakened ones."""

    def __init__(
        self,
        n: int = 4,
        c: int = 1,
        rounds: Iterable[int] = (1,),
        *,
        silo: type[Silo] = Silo,
        journal: type[Journal] = Journal,
        roster: type[Roster] = Roster,
        keys: type[BatchKeys] = BatchKeys,
        folder: Path | None = None,
    ) -> None:
        self._kinds = silo, journal, keys
        super().__init__(n, c, rounds, folder)
        if roster is not Roster:
            self.roster = roster(self.roster.signing_keys, c)
            self.silos = {name: self.silo(name) for name in self.names}
            self.aggregator = Aggregator(self.roster, self.context)

    def silo(self, name: str, **changes: object) -> Silo:
        silo, journal, keys = self._kinds
        made = silo(
            name,
            self.keys[name],
            self.roster,
            replace(self.context, **changes),  # type: ignore[arg-type]
            journal(self.folder / f"{name}.db"),
        )
        if keys is not BatchKeys:
            made._keys = keys(made.context.rounds)
        return made

    def spy(self, colluders: Iterable[str] = (), vectors: Mapping[str, Integers] | None = None) -> Spy:
        """A spy at the server after set-up, helped by `colluders`."""
        spy = Spy(self.roster, self.context)
        spy.hear_keys(self.aggregator.advertisements, self.aggregator.participants)
        for name in colluders:
            own = {} if vectors is None else dict.fromkeys(self.context.rounds, vectors[name])
            spy.turn(self.silos[name], own)
        return spy

    def send(self, spy: Spy, number: int, name: str, vector: Integers) -> None:
        """A silo uploads; the spy at the server keeps it."""
        spy.hear_vector(number, name, *self.upload(number, name, vector))

    def ask(
        self,
        spy: Spy,
        number: int,
        name: str,
        survivors: Sequence[str],
        answering: Sequence[str] | None = None,
    ) -> str:
        """A silo is asked to help open a sum; the spy keeps what it says. "" or why it said no.

        Args:
            answering: who else is said to be asked; all survivors, unless told otherwise.
        """
        told = survivors, survivors if answering is None else answering
        try:
            _, seeds, mask_keys = self.silos[name].answer(number, told[0], answering=told[1])
        except FoedusError as error:
            return code_of(error)
        spy.hear_answer(number, name, told, seeds, mask_keys)
        return ""


def code_of(error: FoedusError) -> str:
    """A refusal's code, or the error's name."""
    return str(getattr(error, "code", None) or type(error).__name__)


def secrets_of(silo: Silo) -> list[bytes]:
    """Every secret a silo holds in memory, as 32 bytes, both ways round: what no reply may contain."""
    numbers = [*silo._keys._seeds.values(), *silo._keys._mask_secrets.values()]
    numbers += [value for rounds in silo._held.values() for pair in rounds.values() for value in pair]
    found = [n.to_bytes(32, order) for n in numbers for order in ("big", "little")]
    keys = [silo._keys._share_key.private_bytes_raw(), silo._keys.check_part]
    return [*found, *keys, *([silo._check_key] if silo._check_key else [])]


def draw(keys: type[BatchKeys], count: int) -> tuple[npt.NDArray[np.uint64], bytes]:
    """The first 64 bits of so many secrets as a node makes them, and some of their bytes."""
    made = keys(range(count // 2))
    numbers = [*made._seeds.values(), *made._mask_secrets.values()]
    low = np.fromiter((n & 0xFFFFFFFFFFFFFFFF for n in numbers), np.uint64, len(numbers))
    return low, b"".join(n.to_bytes(32, "little")[:31] for n in numbers[:20_000])


MASKLESS = (masks.Masks, "put_on", lambda self, chunk: None)
"""A patch: no masks at all, on either side, so that everything else goes on as ever."""


@contextmanager
def unbound() -> Iterator[None]:
    """Masks of a pair that are bound to their names and round alone, whatever is summed."""
    whole = client.pair_seed

    def bare(secret: bytes, context: Any, number: int, one: str, other: str, about: str) -> bytes:
        return whole(secret, context, number, one, other, "")

    with patch.object(client, "pair_seed", bare), patch.object(spy, "pair_seed", bare):
        yield


# ── sums and models that are not what they should be ─────────────────────────────────────────────


@contextmanager
def alter(number: int, amount: int, *, shown: bool = True) -> Iterator[None]:
    """A server that adds `amount` to every number of a round's opened sum.

    Args:
        shown: the nodes are shown the altered sum, as everybody; else the true one.
    """
    total, notice = Aggregator.total, Sum.notice

    def lie(self: Aggregator, asked: int) -> Opened:
        opened = total(self, asked)
        return replace(opened, total=opened.total + amount) if asked == number else opened

    def truth(self: Sum) -> Any:
        return notice(
            replace(self, total=self.total - amount) if self.round == number and not shown else self
        )

    with patch.object(Aggregator, "total", lie), patch.object(Sum, "notice", truth):
        yield


@contextmanager
def unchecked() -> Iterator[None]:
    """Silos that take any sum, and nodes that take any model, for the right one."""
    verify = Silo.verify_sum

    def believe(self: Silo, number: int, *shown: Any) -> None:
        try:
            verify(self, number, *shown)
        except VerificationError:
            self._unseen.discard(number)
            self._forget(number)

    with patch.object(Silo, "verify_sum", believe), patch.object(Follower, "check", lambda *_: None):
        yield
