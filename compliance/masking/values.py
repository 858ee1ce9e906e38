"""Values as text, and the different ones of a column: what everything in this room begins with."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ...errors import InputError


def clean(value: Any) -> str:
    """A value as text: NFKC (so ``１３８`` is ``138``), no invisible characters, no space around; missing is "".

    A whole float is written as an integer, because a column of numbers with gaps is one of floats. A float of
    2^53 or more has lost digits: it stays in its own notation, which no number of a person has.
    """
    if isinstance(value, str):
        if value.isascii():
            return value.strip()
        text = unicodedata.normalize("NFKC", value)
        if text.isprintable():  # the usual case: neither invisible characters nor separators but spaces
            return text.strip()
        return "".join(
            c for c in text if unicodedata.category(c) not in ("Cf", "Cc") or c in "\t\n\r"
        ).strip()
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isnan(number):
            return ""
        whole = number.is_integer() and abs(number) < 2**53
        return str(int(number)) if whole else repr(number)
    if isinstance(value, bytes | bytearray):
        return ""
    return clean(str(value))


def distinct(column: pd.Series[Any]) -> tuple[npt.NDArray[np.int64], Sequence[Any]]:
    """Each row's place in the list of different values, −1 where it is missing; and that list.

    Raises:
        InputError: a value is a list or the like.
    """
    try:
        codes, values = pd.factorize(column, use_na_sentinel=True)
    except TypeError:
        raise InputError(
            f"column {str(column.name)!r}: a value is a list or the like, not one value"
        ) from None
    return np.asarray(codes, dtype=np.int64), list(values)
