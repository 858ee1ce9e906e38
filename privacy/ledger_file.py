"""The ledger's SQLite file: what is committed is on disk, whole, and stays as it was written.

- ``journal_mode=DELETE``: one file, and no WAL, which two writers can corrupt (the WAL-reset bug, SQLite
  3.7.0 to 3.51.2) and whose last commits a power cut may take.
- ``synchronous=EXTRA``: the journal is synced before the file is touched, the file before the journal is
  unlinked, *and the directory after that*; under FULL a power cut may bring the journal back, which would
  roll back the last commit (sqlite.org/pragma.html#pragma_synchronous).
- Writers take ``BEGIN IMMEDIATE``. Triggers refuse UPDATE, DELETE and REPLACE: they stop accidents. The
  file's owner can drop them; against the owner stand the anchors of the head (`clients.budget`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..errors import InputError, Refused, VerificationError
from .ledger_lines import Row

_BUSY_SECONDS = 30.0
_MARK = 0x666F6C65  # "fole", in the SQLite header
_REFUSE = "BEGIN SELECT raise(ABORT, 'append-only'); END"
_NEXT = "(SELECT coalesce(max(number), 0) + 1 FROM line)"
_SCHEMA = (
    "CREATE TABLE owner (population TEXT NOT NULL) STRICT",
    "CREATE TABLE line (number INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL UNIQUE) STRICT",
    f"CREATE TRIGGER owner_insert BEFORE INSERT ON owner WHEN EXISTS (SELECT 1 FROM owner) {_REFUSE}",  # noqa: S608 - a constant
    f"CREATE TRIGGER owner_no_update BEFORE UPDATE ON owner {_REFUSE}",
    f"CREATE TRIGGER owner_no_delete BEFORE DELETE ON owner {_REFUSE}",
    # A delete trigger does not fire for INSERT OR REPLACE, so the insert itself has to be stopped.
    f"CREATE TRIGGER line_insert BEFORE INSERT ON line WHEN NEW.number <> {_NEXT} {_REFUSE}",
    f"CREATE TRIGGER line_no_update BEFORE UPDATE ON line {_REFUSE}",
    f"CREATE TRIGGER line_no_delete BEFORE DELETE ON line {_REFUSE}",
)
Signature = tuple[int, int, int, int]


def establish(path: Path, population: str) -> str:
    """Make the file if there is none (mode 0600); whose ledger it is.

    A crash on the way leaves an empty file, which the next call fills.

    Raises:
        InputError: it is something else.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    try:
        with connection(path) as db:
            if _is_empty(db):
                db.execute("BEGIN IMMEDIATE")
                if _is_empty(db):  # else another process made it while we waited for the lock
                    for statement in _SCHEMA:
                        db.execute(statement)
                    db.execute("INSERT INTO owner VALUES (?)", (population,))
                    db.execute(f"PRAGMA application_id = {_MARK}")
                db.execute("COMMIT")
            return owner(db, path)
    except VerificationError as error:
        raise InputError(f"{path}: not a ledger ({error.message})", remedy=error.remedy) from error


def owner(db: sqlite3.Connection, path: Path) -> str:
    """Whose ledger it is.

    Raises:
        InputError: it is no ledger.
    """
    if db.execute("PRAGMA application_id").fetchone() != (_MARK,):
        raise InputError(f"{path}: not a ledger")
    found = db.execute("SELECT population FROM owner").fetchall()
    if len(found) != 1:
        raise InputError(f"{path}: not a ledger (it is nobody's)")
    return str(found[0][0])


def check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Raise VerificationError unless the file has exactly a ledger's tables and triggers."""
    found = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")}
    if found != set(_SCHEMA):
        raise VerificationError(
            f"{path}: the tables or triggers of the ledger were changed",
            remedy="someone had write access to it; nothing may run until an officer has looked at it",
        )


@contextmanager
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    """An open connection to an existing file, in autocommit.

    Raises:
        Refused: the file is gone. InputError: locked for 30 s, or not readable. VerificationError: damaged.
    """
    if not path.exists():
        raise Refused("LEDGER_ROLLED_BACK", f"{path}: the ledger is gone", remedy=RECOVER)
    try:
        uri = f"{path.resolve().as_uri()}?mode=rw"  # never creates: a lost ledger must not come back empty
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)) as db:
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("PRAGMA cell_size_check = ON")
            db.execute("PRAGMA synchronous = EXTRA")
            (mode,) = db.execute("PRAGMA journal_mode = DELETE").fetchone()
            if mode != "delete":
                raise InputError(f"{path}: in journal mode {mode!r}, and others have it open")
            yield db
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_CONSTRAINT", "SQLITE_MISMATCH")):
            raise VerificationError(f"{path}: the ledger can't be read ({error})", remedy=RECOVER) from error
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise InputError(f"{path}: locked by another process for {_BUSY_SECONDS:.0f} s") from error
        raise  # a full or failing disk is no answer of ours: see `fleet`


@contextmanager
def transaction(path: Path) -> Iterator[sqlite3.Connection]:
    """A write transaction: committed and on disk when the block ends, rolled back if it raises."""
    with connection(path) as db:
        db.execute("BEGIN IMMEDIATE")
        yield db  # on an exception the connection closes, which rolls back
        db.execute("COMMIT")


def rows(db: sqlite3.Connection) -> list[Row]:
    """Every line as stored."""
    return db.execute("SELECT number, body, hash FROM line ORDER BY number").fetchall()


def tail(db: sqlite3.Connection) -> tuple[int, str] | None:
    """Number and hash of the last line."""
    found: tuple[int, str] | None = db.execute(
        "SELECT number, hash FROM line ORDER BY number DESC LIMIT 1"
    ).fetchone()
    return found


def append(db: sqlite3.Connection, row: Row) -> None:
    """Add a line."""
    db.execute("INSERT INTO line VALUES (?, ?, ?)", row)


def signature(path: Path) -> Signature:
    """What changes whenever somebody else writes: inode, size, times. (``ctime`` can't be set back.)"""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _is_empty(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None


RECOVER = "an officer looks at it, and recovers it: foedus ledger recover NODE"
