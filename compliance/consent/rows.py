"""Consents from rows of text: a CSV file, or whatever a query gives. A bad row is named, and nothing is taken.

Columns ``subject, purpose, notice_version, granted_at`` and, where wanted, those of `OPTIONAL`, in any order.
Times are ISO 8601 with an offset, dates YYYY-MM-DD, lists separated by ``;``, ``sensitive`` is yes or no.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from ...errors import InputError
from .records import FieldError, Grant, Withdrawal, located, micros

REQUIRED = ("subject", "purpose", "notice_version", "granted_at")
OPTIONAL = (
    "expires_at",
    "withdrawn_at",
    "method",
    "categories",
    "sensitive",
    "sharing",
    "born",
    "guardian",
    "evidence",
)

Row = tuple[str, Grant, Withdrawal | None]
_YES = {"yes": True, "no": False, "": False}


def read_csv(path: Path) -> Iterator[Row]:
    """The rows of a UTF-8 CSV file, each with where it stands.

    Raises:
        InputError: naming the line and the column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            check_columns(header, f"{path}, line 1")
            for cells in reader:
                where = f"{path}, line {reader.line_num}"
                if len(cells) != len(header):
                    raise InputError(f"{where}: {len(cells)} columns where the header has {len(header)}")
                yield parsed(where, dict(zip(header, cells, strict=True)))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a UTF-8 CSV file ({error})") from error


def from_query(what: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[Row]:
    """The rows of a query's result, numbered from 1. Times and dates may come as such.

    Raises:
        InputError: naming the row and the column.
    """
    check_columns(header, what)
    for number, cells in enumerate(rows, 1):
        where = f"{what}, row {number}"
        yield parsed(where, {n: _text(where, n, v) for n, v in zip(header, cells, strict=True)})


def check_columns(header: Sequence[str], where: str) -> None:
    """Raise InputError unless these are columns of consents, each once, and none that is needed is missing."""
    for name in header:
        if name not in (*REQUIRED, *OPTIONAL) or list(header).count(name) > 1:
            raise InputError(f"{where}, column {name!r}: unknown or given twice")
    for name in REQUIRED:
        if name not in header:
            raise InputError(f"{where}, column {name!r}: missing")


def parsed(where: str, row: Mapping[str, str]) -> Row:
    """A row of text as events.

    Raises:
        InputError: naming where and the column.
    """
    with located(where):
        grant = grant_of(row)
        if grant.granted_at is None:  # an import has no "now"
            raise FieldError("granted_at", "a time is missing")
        out = _time(row, "withdrawn_at")
        if out is None:
            return where, grant, None
        if out < grant.granted_at:
            raise FieldError("withdrawn_at", "before granted_at")
        return where, grant, Withdrawal(grant.subject, grant.purpose, out)


def grant_of(row: Mapping[str, str]) -> Grant:
    """A grant from fields of text; an empty one is left out.

    Raises:
        FieldError: which, and what is wrong with it.
    """
    said = row.get("sensitive", "")
    if said not in _YES:
        raise FieldError("sensitive", f"{said!r} is neither yes nor no")
    return Grant(
        subject=row.get("subject", ""),
        purpose=row.get("purpose", ""),
        notice_version=row.get("notice_version", ""),
        granted_at=_time(row, "granted_at"),
        expires_at=_time(row, "expires_at"),
        method=row.get("method") or "import",
        categories=_list(row, "categories") or None,
        sensitive=_YES[said],
        sharing=_list(row, "sharing"),
        born=_date(row, "born"),
        guardian=row.get("guardian") or None,
        evidence=row.get("evidence") or None,
    )


def _text(where: str, name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, str | int):
        return str(value)
    raise InputError(f"{where}, column {name!r}: a {type(value).__name__} is neither a text nor a time")


def _list(row: Mapping[str, str], field: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in row.get(field, "").split(";") if part.strip())


def _time(row: Mapping[str, str], field: str) -> datetime | None:
    text = row.get(field, "")
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise FieldError(field, f"{text!r} is not an ISO 8601 time") from error
    micros(field, moment)
    return moment


def _date(row: Mapping[str, str], field: str) -> date | None:
    text = row.get(field, "")
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise FieldError(field, f"{text!r} is not a day, e.g. 2015-01-31") from error
