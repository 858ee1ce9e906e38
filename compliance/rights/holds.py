"""Legal holds, and the files that name customers outside the registers; both in ``rights.db``.

A hold keeps data from purge and erasure while a court, an authority or a dispute needs it (PIPL art. 47, last paragraph;
GDPR art. 17(3)). It is set and lifted by a named person for a stated reason, which the subject is told.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ...errors import InputError
from ..auditlog.database import connection, establish, transaction
from ..consent.records import check_text, maybe, micros, moment
from .schema import SCHEMA


@dataclass(frozen=True)
class Hold:
    """A hold on one subject, or on everybody (`subject` None)."""

    id: str
    subject: str | None
    reason: str
    by: str
    at: datetime
    lifted_by: str | None
    lifted_at: datetime | None


class Holds:
    """The holds of one silo.

    Raises:
        InputError: another kind of file. VerificationError: damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        establish(path, SCHEMA)

    def set(
        self,
        reason: str,
        by: str,
        subject: str | None = None,
        *,
        record: Callable[[str], object] = lambda _: None,
    ) -> str:
        """Set a hold; its id. `record` is called with it before it is kept.

        Raises:
            InputError: no reason, or nobody sets it.
        """
        check_text("reason", reason)
        check_text("by", by)
        if subject is not None:
            check_text("subject", subject)
        number = secrets.token_hex(8)
        with transaction(self._path) as db:
            record(number)
            at = micros("at", datetime.now(UTC))
            db.execute(
                "INSERT INTO hold VALUES (?, ?, ?, ?, ?, NULL, NULL)", (number, subject, reason, by, at)
            )
        return number

    def lift(self, number: str, by: str, *, record: Callable[[], object] = lambda: None) -> None:
        """Lift a hold.

        Raises:
            InputError: there is none of this id in force, or nobody lifts it.
        """
        check_text("by", by)
        with transaction(self._path) as db:
            found = db.execute("SELECT 1 FROM hold WHERE id = ? AND lifted_at IS NULL", (number,)).fetchone()
            if found is None:
                raise InputError(f"there is no hold {number!r} in force")
            record()
            at = micros("at", datetime.now(UTC))
            db.execute("UPDATE hold SET lifted_by = ?, lifted_at = ? WHERE id = ?", (by, at, number))

    def on(self, subject: str) -> list[Hold]:
        """The holds in force that keep a subject's data."""
        return [hold for hold in self.in_force() if hold.subject in (None, subject)]

    def in_force(self) -> list[Hold]:
        """All holds in force, the oldest first."""
        return [hold for hold in self.all() if hold.lifted_at is None]

    def all(self) -> list[Hold]:
        """All holds there were."""
        with connection(self._path) as db:
            rows = db.execute("SELECT * FROM hold ORDER BY at").fetchall()
        return [
            Hold(number, subject, reason, by, moment(at), lifted_by, maybe(lifted))
            for number, subject, reason, by, at, lifted_by, lifted in rows
        ]


@dataclass(frozen=True)
class Output:
    """A file that a node wrote and that names customers in one column."""

    path: Path
    column: str
    purpose: str
    at: datetime


class Outputs:
    """The files of one silo that name customers, noted before they are written.

    Raises:
        InputError: another kind of file. VerificationError: damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        establish(path, SCHEMA)

    def note(self, output: Path, column: str, purpose: str, at: datetime) -> None:
        """A file is about to be written."""
        with transaction(self._path) as db:
            db.execute(
                "INSERT INTO output VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET subject_column = excluded.subject_column, "
                "purpose = excluded.purpose, at = excluded.at",
                (str(output.resolve()), column, purpose, micros("at", at)),
            )

    def all(self) -> list[Output]:
        """Every file noted, the oldest first."""
        with connection(self._path) as db:
            rows = db.execute("SELECT * FROM output ORDER BY at, path").fetchall()
        return [Output(Path(path), column, purpose, moment(at)) for path, column, purpose, at in rows]

    def forget(self, output: Path) -> None:
        """A file is gone."""
        with transaction(self._path) as db:
            db.execute("DELETE FROM output WHERE path = ?", (str(output),))
