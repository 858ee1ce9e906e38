"""Consents from where they are kept already: what a query gives over SQLite, DuckDB, Parquet or CSV."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from ..compliance.consent.rows import Row, from_query, read_csv
from ..errors import InputError

SQLITE = (".db", ".sqlite", ".sqlite3")
FILES = (".parquet", ".csv")
SOURCE = "source"


def read(path: Path, query: str | None = None) -> Iterator[Row]:
    """The consents in a file, each with where it stands.

    Args:
        query: SQL that gives the columns of `compliance.consent.rows`; a .csv or .parquet file is the table
            ``source`` in it, and all of it by default. The file is opened read-only.

    Raises:
        InputError: unreadable, no query where one is needed, or a bad row, which is named.
    """
    suffix = path.suffix.lower()
    if query is None and suffix == ".csv":
        return read_csv(path)
    if suffix not in (*SQLITE, *FILES, ".duckdb"):
        raise InputError(f"{path}: not a {', '.join((*FILES, '.duckdb', *SQLITE))} file")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if query is None and suffix != ".parquet":
        raise InputError(
            f"{path}: which of its tables?", remedy="say --query 'SELECT … AS subject, … FROM …'"
        )
    asked = query or f"SELECT * FROM {SOURCE}"  # noqa: S608 - the operator's own query, on their own file
    return (_sqlite if suffix in SQLITE else _duckdb)(path, asked)


def _sqlite(path: Path, query: str) -> Iterator[Row]:
    try:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as db:
            found = db.execute(query)
            header = [column[0] for column in found.description or ()]
            yield from from_query(f"{path}", header, found)
    except sqlite3.Error as error:
        raise InputError(f"{path}: the query failed: {error}") from error


def _duckdb(path: Path, query: str) -> Iterator[Row]:
    import duckdb

    try:
        with closing(
            duckdb.connect(
                ":memory:" if path.suffix.lower() != ".duckdb" else path,
                read_only=path.suffix.lower() == ".duckdb",
            )
        ) as db:
            if path.suffix.lower() == ".parquet":
                db.read_parquet(str(path)).create_view(SOURCE)
            elif path.suffix.lower() == ".csv":
                db.read_csv(str(path), all_varchar=True).create_view(SOURCE)
            found = db.execute(query)
            header = [column[0] for column in found.description or ()]
            yield from from_query(f"{path}", header, iter(found.fetchone, None))
    except duckdb.Error as error:
        raise InputError(f"{path}: the query failed: {str(error).splitlines()[0][:200]}") from error
