"""The ledger: what this silo's customers have paid, on disk, for life.

Reserve → commit or abort. A reservation counts from the moment it is durable; only an abort, allowed
while nothing has left the silo, gives it back. A crash therefore costs budget, never privacy. Lines are
append-only and hash-chained; one purpose has one budget, over training, evaluation and statistics alike.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ..documents import canonical, parse_json
from ..errors import BudgetExceeded, InputError, VerificationError
from .accountant import ZCDP
from .events import Event, from_json, to_json

_GENESIS = "0" * 64
_SCHEMA = """
CREATE TABLE IF NOT EXISTS line (
    number INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL UNIQUE) STRICT;
CREATE TRIGGER IF NOT EXISTS line_no_update BEFORE UPDATE ON line BEGIN SELECT raise(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS line_no_delete BEFORE DELETE ON line BEGIN SELECT raise(ABORT, 'append-only'); END;
"""


@dataclass(frozen=True)
class Line:
    """One line: a reservation (`ref` is its own number), or what became of one."""

    number: int
    time: str
    kind: Literal["reserve", "commit", "abort"]
    ref: int
    purpose: str
    study: str
    label: str
    event: Event | None
    hash: str


@dataclass(frozen=True)
class Cap:
    """ε at δ that must not be passed."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class Head:
    """How many lines there are, and the hash of the last."""

    size: int
    hash: str


class Ledger:
    """A ledger in an SQLite file, usable from several threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(self._connect()) as connection:
                connection.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path}: not a ledger ({error})") from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                if connection.in_transaction:  # on a full disk SQLite has rolled back by itself
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def reserve(self, event: Event, *, purpose: str, study: str, label: str, cap: Cap, study_cap: Cap) -> int:
        """Set `event` aside before it happens.

        Args:
            cap: the purpose's budget for life. study_cap: what this study may cost in all.

        Returns:
            The reservation's number, for `commit` or `abort`.

        Raises:
            BudgetExceeded: either cap would be passed; nothing is written.
        """
        with self._transaction() as connection:
            lines = list(self._read(connection))
            standing = _standing(lines)
            for what, limit, chosen in (
                (f"purpose {purpose}", cap, [x for x in standing if x[0].purpose == purpose]),
                (f"study {study[:12]}", study_cap, [x for x in standing if x[0].study == study]),
            ):
                before = ZCDP(e for _, e in chosen)
                spent = before.epsilon(limit.delta)
                before.compose(event)
                after = before.epsilon(limit.delta)
                if not after <= limit.epsilon:
                    raise BudgetExceeded(
                        f"{what}: ε would go from {spent:.4f} to {after:.4f}, over its cap of {limit.epsilon:g}"
                        f" (δ = {limit.delta:g})",
                        remedy="the budget is for life; only an amended treaty can raise it",
                    )
            number = len(lines) + 1
            self._append(connection, lines, "reserve", number, purpose, study, label, event)
            return number

    def commit(self, ref: int, event: Event | None = None) -> None:
        """What was reserved happened; `event` says so more exactly, and may only be cheaper.

        Raises:
            InputError: no such open reservation, or the event costs more than was reserved.
        """
        with self._transaction() as connection:
            lines = list(self._read(connection))
            reserved = _open(lines, ref)
            if event is not None and ZCDP([event]).rho > ZCDP([_event(reserved)]).rho:
                raise InputError(f"ledger line {ref}: it can't be committed at more than was reserved")
            kept = event or _event(reserved)
            self._append(
                connection, lines, "commit", ref, reserved.purpose, reserved.study, reserved.label, kept
            )

    def abort(self, ref: int) -> None:
        """Nothing left the silo: the reservation is given back.

        Raises:
            InputError: no such open reservation.
        """
        with self._transaction() as connection:
            lines = list(self._read(connection))
            reserved = _open(lines, ref)
            self._append(
                connection, lines, "abort", ref, reserved.purpose, reserved.study, reserved.label, None
            )

    def epsilon(self, delta: float, *, purpose: str | None = None, study: str | None = None) -> float:
        """ε spent or reserved at `delta`, of one purpose or study if given."""
        return ZCDP(self.events(purpose=purpose, study=study)).epsilon(delta)

    def events(self, *, purpose: str | None = None, study: str | None = None) -> list[Event]:
        """The events that count: committed ones, and reservations nobody closed."""
        return [
            event
            for line, event in _standing(list(self.lines()))
            if purpose in (None, line.purpose) and study in (None, line.study)
        ]

    @property
    def head(self) -> Head:
        """Size and last hash."""
        lines = list(self.lines())
        return Head(len(lines), lines[-1].hash if lines else _GENESIS)

    def lines(self) -> Iterator[Line]:
        """Every line, the chain checked on the way.

        Raises:
            VerificationError: a line was altered, removed or put in.
        """
        with closing(self._connect()) as connection:
            yield from self._read(connection)

    def _read(self, connection: sqlite3.Connection) -> Iterator[Line]:
        previous = _GENESIS
        try:
            rows = connection.execute("SELECT number, body, hash FROM line ORDER BY number").fetchall()
        except sqlite3.DatabaseError as error:
            raise VerificationError(f"{self.path}: the ledger can't be read ({error})") from error
        for expected, (number, body, stored) in enumerate(rows, 1):
            if number != expected or _chain(previous, body) != stored:
                raise VerificationError(
                    f"{self.path}: line {expected} does not follow from the one before it",
                    remedy="the ledger was altered; nothing may run until an officer has looked at it",
                )
            yield _parse(number, body, stored)
            previous = stored

    def _append(
        self,
        connection: sqlite3.Connection,
        lines: list[Line],
        kind: str,
        ref: int,
        purpose: str,
        study: str,
        label: str,
        event: Event | None,
    ) -> None:
        record: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "kind": kind,
            "ref": ref,
            "purpose": purpose,
            "study": study,
            "label": label,
            "event": None if event is None else to_json(event),
        }
        body = canonical(record).decode()
        previous = lines[-1].hash if lines else _GENESIS
        connection.execute(
            "INSERT INTO line VALUES (?, ?, ?)", (len(lines) + 1, body, _chain(previous, body))
        )


def _chain(previous: str, body: str) -> str:
    return hashlib.sha256(bytes.fromhex(previous) + body.encode()).hexdigest()


def _parse(number: int, body: str, stored: str) -> Line:
    record = parse_json(body)
    event = None if record["event"] is None else from_json(record["event"])
    return Line(number, event=event, hash=stored, **{k: v for k, v in record.items() if k != "event"})


def _event(line: Line) -> Event:
    if line.event is None:
        raise VerificationError(f"ledger line {line.number}: a {line.kind} without an event")
    return line.event


def _open(lines: list[Line], ref: int) -> Line:
    closed = {line.ref for line in lines if line.kind != "reserve"}
    for line in lines:
        if line.number == ref and line.kind == "reserve" and ref not in closed:
            return line
    raise InputError(f"ledger line {ref}: no open reservation")


def _standing(lines: list[Line]) -> list[tuple[Line, Event]]:
    """The events that count, each with the line that states it."""
    latest: dict[int, Line] = {}
    for line in lines:
        latest[line.ref] = line
    return [(line, _event(line)) for line in latest.values() if line.kind != "abort"]


def left(ledger: Ledger, purpose: str, cap: Cap) -> float:
    """ε still to be spent on a purpose (a difference of totals: ε does not simply add up)."""
    return (
        max(0.0, cap.epsilon - ledger.epsilon(cap.delta, purpose=purpose))
        if math.isfinite(cap.epsilon)
        else math.inf
    )
