"""Files of a node's directory that no place of the map declares, searched for a customer.

Whatever is found there is said, and keeps an erasure from being complete: an export that somebody left is not erased by
nobody knowing of it. Text and bytes are searched for the name as a word of its own, tables value by value.
"""

from __future__ import annotations

import fnmatch
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from ..compliance.rights import DataMap
from ..errors import InputError
from . import table_rewrite
from .home import Home


def strays(home: Home, places: DataMap, subject: str) -> list[str]:
    """Files of the node's directory that the map does not name and that name the subject.

    Raises:
        InputError: one can't be read, so nothing can be said of it.
    """
    patterns = [pattern for place in places for pattern in place.files]
    found = []
    for path in _files(home.path):
        name = path.relative_to(home.path).as_posix()
        base = re.sub(r"(-journal|-wal|-shm|\.new)$", "", name)
        if not any(fnmatch.fnmatchcase(base, pattern) for pattern in patterns) and _names(path, subject):
            found.append(name)
    return found


def _files(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(here) / name for name in sorted(names))


def _names(path: Path, subject: str) -> bool:
    try:
        if path.suffix.lower() in (".parquet", ".duckdb"):
            return any(
                table_rewrite.rows_of(path, column, subject)
                for column in {c for cs in table_rewrite.columns(path).values() for c in cs}
            )
        data = path.read_bytes()
        if data.startswith(b"SQLite format 3\0"):
            return _in_sqlite(path, subject)
    except FileNotFoundError:  # gone meanwhile
        return False
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}: what it says of anybody is unknown") from error
    token = re.escape(subject.encode())
    return re.search(rb"(?<![0-9A-Za-z_])" + token + rb"(?![0-9A-Za-z_])", data) is not None


def _in_sqlite(path: Path, subject: str) -> bool:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            tables = db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
            for (table,) in tables:
                quoted = table.replace('"', '""')
                for row in db.execute(f'SELECT * FROM "{quoted}"'):  # noqa: S608
                    if any(subject == str(value) for value in row if isinstance(value, str | int)):
                        return True
    except sqlite3.Error as error:
        raise InputError(f"{path}: {error}: what it says of anybody is unknown") from error
    return False
