"""The watch's book: what it has seen, alerts, decisions, blocks, and what is still to be sent, in one SQLite file.

A turn of the watch (`Book.turn`) is one transaction: the detectors' state, the place in the log, the alerts and their
lines in the outbox are written together or not at all. Whoever kills the process, no alert is lost and none
is made twice. Sending (`Book.deliver`) is at least once: a receiver knows an alert by its id.

Blocks follow from alerts: an actor is blocked from an alert of a blocking rule until an officer releases them.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from ...documents import canonical, parse_json
from ...errors import FoedusError, InputError, Refused, VerificationError
from ..auditlog.database import Schema, append_only, connection, establish, transaction
from ..auditlog.log import Entry
from ..auditlog.merkle import grow, root_from_edge
from .alerts import Alert
from .events import Reader, label
from .policy import Policy
from .watch import Watch

_FIRST_WAIT, _LONGEST_WAIT = 30.0, 6 * 3600.0  # seconds until a line is sent again; doubled each time
_SCHEMA = Schema(
    title="a watch's book",
    application_id=0x666F7761,  # "fowa"
    statements=(
        "CREATE TABLE secret (key BLOB NOT NULL) STRICT",
        "CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 0), body TEXT NOT NULL) STRICT",
        (
            "CREATE TABLE alert (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL, "
            "actor TEXT NOT NULL, blocks INTEGER NOT NULL) STRICT"
        ),
        *append_only("alert", "EXISTS (SELECT 1 FROM alert WHERE id = NEW.id)", "IGNORE"),
        (
            "CREATE TABLE decision (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, subject TEXT NOT NULL, "
            "upto INTEGER NOT NULL, officer TEXT NOT NULL, reason TEXT NOT NULL, time TEXT NOT NULL) STRICT"
        ),
        *append_only("decision", "EXISTS (SELECT 1 FROM decision WHERE seq = NEW.seq)", "ABORT"),
        (
            "CREATE TABLE outbox (alert TEXT NOT NULL, sink TEXT NOT NULL, tries INTEGER NOT NULL, due REAL NOT NULL, "
            "PRIMARY KEY (alert, sink)) STRICT, WITHOUT ROWID"
        ),
    ),
)


class Sink(Protocol):
    """Where alerts go."""

    name: str

    def send(self, alert: Alert) -> None:
        """Hand over one alert. Raises: FoedusError if it did not arrive; it is tried again."""


@dataclass(frozen=True)
class Reason:
    """Why an actor is blocked: the first alert since the last release."""

    actor: str
    alert: Alert

    def refusal(self) -> Refused:
        """As the guard says it."""
        return Refused(
            "ACTOR_BLOCKED",
            f"{self.actor} is blocked since alert {self.alert.id} ({self.alert.rule})",
            remedy=f"an officer looks at it, then: foedus watch release NODE {self.actor}",
        )


class Book:
    """The book in one file that processes may share.

    Args:
        path: made (mode 0600) if there is none.

    Raises:
        InputError: not a watch's book. VerificationError: damaged, or changed tables or triggers.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        establish(path, _SCHEMA, first=[("INSERT INTO secret VALUES (?)", (secrets.token_bytes(32),))])
        with connection(path) as db:
            (self._key,) = db.execute("SELECT key FROM secret").fetchone()

    # ── watching ─────────────────────────────────────────────────────────────────────────────────

    def turn(
        self, policy: Policy, silo: str, entries: Callable[[int], Iterable[Entry]], sinks: Sequence[str] = ()
    ) -> list[Alert]:
        """Go on where the last turn ended; the new alerts, which are in the book and in the outbox of each sink.

        Args:
            entries: a log's entries from an index on, oldest first.

        Raises:
            VerificationError: the log does not continue the one that the last turn saw.
        """
        with transaction(self._path) as db:
            row = db.execute("SELECT body FROM state").fetchone()
            kept = None if row is None else json.loads(row[0])
            size, root = (0, "") if kept is None else (kept["size"], kept["root"])
            reader = Reader(silo, self._key, None if kept is None else kept["prices"])
            watch = Watch(policy)
            if kept is not None:
                watch.restore(kept["watch"])
            # From the start, as the head of what was seen is recomputed: a log cut and refilled would pass by size
            place = _Place(size, root)
            found = watch.feed(reader.read(place.new(entries(0))))
            place.check()
            new = [a for a in found if _insert(db, a, policy)]
            db.executemany("INSERT INTO outbox VALUES (?, ?, 0, 0)", [(a.id, s) for a in new for s in sinks])
            body = {"size": place.size, "root": place.root, "prices": reader.prices, "watch": watch.state()}
            db.execute("REPLACE INTO state VALUES (0, ?)", (json.dumps(body),))
        return new

    def deliver(self, sinks: Iterable[Sink], now: datetime) -> list[str]:
        """Send what is due. Returns what went wrong, a line each; that is tried again, later and later."""
        wrong: list[str] = []
        for sink in sinks:
            for alert, tries in self._due(sink.name, now):
                try:
                    sink.send(alert)
                except FoedusError as error:
                    wrong.append(f"{sink.name}, alert {alert.id}: {error.message}")
                    due = now.timestamp() + min(_FIRST_WAIT * 2 ** min(tries, 20), _LONGEST_WAIT)
                    change, first = "UPDATE outbox SET tries = tries + 1, due = ?", [due]
                else:
                    change, first = "DELETE FROM outbox", []
                with transaction(self._path) as db:
                    db.execute(f"{change} WHERE alert = ? AND sink = ?", (*first, alert.id, sink.name))
        return wrong

    def _due(self, sink: str, now: datetime) -> list[tuple[Alert, int]]:
        query = (
            "SELECT a.body, o.tries FROM outbox AS o JOIN alert AS a ON a.id = o.alert "
            "WHERE o.sink = ? AND o.due <= ? ORDER BY a.seq"
        )
        with connection(self._path) as db:
            rows = db.execute(query, (sink, now.timestamp())).fetchall()
        return [(_alert(body), tries) for body, tries in rows]

    @property
    def unsent(self) -> int:
        """Lines in the outbox."""
        with connection(self._path) as db:
            return int(db.execute("SELECT count(*) FROM outbox").fetchone()[0])

    # ── alerts and decisions ─────────────────────────────────────────────────────────────────────

    def alerts(self, *, open_only: bool = False) -> list[Alert]:
        """All alerts, oldest first; or those that nobody has acknowledged."""
        where = (
            "WHERE id NOT IN (SELECT subject FROM decision WHERE kind = 'acknowledge')" if open_only else ""
        )
        with connection(self._path) as db:
            rows = db.execute(f"SELECT body FROM alert {where} ORDER BY seq").fetchall()  # noqa: S608
        return [_alert(body) for (body,) in rows]

    def acknowledge(self, alert: str, officer: str, reason: str, *, record: Callable[[], object]) -> None:
        """An officer has looked at an alert. It does not release anybody.

        Args:
            record: makes the entry in the audit log, before the decision is kept.

        Raises:
            InputError: no such alert, or an empty officer or reason.
        """
        if alert not in {a.id for a in self.alerts()}:
            raise InputError(f"there is no alert {alert!r}", remedy="foedus watch run shows all")
        self._decide("acknowledge", alert, officer, reason, record)

    def release(self, actor: str, officer: str, reason: str, *, record: Callable[[], object]) -> None:
        """An officer lets an actor go on; a later alert blocks them again. Arguments as `acknowledge`.

        Raises:
            InputError: the actor is not blocked, or an empty officer or reason.
        """
        if self.blocked(actor) is None:
            raise InputError(f"{actor} is not blocked")
        self._decide("release", label(actor, self._key), officer, reason, record)

    def _decide(
        self, kind: str, subject: str, officer: str, reason: str, record: Callable[[], object]
    ) -> None:
        if not officer.strip() or not reason.strip():
            raise InputError("a decision names the officer and the reason")
        record()
        time = datetime.now(UTC).isoformat(timespec="seconds")
        with transaction(self._path) as db:
            db.execute(
                "INSERT INTO decision (kind, subject, upto, officer, reason, time) "
                "VALUES (?, ?, (SELECT coalesce(max(seq), 0) FROM alert), ?, ?, ?)",
                (kind, subject, officer, reason, time),
            )

    def blocked(self, actor: str) -> Reason | None:
        """Whether an actor is blocked, and by which alert."""
        who = actor if actor.startswith("actor-") else label(actor, self._key)
        query = (
            "SELECT body FROM alert WHERE actor = ? AND blocks AND seq > (SELECT coalesce(max(upto), 0) "
            "FROM decision WHERE kind = 'release' AND subject = ?) ORDER BY seq LIMIT 1"
        )
        with connection(self._path) as db:
            row = db.execute(query, (who, who)).fetchone()
        return None if row is None else Reason(who, _alert(row[0]))


def blocked(path: Path, actor: str) -> Reason | None:
    """As `Book.blocked`; where there is no book nobody watches, and nobody is blocked."""
    return Book(path).blocked(actor) if path.exists() else None


class _Place:
    """Where a turn is in the log: the Merkle root of what was seen must come out again."""

    def __init__(self, seen: int, root: str) -> None:
        self._seen, self._known, self._found = seen, root, "" if seen else root
        self._edge: list[bytes] = []
        self.size = 0

    @property
    def root(self) -> str:
        """Hex, of the entries that have passed."""
        return root_from_edge(self._edge).hex()

    def new(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Only those the last turn has not seen."""
        for entry in entries:
            if self.size == self._seen:
                self._compare()
            if entry.index != self.size:
                raise VerificationError(f"entry {self.size} of the log is missing")
            self._edge = grow(self._edge, self.size, entry.leaf)[1]
            self.size += 1
            if self.size > self._seen:
                yield entry

    def check(self) -> None:
        """Once all have passed."""
        if self.size == self._seen:
            self._compare()
        if self.size < self._seen:
            raise VerificationError(
                f"the log has {self.size} entries, and had {self._seen} when the watch saw it last",
                remedy="it was cut short or replaced: keep it, and compare with the heads that others keep",
            )

    def _compare(self) -> None:
        if self._seen and self.root != self._known:
            raise VerificationError(
                f"the first {self._seen} entries of the log are not those that the watch saw",
                remedy="it was replaced: keep it, and compare with the heads that others keep",
            )


def _insert(db: sqlite3.Connection, alert: Alert, policy: Policy) -> bool:
    before = db.total_changes
    body = canonical(alert.to_json()).decode()
    db.execute(
        "INSERT INTO alert (id, body, actor, blocks) VALUES (?, ?, ?, ?)",
        (alert.id, body, alert.actor, int(alert.rule in policy.blocks)),
    )
    return db.total_changes > before


def _alert(body: str) -> Alert:
    content: Any = parse_json(body)
    return Alert.from_json(content)
