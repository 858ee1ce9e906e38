"""Tables of customers, with a role for every column and values as codes.

Rows are taken by their place; a frame's index is not looked at. A missing value is never dropped: in a
quasi-identifier it is refused or becomes a value of its own, in a sensitive column it is always one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from ...errors import InputError
from .domains import MISSING
from .hierarchies import TOP, as_number
from .roles import Role

Missing = Literal["refuse", "value"]
Codes = npt.NDArray[np.int64]
SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True, eq=False)
class Coded:
    """A column as codes: row i holds ``values[codes[i]]``, shape (rows,). Values are sorted, each once."""

    codes: Codes
    values: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Table:
    """A checked table: every column has a role."""

    frame: pd.DataFrame
    roles: Mapping[str, Role]
    quasi: Mapping[str, Coded]
    sensitive: Mapping[str, Coded]

    @classmethod
    def of(cls, frame: pd.DataFrame, roles: Mapping[str, Role], missing: Missing = "refuse") -> Table:
        """Check a frame against its columns' roles and code what is to be protected.

        Raises:
            InputError: no rows, a column without a role or a role without its column, two columns of one
                name, no quasi-identifier, a missing value that `missing` refuses, or a value that reads as
                ``*`` or as `MISSING`.
        """
        _check_columns(frame, roles)
        quasi = {name: _quasi(frame, name, missing) for name, role in roles.items() if role is Role.QUASI}
        sensitive = {name: code(frame[name], name) for name, role in roles.items() if role is Role.SENSITIVE}
        return cls(frame, roles, quasi, sensitive)

    @property
    def rows(self) -> int:
        return len(self.frame)


def _check_columns(frame: pd.DataFrame, roles: Mapping[str, Role]) -> None:
    names = list(frame.columns)
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two columns are called {min(map(str, twice))!r}")
    if without := [name for name in names if name not in roles]:
        raise InputError(
            f"column {without[0]!r} has no role",
            remedy=f"say whether it is {', '.join(role for role in Role)}",
        )
    if lacking := [name for name in roles if name not in names]:
        raise InputError(f"there is no column {lacking[0]!r}, which has a role")
    if Role.QUASI not in roles.values():
        raise InputError("no column is a quasi-identifier, so there is nothing to mask")
    if frame.empty:
        raise InputError("the table has no rows")


def _quasi(frame: pd.DataFrame, name: str, missing: Missing) -> Coded:
    series = frame[name]
    if missing == "refuse" and (count := int(series.isna().to_numpy().sum())):
        raise InputError(
            f"{name}: {count} missing values in a quasi-identifier",
            remedy="fill them, or say `missing: value` to treat missing as a value of its own",
        )
    return code(series, name, reserved=(MISSING, TOP))


def code(series: pd.Series[Any], name: str, reserved: tuple[str, ...] = (MISSING,)) -> Coded:
    """A column as codes of texts; missing values become `MISSING`.

    Numbers are sorted as numbers, all else as text; a whole float is written as an integer, for missing values
    make floats of integers.

    Raises:
        InputError: a value is one of the `reserved` texts, which mean something else, or is no single value.
    """
    try:
        codes, values = _factorized(series)
    except TypeError as error:
        raise InputError(f"{name}: holds lists or other things that can't be compared") from error
    texts = [text(value) for value in values]
    for wrong in reserved:
        if wrong in texts:
            raise InputError(f"{name}: {wrong!r} is a value, and means something else here")
    if (codes < 0).any():
        codes = np.where(codes < 0, len(texts), codes)
        texts.append(MISSING)
    distinct = _sorted(set(texts))
    place = {value: at for at, value in enumerate(distinct)}
    return Coded(np.array([place[t] for t in texts], np.int64).take(codes), tuple(distinct))


def _factorized(series: pd.Series[Any]) -> tuple[Codes, list[Any]]:
    """Codes with −1 for missing, and what they stand for; may repeat itself."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        codes = np.asarray(series.cat.codes, np.int64)
        used = np.flatnonzero(np.bincount(codes[codes >= 0], minlength=len(series.cat.categories)))
        place = np.full(len(series.cat.categories) + 1, -1)
        place[used] = np.arange(len(used))
        return place[codes], [series.cat.categories[int(i)] for i in used]
    if isinstance(series.dtype, pd.StringDtype):
        array = pa.chunked_array(pa.array(series, from_pandas=True)).combine_chunks().dictionary_encode()
        return (
            array.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64),
            array.dictionary.to_pylist(),
        )
    found, values = pd.factorize(series)
    return np.asarray(found, np.int64), list(values)


def text(value: object) -> str:
    """A value as hierarchies write it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, pd.Timestamp | dt.datetime):
        return value.date().isoformat() if value.time() == dt.time(0) else value.isoformat()
    return str(value)


def _sorted(texts: set[str]) -> list[str]:
    """By number if all are numbers, else by text; a missing one last."""
    plain = texts - {MISSING}
    numbers = {t: as_number(t) for t in plain}
    found = sorted(plain, key=lambda t: (numbers[t] or 0.0, t) if None not in numbers.values() else (0.0, t))
    return [*found, MISSING] if MISSING in texts else found


def numeric(coded: Coded) -> bool:
    """Whether all values but a missing one are numbers."""
    return all(as_number(value) is not None for value in coded.values if value != MISSING)


def read(path: Path) -> pd.DataFrame:
    """A .csv or .parquet file. Of CSV every column is text, an empty cell is missing; between ``;`` or ``,``.

    Raises:
        InputError: no such file, or not a table.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: not a {' or '.join(SUFFIXES)} file")
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path).reset_index(drop=True)
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
        frame = pd.read_csv(
            path,
            sep=";" if ";" in header else ",",
            dtype="str",
            keep_default_na=False,
            na_values=[""],
            encoding="utf-8-sig",
        )
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a table: {str(error).splitlines()[0]}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise InputError(f"{path}: its rows have more fields than its header")
    return frame
