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


def build(model: Model, features: int) -> nn.Module:
    """A module with the initial weights of the study's seed (zeros for logistic regression)."""
    if model.kind == "logistic_regression":
        linear = nn.Linear(features, 1, dtype=torch.float64)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return linear
    first = nn.Linear(features, model.hidden, dtype=torch.float64)
    last = nn.Linear(model.hidden, 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(model.seed)  # public initial weights: no secret depends on it
    for layer in (first, last):
        bound = 1 / np.sqrt(layer.in_features)
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.Tanh(), last)


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


def initial(model: Model, features: int) -> Vector:
    """The weights a run starts from."""
    vector = to_vector(build(model, features))
    if vector.size != parameters(model, features):
        raise InputError("the model's size and its price disagree")
    return vector


def scores(model: Model, weights: Vector, inputs: npt.NDArray[np.float64]) -> Vector:
    """Logits of shape (customers,)."""
    module = build(model, inputs.shape[1])
    load(module, weights)
    with torch.no_grad():
        logits: Vector = module(torch.from_numpy(np.ascontiguousarray(inputs))).squeeze(-1).numpy()
    return logits
