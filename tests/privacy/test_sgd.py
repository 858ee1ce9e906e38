"""Per-customer gradients are autograd's, one customer at a time."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from foedus.errors import InputError
from foedus.federation import models
from foedus.federation.study import Model
from foedus.privacy.sgd import per_customer_gradients

Floats = npt.NDArray[np.float64]
KINDS = [Model(), Model(kind="mlp", hidden=5, seed=3), Model(kind="mlp", hidden=1)]


def batch(n: int, features: int = 4) -> tuple[Floats, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(n)
    return rng.uniform(-1, 1, (n, features)), rng.integers(0, 2, n)


def ready(model: Model, features: int = 4) -> nn.Module:
    """The model at random weights: at zeros many mistakes don't show."""
    module = models.build(model, features)
    size = sum(p.numel() for p in module.parameters())
    models.load(module, np.random.default_rng(1).normal(0, 1, size))
    return module


def one_by_one(module: nn.Module, x: Floats, y: npt.NDArray[np.int64]) -> Floats:
    rows = []
    for inputs, label in zip(x, y, strict=True):
        logit = module(torch.from_numpy(inputs)[None, :]).squeeze()
        loss = nn.functional.binary_cross_entropy_with_logits(
            logit, torch.tensor(float(label), dtype=torch.float64)
        )
        grads = torch.autograd.grad(loss, list(module.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in grads]).numpy())
    return np.array(rows)


@pytest.mark.parametrize("model", KINDS, ids=lambda m: f"{m.kind}-{m.hidden}")
@pytest.mark.parametrize("n", [1, 2, 37])
def test_gradients_are_those_of_autograd_one_by_one(model: Model, n: int) -> None:
    module, (x, y) = ready(model), batch(n)
    ours = per_customer_gradients(module, x, y)
    assert ours.shape == (n, sum(p.numel() for p in module.parameters()))
    assert np.abs(ours - one_by_one(module, x, y)).max() < 1e-10


def test_the_short_way_of_a_linear_layer_is_opacus_way() -> None:
    linear, (x, y) = ready(Model()), batch(20)
    assert (
        np.abs(
            per_customer_gradients(nn.Sequential(linear), x, y) - per_customer_gradients(linear, x, y)
        ).max()
        < 1e-10
    )


def test_batches_do_not_show() -> None:
    module, (x, y) = ready(Model(kind="mlp", hidden=2)), batch(5000)
    ours = per_customer_gradients(module, x, y)
    for part in (slice(4090, 4100), slice(4990, 5000)):
        assert np.abs(ours[part] - one_by_one(module, x[part], y[part])).max() < 1e-10


def test_one_customer_does_not_change_anothers_gradient() -> None:
    module, (x, y) = ready(Model(kind="mlp", hidden=5)), batch(10)
    before = per_customer_gradients(module, x, y)
    x[0], y[0] = 1.0, 1 - y[0]
    after = per_customer_gradients(module, x, y)
    assert np.abs(after[1:] - before[1:]).max() < 1e-12 and np.abs(after[0] - before[0]).max() > 1e-6


@pytest.mark.parametrize("model", KINDS, ids=lambda m: f"{m.kind}-{m.hidden}")
def test_the_model_is_left_as_it_was_and_nobody_is_an_empty_batch(model: Model) -> None:
    module, (x, y) = ready(model), batch(7)
    weights = models.to_vector(module)
    empty = per_customer_gradients(module, x[:0], y[:0])
    assert empty.shape == (0, weights.size)
    for _ in range(2):
        per_customer_gradients(module, x, y)
    assert (models.to_vector(module) == weights).all()
    assert [name for name, _ in module.named_parameters()] == [
        n for n, _ in models.build(model, 4).named_parameters()
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_inputs_that_are_not_finite_are_refused(bad: float) -> None:
    x, y = batch(3)
    x[1, 2] = bad
    with pytest.raises(InputError, match="finite"):
        per_customer_gradients(ready(Model()), x, y)


@pytest.mark.parametrize("bad", [2, -1])
def test_labels_are_0_or_1(bad: int) -> None:
    x, y = batch(3)
    y[0] = bad
    with pytest.raises(InputError, match="0 or 1"):
        per_customer_gradients(ready(Model()), x, y)


@pytest.mark.parametrize(
    "weights", [np.zeros(4), np.zeros(6), np.full(5, math.nan), np.full(5, math.inf), np.zeros((5, 1))]
)
def test_weights_that_do_not_fit_are_refused(weights: Floats) -> None:
    with pytest.raises(InputError, match="5 finite numbers"):
        models.load(models.build(Model(), 4), weights)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    one, two = Model(kind="mlp", seed=1), Model(kind="mlp", seed=2)
    torch.manual_seed(99)
    first = models.initial(one, 4)
    torch.manual_seed(5)
    assert (models.initial(one, 4) == first).all()
    assert not (models.initial(two, 4) == first).all()
    assert not models.initial(Model(), 4).any()
