"""The models a study may name, as PyTorch modules, and their weights as one flat vector.

Inputs have shape (customers, features) in [−1, 1]; the output is one logit a customer, of the label
"churned". Everything is float64, so that a deployment and a simulation agree to the last bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...errors import InputError
from ..study import Model, parameters

Vector = npt.NDArray[np.float64]


class MLP(nn.Module):
    """logit = v·tanh(Wx + b) + u·x + c; without `skip` there is no u."""

    def __init__(self, inputs: int, hidden: int, *, skip: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden, dtype=torch.float64)
        self.out = nn.Linear(hidden, 1, dtype=torch.float64)
        self.skip = nn.Linear(inputs, 1, bias=False, dtype=torch.float64) if skip else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit: torch.Tensor = self.out(torch.tanh(self.hidden(x)))
        return logit if self.skip is None else logit + self.skip(x)


def build(model: Model, inputs: int) -> nn.Module:
    """A module with the initial weights of the study's seed (zeros where the model is linear)."""
    if model.kind == "logistic_regression":
        linear = nn.Linear(inputs, 1, dtype=torch.float64)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return linear
    module = MLP(inputs, model.hidden, skip=model.skip)
    generator = torch.Generator().manual_seed(model.seed)  # public initial weights: no secret depends on it
    for parameter, bound in (
        (module.hidden.weight, 1.7 / np.sqrt(inputs)),
        (module.hidden.bias, 0.5),
        (module.out.weight, 1 / np.sqrt(model.hidden)),
    ):
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    nn.init.zeros_(module.out.bias)
    if module.skip is not None:
        nn.init.zeros_(module.skip.weight)
    return module


def to_vector(module: nn.Module) -> Vector:
    """All weights, flat, in the order of `parameters()`."""
    flat = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    return flat.numpy().astype(np.float64)


def load(module: nn.Module, weights: Vector) -> None:
    """Put a flat vector into the module's weights.

    Raises:
        InputError: wrong length, or a number that is not finite.
    """
    expected = sum(p.numel() for p in module.parameters())
    if weights.shape != (expected,) or not np.isfinite(weights).all():
        raise InputError(f"model weights: {expected} finite numbers are needed")
    at = 0
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.from_numpy(weights[at : at + p.numel()].copy()).reshape(p.shape))
            at += p.numel()


def initial(model: Model, inputs: int) -> Vector:
    """The weights a run starts from."""
    vector = to_vector(build(model, inputs))
    if vector.size != parameters(model, inputs):
        raise InputError("the model's size and its price disagree")
    return vector


def scores(model: Model, weights: Vector, inputs: npt.NDArray[np.float64]) -> Vector:
    """Logits of shape (customers,)."""
    module = build(model, inputs.shape[1])
    load(module, weights)
    with torch.no_grad():
        logits: Vector = module(torch.from_numpy(np.ascontiguousarray(inputs))).squeeze(-1).numpy()
    return logits
