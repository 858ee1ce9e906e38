"""Rows that look alike: distinct tuples of quasi-identifiers, and classes of tuples under the same labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from .tables import Coded

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_SPACE = 1 << 16  # a table of so many counters is quicker than hashing
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: Knuth's multiplicative hash
_BLOCK = 1 << 22  # counters of sensitive values in memory at a time


def grouped(columns: Sequence[tuple[Ints, int]], rows: int) -> tuple[Ints, int]:
    """A dense id for every distinct tuple of codes: ids of shape (rows,), and how many there are.

    Args:
        columns: codes of shape (rows,) with the number of values each may have.
    """
    ids, space = np.zeros(rows, np.int64), 1
    for codes, cardinality in columns:
        if space * max(cardinality, 1) >= 1 << 62:
            ids, space = dense(ids, space)
        ids = ids * cardinality + codes
        space *= max(cardinality, 1)
    return dense(ids, space)


def dense(keys: Ints, space: int) -> tuple[Ints, int]:
    """Keys below `space` as ids 0, 1, …, none left out."""
    if space <= max(_SPACE, 4 * len(keys)):
        there = np.zeros(space, bool)
        there[keys] = True
        return (np.cumsum(there) - 1)[keys], int(there.sum())
    ids, distinct = pd.factorize(keys)
    return ids.astype(np.int64, copy=False), len(distinct)


def in_large(keys: Ints, space: int, weight: Floats, least: int) -> Bools:
    """Whether each key's total weight is `least` or more; exact.

    Where the keys are sparse, buckets of several keys are weighed first: a light bucket holds no heavy key.
    """
    if space <= max(_SPACE, 8 * len(keys)):
        heavy = np.bincount(keys, weight, space) >= least
        return np.asarray(heavy[keys])
    bits = max((2 * len(keys)).bit_length(), 4)
    buckets = ((keys.view(np.uint64) * _MIX) >> np.uint64(64 - bits)).view(np.int64)
    inside = (np.bincount(buckets, weight, 1 << bits) >= least)[buckets]
    chosen = np.flatnonzero(inside)
    ids, _ = pd.factorize(keys[chosen])
    inside[chosen] = (np.bincount(ids, weight[chosen]) >= least)[ids] if len(ids) else False
    return np.asarray(inside)


@dataclass(frozen=True, eq=False)
class Pairs:
    """How often which value of a sensitive column occurs with which tuple."""

    tuples: Ints
    values: Ints
    counts: Ints
    cardinality: int


@dataclass(frozen=True, eq=False)
class Tuples:
    """The distinct tuples of quasi-identifiers of a table, and of a population it was drawn from.

    Attributes:
        codes: of each column, shape (tuples,).
        of_row: which tuple each row of the table is, shape (rows,).
        weight: rows of the table with each tuple, shape (tuples,); 0 for one only the population has.
        population: people of the population with each tuple, or None.
        sensitive: of each sensitive column.
    """

    codes: tuple[Ints, ...]
    of_row: Ints
    weight: Ints
    population: Ints | None
    sensitive: Mapping[str, Pairs]

    @classmethod
    def of(
        cls,
        quasi: Sequence[tuple[Ints, int]],
        sensitive: Mapping[str, Coded],
        rows: int,
        people: Sequence[Ints] | None = None,
    ) -> Tuples:
        """From codes of the table's columns, and those of a population in the same order if there is one."""
        joined = (
            list(quasi)
            if people is None
            else [(np.concatenate([t, p]), c) for (t, c), p in zip(quasi, people, strict=True)]
        )
        total = len(joined[0][0])
        ids, count = grouped(joined, total)
        first = np.empty(count, np.int64)
        first[ids[::-1]] = np.arange(total)[::-1]
        of_row = ids[:rows]
        return cls(
            tuple(codes[first] for codes, _ in joined),
            of_row,
            np.bincount(of_row, minlength=count),
            None if people is None else np.bincount(ids[rows:], minlength=count),
            {name: _pairs(of_row, column) for name, column in sensitive.items()},
        )

    @property
    def rows(self) -> int:
        return len(self.of_row)

    def __len__(self) -> int:
        return len(self.weight)


def _pairs(of_row: Ints, column: Coded) -> Pairs:
    cardinality = len(column.values)
    keys, counts = np.unique(of_row * cardinality + column.codes, return_counts=True)
    return Pairs(keys // cardinality, keys % cardinality, counts, cardinality)


@dataclass(frozen=True, eq=False)
class Counts:
    """What a privacy model looks at, for some classes.

    Attributes:
        size: rows of each class, shape (classes,).
        values: of each sensitive column, rows by class and value, shape (classes, values).
        overall: of each sensitive column, the part of the whole table with each value, shape (values,).
        population: people of the population who fit each class, or None.
    """

    size: Floats
    values: Mapping[str, Floats]
    overall: Mapping[str, Floats]
    population: Floats | None = None

    def shares(self, column: str) -> Floats:
        """The part of each class with each value, shape (classes, values)."""
        return self.values[column] / self.size[:, None]


def overall(pairs: Pairs, tuples: Bools | None = None) -> Floats:
    """The part of the table, or of its rows with some tuples, with each value."""
    chosen = slice(None) if tuples is None else tuples[pairs.tuples]
    counts = np.bincount(pairs.values[chosen], pairs.counts[chosen], pairs.cardinality)
    return np.asarray(counts / max(counts.sum(), 1.0), np.float64)


def counted(
    group: Ints,
    size: Floats,
    sensitive: Mapping[str, Pairs],
    reference: Mapping[str, Floats],
    population: Floats | None = None,
) -> list[Counts]:
    """The counts of all classes, in blocks that fit into memory, in order.

    Args:
        group: the class of each tuple, shape (tuples,); −1 for a tuple in none.
        size: rows of each class, shape (classes,).
        sensitive: the columns a model looks at.
        reference: `Counts.overall`.
        population: `Counts.population`.
    """
    widest = max((pairs.cardinality for pairs in sensitive.values()), default=1)
    step = max(_BLOCK // widest, 1)
    blocks = []
    for start in range(0, len(size), step):
        end = min(start + step, len(size))
        values = {name: _histogram(group, pairs, start, end) for name, pairs in sensitive.items()}
        blocks.append(
            Counts(size[start:end], values, reference, None if population is None else population[start:end])
        )
    return blocks


def _histogram(group: Ints, pairs: Pairs, start: int, end: int) -> Floats:
    place = group[pairs.tuples]
    inside = (place >= start) & (place < end)
    keys = (place[inside] - start) * pairs.cardinality + pairs.values[inside]
    weight = pairs.counts[inside].astype(np.float64)
    counts = np.bincount(keys, weight, (end - start) * pairs.cardinality)
    return np.asarray(counts.reshape(end - start, pairs.cardinality), np.float64)


def super_columns(cardinalities: Sequence[int], limit: int) -> list[list[int]]:
    """Columns put together, in order, so that no bundle has more than `limit` combinations of values."""
    bundles: list[list[int]] = []
    space = math.inf
    for column, cardinality in enumerate(cardinalities):
        if space * cardinality > limit:
            bundles.append([])
            space = 1
        bundles[-1].append(column)
        space *= cardinality
    return bundles
