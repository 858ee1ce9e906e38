"""The audit log: entries that can be added and read, in a Merkle tree that shows any other change.

An entry is the canonical JSON (RFC 8785) of::

    {"time": "2026-11-22T13:48:57.123456Z", "actor": …, "action": …, "subject": …, "details": {…}}

Put no personal data in it: an entry can't be erased. What is personal or confidential is *sealed* (`payloads`): the
entry holds a salted commitment, ``details["sealed"]``, and the payload lies beside the log under the key of a holder,
`customer_key` or `study_key`. `AuditLog.shred` deletes that key, and the log still verifies.

A store (`sqlite`, a file; `postgres`, a database) holds the entries and the hash of every complete subtree, so that
appending costs O(1) and a proof O(log n). The tree hashes are a cache of what the entries say;
`AuditLog.check` recomputes all of them. A log whose tail was cut off, or whose tree was rebuilt over
changed entries, is in itself a flawless log: only someone who kept an earlier head can tell (`witness`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from ...documents import SigningKey, canonical, parse_json
from ...errors import InputError, VerificationError
from . import merkle
from .batches import GroupCommit
from .checkpoint import Checkpoint
from .database import connection
from .payloads import Opening, SealedPayloads
from .sqlite import SCHEMA, SqliteStore
from .store import Grown, Place, Store, missing

SEALED = "sealed"  # the field of an entry's details that commits to its payload
CLOCK_SET = "clock.set"  # the action after which the log's time may be an earlier one
MAX_SKEW = timedelta(minutes=5)  # that a clock may be behind the last entry's, as clocks of one machine are
SHREDDED = "payloads.shredded"  # the action that says of how many payloads a key was deleted
_PAGE = (
    1_000  # entries per read: a reader of a file holds its lock for one page, or commits would wait for it
)
_SETTING = b'{"action":"%s",' % CLOCK_SET.encode()
_TIME = re.compile(rb',"time":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)"}')
_FIELDS = {"time": str, "actor": str, "action": str, "subject": str, "details": dict}
Result = TypeVar("Result")
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
    def time(self) -> datetime:
        """When it was appended, as it stands at the end of the bytes; aware, UTC.

        Raises:
            VerificationError: there is none.
        """
        found = _TIME.fullmatch(self.body[-38:])
        try:
            if found is not None:
                return datetime.fromisoformat(found[1].decode())
        except ValueError:  # a 13th month
            pass
        raise VerificationError(f"entry {self.index}: it does not end in its time")

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
        SCHEMA.check(db, path)
        return str(db.execute("SELECT origin FROM log").fetchone()[0])


class AuditLog:
    """An append-only log in one place; any number of threads and processes may share it.

    Args:
        place: a file, made if there is none; or a database, ``postgresql://…`` (`postgres`).
        origin: the identity of the log, the first line of its checkpoints.
        create: False refuses a missing log instead.
        clock: where the time of an entry comes from (aware).
        keys: the folder of the keys of sealed payloads, made with the first; beside the file, by default
            (``audit-keys/`` for ``audit.db``). The payloads themselves lie in ``audit-payloads.db``, or in the database.

    Raises:
        InputError: not an audit log, that of another origin, or it can't be reached.
        VerificationError: a damaged file, or changed tables or triggers.
    """

    def __init__(
        self,
        place: Path | str,
        origin: str,
        *,
        create: bool = True,
        clock: Callable[[], datetime] = _now,
        keys: Path | None = None,
    ) -> None:
        if not origin or not origin.isprintable():
            raise InputError("the origin of a log is a printable line")
        self.origin, self._clock = origin, clock
        self._store = _store(place, origin, create=create)
        self._commit = GroupCommit(self._write)
        if keys is None and isinstance(place, Path):
            keys = place.with_name(f"{place.stem}-keys")
        self.payloads = SealedPayloads(self._store.payloads, keys)

    @property
    def name(self) -> str:
        """Where it is, for messages."""
        return self._store.name

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
        ranges: list[range] = []

        def make(size: int, last: bytes, get_node: merkle.GetNode) -> Grown:
            edge = merkle.right_edge(get_node, size)
            setting = any(row.startswith(_SETTING) for rows in batch for row in rows)
            time = b',"time":"%s"}' % self._time(Entry(size - 1, last), setting=setting).encode()
            entries: list[tuple[int, bytes]] = []
            nodes: list[tuple[int, int, bytes]] = []
            ranges.clear()
            for rows in batch:
                first = size
                for row in rows:
                    body = row + time
                    added, edge = merkle.grow(edge, size, merkle.leaf_hash(body))
                    entries.append((size, body))
                    nodes += added
                    size += 1
                ranges.append(range(first, size))
            return Grown(entries, nodes)

        self._store.append(make)
        return ranges

    def _time(self, last: Entry, *, setting: bool) -> str:
        """The time of the entry after `last`: now, but never before it.

        Raises:
            InputError: the clock is behind by more than `MAX_SKEW`.
        """
        now = self._clock()
        text = _rfc3339(now)
        if not last.body or setting or last.time <= now:
            return text
        if last.time - now > MAX_SKEW:
            raise InputError(
                f"{self.name}: its last entry is of {_rfc3339(last.time)}, and the clock says {text}: nothing is logged "
                "under a clock that was set back",
                remedy="set the clock; if the earlier entries were made under a clock that was ahead, have an officer say so "
                "with `foedus node clock` or `foedus server clock`",
            )
        return _rfc3339(last.time)

    def set_clock(self, actor: str, reason: str) -> int:
        """Let the log go on at the time of now, whatever its last entry says; who says so, and why, is an entry of it.

        Raises:
            InputError: no reason.
        """
        if not reason.strip():
            raise InputError("the log goes on under another clock for a reason, which stands in it")
        return self.append(actor, CLOCK_SET, "", {"reason": reason})

    # ── heads and proofs ─────────────────────────────────────────────────────────────────────────

    @property
    def size(self) -> int:
        """The number of entries."""
        return self._store.size()

    def root(self, size: int | None = None) -> bytes:
        """The root hash (32 bytes) of the first `size` entries; of all by default.

        Raises:
            InputError: the log never had that size.
        """
        return merkle.root_from_edge(self.edge(self._sized(size)))

    def checkpoint(self, name: str, key: SigningKey) -> str:
        """The signed head of now: a note by `key` under the key name `name`."""
        size = self.size
        return Checkpoint(self.origin, size, self.root(size)).sign(name, key)

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """That entry `index` is in the log of `size` entries (of all, by default)."""
        return self.inclusion_proofs([index], size)[0]

    def inclusion_proofs(self, indices: Iterable[int], size: int | None = None) -> list[list[bytes]]:
        """`inclusion_proof` of each, in one reading: faster than one by one."""
        n, wanted = self._sized(size), list(indices)
        return self._with_nodes(lambda get: [merkle.inclusion_proof(get, index, n) for index in wanted])

    def consistency_proof(self, old: int, new: int | None = None) -> list[bytes]:
        """That the log of `old` entries is a prefix of that of `new` (of all, by default)."""
        n = self._sized(new)
        return self._with_nodes(lambda get: merkle.consistency_proof(get, old, n))

    def edge(self, size: int) -> list[bytes]:
        """The right edge of the first `size` entries, from which they can be continued (`merkle.grow`)."""
        n = self._sized(size)
        return self._with_nodes(lambda get: merkle.right_edge(get, n))

    def _sized(self, size: int | None) -> int:
        """The size that is asked for. Entries and nodes are never removed, so it still is one when they are read."""
        now = self.size
        if size is not None and not 0 <= size <= now:
            raise InputError(f"{self.name}: no size {size} in a log of {now}")
        return now if size is None else size

    def _with_nodes(self, work: Callable[[merkle.GetNode], Result]) -> Result:
        """What `work` makes of the nodes it asks for. It is run twice, first to see which: they are read at once."""
        asked: dict[Place, None] = {}

        def note(level: int, index: int) -> bytes:
            asked[level, index] = None
            return merkle.EMPTY_ROOT

        work(note)
        found = self._store.nodes(asked)

        def get(level: int, index: int) -> bytes:
            try:
                return found[level, index]
            except KeyError:
                raise missing(self.name, (level, index)) from None

        return work(get)

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
            raise InputError(f"{self.name}: no entries {start} to {end} in a log of {size}")
        for low in range(start, end, _PAGE):
            high = min(low + _PAGE, end)
            page = self._store.bodies(low, high)
            if [seq for seq, _ in page] != list(range(low, high)):
                raise VerificationError(f"{self.name}: entries {low} to {high - 1} are not all there")
            for seq, body in page:
                yield Entry(seq, body)

    def check(self) -> None:
        """Recompute everything this log claims, from the bytes of its entries.

        1. The store finds itself in order; the tables and triggers are those of an audit log.
        2. There are as many entries and tree nodes as a log of this size has.
        3. Every entry has the five fields, and is not of an earlier time than the one before by more than `MAX_SKEW`,
           but where somebody set the clock (`set_clock`).
        4. Every stored node is the hash of what is below it.
        5. Every sealed payload is there and hashes to its entry's commitment, or its key was shredded; and no more
           keys are gone than the log says were shredded.

        Raises:
            VerificationError: any of them fails. (A log cut short or rebuilt passes: see `witness`.)
        """
        size, entries, nodes = self._store.examine()  # 1 and 2.
        if entries != size or nodes != merkle.nodes_in(size):
            raise VerificationError(
                f"{self.name}: {entries} entries and {nodes} hashes where a log that ends at entry {size - 1} "
                f"has {size} and {merkle.nodes_in(size)}"
            )
        edge: list[bytes] = []
        closed = shredded = 0
        before = datetime.min.replace(tzinfo=UTC)
        for low in range(0, size, _PAGE):
            high = min(low + _PAGE, size)
            stored = self._store.completed(low, high)
            commitments: list[str] = []
            for entry in self.entries(low, high):
                record = entry.record  # 3.
                if before - entry.time > MAX_SKEW and record["action"] != CLOCK_SET:
                    raise VerificationError(
                        f"{self.name}: entry {entry.index} is of {record['time']}, long before the one before it"
                    )
                before = entry.time
                shredded += _shredded(record)
                commitments += [found for found in [commitment_in(record)] if found is not None]
                computed, edge = merkle.grow(edge, entry.index, entry.leaf)
                for level, index, value in computed:  # 4.
                    if stored.get((level, index)) != value:
                        raise VerificationError(
                            f"{self.name}: entry {entry.index} is not what was logged "
                            f"(tree node {level}/{index} differs)"
                        )
            closed += self.payloads.open_many(commitments).count(None)  # 5.
        # Whoever shreds says so first: what was shredded meanwhile is among the entries that came meanwhile.
        shredded += sum(_shredded(entry.record) for entry in self.entries(size))
        if closed > shredded:
            raise VerificationError(
                f"{self.name}: {closed} sealed payloads can't be opened, and the log says that {shredded} were shredded",
                remedy="restore the folder of keys from a backup: somebody deleted keys without a word",
            )


def _store(place: Path | str, origin: str, *, create: bool) -> Store:
    if isinstance(place, Path):
        return SqliteStore(place, origin, create=create)
    from .postgres import PostgresStore

    return PostgresStore(place, origin, create=create)


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
