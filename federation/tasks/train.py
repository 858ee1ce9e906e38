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
import torch
from torch import nn

from ...errors import InputError
from ...privacy.clipping import clip_factors
from .. import models
from ..rounds import COUNT_SHARE
from ..study import Study
from . import statistics

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def curvature(inputs: Floats, clip: float) -> Floats:
    """Rows to sum before training: the products x_i·x_j, i ≤ j, of a row's inputs and the constant 1.

    Args:
        inputs: shape (rows, inputs), in [−1, 1]. clip: L2 bound of (inputs, 1); a longer row is scaled down.

    Returns:
        shape (rows, p(p+1)/2) for p = inputs + 1; the last column is 1, or less where a row was clipped.
    """
    x = np.hstack([np.clip(inputs, -1, 1), np.ones((len(inputs), 1))])
    x *= clip_factors(x, clip)
    i, j = np.triu_indices(x.shape[1])
    products: Floats = x[:, i] * x[:, j]
    return products


def contributions(gradients: Floats, clip: float) -> Floats:
    """Rows to sum: each gradient clipped to L2 norm `clip`, then the constant. Shape (customers, d + 1)."""
    clipped = gradients * clip_factors(gradients, clip)
    return np.hstack([clipped, np.full((len(gradients), 1), clip * COUNT_SHARE)])


def weighted_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each row, times its weight: targets (rows, 2) are label and weight."""
    loss = nn.functional.binary_cross_entropy_with_logits(logits.squeeze(-1), targets[:, 0], reduction="none")
    return loss * targets[:, 1]


MAX_LOSS = 4.0
"""A customer's loss counts as this at most in a look; that of a coin is ln 2."""


def losses(scores: Floats, labels: Integers) -> Floats:
    """Rows of a look: each customer's cross-entropy ÷ `MAX_LOSS`, at most 1, and the constant 1. Shape (customers, 2)."""
    loss = np.logaddexp(0.0, np.where(labels == 1, -scores, scores))
    return np.stack([np.minimum(loss / MAX_LOSS, 1.0), np.ones(len(scores))], axis=1)


@dataclass(frozen=True)
class State:
    """Where a study stands.

    `weights` (d,); `statistics`, what `tasks.statistics` learned; `mean` and `square` (d,), Adam's moving
    averages; `counts`, the noisy counts of customers of all rounds so far; `inverse` (d, d), what the
    fixed-Hessian method multiplies a gradient by once the curvature is known; `looks`, the held-out losses so
    far, `best`, the weights at the least of them, and `stopped`, once training is over early.
    """

    weights: Floats
    statistics: Floats
    mean: Floats
    square: Floats
    counts: tuple[float, ...] = ()
    inverse: Floats | None = None
    looks: tuple[float, ...] = ()
    best: Floats | None = None
    stopped: bool = False

    @classmethod
    def start(cls, study: Study) -> State:
        """Before the first round."""
        weights = models.initial(study.model, study.inputs)
        return cls(weights, statistics.initial(study), np.zeros_like(weights), np.zeros_like(weights))

    @property
    def sent(self) -> Floats:
        """What nodes are sent before a round: weights and statistics, shape (study.sent,)."""
        return np.concatenate([self.weights, self.statistics])


def learn_curvature(state: State, total: Integers, study: Study, silos: int) -> State:
    """The state after the noisy sum of products over `silos`.

    Directions in which the moments don't stand out of the noise count as if they did at its level
    (3σ√p, about the spectral norm of the noise), so that no step is larger than the data warrant.
    """
    p = study.inputs + 1
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
    counts = (*state.counts, float(summed[-1] / (study.clip * COUNT_SHARE)))
    customers = max(1.0, sum(counts) / len(counts))
    gradient = summed[:-1] / customers + training.l2 * state.weights
    if training.optimiser == "adam":
        done = (len(counts) - 1) / training.rounds
        rate = training.rate * (0.55 + 0.45 * float(np.cos(np.pi * done)))
        return _adam(replace(state, counts=counts), gradient, rate)
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


def look(state: State, total: Integers, study: Study) -> State:
    """The state after the held-out customers' loss came in; training is over if it no longer falls.

    Training ends with the weights of the best look.
    """
    loss, customers = total.astype(np.float64) / 2.0**study.privacy.scale_bits_validate
    looks = (*state.looks, float(MAX_LOSS * loss / max(1.0, customers)))
    at = int(np.argmin(looks))
    best = state.weights if at == len(looks) - 1 else state.best
    stopping = study.training.early_stopping
    over = stopping is None or len(looks) - 1 - at >= stopping.patience
    last = len(looks) == study.tasks.count("validate")
    state = replace(state, looks=looks, best=best, stopped=over)
    return replace(state, weights=best) if (over or last) and best is not None else state


def advance(state: State, number: int, total: Integers, study: Study, silos: int) -> State:
    """The state after round `number`, whatever that round was for, summed over so many silos."""
    task = study.tasks[number - 1]
    if task == "statistics":
        noise = (
            study.privacy.sigma_statistics
            / 2.0**study.privacy.scale_bits_statistics
            * study.privacy.mode.spread(silos)
        )
        return replace(state, statistics=statistics.learn(total, study, float(noise)))
    if task == "curvature":
        return learn_curvature(state, total, study, silos)
    if task == "validate":
        return look(state, total, study)
    return step(state, total, study) if task == "train" else state


def following(state: State, number: int, study: Study) -> int | None:
    """The round after `number` (0: the first), given the state after it: the next, or evaluation; None after the last."""
    if number >= study.rounds:
        return None
    return study.rounds if state.stopped else number + 1
