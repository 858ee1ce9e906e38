"""``server.db``: what the API process and the Flower ServerApp's process write, each in its own time.

Choices, with those of ``durable``: journal_mode=DELETE, as WAL with two writers can
corrupt a file under SQLite before 3.51.3; synchronous=EXTRA, as under DELETE a power cut may undo the
last FULL commit; writers take BEGIN IMMEDIATE, so none upgrades a lock and no two deadlock. Connections
are opened per transaction (no pool): none is left behind in a thread or a forked process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, Connection, NullPool, create_engine, event
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from ...errors import InputError, Unreachable
from .tables import Base

BUSY_SECONDS = 30.0


class Database:
    """The file and its two kinds of transaction; any number of threads and processes may share it.

    Raises:
        InputError: not a database of ours, or a row that contradicts another.
        Unreachable: locked by others for 30 s.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        url = URL.create("sqlite", database=str(path))  # a path may hold a question mark
        self._engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", _begin)
        self._writing = self._engine.execution_options(foedus_write=True)
        with self._errors(), self._writing.begin() as connection:
            Base.metadata.create_all(connection)

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        """A read transaction; the rows outlive it, detached."""
        with self._errors(), Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        """A write transaction: on disk when the block ends, rolled back if it raises."""
        with self._errors(), Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise InputError(f"{self._path.name}: {error.orig}") from error
        except OperationalError as error:
            if "locked" in str(error.orig):
                raise Unreachable(f"{self._path.name}: locked by others for {BUSY_SECONDS:.0f} s") from error
            raise InputError(f"{self._path}: {error.orig}") from error
        except DatabaseError as error:
            raise InputError(f"{self._path}: {error.orig}") from error


def _configure(connection: Any, _: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, see `_begin`
    for pragma in ("journal_mode=DELETE", "synchronous=EXTRA", "foreign_keys=ON", "trusted_schema=OFF"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("foedus_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
