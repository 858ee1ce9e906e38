"""A counting study: how many customers fall in each cell of a coarse, public table; data, never code.

One secure sum over all cells. A customer falls in one, so the L2 sensitivity is 1 whatever their number (√2 with a
quantity). What is released is the noisy count of each cell that passes the union gate (`compliance.gate`).

::

    title: Customers by recency and orders
    author: dana
    purpose: dpv:CustomerRelationshipManagement
    count:
      as_of: 1998-04-01                                # an order log; left out: a table of customers
      by:
        - {name: recency, cuts: [30, 90, 180]}         # days: under 30, 30 to under 90, …
        - {name: orders, cuts: [2, 5]}
      of: {name: amount, upper: 500}                   # its sum and mean in each cell, too
    k: 20                                              # left out: the treaty's min_group
    privacy: {epsilon: 0.5}

A table of customers is counted by its columns: `levels`, values that stand for themselves; `groups`, a level of a
hierarchy, label → the values under it (or `hierarchy: FILE.csv` and `level: N`, which become that); or `cuts` of a number.
"""

from __future__ import annotations

import math
from datetime import date
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from ..compliance.masking import hierarchies
from ..compliance.treaty import Document, Name, Treaty, explain
from ..documents import Envelope
from ..errors import InputError, Refused
from .modes import Distributed, ModeField
from .rounds import RoundPlan, Shape, Task, count_shape, plan_round
from .schema import Column, Day, FeatureName, Table

TASK = "count"
MAX_CELLS = 16_384
Text = Annotated[str, Field(min_length=1, max_length=200)]


class Key(Document):
    """One side of the table: a column, or a quantity of the order log, and the groups it is cut into.

    `other` is the label of everything else, a missing value included. Without it a node refuses a table with a value
    that has no group: a hierarchy that lacks a value ends the study, and no customer is left out unseen.
    """

    column: Column | None = None
    name: FeatureName | None = None
    levels: tuple[Text, ...] | None = Field(default=None, min_length=1, max_length=1000)
    groups: dict[Text, tuple[Text, ...]] | None = Field(default=None, min_length=1, max_length=1000)
    cuts: tuple[float, ...] | None = Field(default=None, min_length=1, max_length=200)
    other: Text | None = None

    @field_validator("levels", "cuts", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("groups", mode="before")
    @classmethod
    def _lists(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.column is None) == (self.name is None):
            raise ValueError("say either column or name")
        if sum(x is not None for x in (self.levels, self.groups, self.cuts)) != 1:
            raise ValueError(f"{self.called}: say exactly one of levels, groups, cuts")
        if self.name is not None and self.cuts is None:
            raise ValueError(f"{self.name}: a quantity of the order log is grouped by cuts")
        if self.cuts is not None and any(not a < b for a, b in pairwise(self.cuts)):
            raise ValueError(f"{self.called}: cuts must rise")
        values = [v for group in (self.groups or {}).values() for v in group]
        if any(not group for group in (self.groups or {}).values()):
            raise ValueError(f"{self.called}: a group without a value")
        if len(set(values)) != len(values):
            raise ValueError(f"{self.called}: a value is in two groups")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"{self.called}: a label is there twice")
        return self

    @property
    def called(self) -> str:
        """What the column or quantity is called."""
        return self.column or self.name or ""

    @property
    def labels(self) -> tuple[str, ...]:
        """The groups' labels, in order; `other` is the last. Those of `groups` by code point: signed JSON has no order."""
        if self.cuts is not None:
            first, *rest = (f"{c:.12g}" for c in self.cuts)
            between = tuple(f"{a} to < {b}" for a, b in pairwise([first, *rest]))
            own: tuple[str, ...] = (f"< {first}", *between, f">= {[first, *rest][-1]}")
        else:
            own = self.levels if self.levels is not None else tuple(sorted(self.groups or {}))
        return own if self.other is None else (*own, self.other)

    def group_of(self, value: str) -> int:
        """The place of a text's group in `labels`; −1 if it has none."""
        return self._places.get(value, -1 if self.other is None else len(self.labels) - 1)

    @property
    def _places(self) -> dict[str, int]:
        if self.groups is not None:
            return {v: i for i, label in enumerate(sorted(self.groups)) for v in self.groups[label]}
        return {v: i for i, v in enumerate(self.levels or ())}


class Measured(Document):
    """A quantity whose sum and mean are released with each count; a customer's own lies in [lower, upper] or is put there.

    Of several rows of a customer the mean counts.
    """

    column: Column | None = None
    name: FeatureName | None = None
    lower: float = Field(default=0.0, ge=-1e12, le=1e12)
    upper: float = Field(ge=-1e12, le=1e12)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.column is None) == (self.name is None):
            raise ValueError("say either column or name")
        if not self.lower < self.upper:
            raise ValueError("bounds must satisfy lower < upper")
        return self

    @property
    def called(self) -> str:
        """What the column or quantity is called."""
        return self.column or self.name or ""

    @property
    def middle(self) -> float:
        return (self.lower + self.upper) / 2

    @property
    def half(self) -> float:
        """Half of the range: what a step of 1 from the middle is."""
        return (self.upper - self.lower) / 2


class Count(Document):
    """What is counted, by what."""

    by: tuple[Key, ...] = Field(min_length=1, max_length=8)
    of: Measured | None = None
    as_of: Day | None = Field(
        default=None, description="an order log is read up to this day; without it, a table of customers"
    )

    @field_validator("by", mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [key.called for key in self.by]
        if len(set(names)) != len(names):
            raise ValueError("by: a column or quantity is there twice")
        of_orders = [key.name is not None for key in self.by]
        of_orders += [] if self.of is None else [self.of.name is not None]
        if any(of != (self.as_of is not None) for of in of_orders):
            raise ValueError("name goes with as_of and an order log, column with a table of customers")
        if self.as_of is not None:
            date.fromisoformat(self.as_of)
        if not 2 <= self.cells <= MAX_CELLS:
            raise ValueError(
                f"by: {self.cells} cells; a table has from 2 to {MAX_CELLS}: take coarser groups"
            )
        return self

    @property
    def columns(self) -> list[str]:
        """What is read of a customer: the groups' columns or quantities, and the one that is measured."""
        return list(dict.fromkeys(k.called for k in (*self.by, *(() if self.of is None else (self.of,)))))

    @property
    def cells(self) -> int:
        """How many cells the table has."""
        return math.prod(len(key.labels) for key in self.by)

    def labels(self) -> list[tuple[str, ...]]:
        """Each cell's labels, in the order of the sum: the last key runs fastest."""
        return list(product(*(key.labels for key in self.by)))


class CountPlan(Document):
    title: str = Field(min_length=1, max_length=200)
    author: Name
    purpose: str
    task: Literal["count"] = "count"
    table: Table = Table()
    count: Count
    trip_seconds: float = Field(default=20.0, ge=0.05, le=3600, description="deadline of one trip")

    @property
    def shape(self) -> Shape:
        """One customer's row."""
        return count_shape(self.count.cells, of=self.count.of is not None)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What each secure sum is for: there is one."""
        return ("count",)

    @property
    def sent(self) -> int:
        """How many numbers a node is sent before the round: none."""
        return 0

    @property
    def reads_orders(self) -> bool:
        """Whether the silos' table is an order log, and not a table of customers."""
        return self.count.as_of is not None


class CountPrivacy(Document):
    """What one customer pays at most, and the integers that achieve it; see `study.Privacy`."""

    mode: ModeField = Distributed()
    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(gt=0, lt=1e-3)
    scale_bits_count: int = Field(ge=0, le=30)
    sigma_count: int = Field(ge=4, lt=2**30)


class CountDraftPrivacy(Document):
    mode: ModeField = Distributed()
    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(default=1e-5, gt=0, lt=1e-3)


class CountDraft(CountPlan):
    """What a scientist writes; see `examples/counts.yaml`."""

    k: int | None = Field(default=None, ge=2, le=10**6, description="the treaty's min_group by default")
    privacy: CountDraftPrivacy


class CountStudy(CountPlan):
    """A draft fitted to a treaty; its envelope is signed by the author."""

    treaty: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: str
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    k: int = Field(ge=2, le=10**6, description="fewer people than this are no group that may be shown")
    privacy: CountPrivacy

    @property
    def rounds(self) -> int:
        """Secure sums in all."""
        return len(self.tasks)

    def round(self, number: int, treaty: Treaty) -> RoundPlan:
        """The plan of the one round."""
        if number != 1:
            raise Refused("UNKNOWN_ROUND", f"a counting study has one round, and no round {number}")
        own = self.privacy
        return plan_round(treaty, 1, "count", self.shape, own.mode, own.scale_bits_count, own.sigma_count)

    def envelope(self) -> Envelope:
        return Envelope("study", self.model_dump(mode="json"))


def count_draft(content: Any, beside: Path, what: str = "study draft") -> CountDraft:
    """A draft from parsed YAML or JSON.

    Args:
        beside: where hierarchies it names are looked for.

    Raises:
        InputError: a field that is missing, unknown or out of range, or no such level of a hierarchy.
    """
    try:
        return CountDraft.model_validate(_with_hierarchies(content, beside))
    except ValidationError as error:
        raise explain(error, what) from error


def _with_hierarchies(content: Any, beside: Path) -> Any:
    """Levels of hierarchies in files, as groups: a signed study names no file."""
    count = content.get("count") if isinstance(content, dict) else None
    if not isinstance(count, dict) or not isinstance(count.get("by"), list):
        return content
    by = [
        _grouped(key, beside) if isinstance(key, dict) and "hierarchy" in key else key for key in count["by"]
    ]
    return content | {"count": count | {"by": by}}


def _grouped(key: dict[str, Any], beside: Path) -> dict[str, Any]:
    file, level = key["hierarchy"], key.get("level")
    if not isinstance(file, str):
        raise InputError("count.by: hierarchy is the name of a .csv file")
    tree = hierarchies.read(beside / file)
    if type(level) is not int or not 0 <= level < tree.levels:
        raise InputError(
            f"count.by: {file} has no level {level!r}",
            remedy=f"levels go from 0 (the values) to {tree.levels - 1}",
        )
    groups: dict[str, list[str]] = {label: [] for label in tree.labels[level]}
    for value, code in zip(tree.values, tree.codes[level], strict=True):
        groups[tree.labels[level][code]].append(value)
    return {k: v for k, v in key.items() if k not in ("hierarchy", "level")} | {"groups": groups}
