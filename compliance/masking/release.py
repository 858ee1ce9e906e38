"""Masking a table: recode it, write the labels down, and measure what was written.

1. Roles, values, hierarchies are checked.
2. The policy's method chooses labels; rows that no class can take are suppressed.
3. The table is written out. Rows are in their old order, identifying columns are gone.
4. Its classes are counted anew from the table itself. Rows in a class that does not hold (t is measured against
   the released rows, which are not quite those of step 2) are suppressed, too, and 4 is done again.
5. If more than the limit is suppressed, nothing is released.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ...errors import InputError, Refused
from . import hierarchies, measures, mondrian, recoding_global, recoding_local, tables
from .classes import Bools, Ints, Tuples
from .domains import MISSING, Domain
from .hierarchies import TOP
from .lattice import Constraint, Lattice
from .measures import Classes
from .policy import Method, Policy, reordered
from .report import Report
from .roles import Role
from .tables import Coded, Table, code


@dataclass(frozen=True, eq=False)
class _Labels:
    """One column's labels: a code for each tuple, and the texts."""

    codes: Ints
    texts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Recoded:
    """What a method found: labels by column, which tuples are kept, and a sentence on how."""

    labels: Sequence[_Labels]
    kept: Bools
    how: str


def mask(frame: pd.DataFrame, policy: Policy) -> tuple[pd.DataFrame, Report]:
    """Mask a table as a policy says, and measure the result.

    Args:
        frame: every column has a role in the policy; its index is not looked at.

    Returns: the released table, its quasi-identifiers as categories of labels, index 0, 1, …; and its report.

    Raises:
        InputError: the table, a hierarchy or the population is not what the policy needs; k is larger than
            the table.
        Refused: ``MASKING_IMPOSSIBLE``, no labels hold the policy; ``SUPPRESSION_LIMIT``, too many rows would be
            suppressed.
    """
    table = Table.of(frame, {name: column.role for name, column in policy.columns.items()}, policy.missing)
    if policy.k > table.rows:
        raise InputError(
            f"k = {policy.k} is more than the {table.rows} rows of the table", remedy="lower k, or add rows"
        )
    return _Masking(table, policy).release()


class _Masking:
    """One table under one policy."""

    def __init__(self, table: Table, policy: Policy) -> None:
        self.table, self.policy = table, policy
        self.quasi = list(table.quasi)
        people = None if policy.presence is None else tables.read(policy.presence.population)
        self.domains, coded, self.people = _domains(table, policy, people)
        self.sensitive = {name: policy.ordered(name, c) for name, c in table.sensitive.items()}
        columns = [(c, len(d.values)) for c, d in zip(coded, self.domains, strict=True)]
        self.tuples = Tuples.of(columns, self.sensitive, table.rows, self.people)
        self.constraint = Constraint.of(policy.models(self.sensitive), self.tuples)

    def release(self) -> tuple[pd.DataFrame, Report]:
        found = _METHODS[self.policy.method](self)
        rows = found.kept[self.tuples.of_row]
        stars = np.zeros(self.table.rows, bool)
        if self.policy.suppressed == "star":
            stars, rows = ~rows, np.ones_like(rows)
        while rows.any():
            released = self._written(found.labels, rows, stars)
            classes = self._classes(released)
            failing = classes.failing(self.policy.models(classes.sensitive))[classes.of_row]
            if not failing.any():
                self._check_limit(int((~rows | stars).sum()))
                return released, Report.of(
                    released, classes, self.policy, self.domains, self.table.rows, found.how, self._population
                )
            place = np.flatnonzero(rows)[failing]
            # Whatever fails is starred once; if the starred rows themselves fail, they are left out.
            leave = stars[place] | (self.policy.suppressed == "drop")
            rows[place[leave]] = stars[place[leave]] = False
            stars[place[~leave]] = True
        raise self._impossible()

    @property
    def _population(self) -> int | None:
        return None if self.people is None else len(self.people[0])

    def _impossible(self) -> Refused:
        return Refused(
            "MASKING_IMPOSSIBLE",
            f"no labels of the quasi-identifiers hold the policy (k = {self.policy.k}"
            f"{' and its other models' if len(self.constraint.models) > 1 else ''})",
            remedy="end the hierarchies in a level *, allow more suppression, or ask for less",
        )

    def _check_limit(self, suppressed: int) -> None:
        if suppressed > self.policy.suppression_limit * self.table.rows:
            raise Refused(
                "SUPPRESSION_LIMIT",
                f"{suppressed} of {self.table.rows} rows would be suppressed, more than the policy's "
                f"{self.policy.suppression_limit:.2%}",
                remedy="raise suppression_limit, add coarser levels to the hierarchies, or lower k",
            )

    def _classes(self, released: pd.DataFrame) -> Classes:
        names = self.policy.names(Role.SENSITIVE)
        classes = Classes.of(released, self.quasi, names, self.policy.ordered)
        if self.people is None:
            return classes
        return replace(classes, fitting=measures.fitting(classes, self.domains, self.people))

    def _written(self, labels: Sequence[_Labels], rows: Bools, stars: Bools) -> pd.DataFrame:
        """The released table: rows that are kept, some of them starred."""
        place = np.flatnonzero(rows)
        columns: dict[str, object] = {}
        for name, role in self.table.roles.items():
            if role is Role.QUASI:
                found = labels[self.quasi.index(name)]
                columns[name] = _category(found, self.tuples.of_row[place], stars[place])
            elif role is not Role.IDENTIFYING:
                columns[name] = self.table.frame[name].array.take(place)
        order = [str(name) for name in self.table.frame.columns if name in columns]
        return pd.DataFrame({name: columns[name] for name in order})

    # ── methods ──────────────────────────────────────────────────────────────────────────────────

    def local(self) -> _Recoded:
        lattice = Lattice(self.domains, self.tuples)
        node = recoding_local.recode(lattice, self.constraint)
        kept = node != recoding_local.SUPPRESSED
        levels = lattice.nodes[np.where(kept, node, 0)]
        labels = [_at_levels(d, c, levels[:, i]) for i, (d, c) in enumerate(self._columns())]
        nodes = len(np.unique(node[kept]))
        return _Recoded(labels, kept, f"local recoding over {nodes} of {len(lattice.nodes)} nodes")

    def optimal(self) -> _Recoded:
        lattice = Lattice(self.domains, self.tuples)
        best = recoding_global.recode(lattice, self.constraint, self.policy.suppression_limit)
        if best is None:
            raise self._impossible()
        node = lattice.nodes[best.node]
        labels = [
            _at_levels(d, c, np.full(len(self.tuples), level))
            for level, (d, c) in zip(node, self._columns(), strict=True)
        ]
        levels = ", ".join(f"{name} {level}" for name, level in zip(self.quasi, node, strict=True))
        how = f"global recoding, the node of least loss of {len(lattice.nodes)}: levels {levels}"
        return _Recoded(labels, best.kept, how)

    def mondrian(self) -> _Recoded:
        part = mondrian.partition(self.domains, self.constraint)
        if part is None:
            raise self._impossible()
        sets = self.policy.labels == "set"
        labels = [_Labels(*mondrian.labels(d, c, part, sets=sets)) for d, c in self._columns()]
        kept = np.ones(len(self.tuples), bool)
        return _Recoded(labels, kept, f"Mondrian, {self.policy.labels} labels")

    def _columns(self) -> list[tuple[Domain, Ints]]:
        return list(zip(self.domains, self.tuples.codes, strict=True))


_METHODS: Mapping[Method, Callable[[_Masking], _Recoded]] = {
    Method.LOCAL: _Masking.local,
    Method.GLOBAL: _Masking.optimal,
    Method.MONDRIAN: _Masking.mondrian,
}


def _at_levels(domain: Domain, codes: Ints, levels: Ints) -> _Labels:
    """The labels of values at levels, tuple by tuple."""
    texts = tuple(dict.fromkeys(label for labels in domain.hierarchy.labels for label in labels))
    place = {text: at for at, text in enumerate(texts)}
    table = np.array(
        [
            [place[labels[code]] for code in level]
            for labels, level in zip(domain.hierarchy.labels, domain.hierarchy.codes, strict=True)
        ]
    )
    return _Labels(table[levels, codes], texts)


def _category(labels: _Labels, tuples: Ints, stars: Bools) -> pd.Categorical[str]:
    """A released column; only labels that occur are categories."""
    texts = labels.texts if TOP in labels.texts else (*labels.texts, TOP)
    codes = np.where(stars, texts.index(TOP), labels.codes[tuples])
    used = np.flatnonzero(np.bincount(codes, minlength=len(texts)))
    place = np.zeros(len(texts), np.int64)
    place[used] = np.arange(len(used))
    return pd.Categorical.from_codes(place[codes], pd.Index([texts[i] for i in used], dtype="str"))


# ── domains ──────────────────────────────────────────────────────────────────────────────────────


def _domains(
    table: Table, policy: Policy, people: pd.DataFrame | None
) -> tuple[list[Domain], list[Ints], list[Ints] | None]:
    """The quasi-identifiers' domains, the table's codes in them, and the population's if there is one."""
    domains, codes, theirs = [], [], []
    for name, mine in table.quasi.items():
        both = mine if people is None else _joined(mine, _of_population(people, name, policy))
        arranged = _arranged(policy, name, both)
        column = policy.columns[name]
        tree = policy.hierarchy(name, arranged)
        domains.append(Domain(name, arranged.values, tree, column.loss, column.weight))
        codes.append(arranged.codes[: table.rows])
        theirs.append(arranged.codes[table.rows :])
    return domains, codes, None if people is None else theirs


def _of_population(people: pd.DataFrame, name: str, policy: Policy) -> Coded:
    if name not in people.columns:
        raise InputError(f"the population has no column {name!r}")
    return Table.of(people[[name]], {name: Role.QUASI}, policy.missing).quasi[name]


def _joined(mine: Coded, theirs: Coded) -> Coded:
    """Two columns one after the other."""
    one = pd.Series(np.concatenate([_texts(mine), _texts(theirs)]), dtype=object)
    return code(one.mask(one == MISSING), "population")


def _texts(coded: Coded) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    return np.array(coded.values, dtype=object)[coded.codes]


def _arranged(policy: Policy, name: str, coded: Coded) -> Coded:
    """In the policy's order; numbers by size; else by the hierarchy, siblings side by side."""
    if policy.columns[name].order is not None:
        return policy.ordered(name, coded)
    if tables.numeric(coded) or not isinstance(policy.columns[name].hierarchy, Path | hierarchies.Hierarchy):
        return coded
    tree = policy.hierarchy(name, coded)
    return reordered(coded, [coded.values[i] for i in np.lexsort(tree.codes)])
