"""Privacy models: what must hold of every class of rows that look alike, as a measure and as a condition.

Each model gives a class its score (see `Model.score`) and says whether it holds. A class holds a policy if
all its models hold. Sources: k, Samarati and Sweeney 1998; ℓ, Machanavajjhala et al. 2007 (TKDD 1(1));
t, Li, Li and Venkatasubramanian 2007 (ICDE); δ-presence, Nergiz, Atzori and Clifton 2007 (SIGMOD).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from ...errors import InputError
from .classes import Bools, Counts, Floats
from .hierarchies import Hierarchy

_ROUNDING = 1e-9


class Model(Protocol):
    """A condition on classes."""

    @property
    def column(self) -> str | None:
        """The sensitive column it is about, if any."""

    def score(self, counts: Counts) -> Floats:
        """What is bounded, shape (classes,)."""

    def holds(self, counts: Counts) -> Bools:
        """Whether each class holds, shape (classes,)."""


@dataclass(frozen=True)
class KAnonymity:
    """At least k rows."""

    k: int
    column: None = None

    def __post_init__(self) -> None:
        _positive("k", self.k)

    def score(self, counts: Counts) -> Floats:
        """Rows."""
        return counts.size

    def holds(self, counts: Counts) -> Bools:
        return counts.size >= self.k


@dataclass(frozen=True)
class DistinctDiversity:
    """At least l different values."""

    column: str
    l: float

    def __post_init__(self) -> None:
        _positive("l", self.l)

    def score(self, counts: Counts) -> Floats:
        """Different values."""
        return np.asarray((counts.values[self.column] > 0).sum(axis=1), np.float64)

    def holds(self, counts: Counts) -> Bools:
        return self.score(counts) >= self.l


@dataclass(frozen=True)
class EntropyDiversity:
    """An entropy of at least log l."""

    column: str
    l: float

    def __post_init__(self) -> None:
        _positive("l", self.l)

    def score(self, counts: Counts) -> Floats:
        """exp(entropy): as many equally frequent values would have it."""
        shares = counts.shares(self.column)
        logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        return np.asarray(np.exp(-(shares * logs).sum(axis=1)), np.float64)

    def holds(self, counts: Counts) -> Bools:
        return self.score(counts) >= self.l * (1 - _ROUNDING)


@dataclass(frozen=True)
class RecursiveDiversity:
    """(c, l): the most frequent value is rarer than c times all from the l-th most frequent on."""

    column: str
    l: int
    c: float

    def __post_init__(self) -> None:
        _positive("l", self.l)
        if not self.c > 0:
            raise InputError(f"c must be above 0, not {self.c}")

    def score(self, counts: Counts) -> Floats:
        """The most frequent, over the sum from the l-th on: c must be above it. Infinite if there is no l-th."""
        falling = -np.sort(-counts.values[self.column], axis=1)
        tail = falling[:, self.l - 1 :].sum(axis=1)
        found: Floats = np.full(len(tail), np.inf)
        np.divide(falling[:, 0], tail, out=found, where=tail > 0)
        return found

    def holds(self, counts: Counts) -> Bools:
        return self.score(counts) < self.c


class Metric(StrEnum):
    """The ground distance between two sensitive values."""

    EQUAL = "equal"
    ORDERED = "ordered"
    HIERARCHICAL = "hierarchical"


@dataclass(frozen=True)
class Closeness:
    """At most t of earth mover's distance between the values of the class and those of the whole table.

    Args:
        metric: EQUAL, all values 1 apart; ORDERED, by their places among the sorted values;
            HIERARCHICAL, by the height of the lowest label they share.
        hierarchy: of the column's values in their order, for HIERARCHICAL.
    """

    column: str
    t: float
    metric: Metric = Metric.EQUAL
    hierarchy: Hierarchy | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.t <= 1:
            raise InputError(f"t must be from 0 to 1, not {self.t}")
        if (self.metric is Metric.HIERARCHICAL) != (self.hierarchy is not None):
            raise InputError(
                f"{self.column}: a hierarchical distance needs a hierarchy, and no other takes one"
            )

    def score(self, counts: Counts) -> Floats:
        """The distance, 0 to 1."""
        extra = counts.shares(self.column) - counts.overall[self.column]
        if self.metric is Metric.EQUAL:
            return np.asarray(np.abs(extra).sum(axis=1) / 2, np.float64)
        if self.hierarchy is None:
            return np.asarray(
                np.abs(extra.cumsum(axis=1)).sum(axis=1) / max(extra.shape[1] - 1, 1), np.float64
            )
        return _up_the_tree(extra, self.hierarchy)

    def holds(self, counts: Counts) -> Bools:
        return self.score(counts) <= self.t + _ROUNDING


def _up_the_tree(extra: Floats, hierarchy: Hierarchy) -> Floats:
    """Li et al. 2007, section 5.2: at a node of height h, what its children can even out costs h/H each."""
    cost, top = np.zeros(len(extra)), max(hierarchy.levels - 1, 1)
    below = extra
    for level in range(1, hierarchy.levels):
        parents = np.zeros(len(hierarchy.labels[level - 1]), np.int64)
        parents[hierarchy.codes[level - 1]] = hierarchy.codes[level]
        child_of = np.eye(len(hierarchy.labels[level]))[parents]  # (children, parents)
        too_many, too_few = np.maximum(below, 0) @ child_of, np.maximum(-below, 0) @ child_of
        cost += np.minimum(too_many, too_few).sum(axis=1) * level / top
        below = below @ child_of
    cost += np.abs(below).sum(axis=1) / 2  # several labels at the last level lie 1 apart
    return cost


@dataclass(frozen=True)
class Presence:
    """Whoever fits a class is in the table with a probability from `low` to `high`.

    A person of the population who fits several classes, as local recoding allows, is looked at in each.
    """

    low: float
    high: float
    column: None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise InputError(f"presence must be 0 ≤ low ≤ high ≤ 1, not {self.low} to {self.high}")

    def score(self, counts: Counts) -> Floats:
        """Rows over people who fit; infinite if the population has fewer of them than the table.

        Raises:
            InputError: there is no population.
        """
        if counts.population is None:
            raise InputError("presence needs a population table")
        part = counts.size / np.maximum(counts.population, 1)
        return np.where(counts.size > counts.population, np.inf, part)

    def holds(self, counts: Counts) -> Bools:
        found = self.score(counts)
        return (found >= self.low - _ROUNDING) & (found <= self.high + _ROUNDING)


def all_hold(models: Sequence[Model], counts: Sequence[Counts]) -> Bools:
    """Whether every model holds, for all classes of the blocks in order."""
    blocks = [np.logical_and.reduce([m.holds(block) for m in models]) for block in counts]
    return np.concatenate(blocks) if blocks else np.zeros(0, bool)


def _positive(name: str, value: float) -> None:
    if not value >= 1:
        raise InputError(f"{name} must be 1 or more, not {value}")
