"""The register's tables and statements (SQLite), and how an event becomes a row."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from ... import durable
from ...errors import InputError
from ..auditlog.database import Schema, append_only
from . import vocabulary
from .decisions import Cover
from .notices import Notice, split_version
from .records import FieldError, Grant, Terms, Withdrawal, check_text, micros, moment, own_from

_KNOWN = "EXISTS (SELECT 1 FROM {0} WHERE purpose = NEW.purpose AND subject = NEW.subject AND at = NEW.at)"

# Who was erased (`erasing`): under which name their records go on, when, and whether the table is rid of them.
_ERASED = (
    (
        "CREATE TABLE erased (seq INTEGER PRIMARY KEY, tombstone TEXT NOT NULL, at INTEGER NOT NULL, "
        "cleared INTEGER NOT NULL CHECK (cleared IN (0, 1))) STRICT"
    ),
    (
        "CREATE TABLE erased_label (tombstone TEXT NOT NULL, study TEXT NOT NULL, label BLOB NOT NULL, "
        "PRIMARY KEY (tombstone, study)) STRICT, WITHOUT ROWID"
    ),
)

SCHEMA = Schema(
    title="a consent register",
    application_id=0x666F6332,  # "foc2"
    statements=(
        (
            "CREATE TABLE notice (version TEXT PRIMARY KEY, digest TEXT NOT NULL, body TEXT NOT NULL) "
            "STRICT, WITHOUT ROWID"
        ),
        (
            "CREATE TABLE terms (number INTEGER PRIMARY KEY, notice_version TEXT NOT NULL, "
            "purpose TEXT NOT NULL, categories TEXT NOT NULL, sensitive INTEGER NOT NULL, "
            "sharing TEXT NOT NULL, UNIQUE (notice_version, purpose, categories, sensitive, sharing)) STRICT"
        ),
        # `seq` is the order of arrival, so that the register can be asked as it was.
        (
            "CREATE TABLE granted (seq INTEGER PRIMARY KEY, purpose TEXT NOT NULL, subject TEXT NOT NULL, "
            "at INTEGER NOT NULL, record_id TEXT NOT NULL, terms INTEGER NOT NULL REFERENCES terms, "
            "expires_at INTEGER CHECK (expires_at > at), method TEXT NOT NULL, own_from INTEGER, "
            "guardian TEXT CHECK (guardian IS NULL OR own_from > at), evidence TEXT, "
            "UNIQUE (purpose, subject, at)) STRICT"
        ),
        (
            "CREATE TABLE withdrawn (seq INTEGER PRIMARY KEY, purpose TEXT NOT NULL, subject TEXT NOT NULL, "
            "at INTEGER NOT NULL, UNIQUE (purpose, subject, at)) STRICT"
        ),
        (
            "CREATE TABLE told (event TEXT PRIMARY KEY, digest TEXT NOT NULL, at INTEGER NOT NULL) "
            "STRICT, WITHOUT ROWID"
        ),
        "CREATE INDEX granted_subject ON granted (subject)",
        # An event that is there already is ignored: importing a file twice is importing it once.
        *append_only("granted", _KNOWN.format("granted"), "IGNORE"),
        *append_only("withdrawn", _KNOWN.format("withdrawn"), "IGNORE"),
        *append_only("notice", "EXISTS (SELECT 1 FROM notice WHERE version = NEW.version)", "ABORT"),
        *append_only("terms", "EXISTS (SELECT 1 FROM terms WHERE number = NEW.number)", "ABORT"),
        *append_only("told", "EXISTS (SELECT 1 FROM told WHERE event = NEW.event)", "ABORT"),
        *_ERASED,
    ),
)

# Withdrawals up to :at count, whenever they were told to us.
_UNWITHDRAWN = (
    "NOT EXISTS (SELECT 1 FROM withdrawn AS w WHERE w.purpose = g.purpose AND w.subject = g.subject "
    "AND w.at >= g.at AND w.at <= :at"
)
IN_FORCE = f"""
    FROM granted AS g
    WHERE g.purpose = :purpose AND g.at <= :at AND (g.expires_at IS NULL OR g.expires_at > :at)
      AND {_UNWITHDRAWN})
"""
COUNTS = """
    SELECT coalesce(sum(live), 0), coalesce(sum(NOT live AND out), 0), count(*) FROM (
        SELECT max(g.at > coalesce(w.last, g.at - 1) AND (g.expires_at IS NULL OR g.expires_at > :at)) AS live,
               max(g.at) <= coalesce(w.last, max(g.at) - 1) AS out
        FROM granted AS g
        LEFT JOIN (SELECT subject, max(at) AS last FROM withdrawn
                   WHERE purpose = :purpose AND at <= :at GROUP BY subject) AS w USING (subject)
        WHERE g.purpose = :purpose AND g.at <= :at
        GROUP BY g.subject)
"""
ENDED = """
    SELECT subject FROM (
        SELECT g.subject AS subject, min(coalesce(g.expires_at, 9000000000000000000), coalesce(
            (SELECT min(w.at) FROM withdrawn AS w WHERE w.purpose = g.purpose AND w.subject = g.subject AND w.at >= g.at),
            9000000000000000000)) AS ended
        FROM granted AS g WHERE g.subject NOT LIKE :erased
    ) GROUP BY subject HAVING max(ended) < :at ORDER BY subject
"""
RECORDS = """
    SELECT record_id, subject, terms, at, expires_at,
           (SELECT min(w.at) FROM withdrawn AS w
            WHERE w.purpose = g.purpose AND w.subject = g.subject AND w.at >= g.at),
           method, own_from, guardian, evidence
    FROM granted AS g WHERE subject = ? ORDER BY at, purpose
"""


class Marks(NamedTuple):
    """How far the register was: the last grant and the last withdrawal, by order of arrival."""

    granted: int
    withdrawn: int


Last = tuple[tuple[Any, ...] | None, tuple[Any, ...] | None, int]
"""The rows at some marks, and how many were erased: by these a copy knows the register it was taken from."""


@dataclass(frozen=True)
class Changes:
    """New rows: grants (subject, at, terms, expires_at, own_from, by a guardian), withdrawals (subject, at).

    `fresh`: the register is not the one the copy was taken from; these are all rows of it.
    """

    grants: list[tuple[Any, ...]]
    withdrawals: list[tuple[Any, ...]]
    marks: Marks
    last: Last
    fresh: bool


class Conflict(InputError):
    """What is told contradicts what was told before under the same key."""


Granted = tuple[str, str, int, str, Terms, int | None, str, int | None, str | None, str | None]
Withdrawn = tuple[str, str, int]


def granted(row: Grant, notices: Mapping[str, Notice], time: int) -> Granted:
    """The row of a grant, checked against its notice.

    Raises:
        FieldError: as `ConsentRegister.grant`.
    """
    row.check()
    terms, notice = _terms(row, notices)
    when = time if row.granted_at is None else micros("granted_at", row.granted_at)
    if when < micros("effective_from", notice.effective_from):
        raise FieldError("notice_version", f"{row.notice_version} was not in effect yet when it was granted")
    expires = None if row.expires_at is None else micros("expires_at", row.expires_at)
    if expires is not None and expires <= when:
        raise FieldError("expires_at", "not after granted_at")
    own = None
    if row.born is not None:
        if row.born.year < 1900 or row.born > moment(when).date():
            raise FieldError("born", f"{row.born} is no date of birth of who consented then")
        own = micros("born", own_from(row.born, notice.jurisdiction))
    elif notice.audience == "all" or row.guardian is not None:
        raise FieldError("born", "a date of birth is needed: under this notice, or with a guardian")
    child = own is not None and own > when
    if child and row.guardian is None:
        raise FieldError("guardian", "too young to consent alone, and no guardian is named")
    if child and not row.sensitive:
        raise FieldError("sensitive", "data of one so young is sensitive: separate consent is needed")
    if not child and row.guardian is not None:
        raise FieldError("guardian", "old enough to consent themselves: no guardian can")
    return (
        row.purpose,
        row.subject,
        when,
        secrets.token_hex(16),
        terms,
        expires,
        row.method,
        own,
        row.guardian,
        row.evidence,
    )


def _terms(row: Grant, notices: Mapping[str, Notice]) -> tuple[Terms, Notice]:
    try:
        version, _ = split_version(row.notice_version)
    except InputError as error:
        raise FieldError("notice_version", error.message) from error
    notice = notices.get(version)
    if notice is None:
        raise FieldError("notice_version", f"the notice {version!r} is not published here")
    told = notice.purposes.get(row.purpose)
    if told is None:
        raise FieldError("purpose", f"{row.purpose!r} is no purpose of the notice {version}")
    if row.categories is None:
        categories = {c for c in told if row.sensitive or not vocabulary.sensitive([c])}
    else:
        categories = set(row.categories)
    if not categories <= set(told):
        raise FieldError("categories", f"{min(categories - set(told))!r} is not in the notice {version}")
    if not categories or (vocabulary.sensitive(categories) and not row.sensitive):
        raise FieldError("sensitive", "sensitive data needs separate consent")
    if not set(row.sharing) <= set(notice.recipients):
        unknown = min(set(row.sharing) - set(notice.recipients))
        raise FieldError("sharing", f"{unknown!r} is no recipient of the notice {version}")
    return Terms(
        row.notice_version, row.purpose, frozenset(categories), row.sensitive, frozenset(row.sharing)
    ), notice


def withdrawn(row: Withdrawal, time: int) -> Withdrawn:
    """The row of a withdrawal.

    Raises:
        FieldError: an empty field, an unknown purpose, a naive time.
    """
    check_text("subject", row.subject)
    try:
        vocabulary.purpose(row.purpose)
    except InputError as error:
        raise FieldError("purpose", error.message) from error
    return row.purpose, row.subject, time if row.at is None else micros("at", row.at)


def insert_grants(db: sqlite3.Connection, events: Sequence[Granted]) -> list[str]:
    """Insert new grants; the ids of all, in order.

    Raises:
        InputError: there is another grant of that subject and purpose at that instant.
    """
    numbers: dict[Terms, int] = {}
    rows = []
    for event in events:
        terms = event[4]
        if terms not in numbers:
            numbers[terms] = _number(db, terms)
        rows.append((*event[:4], numbers[terms], *event[5:]))
    before = db.total_changes
    db.executemany("INSERT INTO granted VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    if db.total_changes - before == len(rows):
        return [row[3] for row in rows]
    # Some were there already: the same event again is fine, another one under its key is not.
    ids: list[str] = []
    for purpose, subject, when, _, *said in rows:
        record, *known = db.execute(
            "SELECT record_id, terms, expires_at, method, own_from, guardian, evidence FROM granted "
            "WHERE purpose = ? AND subject = ? AND at = ?",
            (purpose, subject, when),
        ).fetchone()
        if known != said:
            raise Conflict(
                f"{subject!r} has another grant for {purpose} at {moment(when).isoformat()}, which says otherwise",
                remedy="a changed consent is a new grant at its own time",
            )
        ids.append(record)
    return ids


def _number(db: sqlite3.Connection, terms: Terms) -> int:
    row = (
        terms.notice_version,
        terms.purpose,
        " ".join(sorted(terms.categories)),
        int(terms.sensitive),
        "\n".join(sorted(terms.sharing)),
    )
    found = db.execute(
        "SELECT number FROM terms WHERE notice_version = ? AND purpose = ? AND categories = ? "
        "AND sensitive = ? AND sharing = ?",
        row,
    ).fetchone()
    if found is None:
        found = (db.execute("INSERT INTO terms VALUES (NULL, ?, ?, ?, ?, ?)", row).lastrowid,)
    return int(found[0])


def all_terms(db: sqlite3.Connection) -> dict[int, Terms]:
    """Every terms that somebody consented to, by number."""
    return {
        number: Terms(
            notice, purpose, frozenset(categories.split()), bool(sensitive), frozenset(sharing.splitlines())
        )
        for number, notice, purpose, categories, sensitive, sharing in db.execute("SELECT * FROM terms")
    }


def insert_withdrawals(db: sqlite3.Connection, events: Sequence[Withdrawn], *, known: bool = True) -> None:
    """Insert new withdrawals.

    Args:
        known: refuse one without a consent before it.

    Raises:
        InputError: there was none.
    """
    for purpose, subject, when in events if known else ():
        found = db.execute(
            "SELECT 1 FROM granted WHERE purpose = ? AND subject = ? AND at <= ? LIMIT 1",
            (purpose, subject, when),
        ).fetchone()
        if found is None:
            raise InputError(f"{subject!r} had given no consent for {purpose} by {moment(when).isoformat()}")
    db.executemany("INSERT INTO withdrawn VALUES (NULL, ?, ?, ?)", events)


def cohort_query(
    purpose: str, covered: Mapping[int, Cover], when: int, until: Marks | None, subject: str | None = None
) -> tuple[str, dict[str, Any]]:
    """The rule of `decisions` over all subjects, or of one, with its parameters. `covered` is not empty."""
    cover = ", ".join(f"({n}, {c.since}, {int(c.ageless)}, {int(c.separate)})" for n, c in covered.items())
    query = f"""
        WITH cover (number, since, ageless, separate) AS (VALUES {cover})
        SELECT DISTINCT g.subject
        FROM granted AS g JOIN cover AS c ON c.number = g.terms
        WHERE g.purpose = :purpose AND g.at <= :at AND (g.expires_at IS NULL OR g.expires_at > :at)
          AND g.at >= c.since AND g.seq <= :granted
          AND CASE WHEN g.own_from IS NULL THEN g.guardian IS NULL AND c.ageless
                   WHEN g.own_from <= g.at THEN g.guardian IS NULL
                   ELSE g.guardian IS NOT NULL AND c.separate AND g.own_from > :at END
          AND {_UNWITHDRAWN} AND w.seq <= :withdrawn) {"" if subject is None else "AND g.subject = :subject"}
        ORDER BY g.subject
    """  # noqa: S608 - whole numbers only
    marks = until or Marks(2**62, 2**62)
    who = {} if subject is None else {"subject": subject}
    return query, {"purpose": purpose, "at": when, **marks._asdict(), **who}


def changes(db: sqlite3.Connection, purpose: str, since: Marks, last: Last | None) -> Changes:
    """See `ConsentRegister.changes`."""
    fresh = since != Marks(0, 0) and _last(db, since) != last
    if fresh:
        since = Marks(0, 0)
    (granted_to,) = db.execute("SELECT coalesce(max(seq), 0) FROM granted").fetchone()
    (withdrawn_to,) = db.execute("SELECT coalesce(max(seq), 0) FROM withdrawn").fetchone()
    marks = Marks(granted_to, withdrawn_to)
    # + keeps SQLite from walking the index of the purpose, all of it, for the few new rows.
    grants = db.execute(
        "SELECT subject, at, terms, expires_at, own_from, guardian IS NOT NULL FROM granted "
        "WHERE seq > ? AND +purpose = ?",
        (since.granted, purpose),
    ).fetchall()
    withdrawals = db.execute(
        "SELECT subject, at FROM withdrawn WHERE seq > ? AND +purpose = ?", (since.withdrawn, purpose)
    ).fetchall()
    return Changes(grants, withdrawals, marks, _last(db, marks), fresh)


def _last(db: sqlite3.Connection, marks: Marks) -> Last:
    return (
        db.execute("SELECT record_id FROM granted WHERE seq = ?", (marks.granted,)).fetchone(),
        db.execute("SELECT purpose, subject, at FROM withdrawn WHERE seq = ?", (marks.withdrawn,)).fetchone(),
        int(db.execute("SELECT coalesce(max(seq), 0) FROM erased").fetchone()[0]),
    )


def is_early(db: sqlite3.Connection) -> bool:
    """Whether it is a register of before there were erasures."""
    return durable.is_of(db, [s for s in SCHEMA.statements if s not in _ERASED])


def complete(db: sqlite3.Connection) -> None:
    """Give such a register its tables for them, within a transaction."""
    if is_early(db):
        for statement in _ERASED:
            db.execute(statement)


@contextmanager
def unlocked(db: sqlite3.Connection) -> Iterator[None]:
    """For an erasure alone, and within its transaction: rows may be changed and removed."""
    triggers = [s for s in SCHEMA.statements if s.startswith("CREATE TRIGGER")]
    for statement in triggers:
        db.execute(f"DROP TRIGGER {statement.split()[2]}")
    yield
    for statement in triggers:
        db.execute(statement)
