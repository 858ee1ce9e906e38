"""The ledger: what this silo's customers have paid, on disk, for life.

Reserve → commit or abort. A reservation counts from the moment it is durable; only an abort, allowed
while nothing has left the silo, gives it back. A crash therefore costs budget, never privacy. Lines are
append-only and hash-chained; one purpose has one budget, over training, evaluation and statistics alike,
for life or, where the cap says so, since the start of a period.

Every call opens the file anew. What was verified once is kept in memory: as long as nobody else has written
(the file's inode, size and times) and the last line is the one kept, only what is new is read. Otherwise,
when it is opened, and whenever `verify` is called, the whole chain is hashed again. A line that is altered
within the same tick of the file system's clock (some ms) as a write of our own is noticed at the next `verify`.
"""

from __future__ import annotations

import copy
import math
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import BudgetExceeded, InputError, Refused, VerificationError
from . import ledger_file as file
from .accountant import PLD, ZCDP, Accountant
from .events import Event
from .ledger_lines import Cap, Entry, Head, Kind, Line, Row, chain, check_chain, compose, genesis, parse

__all__ = ["Cap", "Head", "Ledger", "Line", "left"]

_Append = Callable[[Entry], None]
_accountant: Callable[[], Accountant] = PLD  # which accountant the ledger composes with
# Reservations so new that they are likely to be closed still are composed anew at each question.
_LOOSE = 16


def _dearer(a: Event, b: Event) -> bool:
    """Whether `a` costs more than `b`."""
    return ZCDP([a]).rho > ZCDP([b]).rho


def _now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """A ledger in an SQLite file, usable from several threads and processes.

    Args:
        path: the file; made if there is none.
        population: whose customers pay (the party); any that the file names, if left out.
        clock: where the time of a line comes from (aware).

    Raises:
        InputError: it is no ledger, or another population's.
        VerificationError: a line was altered, removed or put in.
    """

    def __init__(self, path: Path, population: str = "", *, clock: Callable[[], datetime] = _now) -> None:
        self.path = path
        self.population = file.establish(path, population)
        if population not in ("", self.population):
            raise InputError(f"{path}: the ledger of {self.population or 'nobody'}, not of {population}")
        self._clock = clock
        self._turn = threading.Lock()
        self._kept = _Kept(genesis(self.population))

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def reserve(self, event: Event, *, purpose: str, study: str, label: str, cap: Cap, study_cap: Cap) -> int:
        """Set `event` aside before it happens.

        Args:
            cap: the purpose's budget. study_cap: what this study may cost in all.

        Returns:
            The reservation's number, for `commit` or `abort`.

        Raises:
            BudgetExceeded: either cap would be passed; nothing is written.
            VerificationError, Refused: the ledger was altered, or is another than it was.
        """
        with self._writing() as (kept, append):
            kept.require([event], purpose, study, cap, study_cap)
            number = len(kept.lines) + 1
            append(Entry("reserve", number, purpose, study, label, event))
        return number

    def commit(self, ref: int, event: Event | None = None) -> None:
        """What was reserved happened; `event` says so more exactly, and may only be cheaper.

        Raises:
            InputError: no such open reservation, or the event costs more than was reserved.
        """
        with self._writing() as (kept, append):
            line = kept.open(ref)
            if event is not None and _dearer(event, line.cost):
                raise InputError(f"ledger line {ref}: it can't be committed at more than was reserved")
            said = event or line.cost
            append(Entry("commit", ref, line.purpose, line.study, line.label, said))

    def abort(self, ref: int) -> None:
        """Nothing left the silo: the reservation is given back.

        Raises:
            InputError: no such open reservation.
        """
        with self._writing() as (kept, append):
            line = kept.open(ref)
            append(Entry("abort", ref, line.purpose, line.study, line.label, None))

    def note(self, kind: Kind, label: str, note: Mapping[str, Any]) -> int:
        """What an officer decided: a line ``restored`` or ``written-off`` (see `Line`). Returns its number."""
        with self._writing() as (kept, append):
            number = len(kept.lines) + 1
            append(Entry(kind, number, "", "", label, None, note))
        return number

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def require(self, events: Sequence[Event], *, purpose: str, study: str, cap: Cap, study_cap: Cap) -> None:
        """Raise BudgetExceeded if these events would pass either cap; nothing is written."""
        with self._reading() as kept:
            kept.require(events, purpose, study, cap, study_cap)

    def epsilon(
        self,
        delta: float,
        *,
        purpose: str | None = None,
        study: str | None = None,
        since: datetime | None = None,
    ) -> float:
        """ε spent or reserved at `delta`, of one purpose or study if given; infinite where some was written off."""
        with self._reading() as kept:
            return kept.epsilon(delta, purpose, study, since)

    def spent(self, purpose: str, cap: Cap) -> float:
        """ε that counts against a purpose's cap; infinite where this budget was written off."""
        with self._reading() as kept:
            return kept.spent(purpose, cap)

    def events(
        self, *, purpose: str | None = None, study: str | None = None, since: datetime | None = None
    ) -> list[Event]:
        """The events that count: committed ones, and reservations nobody closed."""
        with self._reading() as kept:
            return [line.cost for line in kept.standing(purpose, study, since)]

    def standing(self) -> list[Line]:
        """The line of each event that counts: its commit, or the reservation that nobody closed."""
        with self._reading() as kept:
            return kept.standing(None, None, None)

    @staticmethod
    def account() -> Accountant:
        """A new accountant of the kind that this ledger composes with."""
        return _accountant()

    @property
    def head(self) -> Head:
        """Size, last hash and write-offs."""
        with self._reading() as kept:
            return kept.head

    def lines(self) -> Iterator[Line]:
        """Every line, once the chain is checked.

        Raises:
            VerificationError: a line was altered, removed or put in.
        """
        with self._reading() as kept:
            found = list(kept.lines)
        yield from found

    def rows(self) -> list[Row]:
        """Every line as it is stored, once the chain is checked: what an export holds."""
        with self._turn, file.connection(self.path) as db:
            return list(check_chain(file.rows(db), file.owner(db, self.path), str(self.path)))

    def hash_at(self, size: int) -> str | None:
        """The last hash of the first `size` lines; None if there are fewer."""
        with self._reading() as kept:
            return kept.hash_at(size)

    def verify(self) -> Head:
        """Read everything anew: tables and triggers, every line, the whole chain.

        Raises:
            VerificationError: something was altered. Refused: it is not what this process read before.
        """
        with self._turn, file.connection(self.path) as db:
            self._load(db)
            return self._kept.head

    # ── how ──────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _reading(self) -> Iterator[_Kept]:
        with self._turn, file.connection(self.path) as db:
            self._refresh(db)
            yield self._kept

    @contextmanager
    def _writing(self) -> Iterator[tuple[_Kept, _Append]]:
        added: list[Line] = []
        with self._turn:
            with file.transaction(self.path) as db:
                self._refresh(db)
                kept = self._kept

                def append(entry: Entry) -> None:
                    body = compose(self._clock(), entry)
                    row = (len(kept.lines) + 1, body, chain(kept.head.hash, body))
                    added.append(parse(row))  # what can't be read again is not written
                    file.append(db, row)

                yield kept, append
            for line in added:  # only what is on disk is kept
                kept.add(line)
            kept.signature = file.signature(self.path)

    def _refresh(self, db: sqlite3.Connection) -> None:
        """Read what is new; everything, if somebody else has written."""
        kept = self._kept
        unchanged = kept.signature is not None and kept.signature == file.signature(self.path)
        if not unchanged or file.tail(db) != kept.tail:
            self._load(db)

    def _load(self, db: sqlite3.Connection) -> None:
        signature = file.signature(self.path)  # before reading: what comes later is noticed as a change
        kept = self._kept
        kept.signature = None
        rows = list(check_chain(file.rows(db), self.population, str(self.path)))
        if file.owner(db, self.path) != self.population:
            raise VerificationError(f"{self.path}: the ledger of another population")
        file.check_schema(db, self.path)
        known = len(kept.lines)
        if known and (len(rows) < known or rows[known - 1][2] != kept.head.hash):
            raise Refused(
                "LEDGER_ROLLED_BACK",
                f"{self.path}: the {known} lines read before are no longer the beginning of this ledger",
                remedy=file.RECOVER,
            )
        for row in rows[known:]:
            kept.add(parse(row))
        kept.signature = signature


@dataclass
class _Base:
    """A total that is kept: an accountant, and the lines composed in it."""

    accountant: Accountant = field(default_factory=Ledger.account)
    lines: dict[int, Line] = field(default_factory=dict)


class _Kept:
    """What a process knows of a ledger: its verified lines, and totals over them."""

    def __init__(self, start: str) -> None:
        self.lines: list[Line] = []
        self.signature: file.Signature | None = None
        self._start = start
        self._latest: dict[int, Line] = {}  # reservation -> the last line about it
        self._write_offs: list[Line] = []
        self._bases: dict[Hashable, _Base] = {}

    def add(self, line: Line) -> None:
        """Take in the next line of the chain.

        Raises:
            VerificationError: it closes what is not open.
        """
        if line.kind in ("reserve", "restored", "written-off"):
            holds = line.ref == line.number
        else:
            found = self._latest.get(line.ref)
            holds = found is not None and found.kind == "reserve"
        if not holds:
            raise VerificationError(f"ledger line {line.number}: there is no open reservation {line.ref}")
        self.lines.append(line)
        if line.kind == "written-off":
            self._write_offs.append(line)
        elif line.kind != "restored":
            self._latest[line.ref] = line

    @property
    def head(self) -> Head:
        return Head(len(self.lines), self.hash_at(len(self.lines)) or self._start, len(self._write_offs))

    @property
    def tail(self) -> tuple[int, str] | None:
        """Number and hash of the last line, as `ledger_file.tail` gives them."""
        return (len(self.lines), self.lines[-1].hash) if self.lines else None

    def hash_at(self, size: int) -> str | None:
        if size == 0:
            return self._start
        return self.lines[size - 1].hash if 0 < size <= len(self.lines) else None

    def open(self, ref: int) -> Line:
        line = self._latest.get(ref)
        if line is None or line.kind != "reserve":
            raise InputError(f"ledger line {ref}: no open reservation")
        return line

    def standing(self, purpose: str | None, study: str | None, since: datetime | None) -> list[Line]:
        """The lines whose events count. A commit counts when its reservation was made."""
        return [
            line
            for ref, line in self._latest.items()
            if line.kind != "abort"
            and purpose in (None, line.purpose)
            and study in (None, line.study)
            and (since is None or self.lines[ref - 1].moment >= since)
        ]

    def require(self, events: Sequence[Event], purpose: str, study: str, cap: Cap, study_cap: Cap) -> None:
        if self._written_off(cap):
            raise BudgetExceeded(
                f"purpose {purpose}: what was spent before the ledger was lost is unknown, so all of it counts",
                remedy="only an amended treaty, of a higher version, gives a new budget",
            )
        for what, limit, names in (
            (f"purpose {purpose}", cap, (purpose, None, cap.since)),
            (f"study {study[:12]}", study_cap, (None, study, study_cap.since)),
        ):
            after = self._total(*names)
            for event, count in Counter(events).items():
                after.compose(event, count)
            would = math.inf if names[1] and self._lost(study) else after.epsilon(limit.delta)
            if not would <= limit.epsilon:
                spent = self._total(*names).epsilon(limit.delta)
                raise BudgetExceeded(
                    f"{what}: ε would go from {spent:.4f} to {would:.4f}, over its cap of {limit.epsilon:g}"
                    f" (δ = {limit.delta:g})",
                    remedy="wait for the next period, or amend the treaty"
                    if limit.since
                    else "the budget is for life; only an amended treaty can raise it",
                )

    def epsilon(self, delta: float, purpose: str | None, study: str | None, since: datetime | None) -> float:
        lost = any(since is None or line.moment >= since for line in self._write_offs)
        if self._lost(study) if study is not None else lost:
            return math.inf
        return self._total(purpose, study, since).epsilon(delta)

    def spent(self, purpose: str, cap: Cap) -> float:
        if self._written_off(cap):
            return math.inf
        return self._total(purpose, None, cap.since).epsilon(cap.delta)

    def _written_off(self, cap: Cap) -> bool:
        return any(
            (cap.since is None or line.moment >= cap.since)
            and not (cap.version > line.note["version"] and cap.treaty != line.note["treaty"])
            for line in self._write_offs
            if line.note is not None
        )

    def _lost(self, study: str) -> bool:
        """Whether lines of this study may be among those that were lost: it has some from before."""
        if not self._write_offs:
            return False
        last = self._write_offs[-1].number
        return any(line.study == study for line in self.lines[:last])

    def _total(self, purpose: str | None, study: str | None, since: datetime | None) -> Accountant:
        """The events that count, composed. What is likely to stay is kept composed from one call to the next."""
        chosen = self.standing(purpose, study, since)
        loose = {line.ref for line in [line for line in chosen if line.kind == "reserve"][-_LOOSE:]}
        firm = {line.ref: line for line in chosen if line.ref not in loose}
        key = (purpose, study, since)
        base = self._bases.get(key)
        if base is None or any(firm.get(ref) is not line for ref, line in base.lines.items()):
            base = self._bases[key] = _Base()
        new = Counter(line.cost for ref, line in firm.items() if ref not in base.lines)
        for event, count in new.items():
            base.accountant.compose(event, count)
        base.lines |= firm
        total = copy.deepcopy(base.accountant)
        for line in chosen:
            if line.ref in loose:
                total.compose(line.cost)
        return total


def left(ledger: Ledger, purpose: str, cap: Cap) -> float:
    """ε still to be spent on a purpose (a difference of totals: ε does not simply add up)."""
    if not math.isfinite(cap.epsilon):
        return math.inf
    return max(0.0, cap.epsilon - ledger.spent(purpose, cap))
