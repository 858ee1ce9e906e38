"""The one file that knows Opacus: gradients row by row, for the layers we have no formula for and as the reference.

Opacus' samplers serve single layers (`layer_gradient`); its hooks serve whole modules (`HookedTrace`,
`per_customer_gradients`). Both hold every row's gradient: slow, and big.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...errors import InputError
from .checks import by_row as by_weight
from .checks import compare_rows, compare_sums, probe, row_weights
from .gradients import Explicit, Gradient

Floats = npt.NDArray[np.float64]
_BATCH = 4096  # rows whose gradients are held at once


def per_customer_gradients(module: nn.Module, inputs: Floats, labels: npt.NDArray[np.int64]) -> Floats:
    """Gradient of each row's binary cross-entropy with respect to all weights, by Opacus' hooks.

    A lone linear layer takes the exact short way (its per-row gradient is the output's gradient times the
    input).

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

    def part(start: int) -> Floats:
        trace = HookedTrace(module, (x[start : start + _BATCH],))
        logits = trace.outputs.detach().requires_grad_()
        loss = nn.functional.binary_cross_entropy_with_logits(
            logits.squeeze(-1), y[start : start + _BATCH], reduction="sum"
        )
        (back,) = torch.autograd.grad(loss, logits)
        return by_row(trace.gradients(back)).numpy().astype(np.float64)

    return np.concatenate([part(start) for start in range(0, len(x), _BATCH)])


def by_row(gradients: list[Gradient]) -> Tensor:
    """What `HookedTrace.gradients` found, as one matrix (rows, d) in the order of the module's parameters."""
    (explicit,) = gradients
    if not isinstance(explicit, Explicit):
        raise TypeError("Opacus gives explicit gradients")
    return torch.cat([g for _, g in explicit.rows], dim=1)


class HookedTrace:
    """One pass through a whole module by Opacus' hooks.

    Args:
        module: left as it is; a copy with Opacus' own recurrent layers does the work.
        inputs: rows first.

    Raises:
        InputError: Opacus doesn't know the module either.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        with _quiet():
            from opacus.grad_sample import GradSampleModule

            try:
                clone = _with_opacus_cells(copy.deepcopy(module))
                _set_modes(module, clone)
                self._clone = GradSampleModule(clone, loss_reduction="sum", strict=False)
                with torch.enable_grad():
                    outputs = self._clone(*inputs)
            except (NotImplementedError, ValueError, RuntimeError, TypeError, AttributeError) as error:
                raise InputError(_unknown(module, error)) from error
        if not isinstance(outputs, Tensor):
            raise InputError(f"{type(module).__name__} must return one tensor, rows first")
        self.outputs: Tensor = outputs

    def gradients(self, back: Tensor) -> list[Gradient]:
        """Every row's gradient: `back` is the loss's gradient with respect to the outputs, rows first."""
        rows = len(back)
        with _quiet():
            try:
                self.outputs.backward(back)  # type: ignore[no-untyped-call]
            except (NotImplementedError, ValueError, RuntimeError, TypeError, AttributeError) as error:
                raise InputError(_unknown(self._clone._module, error)) from error
        names = dict(self._clone._module.named_parameters())
        found = []
        for name, parameter in self._parameters.items():
            if name not in names:
                raise InputError(
                    f"Opacus has no gradient of {name}: this module can't be clipped per customer"
                )
            sample = getattr(names[name], "grad_sample", None)
            if isinstance(sample, list):
                sample = torch.stack(sample).sum(0)
            if sample is None:
                sample = parameter.new_zeros((rows, parameter.numel()))
            found.append((parameter, sample.detach().reshape(rows, -1)))
        return [Explicit(tuple(found))] if found else []


def check_hooks(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """That Opacus' gradients add up to autograd's, and no row moves another's; looked at without dropout.

    Raises:
        InputError: they don't, or one does.
    """
    still = copy.deepcopy(module).eval()
    parameters = [p for p in still.parameters() if p.requires_grad]
    with torch.enable_grad():
        outputs = still(*inputs)
    if not isinstance(outputs, Tensor) or outputs.dim() == 0 or len(outputs) != len(inputs[0]):
        raise InputError(f"{type(module).__name__} must return one tensor, rows first")
    back, weights = probe(outputs), row_weights(len(inputs[0]))
    truth = torch.autograd.grad(outputs, parameters, back, allow_unused=True)
    once = HookedTrace(still, inputs).gradients(back)
    again = HookedTrace(still, inputs).gradients(by_weight(back, weights))
    compare_sums(
        module,
        [total for gradient in once for _, total in gradient.sums(None)],
        [torch.zeros_like(p) if t is None else t for p, t in zip(parameters, truth, strict=True)],
    )
    compare_rows(module, [by_row(once)], [by_row(again)], weights)


def layer_gradient(layer: nn.Module, came: Tensor, went: Tensor) -> Explicit:
    """Gradients of one layer row by row: Opacus' sampler for its kind, else vmap over the layer itself.

    Args:
        came: the layer's input, rows first. went: the gradient of its output, rows first.

    Raises:
        InputError: neither works.
    """
    trainable = [p for p in layer.parameters() if p.requires_grad]
    with _quiet():
        from opacus.grad_sample import GradSampleModule
        from opacus.grad_sample.functorch import ft_compute_per_sample_gradient

        sampler = GradSampleModule.GRAD_SAMPLERS.get(type(layer), ft_compute_per_sample_gradient)
        try:
            with torch.no_grad():
                found: dict[nn.Parameter, Tensor] = sampler(layer, [came], went)
        except (NotImplementedError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise InputError(_unknown(layer, error)) from error
        finally:
            if hasattr(layer, "ft_compute_sample_grad"):
                del layer.ft_compute_sample_grad
    return Explicit(tuple((p, found[p].detach().reshape(len(came), -1)) for p in trainable))


def _with_opacus_cells(module: nn.Module) -> nn.Module:
    """The module with nn.RNN, LSTM and GRU replaced by Opacus' layers of the same weights."""
    from opacus.layers import DPGRU, DPLSTM, DPRNN

    if type(module) in (nn.RNN, nn.LSTM, nn.GRU):
        cell: Any = module
        options = {
            name: getattr(cell, name)
            for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
        }
        if cell.proj_size:
            options["proj_size"] = cell.proj_size
        if isinstance(cell, nn.RNN):
            options["nonlinearity"] = cell.nonlinearity
        kinds: dict[type[nn.Module], Any] = {nn.RNN: DPRNN, nn.LSTM: DPLSTM, nn.GRU: DPGRU}
        like = next(cell.parameters())
        twin = kinds[type(cell)](cell.input_size, cell.hidden_size, **options).to(like.dtype)
        twin.load_state_dict(cell.state_dict())
        frozen = {name: p.requires_grad for name, p in cell.named_parameters()}
        for name, p in twin.named_parameters():
            p.requires_grad_(frozen.get(name, True))
        done: nn.Module = twin
        return done
    for name, child in module.named_children():
        setattr(module, name, _with_opacus_cells(child))
    return module


def _set_modes(module: nn.Module, clone: nn.Module) -> None:
    """Train or eval as the module; but a layer with parameters must train: Opacus looks at no other."""
    modes = {name: layer.training for name, layer in module.named_modules()}
    for name, layer in clone.named_modules():
        above = name
        while above not in modes:
            above = above.rpartition(".")[0]
        layer.training = modes[above] or any(p.requires_grad for p in layer.parameters(recurse=False))


def _unknown(module: nn.Module, error: Exception) -> str:
    return (
        f"{type(module).__name__} can't be clipped per customer: {type(error).__name__}: {error}. "
        "Use layers that foedus or Opacus know, each with one input and one output tensor, rows first"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # Opacus touches torch APIs on their way out; nothing its caller could do.
        warnings.simplefilter("ignore")
        yield
