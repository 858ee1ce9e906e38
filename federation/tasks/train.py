"""Training: one round is one full-batch gradient step on clipped per-customer gradients.

A customer's row is its clipped gradient and, behind it, a constant: the sum of the constants is a noisy
count of customers, which the step needs and which no silo may say aloud.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..study import COUNT_SHARE, Study

Floats = npt.NDArray[np.float64]

def contributions(gradients: Floats, clip: float) -> Floats:
    """Rows to sum: each gradient clipped to L2 norm `clip`, then the constant. Shape (customers, d + 1)."""
    peak = np.maximum(np.abs(gradients).max(axis=1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)
    norms = peak * np.linalg.norm(gradients / peak, axis=1, keepdims=True)
    clipped = gradients * np.where(norms > clip, clip / np.maximum(norms, clip), 1.0)
    return np.hstack([clipped, np.full((len(gradients), 1), clip * COUNT_SHARE)])


@dataclass(frozen=True)
class State:
    """Where training stands: weights and velocity (d,), and the noisy counts of all rounds so far."""

    weights: Floats
    velocity: Floats
    counts: tuple[float, ...] = ()

    @classmethod
    def start(cls, weights: Floats) -> State:
        return cls(weights, np.zeros_like(weights))


def step(state: State, total: npt.NDArray[np.int64], study: Study) -> State:
    """The state after a round whose noisy integer sum was `total` (d + 1,): SGD with momentum and L2.

    The number of customers is the mean of the noisy counts so far, at least 1.
    """
    training, scale = study.training, 2.0**study.privacy.scale_bits_train
    summed = total.astype(np.float64) / scale
    counts = (*state.counts, float(summed[-1] / (training.clip * COUNT_SHARE)))
    customers = max(1.0, sum(counts) / len(counts))
    gradient = summed[:-1] / customers + training.l2 * state.weights
    velocity = training.momentum * state.velocity + gradient
    return State(state.weights - training.learning_rate * velocity, velocity, counts)
