"""The rivals' side of `make bench-masking`: anjana and anonypy mask Adult, pyCANON measures it, by their own functions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def anjana(frame: pd.DataFrame, names: list[str], directory: Path, k: int, percent: float) -> pd.DataFrame:
    """Anjana's k-anonymity (Datafly); rows it suppresses are gone."""
    from anjana.anonymity import k_anonymity

    hierarchies = {
        name: dict(
            pd.read_csv(directory / f"adult_hierarchy_{name}.csv", sep=";", header=None, dtype=str).astype(
                object
            )
        )
        for name in names
    }
    # It was written for pandas 2, whose texts are objects.
    with warnings.catch_warnings(), pd.option_context("future.infer_string", False):
        warnings.simplefilter("ignore")
        return k_anonymity(frame.astype(object), [], names, k, percent, hierarchies)


def anonypy(frame: pd.DataFrame, names: list[str], sensitive: str, k: int) -> list[np.ndarray[Any, Any]]:
    """Anonypy's Mondrian: the rows of each part. Age as a number, all else as categories."""
    from anonypy.mondrian import Mondrian

    table = frame.copy()
    table["age"] = table["age"].astype(int)
    for name in [*names, sensitive]:
        if name != "age":
            table[name] = table[name].astype("category")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = Mondrian(table, names, sensitive).partition(k)
    return [np.asarray(part) for part in parts]


def set_loss(frame: pd.DataFrame, names: list[str], parts: list[np.ndarray[Any, Any]]) -> float:
    """GCP of parts whose label is the set of their values, and for age the extent; rows in no part lose all."""
    ages = frame["age"].astype(int).to_numpy()
    lost, seen = 0.0, 0
    codes = {name: pd.factorize(frame[name])[0] for name in names if name != "age"}
    distinct = {name: found.max() for name, found in codes.items()}
    for part in parts:
        seen += len(part)
        lost += len(part) * float(np.ptp(ages[part])) / float(np.ptp(ages))
        for name, found in codes.items():
            lost += len(part) * (len(np.unique(found[part])) - 1) / float(distinct[name])
    return (lost + (len(frame) - seen) * len(names)) / (len(frame) * len(names))


def pycanon(frame: pd.DataFrame, names: list[str], sensitive: str) -> dict[str, float]:
    """pyCANON's k, l, t and α."""
    from pycanon import anonymity

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "k": anonymity.k_anonymity(frame, names),
            "l": anonymity.l_diversity(frame, names, [sensitive]),
            "t": anonymity.t_closeness(frame, names, [sensitive]),
            "alpha": anonymity.alpha_k_anonymity(frame, names, [sensitive])[0],
        }
