"""Features and labels from the order log, as Ibis expressions run in the silo's own SQL engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

import ibis
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from ..errors import InputError
from ..federation.schema import Feature, Table
from ..federation.study import Study
from .sources import check_columns

Floats = npt.NDArray[np.float64]
Side = Literal["train", "test"]
_LEAST_GAP = 14.0  # days: a customer who orders more often than every two weeks counts as every two weeks


@dataclass(frozen=True)
class Dataset:
    """One side of a study at a silo: row i is `customers[i]`; never leaves it.

    `inputs` has shape (customers, features), all in [−1, 1]; `labels` is 1 for who churned.
    """

    customers: npt.NDArray[np.str_]
    inputs: Floats
    labels: npt.NDArray[np.int64]


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
    days = _days(orders, study.table, as_of, cohort, retention_days)
    told = _told(days, as_of)
    horizon = as_of + timedelta(days=study.label.horizon_days)
    future = (
        days.filter(days.day >= ibis.literal(as_of), days.day < ibis.literal(horizon))
        .select("customer")
        .distinct()
    )
    joined = told.left_join(future, told.customer == future.customer)
    return joined.select(
        *(told[c] for c in told.columns), churned=future.customer.isnull().cast("int64")
    ).order_by("customer")


def load(orders: ibis.Table, study: Study, side: Side, cohort: pd.DataFrame, retention_days: int) -> Dataset:
    """Features and labels of one side of the split, of those in `cohort` (column `subject`).

    Raises:
        InputError: missing columns, no rows before the date, or non-finite numbers.
    """
    check_columns(orders, study.table, study.split)
    as_of = date.fromisoformat(study.label.train_as_of if side == "train" else study.label.test_as_of)
    frame: pd.DataFrame = quantities(orders, study, as_of, cohort, retention_days).to_pyarrow().to_pandas()
    if study.split.by == "column":
        names = study.table
        members = orders.filter(orders[study.split.column].cast("string") == side)
        chosen = (
            members.select(customer=members[names.customer].cast("string"))
            .distinct()
            .to_pyarrow()["customer"]
            .to_pylist()
        )
        frame = frame[frame["customer"].isin(set(chosen))]
    else:
        on_side = [
            in_training(str(c), study.split.salt, study.split.train) == (side == "train")
            for c in frame["customer"]
        ]
        frame = frame[np.array(on_side, dtype=bool)]
    return Dataset(
        frame["customer"].to_numpy(dtype=np.str_),
        matrix(frame, study.features, study.table),
        frame["churned"].to_numpy(dtype=np.int64),
    )


def matrix(frame: pd.DataFrame, features: Sequence[Feature], names: Table) -> Floats:
    """The model's inputs: a row for each of `frame` (as `history` has them), a column a feature, in [−1, 1].

    Raises:
        InputError: missing or infinite numbers.
    """
    columns = []
    for feature in features:
        values = frame[feature.name].to_numpy(dtype=np.float64, na_value=np.nan)
        if not np.isfinite(values).all():
            raise InputError(
                f"the feature {feature.name!r} has missing or infinite values",
                remedy=f"look for empty or infinite {names.amount!r} and {names.date!r} in the table",
            )
        low, high = (
            (np.log1p(feature.lower), np.log1p(feature.upper))
            if feature.log
            else (feature.lower, feature.upper)
        )
        scaled = np.log1p(np.maximum(values, 0)) if feature.log else values
        columns.append(np.clip((scaled - low) / (high - low), 0, 1) * 2 - 1)
    return np.stack(columns, axis=1) if columns else np.zeros((len(frame), 0))


def in_training(customer: str, salt: str, part: float) -> bool:
    """Whether a customer is on the training side of a hash split."""
    value = int.from_bytes(hashlib.sha256(f"{salt}|{customer}".encode()).digest()[:8], "big")
    return value < part * 2**64
