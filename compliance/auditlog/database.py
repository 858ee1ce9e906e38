"""SQLite files that several processes append to and that outlive a power cut.

Every call opens its own connection and closes it, so any thread or process may call. Choices:

- ``journal_mode=DELETE``. WAL with two writers can corrupt a file (the WAL-reset bug, SQLite 3.7.0
  to 3.51.2: Debian 12 ships 3.40.1), and it makes one log three files.
- ``synchronous=EXTRA``: under DELETE, FULL may still roll back the last commit at a power cut, as the
  directory is not synced after the journal is unlinked (sqlite.org/pragma.html#pragma_synchronous).
- Writers take ``BEGIN IMMEDIATE``, so none has to upgrade a lock and no two can deadlock.
- Triggers refuse UPDATE, DELETE and REPLACE. They stop accidents; they do not stop the file's owner,
  who can drop them: evidence against the owner is what others hold (checkpoints).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import FoedusError, InputError, VerificationError

BUSY_SECONDS = 30.0


@dataclass(frozen=True)
class Schema:
    """What a file must contain to be ours.

    Args:
        title: what the file is, for messages ("an audit log").
        application_id: its mark in the SQLite header (31 bits).
        statements: its tables and triggers, exactly as SQLite will have kept them.
    """

    title: str
    application_id: int
    statements: tuple[str, ...]

    def check(self, db: sqlite3.Connection, path: Path) -> None:
        """Raise unless the file has this mark and exactly these tables and triggers.

        Raises:
            InputError: another kind of file.
            VerificationError: its tables or triggers were changed.
        """
        if _mark(db) != self.application_id:
            raise InputError(f"{path}: not {self.title}")
        found = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")}
        if found != set(self.statements):
            raise VerificationError(
                f"{path}: the tables or triggers of {self.title} were changed",
                remedy="compare the file with a backup: someone had write access to it",
            )


def append_only(table: str, taken: str, action: str) -> tuple[str, str, str]:
    """Triggers that keep the rows of `table` as they were written.

    Args:
        taken: SQL condition on ``NEW`` under which an insert may not happen: a delete trigger does not
            fire for ``INSERT OR REPLACE``, so the insert itself has to be stopped.
        action: what happens then, ``ABORT`` or ``IGNORE``.
    """
    refusal = f"RAISE({action})" if action == "IGNORE" else f"RAISE({action}, '{table} is append-only')"
    return (
        f"CREATE TRIGGER {table}_insert BEFORE INSERT ON {table} WHEN {taken} BEGIN SELECT {refusal}; END",
        (
            f"CREATE TRIGGER {table}_update BEFORE UPDATE ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        ),
        (
            f"CREATE TRIGGER {table}_delete BEFORE DELETE ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        ),
    )


def establish(path: Path, schema: Schema, *, first: Sequence[tuple[str, tuple[Any, ...]]] = ()) -> None:
    """Check that `path` is a file of `schema`; make it if there is none (mode 0600).

    Args:
        first: statements with parameters, run in the transaction that makes the file.

    Raises:
        InputError: it is something else.
        VerificationError: it is damaged or its schema was changed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    with connection(path) as db:
        if _mark(db) == 0 and _is_empty(db):
            db.execute("BEGIN IMMEDIATE")
            if _is_empty(db):  # else another process made it while we waited for the lock
                for statement in schema.statements:
                    db.execute(statement)
                for statement, parameters in first:
                    db.execute(statement, parameters)
                db.execute(f"PRAGMA application_id = {schema.application_id}")
            db.execute("COMMIT")
        schema.check(db, path)


@contextmanager
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    """An open connection to an existing file, in autocommit; closed at the end.

    Raises:
        InputError: no such file, not SQLite, locked for 30 s, or not writable.
        VerificationError: the file is damaged, or an append-only rule was broken.
    """
    try:
        uri = f"{path.resolve().as_uri()}?mode=rw"  # never creates: a lost log must not come back empty
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as db:
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("PRAGMA cell_size_check = ON")
            db.execute("PRAGMA synchronous = EXTRA")
            (mode,) = db.execute("PRAGMA journal_mode = DELETE").fetchone()
            if mode != "delete":
                raise InputError(f"{path}: in journal mode {mode!r}, and others have it open")
            yield db
    except sqlite3.Error as error:
        raise _ours(path, error) from error


@contextmanager
def transaction(path: Path) -> Iterator[sqlite3.Connection]:
    """A write transaction: committed and on disk when the block ends, rolled back if it raises."""
    with connection(path) as db:
        db.execute("BEGIN IMMEDIATE")
        yield db  # on an exception the connection closes, which rolls back
        db.execute("COMMIT")


def _ours(path: Path, error: sqlite3.Error) -> FoedusError:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_NOTADB"):
        return InputError(f"{path}: not an SQLite file")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_CONSTRAINT", "SQLITE_MISMATCH")):
        return VerificationError(
            f"{path}: damaged or tampered with ({error})", remedy="restore it from a backup"
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return InputError(f"{path}: locked by another process for {BUSY_SECONDS:.0f} s")
    return InputError(f"{path}: {error}")


def _mark(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA application_id").fetchone()[0])


def _is_empty(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None
