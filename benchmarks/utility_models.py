"""Two models, trained from sums over customers: what every arm of the utility benchmark but Opacus' is made of.

Logistic regression is a vector (features, bias). The MLP has one hidden layer of `HIDDEN` tanh units and a
linear path beside it: logit = v·tanh(Wx + b) + u·x + c.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from utility_data import Problem, Side

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

KINDS = ("LR", "MLP")
HIDDEN = 16
L2 = {"LR": 1e-4, "MLP": 1e-3}

# A public grid for every number column: cells equal in asinh(x), from −10⁶ to 10⁶.
CELLS, REACH = 128, 14.5
EDGES = np.sinh(np.linspace(-REACH, REACH, CELLS + 1))


def auc(scores: Floats, labels: Integers) -> float:
    """Mann–Whitney, ties counted half; NaN if a class is absent."""
    positive = labels == 1
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if not n0 or not n1:
        return float("nan")
    ordered = np.sort(scores[~positive])
    below, upto = (np.searchsorted(ordered, scores[positive], side=s) for s in ("left", "right"))
    return float((below + upto).sum() / 2 / (n0 * n1))


@dataclass(frozen=True)
class Scaling:
    """Lower and upper bound of each number column; what lies outside is clamped."""

    lower: Floats
    upper: Floats

    def inputs(self, problem: Problem, side: Side) -> Floats:
        """Numbers in [−1, 1], then the categories as 0 and 1: shape (customers, features)."""
        part = (problem.raw(side) - self.lower) / np.maximum(self.upper - self.lower, 1e-12)
        return np.hstack([np.clip(part, 0, 1) * 2 - 1, problem.dummies(side)])


def histograms(problem: Problem, side: Side) -> Floats:
    """Customers in each cell of the grid: shape (numbers, CELLS). A customer is in one cell of each column."""
    z = np.floor((np.arcsinh(problem.raw(side)) + REACH) / (2 * REACH) * CELLS)
    place = np.clip(z, 0, CELLS - 1).astype(np.int64)
    return np.stack([np.bincount(column, minlength=CELLS) for column in place.T]).astype(np.float64)


def scaling(counts: Floats, sigma: float) -> Scaling:
    """Bounds from histograms with noise of standard deviation `sigma` in each cell.

    Cells that don't stand out of the noise (3.2σ) are empty; the bounds are the quantiles .03 and .97 of the
    rest, a quarter of their distance further out. Where both fall in one cell: the rest's outermost edges.
    """
    lower, upper = np.zeros(len(counts)), np.zeros(len(counts))
    for j, noisy in enumerate(counts):
        kept = np.where(noisy > 3.2 * sigma, noisy, 0.0)
        if not kept.any():
            kept[int(noisy.argmax())] = 1.0
        reached = np.cumsum(kept) / kept.sum()
        low, high = (int(np.searchsorted(reached, q)) for q in (0.03, 0.97))
        if low == high:
            cells = np.flatnonzero(kept)
            a, b = EDGES[cells[0]], EDGES[cells[-1] + 1]
        else:
            a, b = np.interp([0.03, 0.97], np.concatenate([[0.0], reached]), EDGES)
        lower[j], upper[j] = a - 0.25 * (b - a), b + 0.25 * (b - a)
    return Scaling(lower, upper)


class Network(nn.Module):
    """The MLP; `start` seeds its public initial weights."""

    def __init__(self, features: int, start: int) -> None:
        super().__init__()
        rng = np.random.default_rng(start)
        self.first = nn.Linear(features, HIDDEN, dtype=torch.float64)
        self.last = nn.Linear(HIDDEN, 1, dtype=torch.float64)
        self.direct = nn.Linear(features, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            bound = np.sqrt(3 / features)
            self.first.weight.copy_(torch.from_numpy(rng.uniform(-bound, bound, (HIDDEN, features))))
            self.first.bias.copy_(torch.from_numpy(rng.uniform(-0.5, 0.5, HIDDEN)))
            self.last.weight.copy_(torch.from_numpy(rng.uniform(-1, 1, (1, HIDDEN)) / np.sqrt(HIDDEN)))
            self.last.bias.zero_()
            self.direct.weight.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, shape (customers, 1)."""
        logits: torch.Tensor = self.last(torch.tanh(self.first(x))) + self.direct(x)
        return logits


def build(kind: str, features: int, start: int) -> nn.Module:
    """A fresh model: zeros for logistic regression."""
    if kind == "MLP":
        return Network(features, start)
    linear = nn.Linear(features, 1, dtype=torch.float64)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def scores(module: nn.Module, inputs: Floats) -> Floats:
    """Logits, shape (customers,)."""
    with torch.no_grad():
        found: Floats = module(torch.from_numpy(inputs)).squeeze(-1).numpy()
    return found


def newton(inputs: Floats, labels: Integers, l2: float = L2["LR"], steps: int = 25) -> nn.Module:
    """Logistic regression to convergence, by Newton's method on all customers at once."""
    x = np.hstack([inputs, np.ones((len(inputs), 1))])
    ridge = np.full(x.shape[1], l2)
    ridge[-1] = 1e-9
    weights = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-(x @ weights)))
        gradient = x.T @ (p - labels) / len(x) + ridge * weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(x) + np.diag(ridge + 1e-9)
        weights -= np.linalg.solve(hessian, gradient)
    return linear(weights)


def linear(weights: Floats) -> nn.Module:
    """Logistic regression with these weights (features…, bias)."""
    module = nn.Linear(len(weights) - 1, 1, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(weights[None, :-1]))
        module.bias.copy_(torch.from_numpy(weights[-1:]))
    return module


def early_stopped(inputs: Floats, labels: Integers, start: int, *, steps: int = 1500) -> nn.Module:
    """The MLP by Adam on batches of 256, stopped where the loss of a held-out tenth is least; then that model."""
    module = build("MLP", inputs.shape[1], start)
    rng = np.random.default_rng(start)
    held = rng.random(len(labels)) < 0.1
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels.astype(np.float64))
    train = np.flatnonzero(~held)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01, weight_decay=1e-4)
    best, least = {k: v.clone() for k, v in module.state_dict().items()}, float("inf")
    for step in range(steps):
        rows = torch.from_numpy(rng.choice(train, size=min(256, len(train)), replace=False))
        optimiser.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(module(x[rows]).squeeze(-1), y[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % 25 == 24:
            with torch.no_grad():
                value = float(
                    nn.functional.binary_cross_entropy_with_logits(module(x[held]).squeeze(-1), y[held])
                )
            if value < least:
                best, least = {k: v.clone() for k, v in module.state_dict().items()}, value
    module.load_state_dict(best)
    return module
