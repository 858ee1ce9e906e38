"""A log in one SQLite file; how it is kept and why it can't lose what it acknowledged: `durable`.

Two connections are kept, one to write and one to read: opening one costs as much as ten proofs. A kept connection
belongs to one process and one file: after a fork, or once another file lies at the path, a new one is opened. The
rollback journal is kept, too (``PERSIST``): a commit then makes and removes no file.

The *WAL-reset fault* (SQLite 3.7.0 to 3.51.2: two connections of which one resets the write-ahead log while the other
commits can lose or corrupt what was committed) can't occur: no file is ever in WAL mode. Every connection asks for a
rollback journal and refuses the file if it doesn't get one (`durable.connect`), so whatever SQLite the machine has will do.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from ... import durable
from ...errors import InputError
from .database import Schema, append_only, connection, establish, ours
from .payloads import SqliteRows
from .store import Held, Make, Place, damaged, missing

SCHEMA = Schema(
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
_SIZE = "SELECT coalesce(max(seq) + 1, 0) FROM entry"
_NODE = "SELECT hash FROM node WHERE level = ? AND idx = ?"
_JOURNAL_BYTES = 1 << 20  # that are kept of it; a long append's would be as long as the log
_CACHE_KIB = 16_384
_AT_ONCE = 64  # nodes; a proof at 2**40 entries takes fewer
_of_a_parent: list[sqlite3.Connection] = []  # never closed: SQLite's connections don't outlive a fork


class _Kept:
    """One open connection, used by one thread at a time."""

    def __init__(self, path: Path, journal: str) -> None:
        self._path, self._journal = path, journal
        self._db: sqlite3.Connection | None = None
        self._lock, self._pid, self._file = threading.Lock(), os.getpid(), (0, 0)

    @contextmanager
    def __call__(self) -> Iterator[sqlite3.Connection]:
        """The connection, in autocommit. If the block raises it is closed, which rolls back."""
        if self._pid != os.getpid():
            if self._db is not None:
                _of_a_parent.append(self._db)
            self._db, self._lock, self._pid = None, threading.Lock(), os.getpid()
        with self._lock:
            try:
                db = self._current()
                yield db
            except BaseException as error:
                self.close()
                if isinstance(error, sqlite3.Error):
                    raise ours(self._path, error) from error
                raise

    def _current(self) -> sqlite3.Connection:
        try:
            found = os.stat(self._path)  # noqa: PTH116 - called for every proof
        except OSError as error:
            raise InputError(f"{self._path}: {error.strerror or error}") from error
        file = (found.st_dev, found.st_ino)
        if self._db is None or file != self._file:
            self.close()
            self._db, self._file = durable.connect(self._path, journal=self._journal, shared=True), file
            self._db.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
            self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        return self._db

    def close(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def __del__(self) -> None:
        if self._db is not None and self._pid != os.getpid():
            _of_a_parent.append(self._db)
        else:
            self.close()


class SqliteStore:
    """`Store` in a file; made, for `origin`, if there is none.

    Raises:
        InputError: not an audit log, that of another origin, or no such file.
        VerificationError: a damaged file, or changed tables or triggers.
    """

    def __init__(self, path: Path, origin: str, *, create: bool) -> None:
        if not create and not path.is_file():
            raise InputError(f"{path}: no such audit log")
        establish(path, SCHEMA, first=[("INSERT INTO log VALUES (?)", (origin,))])
        self._path, self.name = path, str(path)
        self.payloads = SqliteRows(path.with_name(f"{path.stem}-payloads.db"))
        self._reading, self._writing = _Kept(path, "DELETE"), _Kept(path, "PERSIST")
        with self._reading() as db:
            found = db.execute("SELECT origin FROM log").fetchone()
        if found != (origin,):
            raise InputError(f"{path}: the log of {found[0] if found else 'nobody'}, not of {origin}")

    def size(self) -> int:
        with self._reading() as db:
            return _size(db)

    def append(self, make: Make) -> None:
        with self._writing() as db, durable.writing(db):

            def get(level: int, index: int) -> bytes:
                row = db.execute(_NODE, (level, index)).fetchone()
                if row is None:
                    raise missing(self.name, (level, index))
                return bytes(row[0])

            # Other processes append too: size and right edge are read anew under the lock, never kept.
            last = db.execute("SELECT seq, body FROM entry ORDER BY seq DESC LIMIT 1").fetchone()
            grown = make(0, b"", get) if last is None else make(last[0] + 1, last[1], get)
            db.executemany("INSERT INTO entry VALUES (?, ?)", grown.entries)
            db.executemany("INSERT INTO node VALUES (?, ?, ?)", grown.nodes)

    def nodes(self, wanted: Iterable[Place]) -> dict[Place, bytes]:
        places, found = list(wanted), dict[Place, bytes]()
        with self._reading() as db:
            for start in range(
                0, len(places), _AT_ONCE
            ):  # one statement each: a third of the time of single look-ups
                some = places[start : start + _AT_ONCE]
                values = ",".join(["(?,?)"] * len(some))
                query = (
                    f"SELECT n.level, n.idx, n.hash FROM (VALUES {values}) AS w "  # noqa: S608 - placeholders only
                    "CROSS JOIN node AS n ON n.level = w.column1 AND n.idx = w.column2"
                )
                for level, index, value in db.execute(query, list(chain.from_iterable(some))):
                    found[level, index] = value
        return found

    def bodies(self, low: int, high: int) -> list[tuple[int, bytes]]:
        query = "SELECT seq, body FROM entry WHERE seq >= ? AND seq < ? ORDER BY seq"
        with self._reading() as db:
            return db.execute(query, (low, high)).fetchall()

    def completed(self, low: int, high: int) -> dict[Place, bytes]:
        query = "SELECT idx, hash FROM node WHERE level = ? AND idx >= ? AND idx < ?"
        with self._reading() as db:
            return {
                (level, index): value
                for level in range(high.bit_length())
                for index, value in db.execute(query, (level, low >> level, high >> level))
            }

    def examine(self) -> Held:
        self._reading.close()  # with what it has cached
        with connection(self._path) as db:
            for (problem,) in db.execute("PRAGMA integrity_check(1)"):
                if problem != "ok":
                    raise damaged(self.name, problem)
            SCHEMA.check(db, self._path)
            db.execute("BEGIN")  # one moment, while others append
            (entries,) = db.execute("SELECT count(*) FROM entry").fetchone()
            (nodes,) = db.execute("SELECT count(*) FROM node").fetchone()
            held = Held(_size(db), entries, nodes)
            db.execute("COMMIT")
        return held


def _size(db: sqlite3.Connection) -> int:
    return int(db.execute(_SIZE).fetchone()[0])
