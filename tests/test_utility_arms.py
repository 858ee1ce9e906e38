"""Every arm of the utility benchmark trains, on a small problem made up here, and sees only what it should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import utility_models as models
import utility_ours
import utility_rivals
from torch import nn
from utility_data import Problem, Side

Arm = Callable[[str, Problem, float, int], tuple[nn.Module, models.Scaling]]


def _side(rng: np.random.Generator, customers: int) -> Side:
    number, far = rng.normal(40, 10, customers), rng.lognormal(5, 1, customers)
    colour = rng.choice(["blue", "green", "red"], customers)
    logit = (number - 40) / 6 + 1.5 * (colour == "red") - 0.5
    labels = (rng.random(customers) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    frame = pd.DataFrame({"a.number": number, "far": far, "colour": colour})
    return Side(frame, labels, rng.integers(0, 3, customers).astype(np.int64))


@pytest.fixture(scope="module")
def problem() -> Problem:
    rng = np.random.default_rng(5)
    train, test = _side(rng, 2400), _side(rng, 1000)
    return Problem(
        "made up", ("a.number", "far"), {"colour": ("blue", "green", "red")}, tuple("xyz"), train, test
    )


@pytest.fixture(scope="module")
def ceiling(problem: Problem) -> float:
    scaling = models.scaling(models.histograms(problem, problem.train), 0.0)
    module = models.newton(scaling.inputs(problem, problem.train), problem.train.labels)
    return models.auc(models.scores(module, scaling.inputs(problem, problem.test)), problem.test.labels)


@pytest.mark.parametrize("kind", models.KINDS)
def test_ours_comes_near_at_its_price(problem: Problem, ceiling: float, kind: str) -> None:
    scores, side, spent = utility_ours.distributed(problem, kind, 3.0, 0)
    assert 2.9 < spent <= 3.0
    # The rows come back silo by silo; the same customers, in another order.
    assert sorted(side.labels) == sorted(problem.test.labels)
    assert np.bincount(side.silos).tolist() == np.bincount(problem.test.silos).tolist()
    assert ceiling > 0.8 and models.auc(scores, side.labels) > ceiling - 0.03


def test_federated_is_pooled(problem: Problem, ceiling: float) -> None:
    scores, side = utility_ours.federated(problem, "LR", 0)
    assert models.auc(scores, side.labels) == pytest.approx(ceiling, abs=0.003)


@pytest.mark.parametrize(("kind", "arm"), [("LR", utility_rivals.central), ("MLP", utility_rivals.local)])
def test_rivals_learn(problem: Problem, ceiling: float, kind: str, arm: Arm) -> None:
    module, scaling = arm(kind, problem, 8.0, 0)
    found = models.auc(models.scores(module, scaling.inputs(problem, problem.test)), problem.test.labels)
    assert found > ceiling - 0.04


def test_test_customers_are_not_trained_on(problem: Problem) -> None:
    """Turning every test label round leaves the model as it is, but for the dither of its rounding."""
    turned = replace(problem, test=replace(problem.test, labels=1 - problem.test.labels))
    (first, side), (second, other) = (utility_ours.federated(p, "LR", 0) for p in (problem, turned))
    assert np.allclose(first, second, atol=0.01) and np.array_equal(side.labels, 1 - other.labels)
