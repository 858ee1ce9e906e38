"""Per-customer gradients: the one file that knows Opacus.

One customer is one row. A lone linear layer takes the exact short way (its per-row gradient is the
output's gradient times the input); every other model goes through Opacus' hooks.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..errors import InputError

Floats = npt.NDArray[np.float64]
_BATCH = 4096  # rows whose gradients are held at once by Opacus


def per_customer_gradients(module: nn.Module, inputs: Floats, labels: npt.NDArray[np.int64]) -> Floats:
    """Gradient of each customer's binary cross-entropy with respect to all weights.

    Args:
        module: maps (customers, features) to one logit each. inputs: float64. labels: 0 or 1.

    Returns:
        shape (customers, d), in the order of `module.parameters()`.

    Raises:
        InputError: non-finite inputs or labels other than 0 and 1.
    """
    if not np.isfinite(inputs).all() or not np.isin(labels, (0, 1)).all():
        raise InputError("features must be finite and labels 0 or 1")
    d = sum(p.numel() for p in module.parameters())
    if len(inputs) == 0:
        return np.zeros((0, d))
    x, y = torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(labels.astype(np.float64))
    if isinstance(module, nn.Linear) and module.out_features == 1 and module.bias is not None:
        with torch.no_grad():
            residual = torch.sigmoid(module(x).squeeze(-1)) - y
            return torch.cat([residual[:, None] * x, residual[:, None]], dim=1).numpy()
    return np.concatenate(
        [_opacus(module, x[i : i + _BATCH], y[i : i + _BATCH]) for i in range(0, len(x), _BATCH)]
    )


def _opacus(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Floats:
    with warnings.catch_warnings():
        # Opacus touches a torch API on its way out; nothing its caller could do.
        warnings.simplefilter("ignore")
        from opacus.grad_sample import GradSampleModule

        wrapped = GradSampleModule(module, loss_reduction="sum")
        try:
            wrapped.zero_grad(set_to_none=True)
            logits = wrapped(x).squeeze(-1)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            rows = [p.grad_sample.reshape(len(x), -1) for p in wrapped.parameters()]
            return torch.cat(rows, dim=1).detach().numpy().astype(np.float64)
        finally:
            wrapped.to_standard_module()
