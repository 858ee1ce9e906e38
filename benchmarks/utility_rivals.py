"""The rivals with privacy: Opacus in one place, and Opacus at every silo with plain averaging.

Both pay for their scaling as foedus does: a tenth of μ² goes to one noisy histogram a column; the rest to
DP-SGD with Poisson sampling, its noise calibrated by dp-accounting's PLD over histogram and steps together.
Neither pays for evaluation. Rates, clips and steps were chosen as foedus' were: one recipe a model, on other
splits of the same sets.
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass

import dp_accounting
import numpy as np
import torch
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from utility_data import Problem, Side
from utility_models import Floats, Integers, Scaling, build, histograms, scaling

DELTA = 1e-5
STATISTICS_SHARE = 0.1
BATCHES = 10
"""Batches of an epoch: a customer is in a batch with probability 1/10, as good as full batches in noise."""


@dataclass(frozen=True)
class Recipe:
    """DP-SGD with momentum .9, or by Adam: gradients clipped to `clip`·√(features + 1).

    The rate falls along a cosine to a tenth over the epochs, as foedus' does.
    """

    epochs: int
    rate: float
    clip: float
    rounds: int = 1
    adam: bool = False


CENTRAL = {"LR": Recipe(30, 0.2, 0.3), "MLP": Recipe(30, 0.08, 0.3, adam=True)}
LOCAL = {"LR": Recipe(30, 0.2, 0.3, rounds=10), "MLP": Recipe(30, 0.04, 0.3, rounds=10, adam=True)}
"""Each round some local epochs, then plain averaging, as in Flower's example."""


def _mu(epsilon: float) -> float:
    """μ of the Gaussian mechanism that is (ε, δ)-private: δ(ε) = Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2)."""

    def delta(mu: float) -> float:
        def phi(v: float) -> float:
            return math.erfc(-v / math.sqrt(2)) / 2

        return phi(-epsilon / mu + mu / 2) - math.exp(epsilon) * phi(-epsilon / mu - mu / 2)

    low, high = 1e-3, 20.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle) <= DELTA else (low, middle)
    return low


def statistics_sigma(epsilon: float, sensitivity: float) -> float:
    """Noise of the histograms."""
    return sensitivity / (_mu(epsilon) * math.sqrt(STATISTICS_SHARE))


@functools.cache
def noise_multiplier(epsilon: float, steps: int) -> float:
    """Of DP-SGD's steps, so that they and the histograms together are (ε, δ)-private."""
    histogram = dp_event.GaussianDpEvent(statistics_sigma(epsilon, 1.0))

    def event(multiplier: float) -> dp_event.DpEvent:
        step = dp_event.PoissonSampledDpEvent(1 / BATCHES, dp_event.GaussianDpEvent(multiplier))
        return dp_event.ComposedDpEvent([histogram, dp_event.SelfComposedDpEvent(step, steps)])

    found = dp_accounting.calibrate_dp_mechanism(
        lambda: pld_privacy_accountant.PLDAccountant(value_discretization_interval=1e-3),
        event,
        epsilon,
        DELTA,
        dp_accounting.ExplicitBracketInterval(0.3, 200.0),
        tol=2e-3,
    )
    return float(found)


def noisy_scaling(problem: Problem, parts: list[Floats], epsilon: float, seed: int) -> Scaling:
    """Scaling from histograms to each of which its owner added noise: one owner, or every silo."""
    rng = np.random.default_rng([seed, 1])
    sigma = statistics_sigma(epsilon, math.sqrt(len(problem.numbers)))
    total = np.sum([part + rng.normal(0, sigma, part.shape) for part in parts], axis=0)
    return scaling(total, sigma * math.sqrt(len(parts)))


def _opacus(
    module: nn.Module, inputs: Floats, labels: Integers, recipe: Recipe, epochs: range, multiplier: float
) -> None:
    """These of all `epochs`, by Opacus' DP-SGD, in place."""
    from opacus import PrivacyEngine

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Opacus' own: its noise is not a cipher's, which is fine here
        data = TensorDataset(torch.from_numpy(inputs), torch.from_numpy(labels.astype(np.float64)))
        loader = DataLoader(data, batch_size=math.ceil(len(labels) / BATCHES))
        private, optimiser, batches = PrivacyEngine(accountant="rdp").make_private(
            module=module,
            optimizer=torch.optim.Adam(module.parameters(), lr=recipe.rate)
            if recipe.adam
            else torch.optim.SGD(module.parameters(), lr=recipe.rate, momentum=0.9),
            data_loader=loader,
            noise_multiplier=multiplier,
            max_grad_norm=recipe.clip * math.sqrt(inputs.shape[1] + 1),
        )
        assert len(batches) == BATCHES  # what the noise is calibrated for
        for epoch in epochs:
            falling = 0.55 + 0.45 * math.cos(math.pi * epoch / recipe.epochs)
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate * falling
            for x, y in batches:
                optimiser.zero_grad()
                loss = nn.functional.binary_cross_entropy_with_logits(private(x).squeeze(-1), y)
                (loss if len(x) else loss.nan_to_num()).backward()
                optimiser.step()
        private.to_standard_module()


def central(kind: str, problem: Problem, epsilon: float, seed: int) -> tuple[nn.Module, Scaling]:
    """Everything at one trusted server, Opacus there."""
    torch.manual_seed(seed)
    train, recipe = problem.train, CENTRAL[kind]
    found = noisy_scaling(problem, [histograms(problem, train)], epsilon, seed)
    module = build(kind, problem.features, seed)
    multiplier = noise_multiplier(epsilon, recipe.epochs * BATCHES)
    _opacus(module, found.inputs(problem, train), train.labels, recipe, range(recipe.epochs), multiplier)
    return module, found


def local(kind: str, problem: Problem, epsilon: float, seed: int) -> tuple[nn.Module, Scaling]:
    """Every silo private by itself; the server averages weights by the number of customers, each round."""
    torch.manual_seed(seed)
    train, recipe = problem.train, LOCAL[kind]
    silos = [np.flatnonzero(train.silos == i) for i in range(problem.silos)]
    sides = [Side(train.frame.iloc[rows], train.labels[rows], train.silos[rows]) for rows in silos]
    found = noisy_scaling(problem, [histograms(problem, side) for side in sides], epsilon, seed)
    inputs = [found.inputs(problem, side) for side in sides]
    multiplier = noise_multiplier(epsilon, recipe.epochs * BATCHES)
    module = build(kind, problem.features, seed)
    shares = np.array([len(rows) for rows in silos]) / len(train.labels)
    each = recipe.epochs // recipe.rounds
    for number in range(recipe.rounds):
        epochs = range(number * each, (number + 1) * each)
        before = {k: v.clone() for k, v in module.state_dict().items()}
        mean = {k: torch.zeros_like(v) for k, v in before.items()}
        for x, side, share in zip(inputs, sides, shares, strict=True):
            module.load_state_dict(before)
            _opacus(module, x, side.labels, recipe, epochs, multiplier)
            for name, value in module.state_dict().items():
                mean[name] += share * value
        module.load_state_dict(mean)
    return module, found
