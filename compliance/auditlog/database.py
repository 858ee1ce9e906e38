"""SQLite files of a fixed schema: the audit log, consents, checkpoints. How they are kept: `durable`.

Triggers refuse UPDATE, DELETE and REPLACE. They stop accidents; they do not stop the file's owner,
who can drop them: evidence against the owner is what others hold (checkpoints).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import durable
from ...errors import FoedusError, InputError, VerificationError


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
        if durable.mark_of(db) != self.application_id:
            raise InputError(f"{path}: not {self.title}")
        if not durable.is_of(db, self.statements):
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
    durable.touch(path)
    with connection(path) as db:
        statements = [(statement, ()) for statement in schema.statements]
        durable.fill(db, schema.application_id, [*statements, *first])
        schema.check(db, path)


@contextmanager
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    """An open connection to an existing file, in autocommit; closed at the end.

    Raises:
        InputError: no such file, not SQLite, locked for 30 s, or not writable.
        VerificationError: the file is damaged, or an append-only rule was broken.
    """
    try:
        with durable.opened(path) as db:
            yield db
    except sqlite3.Error as error:
        raise ours(path, error) from error


@contextmanager
def transaction(path: Path) -> Iterator[sqlite3.Connection]:
    """A write transaction: committed and on disk when the block ends, rolled back if it raises."""
    with connection(path) as db, durable.writing(db):
        yield db


def ours(path: Path, error: sqlite3.Error) -> FoedusError:
    """What SQLite says of a file, in our words."""
    if durable.said(error, "SQLITE_BUSY", "SQLITE_LOCKED"):
        return InputError(f"{path}: locked by another process for {durable.BUSY_SECONDS:.0f} s")
    if durable.said(error, "SQLITE_FULL"):
        return InputError(
            f"{path}: the disk is full; nothing was written", remedy="free some space, and try again"
        )
    if durable.said(error, "SQLITE_NOTADB"):
        return InputError(f"{path}: not an SQLite file")
    if durable.said(error, "SQLITE_CORRUPT", "SQLITE_CONSTRAINT", "SQLITE_MISMATCH"):
        return VerificationError(
            f"{path}: damaged or tampered with ({error})", remedy="restore it from a backup"
        )
    return InputError(f"{path}: {error}")
