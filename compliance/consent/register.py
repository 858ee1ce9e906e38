"""The register of consents of one silo: who permitted which purpose, when, under which notice.

It keeps *events*, grants and withdrawals, and never changes one. What is in force at a time is a
function of the set of events, whatever their order of arrival:

    a grant is in force at t   iff   granted_at ≤ t, and t < expires_at (if it expires),
                                     and no withdrawal w of the same subject and purpose has
                                     granted_at ≤ w ≤ t

So a nightly import of the same file revives nothing, a late-arriving old withdrawal still counts, a new
grant after a withdrawal is a new record, and a withdrawal at the very instant of a grant wins.

The fields are those of ISO/IEC TS 27560:2023 that decide something here; purposes are IRIs such as
``dpv:CustomerRelationshipManagement`` (W3C Data Privacy Vocabulary). Times are timezone-aware.
"""

from __future__ import annotations

import csv
import hashlib
import re
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd

from ...errors import InputError
from ..auditlog.database import Schema, append_only, connection, establish, transaction

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PURPOSE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|\\^`]+")
_REQUIRED = ("subject", "purpose", "notice_version", "granted_at")
_OPTIONAL = ("expires_at", "withdrawn_at", "method")

# Keyed by purpose and subject in this order: the cohort of a purpose is one scan, already sorted.
_SCHEMA = Schema(
    title="a consent register",
    application_id=0x666F636F,  # "foco"
    statements=(
        (
            "CREATE TABLE granted (purpose TEXT NOT NULL, subject TEXT NOT NULL, at INTEGER NOT NULL, "
            "record_id TEXT NOT NULL, notice_version TEXT NOT NULL, expires_at INTEGER CHECK (expires_at > at), "
            "method TEXT NOT NULL, PRIMARY KEY (purpose, subject, at)) STRICT, WITHOUT ROWID"
        ),
        (
            "CREATE TABLE withdrawn (purpose TEXT NOT NULL, subject TEXT NOT NULL, at INTEGER NOT NULL, "
            "PRIMARY KEY (purpose, subject, at)) STRICT, WITHOUT ROWID"
        ),
        # An event that is there already is ignored: importing a file twice is importing it once.
        *append_only(
            "granted",
            "EXISTS (SELECT 1 FROM granted WHERE purpose = NEW.purpose AND subject = NEW.subject AND at = NEW.at)",
            "IGNORE",
        ),
        *append_only(
            "withdrawn",
            "EXISTS (SELECT 1 FROM withdrawn WHERE purpose = NEW.purpose AND subject = NEW.subject "
            "AND at = NEW.at)",
            "IGNORE",
        ),
    ),
)

# In force at :at. Withdrawals up to :at count, whenever they were told to us.
_IN_FORCE = """
    FROM granted AS g
    WHERE g.purpose = :purpose AND g.at <= :at AND (g.expires_at IS NULL OR g.expires_at > :at)
      AND NOT EXISTS (SELECT 1 FROM withdrawn AS w WHERE w.purpose = g.purpose AND w.subject = g.subject
                      AND w.at >= g.at AND w.at <= :at)
"""


@dataclass(frozen=True)
class Grant:
    """A consent to record; `granted_at` None means now."""

    subject: str
    purpose: str
    notice_version: str
    granted_at: datetime | None = None
    expires_at: datetime | None = None
    method: str = "import"


@dataclass(frozen=True)
class Withdrawal:
    """A withdrawal to record; `at` None means now."""

    subject: str
    purpose: str
    at: datetime | None = None


@dataclass(frozen=True)
class ConsentRecord:
    """One grant and what became of it."""

    record_id: str
    subject: str
    purpose: str
    notice_version: str
    granted_at: datetime
    expires_at: datetime | None
    withdrawn_at: datetime | None
    method: str


class ConsentRegister:
    """The consents of one silo, in one SQLite file that threads and processes may share.

    Args:
        path: the file; made (mode 0600) if there is none. It names customers: it stays at the silo.

    Raises:
        InputError: not a consent register.
        VerificationError: a damaged file, or changed tables or triggers.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        establish(path, _SCHEMA)

    # ── telling it ───────────────────────────────────────────────────────────────────────────────

    def grant(
        self,
        subject: str,
        purpose: str,
        *,
        notice_version: str,
        expires_at: datetime | None = None,
        method: str = "import",
        at: datetime | None = None,
    ) -> str:
        """Record a consent; it is in force from `at` (now, by default). Returns its record id.

        Raises:
            InputError: an empty field, a purpose that is no IRI, a naive time, an expiry before the
                grant, or another grant at that very instant that says something else.
        """
        return self.grant_many([Grant(subject, purpose, notice_version, at, expires_at, method)])[0]

    def grant_many(self, rows: Iterable[Grant]) -> list[str]:
        """Record all grants or none. Returns their record ids, in order; errors as `grant`."""
        now = _now()
        events = [_granted(row, now) for row in rows]
        with transaction(self._path) as db:
            return _insert_grants(db, events)

    def withdraw(self, subject: str, purpose: str, *, at: datetime | None = None) -> None:
        """Withdraw every consent of `subject` to `purpose` given until `at` (now, by default).

        Withdrawing what has expired or is withdrawn already is no error: asking twice is allowed.

        Raises:
            InputError: this subject had not consented to this purpose by then.
        """
        self.withdraw_many([Withdrawal(subject, purpose, at)])

    def withdraw_many(self, rows: Iterable[Withdrawal]) -> None:
        """Record all withdrawals or none; errors as `withdraw`."""
        now = _now()
        events = [_withdrawn(row, now) for row in rows]
        with transaction(self._path) as db:
            _insert_withdrawals(db, events)

    def import_csv(self, path: Path) -> int:
        """Record the consents of a CSV file, all or none. Returns the number of its rows.

        Columns ``subject, purpose, notice_version, granted_at`` and, where wanted, ``expires_at,
        withdrawn_at, method``, in any order; times are ISO 8601 with an offset; UTF-8.

        Raises:
            InputError: naming the line and the column.
        """
        grants: list[_Granted] = []
        withdrawals: list[_Withdrawn] = []
        for where, row in _csv_rows(path):
            try:
                grant, withdrawal = _csv_events(row)
            except _Field as error:
                raise InputError(f"{where}, column {error.field!r}: {error.problem}") from error
            grants.append(grant)
            withdrawals += [] if withdrawal is None else [withdrawal]
        with transaction(self._path) as db:
            _insert_grants(db, grants)
            _insert_withdrawals(db, withdrawals)
        return len(grants)

    # ── asking it ────────────────────────────────────────────────────────────────────────────────

    def in_force(self, purpose: str, at: datetime) -> pd.DataFrame:
        """Who consents to `purpose` at `at`: one column ``subject`` (text), sorted, each once."""
        query = f"SELECT DISTINCT g.subject {_IN_FORCE} ORDER BY g.subject"
        with connection(self._path) as db:
            rows = db.execute(query, _at(purpose, at)).fetchall()
        return pd.DataFrame({"subject": pd.Series([subject for (subject,) in rows], dtype="str")})

    def counts(self, purpose: str, at: datetime) -> dict[str, int]:
        """How many subjects have a consent ``in_force``, ``withdrawn`` or ``expired`` at `at`.

        Each subject who consented by then counts once: in force if any record is; else withdrawn if the
        last word was theirs, expired if it was the calendar's.
        """
        query = """
            SELECT coalesce(sum(live), 0), coalesce(sum(NOT live AND out), 0), count(*) FROM (
                SELECT max(g.at > coalesce(w.last, g.at - 1) AND (g.expires_at IS NULL OR g.expires_at > :at)) AS live,
                       max(g.at) <= coalesce(w.last, max(g.at) - 1) AS out
                FROM granted AS g
                LEFT JOIN (SELECT subject, max(at) AS last FROM withdrawn
                           WHERE purpose = :purpose AND at <= :at GROUP BY subject) AS w USING (subject)
                WHERE g.purpose = :purpose AND g.at <= :at
                GROUP BY g.subject)
        """
        with connection(self._path) as db:
            in_force, withdrawn, everyone = db.execute(query, _at(purpose, at)).fetchone()
        return {"in_force": in_force, "withdrawn": withdrawn, "expired": everyone - in_force - withdrawn}

    def records(self, subject: str) -> list[ConsentRecord]:
        """Every record of one subject, oldest first: what they may ask to see."""
        query = """
            SELECT record_id, subject, purpose, notice_version, at, expires_at,
                   (SELECT min(w.at) FROM withdrawn AS w
                    WHERE w.purpose = g.purpose AND w.subject = g.subject AND w.at >= g.at), method
            FROM granted AS g WHERE subject = ? ORDER BY at, purpose
        """
        with connection(self._path) as db:
            rows = db.execute(query, (subject,)).fetchall()
        return [
            ConsentRecord(
                record, who, purpose, notice, _moment(at), _maybe(expires), _maybe(withdrawn), method
            )
            for record, who, purpose, notice, at, expires, withdrawn, method in rows
        ]

    def snapshot_digest(self, purpose: str, at: datetime, *, salt: bytes = b"") -> str:
        """SHA-256 (hex) over the sorted ids of the records in force: the cohort, as one number.

        Record ids are 128 random bits, so the digest names nobody; but equal digests tell that nothing
        changed. What leaves the silo takes a `salt` that stays there.
        """
        with connection(self._path) as db:
            rows = db.execute(f"SELECT g.record_id {_IN_FORCE}", _at(purpose, at)).fetchall()
        ids = sorted(record for (record,) in rows)
        return hashlib.sha256(salt + "".join(f"{record}\n" for record in ids).encode()).hexdigest()


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────

_Granted = tuple[str, str, int, str, str, int | None, str]  # the columns of `granted`
_Withdrawn = tuple[str, str, int]


class _Field(InputError):
    """What is wrong with which field; the caller adds where."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field, self.problem = field, problem


def _granted(row: Grant, now: int) -> _Granted:
    subject, purpose = _who_and_what(row.subject, row.purpose)
    _text("notice_version", row.notice_version)
    _text("method", row.method)
    at = now if row.granted_at is None else _micros("granted_at", row.granted_at)
    expires = None if row.expires_at is None else _micros("expires_at", row.expires_at)
    if expires is not None and expires <= at:
        raise _Field("expires_at", "not after granted_at")
    return purpose, subject, at, secrets.token_hex(16), row.notice_version, expires, row.method


def _withdrawn(row: Withdrawal, now: int) -> _Withdrawn:
    subject, purpose = _who_and_what(row.subject, row.purpose)
    return purpose, subject, now if row.at is None else _micros("at", row.at)


def _insert_grants(db: sqlite3.Connection, events: list[_Granted]) -> list[str]:
    before = db.total_changes
    db.executemany("INSERT INTO granted VALUES (?, ?, ?, ?, ?, ?, ?)", events)
    if db.total_changes - before == len(events):
        return [event[3] for event in events]
    # Some were there already: the same event again is fine, another one under its key is not.
    ids: list[str] = []
    for purpose, subject, at, _, *said in events:
        record, *known = db.execute(
            "SELECT record_id, notice_version, expires_at, method FROM granted "
            "WHERE purpose = ? AND subject = ? AND at = ?",
            (purpose, subject, at),
        ).fetchone()
        if known != said:
            raise InputError(
                f"{subject!r} has another grant for {purpose} at {_moment(at).isoformat()}, which says otherwise",
                remedy="a changed consent is a new grant at its own time",
            )
        ids.append(record)
    return ids


def _insert_withdrawals(db: sqlite3.Connection, events: list[_Withdrawn]) -> None:
    for purpose, subject, at in events:
        known = db.execute(
            "SELECT 1 FROM granted WHERE purpose = ? AND subject = ? AND at <= ? LIMIT 1",
            (purpose, subject, at),
        ).fetchone()
        if known is None:
            raise InputError(f"{subject!r} had given no consent for {purpose} by {_moment(at).isoformat()}")
    db.executemany("INSERT INTO withdrawn VALUES (?, ?, ?)", events)


def _who_and_what(subject: str, purpose: str) -> tuple[str, str]:
    _text("subject", subject)
    if not isinstance(purpose, str) or not _PURPOSE.fullmatch(purpose):
        raise _Field("purpose", f"{purpose!r} is not an IRI such as dpv:CustomerRelationshipManagement")
    return subject, purpose


def _text(field: str, value: str) -> None:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise _Field(field, f"{value!r} is not a printable text")


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """``("file, line 7", row)`` of every row; the columns are checked."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            for name in header:
                if name not in (*_REQUIRED, *_OPTIONAL) or header.count(name) > 1:
                    raise InputError(f"{path}, line 1, column {name!r}: unknown or given twice")
            for name in _REQUIRED:
                if name not in header:
                    raise InputError(f"{path}, line 1, column {name!r}: missing")
            for cells in reader:
                where = f"{path}, line {reader.line_num}"
                if len(cells) != len(header):
                    raise InputError(f"{where}: {len(cells)} columns where the header has {len(header)}")
                yield where, dict(zip(header, cells, strict=True))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a UTF-8 CSV file ({error})") from error


def _csv_events(row: dict[str, str]) -> tuple[_Granted, _Withdrawn | None]:
    granted_at, withdrawn_at = _csv_time(row, "granted_at"), _csv_time(row, "withdrawn_at")
    if granted_at is None:  # an import has no "now"
        raise _Field("granted_at", "a time is missing")
    if withdrawn_at is not None and withdrawn_at < granted_at:
        raise _Field("withdrawn_at", "before granted_at")
    expires_at, method = _csv_time(row, "expires_at"), row.get("method") or "import"
    subject, purpose = row["subject"], row["purpose"]
    grant = _granted(Grant(subject, purpose, row["notice_version"], granted_at, expires_at, method), 0)
    return grant, None if withdrawn_at is None else _withdrawn(Withdrawal(subject, purpose, withdrawn_at), 0)


def _csv_time(row: dict[str, str], field: str) -> datetime | None:
    text = row.get(field, "")
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise _Field(field, f"{text!r} is not an ISO 8601 time") from error
    _micros(field, moment)
    return moment


# ── time: microseconds since 1970 in the file, aware datetimes outside ───────────────────────────


def _now() -> int:
    return _micros("now", datetime.now(UTC))


def _at(purpose: str, at: datetime) -> dict[str, str | int]:
    return {"purpose": purpose, "at": _micros("at", at)}


def _micros(field: str, moment: datetime) -> int:
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise _Field(field, f"{moment} has no timezone")
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _moment(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def _maybe(micros: int | None) -> datetime | None:
    return None if micros is None else _moment(micros)
