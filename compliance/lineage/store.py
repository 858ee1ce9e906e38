"""The store of lineage: one SQLite file, `lineage.db`, from which everything else is drawn, asked and sent.

It keeps events as they were made, byte for byte, and beside them what goes into what, so that one query answers where a
model comes from. Consumers of OpenLineage drop what they don't know without a word: this file, and not a consumer, is the
record. Events only come; none is changed or removed. How the file is kept: `durable`, `auditlog.database`.

Own events come in pairs: a START, then one end. What others made is taken as it is, but for events in the
name of this store's owner that it did not make.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ...documents import parse_json
from ...errors import FoedusError, InputError, VerificationError
from ..auditlog.batches import GroupCommit
from ..auditlog.database import Schema, append_only, connection, establish, transaction
from . import events as e
from . import facets as f
from .facets import Json

OWN = "own"
_PAGE = 500
_SCHEMA = Schema(
    title="a store of lineage",
    application_id=0x666F6C69,  # "foli"
    statements=(
        "CREATE TABLE owner (namespace TEXT NOT NULL, producer TEXT NOT NULL) STRICT",
        *append_only("owner", "EXISTS (SELECT 1 FROM owner)", "ABORT"),
        (
            "CREATE TABLE event (seq INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, origin TEXT NOT NULL, "
            "run TEXT NOT NULL, type TEXT NOT NULL, job TEXT NOT NULL, study TEXT, study_run TEXT, body TEXT NOT NULL) STRICT"
        ),
        *append_only("event", "NEW.seq <> (SELECT coalesce(max(seq) + 1, 0) FROM event)", "ABORT"),
        "CREATE INDEX event_run ON event (run)",
        "CREATE INDEX event_study ON event (study, study_run)",
        (
            "CREATE TABLE dataset (id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, name TEXT NOT NULL, "
            "UNIQUE (namespace, name)) STRICT"
        ),
        (
            "CREATE TABLE flow (dataset INTEGER NOT NULL, made INTEGER NOT NULL, event INTEGER NOT NULL, "
            "PRIMARY KEY (dataset, made, event)) STRICT, WITHOUT ROWID"
        ),
        "CREATE INDEX flow_event ON flow (event, made)",
        (
            "CREATE TABLE version (version TEXT NOT NULL, dataset INTEGER NOT NULL, "
            "PRIMARY KEY (version, dataset)) STRICT, WITHOUT ROWID"
        ),
        "CREATE TABLE endpoint (name TEXT PRIMARY KEY, upto INTEGER NOT NULL) STRICT, WITHOUT ROWID",
        (
            "CREATE TABLE outbox (endpoint TEXT NOT NULL, event INTEGER NOT NULL, tries INTEGER NOT NULL, due REAL NOT NULL, "
            "error TEXT NOT NULL, refused INTEGER NOT NULL, PRIMARY KEY (endpoint, event)) STRICT, WITHOUT ROWID"
        ),
    ),
)

# From the datasets of a version upwards, through whatever made them; then all that belongs to the same runs of studies.
_TRACE = """
    WITH RECURSIVE
    up (dataset) AS (
        SELECT dataset FROM version WHERE version = :version
        UNION
        SELECT i.dataset FROM up
        JOIN flow AS o ON o.dataset = up.dataset AND o.made = 1
        JOIN flow AS i ON i.event = o.event AND i.made = 0
    ),
    making (event) AS (SELECT event FROM flow JOIN up USING (dataset) WHERE made = 1),
    of_study (event) AS (
        SELECT seq FROM event WHERE (study, study_run) IN (
            SELECT ev.study, ev.study_run FROM version AS v
            JOIN flow AS fl USING (dataset) JOIN event AS ev ON ev.seq = fl.event
            WHERE v.version = :version
        )
    )
    SELECT seq, origin, body FROM event
    WHERE seq IN (SELECT event FROM making UNION SELECT event FROM of_study) ORDER BY seq
"""


@dataclass(frozen=True)
class Stored:
    """An event as it is kept. `origin` is ``own``, or from where it was taken."""

    seq: int
    origin: str
    event: Json


@dataclass(frozen=True)
class _Row:
    """An event about to be written."""

    digest: bytes
    body: str
    event: Json
    own: bool
    origin: str

    @classmethod
    def of(cls, event: Json, origin: str) -> _Row:
        line = e.dumps(event)
        return cls(hashlib.sha256(line).digest(), line.decode(), event, origin == OWN, origin)


class Store:
    """A store that exists. Threads and processes may share it.

    Raises:
        InputError: no such file, or something else.
        VerificationError: damaged, or its tables were changed.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(
                f"{path}: no such file", remedy="a node or server makes it when its first study runs"
            )
        self.path = path
        establish(path, _SCHEMA)
        with connection(path) as db:
            found = db.execute("SELECT namespace, producer FROM owner").fetchone()
        if found is None:
            raise VerificationError(f"{path}: nobody's store", remedy="restore it from a backup")
        self.namespace, self.producer = str(found[0]), str(found[1])
        self._commit: GroupCommit[list[_Row], int | FoedusError] = GroupCommit(self._write)

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def add(self, events: Sequence[Json]) -> int:
        """Own events, in order, under one sync to disk. Returns how many are new: one that was told before is skipped.

        Raises:
            InputError: an end without a START, or a second and different end; then nothing is written.
        """
        return self._written([_Row.of(event, OWN) for event in events])

    def take(self, events: Sequence[Json], origin: str, party: str | None = None) -> int:
        """Events that somebody else made, all or none. Returns how many were not here before.

        Args:
            origin: from where they are, in words.
            party: who made them: then none may be in another party's name. (What is not of foedus may be in any.)

        Raises:
            InputError: one is malformed, in another party's name, or in the name of this store's owner without
                being here.
        """
        if origin == OWN or not origin.isprintable() or not origin:
            raise InputError("events are taken from somebody else, who is named on one line")
        for number, event in enumerate(events, start=1):
            try:
                e.check(event)
            except InputError as error:
                raise InputError(f"event {number}: {error.message}") from error
            space = event["job"]["namespace"]
            if (
                party is not None
                and space.startswith("foedus://")
                and space not in (f"foedus://{party}", self.namespace)
            ):
                raise InputError(f"event {number}: {party} speaks in the name of {space}")
        return self._written([_Row.of(event, origin) for event in events])

    def _written(self, rows: list[_Row]) -> int:
        found = self._commit(rows) if rows else 0
        if isinstance(found, FoedusError):
            raise found
        return found

    def _write(self, batch: Sequence[list[_Row]]) -> list[int | FoedusError]:
        """One transaction for several callers; what is wrong with one caller's events is that one's alone."""
        with transaction(self.path) as db:
            seq = _next(db)
            found: list[int | FoedusError] = []
            for rows in batch:
                first = seq
                db.execute("SAVEPOINT caller")
                try:
                    for row in rows:
                        seq += self._insert(db, row, seq)
                    found.append(seq - first)
                except InputError as error:
                    db.execute("ROLLBACK TO caller")
                    seq = first
                    found.append(error)
                db.execute("RELEASE caller")
        return found

    def _insert(self, db: sqlite3.Connection, row: _Row, seq: int) -> int:
        event = row.event
        run, kind = event["run"]["runId"].lower(), event.get("eventType", "OTHER")
        if db.execute("SELECT 1 FROM event WHERE digest = ?", (row.digest,)).fetchone():
            return 0
        if row.own:
            if _told(db, run, kind):
                return 0
        elif event["job"]["namespace"] == self.namespace:
            raise InputError(
                f"an event of {self.namespace} that is not in this store: {event['job']['name']}, run {run}",
                remedy="somebody made it up, or this store was put back to an older state",
            )
        purpose = e.facet_of(event["run"], "foedus_purpose")
        db.execute(
            "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                seq,
                row.digest,
                row.origin,
                run,
                kind,
                event["job"]["name"],
                purpose.get("study"),
                purpose.get("run"),
                row.body,
            ),
        )
        for made, datasets in ((0, event.get("inputs", ())), (1, event.get("outputs", ()))):
            for dataset in datasets:
                number = _dataset(db, dataset["namespace"], dataset["name"])
                db.execute("INSERT OR IGNORE INTO flow VALUES (?, ?, ?)", (number, made, seq))
                if (version := e.version_of(dataset)) is not None:
                    db.execute("INSERT OR IGNORE INTO version VALUES (?, ?)", (version, number))
        return 1

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def events(
        self, *, study: str | None = None, run: str | None = None, own: bool = False
    ) -> Iterator[Stored]:
        """Events in order: of a study (its digest, or its first digits), of one of its runs, or only own ones."""
        where, given = ["seq >= ?"], []
        for condition, value in (("study LIKE ? || '%'", study), ("study_run = ?", run)):
            if value is not None:
                where.append(condition)
                given.append(value)
        if own:
            where.append(f"origin = '{OWN}'")
        query = f"SELECT seq, origin, body FROM event WHERE {' AND '.join(where)} ORDER BY seq LIMIT {_PAGE}"  # noqa: S608
        following = 0
        while True:
            with connection(self.path) as db:
                page = [self._stored(row) for row in db.execute(query, (following, *given))]
            yield from page
            if len(page) < _PAGE:
                return
            following = page[-1].seq + 1

    def lines(self, *, study: str, run: str) -> bytes:
        """Own events of a run of a study as JSON lines, byte for byte as they are kept."""
        query = "SELECT body FROM event WHERE study = ? AND study_run = ? AND origin = ? ORDER BY seq"
        with connection(self.path) as db:
            return b"".join(body.encode() + b"\n" for (body,) in db.execute(query, (study, run, OWN)))

    def trace(self, version: str) -> list[Stored]:
        """All that a released document comes from, in one query: what made it, what made that, and its study's run.

        Args:
            version: its digest, or the first 8 digits or more of one.

        Raises:
            InputError: no such document here, or several.
        """
        with connection(self.path) as db:
            query = "SELECT DISTINCT version FROM version WHERE version LIKE ? || '%' LIMIT 2"
            if len(version) < 8 or not all(c in "0123456789abcdef" for c in version):
                raise InputError(f"{version!r}: give 8 hexadecimal digits or more of a document's digest")
            found = db.execute(query, (version,)).fetchall()
            if len(found) != 1:
                raise InputError(
                    f"{self.path}: {'nothing' if not found else 'several documents'} of digest {version}…",
                    remedy="`foedus lineage show` lists what is known; `foedus lineage take` takes the server's events in",
                )
            return [self._stored(row) for row in db.execute(_TRACE, {"version": found[0][0]})]

    def models(self, study: str, run: str | None) -> list[str]:
        """Digests of the models that are known to come from a run of a study."""
        found: dict[str, None] = {}
        for stored in self.events(study=study, run=run):
            for dataset in (*stored.event.get("inputs", ()), *stored.event.get("outputs", ())):
                version = e.version_of(dataset)
                if version is not None and e.kind_of(dataset) == "model":
                    found[version] = None
        return list(found)

    def open_runs(self) -> list[tuple[str, Json]]:
        """Own runs that began and have not ended: their ids, and the START."""
        query = (
            "SELECT run, body FROM event AS s WHERE origin = ? AND type = 'START' AND NOT EXISTS (SELECT 1 FROM "
            "event AS x WHERE x.run = s.run AND x.type IN ('COMPLETE', 'FAIL', 'ABORT')) ORDER BY seq"
        )
        with connection(self.path) as db:
            return [(run, parse_json(body)) for run, body in db.execute(query, (OWN,))]

    @property
    def size(self) -> int:
        """How many events it holds."""
        with connection(self.path) as db:
            return _next(db)

    def check(self) -> int:
        """Read every event anew: its digest, and that none is missing. Returns their number.

        Raises:
            VerificationError: one was changed, or is gone.
        """
        expected = 0
        with connection(self.path) as db:
            for seq, digest, body in db.execute("SELECT seq, digest, body FROM event ORDER BY seq"):
                if seq != expected or hashlib.sha256(body.encode()).digest() != digest:
                    raise VerificationError(
                        f"{self.path}: event {expected} is not as it was written",
                        remedy="restore it from a backup",
                    )
                expected += 1
        return expected

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, for the outbox."""
        with transaction(self.path) as db:
            yield db

    def _stored(self, row: tuple[int, str, str]) -> Stored:
        seq, origin, body = row
        try:
            return Stored(seq, origin, parse_json(body))
        except InputError as error:
            raise VerificationError(
                f"{self.path}: event {seq} is not as it was written", remedy="restore it from a backup"
            ) from error


class Lineage(Store):
    """A store to which its owner writes; made (mode 0600) if there is none.

    Args:
        namespace: of the owner's jobs and datasets (``foedus://shop-a``).
        producer: URI of the software that writes.

    Raises:
        InputError: no namespace, a producer that is no URI, or another's store.
    """

    def __init__(self, path: Path, namespace: str, producer: str) -> None:
        e.check_writer(namespace, producer)
        establish(path, _SCHEMA, first=[("INSERT INTO owner VALUES (?, ?)", (namespace, producer))])
        super().__init__(path)
        if self.namespace != namespace:
            raise InputError(f"{path}: the lineage of {self.namespace}, not of {namespace}")

    def emit(self, *events: e.Event) -> int:
        """Write events, all or none, under one sync to disk; errors as `events.to_json` and `add`."""
        return self.add([self.json(event) for event in events])

    def abort_open(self, reason: str) -> int:
        """End whatever an earlier process began and did not end: an ABORT each. Returns how many."""
        started = [start for _, start in self.open_runs()]
        return self.add([self._ending(start, "ABORT", reason) for start in started])

    def end(self, start: Json, kind: e.EventType, reason: str) -> None:
        """End a run, whose START is given, without a result."""
        self.add([self._ending(start, kind, reason)])

    def _ending(self, start: Json, kind: e.EventType, reason: str) -> Json:
        event: Json = parse_json(e.dumps(start))
        event |= {"eventType": kind, "eventTime": e.rfc3339(datetime.now(UTC)), "outputs": []}
        event["run"]["facets"]["errorMessage"] = {**f.error(reason[:500]), "_producer": self.producer}
        return event

    def json(self, event: e.Event) -> Json:
        """The event as it would be written."""
        return e.to_json(event, self.namespace, self.producer)


def pair(event: e.Event) -> tuple[e.Event, e.Event]:
    """A run that begins and ends in one go: a START, and its COMPLETE, in which all of it stands."""
    before = {name: facet for name, facet in event.facets.items() if name == f.Purpose.facet}
    return replace(event, event="START", inputs=(), outputs=(), facets=before), event


def _next(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(max(seq) + 1, 0) FROM event").fetchone()[0])


def _told(db: sqlite3.Connection, run: str, kind: str) -> bool:
    """Whether this was told of an own run already; a resumed process tells the same again.

    Raises:
        InputError: it contradicts what was told.
    """
    told = {t for (t,) in db.execute("SELECT type FROM event WHERE run = ?", (run,))}
    if kind == "START":
        return "START" in told
    if "START" not in told:
        raise InputError(f"run {run}: {kind} of a run that has not begun")
    ended = told & set(e.ENDS)
    if ended and kind not in ended:
        raise InputError(f"run {run}: {kind} of a run that has ended with {', '.join(sorted(ended))}")
    return bool(ended)


def _dataset(db: sqlite3.Connection, namespace: str, name: str) -> int:
    found = db.execute("SELECT id FROM dataset WHERE namespace = ? AND name = ?", (namespace, name))
    row = found.fetchone()
    if row is None:
        return int(
            db.execute("INSERT INTO dataset (namespace, name) VALUES (?, ?)", (namespace, name)).lastrowid
            or 0
        )
    return int(row[0])
