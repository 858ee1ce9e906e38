"""Random tables with hierarchies, and the slow way to do what `compliance.masking` does."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foedus.compliance.masking.hierarchies import TOP, Hierarchy
from foedus.compliance.masking.policy import Policy

ADULT = ("sex", "age", "race", "marital-status", "education", "native-country", "workclass", "occupation")


def adult() -> Path | None:
    """Where ARX's Adult lies, or None."""
    root = Path(os.environ.get("FOEDUS_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    found = root / "adult_arx"
    return found if found.is_dir() else None


def adult_policy(directory: Path, **more: Any) -> Policy:
    """Eight quasi-identifiers with ARX's hierarchies, salary-class sensitive; age by extent."""
    columns: dict[str, Any] = {
        name: {"role": "quasi-identifier", "hierarchy": directory / f"adult_hierarchy_{name}.csv"}
        for name in ADULT
    }
    columns["age"]["loss"] = "extent"
    columns["salary-class"] = {"role": "sensitive"} | more.pop("sensitive", {})
    return Policy.of({"columns": columns} | more)


def random_tree(values: list[str], rng: np.random.Generator) -> Hierarchy:
    """A hierarchy of one to three levels above the values, ending in ``*``."""
    rows = {value: [value] for value in values}
    groups = {value: value for value in values}
    for level in range(int(rng.integers(0, 3))):
        names = sorted(set(groups.values()))
        into = {name: f"L{level}.{rng.integers(0, max(len(names) // 2, 1))}" for name in names}
        # A label has one meaning: it tells which values it covers.
        covered = {into[n]: sorted(v for v in values if into[groups[v]] == into[n]) for n in names}
        groups = {v: "+".join(covered[into[groups[v]]]) for v in values}
        for value in values:
            rows[value].append(groups[value])
    return Hierarchy.of([*row, TOP] for row in rows.values())


def random_table(seed: int, rows: int = 40) -> tuple[pd.DataFrame, Policy]:
    """A table of two or three quasi-identifiers and a sensitive column, and a policy for it with k = 2 or more."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 4))
    rows = int(rng.integers(5, rows + 1))
    frame, columns = {}, {}
    for name in (f"q{i}" for i in range(count)):
        values = [f"{name}v{i}" for i in range(int(rng.integers(2, 6)))]
        frame[name] = rng.choice(values, rows)
        tree = random_tree(values, rng)
        columns[name] = {"role": "quasi-identifier", "hierarchy": tree, "weight": float(rng.integers(1, 4))}
    frame["s"] = rng.choice(list("abc"), rows, p=(0.5, 0.3, 0.2))
    columns["s"] = {"role": "sensitive"}
    table = pd.DataFrame(frame)
    return table, Policy.of({"k": int(rng.integers(2, 6)), "columns": columns})


def chains(policy: Policy, name: str) -> dict[str, list[str]]:
    """The labels of each value of a column, level by level."""
    tree = policy.columns[name].hierarchy
    assert isinstance(tree, Hierarchy)
    return {
        v: [tree.labels[level][tree.codes[level, i]] for level in range(tree.levels)]
        for i, v in enumerate(tree.values)
    }


def best_by_hand(
    frame: pd.DataFrame, policy: Policy, limit: float, *, least_values: int = 1
) -> tuple[float, int]:
    """Least loss of any node and how many admissible nodes there are; infinite and 0 if none is."""
    names = [n for n in policy.columns if n.startswith("q")]
    trees = {n: chains(policy, n) for n in names}
    weights = sum(policy.columns[n].weight for n in names)
    there = {n: sorted(set(frame[n])) for n in names}
    best, admissible = math.inf, 0
    for node in itertools.product(*(range(len(next(iter(trees[n].values())))) for n in names)):
        keys = [
            tuple(trees[n][v][level] for n, v, level in zip(names, row, node, strict=True))
            for row in frame[names].itertuples(index=False)
        ]
        sizes = Counter(keys)
        values = {key: {s for k, s in zip(keys, frame["s"], strict=True) if k == key} for key in sizes}
        held = {key for key in sizes if sizes[key] >= policy.k and len(values[key]) >= least_values}
        if sum(key not in held for key in keys) > limit * len(frame):
            continue
        admissible += 1
        lost = 0.0
        for key in keys:
            for name, label, level in zip(names, key, node, strict=True):
                covered = sum(trees[name][v][level] == label for v in there[name])
                share = 1.0 if label == TOP else (covered - 1) / max(len(there[name]) - 1, 1)
                lost += (share if key in held else 1.0) * policy.columns[name].weight / weights
        best = min(best, lost / len(frame))
    return best, admissible
