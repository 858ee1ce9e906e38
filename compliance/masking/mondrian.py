"""Mondrian: a table cut in two along one ordered column, and each part again, while both halves hold.

LeFevre, DeWitt and Ramakrishnan 2006 (ICDE, "Mondrian Multidimensional k-Anonymity"), strict: rows with equal
values stay together. Differences: every part of one depth is cut in one pass; of all columns that can be
cut, the one is taken that leaves the least loss in the two halves, where the paper takes the widest; and a half
must hold all models, not k alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from .classes import Bools, Floats, Ints
from .domains import OR, TO, Domain
from .lattice import Constraint


def partition(domains: Sequence[Domain], constraint: Constraint) -> Ints | None:
    """The part of each tuple, 0, 1, …, shape (tuples,); None if not even the whole table holds."""
    tuples = constraint.tuples
    part, parts = np.zeros(len(tuples), np.int64), 1
    everybody = np.arange(len(tuples))
    weight = tuples.weight.astype(np.float64)
    if not constraint.hold(everybody, part, 1, weight).all():
        return None
    open_ = np.ones(1, bool)  # parts that were not found to be uncuttable
    while open_.any():
        at = np.flatnonzero(open_[part])
        ids, count = (np.cumsum(open_) - 1)[part[at]], int(open_.sum())
        cut = _best_cuts(domains, constraint, at, ids, count, weight[at])
        numbers = np.flatnonzero(open_)
        open_[numbers[~cut.found]] = False
        upper = cut.upper & cut.found[ids]
        fresh = parts + np.cumsum(cut.found) - 1  # the number of each part's upper half
        part[at[upper]] = fresh[ids[upper]]
        added = int(cut.found.sum())
        open_ = np.concatenate([open_, np.ones(added, bool)])
        parts += added
    return part


@dataclass(frozen=True, eq=False)
class _Cuts:
    """Of each part, whether it can be cut; of each tuple, whether it goes into the upper half."""

    found: Bools
    upper: Bools


def _best_cuts(
    domains: Sequence[Domain], constraint: Constraint, at: Ints, ids: Ints, count: int, weight: Floats
) -> _Cuts:
    least = np.full(count, np.inf)
    upper = np.zeros(len(at), bool)
    for column in range(len(domains)):
        codes = constraint.tuples.codes[column][at]
        for threshold in _medians(codes, ids, count, weight):
            above = codes > threshold[ids]
            halves = 2 * ids + above
            hold = constraint.hold(at, halves, 2 * count, weight).reshape(count, 2).all(axis=1)
            if not hold.any():
                continue
            cost = np.where(hold, _cost(domains, constraint, at, halves, count, weight), np.inf)
            better = cost < least
            least[better] = cost[better]
            upper = np.where(better[ids], above, upper)
    return _Cuts(np.isfinite(least), upper)


def _medians(codes: Ints, ids: Ints, count: int, weight: Floats) -> tuple[Ints, Ints]:
    """Two places to cut each part: above its median, and below it."""
    span = int(codes.max()) + 1
    order = np.argsort(ids * span + codes, kind="stable")
    through = np.cumsum(weight[order])
    ends = np.cumsum(np.bincount(ids, minlength=count)) - 1
    totals = through[ends]
    middle = (np.concatenate([[0.0], totals[:-1]]) + totals) / 2
    medians = codes[order[np.minimum(np.searchsorted(through, middle), ends)]]
    return medians, medians - 1


def _cost(
    domains: Sequence[Domain], constraint: Constraint, at: Ints, halves: Ints, count: int, weight: Floats
) -> Floats:
    """What each part would lose when cut: extents of its halves, times their rows."""
    sizes = np.bincount(halves, weight, 2 * count)
    cost = np.zeros(2 * count)
    for column, domain in enumerate(domains):
        low, high = extremes(constraint.tuples.codes[column][at], halves, 2 * count)
        extent = np.minimum(domain.positions[high] - domain.positions[np.minimum(low, high)], 1.0)
        cost += domain.weight * extent
    return np.asarray((cost * sizes).reshape(count, 2).sum(axis=1), np.float64)


def extremes(codes: Ints, ids: Ints, count: int) -> tuple[Ints, Ints]:
    """The least and the greatest code of each group, shape (count,) both."""
    low, high = np.full(count, np.iinfo(np.int64).max), np.zeros(count, np.int64)
    np.minimum.at(low, ids, codes)
    np.maximum.at(high, ids, codes)
    return low, high


# ── labels ───────────────────────────────────────────────────────────────────────────────────────


def labels(domain: Domain, codes: Ints, part: Ints, *, sets: bool) -> tuple[Ints, tuple[str, ...]]:
    """One column's labels: a code for each tuple, shape (tuples,), and the texts.

    The label of a part tells which values are in it, as an interval ``20..29`` or, with `sets`, as ``a|b``;
    a single value is written as itself.

    Raises:
        InputError: a value that contains ``..`` or ``|`` and would make a label mean two things.
    """
    sign = OR if sets else TO
    if wrong := [value for value in domain.values if sign in value]:
        raise InputError(
            f"{domain.name}: {wrong[0]!r} contains {sign!r}, which joins the values of a label",
            remedy="rename it, or use another kind of label",
        )
    count, width = int(part.max()) + 1, len(domain.values)
    if sets:
        pairs = np.unique(part * width + codes)
        borders = np.searchsorted(pairs, np.arange(1, count) * width)
        texts = [sign.join(domain.values[v] for v in values) for values in np.split(pairs % width, borders)]
    else:
        ends = zip(*extremes(codes, part, count), strict=True)
        texts = [
            domain.values[low] if low == high else f"{domain.values[low]}{sign}{domain.values[high]}"
            for low, high in ends
        ]
    known = {text: code for code, text in enumerate(dict.fromkeys(texts))}
    return np.array([known[text] for text in texts])[part], tuple(known)
