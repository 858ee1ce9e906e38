"""A made order log with a churn signal, and a small world of four shops to play studies in."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from foedus.demo import world
from foedus.demo.data import Orders
from foedus.demo.world import World
from foedus.federation.counting import CountDraft, count_draft
from foedus.federation.schema import ChurnLabel, Split
from foedus.federation.study import AnyDraft, Draft, DraftPrivacy, Training
from foedus.privacy.noise import Keystream

PURPOSE = "dpv:ServiceOptimisation"
TRAIN_AS_OF, TEST_AS_OF = "2024-03-01", "2024-06-01"


def order_log(customers: int = 1000, *, seed: int = 7) -> Orders:
    """Two years of orders. Half of the customers order at a steady pace; the others stop some day for good."""
    rng = np.random.default_rng(seed)
    start = np.datetime64("2022-09-01")
    rows = []
    for number in range(customers):
        stops = int(rng.integers(60, 640)) if rng.random() < 0.5 else 730
        pace = float(rng.uniform(20, 70))
        day = float(rng.uniform(0, 60))
        while day < stops:
            rows.append((f"K{number:04d}", start + int(day), round(float(rng.gamma(2.0, 20.0)), 2)))
            day += float(rng.exponential(pace)) + 1
    frame = pd.DataFrame(rows, columns=["customer", "date", "amount"])
    frame["date"] = pd.to_datetime(frame["date"]).dt.date
    return Orders(frame, "synthetic", split_column=False)


def make_draft(*, rounds: int = 2, epsilon: float = 4.0, **changes: Any) -> Draft:
    """A study of the log above, half of the customers on each side."""
    fields: dict[str, Any] = {
        "title": "churn of the record shops",
        "author": "dana",
        "purpose": PURPOSE,
        "label": ChurnLabel(train_as_of=TRAIN_AS_OF, test_as_of=TEST_AS_OF),
        "split": Split(train=0.5),
        "training": Training(rounds=rounds),
        "privacy": DraftPrivacy(epsilon=epsilon),
    }
    return Draft(**(fields | changes))


def make_count(**changes: Any) -> CountDraft:
    """A study that counts the customers of the log above; some of its cells are small."""
    content: dict[str, Any] = {
        "title": "customers by recency and orders",
        "author": "dana",
        "purpose": PURPOSE,
        "count": {
            "as_of": TRAIN_AS_OF,
            "by": [{"name": "recency", "cuts": [30, 90, 365]}, {"name": "orders", "cuts": [4, 8, 16]}],
            "of": {"name": "amount", "upper": 800},
        },
        "privacy": {"epsilon": 8.0},
        "trip_seconds": 0.3,
    }
    return count_draft(content | changes, Path())


def small_world(root: Path, draft: AnyDraft | None = None, *, orders: Orders | None = None) -> World:
    """Four partners with their tables, registers and keys, under a treaty that permits `draft` twice."""
    return world.build(root, orders or order_log(), draft or make_draft(), silos=4)


def copy_of(original: World, root: Path) -> World:
    """The same world in another directory, with its own ledgers and logs."""
    shutil.copytree(original.root, root)
    homes = {name: root / home.relative_to(original.root) for name, home in original.homes.items()}
    return replace(original, root=root, homes=homes)


def no_noise(sigma: int, size: int, stream: Keystream) -> npt.NDArray[np.int64]:
    """A sampler for tests that compare a sum with a computation."""
    return np.zeros(size, np.int64)
