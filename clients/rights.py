"""The rights of one node's customers, done: what is known, choices, access, correction, withdrawal, erasure.

Who calls has checked that the person is the subject (the portal by a one-time code, the officer at the desk). A
subject nobody knows gets the same answers as one with no data: nothing tells whether they are a customer.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..compliance.consent.notices import Language
from ..compliance.rights import Choice, DataMap, Errand, Requests
from .home import Home


@dataclass(frozen=True)
class Holding:
    """What is kept at one place, for the person to know: `count` records of theirs."""

    place: str
    what: str
    why: str
    categories: tuple[str, ...]
    days: int
    count: int


@dataclass(frozen=True)
class Step:
    """What became of one place: `count` records; `why` in one sentence where they were not simply erased."""

    place: str
    errand: Errand
    count: int
    why: str


@dataclass(frozen=True)
class ModelFate:
    """A model that a subject may have been trained into, and what happens to it.

    `action`: ``bound`` (ε at δ is what an attacker can learn at most), ``retrain`` or ``retire``; `state`: ``stated``,
    ``queued``, ``retrained``, ``retired``. `epsilon` and `delta` hold for a customer of at most `partners` silos; None
    where the ledger can't say.
    """

    erasure: str
    study: str
    run: str
    epsilon: float | None
    delta: float | None
    partners: int | None
    action: str
    state: str
    evidence: str = ""


@dataclass(frozen=True)
class ErasureReport:
    """What an erasure did; `complete` only if nothing is left to anybody. It names nobody."""

    id: str
    began: datetime
    ended: datetime | None
    steps: tuple[Step, ...]
    models: tuple[ModelFate, ...]

    @property
    def complete(self) -> bool:
        return self.ended is not None and all(step.errand is not Errand.ORDERED for step in self.steps)


class Rights:
    """What one node's customers may ask for.

    Raises:
        InputError, VerificationError: the node's directory, its treaty or ``rights.db`` is not what it must be.
    """

    requests: Requests
    map: DataMap

    def __init__(self, home: Home) -> None:
        raise NotImplementedError

    def know(self, subject: str, language: Language = "en") -> list[Holding]:
        """What is kept about a subject, why, how long; every place of the map, also where there is nothing."""
        raise NotImplementedError

    def choices(self, subject: str) -> list[Choice]:
        """Every purpose of the published notices, and what the subject said about it last."""
        raise NotImplementedError

    def access(self, subject: str) -> dict[str, list[dict[str, Any]]]:
        """All that is kept about a subject, by place, as JSON values; places with nothing are empty lists."""
        raise NotImplementedError

    def correct(self, subject: str, place: str, field: str, value: str, *, was: str | None = None) -> int:
        """Put `value` in the place of what a field of the subject's records says. Returns how many were corrected.

        Args:
            was: the value to replace, needed where their records say different things.

        Raises:
            InputError: no such place or field, nothing of theirs there, or it is not clear which record is meant.
            Refused: ``NOT_CORRECTABLE``, a record of what was said; ``TABLE_READ_ONLY``, the silo's people must do it.
        """
        raise NotImplementedError

    def grant(
        self,
        subject: str,
        purpose: str,
        notice: str,
        *,
        sensitive: bool = False,
        sharing: tuple[str, ...] = (),
        expires: datetime | None = None,
    ) -> str:
        """Record a consent under a notice (``2026-01/zh``); the record's id. Logged first.

        Raises:
            InputError: as `ConsentRegister.grant`. Refused: ``ERASURE_PENDING``, while an erased customer's old orders
                are not yet removed from the silo's table.
        """
        raise NotImplementedError

    def withdraw(self, subject: str, purpose: str) -> None:
        """Withdraw a consent, in force in the next batch. Logged first.

        Raises:
            InputError: there was none.
        """
        raise NotImplementedError

    def erase(self, subject: str) -> ErasureReport:
        """Erase a subject at every place of the map, or say what stays and by which duty.

        Called again after a crash, by anyone, it does the rest; a subject who is not known gets the report of an
        erasure that found nothing.

        Raises:
            Refused: ``LEGAL_HOLD``, with the reason to tell the subject; nothing was erased.
            InputError, VerificationError: a place can't be read or written (full disk, damage): call again when it can.
        """
        raise NotImplementedError

    def resume(self) -> list[ErasureReport]:
        """Finish the erasures that were interrupted. Call it when a process starts."""
        raise NotImplementedError

    def explain(self, subject: str, language: Language = "en") -> list[str]:
        """How automated decisions about a subject come about (PIPL art. 24, 48): the models used on their data."""
        raise NotImplementedError
