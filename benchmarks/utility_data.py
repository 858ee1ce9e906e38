"""The five public data sets of the utility benchmark, dealt to silos, split into training and test customers.

Raw files are read from ``FOEDUS_DATA`` or from ``../shared/data`` beside the repository; what each is and where
it comes from is in its SOURCE.txt. Levels of categories and the columns' names are public (a treaty's schema);
nothing else is read off the data here: scaling is each arm's own business, and paid for.

The column that deals customers to silos stays a feature where a customer has it (Contract, TrafficType, job).
"""

from __future__ import annotations

import functools
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

TEST_PART = 0.3
_LEAST_SILO = 240  # customers; TrafficTypes with fewer are left out
_DIVISIONS = {
    "New England": "CT ME MA NH RI VT",
    "Middle Atlantic": "NJ NY PA",
    "East North Central": "IL IN MI OH WI",
    "West North Central": "IA KS MN MO NE ND SD",
    "South Atlantic": "DE DC FL GA MD NC SC VA WV",
    "East South Central": "AL KY MS TN",
    "West South Central": "AR LA OK TX",
    "Mountain": "AZ CO ID MT NV NM UT WY",
    "Pacific": "AK CA HI OR WA",
}


@dataclass(frozen=True)
class Side:
    """Customers of one side of the split: `frame` has the raw columns; `labels` 0 or 1; `silos` 0 … silos−1."""

    frame: pd.DataFrame
    labels: Integers
    silos: Integers


@dataclass(frozen=True)
class Problem:
    """One data set in silos. `levels` are each category column's, in order; the first is the reference."""

    name: str
    numbers: tuple[str, ...]
    levels: dict[str, tuple[str, ...]]
    silo_names: tuple[str, ...]
    train: Side
    test: Side

    @property
    def silos(self) -> int:
        return len(self.silo_names)

    def raw(self, side: Side) -> Floats:
        """The number columns, shape (customers, numbers)."""
        return side.frame[list(self.numbers)].to_numpy(dtype=np.float64)

    def dummies(self, side: Side) -> Floats:
        """The category columns as 0 and 1, without the first level: shape (customers, Σ (levels − 1))."""
        columns = [
            (side.frame[name] == level).to_numpy(dtype=np.float64)
            for name, levels in self.levels.items()
            for level in levels[1:]
        ]
        return np.stack(columns, axis=1) if columns else np.zeros((len(side.frame), 0))

    @property
    def features(self) -> int:
        return len(self.numbers) + sum(len(levels) - 1 for levels in self.levels.values())


def directory() -> Path | None:
    """Where the raw files are, or None."""
    named = os.environ.get("FOEDUS_DATA")
    found = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return found if found.is_dir() else None


def _telco(root: Path) -> pd.DataFrame:
    """IBM's telco churn: 7,043 customers. The 11 blank TotalCharges have tenure 0: nothing was charged yet."""
    frame = pd.read_csv(root / "telco" / "Telco-Customer-Churn.csv")
    zips = pd.read_csv(root / "telco" / "customer_zip.csv", dtype={"zip": str})
    frame = frame.merge(zips, on="customerID", how="left", validate="one_to_one")
    blank = frame["TotalCharges"].str.strip() == ""
    assert blank.sum() == 11 and (frame.loc[blank, "tenure"] == 0).all() and frame["zip"].notna().all()
    frame["TotalCharges"] = pd.to_numeric(frame["TotalCharges"].where(~blank, "0"))
    frame["label"] = (frame["Churn"] == "Yes").astype(np.int64)
    return frame.drop(columns=["customerID", "Churn"])


def _telco_zip(root: Path) -> pd.DataFrame:
    frame = _telco(root)
    frame["silo"] = frame["zip"].str[:2]
    return frame.drop(columns="zip")


def _telco_contract(root: Path) -> pd.DataFrame:
    frame = _telco(root)
    frame["silo"] = frame["Contract"]
    return frame.drop(columns="zip")


def _mlc(root: Path) -> pd.DataFrame:
    """MLC++ churn: 5,000 customers; the state deals them to the nine census divisions and is no feature."""
    frame = pd.read_csv(root / "mlc_churn" / "mlc_churn.csv")
    division = {state: name for name, states in _DIVISIONS.items() for state in states.split()}
    frame["silo"] = frame["state"].map(division)
    assert frame["silo"].notna().all()
    frame["label"] = (frame["churn"] == "yes").astype(np.int64)
    return frame.drop(columns=["rownames", "state", "area_code", "churn"])


def _shoppers(root: Path) -> pd.DataFrame:
    """UCI online shoppers: 12,205 sessions once repeated ones are dropped, in the TrafficTypes with 240 and more."""
    frame = pd.read_csv(root / "online_shoppers" / "online_shoppers_intention.csv").drop_duplicates()
    assert len(frame) == 12_205
    sizes = frame["TrafficType"].value_counts()
    frame = frame[frame["TrafficType"].isin(sizes[sizes >= _LEAST_SILO].index)].reset_index(drop=True)
    frame["silo"] = frame["TrafficType"].astype(str)
    frame["label"] = frame["Revenue"].astype(np.int64)
    return frame.drop(columns="Revenue")


def _bank(root: Path) -> pd.DataFrame:
    """UCI bank marketing, 41,188 calls; `duration` is known only after the call and is dropped."""
    with zipfile.ZipFile(root / "bank_additional" / "bank-additional.zip") as archive:
        (name,) = [
            n
            for n in archive.namelist()
            if n.endswith("bank-additional-full.csv") and not n.startswith("__MACOSX")
        ]
        with archive.open(name) as file:
            frame = pd.read_csv(file, sep=";")
    frame["silo"] = frame["job"]
    frame["label"] = (frame["y"] == "yes").astype(np.int64)
    return frame.drop(columns=["duration", "y"])


_NUMBERS = {
    "telco": ("tenure", "MonthlyCharges", "TotalCharges"),
    "shoppers": (
        *("Administrative", "Administrative_Duration", "Informational", "Informational_Duration"),
        *(
            "ProductRelated",
            "ProductRelated_Duration",
            "BounceRates",
            "ExitRates",
            "PageValues",
            "SpecialDay",
        ),
    ),
    "bank": (
        *("age", "campaign", "pdays", "previous", "emp.var.rate", "cons.price.idx", "cons.conf.idx"),
        *("euribor3m", "nr.employed"),
    ),
}
_MLC_CATEGORIES = ("international_plan", "voice_mail_plan")


def _split(frame: pd.DataFrame, seed: int) -> npt.NDArray[np.bool_]:
    """Who is tested on: 30 % of every silo's customers."""
    rng, tested = np.random.default_rng(seed), np.zeros(len(frame), dtype=bool)
    for rows in frame.groupby("silo", sort=True).indices.values():
        chosen = rng.permutation(rows)
        tested[chosen[: round(TEST_PART * len(rows))]] = True
    return tested


def _table(
    name: str, read: Callable[[Path], pd.DataFrame], numbers: tuple[str, ...] | None
) -> Callable[[Path, int], Problem]:
    def load(root: Path, seed: int) -> Problem:
        frame = read(root)
        columns = [c for c in frame.columns if c not in ("silo", "label")]
        used = numbers or tuple(c for c in columns if c not in _MLC_CATEGORIES)
        levels: dict[str, tuple[str, ...]] = {}
        for column in columns:
            if column not in used:
                frame[column] = frame[column].astype(str)
                levels[column] = tuple(sorted(frame[column].unique()))
        assert not frame.isna().any().any()
        silo_names = tuple(sorted(frame["silo"].unique()))
        silos = frame["silo"].map({s: i for i, s in enumerate(silo_names)}).to_numpy(dtype=np.int64)
        tested = _split(frame, seed)
        labels = frame["label"].to_numpy(dtype=np.int64)
        features = frame.drop(columns=["silo", "label"])
        train, test = (
            Side(features[on].reset_index(drop=True), labels[on], silos[on]) for on in (~tested, tested)
        )
        return Problem(name, used, levels, silo_names, train, test)

    return load


CDNOW_SILOS = 4
_CDNOW_AS_OF = {"train": "1997-09-28", "test": "1998-03-31"}
_HORIZON, _LEAST_GAP = 90, 14.0


def _cdnow(root: Path, seed: int) -> Problem:
    """CDNOW: who does not buy in the next 90 days. Test customers are others, and looked at half a year later."""
    orders = pd.read_csv(root / "cdnow" / "CDNOW_master.txt", sep=r"\s+")
    orders.columns = pd.Index(["customer", "date", "quantity", "amount"])
    orders["date"] = pd.to_datetime(orders["date"].astype(str), format="%Y%m%d")
    orders = orders.groupby(["customer", "date"], as_index=False)["amount"].sum()  # an order is a day
    customers = np.sort(orders["customer"].unique())
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(customers))
    tested = set(customers[order[: round(TEST_PART * len(customers))]].tolist())
    dealt = dict(zip(customers.tolist(), rng.integers(0, CDNOW_SILOS, len(customers)).tolist(), strict=True))
    sides = {}
    for side, day in _CDNOW_AS_OF.items():
        mine = orders[orders["customer"].isin(tested) == (side == "test")]
        sides[side] = _history(mine, pd.Timestamp(day), dealt)
    names = tuple(sides["train"].frame.columns)
    return Problem("cdnow", names, {}, tuple("ABCD"), sides["train"], sides["test"])


def _history(orders: pd.DataFrame, as_of: pd.Timestamp, dealt: dict[int, int]) -> Side:
    past = orders[orders["date"] < as_of]
    of = past.groupby("customer")
    recency, tenure = (as_of - of["date"].max()).dt.days, (as_of - of["date"].min()).dt.days
    frame = pd.DataFrame({"recency": recency, "tenure": tenure, "orders": of.size()}, dtype=np.float64)
    for days in (30, 90):
        recent = past[past["date"] >= as_of - pd.Timedelta(days=days)].groupby("customer").size()
        frame[f"orders_{days}"] = recent.reindex(frame.index).fillna(0.0).astype(np.float64)
    frame["amount"] = of["amount"].sum()
    frame["span"] = frame["tenure"] - frame["recency"]
    frame["mean_amount"] = frame["amount"] / frame["orders"]
    frame["mean_gap"] = frame["span"] / np.maximum(frame["orders"] - 1, 1)
    frame["overdue"] = frame["recency"] / np.maximum(frame["mean_gap"], _LEAST_GAP)
    ahead = orders[(orders["date"] >= as_of) & (orders["date"] < as_of + pd.Timedelta(days=_HORIZON))]
    labels = (~frame.index.isin(ahead["customer"].unique())).astype(np.int64)
    silos = np.array([dealt[c] for c in frame.index], dtype=np.int64)
    return Side(frame.reset_index(drop=True), labels, silos)


SETS: dict[str, Callable[[Path, int], Problem]] = {
    "telco / zip2": _table("telco / zip2", _telco_zip, _NUMBERS["telco"]),
    "telco / Contract": _table("telco / Contract", _telco_contract, _NUMBERS["telco"]),
    "mlc_churn / division": _table("mlc_churn / division", _mlc, None),
    "shoppers / TrafficType": _table("shoppers / TrafficType", _shoppers, _NUMBERS["shoppers"]),
    "bank / job": _table("bank / job", _bank, _NUMBERS["bank"]),
    "cdnow": _cdnow,
}


@functools.lru_cache(maxsize=2)
def load(name: str, seed: int) -> Problem:
    """The data set `name` with the split of `seed`; the last two are kept, for nobody changes them.

    Raises:
        FileNotFoundError: the raw files are not there.
    """
    root = directory()
    if root is None:
        raise FileNotFoundError("the raw data is not here: set FOEDUS_DATA to its directory")
    return SETS[name](root, seed)
