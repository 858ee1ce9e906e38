"""What each column of a table seems to be. Suggestions, with their figures and their reason; an officer decides.

Evidence is of two kinds: what the column is called (`vocabulary`), and how many of its values are recognised
(`identifiers`, `names`), set against how many would be by chance. A column of a kind that the name speaks of is
suggested as that kind even if no value bears it out: to miss one costs more than to look twice. (Unless no value does and
nearly all repeat: ``PhoneService`` is yes or no.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ...errors import InputError
from .identifiers import (
    Finding,
    Kind,
    birth_date,
    card,
    credit_code,
    email,
    iban,
    phone,
    postcode,
    resident_id,
)
from .names import address, person_name
from .roles import Role
from .values import clean
from .vocabulary import kind_named, public_named, trait_named


class Sort(StrEnum):
    """What a column is if it is of no `Kind`."""

    KEY = "key"
    FREE_TEXT = "free_text"
    DATE = "date"
    NUMBER = "number"
    CATEGORY = "category"
    TEXT = "text"
    EMPTY = "empty"


class Level(StrEnum):
    """Who may see a column."""

    PUBLIC = "public"
    INTERNAL = "internal"
    SENSITIVE = "sensitive"


@dataclass(frozen=True)
class Suggestion:
    """What a column seems to be.

    Args:
        column: its name.
        kind: of which kind its values seem to be.
        role: what it would do in a table that is shown.
        level: who may see it.
        share: the share of the values looked at that were recognised as `kind`, in [0, 1].
        uniqueness: different values ÷ values, in [0, 1], over all rows; 0 if there is no value.
        missing: the share of rows without a value.
        looked: how many values were looked at.
        reason: why, in a sentence.
    """

    column: str
    kind: Kind | Sort
    role: Role
    level: Level
    share: float
    uniqueness: float
    missing: float
    looked: int
    reason: str


# What each kind suggests. A credit code names an organisation, and may be a sole trader's.
_ROLES = {
    Kind.BIRTH_DATE: (Role.QUASI, Level.INTERNAL),
    Kind.POSTCODE: (Role.QUASI, Level.INTERNAL),
    Kind.CREDIT_CODE: (Role.IDENTIFYING, Level.INTERNAL),
}
_WITHIN = {
    Kind.RESIDENT_ID: re.compile(r"(?<![0-9])[0-9]{17}[0-9Xx](?![0-9])"),
    Kind.PHONE: re.compile(r"(?<![0-9])(?:\+?86[ -]?)?1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4}(?![0-9])"),
    Kind.EMAIL: re.compile(r"[^\s@,;:，；：<>()]+@[^\s@,;:，；：<>()]+"),
}
_DIGITS = re.compile(r"[+(]?[0-9][0-9 ().\-/]{8,20}")
_LIKELY, _SOME, _KEY, _FEW = 0.5, 0.01, 0.95, 0.05


def suggest(
    frame: pd.DataFrame,
    *,
    rows: int = 10_000,
    seed: int = 0,
    region: str = "CN",
    today: date | None = None,
) -> list[Suggestion]:
    """A suggestion for every column, in the table's order.

    A kind is suggested if the column's name speaks of it, or if more than half of the values are of it *beyond
    chance*: (share − chance)/(1 − chance) > ½ with the findings' mean chance. It is suggested, too, if 1 % of the values (three at least)
    are, beyond ten times their chance: a column of notes in which somebody keeps phone numbers.

    Args:
        frame: shape (rows, columns), of any types.
        rows: at most so many values of a column are looked at, drawn without replacement from those that are not
            missing by numpy's generator seeded with `seed`: equal tables give equal suggestions. Nothing here protects
            anybody, so the seed may be known.
        region: the country of phones without one, ISO 3166-1 alpha-2.
        today: for ages; the day it is, by default.

    Raises:
        InputError: not a DataFrame, or `rows` below 1.
    """
    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"a table is a pandas DataFrame, not {type(frame).__name__}")
    if rows < 1:
        raise InputError(f"rows is {rows}: at least one row must be looked at")
    tests = _tests(region, today)
    return [
        _column(clean(name) or f"column {i + 1}", frame.iloc[:, i], rows, seed, tests)
        for i, name in enumerate(frame.columns)
    ]


Test = Callable[[Any], Finding | None]


def _tests(region: str, today: date | None) -> dict[Kind, Test]:
    """Each kind's test, the strictest first: an 18-digit card would else be a resident's number, or the other way."""
    return {
        Kind.RESIDENT_ID: partial(resident_id, today=today),
        Kind.CREDIT_CODE: credit_code,
        Kind.IBAN: iban,
        Kind.EMAIL: email,
        Kind.CARD: card,
        Kind.PHONE: partial(phone, region=region),
        Kind.ADDRESS: address,
        Kind.NAME: person_name,
        Kind.BIRTH_DATE: partial(birth_date, today=today),
        Kind.POSTCODE: postcode,
    }


def _column(name: str, column: pd.Series[Any], rows: int, seed: int, tests: dict[Kind, Test]) -> Suggestion:
    codes, count = codes_of(column)
    present = np.flatnonzero(codes >= 0)
    drawn = present
    if present.size > rows:
        drawn = np.sort(np.random.default_rng(seed).choice(present, size=rows, replace=False))
    values = [clean(v) for v in column.iloc[drawn]]
    uniqueness = count / present.size if present.size else 0.0
    missing = 1 - present.size / codes.size if codes.size else 1.0

    def suggestion(kind: Kind | Sort, role: Role, level: Level, share: float, reason: str) -> Suggestion:
        return Suggestion(name, kind, role, level, share, uniqueness, missing, len(values), reason)

    named, trait = kind_named(name), trait_named(name)
    counted = {kind: _Count.of(kind, test, values) for kind, test in tests.items()}
    kind, why = _kind(named, counted, values)
    if kind is not None and kind not in _ROLES and values and not counted[kind].passed and uniqueness < _FEW:
        kind = None  # PhoneService: yes, no, no, yes
    if kind is not None:
        role, level = _ROLES.get(kind, (Role.IDENTIFYING, Level.SENSITIVE))
        return suggestion(kind, role, level, counted[kind].share, why)
    if not values:
        return suggestion(
            Sort.EMPTY, trait[0] if trait else Role.INSENSITIVE, Level.INTERNAL, 0.0, "it has no values"
        )
    within = {k: sum(_holds(shape, v, tests[k]) for v in values) for k, shape in _WITHIN.items()}
    held, times = max(within.items(), key=lambda item: item[1])
    if times >= 3 or times > _SOME * len(values):
        why = f"{_of(times, len(values))} hold {_name(held)} among other text"
        return suggestion(Sort.FREE_TEXT, Role.IDENTIFYING, Level.SENSITIVE, times / len(values), why)
    sort, share, why = _sort(values, uniqueness, counted[Kind.BIRTH_DATE].share)
    if trait is not None:
        role, matter = trait
        level = Level.INTERNAL if role is Role.QUASI else Level.SENSITIVE
        return suggestion(sort, role, level, share, f"its name speaks of {matter}; {why}")
    role = {
        Sort.KEY: Role.IDENTIFYING,
        Sort.FREE_TEXT: Role.IDENTIFYING,
        Sort.DATE: Role.QUASI,
        Sort.TEXT: Role.QUASI,
    }.get(sort, Role.INSENSITIVE)
    if public_named(name) and sort in (Sort.CATEGORY, Sort.TEXT):
        return suggestion(
            sort, Role.INSENSITIVE, Level.PUBLIC, share, f"its name speaks of goods or shops; {why}"
        )
    level = Level.SENSITIVE if sort is Sort.FREE_TEXT else Level.INTERNAL
    return suggestion(sort, role, level, share, why)


@dataclass(frozen=True)
class _Count:
    """How many of `looked` values passed a test, of how many that look `alike`, and the mean chance of those that passed."""

    passed: int
    alike: int
    looked: int
    chance: float

    @classmethod
    def of(cls, kind: Kind, test: Test, values: Sequence[str]) -> _Count:
        chances = [found.chance for v in values if (found := test(v)) is not None]
        alike = len(values)
        if kind is Kind.PHONE:  # its chance is one among strings of digits
            alike = max(len(chances), sum(bool(_DIGITS.fullmatch(v)) for v in values))
        return cls(len(chances), alike, len(values), sum(chances) / len(chances) if chances else 1.0)

    @property
    def share(self) -> float:
        return self.passed / self.looked if self.looked else 0.0

    @property
    def beyond(self) -> float:
        """The share of the alike beyond chance; 0 where the shape is all there is."""
        if self.chance == 1 or not self.alike:
            return 0.0
        return max(0.0, (self.passed / self.alike - self.chance) / (1 - self.chance))


def _kind(named: Kind | None, counted: dict[Kind, _Count], values: Sequence[str]) -> tuple[Kind | None, str]:
    """The kind that name or values speak for, and why; None if neither does."""
    best = max(counted, key=lambda k: counted[k].beyond * counted[k].share)
    by_value = best if min(counted[best].beyond, counted[best].share) > _LIKELY else None
    if by_value is not None:
        told = _passed(by_value, counted[by_value])
        if named is None:
            return by_value, told
        if named is by_value:
            return by_value, f"its name says so, and {told}"
        return by_value, f"{told}, though its name speaks of {_name(named)}"
    if named is not None:
        told = _passed(named, counted[named]) if values else "it has no values"
        return named, f"its name speaks of {_name(named)}; {told}"
    for kind, count in counted.items():
        sure = count.beyond > _LIKELY or count.share > 10 * count.chance
        if count.passed >= 3 and count.share >= _SOME and sure:
            return kind, f"{_passed(kind, count)}; what the others are is not clear"
    return None, ""


def _sort(values: Sequence[str], uniqueness: float, dates: float) -> tuple[Sort, float, str]:
    """What a column without a kind is, the share of values that are, and why."""
    total = len(values)
    if dates > _LIKELY:
        return Sort.DATE, dates, f"{dates:.0%} of the values are dates: whoever knows the event knows the row"
    numbers = [
        v
        for v in values
        if re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?", v, re.IGNORECASE)
    ]
    share = len(numbers) / total
    codes = (
        sum(
            bool(re.fullmatch(r"[\w:/#-]{1,64}", v, re.ASCII)) and any(c.isdigit() for c in v) for v in values
        )
        / total
    )
    if total >= 20 and uniqueness >= _KEY and codes > 0.9:
        return Sort.KEY, codes, f"{uniqueness:.0%} of the values differ: each points at one row"
    if share > 0.9:
        return Sort.NUMBER, share, f"{share:.0%} of the values are numbers"
    long = sum(len(v) >= 30 or (len(v) >= 12 and not v.isascii()) for v in values) / total
    if long > 0.2 and uniqueness > 0.2:
        return (
            Sort.FREE_TEXT,
            long,
            f"{long:.0%} of the values are long texts, and anything may stand in them",
        )
    if uniqueness <= 0.5:
        return Sort.CATEGORY, 1.0, f"the values repeat: {uniqueness:.1%} of them differ"
    return Sort.TEXT, 1.0, f"{uniqueness:.0%} of the values differ, of no kind that is known here"


def _holds(shape: re.Pattern[str], value: str, test: Test) -> bool:
    """Whether an identifier stands in a longer text."""
    parts = (found[0].strip("。.!?！？'\"") for found in shape.finditer(value))
    return any(len(part) < len(value) and test(part) is not None for part in parts)


def _passed(kind: Kind, count: _Count) -> str:
    by_chance = (
        "which such texts are by their shape alone"
        if count.chance == 1
        else f"by chance {count.chance:.2g} would"
    )
    told = f"{_of(count.passed, count.looked)} pass as {_name(kind)}"
    return f"{told} ({by_chance})" if count.passed else told


def _of(some: int, all_: int) -> str:
    return f"{some:,} of {all_:,} values"


def _name(kind: Kind) -> str:
    words = {Kind.EMAIL: "e-mail address", Kind.RESIDENT_ID: "resident's number", Kind.IBAN: "IBAN"}
    text = words.get(kind, kind.replace("_", " "))
    return f"an {text}" if text[0] in "aeI" else f"a {text}"


def codes_of(column: pd.Series[Any]) -> tuple[npt.NDArray[np.int64], int]:
    """Codes from 0, −1 for missing ("" as well), and how many different values there are."""
    text = (
        column.map(clean) if column.dtype == object or pd.api.types.is_string_dtype(column.dtype) else column
    )
    codes, values = pd.factorize(text, use_na_sentinel=True)
    found = np.asarray(codes, dtype=np.int64)
    blank = (
        np.flatnonzero([isinstance(v, str) and v == "" for v in values])
        if text is not column
        else np.array([])
    )
    if blank.size:
        found = np.where(found == blank[0], -1, found)
    return found, len(values) - int(blank.size)
