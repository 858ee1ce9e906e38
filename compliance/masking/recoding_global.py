"""Global recoding: one level for each column, the best there is.

The loss of a node is the mean over rows of their labels' loss, where a row in a class that does not hold the
constraint is suppressed and loses 1. Wanted is the node of least loss that suppresses no more than the limit.

Nodes are visited in the order of B(v), the mean loss under v if nothing were suppressed, until B(v) reaches the
best loss found. That leaves out no better node:

- *B bounds the loss.* Weights add up to 1 and the loss of a label is at most 1, so a row loses at most 1 under v;
  suppressed, it loses exactly 1. So loss(v) = B(v) + Σ_suppressed (1 − loss of the row) / n ≥ B(v). All nodes
  after the first with B(v) ≥ best have loss ≥ B ≥ best.

A node is passed over without a look at its classes if one of the following holds. S(v) are the rows in classes of
fewer than k under v; all of them are suppressed, whatever the other models are.

- *Too many are suppressed.* If u is coarser than v or equal, every class of v lies within a class of u, so
  S(v) ⊇ S(u). If S(u) is over the limit, so is S(v): no node finer than u is admissible.
- *It would be no better.* loss(v) ≥ B(v) + (|S(u)|/n) · (1 − M(v)), with M(v) the greatest loss of a row under v.

As such u serve the nodes with two columns at their own levels and all others at the top: there are few of them, and
each bounds all nodes that agree with it on its two columns.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from .classes import Bools, Floats, Ints, in_large
from .lattice import Constraint, Lattice


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best node.

    Attributes:
        node: its number in the lattice.
        loss: 0 to 1.
        kept: tuples that are not suppressed, shape (tuples,).
        visited: nodes whose classes were looked at.
    """

    node: int
    loss: float
    kept: Bools
    visited: int


def recode(lattice: Lattice, constraint: Constraint, limit: float) -> Optimum | None:
    """The node of least loss that suppresses at most `limit` (0 to 1) of the rows, or None if there is none.

    Of nodes of equal loss, the first in the order of their bounds, then of their levels.
    """
    view = lattice.view()
    rows = view.weight.sum()
    least = lattice.node_losses(view.weight, view.at)
    suppressed = _least_suppressed(lattice, constraint.k) / rows
    bound = least + suppressed * np.maximum(1 - _greatest(lattice), 0)
    best: Optimum | None = None
    visited = 0
    for number in np.argsort(least, kind="stable"):
        if best is not None and least[number] >= best.loss:
            break
        if suppressed[number] > limit or (best is not None and bound[number] >= best.loss):
            continue
        visited += 1
        kept = view.holding(lattice.nodes[number], constraint)
        gone = np.flatnonzero(~kept)
        if view.weight[gone].sum() > limit * rows:
            continue
        spared = view.weight[gone] * (1 - lattice.row_losses(lattice.nodes[number], view.at[gone]))
        loss = float(least[number] + spared.sum() / rows)
        if best is None or loss < best.loss:
            best = Optimum(int(number), loss, kept, visited)
    return best


def _greatest(lattice: Lattice) -> Floats:
    """M of each node, shape (nodes,)."""
    found = np.zeros(len(lattice.nodes))
    for column, losses in enumerate(lattice.losses):
        found += losses.max(axis=1)[lattice.nodes[:, column]]
    return found


def _least_suppressed(lattice: Lattice, k: int) -> Floats:
    """How many rows each node suppresses at least, shape (nodes,): the most that one of its pairs of levels does."""
    view = lattice.view()
    top = lattice.nodes[-1]
    found = np.zeros(len(lattice.nodes))
    for pair in itertools.combinations(range(len(top)), min(2, len(top))):
        ids, place = np.unique(lattice.nodes[:, pair], axis=0, return_inverse=True)
        gone = np.zeros(len(ids))
        for at, levels in enumerate(ids):
            node: Ints = top.copy()
            node[list(pair)] = levels
            keys, space = view.keys(node)
            gone[at] = view.weight[~in_large(keys, space, view.weight, k)].sum()
        np.maximum(found, gone[place.ravel()], out=found)
    return found
