"""Where the demo's orders come from, and how they are dealt to partners with a consent register each."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from ..compliance.consent import Grant, Withdrawal
from ..errors import InputError

CDNOW_TEST_PART = 0.2


@dataclass(frozen=True)
class Orders:
    """An order log: columns customer (text), date, amount and any others; `panel` splits it if `split_column`."""

    frame: pd.DataFrame
    source: str
    split_column: bool


def cdnow() -> Orders:
    """The CDNOW purchase log (Fader and Hardie): 23,570 customers, 69,659 orders of 1997-01 to 1998-06.

    Read as a file from the installed package `lifetimes`, whose code is not imported. The split into
    training and test customers is the field's usual one: a fifth, by numpy's RandomState(0).

    Raises:
        InputError: `lifetimes` is not installed, or holds another file.
    """
    spec = importlib.util.find_spec("lifetimes")
    file = (
        None
        if spec is None or spec.origin is None
        else Path(spec.origin).parent / "datasets" / "CDNOW_master.txt"
    )
    if file is None or not file.exists():
        raise InputError(
            "the CDNOW purchase log is not installed",
            remedy="pip install 'foedus[demo]', or give your own --orders FILE",
        )
    frame = pd.read_csv(file, sep=r"\s+")
    frame.columns = pd.Index(["customer", "date", "quantity", "amount"])
    if len(frame) != 69_659:
        raise InputError(f"{file}: {len(frame)} orders where CDNOW has 69,659")
    frame["date"] = pd.to_datetime(frame["date"].astype(str), format="%Y%m%d").dt.date
    ids = np.sort(frame["customer"].unique())
    order = np.random.RandomState(0).permutation(len(ids))  # a public split, nothing to protect
    tested = set(ids[order[: int(np.ceil(CDNOW_TEST_PART * len(ids)))]])
    frame["panel"] = np.where(frame["customer"].isin(tested), "test", "train")
    frame["customer"] = "C" + frame["customer"].astype(str).str.zfill(5)
    return Orders(frame, "CDNOW purchase log, 1997-01 to 1998-06 (Fader and Hardie)", split_column=True)


def from_file(path: Path) -> Orders:
    """Any CSV or Parquet file with columns customer, date and amount.

    Raises:
        InputError: unreadable, missing columns, or cells that are no date or number.
    """
    try:
        if path.suffix.lower() == ".parquet":
            frame = pd.read_parquet(path)
        elif path.suffix.lower() == ".csv":
            frame = pd.read_csv(path, dtype={"customer": "str"})
        else:
            raise InputError(f"{path}: not a .csv or .parquet file")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: can't be read: {error}") from error
    if missing := [c for c in ("customer", "date", "amount") if c not in frame.columns]:
        raise InputError(
            f"{path}: no column {', '.join(missing)}",
            remedy=f"rename yours; it has: {', '.join(map(str, frame.columns))}",
        )
    dates = pd.to_datetime(frame["date"], errors="coerce")
    amounts = pd.to_numeric(frame["amount"], errors="coerce")
    for name, bad in (
        ("customer", frame["customer"].isna()),
        ("date", dates.isna()),
        ("amount", ~np.isfinite(amounts.to_numpy(dtype=np.float64, na_value=np.nan))),
    ):
        if bad.any():
            line = int(np.flatnonzero(np.asarray(bad))[0]) + 2
            raise InputError(f"{path}: line {line}: the {name} is missing or not valid")
    clean = pd.DataFrame(
        {
            "customer": frame["customer"].astype(str),
            "date": dates.dt.date,
            "amount": amounts.astype(np.float64),
        }
    )
    return Orders(clean, path.name, split_column=False)


def deal(orders: Orders, shares: Sequence[float]) -> list[pd.DataFrame]:
    """Each customer to one partner, by a hash of their number, in parts of about `shares`."""
    edges = np.cumsum(shares) / sum(shares)
    place = {
        c: int(np.searchsorted(edges, _unit("partner", c), side="right"))
        for c in orders.frame["customer"].unique()
    }
    partner = orders.frame["customer"].map(place).clip(upper=len(shares) - 1)
    return [orders.frame[partner == i].reset_index(drop=True) for i in range(len(shares))]


def consents(customers: Sequence[str], purpose: str, notice: str) -> tuple[list[Grant], list[Withdrawal]]:
    """A consent register made for the demo: 5 % withdrew, 2 % never consented, 1 % let it expire; the rest consent."""
    now = datetime.now(UTC)
    grants, withdrawals = [], []
    for customer in customers:
        u = _unit("register", customer)
        if u < 0.02:
            continue
        expires = now - timedelta(days=1) if u < 0.03 else now + timedelta(days=700)
        granted = now - timedelta(days=200)
        grants.append(
            Grant(
                subject=customer,
                purpose=purpose,
                notice_version=notice,
                granted_at=granted,
                expires_at=expires,
                method="demo",
            )
        )
        if 0.03 <= u < 0.08:
            withdrawals.append(Withdrawal(subject=customer, purpose=purpose, at=now - timedelta(days=2)))
    return grants, withdrawals


def _unit(salt: str, customer: str) -> float:
    return int.from_bytes(hashlib.sha256(f"demo {salt}|{customer}".encode()).digest()[:8], "big") / 2**64
