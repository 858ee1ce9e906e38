"""Whether gradients row by row are what they are taken for; a new module is looked at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...errors import InputError


def probe(outputs: Tensor) -> Tensor:
    """A gradient of the outputs that no structure of a module is likely to hide from."""
    return torch.arange(1, outputs.numel() + 1, dtype=outputs.dtype).sin_().view(outputs.shape)


def row_weights(rows: int) -> Tensor:
    """A different weight for every row."""
    return 0.5 + torch.arange(1, rows + 1, dtype=torch.float64).mul(0.6180339887).frac()


def by_row(values: Tensor, weights: Tensor) -> Tensor:
    """Each row of `values` times its weight."""
    return values * weights.to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))


def compare_sums(module: nn.Module, ours: list[Tensor], true: list[Tensor]) -> None:
    """Raises InputError where the sum of the rows' gradients is not autograd's gradient."""
    for a, b in zip(ours, true, strict=True):
        if not _alike(a, b):
            raise InputError(
                f"{type(module).__name__} uses a layer's parameter outside that layer's forward pass, where "
                "its gradient per customer can't be seen"
            )


def compare_rows(module: nn.Module, once: list[Tensor], weighted: list[Tensor], weights: Tensor) -> None:
    """Raises InputError where weighting the rows' losses doesn't weight the rows' gradients.

    Args:
        once: linear in the gradient of the outputs, rows first. weighted: the same under `row_weights`.
    """
    for a, b in zip(once, weighted, strict=True):
        if len(weights) > 1 and not _alike(by_row(a, weights), b):
            raise InputError(
                f"{type(module).__name__} mixes rows: a customer's row changes what others' rows give, so "
                "no clip bounds it (batch normalisation? rows not the first dimension?)"
            )


def _alike(one: Tensor, two: Tensor) -> bool:
    """Equal to rounding; what is not finite is for others to refuse."""
    if one.numel() == 0:
        return True
    size = max(float(one.abs().max()), float(two.abs().max()))
    apart = float((one - two).abs().max())
    return not math.isfinite(size) or apart <= 1e5 * torch.finfo(one.dtype).eps * size
