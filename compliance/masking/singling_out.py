"""Which columns, taken together, single out the most rows: quasi-identifiers found by counting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd

from ...errors import InputError
from .columns import codes_of, suggest
from .roles import Role

MOST_COLUMNS = 20


@dataclass(frozen=True)
class SingledOut:
    """How many rows, and which share of all, are the only ones with their values in `columns`."""

    columns: tuple[str, ...]
    rows: int
    share: float


def quasi_identifiers(
    frame: pd.DataFrame, columns: Sequence[str] | None = None, *, most: int = 3, top: int = 10
) -> list[SingledOut]:
    """The sets of at most `most` columns that single out the most rows, over all rows; a missing value is a value.

    A set is left out if one with fewer columns singles out as many rows. Rows of one person are rows: give one row a person.

    Args:
        columns: which to combine, 20 at most; by default those that `suggest` takes for quasi-identifiers or
            sensitive, and insensitive ones while there is room.

    Raises:
        InputError: no such column, a name that two columns have, more than 20 columns, or `most` not in 1..3.
    """
    if not 1 <= most <= 3:
        raise InputError(f"sets of {most} columns: 1 to 3 are searched")
    chosen = _candidates(frame) if columns is None else list(columns)
    names = list(map(str, frame.columns))
    for name in chosen:
        if names.count(name) != 1:
            raise InputError(
                f"{name!r}: {'no such column' if name not in names else 'two columns have this name'}"
            )
    if len(set(chosen)) > MOST_COLUMNS:
        raise InputError(
            f"{len(set(chosen))} columns: {MOST_COLUMNS} are searched at most", remedy="name fewer"
        )
    if not len(frame):
        return []
    codes = {name: codes_of(frame.iloc[:, names.index(name)])[0] + 1 for name in dict.fromkeys(chosen)}
    counts: dict[tuple[str, ...], int] = {(): 0}
    kept: list[tuple[str, ...]] = []
    for size in range(1, most + 1):
        for group in combinations(codes, size):
            fewer = max(counts[part] for part in combinations(group, size - 1))
            # More columns never single out fewer rows, so where all are there is nothing to count.
            counts[group] = fewer if fewer == len(frame) else _singles([codes[name] for name in group])
            if counts[group] > fewer:
                kept.append(group)
    kept.sort(key=lambda group: (-counts[group], len(group)))
    return [SingledOut(group, counts[group], counts[group] / len(frame)) for group in kept[:top]]


def _candidates(frame: pd.DataFrame) -> list[str]:
    names = list(map(str, frame.columns))
    told = [s for s, name in zip(suggest(frame, rows=1000), names, strict=True) if names.count(name) == 1]
    unique = [name for name in names if names.count(name) == 1]
    first = [n for n, s in zip(unique, told, strict=True) if s.role in (Role.QUASI, Role.SENSITIVE)]
    rest = [n for n, s in zip(unique, told, strict=True) if s.role is Role.INSENSITIVE]
    return [*first, *rest][:MOST_COLUMNS]


def _singles(codes: Sequence[npt.NDArray[np.int64]]) -> int:
    """How many rows are alone with their codes."""
    joined = codes[0]
    for more in codes[1:]:
        joined = pd.factorize(joined * (int(more.max()) + 1) + more)[0].astype(np.int64)
    return int((np.bincount(joined) == 1).sum())
