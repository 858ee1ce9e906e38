"""Measures by hand, beside pyCANON, and right where pyCANON is not."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from foedus.compliance.masking import measures
from foedus.compliance.masking.classes import Counts
from foedus.compliance.masking.domains import Domain
from foedus.compliance.masking.hierarchies import Hierarchy
from foedus.compliance.masking.measures import Classes
from foedus.compliance.masking.models import (
    Closeness,
    DistinctDiversity,
    EntropyDiversity,
    KAnonymity,
    Metric,
    Presence,
    RecursiveDiversity,
)
from foedus.errors import InputError

NO_PYCANON = (
    "pyCANON is not here: it pins pandas < 3 and another typer, so no extra of ours can name it; "
    "`make bench-masking` installs it beside and compares there, too"
)


def counts(
    *rows: list[float], overall: list[float] | None = None, people: list[float] | None = None
) -> Counts:
    values = np.array(rows, float)
    whole = values.sum(axis=0) / values.sum() if overall is None else np.array(overall)
    return Counts(
        values.sum(axis=1), {"s": values}, {"s": whole}, None if people is None else np.array(people)
    )


def test_the_models_by_hand() -> None:
    two = counts([3, 1, 0], [1, 1, 2])
    assert KAnonymity(4).holds(two).all() and not KAnonymity(5).holds(two).any()
    assert DistinctDiversity("s", 2).score(two).tolist() == [2, 3]
    entropy = EntropyDiversity("s", 2).score(two)
    assert entropy == pytest.approx([4 / 3**0.75, 4 / 2**0.5])
    assert EntropyDiversity("s", 2).holds(counts([1, 1])).all()  # exactly 2, whatever rounding says
    assert RecursiveDiversity("s", 2, 3.0).score(two).tolist() == [3, 1]
    assert RecursiveDiversity("s", 2, 3.0).holds(two).tolist() == [False, True]
    assert RecursiveDiversity("s", 4, 100.0).score(two).tolist() == [np.inf, np.inf]
    assert Closeness("s", 0.25).score(two) == pytest.approx([0.25, 0.25])


def test_distances_of_li_et_al() -> None:
    """Their salaries 3k … 11k, section 5.1: P1 = {3k, 4k, 5k} lies 0.375 away, P2 = {6k, 8k, 11k} 0.167."""
    overall = [1 / 9] * 9
    found = Closeness("s", 1, Metric.ORDERED).score(
        counts([1, 1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1, 0, 0, 1], overall=overall)
    )
    assert found == pytest.approx([0.375, 1 / 6])


def test_a_hierarchical_distance_is_the_cheapest_transport() -> None:
    from scipy.optimize import linprog

    tree = Hierarchy.of([["a", "x", "*"], ["b", "x", "*"], ["c", "y", "*"], ["d", "y", "*"], ["e", "e", "*"]])
    apart = np.array(
        [
            [next(h for h in range(3) if tree.codes[h, i] == tree.codes[h, j]) / 2 for j in range(5)]
            for i in range(5)
        ]
    )
    rng = np.random.default_rng(1)
    for _ in range(50):
        rows, overall = rng.integers(0, 5, 5) + np.eye(5)[0], rng.dirichlet(np.ones(5))
        found = Closeness("s", 1, Metric.HIERARCHICAL, tree).score(counts(list(rows), overall=list(overall)))
        out, into = np.kron(np.eye(5), np.ones(5)), np.kron(np.ones(5), np.eye(5))
        best = linprog(
            apart.ravel(), A_eq=np.vstack([out, into]), b_eq=np.concatenate([rows / rows.sum(), overall])
        )
        assert found[0] == pytest.approx(best.fun, abs=1e-9)


def test_presence_needs_a_population_at_least_as_large() -> None:
    assert Presence(0, 0.5).score(counts([2], [2], people=[4, 1])).tolist() == [0.5, np.inf]
    with pytest.raises(InputError, match="needs a population"):
        Presence(0, 0.5).holds(counts([2]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: KAnonymity(0),
        lambda: DistinctDiversity("s", 0.5),
        lambda: RecursiveDiversity("s", 2, 0),
        lambda: Closeness("s", 1.1),
        lambda: Closeness("s", 0.1, Metric.HIERARCHICAL),
        lambda: Presence(0.5, 0.4),
    ],
)
def test_limits_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(InputError):
        make()


# ── pyCANON ──────────────────────────────────────────────────────────────────────────────────────


def same_as_pycanon(frame: pd.DataFrame, quasi: list[str], name: str) -> None:
    anonymity = pytest.importorskip("pycanon.anonymity", reason=NO_PYCANON)
    classes = Classes.of(frame, quasi, [name])
    numeric = pd.api.types.is_numeric_dtype(frame[name])
    found = measures.disclosure(
        classes, name, Closeness(name, 1.0, Metric.ORDERED if numeric else Metric.EQUAL)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = {
            f: getattr(anonymity, f)(frame, quasi, [name])
            for f in (
                "l_diversity",
                "entropy_l_diversity",
                "t_closeness",
                "basic_beta_likeness",
                "delta_disclosure",
            )
        }
        alpha, _ = anonymity.alpha_k_anonymity(frame, quasi, [name])
        assert classes.size.min() == anonymity.k_anonymity(frame, quasi)
    assert found.distinct_l == told["l_diversity"]
    # pyCANON cuts the entropy's l down to an integer, after rounding.
    assert told["entropy_l_diversity"] in {int(found.entropy_l * f) for f in (1 - 1e-9, 1 + 1e-9)}
    assert found.t == pytest.approx(told["t_closeness"], abs=1e-9)
    assert found.alpha == pytest.approx(alpha)
    assert found.beta == pytest.approx(told["basic_beta_likeness"])
    if np.isfinite(found.delta):  # pyCANON leaves out values that a class lacks
        assert found.delta == pytest.approx(told["delta_disclosure"])


@pytest.mark.parametrize("block", range(5))
def test_measures_are_those_of_pycanon(block: int) -> None:
    pytest.importorskip("pycanon.anonymity", reason=NO_PYCANON)
    for seed in range(block * 110, block * 110 + 110):
        rng = np.random.default_rng(seed)
        rows = int(rng.integers(2, 40))
        frame = pd.DataFrame({f"q{i}": rng.choice(list("abc"), rows) for i in range(int(rng.integers(1, 4)))})
        frame["s"] = rng.integers(0, 5, rows) if seed % 2 else rng.choice(list("xyz"), rows)
        if frame["s"].nunique() == 1:
            continue  # pyCANON divides by zero
        same_as_pycanon(frame, [n for n in frame if n != "s"], "s")


def test_a_missing_value_is_a_value() -> None:
    """pyCANON groups without them: it says k = 4."""
    frame = pd.DataFrame({"zip": ["1"] * 4 + [None], "age": [1.0] * 4 + [np.nan], "s": list("aabbd")})
    for quasi in (["zip"], ["age"], ["zip", "age"]):
        assert Classes.of(frame, quasi, ["s"]).size.min() == 1


@pytest.mark.parametrize("index", [[0, 2, 1, 3], [10, 11, 12, 13], [0, 0, 0, 0]])
def test_the_index_plays_no_part(index: list[int]) -> None:
    """pyCANON looks rows up by it: l = 2 where 1 is true, t = 0 where 0.5 is, or an error."""
    frame = pd.DataFrame({"zip": ["1", "1", "2", "2"], "s": ["a", "a", "b", "b"]}, index=index)
    found = measures.disclosure(Classes.of(frame, ["zip"], ["s"]), "s")
    assert found.distinct_l == 1 and found.t == pytest.approx(0.5)


def test_risks_are_those_of_records_not_of_classes() -> None:
    """pyCANON's average is over classes: 0.255 here, where a marketer gets 2 of 100 right."""
    classes = Classes.of(pd.DataFrame({"z": ["a"] * 98 + ["b"] * 2}), ["z"])
    assert measures.marketer(classes) == pytest.approx(0.02)
    risk = measures.prosecutor(classes, 0.2)
    assert (risk.highest, risk.above) == (0.5, 0.02) and risk.average == pytest.approx(0.02)
    assert measures.prosecutor(classes, 0.5).above == 0
    assert measures.journalist(classes, 0.2) is None


def test_people_are_counted_by_what_labels_cover() -> None:
    tree = Hierarchy.of([["a", "ab", "*"], ["b", "ab", "*"], ["c", "c", "*"]])
    domain = Domain("q", ("a", "b", "c"), tree)
    classes = Classes.of(pd.DataFrame({"q": ["ab", "ab", "a", "*"]}), ["q"])
    people = np.array([0, 0, 1, 2, 2])
    found = dict(zip(classes.quasi["q"].values, measures.fitting(classes, [domain], [people]), strict=True))
    assert found == {"ab": 3, "a": 2, "*": 5}


def test_an_empty_table_or_a_lacking_column_is_refused() -> None:
    with pytest.raises(InputError, match="no rows"):
        Classes.of(pd.DataFrame({"q": []}), ["q"])
    with pytest.raises(InputError, match="no column 'z'"):
        Classes.of(pd.DataFrame({"q": ["a"]}), ["z"])
