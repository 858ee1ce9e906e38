"""The ledger's SQLite file: what is committed is on disk, whole (see `durable`), and stays as it was written.

Triggers refuse UPDATE, DELETE and REPLACE: they stop accidents. The file's owner can drop them; against the
owner stand the anchors of the head (`clients.budget`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import durable
from ..errors import InputError, Refused, VerificationError
from .ledger_lines import Row

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

    Raises:
        InputError: it is something else.
    """
    durable.touch(path)
    try:
        with connection(path) as db:
            statements = [(statement, ()) for statement in _SCHEMA]
            durable.fill(db, _MARK, [*statements, ("INSERT INTO owner VALUES (?)", (population,))])
            return owner(db, path)
    except VerificationError as error:
        raise InputError(f"{path}: not a ledger ({error.message})", remedy=error.remedy) from error


def owner(db: sqlite3.Connection, path: Path) -> str:
    """Whose ledger it is.

    Raises:
        InputError: it is no ledger.
    """
    if durable.mark_of(db) != _MARK:
        raise InputError(f"{path}: not a ledger")
    found = db.execute("SELECT population FROM owner").fetchall()
    if len(found) != 1:
        raise InputError(f"{path}: not a ledger (it is nobody's)")
    return str(found[0][0])


def check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Raise VerificationError unless the file has exactly a ledger's tables and triggers."""
    if not durable.is_of(db, _SCHEMA):
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
        with durable.opened(path) as db:
            yield db
    except sqlite3.Error as error:
        if durable.said(error, "SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_CONSTRAINT", "SQLITE_MISMATCH"):
            raise VerificationError(f"{path}: the ledger can't be read ({error})", remedy=RECOVER) from error
        raise  # a full or failing disk is no answer of ours: see `fleet`


@contextmanager
def transaction(path: Path) -> Iterator[sqlite3.Connection]:
    """A write transaction: committed and on disk when the block ends, rolled back if it raises."""
    with connection(path) as db, durable.writing(db):
        yield db


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


RECOVER = "an officer looks at it, and recovers it: foedus ledger recover NODE"
