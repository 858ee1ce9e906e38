"""Features and labels from the order log, as Ibis expressions run in the silo's own SQL engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import Any, Literal

import ibis
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from ..errors import InputError
from ..federation.rounds import Task
from ..federation.schema import (
    AnyFeature,
    CategoryColumn,
    ChurnLabel,
    ColumnLabel,
    Label,
    NumberColumn,
    Table,
)
from ..federation.study import Study
from ..federation.tasks import statistics
from .sources import check_columns, require

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Side = Literal["train", "validate", "test"]
SIDES: dict[Task, Side] = {
    "statistics": "train",
    "curvature": "train",
    "train": "train",
    "validate": "validate",
    "evaluate": "test",
}
_LEAST_GAP = 14.0  # days: a customer who orders more often than every two weeks counts as every two weeks


@dataclass(frozen=True)
class Raw:
    """One side of a study at a silo, as the table has it: row i is of `customers[i]`; never leaves it.

    `values` has shape (rows, quantities), finite; `codes` (rows, categories), the place of a level or −1;
    `labels` is 1 for who bears the label. Rows of one customer lie together.
    """

    customers: npt.NDArray[np.str_]
    values: Floats
    codes: Integers
    labels: Integers

    @cached_property
    def first(self) -> npt.NDArray[np.bool_]:
        """The first row of each customer: shape (rows,)."""
        return np.concatenate(
            [np.ones(min(len(self.customers), 1), bool), self.customers[1:] != self.customers[:-1]]
        )

    @property
    def size(self) -> int:
        """Number of customers."""
        return int(self.first.sum())

    def averaged(self, rows: Floats) -> Floats:
        """The mean of each customer's rows: shape (customers, …)."""
        starts = np.flatnonzero(self.first)
        if len(starts) == len(rows):
            return rows
        counts = np.diff(np.append(starts, len(rows)))
        means: Floats = np.add.reduceat(rows, starts, axis=0) / counts[:, None]
        return means


@dataclass(frozen=True)
class Dataset:
    """One side of a study at a silo as the model sees it: row i is of `customers[i]`; never leaves it.

    `inputs` has shape (rows, study.inputs), all in [−1, 1]; `labels` is 1 for who bears the label.
    """

    customers: npt.NDArray[np.str_]
    inputs: Floats
    labels: Integers


def _days(
    orders: ibis.Table, names: Table, as_of: date, cohort: pd.DataFrame, retention_days: int
) -> ibis.Table:
    """A row per customer of the cohort and day with an order: customer, day, amount.

    The consent is joined first: rows of anyone else are not read further. Neither are orders older than
    the treaty's retention, counted back from `as_of`. An order is a customer's day: repeated lines of one
    day are one order of their summed amount.
    """
    consenting = ibis.memtable(pa.table({"subject": pa.array(cohort["subject"].tolist(), pa.string())}))
    orders = orders.semi_join(consenting, orders[names.customer].cast("string") == consenting.subject)
    oldest = as_of - timedelta(days=retention_days)
    orders = orders.filter(orders[names.date].cast("date") >= ibis.literal(oldest))
    day = orders[names.date].cast("date")
    lines = orders.select(
        customer=orders[names.customer].cast("string"), day=day, amount=orders[names.amount].cast("float64")
    )
    return lines.group_by("customer", "day").aggregate(amount=lines.amount.sum())


def _told(days: ibis.Table, as_of: date) -> ibis.Table:
    """One row a customer known before `as_of`: what the features are made of, unsorted."""
    past = days.filter(days.day < ibis.literal(as_of))

    def since(d: int) -> ibis.Value:
        return (past.day >= ibis.literal(as_of - timedelta(days=d))).cast("int64").sum().cast("float64")

    told = past.group_by("customer").aggregate(
        recency=ibis.literal(as_of).delta(past.day.max(), unit="day").cast("float64"),
        tenure=ibis.literal(as_of).delta(past.day.min(), unit="day").cast("float64"),
        orders=past.count().cast("float64"),
        orders_30=since(30),
        orders_90=since(90),
        amount=past.amount.sum(),
    )
    told = told.mutate(span=told.tenure - told.recency, mean_amount=told.amount / told.orders)
    gaps = ibis.greatest(told.orders - 1.0, 1.0)
    told = told.mutate(mean_gap=told.span / gaps)
    return told.mutate(overdue=told.recency / ibis.greatest(told.mean_gap, _LEAST_GAP))


def history(
    orders: ibis.Table, names: Table, as_of: date, cohort: pd.DataFrame, retention_days: int
) -> ibis.Table:
    """One row a customer of the cohort known before `as_of`, by customer: what the features are made of.

    Nothing from `as_of` on is looked at.
    """
    return _told(_days(orders, names, as_of, cohort, retention_days), as_of).order_by("customer")


def last_order(orders: ibis.Table, names: Table, as_of: date) -> date:
    """The day of the table's last order before `as_of`; there must be one."""
    days = orders.select(day=orders[names.date].cast("date"))
    found: date = days.filter(days.day < ibis.literal(as_of)).day.max().to_pyarrow().as_py()
    return found


def quantities(
    orders: ibis.Table, study: Study, as_of: date, cohort: pd.DataFrame, retention_days: int
) -> ibis.Table:
    """`history`, and the label beside it: `churned` is 1 for who did not order in the horizon from `as_of` on."""
    label = study.label
    if not isinstance(label, ChurnLabel):
        raise InputError("an order log is read for a label of kind churn")
    days = _days(orders, study.table, as_of, cohort, retention_days)
    told = _told(days, as_of)
    horizon = as_of + timedelta(days=label.horizon_days)
    future = (
        days.filter(days.day >= ibis.literal(as_of), days.day < ibis.literal(horizon))
        .select("customer")
        .distinct()
    )
    joined = told.left_join(future, told.customer == future.customer)
    return joined.select(
        *(told[c] for c in told.columns), churned=future.customer.isnull().cast("int64")
    ).order_by("customer")


def load(
    orders: ibis.Table,
    study: Study,
    side: Side,
    cohort: pd.DataFrame,
    retention_days: int,
    *,
    learned: Floats | None = None,
) -> Dataset:
    """Features and labels of one side of the split, of those in `cohort` (column `subject`).

    Args:
        learned: what the study's statistics said (`State.statistics`), for features without public bounds.

    Raises:
        InputError: as `load_raw`; a scale is to be learned and `learned` is not given.
    """
    raw = load_raw(orders, study, side, cohort, retention_days)
    if learned is None and study.learned:
        raise InputError("this study learns its scales: they are known once its statistics are")
    told = statistics.initial(study) if learned is None else learned
    inputs = statistics.inputs(raw.values, raw.codes, study.features, told)
    return Dataset(raw.customers, inputs, raw.labels)


def load_raw(orders: ibis.Table, study: Study, side: Side, cohort: pd.DataFrame, retention_days: int) -> Raw:
    """One side of the split as the table has it, of those in `cohort` (column `subject`).

    Raises:
        InputError: missing columns, no rows before the date, or missing or non-finite numbers.
    """
    if isinstance(study.label, ColumnLabel):
        frame = _customers(orders, study, cohort)
    else:
        check_columns(orders, study.table, study.split)
        as_of = date.fromisoformat(study.label.test_as_of if side == "test" else study.label.train_as_of)
        frame = quantities(orders, study, as_of, cohort, retention_days).to_pyarrow().to_pandas()
        frame = frame.rename(columns={"customer": CUSTOMER, "churned": LABEL})
    frame = frame[_on_side(orders, frame[CUSTOMER], study, side)]
    customers = frame[CUSTOMER].to_numpy(dtype=np.str_)
    return Raw(
        customers, *measured(frame, study.features, study.table), frame[LABEL].to_numpy(dtype=np.int64)
    )


def _on_side(
    orders: ibis.Table, customers: pd.Series[str], study: Study, side: Side
) -> npt.NDArray[np.bool_]:
    split, stopping = study.split, study.training.early_stopping
    if split.by == "column":
        there = set(customers)
        trained, tested = (_stated(orders, study, word) & there for word in ("train", "test"))
        if both := trained & tested:
            raise InputError(
                f"{len(both)} customers are on both sides of the split: the column {split.column!r} says train"
                " in one of their rows and test in another",
                remedy="say the same of a customer in every row, or split by hash",
            )
        on = [c in (tested if side == "test" else trained) for c in customers]
    else:
        on = [in_training(str(c), split.salt, split.train) == (side != "test") for c in customers]
    if stopping is not None and side != "test":
        looked_at = [in_training(str(c), f"{split.salt}|validate", stopping.part) for c in customers]
        on = [a and (b == (side == "validate")) for a, b in zip(on, looked_at, strict=True)]
    return np.array(on, dtype=bool)


def _stated(orders: ibis.Table, study: Study, side: str) -> set[str]:
    """The customers of whom some row says that they are on this side."""
    members = orders.filter(orders[study.split.column].cast("string") == side)
    found = members.select(customer=members[study.table.customer].cast("string")).distinct()
    return set(found.to_pyarrow()["customer"].to_pylist())


CUSTOMER, LABEL = "customer·", "label·"  # no study can name a column so


def _customers(found: ibis.Table, study: Study, cohort: pd.DataFrame) -> pd.DataFrame:
    """The columns of a study of a table of customers, and the label beside them."""
    names, label = study.table, study.label
    if not isinstance(label, ColumnLabel):
        raise InputError("a table of customers is read for a label of kind column")
    needed = {"label": label.column}
    if study.split.by == "column":
        needed["split"] = study.split.column
    require(found, names, needed)
    frame = columns(found, names, study.features, cohort, also=(label.column,))
    said = frame.pop(label.column)
    if unsaid := int(said.isna().sum()):
        raise InputError(
            f"the label {label.column!r} is missing in {unsaid} rows",
            remedy="complete those rows, or leave them out of the table",
        )
    said = said.astype(str)
    if label.negative is not None:
        known = {label.positive, *label.negative}
        if unknown := int((~said.isin(known)).sum()):
            # How many, not which: this goes into a log for good, and a column taken by mistake may hold anything.
            raise InputError(
                f"the label {label.column!r} has a value that the study does not name in {unknown} rows;"
                f" it names {', '.join(map(repr, sorted(known)))}",
                remedy="values are compared as text, letter by letter (1 is not 1.0, yes is not Yes): mend the"
                " rows, or ask the author to name all values in label.positive and label.negative",
            )
    return frame.assign(**{LABEL: (said == label.positive).astype(np.int64)})


def written(features: Sequence[AnyFeature], label: Label | None = None) -> set[str]:
    """The columns of a table of customers that are compared as text: categories, and the label."""
    text = {f.column for f in features if isinstance(f, CategoryColumn)}
    return text | {label.column} if isinstance(label, ColumnLabel) else text


def columns(
    found: ibis.Table,
    names: Table,
    features: Sequence[AnyFeature],
    cohort: pd.DataFrame,
    *,
    also: Sequence[str] = (),
) -> pd.DataFrame:
    """The features' columns of a table of customers, of those in `cohort`, by `CUSTOMER`, who may have several rows.

    Categories come as text, as everything in `also`: what a .csv file says, or what the SQL engine makes of a
    type; that of a whole number is the same whether or not another row of the column is empty.

    Args:
        also: columns wanted beside the features'.
    """
    text = written(features) | set(also)
    wanted = sorted({f.called for f in features} | set(also))
    require(found, names, {"customer": names.customer, **{f"feature {c}": c for c in wanted}})
    frame: pd.DataFrame = _chosen(found, names, wanted, text, cohort).to_pyarrow().to_pandas()
    return frame


def _chosen(
    found: ibis.Table, names: Table, wanted: Sequence[str], text: set[str], cohort: pd.DataFrame
) -> ibis.Table:
    consenting = ibis.memtable(pa.table({"subject": pa.array(cohort["subject"].tolist(), pa.string())}))
    rows = found.semi_join(consenting, found[names.customer].cast("string") == consenting.subject)
    return rows.select(
        **{CUSTOMER: rows[names.customer].cast("string")},
        **{c: rows[c].cast("string") if c in text else rows[c] for c in wanted},
    ).order_by(CUSTOMER)


def expression(found: ibis.Table, study: Study, side: Side, retention_days: int) -> ibis.Table:
    """What `load_raw` asks of the table, with a cohort of nobody: for its lineage. The last column is the label.

    Raises:
        InputError: missing columns, or of the wrong types.
    """
    nobody, label, names = pd.DataFrame({"subject": []}, dtype="str"), study.label, study.table
    called = list(dict.fromkeys(f.called for f in study.features))
    if isinstance(label, ColumnLabel):
        wanted = sorted({*called, label.column})
        require(found, names, {"customer": names.customer, **{f"column {c}": c for c in wanted}})
        chosen = _chosen(found, names, wanted, written(study.features, label), nobody)
        return chosen.select(*called, **{LABEL: chosen[label.column]})
    check_columns(found, names, study.split)
    as_of = date.fromisoformat(label.test_as_of if side == "test" else label.train_as_of)
    told = quantities(found, study, as_of, nobody, retention_days)
    return told.select(*called, **{LABEL: told.churned})


def measured(frame: pd.DataFrame, features: Sequence[AnyFeature], names: Table) -> tuple[Floats, Integers]:
    """Quantities and categories of a frame, a row for each of its: see `Raw`.

    Raises:
        InputError: missing or infinite numbers, or what is no number.
    """
    values, codes = [], []
    for feature in features:
        if isinstance(feature, CategoryColumn):
            known = {level: place for place, level in enumerate(feature.levels)}
            found = frame[feature.column]
            codes.append(np.array([known.get(v, -1) if isinstance(v, str) else -1 for v in found], np.int64))
            continue
        name, of_column = feature.called, isinstance(feature, NumberColumn)
        numbers = _numbers(frame[name])
        if isinstance(feature, NumberColumn):
            if (np.isnan(numbers) & ~_missing(frame[name])).any():
                raise InputError(
                    f"the column {name!r} has values that are no numbers",
                    remedy="write numbers with a decimal point, and leave the cell empty where one is missing",
                )
            if feature.fill is not None:
                numbers = np.where(np.isnan(numbers), feature.fill, numbers)
        if not np.isfinite(numbers).all():
            where = f"the column {name!r}" if of_column else f"{names.amount!r} and {names.date!r}"
            raise InputError(
                f"the feature {name!r} has missing or infinite values",
                remedy=f"look for empty or infinite {where} in the table"
                + (", or say `fill`" if of_column else ""),
            )
        values.append(numbers)
    rows = len(frame)
    return (
        np.stack(values, axis=1) if values else np.zeros((rows, 0)),
        np.stack(codes, axis=1) if codes else np.zeros((rows, 0), np.int64),
    )


def _numbers(found: pd.Series[Any]) -> Floats:
    """NaN where there is none; pandas would take a day for a number of nanoseconds."""
    if found.dtype.kind in "mM":
        return np.full(len(found), np.nan)
    return pd.to_numeric(found, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def _missing(found: pd.Series[Any]) -> npt.NDArray[np.bool_]:
    blank = [isinstance(v, str) and not v.strip() for v in found]
    missing: npt.NDArray[np.bool_] = found.isna().to_numpy(dtype=bool) | np.array(blank, dtype=bool)
    return missing


def in_training(customer: str, salt: str, part: float) -> bool:
    """Whether a customer is on the training side of a hash split."""
    value = int.from_bytes(hashlib.sha256(f"{salt}|{customer}".encode()).digest()[:8], "big")
    return value < part * 2**64
