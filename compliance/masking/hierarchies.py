"""Generalisation hierarchies: what a value may be called, from itself up to ``*``.

Level 0 is the value. Every level is a coarsening of the one below: two values with one label keep sharing a
label above it. A label means one set of values wherever it stands, so a released table can be read without
knowing how it was made; ``*`` means all values.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...documents import read_text
from ...errors import InputError

TOP = "*"
Rows = Iterable[Sequence[str]]
_UNITS = ("day", "month", "quarter", "year", "decade")


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """The labels of some values at every level.

    Attributes:
        values: level 0, each once.
        labels: of each level, its distinct labels.
        codes: int64, shape (levels, values): which of its level's labels a value has.
    """

    values: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    codes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: Rows, name: str = "hierarchy") -> Hierarchy:
        """From rows of labels, level 0 first; `name` is used in errors.

        Raises:
            InputError: no rows or ragged ones, a value twice with different labels, a level that is not a
                coarsening of the one below, a label that means different things at two levels, or a ``*``
                that does not mean all.
        """
        chains = _chains(rows, name)
        labels, codes = [], []
        for level in zip(*chains.values(), strict=True):
            known = {label: code for code, label in enumerate(dict.fromkeys(level))}
            labels.append(tuple(known))
            codes.append([known[label] for label in level])
        found = cls(tuple(chains), tuple(labels), np.array(codes, np.int64))
        found._check_coarser(name)
        found._check_meaning(name)
        return found

    @property
    def levels(self) -> int:
        return len(self.labels)

    def of_values(self, values: Sequence[str], name: str = "hierarchy") -> Hierarchy:
        """The same labels for just these values, in this order.

        Raises:
            InputError: a value is not in the hierarchy.
        """
        place = {value: at for at, value in enumerate(self.values)}
        if lacking := [value for value in values if value not in place]:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise InputError(
                f"{name}: has no row for {', '.join(map(repr, lacking[:3]))}{more}",
                remedy="add a row for every value of the column",
            )
        at = [place[value] for value in values]
        return Hierarchy.of(
            ([self.labels[level][self.codes[level, i]] for level in range(self.levels)] for i in at), name
        )

    def with_own_value(self, value: str) -> Hierarchy:
        """With one more value that keeps its label up to the last level, where all is ``*``.

        Raises:
            InputError: the value is there already.
        """
        if value in self.values:
            raise InputError(f"{value!r} is a value of the hierarchy, and stands for missing ones")
        rows = [
            [self.labels[level][self.codes[level, i]] for level in range(self.levels)]
            for i in range(len(self.values))
        ]
        whole = len(self.labels[-1]) == 1
        top = self.labels[-1][0] if whole else TOP
        rows = rows if whole and self.levels > 1 else [[*row, TOP] for row in rows]
        top = top if whole and self.levels > 1 else TOP
        return Hierarchy.of([*rows, [value] * (len(rows[0]) - 1) + [top]])

    def _check_coarser(self, name: str) -> None:
        for level in range(1, self.levels):
            above: dict[int, int] = {}
            for at, (lower, upper) in enumerate(zip(self.codes[level - 1], self.codes[level], strict=True)):
                if above.setdefault(int(lower), int(upper)) != upper:
                    label = self.labels[level - 1][lower]
                    raise InputError(
                        f"{name}: level {level} is no coarsening: {label!r} of level {level - 1} becomes "
                        f"{self.labels[level][above[int(lower)]]!r} and, for {self.values[at]!r}, "
                        f"{self.labels[level][upper]!r}"
                    )

    def _check_meaning(self, name: str) -> None:
        meaning: dict[str, tuple[int, bytes]] = {}
        for level, labels in enumerate(self.labels):
            order = np.argsort(self.codes[level], kind="stable")
            parts = np.split(order, np.cumsum(np.bincount(self.codes[level]))[:-1])
            for label, part in zip(labels, parts, strict=True):
                if label == TOP and len(part) < len(self.values):
                    raise InputError(f"{name}: {TOP!r} at level {level} does not cover every value")
                before, same = meaning.setdefault(label, (level, part.tobytes()))
                if same != part.tobytes():
                    raise InputError(
                        f"{name}: {label!r} means one set of values at level {before} and another at level {level}",
                        remedy="give the two different labels",
                    )


def _chains(rows: Rows, name: str) -> dict[str, tuple[str, ...]]:
    """The labels of each value, all of one length."""
    chains: dict[str, tuple[str, ...]] = {}
    width = 0
    for number, row in enumerate(rows, 1):
        chain = tuple(row)
        width = width or len(chain)
        if len(chain) != width or not chain:
            raise InputError(f"{name}: row {number} has {len(chain)} levels where row 1 has {width}")
        if chains.setdefault(chain[0], chain) != chain:
            raise InputError(f"{name}: row {number} gives {chain[0]!r} other labels than an earlier row")
    if not chains:
        raise InputError(f"{name}: has no rows")
    return chains


# ── where they come from ─────────────────────────────────────────────────────────────────────────


def read(path: Path) -> Hierarchy:
    """A hierarchy in ARX's form: CSV without header, level 0 first, between ``;`` or ``,``.

    Raises:
        InputError: unreadable, or not a hierarchy (see `Hierarchy.of`).
    """
    text = read_text(path).removeprefix("\ufeff")
    separator = ";" if ";" in text.partition("\n")[0] else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        return Hierarchy.of((row for row in rows if row), str(path))
    except csv.Error as error:
        raise InputError(f"{path}: line {rows.line_num} is not CSV: {error}") from error


def flat(values: Sequence[str], name: str = "hierarchy") -> Hierarchy:
    """Two levels: the value, and ``*``."""
    return Hierarchy.of(([value, TOP] for value in values), name)


def intervals(
    values: Sequence[str], widths: Sequence[float], origin: float = 0.0, name: str = "intervals"
) -> Hierarchy:
    """Numbers in half-open intervals ``[20, 30)``: a level for each width, then ``*``.

    Args:
        widths: growing; each a whole multiple of the one before, so that borders stay borders.
        origin: a border at every level.

    Raises:
        InputError: widths that do not nest, or a value that is no finite number.
    """
    for narrow, wide in zip([None, *widths], widths, strict=False):
        ratio = wide / narrow if narrow else 2.0
        if not (wide > 0 and ratio > 1 and math.isclose(ratio, round(ratio), rel_tol=1e-12)):
            raise InputError(
                f"{name}: widths {list(widths)} do not nest: each must be a multiple of the last"
            )
    rows = []
    for value in values:
        number = as_number(value)
        if number is None:
            raise InputError(f"{name}: {value!r} is not a number")
        rows.append([value, *(_interval(number, width, origin) for width in widths), TOP])
    return Hierarchy.of(rows, name)


def _interval(number: float, width: float, origin: float) -> str:
    step = math.floor((number - origin) / width)
    # The quotient may be rounded over a border; the borders as they are printed decide.
    low, high = origin + step * width, origin + (step + 1) * width
    if number >= high:
        low, high = high, origin + (step + 2) * width
    elif number < low:
        low, high = origin + (step - 1) * width, low
    return f"[{low:.12g}, {high:.12g})"


def ordered(values: Sequence[str], sizes: Sequence[int], name: str = "order") -> Hierarchy:
    """Values in the order given, so many side by side: ``first – last``; a level for each size, then ``*``.

    Raises:
        InputError: sizes that do not nest, or a value that is there twice.
    """
    if len(set(values)) < len(values):
        raise InputError(f"{name}: a value is listed twice")
    for small, large in zip([1, *sizes], sizes, strict=False):
        if large <= small or large % small:
            raise InputError(f"{name}: sizes {list(sizes)} do not nest: each must be a multiple of the last")
    rows = []
    for at, value in enumerate(values):
        starts = [(at - at % size, min(at - at % size + size, len(values)) - 1) for size in sizes]
        rows.append([value, *(values[a] if a == b else f"{values[a]} – {values[b]}" for a, b in starts), TOP])
    return Hierarchy.of(rows, name)


def redaction(values: Sequence[str], *, from_left: bool = False, name: str = "redaction") -> Hierarchy:
    """Texts of one length whose characters become ``*`` one by one, from the right or the left.

    Raises:
        InputError: texts of different lengths, or an empty one.
    """
    length = len(values[0]) if values else 0
    for value in values:
        if len(value) != length or not value:
            raise InputError(
                f"{name}: {value!r} has {len(value)} characters where {values[0]!r} has {length}",
                remedy="pad the column, or give a file",
            )
    return Hierarchy.of(([*_redacted(value, from_left), TOP] for value in values), name)


def _redacted(value: str, from_left: bool) -> list[str]:
    n = len(value)
    return [TOP * i + value[i:] if from_left else value[: n - i] + TOP * i for i in range(n)]


def dates(values: Sequence[str], units: Sequence[str], name: str = "dates") -> Hierarchy:
    """Days ``2026-11-25`` by ``month``, ``quarter``, ``year`` or ``decade``: a level for each, then ``*``.

    A time of day is no part of a day: level 0 is the value as written.

    Raises:
        InputError: an unknown unit, units that do not grow, or a value that does not begin with a day.
    """
    known = [_UNITS.index(unit) if unit in _UNITS else -1 for unit in units]
    if -1 in known or known != sorted(set(known)):
        raise InputError(f"{name}: units {list(units)}: choose growing ones of {', '.join(_UNITS)}")
    rows = []
    for value in values:
        try:
            day = date.fromisoformat(value[:10])
        except ValueError as error:
            raise InputError(f"{name}: {value!r} does not begin with a day, YYYY-MM-DD") from error
        rows.append([value, *(_WRITTEN[unit](day) for unit in units), TOP])
    return Hierarchy.of(rows, name)


_WRITTEN: dict[str, Callable[[date], str]] = {
    "day": date.isoformat,
    "month": lambda day: f"{day:%Y-%m}",
    "quarter": lambda day: f"{day:%Y}-Q{(day.month + 2) // 3}",
    "year": lambda day: f"{day:%Y}",
    "decade": lambda day: f"{day.year // 10 * 10}s",
}


def as_number(text: str) -> float | None:
    """The finite number a text is, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
