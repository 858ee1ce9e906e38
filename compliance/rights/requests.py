"""The queue of requests, in ``rights.db``: who asked for what, until when it must be answered, and what became of it.

::

    open ──▶ in_progress ──▶ done
      │           └────────▶ refused, with a reason that the subject is shown
      └──▶ done, refused

Each step is told to the silo's audit log first (`record`), then committed; a request names the last entry about it.
The file names customers. When one is erased their requests stay, as records of processing, under a tombstone.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..auditlog.database import connection, establish, transaction
from ..consent.notices import LANGUAGES, Language
from ..consent.records import check_text, micros, moment
from .deadlines import Calendar
from .schema import SCHEMA

_MOST_NOTE = 2000


class Kind(StrEnum):
    """What may be asked for."""

    KNOW = "know"
    CHOOSE = "choose"
    ACCESS = "access"
    CORRECT = "correct"
    DELETE = "delete"
    WITHDRAW = "withdraw"
    EXPLAIN = "explain"


class State(StrEnum):
    OPEN = "open"
    IN_PROGRESS = "in_progress"
    DONE = "done"
    REFUSED = "refused"


_BEFORE = {
    State.IN_PROGRESS: (State.OPEN,),
    State.DONE: (State.OPEN, State.IN_PROGRESS),
    State.REFUSED: (State.OPEN, State.IN_PROGRESS),
}


@dataclass(frozen=True)
class Request:
    """One request. `reason` is shown to the subject; `entry` is the last entry about it in the silo's audit log."""

    id: str
    kind: Kind
    subject: str
    language: Language
    note: str
    opened: datetime
    due: date
    state: State
    reason: str
    entry: int
    closed: datetime | None = None

    @property
    def over(self) -> bool:
        return self.state in (State.DONE, State.REFUSED)


Record = Callable[[str, Request], int]
"""Tells the audit log of a step (``opened``, ``in_progress``, ``done``, ``refused``); the entry's index."""


class Requests:
    """The queue in one file; threads and processes may share it.

    Args:
        path: the file; made (mode 0600) if there is none.
        calendar: by which deadlines are counted.
        record: called before each step is committed; if it raises, nothing happens.

    Raises:
        InputError: not a queue of requests. VerificationError: damaged.
    """

    def __init__(self, path: Path, calendar: Calendar, record: Record) -> None:
        self._path, self.calendar, self._record = path, calendar, record
        establish(path, SCHEMA)

    def open(
        self,
        kind: Kind,
        subject: str,
        language: Language = "en",
        *,
        note: str = "",
        at: datetime | None = None,
    ) -> Request:
        """Take a request in; the same one that is still waiting is returned instead of a second.

        Args:
            note: what the subject wrote, at most 2,000 characters.

        Raises:
            InputError: an empty or unprintable subject, an unknown language, too long a note, a naive time.
        """
        check_text("subject", subject)
        if language not in LANGUAGES:
            raise InputError(f"{language!r} is not one of the languages {', '.join(LANGUAGES)}")
        if len(note) > _MOST_NOTE or (not note.replace("\n", " ").isprintable() and note):
            raise InputError(f"a note is printable text of at most {_MOST_NOTE} characters")
        now = at or datetime.now(UTC)
        micros("at", now)
        with transaction(self._path) as db:
            row = db.execute(
                "SELECT * FROM request WHERE subject = ? AND kind = ? AND note = ? "
                "AND state IN ('open', 'in_progress')",
                (subject, kind.value, note),
            ).fetchone()
            if row is not None:
                return _request(row)
            found = Request(
                secrets.token_hex(8),
                Kind(kind),
                subject,
                language,
                note,
                moment(micros("at", now)),
                self.calendar.due(now),
                State.OPEN,
                "",
                -1,
            )
            found = replace(found, entry=self._record("opened", found))
            db.execute(
                "INSERT INTO request VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                (
                    found.id,
                    found.kind.value,
                    subject,
                    language,
                    note,
                    micros("at", now),
                    found.due.isoformat(),
                    found.state.value,
                    "",
                    found.entry,
                ),
            )
        return found

    def get(self, number: str, *, subject: str | None = None) -> Request:
        """One request.

        Args:
            subject: only if it is this one's; another's is as unknown as one that does not exist.

        Raises:
            InputError: there is none.
        """
        with connection(self._path) as db:
            row = db.execute("SELECT * FROM request WHERE id = ?", (number,)).fetchone()
        if row is None or (subject is not None and row[2] != subject):
            raise InputError(f"there is no request {number!r}")
        return _request(row)

    def of(self, subject: str) -> list[Request]:
        """All requests of one subject, the latest first."""
        return self._select("subject = ? ORDER BY opened DESC", subject)

    def waiting(self) -> list[Request]:
        """All that are not answered, the most urgent first."""
        return self._select("state IN ('open', 'in_progress') ORDER BY due, opened")

    def overdue(self, at: datetime | None = None) -> list[Request]:
        """Those waiting whose last day is over, the oldest first."""
        today = self.calendar.today(at or datetime.now(UTC))
        return [request for request in self.waiting() if request.due < today]

    def all(self) -> list[Request]:
        """Every request, the latest first."""
        return self._select("1 ORDER BY opened DESC")

    def start(self, number: str) -> Request:
        """Somebody works on it.

        Raises:
            InputError: no such request, or it is not open.
        """
        return self._step(number, State.IN_PROGRESS, "")

    def done(self, number: str, note: str = "") -> Request:
        """It was done; `note`, if any, is shown to the subject.

        Raises:
            InputError: no such request, or it is over.
        """
        return self._step(number, State.DONE, note)

    def refuse(self, number: str, reason: str) -> Request:
        """It is refused, for a reason that the subject is shown (PIPL art. 50).

        Raises:
            InputError: no such request, it is over, or no reason is given.
        """
        if not reason.strip():
            raise InputError(
                "a refusal states its reason: the subject is shown it, and may sue (PIPL art. 50)"
            )
        return self._step(number, State.REFUSED, reason)

    def purge(self, numbers: Sequence[str], *, before: int) -> int:
        """Delete requests that were closed before a time (microseconds). Returns how many."""
        with transaction(self._path) as db:
            db.execute("PRAGMA secure_delete = ON")
            deleted = [
                db.execute("DELETE FROM request WHERE id = ? AND closed < ?", (number, before)).rowcount
                for number in numbers
            ]
        return sum(deleted)

    def _step(self, number: str, to: State, reason: str) -> Request:
        if len(reason) > _MOST_NOTE or (reason and not reason.isprintable()):
            raise InputError(f"a reason is printable text of at most {_MOST_NOTE} characters")
        with transaction(self._path) as db:
            row = db.execute("SELECT * FROM request WHERE id = ?", (number,)).fetchone()
            if row is None:
                raise InputError(f"there is no request {number!r}")
            found = _request(row)
            if found.state not in _BEFORE[to]:
                raise InputError(f"the request {number} is {found.state.value}, it can't become {to.value}")
            closed = None if to is State.IN_PROGRESS else datetime.now(UTC)
            found = replace(found, state=to, reason=reason, closed=closed)
            found = replace(found, entry=self._record(to.value, found))
            db.execute(
                "UPDATE request SET state = ?, reason = ?, entry = ?, closed = ? WHERE id = ?",
                (to.value, reason, found.entry, None if closed is None else micros("at", closed), number),
            )
        return found

    def _select(self, where: str, *parameters: Any) -> list[Request]:
        with connection(self._path) as db:
            rows = db.execute(f"SELECT * FROM request WHERE {where}", parameters).fetchall()  # noqa: S608
        return [_request(row) for row in rows]


def _request(row: Sequence[Any]) -> Request:
    number, kind, subject, language, note, opened, due, state, reason, entry, closed = row
    return Request(
        number,
        Kind(kind),
        subject,
        "zh" if language == "zh" else "en",
        note,
        moment(opened),
        date.fromisoformat(due),
        State(state),
        reason,
        entry,
        None if closed is None else moment(closed),
    )
