"""What a released table gives away, measured from the table as it is and nothing else.

Classes are the rows with the same labels in all quasi-identifiers. A missing value is a value, ``*`` is a label like
others: rows that are suppressed to ``*`` and stay in the table are a class that counts. The frame's index and
order play no part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ...errors import InputError
from .classes import Bools, Counts, Floats, Ints, Pairs, counted, grouped, overall
from .domains import Domain
from .models import Closeness, DistinctDiversity, EntropyDiversity, Metric, Model, Presence, all_hold
from .tables import Coded, code


@dataclass(frozen=True, eq=False)
class Classes:
    """A released table, class by class.

    Attributes:
        quasi, sensitive: its columns as codes.
        of_row: the class of each row, shape (rows,).
        size: rows of each class, shape (classes,).
        fitting: people of a population whom each class's labels cover, or None.
    """

    quasi: Mapping[str, Coded]
    sensitive: Mapping[str, Coded]
    of_row: Ints
    size: Floats
    fitting: Floats | None = None

    @classmethod
    def of(
        cls,
        table: pd.DataFrame,
        quasi: Sequence[str],
        sensitive: Sequence[str] = (),
        arrange: Callable[[str, Coded], Coded] = lambda _, coded: coded,
    ) -> Classes:
        """Group a table; `arrange` may put a sensitive column's values into another order.

        Raises:
            InputError: a column is not there, or the table has no rows.
        """
        if lacking := [name for name in (*quasi, *sensitive) if name not in table.columns]:
            raise InputError(f"the released table has no column {lacking[0]!r}")
        if table.empty:
            raise InputError("the released table has no rows")
        coded = {name: code(table[name], name, ()) for name in quasi}
        of_row, count = grouped([(c.codes, len(c.values)) for c in coded.values()], len(table))
        size = np.bincount(of_row, minlength=count).astype(np.float64)
        return cls(
            coded, {name: arrange(name, code(table[name], name, ())) for name in sensitive}, of_row, size
        )

    def __len__(self) -> int:
        return len(self.size)

    def labels(self, name: str) -> Ints:
        """The code of each class's label in a column, shape (classes,)."""
        found = np.empty(len(self), np.int64)
        found[self.of_row] = self.quasi[name].codes
        return found

    def counts(self, *names: str) -> list[Counts]:
        """What models look at, of these sensitive columns, in blocks of classes."""
        pairs = {}
        for name in names:
            column = self.sensitive[name]
            width = len(column.values)
            keys, rows = _tallied(self.of_row * width + column.codes, len(self) * width)
            pairs[name] = Pairs(keys // width, keys % width, rows, width)
        reference = {name: overall(found) for name, found in pairs.items()}
        return counted(np.arange(len(self)), self.size, pairs, reference, self.fitting)

    def failing(self, models: Sequence[Model]) -> Bools:
        """Which classes do not hold all models, shape (classes,)."""
        used = {model.column for model in models if model.column is not None}
        return ~all_hold(models, self.counts(*sorted(used)))


def _tallied(keys: Ints, space: int) -> tuple[Ints, Ints]:
    """The distinct keys below `space`, and how often each occurs."""
    if space > 8 * len(keys):
        return np.unique(keys, return_counts=True)
    tally = np.bincount(keys, minlength=space)
    there = np.flatnonzero(tally)
    return there, tally[there]


# ── of a sensitive column ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Disclosure:
    """What the classes tell of one sensitive column; each figure is that of the worst class.

    Attributes:
        distinct_l: different values.
        entropy_l: exp of the entropy.
        t: distance to the whole table: all values 1 apart, or as the policy says.
        alpha: the part of the class with its most frequent value.
        beta: (p − q)/q, the relative gain in the part of a value (Cao and Karras 2012, PVLDB 5(11)).
        delta: |log p/q|, infinite if a value is not in every class (Brickell and Shmatikov 2008, KDD).
    """

    distinct_l: int
    entropy_l: float
    t: float
    alpha: float
    beta: float
    delta: float


def disclosure(classes: Classes, name: str, distance: Closeness | None = None) -> Disclosure:
    """Measure one sensitive column."""
    blocks = classes.counts(name)
    distance = distance or Closeness(name, 1.0, Metric.EQUAL)

    def least(score: Callable[[Counts], Floats]) -> float:
        return float(min(score(block).min() for block in blocks))

    def most(score: Callable[[Counts], Floats]) -> float:
        return float(max(score(block).max() for block in blocks))

    return Disclosure(
        distinct_l=int(least(DistinctDiversity(name, 1).score)),
        entropy_l=least(EntropyDiversity(name, 1).score),
        t=most(distance.score),
        alpha=most(lambda block: block.shares(name)),
        beta=most(lambda block: block.shares(name) / block.overall[name] - 1),
        delta=most(lambda block: _log_ratios(block.shares(name), block.overall[name])),
    )


def _log_ratios(shares: Floats, overall: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.abs(np.log(shares / overall))


# ── of who is who ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Risk:
    """How likely a record's person is found by who knows the quasi-identifiers.

    Attributes:
        highest: of any record.
        average: over records.
        above: the part of records whose risk is above `threshold`.
    """

    highest: float
    average: float
    above: float
    threshold: float


def prosecutor(classes: Classes, threshold: float) -> Risk:
    """The attacker knows that the person is in the table: 1/size of the class."""
    return _risk(1 / classes.size, classes.size, threshold)


def journalist(classes: Classes, threshold: float) -> Risk | None:
    """The attacker knows a population the table was drawn from: 1/people who fit. None without one."""
    if classes.fitting is None:
        return None
    return _risk(1 / np.maximum(classes.fitting, 1), classes.size, threshold)


def marketer(classes: Classes) -> float:
    """The part of all records an attacker who links everybody gets right: classes/rows, or Σ size/fitting / rows."""
    fitting = classes.size if classes.fitting is None else np.maximum(classes.fitting, 1)
    return float((classes.size / fitting).sum() / classes.size.sum())


def _risk(of_class: Floats, size: Floats, threshold: float) -> Risk:
    rows = size.sum()
    above = size[of_class > threshold * (1 + 1e-12)].sum()
    return Risk(float(of_class.max()), float((of_class * size).sum() / rows), float(above / rows), threshold)


def presence(classes: Classes, people: int) -> tuple[float, float]:
    """The least and greatest probability that one of `people` is in the table, given a class they fit.

    Least is 0 if fewer people fit the classes than there are.
    """
    found = np.concatenate([Presence(0, 1).score(block) for block in classes.counts()])
    uncovered = classes.fitting is not None and classes.fitting.sum() < people
    return (0.0 if uncovered else float(found.min())), float(found.max())


def fitting(classes: Classes, domains: Sequence[Domain], people: Sequence[Ints]) -> Floats:
    """How many people the labels of each class cover, shape (classes,).

    Reads the labels alone: classes × distinct people, bit by bit.

    Args:
        domains: of the quasi-identifiers.
        people: their codes in these domains, column by column.
    """
    ids, count = grouped([(c, len(d.values)) for c, d in zip(people, domains, strict=True)], len(people[0]))
    weight = np.bincount(ids, minlength=count).astype(np.float64)
    first = np.empty(count, np.int64)
    first[ids] = np.arange(len(ids))
    covers = [np.array([d.covers(label) for label in classes.quasi[d.name].values]) for d in domains]
    labels = [classes.labels(d.name) for d in domains]
    found = np.empty(len(classes))
    step = max((1 << 24) // max(count, 1), 1)
    for start in range(0, len(classes), step):
        fits = np.ones((min(step, len(classes) - start), count), bool)
        for matrix, label, codes in zip(covers, labels, people, strict=True):
            fits &= matrix[label[start : start + step]][:, codes[first]]
        found[start : start + step] = (fits * weight).sum(axis=1)
    return found
