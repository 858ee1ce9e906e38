"""Values made coarser: shown in part, put into a period, a band, a region, a square. Missing stays missing.

None of these protects anybody alone: a coarse value beside other coarse values still singles people out. What a table
as a whole gives away is for its k-anonymity to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from ...errors import InputError
from .identifiers import day, id_shape
from .values import clean, distinct

Period = Literal["month", "quarter", "year", "decade"]
_METRES = 40_007_863 / 360  # of a degree along a meridian (WGS 84, mean)


def shown(value: Any, *, first: int = 3, last: int = 4, mask: str = "*") -> str:
    """A value for a screen: its first and last characters, the rest masked; "" stays "".

    A value of `first` + `last` characters or fewer, which would be shown whole, is masked whole. For eyes, not
    for files: what is shown still narrows down whose it is.

    Raises:
        InputError: a negative length, or a mask that is not one character.
    """
    if first < 0 or last < 0 or len(mask) != 1:
        raise InputError("shown characters are counted from 0, and a mask is one character")
    text = clean(value)
    hidden = len(text) - first - last
    if hidden <= 0:
        return mask * len(text)
    return text[:first] + mask * hidden + text[len(text) - last :]


def shown_email(value: Any, *, mask: str = "*") -> str:
    """An e-mail address with its first character and its domain; without an @, masked whole."""
    text = clean(value)
    local, at, domain = text.rpartition("@")
    if not at:
        return mask * len(text)
    return shown(local, first=1, last=0, mask=mask) + "@" + domain


def _each(column: pd.Series[Any], coarse: Callable[[Any], str | None]) -> pd.Series[Any]:
    """Every different value once; None is missing. The index and the name stay."""
    codes, values = distinct(column)
    made = np.empty(len(values) + 1, dtype=object)
    made[:-1] = [coarse(v) if clean(v) else None for v in values]
    made[-1] = None
    return pd.Series(made[codes], index=column.index, name=column.name, dtype="str")


def mask(column: pd.Series[Any], *, first: int = 3, last: int = 4) -> pd.Series[Any]:
    """`shown` over a column."""
    shown("", first=first, last=last)
    return _each(column, lambda v: shown(v, first=first, last=last))


def periods(column: pd.Series[Any], to: Period) -> pd.Series[Any]:
    """Dates to ``2024-03``, ``2024-Q1``, ``2024`` or ``2020s``: dates, timestamps or texts with the year first.

    Raises:
        InputError: a value is no date (it is not shown), or no such period.
    """
    if to not in get_args(Period):
        raise InputError(f"{to!r} is not a period: {', '.join(get_args(Period))}")

    def coarse(value: Any) -> str:
        found = _day(column, value)
        return {
            "month": f"{found.year:04}-{found.month:02}",
            "quarter": f"{found.year:04}-Q{(found.month + 2) // 3}",
            "year": f"{found.year:04}",
            "decade": f"{found.year // 10 * 10:04}s",
        }[to]

    return _each(column, coarse)


def ages(born: pd.Series[Any], as_of: date) -> pd.Series[Any]:
    """Full years of age at a day; who was born on 29 February has a birthday on 1 March in common years. Int64.

    Raises:
        InputError: a value is no date, or after `as_of`.
    """

    def age(value: Any) -> str:
        found = _day(born, value)
        if found > as_of:
            raise InputError(f"column {str(born.name)!r}: a birth date is after {as_of}")
        return str(as_of.year - found.year - ((as_of.month, as_of.day) < (found.month, found.day)))

    return _each(born, age).astype("Int64")


def age_bands(ages: pd.Series[Any], *, width: int = 5, top: int = 90) -> pd.Series[Any]:
    """Ages in years to ``30-34``, and ``90+`` from `top` on: the oldest are few, so they stand together.

    Raises:
        InputError: `width` below 1, `top` no multiple of it, or an age that is not a number from 0 to 150.
    """
    if width < 1 or top < width or top % width:
        raise InputError(
            f"bands of {width} years up to {top}: top must be a multiple of the width, and that at least 1"
        )

    def band(value: Any) -> str:
        try:
            age = math.floor(float(clean(value)))
        except (ValueError, OverflowError):
            age = -1
        if not 0 <= age <= 150:
            raise InputError(f"column {str(ages.name)!r}: an age is not a number from 0 to 150")
        low = age // width * width
        return f"{top}+" if age >= top else (f"{low}" if width == 1 else f"{low}-{low + width - 1}")

    return _each(ages, band)


def regions(column: pd.Series[Any], digits: Literal[2, 4, 6]) -> pd.Series[Any]:
    """The first 2, 4 or 6 digits of resident numbers or six-digit codes: province, city, county (GB/T 2260).

    Of a postcode they are postal provinces, districts and offices: a table has the one or the other.

    Raises:
        InputError: another number of digits, or a value that is neither.
    """
    if digits not in (2, 4, 6):
        raise InputError(f"{digits} digits: a region has 2, 4 or 6")

    def region(value: Any) -> str:
        text = id_shape(value) or clean(value)
        if not text.isascii() or not text[:6].isdigit() or len(text) not in (6, 18):
            raise InputError(
                f"column {str(column.name)!r}: a value is no resident number and no code of six digits"
            )
        return text[:digits]

    return _each(column, region)


def grid(latitude: pd.Series[Any], longitude: pd.Series[Any], *, metres: float) -> pd.Series[Any]:
    """Coordinates to the centre of their square, as ``31.2253,121.4741``; missing where one is missing.

    Rows are `metres` high; in each, squares are `metres` wide along its middle, or a little more so that a whole number
    goes around. Squares are of one datum: GCJ-02, which Chinese maps use, lies up to 700 m from WGS 84.

    Args:
        latitude, longitude: in degrees, shape (rows,), of one index.
        metres: a side, 10 to 1,000,000.

    Raises:
        InputError: outside ±90 and ±180 degrees, different indexes, or such a side.
    """
    if not 10 <= metres <= 1e6:
        raise InputError(f"squares of {metres} m: from 10 to 1,000,000")
    if not latitude.index.equals(longitude.index):
        raise InputError("latitude and longitude have different indexes")
    try:
        lat, lon = (np.asarray(pd.to_numeric(c), dtype=np.float64) for c in (latitude, longitude))
    except (ValueError, TypeError):
        raise InputError("a coordinate is not a number") from None  # its message shows the value
    there = ~(np.isnan(lat) | np.isnan(lon))
    if (np.abs(lat[there]) > 90).any() or (np.abs(lon[there]) > 180).any():
        raise InputError("a coordinate is outside ±90 or ±180 degrees")
    rows = math.ceil(180 * _METRES / metres - 1e-9)
    high = 180 / rows
    row = np.minimum((lat[there] + 90) // high, rows - 1)
    middle = (row + 0.5) * high - 90
    around = np.maximum(1, np.floor(360 * _METRES * np.cos(np.radians(middle)) / metres))
    place = (lon[there] + 180) % 360 // (360 / around)
    centre = (np.minimum(place, around - 1) + 0.5) * (360 / around) - 180
    made = np.full(lat.size, None, dtype=object)
    made[there] = [f"{y:.4f},{x:.4f}" for y, x in zip(middle, centre, strict=True)]
    return pd.Series(made, index=latitude.index, name="square", dtype="str")


def _day(column: pd.Series[Any], value: Any) -> date:
    found = day(value)
    if found is None:
        raise InputError(f"column {str(column.name)!r}: a value is no date written year first")
    return found
