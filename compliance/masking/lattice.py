"""The lattice of generalisation: a node is a level for each quasi-identifier.

Tuples are keyed under a node by one look-up for a bundle of columns, in a table as large as the bundle has
combinations of values, so that a node over eight columns costs three or four passes over the tuples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from .classes import Bools, Floats, Ints, Tuples, counted, dense, in_large, overall, super_columns
from .domains import Domain
from .models import KAnonymity, Model, Presence, all_hold

MAX_NODES = 1 << 18
_EXACT = 1 << 62  # products of label counts above it do not fit a key


@dataclass(frozen=True, eq=False)
class Constraint:
    """The models that a class must hold, with what they are measured against: k, and the others."""

    models: tuple[Model, ...]
    tuples: Tuples
    reference: Mapping[str, Floats]

    @classmethod
    def of(cls, models: Sequence[Model], tuples: Tuples) -> Constraint:
        """Measured against the whole of the table."""
        reference = {name: overall(pairs) for name, pairs in tuples.sensitive.items()}
        return cls(tuple(models), tuples, reference)

    @property
    def k(self) -> int:
        """The least number of rows."""
        return max((m.k for m in self.models if isinstance(m, KAnonymity)), default=1)

    @property
    def only_k(self) -> bool:
        return all(isinstance(m, KAnonymity) for m in self.models)

    def hold(self, at: Ints, ids: Ints, classes: int, weight: Floats) -> Bools:
        """Whether each of some classes holds, shape (classes,).

        Args:
            at: tuples, those of weight 0 for the population only.
            ids: the class of each, shape like `at`.
            weight: rows of each.
        """
        size = np.bincount(ids, weight, classes)
        if self.only_k:
            return size >= self.k
        group = np.full(len(self.tuples), -1)
        group[at] = np.where(weight > 0, ids, -1)
        people = self.tuples.population
        population = None if people is None else np.bincount(ids, people[at], classes).astype(np.float64)
        used = {m.column for m in self.models if m.column is not None}
        sensitive = {name: pairs for name, pairs in self.tuples.sensitive.items() if name in used}
        safe = np.maximum(size, 1)  # classes of nobody fail k whatever else they score
        blocks = counted(group, safe, sensitive, self.reference, population)
        return all_hold(self.models, blocks) & (size >= max(self.k, 1))

    @property
    def counts_population(self) -> bool:
        return any(isinstance(m, Presence) for m in self.models)


class Lattice:
    """All nodes over some columns, and tuples seen through them.

    Args:
        domains: the quasi-identifiers, in the tuples' order.

    Attributes:
        nodes: levels, shape (nodes, columns).
        losses: of each column, the part of a row's loss by level and value, shape (levels, values); they add
            up to 0 to 1 over the columns, weights counted.

    Raises:
        InputError: more than `MAX_NODES` nodes.
    """

    def __init__(self, domains: Sequence[Domain], tuples: Tuples) -> None:
        depths = [domain.hierarchy.levels for domain in domains]
        if (count := math.prod(depths)) > MAX_NODES:
            raise InputError(
                f"the hierarchies make {count:,} combinations of levels, more than {MAX_NODES:,}",
                remedy="take levels out of the hierarchies, or use `method: mondrian`",
            )
        self.domains, self.tuples = tuple(domains), tuples
        self.nodes: npt.NDArray[np.int64] = np.array(list(itertools.product(*map(range, depths))), np.int64)
        weights = sum(domain.weight for domain in domains)
        self.losses = [domain.level_losses() * (domain.weight / weights) for domain in domains]
        sizes = [len(domain.values) for domain in domains]
        self.bundles = super_columns(sizes, int(np.clip(len(tuples) // 8, 1 << 8, 1 << 15)))
        self._joined = [self._join(bundle) for bundle in self.bundles]

    def _join(self, bundle: Sequence[int]) -> Ints:
        joined = np.zeros(len(self.tuples), np.int64)
        for column in bundle:
            joined = joined * len(self.domains[column].values) + self.tuples.codes[column]
        return joined

    def view(self) -> View:
        """All tuples."""
        return View(self, np.arange(len(self.tuples)), self._joined, self.tuples.weight.astype(np.float64))

    def node_losses(self, weight: Floats, at: Ints, power: float = 1.0) -> Floats:
        """The loss of rows under each node without suppression, shape (nodes,).

        It is the mean over the rows, column by column, to a power, and the sum of these.
        """
        total = max(weight.sum(), 1.0)
        found = np.zeros(len(self.nodes))
        for column, losses in enumerate(self.losses):
            rows = np.bincount(self.tuples.codes[column][at], weight, losses.shape[1])
            found += ((losses @ rows / total) ** power)[self.nodes[:, column]]
        return found

    def row_losses(self, node: Ints, at: Ints) -> Floats:
        """The loss of some tuples under a node."""
        found = np.zeros(len(at))
        for column, losses in enumerate(self.losses):
            found += losses[node[column]][self.tuples.codes[column][at]]
        return found


@dataclass(frozen=True, eq=False)
class View:
    """Some of the tuples: which, their values bundle by bundle, and how many rows each stands for."""

    lattice: Lattice
    at: Ints
    joined: Sequence[Ints]
    weight: Floats

    def __len__(self) -> int:
        return len(self.at)

    def only(self, chosen: Bools) -> View:
        """Fewer of them."""
        place = np.flatnonzero(chosen)
        return View(
            self.lattice, self.at[place], [joined[place] for joined in self.joined], self.weight[place]
        )

    def keys(self, node: Ints) -> tuple[Ints, int]:
        """One number a tuple, equal where labels under the node are, and below the second."""
        domains = self.lattice.domains
        keys, space = np.zeros(len(self), np.int64), 1
        for bundle, joined in zip(self.lattice.bundles, self.joined, strict=True):
            table, size = np.zeros(1, np.int64), 1
            for column in bundle:
                hierarchy = domains[column].hierarchy
                labels = len(hierarchy.labels[node[column]])
                table = (table[:, None] * labels + hierarchy.codes[node[column]]).ravel()
                size *= labels
            if space * size >= _EXACT:
                keys, space = dense(keys, space)
            if size == 1:
                continue
            keys = keys * size + table[joined] if space > 1 else table[joined]
            space *= size
        return keys, space

    def holding(self, node: Ints, constraint: Constraint) -> Bools:
        """Which tuples are, under the node, in a class that holds; shape (tuples,)."""
        keys, space = self.keys(node)
        inside = in_large(keys, space, self.weight, constraint.k)
        if constraint.only_k or not inside.any():
            return inside
        chosen = np.flatnonzero(inside)
        ids, classes = dense(keys[chosen], space)
        good = constraint.hold(self.at[chosen], ids, classes, self.weight[chosen])
        inside[chosen] = good[ids]
        return inside
