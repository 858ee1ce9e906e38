"""Files that outlive a crash and a power cut: what was written is on disk, whole, once the call returns.

Small files are replaced (`replace`). Files that several processes append to are SQLite's; every call opens its
own connection and closes it, so any thread or process may call. Choices:

- ``journal_mode=DELETE`` (the audit log keeps its journal's file: ``PERSIST``). WAL with two writers can corrupt a file (the WAL-reset bug, SQLite 3.7.0
  to 3.51.2: Debian 12 ships 3.40.1), its last commits may go with a power cut, and it makes one file three.
- ``synchronous=EXTRA``: the journal is synced before the file is touched, the file before the journal is
  unlinked, *and the directory after that*; under FULL a power cut may bring the journal back, which would
  roll back the last commit (sqlite.org/pragma.html#pragma_synchronous).
- Writers take ``BEGIN IMMEDIATE``, so none has to upgrade a lock and no two can deadlock.

What else SQLite says, damage or a full disk, whoever opens the file puts into words (`said`).
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import InputError

BUSY_SECONDS = 30.0
SYNCHRONOUS = "EXTRA"


def replace(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: after a crash it holds the old bytes or the new, and on return the new.

    Raises:
        InputError: it can't be written; the old bytes are still there.
    """
    temporary = path.with_name(f"{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        move(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise InputError(f"{path}: {error.strerror or error}") from error


def move(new: Path, path: Path) -> None:
    """Put a file, itself on disk already, in the place of `path` in the same directory."""
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def touch(path: Path) -> None:
    """An empty file (mode 0600), and its directory, if there is none.

    Raises:
        InputError: it can't be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """An open connection to an existing SQLite file, in autocommit; closed at the end.

    Raises:
        InputError: locked for 30 s, or others have it open in another journal mode.
        sqlite3.Error: anything else, inside the block too.
    """
    try:
        with closing(connect(path)) as db:
            yield db
    except sqlite3.Error as error:
        if said(error, "SQLITE_BUSY", "SQLITE_LOCKED"):
            raise InputError(f"{path}: locked by another process for {BUSY_SECONDS:.0f} s") from error
        raise


def connect(path: Path, *, journal: str = "DELETE", shared: bool = False) -> sqlite3.Connection:
    """An open connection to an existing SQLite file, in autocommit; for whoever keeps it open and closes it.

    Args:
        journal: ``DELETE``, or ``PERSIST``: then the journal's file stays, its header overwritten, and a commit makes and
            removes no file.
        shared: threads will use it, one at a time.

    Raises:
        InputError: others have it open in another journal mode. sqlite3.Error: anything else.
    """
    uri = f"{path.resolve().as_uri()}?mode=rw"  # never creates: a lost file must not come back empty
    db = sqlite3.connect(
        uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=not shared
    )
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cell_size_check = ON")
        db.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
        (mode,) = db.execute(f"PRAGMA journal_mode = {journal}").fetchone()
        if mode != journal.lower():
            raise InputError(f"{path}: in journal mode {mode!r}, and others have it open")
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def writing(db: sqlite3.Connection) -> Iterator[None]:
    """A write transaction: committed and on disk when the block ends."""
    db.execute("BEGIN IMMEDIATE")
    yield  # on an exception the connection closes, which rolls back
    db.execute("COMMIT")


def fill(db: sqlite3.Connection, mark: int, statements: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
    """Run these statements, with their parameters, if the file is empty, and give it its mark.

    A crash on the way leaves an empty file, which the next call fills.
    """
    if mark_of(db) != 0 or not _is_empty(db):
        return
    with writing(db):
        if _is_empty(db):  # else another process filled it while we waited for the lock
            for statement, parameters in statements:
                db.execute(statement, parameters)
            db.execute(f"PRAGMA application_id = {mark}")


def mark_of(db: sqlite3.Connection) -> int:
    """The application's mark in the SQLite header (31 bits); 0 if there is none."""
    return int(db.execute("PRAGMA application_id").fetchone()[0])


def is_of(db: sqlite3.Connection, statements: Sequence[str]) -> bool:
    """Whether the file has exactly the tables and triggers that these statements made."""
    found = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")}
    return found == set(statements)


def said(error: sqlite3.Error, *names: str) -> bool:
    """Whether SQLite's error is one of these, or an extended one of theirs."""
    return getattr(error, "sqlite_errorname", "").startswith(names)


def disk_full(error: BaseException) -> bool:
    """Whether a full disk is behind an error, whoever put it into words."""
    causes: BaseException | None = error
    while causes is not None:
        if isinstance(causes, OSError) and causes.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if (
            isinstance(causes, sqlite3.Error)
            and getattr(causes, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        ):
            return True
        causes = causes.__cause__ or causes.__context__
    return False


def _is_empty(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None
