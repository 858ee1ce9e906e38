"""Where a silo's table lies: a DuckDB file, a CSV or a Parquet file, opened through Ibis.

A partner gives a table, not a feature matrix. Another warehouse is another `connect`: everything above
is Ibis expressions, which Spark, ClickHouse, PostgreSQL and Snowflake run as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ibis

from ..errors import InputError
from ..federation.study import Split, Table


@contextmanager
def table(path: Path, name: str) -> Iterator[ibis.Table]:
    """The table `name` of a .duckdb file, or the one table of a .csv or .parquet file.

    Raises:
        InputError: no such file, not of these kinds, unreadable, or no such table.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file", remedy="set `table` in the node's node.yaml")
    suffix = path.suffix.lower()
    if suffix not in (".duckdb", ".csv", ".parquet"):
        raise InputError(f"{path}: not a .duckdb, .csv or .parquet file")
    connection = None
    try:
        if suffix == ".duckdb":
            connection = ibis.duckdb.connect(path, read_only=True)
            found = connection.table(name)
        else:
            connection = ibis.duckdb.connect()
            read = connection.read_csv if suffix == ".csv" else connection.read_parquet
            found = read(path, table_name=name)
    except Exception as error:
        if connection is not None:
            connection.disconnect()
        detail = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{path}: the table {name!r} can't be read: {detail}") from error
    try:
        yield found
    finally:
        connection.disconnect()


def check_columns(orders: ibis.Table, columns: Table, split: Split) -> None:
    """Raise InputError unless the table has the columns a study needs, of usable types."""
    schema = orders.schema()
    needed = {"customer": columns.customer, "date": columns.date, "amount": columns.amount}
    if split.by == "column":
        needed["split"] = split.column
    missing = [f"{name!r} ({role})" for role, name in needed.items() if name not in schema]
    if missing:
        raise InputError(
            f"the table {columns.name!r} lacks {', '.join(missing)}",
            remedy=f"it has: {', '.join(schema)}; name yours under `table` in the study",
        )
    date_type, amount_type = schema[columns.date], schema[columns.amount]
    if not (date_type.is_date() or date_type.is_timestamp()):
        raise InputError(f"the column {columns.date!r} is {date_type}, it must be a date or timestamp")
    if not amount_type.is_numeric():
        raise InputError(f"the column {columns.amount!r} is {amount_type}, it must be a number")
