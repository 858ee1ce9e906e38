"""Where a silo's table lies: a DuckDB file, a CSV or a Parquet file, opened through Ibis.

A partner gives a table, not a feature matrix. Another warehouse is another `connect`: everything above
is Ibis expressions, which Spark, ClickHouse, PostgreSQL and Snowflake run as well.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import ibis

from ..errors import InputError
from ..federation.schema import Split, Table

KINDS = (".duckdb", ".csv", ".parquet")


@contextmanager
def table(path: Path, name: str, *, text: Collection[str] = ()) -> Iterator[ibis.Table]:
    """The table `name` of a .duckdb file, or the one table of a .csv or .parquet file.

    Args:
        text: columns of a .csv file to take as they are written, whatever they look like: customer 00042 is
            not 42, and a label that says True is not true.

    Raises:
        InputError: no such file, not of these kinds, unreadable, also where rows are read later, or no such table.
    """
    with _opened(path) as connection:
        try:
            if path.suffix.lower() == ".duckdb":
                found = connection.table(name)
            elif path.suffix.lower() == ".parquet":
                found = connection.read_parquet(path, table_name=name)
            else:
                found = connection.read_csv(path, table_name=name)
                if types := {c: "VARCHAR" for c in found.columns if c in text}:
                    found = connection.read_csv(path, table_name=name, types=types)
        except Exception as error:
            detail = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise InputError(f"{path}: the table {name!r} can't be read: {detail}") from error
        try:
            yield found
        except duckdb.Error as error:
            # Rows are read late, and the types of a .csv file are a guess from its first ones. What DuckDB
            # says after the first line quotes the customer's row.
            detail = str(error).splitlines()[0][:200]
            column = re.search(r'converting column "(.+?)"', str(error))
            raise InputError(
                f"{path}: the table {name!r} can't be read{f' at the column {column[1]!r}' if column else ''}: {detail}",
                remedy="mend that line of the file",
            ) from error


def columns(path: Path) -> dict[str, tuple[str, ...]]:
    """Every table a node could be asked for in `path`, and its columns.

    Raises:
        InputError: as `table`.
    """
    if path.suffix.lower() != ".duckdb":
        with table(path, "orders") as found:
            return {"orders": tuple(found.columns)}
    with _opened(path) as connection:
        # Not Ibis' list_tables: it calls what DuckDB 2 has no more.
        query = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema() ORDER BY ALL"
        names = [name for (name,) in connection.con.execute(query).fetchall()]
        return {name: tuple(connection.table(name).columns) for name in names}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.exists():
        raise InputError(f"{path}: no such file", remedy="set `table` in the node's node.yaml")
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise InputError(f"{path}: not a {', '.join(KINDS)} file")
    try:
        connection = (
            ibis.duckdb.connect(path, read_only=True) if suffix == ".duckdb" else ibis.duckdb.connect()
        )
    except Exception as error:
        raise InputError(f"{path}: can't be opened: {str(error).splitlines()[0][:200]}") from error
    try:
        yield connection
    finally:
        connection.disconnect()


def require(found: ibis.Table, names: Table, needed: Mapping[str, str]) -> None:
    """Raise InputError unless the table has the columns of `needed`: what for -> name."""
    schema = found.schema()
    missing = [f"{name!r} ({role})" for role, name in needed.items() if name not in schema]
    if missing:
        raise InputError(
            f"the table {names.name!r} lacks {', '.join(missing)}",
            remedy=f"it has: {', '.join(schema)}; name yours in the study",
        )


def check_columns(orders: ibis.Table, columns: Table, split: Split) -> None:
    """Raise InputError unless the order log has the columns a study needs, of usable types."""
    needed = {"customer": columns.customer, "date": columns.date, "amount": columns.amount}
    if split.by == "column":
        needed["split"] = split.column
    require(orders, columns, needed)
    schema = orders.schema()
    date_type, amount_type = schema[columns.date], schema[columns.amount]
    if not (date_type.is_date() or date_type.is_timestamp()):
        raise InputError(f"the column {columns.date!r} is {date_type}, it must be a date or timestamp")
    if not amount_type.is_numeric():
        raise InputError(f"the column {columns.amount!r} is {amount_type}, it must be a number")
