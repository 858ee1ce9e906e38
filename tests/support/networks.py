"""Small networks of every kind, and their gradients one customer at a time, by autograd alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Floats = npt.NDArray[np.float64]
STEPS, FEATURES, WORDS = 6, 4, 7
CROSS_ENTROPY = nn.BCEWithLogitsLoss(reduction="none")


class Sequences(nn.Module):
    """A recurrent layer and a linear one on its last output."""

    def __init__(self, cell: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        self.cell = cell(FEATURES, 3, batch_first=True, **options)
        self.last = nn.Linear(3 * (2 if options.get("bidirectional") else 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.cell(x)
        hidden = state[0] if isinstance(state, tuple) else state
        logits: Tensor = self.last(out[:, -1]) + out.mean((1, 2))[:, None] + hidden.mean((0, 2))[:, None]
        return logits


class Words(nn.Module):
    """Tokens, convolution, a layer used twice and a way around it."""

    def __init__(self, *, padding: int | None = None) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 5, padding_idx=padding)
        self.windows = nn.Conv1d(5, 4, 3, stride=2, padding=2, dilation=2)
        self.norm = nn.LayerNorm(4)
        self.twice = nn.Linear(4, 4)
        self.last = nn.Linear(4, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.windows(self.words(tokens).transpose(1, 2)).transpose(1, 2))
        x = x + self.twice(torch.tanh(self.twice(x)))
        logits: Tensor = self.last(x.mean(1))
        return logits


class Tied(nn.Module):
    """One table reads words and writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 4)
        self.out = nn.Linear(4, WORDS, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.out(torch.tanh(self.words(tokens)))
        return scores.square().mean((1, 2))[:, None]


class Own(nn.Module):
    """A parameter of its own, in no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(FEATURES))
        self.first = nn.Linear(FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.first(torch.tanh(x * self.scale))
        return logits


class Picture(nn.Sequential):
    """Two dimensions, group norm: layers without a formula of ours."""

    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, STEPS)),
            nn.Conv2d(1, 4, 3),
            nn.GroupNorm(2, 4),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(32, 1),
        )


def perceptron(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these sizes, activations between."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


FLAT: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(FEATURES, 1),
    "linear without bias": lambda: nn.Linear(FEATURES, 1, bias=False),
    **{
        f"perceptron {a.__name__}": (lambda a=a: perceptron(FEATURES, 5, 3, 1, activation=a))
        for a in (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Identity, nn.Softplus)
    },
    "activations in a row": lambda: nn.Sequential(
        nn.Linear(FEATURES, 5),
        nn.ReLU(),
        nn.Tanh(),
        nn.GELU(),
        nn.Sigmoid(),
        nn.Sequential(nn.Linear(5, 1)),
        nn.Tanh(),
    ),
    "own parameter": Own,
}
SEQUENCES: dict[str, Callable[[], nn.Module]] = {
    "linear in time": lambda: nn.Sequential(
        nn.Linear(FEATURES, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * STEPS, 1)
    ),
    "long and narrow": lambda: nn.Sequential(
        nn.Conv1d(STEPS, 2, 1), nn.Tanh(), nn.Conv1d(2, 2, 2), nn.Flatten(), nn.Linear(6, 1)
    ),
    "grouped convolution": lambda: nn.Sequential(
        nn.Conv1d(STEPS, 4, 2, groups=2), nn.Flatten(), nn.Linear(12, 1)
    ),
    "circular convolution": lambda: nn.Sequential(
        nn.Conv1d(STEPS, 3, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(12, 1)
    ),
    "LSTM": lambda: Sequences(nn.LSTM),
    "LSTM deep, both ways": lambda: Sequences(nn.LSTM, num_layers=2, bidirectional=True),
    "LSTM without bias": lambda: Sequences(nn.LSTM, bias=False),
    "GRU": lambda: Sequences(nn.GRU),
    "GRU deep, both ways": lambda: Sequences(nn.GRU, num_layers=2, bidirectional=True),
    "GRU without bias": lambda: Sequences(nn.GRU, bias=False),
    "RNN": lambda: Sequences(nn.RNN, nonlinearity="relu"),
    "picture": Picture,
}
TOKENS: dict[str, Callable[[], nn.Module]] = {
    "words": Words,
    "padded words": lambda: Words(padding=0),
    "tied": Tied,
}
ALL = {**FLAT, **SEQUENCES, **TOKENS}


def inputs(name: str, rows: int, *, seed: int = 1) -> Tensor:
    """Rows that the network of that name takes, float64 or tokens."""
    generator = torch.Generator().manual_seed(seed)
    if name in TOKENS:
        return torch.randint(0, WORDS, (rows, STEPS), generator=generator)
    shape = (rows, FEATURES) if name in FLAT else (rows, STEPS, FEATURES)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def network(name: str, *, seed: int = 3) -> nn.Module:
    """Float64, at random weights."""
    torch.manual_seed(seed)
    return ALL[name]().double()


def labels(rows: int) -> Tensor:
    """0 or 1, shape (rows, 1)."""
    return (torch.arange(rows) % 3 == 0).double()[:, None]


def by_customer(
    module: nn.Module, x: Tensor, y: Tensor, groups: npt.NDArray[np.int64] | None, loss: Any = CROSS_ENTROPY
) -> Floats:
    """Each customer's gradient, (customers, d): autograd on that customer's rows, nobody else's."""
    owners = np.arange(len(x)) if groups is None else groups
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = []
    for owner in np.unique(owners):
        rows = torch.from_numpy(np.flatnonzero(owners == owner))
        total = loss(module(x[rows]), y[rows]).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        found.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).reshape(-1)
                    for p, g in zip(parameters, gradients, strict=True)
                ]
            )
        )
    return torch.stack(found).numpy()


def clipped(gradients: Floats, clip: float) -> Floats:
    """Their sum, each cut to L2 norm `clip`."""
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    total: Floats = (gradients * np.minimum(1, clip / np.maximum(norms, 1e-300))).sum(axis=0)
    return total
