"""The audit log: entries that can be added and read, in a Merkle tree that shows any other change.

An entry is the canonical JSON (RFC 8785) of::

    {"time": "2026-11-22T13:48:57.123456Z", "actor": …, "action": …, "subject": …, "details": {…}}

Put no personal data in it: an entry can't be erased. What is personal or confidential is *sealed* (`payloads`): the
entry holds a salted commitment, ``details["sealed"]``, and the payload lies beside the log under the key of a holder,
`customer_key` or `study_key`. `AuditLog.shred` deletes that key, and the log still verifies.

One SQLite file (see `database`) holds the entries and the hash of every complete subtree, so that
appending costs O(1) and a proof O(log n). The tree hashes are a cache of what the entries say;
`AuditLog.check` recomputes all of them. A file whose tail was cut off, or whose tree was rebuilt over
changed entries, is in itself a flawless log: only someone who kept an earlier head can tell (`witness`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...documents import SigningKey, canonical, parse_json
from ...errors import InputError, VerificationError
from . import merkle
from .batches import GroupCommit
from .checkpoint import Checkpoint
from .database import Schema, append_only, connection, establish, transaction
from .payloads import Opening, SealedPayloads, SqliteRows

SEALED = "sealed"  # the field of an entry's details that commits to its payload
SHREDDED = "payloads.shredded"  # the action that says of how many payloads a key was deleted
_PAGE = 1_000  # entries per read: a reader holds the lock for one page, or commits would wait for it
_FIELDS = {"time": str, "actor": str, "action": str, "subject": str, "details": dict}
_SCHEMA = Schema(
    title="an audit log",
    application_id=0x666F6C67,  # "folg"
    statements=(
        "CREATE TABLE log (origin TEXT NOT NULL) STRICT",
        *append_only("log", "EXISTS (SELECT 1 FROM log)", "ABORT"),
        "CREATE TABLE entry (seq INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT",
        *append_only("entry", "NEW.seq <> (SELECT coalesce(max(seq) + 1, 0) FROM entry)", "ABORT"),
        (
            "CREATE TABLE node (level INTEGER NOT NULL, idx INTEGER NOT NULL, hash BLOB NOT NULL "
            "CHECK (length(hash) = 32), PRIMARY KEY (level, idx)) STRICT, WITHOUT ROWID"
        ),
        *append_only(
            "node", "EXISTS (SELECT 1 FROM node WHERE level = NEW.level AND idx = NEW.idx)", "ABORT"
        ),
    ),
)

Row = tuple[str, str, str, Mapping[str, Any]]
"""``(actor, action, subject, details)`` of an entry to append."""


def _now() -> datetime:
    return datetime.now(UTC)


def _rfc3339(moment: datetime) -> str:
    if moment.tzinfo is None:
        raise InputError("the clock of an audit log must be timezone-aware")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Entry:
    """One entry: its index in the log and the bytes that were hashed."""

    index: int
    body: bytes

    @property
    def leaf(self) -> bytes:
        """The leaf hash, for `merkle.verify_inclusion`."""
        return merkle.leaf_hash(self.body)

    @property
    def record(self) -> dict[str, Any]:
        """``{"time", "actor", "action", "subject", "details"}``.

        Raises:
            VerificationError: the bytes are not an entry.
        """
        try:
            record = parse_json(self.body)
        except InputError as error:
            raise VerificationError(f"entry {self.index}: {error.message}") from error
        if not isinstance(record, dict) or {k: type(v) for k, v in record.items()} != _FIELDS:
            raise VerificationError(f"entry {self.index}: its fields are not {', '.join(_FIELDS)}")
        return record


def customer_key(customer: str) -> str:
    """The holder of payloads about one customer, named as in the silo's tables: what `AuditLog.shred` takes."""
    return f"customer {customer}"


def study_key(digest: str) -> str:
    """The holder of the free text that one study carries."""
    return f"study {digest}"


def commitment_in(record: Mapping[str, Any]) -> str | None:
    """The commitment (base64) in an entry's record to its sealed payload; None if it has none."""
    found = record["details"].get(SEALED)
    return found if isinstance(found, str) else None


def _shredded(record: Mapping[str, Any]) -> int:
    """Of how many payloads this entry says that their key was deleted."""
    count = record["details"].get("payloads") if record["action"] == SHREDDED else 0
    return count if isinstance(count, int) else 0


def origin_of(path: Path) -> str:
    """Whose log a file is, as it says itself.

    Raises:
        InputError: not an audit log.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such audit log")
    with connection(path) as db:
        _SCHEMA.check(db, path)
        return str(db.execute("SELECT origin FROM log").fetchone()[0])


class AuditLog:
    """An append-only log in one file; any number of threads and processes may share it.

    Args:
        path: the file; made if there is none.
        origin: the identity of the log, the first line of its checkpoints.
        create: False refuses a missing file instead.
        clock: where the time of an entry comes from (aware).
        sealed: where the sealed payloads are; beside the file, by default: ``audit-payloads.db``, and their keys in
            ``audit-keys/`` for ``audit.db``. Made with the first payload.

    Raises:
        InputError: not an audit log, or that of another origin.
        VerificationError: a damaged file, or changed tables or triggers.
    """

    def __init__(
        self,
        path: Path,
        origin: str,
        *,
        create: bool = True,
        clock: Callable[[], datetime] = _now,
        sealed: SealedPayloads | None = None,
    ) -> None:
        if not origin or not origin.isprintable():
            raise InputError("the origin of a log is a printable line")
        if not create and not path.is_file():
            raise InputError(f"{path}: no such audit log")
        self._path, self.origin, self._clock = path, origin, clock
        self._commit = GroupCommit(self._write)
        self.payloads = sealed or SealedPayloads(
            SqliteRows(path.with_name(f"{path.stem}-payloads.db")), path.with_name(f"{path.stem}-keys")
        )
        establish(path, _SCHEMA, first=[("INSERT INTO log VALUES (?)", (origin,))])
        with connection(path) as db:
            found = db.execute("SELECT origin FROM log").fetchone()
        if found != (origin,):
            raise InputError(f"{path}: the log of {found[0] if found else 'nobody'}, not of {origin}")

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def append(
        self,
        actor: str,
        action: str,
        subject: str,
        details: Mapping[str, Any],
        *,
        sealed: Mapping[str, Any] | None = None,
        key: str = "",
    ) -> int:
        """Append one entry; it is on disk when the call returns. Returns its index.

        Args:
            details: what everybody may read, for good.
            sealed: what may be shredded one day; the entry says ``details["sealed"]``, a commitment to it.
            key: whose key seals it, e.g. ``customer_key("C00042")``; made if there is none. The entry doesn't name it,
                so it may be a customer's identifier; put none into `subject` or `details`.

        Raises:
            InputError: an empty actor or action; details or payload that are not canonical JSON; ``sealed`` among the
                details; a payload without a key, or a key without a payload.
        """
        if SEALED in details:
            raise InputError(
                f"the details of an entry say {SEALED!r} only by way of append(…, sealed=…, key=…)"
            )
        if (sealed is None) != (key == ""):
            raise InputError("a sealed payload and whose key seals it go together")
        if sealed is not None:
            _untimed((actor, action, subject, details))  # no payload is kept for an entry that can't be
            # The payload first: a crash in between leaves one without an entry, and never the reverse.
            details = {**details, SEALED: self.payloads.seal(key, sealed)}
        return self.append_many([(actor, action, subject, details)]).start

    def open_payload(self, index: int) -> Opening | None:
        """What entry `index` has sealed (``.payload``, with its salt); None once its key was shredded.

        Raises:
            InputError: no such entry, or it has sealed nothing.
            VerificationError: the payload is missing, or is not what the entry commits to.
        """
        (entry,) = self.entries(index, index + 1)
        commitment = commitment_in(entry.record)
        if commitment is None:
            raise InputError(f"entry {index} has no sealed payload")
        return self.payloads.open(commitment)

    def shred(self, actor: str, key: str) -> int:
        """Delete the key of a holder: nobody can read its payloads any more. Returns how many there are.

        The log says so first, with their number and no name (`SHREDDED`), and `check` counts: a key that was deleted
        otherwise is found missing. 0 if there is no such key; then nothing is logged. Cut off in between, call again.
        A holder that comes back gets a new key.

        What it can't reach: backups of the keys' folder, which must expire within the time that erasure is promised in;
        copies that a file system's journal or an SSD keeps (encrypt the disk); and what others were shown before.

        Example::

            log.append("bank-a", "consent.withdrawn", "customer", {"purpose": p}, sealed={"customer": c}, key=customer_key(c))
            log.shred("bank-a", customer_key(c))

        Raises:
            InputError: the key can't be overwritten or removed; it may still be there.
        """
        announce = lambda count: self.append(actor, SHREDDED, "", {"payloads": count})
        return self.payloads.shred(key, announce=announce) or 0

    def append_many(self, rows: Iterable[Row]) -> range:
        """Append all rows or none, in one transaction with one time. Returns their indices.

        What other threads append through this object meanwhile shares the transaction (`batches`).

        Raises:
            InputError: as `append`.
            VerificationError: the stored tree and entries disagree.
        """
        return self._commit([_untimed(row) for row in rows])

    def _write(self, batch: Sequence[Sequence[bytes]]) -> list[range]:
        """One transaction for several callers' rows; the indices of each."""
        with transaction(self._path) as db:
            # Other processes append too: the right edge is read anew under the lock, never kept.
            size = _size(db)
            edge = merkle.right_edge(_nodes(db, self._path), size)
            time = b',"time":%s}' % canonical(_rfc3339(self._clock()))
            entries: list[tuple[int, bytes]] = []
            nodes: list[tuple[int, int, bytes]] = []
            ranges: list[range] = []
            for rows in batch:
                first = size
                for row in rows:
                    body = row + time
                    added, edge = merkle.grow(edge, size, merkle.leaf_hash(body))
                    entries.append((size, body))
                    nodes += added
                    size += 1
                ranges.append(range(first, size))
            db.executemany("INSERT INTO entry VALUES (?, ?)", entries)
            db.executemany("INSERT INTO node VALUES (?, ?, ?)", nodes)
        return ranges

    # ── heads and proofs ─────────────────────────────────────────────────────────────────────────

    @property
    def size(self) -> int:
        """The number of entries."""
        with connection(self._path) as db:
            return _size(db)

    def root(self, size: int | None = None) -> bytes:
        """The root hash (32 bytes) of the first `size` entries; of all by default.

        Raises:
            InputError: the log never had that size.
        """
        with self._tree(size) as (nodes, n):
            return merkle.root_from_edge(merkle.right_edge(nodes, n))

    def checkpoint(self, name: str, key: SigningKey) -> str:
        """The signed head of now: a note by `key` under the key name `name`."""
        with self._tree(None) as (nodes, n):
            head = Checkpoint(self.origin, n, merkle.root_from_edge(merkle.right_edge(nodes, n)))
        return head.sign(name, key)

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """That entry `index` is in the log of `size` entries (of all, by default)."""
        with self._tree(size) as (nodes, n):
            return merkle.inclusion_proof(nodes, index, n)

    def inclusion_proofs(self, indices: Iterable[int], size: int | None = None) -> list[list[bytes]]:
        """`inclusion_proof` of each, in one reading of the file: several times faster than one by one."""
        with self._tree(size) as (nodes, n):
            kept: dict[tuple[int, int], bytes] = {}  # proofs share what is near the root

            def get(level: int, index: int) -> bytes:
                if (level, index) not in kept:
                    kept[level, index] = nodes(level, index)
                return kept[level, index]

            return [merkle.inclusion_proof(get, index, n) for index in indices]

    def consistency_proof(self, old: int, new: int | None = None) -> list[bytes]:
        """That the log of `old` entries is a prefix of that of `new` (of all, by default)."""
        with self._tree(new) as (nodes, n):
            return merkle.consistency_proof(nodes, old, n)

    def edge(self, size: int) -> list[bytes]:
        """The right edge of the first `size` entries, from which they can be continued (`merkle.grow`)."""
        with self._tree(size) as (nodes, n):
            return merkle.right_edge(nodes, n)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def entries(self, start: int = 0, end: int | None = None) -> Iterator[Entry]:
        """Entries [start, end), oldest first; up to the size at the first step by default.

        Raises:
            InputError: beyond the log.
            VerificationError: an entry in between is missing.
        """
        size = self.size
        end = size if end is None else end
        if not 0 <= start <= end <= size:
            raise InputError(f"{self._path}: no entries {start} to {end} in a log of {size}")
        for low in range(start, end, _PAGE):
            high = min(low + _PAGE, end)
            with connection(self._path) as db:
                page = db.execute(
                    "SELECT seq, body FROM entry WHERE seq >= ? AND seq < ? ORDER BY seq", (low, high)
                ).fetchall()
            if [seq for seq, _ in page] != list(range(low, high)):
                raise VerificationError(f"{self._path}: entries {low} to {high - 1} are not all there")
            for seq, body in page:
                yield Entry(seq, body)

    def check(self) -> None:
        """Recompute everything this file claims, from the bytes of its entries.

        1. SQLite finds its pages in order; the tables and triggers are those of an audit log.
        2. There are as many entries and tree nodes as a log of this size has.
        3. Every entry has the five fields.
        4. Every stored node is the hash of what is below it.
        5. Every sealed payload is there and hashes to its entry's commitment, or its key was shredded; and no more
           keys are gone than the log says were shredded.

        Raises:
            VerificationError: any of them fails. (A log cut short or rebuilt passes: see `witness`.)
        """
        with connection(self._path) as db:
            # 1.
            for (problem,) in db.execute("PRAGMA integrity_check(1)"):
                if problem != "ok":
                    raise VerificationError(f"{self._path}: damaged: {problem}")
            _SCHEMA.check(db, self._path)
            # 2. in one transaction, while others append
            db.execute("BEGIN")
            size = _size(db)
            (entries,) = db.execute("SELECT count(*) FROM entry").fetchone()
            (nodes,) = db.execute("SELECT count(*) FROM node").fetchone()
            db.execute("COMMIT")
        if entries != size or nodes != merkle.nodes_in(size):
            raise VerificationError(
                f"{self._path}: {entries} entries and {nodes} hashes where a log that ends at entry {size - 1} "
                f"has {size} and {merkle.nodes_in(size)}"
            )
        edge: list[bytes] = []
        closed = shredded = 0
        for low in range(0, size, _PAGE):
            high = min(low + _PAGE, size)
            stored = self._completed(low, high)
            commitments: list[str] = []
            for entry in self.entries(low, high):
                record = entry.record  # 3.
                shredded += _shredded(record)
                commitments += [found for found in [commitment_in(record)] if found is not None]
                computed, edge = merkle.grow(edge, entry.index, entry.leaf)
                for level, index, value in computed:  # 4.
                    if stored.get((level, index)) != value:
                        raise VerificationError(
                            f"{self._path}: entry {entry.index} is not what was logged "
                            f"(tree node {level}/{index} differs)"
                        )
            closed += self.payloads.open_many(commitments).count(None)  # 5.
        # Whoever shreds says so first: what was shredded meanwhile is among the entries that came meanwhile.
        shredded += sum(_shredded(entry.record) for entry in self.entries(size))
        if closed > shredded:
            raise VerificationError(
                f"{self._path}: {closed} sealed payloads can't be opened, and the log says that {shredded} were shredded",
                remedy="restore the folder of keys from a backup: somebody deleted keys without a word",
            )

    def _completed(self, low: int, high: int) -> dict[tuple[int, int], bytes]:
        """The stored nodes that entries [low, high) completed: their last leaf is one of these."""
        with connection(self._path) as db:
            return {
                (level, index): value
                for level in range(high.bit_length())
                for index, value in db.execute(
                    "SELECT idx, hash FROM node WHERE level = ? AND idx >= ? AND idx < ?",
                    (level, low >> level, high >> level),
                )
            }

    @contextmanager
    def _tree(self, size: int | None) -> Iterator[tuple[merkle.GetNode, int]]:
        """The stored nodes and the size that is asked for."""
        with connection(self._path) as db:
            db.execute("BEGIN")  # nodes never change, but a lock for each look-up costs more than the look-up
            n = _size(db)
            if size is not None and not 0 <= size <= n:
                raise InputError(f"{self._path}: no size {size} in a log of {n}")
            yield _nodes(db, self._path), n if size is None else size


def _size(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(max(seq) + 1, 0) FROM entry").fetchone()[0])


def _nodes(db: sqlite3.Connection, path: Path) -> merkle.GetNode:
    def get(level: int, index: int) -> bytes:
        row = db.execute("SELECT hash FROM node WHERE level = ? AND idx = ?", (level, index)).fetchone()
        if row is None:
            raise VerificationError(f"{path}: tree node {level}/{index} is missing")
        return bytes(row[0])

    return get


def _untimed(row: Row) -> bytes:
    """The canonical JSON of an entry up to its time, which is the last of its keys."""
    actor, action, subject, details = row
    for name, value in (("actor", actor), ("action", action), ("subject", subject)):
        if not isinstance(value, str) or (not value and name != "subject"):
            raise InputError(f"the {name} of an entry is a text, and not empty")
    if not isinstance(details, Mapping):
        raise InputError("the details of an entry are an object")
    record = {"actor": actor, "action": action, "subject": subject, "details": dict(details)}
    return canonical(record)[:-1]
