"""Checks 5 to 7 of the guard's list for a study that counts: groups by SQL, cells, and the integers that may be masked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import ibis
import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import InputError, ProtocolError
from ..federation.counting import CountStudy, Key
from ..federation.modes import Sampler
from ..federation.rounds import RoundPlan
from ..federation.schema import NumberColumn, Split
from ..federation.tasks import count
from ..privacy.noise import Keystream, discrete_gaussian
from ..privacy.secagg.codec import Whole
from .features import CUSTOMER, Side, as_numbers, chosen, history
from .sources import check_columns
from .trainer import Source

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Counted:
    """The customers of a silo as a counting study sees them; never leaves it.

    `cells` is each customer's cell; `values` each one's quantity, finite, if one is measured.
    """

    customers: npt.NDArray[np.str_]
    cells: Integers
    values: Floats | None

    @property
    def size(self) -> int:
        """Number of customers."""
        return len(self.customers)


@dataclass
class Counter:
    """Works out one silo's part of a count.

    Args:
        sampler: what draws the noise share. Only a test replaces it.
    """

    source: Source
    study: CountStudy
    retention_days: int
    sampler: Sampler = discrete_gaussian

    def __post_init__(self) -> None:
        self._cached: tuple[bytes, Counted] | None = None

    def dataset(self, side: Side, cohort: pd.DataFrame) -> Counted:
        """5: who is counted where. Kept until the cohort changes."""
        key = hashlib.sha256("\n".join(cohort["subject"]).encode()).digest()
        if self._cached is None or self._cached[0] != key:
            text = {k.column for k in self.study.count.by if k.column is not None and k.cuts is None}
            with self.source.orders(self.study.table, text) as orders:
                self._cached = (key, load(orders, self.study, cohort, self.retention_days))
        return self._cached[1]

    def contribution(self, plan: RoundPlan, dataset: Counted, sent: Floats) -> Whole:
        """6 and 7: count, encode and add the noise share. What comes out may be masked."""
        stream = Keystream()
        exact = count.contributions(dataset.cells, dataset.values, self.study, stream)
        if exact.size != plan.dimension:
            raise ProtocolError(f"round {plan.round}: {exact.size} numbers, the study says {plan.dimension}")
        return Whole(plan.mode.at_silo(exact, plan.sigma, self.sampler, stream), plan.bound)


def load(orders: ibis.Table, study: CountStudy, cohort: pd.DataFrame, retention_days: int) -> Counted:
    """Each customer's cell, of those in `cohort` (column `subject`).

    Raises:
        InputError: a missing column, a value without a group, a customer in two cells, a missing or infinite number.
    """
    frame = _frame(orders, study, cohort, retention_days)
    cells, starts, own = _placed(frame, study)
    values = None
    if study.count.of is not None:
        values = as_numbers(frame[study.count.of.called])
        if unusable := int((~np.isfinite(values)).sum()):
            raise InputError(
                f"{study.count.of.called!r} is missing, infinite or no number in {unusable} rows",
                remedy="complete those rows, or leave them out of the table",
            )
        values = np.add.reduceat(values, starts) / np.bincount(own) if len(starts) else values
    return Counted(frame[CUSTOMER].to_numpy(dtype=np.str_)[starts], cells[starts], values)


def _placed(frame: pd.DataFrame, study: CountStudy) -> tuple[Integers, Integers, Integers]:
    """Each row's cell, each customer's first row, and each row's customer.

    Raises:
        InputError: as `cells_of`; a customer in two cells.
    """
    cells = cells_of(frame, study)
    customers = frame[CUSTOMER].to_numpy(dtype=np.str_)
    first = np.concatenate([np.ones(min(len(customers), 1), bool), customers[1:] != customers[:-1]])
    starts, own = np.flatnonzero(first), np.cumsum(first) - 1
    if torn := len(set(own[cells != cells[starts][own]])):
        raise InputError(
            f"{torn} customers have rows in different cells of the study's table",
            remedy="say the same of a customer in every row; a customer is counted once",
        )
    return cells, starts, own


@dataclass(frozen=True)
class Labelled:
    """A silo's customers with their cells, a row each, and what else is wanted of them; never leaves it.

    `source` is the whole table.
    """

    cells: Integers
    others: pd.DataFrame
    source: pd.DataFrame


def labelled(
    source: Source, study: CountStudy, cohort: pd.DataFrame, retention_days: int, keep: Sequence[str]
) -> Labelled:
    """Each customer's cell and the columns in `keep`, which of an order log are quantities.

    Raises:
        InputError: as `load`; `keep` has the customer, or what is not there.
    """
    text = {k.column for k in study.count.by if k.column is not None and k.cuts is None}
    with source.orders(study.table, text) as orders:
        if study.table.customer in keep:
            raise InputError(f"{study.table.customer!r} names the customers: it stays")
        if lacking := [] if study.reads_orders else [c for c in keep if c not in orders.columns]:
            raise InputError(f"the table has no column {lacking[0]!r}")
        frame = _frame(orders, study, cohort, retention_days, keep)
        whole: pd.DataFrame = orders.to_pyarrow().to_pandas()
    if lacking := [c for c in keep if c not in frame.columns]:
        raise InputError(f"the order log gives no quantity {lacking[0]!r}")
    cells, starts, _ = _placed(frame, study)
    rows = frame.iloc[starts].reset_index(drop=True)
    return Labelled(cells[starts], rows[list(keep)], whole)


def _frame(
    orders: ibis.Table,
    study: CountStudy,
    cohort: pd.DataFrame,
    retention_days: int,
    keep: Sequence[str] = (),
) -> pd.DataFrame:
    """The keys' and the quantity's columns, by `CUSTOMER`."""
    asked = _asked(orders, study, cohort, retention_days, keep)
    frame: pd.DataFrame = asked.to_pyarrow().to_pandas().rename(columns={"customer": CUSTOMER})
    return frame


def expression(orders: ibis.Table, study: CountStudy, retention_days: int) -> ibis.Table:
    """What `load` asks of the table, with a cohort of nobody: for its lineage."""
    nobody = pd.DataFrame({"subject": []}, dtype="str")
    return _asked(orders, study, nobody, retention_days, ()).select(*study.count.columns)


def _asked(
    orders: ibis.Table, study: CountStudy, cohort: pd.DataFrame, retention_days: int, keep: Sequence[str]
) -> ibis.Table:
    of = study.count.of
    if study.count.as_of is not None:
        check_columns(orders, study.table, Split())
        as_of = date.fromisoformat(study.count.as_of)
        return history(orders, study.table, as_of, cohort, retention_days)
    text = [k.column for k in study.count.by if k.column is not None and k.cuts is None]
    measured = {k.column for k in study.count.by if k.column is not None and k.cuts is not None}
    if of is not None and of.column is not None:
        if of.column in text:
            raise InputError(f"{of.column!r} is a category and a quantity at once")
        measured.add(of.column)
    return chosen(
        orders,
        study.table,
        [NumberColumn(column=name) for name in sorted(measured)],
        cohort,
        also=[*text, *keep],
    )


def cells_of(frame: pd.DataFrame, study: CountStudy) -> Integers:
    """The cell of each row of a frame that has the keys' columns.

    Raises:
        InputError: a value without a group, or a missing one, where the study has no `other`.
    """
    cells = np.zeros(len(frame), np.int64)
    for key in study.count.by:
        place = _places(frame[key.called], key)
        if unplaced := int((place < 0).sum()):
            # How many, not which: this goes into a log for good, and a column taken by mistake may hold anything.
            raise InputError(
                f"the column {key.called!r} has a missing value, or one that the study has no group for, in"
                f" {unplaced} rows",
                remedy="mend the rows, or ask the author to give every value a group, or to say `other: …`",
            )
        cells = cells * len(key.labels) + place
    return cells


def _places(found: pd.Series, key: Key) -> Integers:
    """The place of each value's group; −1 where there is none."""
    other = -1 if key.other is None else len(key.labels) - 1
    if key.cuts is None:
        known = {v: key.group_of(v) for v in set(found.dropna())}
        return np.array([known[v] if isinstance(v, str) else other for v in found], np.int64)
    x = as_numbers(found)
    return np.where(np.isfinite(x), np.searchsorted(key.cuts, x, side="right"), other).astype(np.int64)
