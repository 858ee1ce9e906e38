"""What the utility benchmark trains on: no leak, no customer on both sides, silos as said. Needs ../shared/data."""

from __future__ import annotations

import numpy as np
import pytest
import utility_data
from utility_data import SETS, Problem, load

pytestmark = pytest.mark.skipif(utility_data.directory() is None, reason="../shared/data is not here")

SHAPES = {  # customers in all, features, silos, part with label 1
    "telco / zip2": (7_043, 30, 7, 0.2654),
    "telco / Contract": (7_043, 30, 3, 0.2654),
    "mlc_churn / division": (5_000, 17, 9, 0.1414),
    "shoppers / TrafficType": (11_849, 58, 10, 0.1551),
    "bank / job": (41_188, 52, 12, 0.1127),
}


@pytest.fixture(scope="module", params=list(SETS))
def problem(request: pytest.FixtureRequest) -> Problem:
    return load(request.param, 0)


def test_sizes_and_silos(problem: Problem) -> None:
    train, test = problem.train, problem.test
    for side in (train, test):
        assert set(np.unique(side.silos)) == set(range(problem.silos))
        assert set(np.unique(side.labels)) == {0, 1}
        inputs = np.hstack([problem.raw(side), problem.dummies(side)])
        assert inputs.shape == (len(side.labels), problem.features) and np.isfinite(inputs).all()
    if problem.name in SHAPES:
        customers, features, silos, rate = SHAPES[problem.name]
        labels = np.concatenate([train.labels, test.labels])
        assert (len(labels), problem.features, problem.silos) == (customers, features, silos)
        assert labels.mean() == pytest.approx(rate, abs=5e-5)
        for silo in range(silos):
            share = (test.silos == silo).sum() / (np.sum(test.silos == silo) + np.sum(train.silos == silo))
            assert share == pytest.approx(utility_data.TEST_PART, abs=0.005)


def test_leaks_and_keys_are_no_features(problem: Problem) -> None:
    columns = {c.lower() for c in (*problem.numbers, *problem.levels)}
    assert not columns & {"duration", "customerid", "churn", "revenue", "y", "label", "silo", "state", "zip"}
    assert set(problem.numbers) | set(problem.levels) == set(problem.train.frame.columns)


def test_no_column_alone_gives_the_label_away(problem: Problem) -> None:
    labels = problem.train.labels
    for column in np.hstack([problem.raw(problem.train), problem.dummies(problem.train)]).T:
        assert column.std() == 0 or abs(np.corrcoef(column, labels)[0, 1]) < 0.6


def test_same_seed_same_split_and_another_another() -> None:
    first, again, other = (load.__wrapped__("mlc_churn / division", seed) for seed in (3, 3, 4))
    assert first.train.frame.equals(again.train.frame)
    assert not first.train.frame.equals(other.train.frame)


def test_cdnow_looks_at_other_customers_later() -> None:
    problem = load("cdnow", 0)
    # The panel joined in the first quarter of 1997: at the test date everyone is known, for a year and more.
    assert problem.test.frame["tenure"].min() >= 365 > problem.train.frame["tenure"].max()
    assert 0.29 < len(problem.test.labels) / (len(problem.test.labels) + len(problem.train.labels)) < 0.31
    assert problem.test.labels.mean() == pytest.approx(0.85, abs=0.02)  # who does not come back
