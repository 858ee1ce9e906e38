"""Training: one round is one full-batch step on clipped per-customer gradients.

A customer's row is its clipped gradient and, behind it, a constant: the sum of the constants is a noisy
count of customers, which the step needs and which no silo may say aloud.

The fixed-Hessian method (Böhning and Lindsay 1988, Ann. Inst. Stat. Math.) bounds the logistic Hessian
by ¼XᵀX, so one noisy sum of the inputs' products, taken before training, gives all the steps their
direction: it converges in a handful of rounds with nothing to tune, where plain gradient descent
needs dozens and a learning rate that suits the data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...privacy.clipping import clip_factors
from ..rounds import COUNT_SHARE
from ..study import Study

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def curvature(inputs: Floats) -> Floats:
    """Rows to sum before training: the products x_i·x_j, i ≤ j, of a customer's inputs and the constant 1.

    Args:
        inputs: shape (customers, features), in [−1, 1].

    Returns:
        shape (customers, p(p+1)/2) for p = features + 1; the last column is 1 and counts customers.
    """
    x = np.hstack([np.clip(inputs, -1, 1), np.ones((len(inputs), 1))])
    i, j = np.triu_indices(x.shape[1])
    products: Floats = x[:, i] * x[:, j]
    return products


def contributions(gradients: Floats, clip: float) -> Floats:
    """Rows to sum: each gradient clipped to L2 norm `clip`, then the constant. Shape (customers, d + 1)."""
    clipped = gradients * clip_factors(gradients, clip)
    return np.hstack([clipped, np.full((len(gradients), 1), clip * COUNT_SHARE)])


@dataclass(frozen=True)
class State:
    """Where training stands.

    `weights` (d,); `mean` and `square` (d,), Adam's moving averages; `counts`, the noisy counts of
    customers of all rounds so far; `inverse` (d, d), what the fixed-Hessian method multiplies a gradient
    by once the curvature is known.
    """

    weights: Floats
    mean: Floats
    square: Floats
    counts: tuple[float, ...] = ()
    inverse: Floats | None = None

    @classmethod
    def start(cls, weights: Floats) -> State:
        return cls(weights, np.zeros_like(weights), np.zeros_like(weights))


def learn_curvature(state: State, total: Integers, study: Study, silos: int) -> State:
    """The state after the noisy sum of products over `silos`.

    Directions in which the moments don't stand out of the noise count as if they did at its level
    (3σ√p, about the spectral norm of the noise), so that no step is larger than the data warrant.
    """
    p = len(study.features) + 1
    scale = 2.0**study.privacy.scale_bits_curvature
    moments = np.zeros((p, p))
    moments[np.triu_indices(p)] = total.astype(np.float64) / scale
    moments = moments + np.triu(moments, 1).T
    customers = max(1.0, float(moments[-1, -1]))
    noise = study.privacy.sigma_curvature / scale * study.privacy.mode.spread(silos)
    values, vectors = np.linalg.eigh(moments / customers)
    floored = np.maximum(values, 3 * noise * np.sqrt(p) / customers + 1e-6)
    inverse = (vectors / (floored / 4 + study.training.l2)) @ vectors.T
    # The model's weights come as (features…, bias), as the inputs here: (features…, 1).
    return replace(state, inverse=inverse)


def step(state: State, total: Integers, study: Study) -> State:
    """The state after a training round whose noisy integer sum was `total` (d + 1,).

    The number of customers is the mean of the noisy counts so far, at least 1.

    Raises:
        InputError: a fixed-Hessian step before the curvature is known.
    """
    training, scale = study.training, 2.0**study.privacy.scale_bits_train
    summed = total.astype(np.float64) / scale
    counts = (*state.counts, float(summed[-1] / (training.clip * COUNT_SHARE)))
    customers = max(1.0, sum(counts) / len(counts))
    gradient = summed[:-1] / customers + training.l2 * state.weights
    if training.optimiser == "adam":
        return _adam(replace(state, counts=counts), gradient, training.rate)
    if state.inverse is None:
        raise InputError("a fixed-Hessian step needs the curvature first")
    return replace(state, weights=state.weights - training.rate * (state.inverse @ gradient), counts=counts)


def _adam(state: State, gradient: Floats, rate: float) -> State:
    """Kingma and Ba 2015, Algorithm 1; β₂ = 0.99, as rounds are few."""
    beta1, beta2, t = 0.9, 0.99, len(state.counts)
    mean = beta1 * state.mean + (1 - beta1) * gradient
    square = beta2 * state.square + (1 - beta2) * gradient**2
    move = (mean / (1 - beta1**t)) / (np.sqrt(square / (1 - beta2**t)) + 1e-8)
    return replace(state, weights=state.weights - rate * move, mean=mean, square=square)


def advance(state: State, number: int, total: Integers, study: Study, silos: int) -> State:
    """The state after round `number`, whatever that round was for."""
    task = study.tasks[number - 1]
    if task == "curvature":
        return learn_curvature(state, total, study, silos)
    return step(state, total, study) if task == "train" else state
