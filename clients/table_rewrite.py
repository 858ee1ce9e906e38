"""A silo's table with one customer's rows taken out or changed: the only code of foedus that writes to it.

It does so only where ``node.yaml`` says ``rights: {table: rewrite}``. The new file is written beside the old one, read
back and counted, and put in its place in one step (`durable.move`): a crash or a full disk leaves the old file as it was.
In a .csv file every other line stays as it is, to the byte.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .. import durable
from ..errors import FoedusError, InputError, VerificationError
from . import sources

_BATCH = 64 * 1024


def rows_of(path: Path, column: str, subject: str) -> list[dict[str, Any]]:
    """A customer's rows in every table of the file that has the column, as the table has them; ``table`` says which.

    Raises:
        InputError: as `sources.table`.
    """
    found: list[dict[str, Any]] = []
    for name, table in _each(path, column):
        own = table.filter(table[column].cast("string") == subject)
        found += [{"table": name, **row} for row in own.to_pyarrow().to_pylist()]
    return found


def _each(path: Path, column: str, *more: str) -> Iterator[tuple[str, Any]]:
    """Each table of the file that has these columns, open, with its name; customers as they are written there."""
    single = path.suffix.lower() != ".duckdb"
    for name in ["orders"] if single else _tables(path, column, *more):
        with sources.table(path, name, text={column}) as table:
            if {column, *more} <= set(table.columns):
                yield name, table


def columns(path: Path) -> dict[str, tuple[str, ...]]:
    """The tables of a file and their columns."""
    return sources.columns(path)


def require(path: Path, column: str) -> None:
    """Raise InputError unless some table of the file has the column of customers."""
    if not _tables(path, column):
        raise InputError(
            f"{path}: no table has the column {column!r}, so nothing can be said of any customer",
            remedy="set `rights: {customer: …}` in node.yaml to the table's column of customers",
        )


def first_days(path: Path, column: str, date: str | None) -> list[tuple[str, str | None]]:
    """Every customer of the file and the day of their first row (ISO); None where a table has no days."""
    require(path, column)
    found: list[tuple[str, str | None]] = []
    for _, table in _each(path, column):
        who = table[column].cast("string")
        if date is None or date not in table.columns:
            named = table.select(s=who).distinct().to_pyarrow()["s"].to_pylist()
            found += [(subject, None) for subject in named]
        else:
            day = table[date].cast("date").min().cast("string")
            rows = table.group_by(s=who).aggregate(d=day).to_pyarrow()
            found += zip(rows["s"].to_pylist(), rows["d"].to_pylist(), strict=True)
    return [(subject, day) for subject, day in found if subject is not None]


def _tables(path: Path, *wanted: str) -> list[str]:
    return [name for name, columns in sources.columns(path).items() if set(wanted) <= set(columns)]


def remove(path: Path, column: str, subject: str) -> int:
    """Take a customer's rows out of every table of the file. Returns how many there were.

    Raises:
        InputError: it can't be read or written; it is as it was. VerificationError: the new file is not the old one without them.
    """
    count = len(rows_of(path, column, subject))

    def check(new: Path) -> None:
        if rows_of(new, column, subject):
            raise VerificationError(f"{path}: rewritten it would still have rows of theirs; it is as it was")

    if count:
        _replace(path, lambda new: _copy(path, new, column, subject, None), _count(path) - count, check)
    return count


def remove_before(path: Path, column: str, date: str, oldest: str, keep: Collection[str] = ()) -> int:
    """Take rows of before the day `oldest` (ISO) out of the tables that have both columns. Returns how many.

    Args:
        keep: customers whose rows stay (legal hold).

    Raises:
        InputError, VerificationError: as `remove`.
    """
    count = old_rows(path, column, date, oldest, keep)
    if count:
        _replace(path, lambda new: _without_old(path, new, column, date, oldest, keep), _count(path) - count)
    return count


def old_rows(path: Path, column: str, date: str, oldest: str, keep: Collection[str] = ()) -> int:
    """How many rows that would be."""
    count = 0
    for _, table in _each(path, column, date):
        old = table.filter(table[date].cast("date") < oldest)
        if keep:
            old = old.filter(~old[column].cast("string").fill_null("").isin(sorted(keep)))
        count += int(old.count().to_pyarrow().as_py())
    return count


def change(path: Path, column: str, subject: str, field: str, value: str, was: str | None) -> int:
    """Put `value` into a field of a customer's rows. Returns how many changed.

    Raises:
        InputError: no such field; it is the customer's name; the value is not of the column's type; or `was` is needed.
    """
    if field == column:
        raise InputError(
            f"{field!r} names the customer, and can't be corrected so",
            remedy="a wrong name is another customer: erase it, and enter the right one",
        )
    rows = [row for row in rows_of(path, column, subject) if field in row]
    if not rows:
        raise InputError(f"there is no {field!r} of theirs in the table")
    if was is None and len({str(row[field]) for row in rows}) > 1:
        raise InputError(f"their rows say different things under {field!r}: say which value is wrong")
    wrong = [was is None or str(row[field]) == was for row in rows]

    def check(new: Path) -> None:
        fine = all(
            a == b or (a.is_numeric() and b.is_numeric())
            for a, b in zip(_types(path, field), _types(new, field), strict=True)
        )  # a word in a .csv file's column of days would make all of it words
        left = [row[field] for row in rows_of(new, column, subject) if field in row]
        pairs = zip(left, rows, wrong, strict=True)
        if not fine or any(str(v) == str(o[field]) for v, o, w in pairs if w and str(o[field]) != value):
            raise InputError(f"{path}: {value!r} is not what the column {field!r} can say; it is as it was")

    if any(wrong):
        edit = _Edit(field, value, was, tuple(wrong))
        _replace(path, lambda new: _copy(path, new, column, subject, edit), _count(path), check)
    return sum(wrong)


def _types(path: Path, field: str) -> list[Any]:
    found = []
    for name in _tables(path, field):
        with sources.table(path, name) as table:
            found.append(table.schema()[field])
    return found


def _replace(
    path: Path, write: Callable[[Path], None], rows: int, check: Callable[[Path], None] = lambda new: None
) -> None:
    """Write the new file, count its rows and check it, sync it, and put it in place; the mode stays."""
    new = path.with_name(f".{path.stem}.rewriting{path.suffix}")
    try:
        try:
            new.unlink(missing_ok=True)
            write(new)
            found = _count(new)
            if found != rows:
                raise VerificationError(
                    f"{path}: rewritten it would have {found} rows where {rows} are right; it is as it was",
                    remedy="remove the rows by the means of whoever makes the file",
                )
            check(new)
            shutil.copymode(path, new)
            with new.open("rb+") as file:
                os.fsync(file.fileno())
            durable.move(new, path)
        except FoedusError:
            raise
        except (OSError, duckdb.Error, pa.ArrowException, csv.Error, UnicodeError, ValueError) as error:
            said = getattr(error, "strerror", None) or str(error).splitlines()[0][:200]
            raise InputError(f"{path}: can't be rewritten: {said}; it is as it was") from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def _count(path: Path) -> int:
    total = 0
    for name in sources.columns(path):
        with sources.table(path, name) as table:
            total += int(table.count().to_pyarrow().as_py())
    return total


@dataclass(frozen=True)
class _Edit:
    """A field's new value, in those rows of the customer, in order, that are `wrong`: that say `was`, if it is given."""

    field: str
    value: str
    was: str | None
    wrong: tuple[bool, ...]


def _copy(path: Path, new: Path, column: str, subject: str, edit: _Edit | None) -> None:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        _copy_csv(path, new, column, subject, edit)
    elif suffix == ".parquet":
        _copy_parquet(path, new, column, subject, edit)
    else:
        _copy_duckdb(path, new, column, subject, edit)


def _without_old(path: Path, new: Path, column: str, date: str, oldest: str, keep: Collection[str]) -> None:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        rows = _csv_rows(path)
        header, raw = next(rows)
        who = header.index(column)
        with sources.table(path, "orders", text={column}) as table:  # the engine knows what a date is
            days = table[date].cast("date").cast("string").to_pyarrow().to_pylist()
        with new.open("wb") as file:
            file.write(raw)
            for day, (row, line) in zip(days, rows, strict=True):
                if not isinstance(day, str) or day >= oldest or row[who] in keep:
                    file.write(line)
    elif suffix == ".parquet":
        limit, held = pa.scalar(oldest).cast(pa.date32()), pa.array(sorted(keep), pa.string())

        def young(table: pa.Table) -> pa.Table:
            stays = pc.fill_null(pc.greater_equal(pc.cast(table[date], pa.date32(), safe=False), limit), True)
            return table.filter(pc.or_(stays, pc.is_in(pc.cast(table[column], pa.string()), value_set=held)))

        _filtered(path, new, young)
    else:
        marks = ", ".join("?" * len(keep)) or "NULL"
        held = f"CAST({{customer}} AS VARCHAR) NOT IN ({marks})"
        statement = f"DELETE FROM {{table}} WHERE CAST({{field}} AS DATE) < ? AND coalesce({held}, true)"  # noqa: S608
        _in_duckdb(path, new, column, statement, [oldest, *sorted(keep)], date)


def _copy_csv(path: Path, new: Path, column: str, subject: str, edit: _Edit | None) -> None:
    rows = _csv_rows(path)
    header, raw = next(rows)
    place, wrong = header.index(column), iter(edit.wrong if edit else ())
    with new.open("wb") as file:
        file.write(raw)
        for row, line in rows:
            if len(row) <= place or row[place] != subject:
                file.write(line)
            elif edit is not None and next(wrong):
                at = header.index(edit.field)
                end = line[len(line.rstrip(b"\r\n")) :].decode()
                file.write(_csv_line([*row[:at], edit.value, *row[at + 1 :]], _dialect(path), end))
            elif edit is not None:
                file.write(line)


def _csv_rows(path: Path) -> Iterator[tuple[list[str], bytes]]:
    """The rows of a .csv file, each with its own bytes."""
    taken: list[bytes] = []

    def lines() -> Iterator[str]:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                taken.append(line)
                yield line.decode("utf-8-sig" if number == 0 else "utf-8")

    for row in csv.reader(lines(), strict=True, **_dialect(path)):
        raw = b"".join(taken)
        taken.clear()
        if row:
            yield row, raw


def _dialect(path: Path) -> dict[str, Any]:
    """As the engine that reads the table takes the file."""
    with closing(duckdb.connect()) as db:
        found = db.execute("SELECT Delimiter, Quote, Escape FROM sniff_csv(?)", [str(path)]).fetchone()
    delimiter, quote, escape = found or (",", '"', '"')
    own = {"delimiter": delimiter, "lineterminator": ""}
    if quote in ("", "\0", "(empty)"):
        return {**own, "quoting": csv.QUOTE_NONE}
    doubled = escape in ("", "\0", "(empty)", quote)
    return {**own, "quotechar": quote, "doublequote": doubled, "escapechar": None if doubled else escape}


def _csv_line(row: list[str], dialect: dict[str, Any], end: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, **dialect).writerow(row)
    return (text.getvalue() + end).encode()


def _copy_parquet(path: Path, new: Path, column: str, subject: str, edit: _Edit | None) -> None:
    wrong = iter(edit.wrong if edit else ())

    def changed(table: pa.Table) -> pa.Table:
        own = pc.is_in(pc.cast(table[column], pa.string()), value_set=pa.array([subject], pa.string()))
        own = pc.fill_null(own, False)
        if edit is None:
            return table.filter(pc.invert(own))
        at = table.schema.get_field_index(edit.field)
        kind = table.schema.field(at).type
        old = table[edit.field]
        marked = [bool(mine) and next(wrong) for mine in own.to_pylist()]  # in the order they were read
        own = pa.chunked_array([pa.array(marked, pa.bool_())])
        corrected = pc.if_else(own, pc.cast(pa.scalar(edit.value), kind), old)
        return table.set_column(at, table.schema.field(at), corrected)

    _filtered(path, new, changed)


def _filtered(path: Path, new: Path, changed: Callable[[pa.Table], pa.Table]) -> None:
    source = pq.ParquetFile(path)
    with source, pq.ParquetWriter(new, source.schema_arrow) as out:
        for batch in source.iter_batches(_BATCH):
            out.write_table(changed(pa.Table.from_batches([batch])))


def _copy_duckdb(path: Path, new: Path, column: str, subject: str, edit: _Edit | None) -> None:
    if edit is None:
        _in_duckdb(path, new, column, "DELETE FROM {table} WHERE CAST({customer} AS VARCHAR) = ?", [subject])
        return
    statement, values = (
        "UPDATE {table} SET {field} = ? WHERE CAST({customer} AS VARCHAR) = ?",
        [edit.value, subject],
    )
    if edit.was is not None:
        statement, values = f"{statement} AND CAST({{field}} AS VARCHAR) = ?", [*values, edit.was]
    _in_duckdb(path, new, column, statement, values, edit.field)


def _in_duckdb(
    path: Path, new: Path, column: str, statement: str, parameters: list[str], field: str | None = None
) -> None:
    """Change every table with the columns in a copy, then copy it once more: free blocks keep what was deleted."""
    middle = path.with_name(f".{path.stem}.middle{path.suffix}")
    try:
        shutil.copyfile(path, middle)
        with closing(duckdb.connect(str(middle))) as db:
            names = [n for n in _tables_in(db, column) if field is None or n in _tables_in(db, field)]
            for name in names:
                words = {"table": name, "customer": column, "field": field or column}
                db.execute(statement.format(**{k: _quoted(v) for k, v in words.items()}), parameters)
            db.execute("CHECKPOINT")
            catalogue = db.execute("SELECT current_database()").fetchone()
            db.execute(f"ATTACH '{str(new).replace(chr(39), chr(39) * 2)}' AS rewritten")
            db.execute(f"COPY FROM DATABASE {_quoted(str((catalogue or ('',))[0]))} TO rewritten")
            db.execute("DETACH rewritten")
    finally:
        middle.unlink(missing_ok=True)


def _tables_in(db: duckdb.DuckDBPyConnection, column: str) -> list[str]:
    query = (
        "SELECT t.table_name FROM duckdb_columns() AS c JOIN duckdb_tables() AS t USING (table_oid) "
        "WHERE c.column_name = ? AND NOT t.internal"
    )
    return [name for (name,) in db.execute(query, [column]).fetchall()]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
