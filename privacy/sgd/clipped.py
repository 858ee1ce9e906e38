"""The sum of every customer's clipped gradient: the way through a module is chosen here."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...errors import InputError
from . import chain, graph
from .customers import Customers, Groups, blocks, count
from .gradients import Gradient, factors
from .reference import HookedTrace, check_hooks

Floats = npt.NDArray[np.float64]
Loss = Callable[[Tensor, Tensor], Tensor]
Inputs = Tensor | tuple[Tensor, ...]

BLOCK = 1024  # rows worked through at once: what they leave behind stays near the processor
_FEW = 32  # rows a new module is tried on
_ROOM = 1 << 23  # numbers that gradients held row by row may take
_MIXERS = (nn.modules.batchnorm._BatchNorm,)

# Modules whose formulas were found right (True), and those that need Opacus' hooks (False).
checked: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


class Trace(Protocol):
    """One pass of a block of rows through a module."""

    outputs: Tensor

    def gradients(self, back: Tensor) -> list[Gradient]:
        """Gradients of the trainable parameters, by the loss's gradient with respect to `outputs`."""


def clipped_gradient_sum(
    module: nn.Module, loss: Loss, inputs: Inputs, targets: Tensor, clip: float, groups: Groups = None
) -> tuple[Floats, int]:
    """Σ over customers of their gradient, clipped to L2 norm `clip`; one forward and one backward pass.

    A customer's gradient is that of the sum of its rows' losses: all rows of one customer are one
    contribution. Algorithm 1 of Abadi et al. 2016 ("Deep Learning with Differential Privacy", CCS) up to its
    noise. What one customer adds has norm at most `clip` with the rounding of the norm, of the factor and of
    the customer's own products covered; adding up over *many* customers rounds as floats do (float64: some
    1e-16 of the sum a product; use float64 where that matters).

    Args:
        module: returns one tensor, rows first. Its gradients and buffers are left as they are.
        loss: (outputs, targets) -> each row's loss, shape (rows,) or (rows, 1).
        inputs: a tensor, or a tuple of them for a module of several arguments; rows first in each.
        targets: rows first.
        clip: positive.
        groups: shape (rows,), whole numbers: equal ones are one customer. None: every row is its own.

    Returns:
        (float64 of shape (d,) in the order of the module's trainable parameters, number of customers).
        Zeros and 0 of no rows.

    Raises:
        InputError: a number that is not finite, a wrong shape, or a module that can't be clipped per customer.
    """
    return summed(module, loss, inputs, targets, clip, groups)[:2]


def summed(
    module: nn.Module,
    loss: Loss,
    inputs: Inputs,
    targets: Tensor,
    clip: float,
    groups: Groups,
    check: Callable[[list[nn.Parameter]], None] = lambda _: None,
) -> tuple[Floats, int, float]:
    """`clipped_gradient_sum`, and the sum of the rows' losses (not private); `check` is shown the parameters."""
    check_clip(clip)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    rows = check_inputs(inputs)
    if len(targets) != rows:
        raise InputError(f"{len(targets)} targets for {rows} rows")
    if rows == 0:
        count(0, groups)
        return np.zeros(sum(p.numel() for p in check_module(module))), 0, 0.0
    way = Way(module, inputs)
    check(way.parameters)
    total, missed, customers, lost = np.zeros(0), np.zeros(0), 0, 0.0
    for which, part in blocks(rows, groups, way.block):
        trace = way.through(tuple(x[which] for x in inputs))
        back, losses = _differentiate(loss, trace.outputs, targets[which])
        part_sum = clipped(trace.gradients(back), part, clip, way.parameters)
        customers += part.count
        lost += float(losses.sum())
        if not total.size:
            total, missed = part_sum, np.zeros_like(part_sum)
            continue
        sofar = total + part_sum
        # Neumaier 1974: what the addition rounds off is kept, so that many blocks err no more than one.
        missed += np.where(
            np.abs(total) >= np.abs(part_sum), (total - sofar) + part_sum, (part_sum - sofar) + total
        )
        total = sofar
    return total + missed, customers, lost


def clipped(
    gradients: list[Gradient], customers: Customers, clip: float, parameters: list[nn.Parameter]
) -> Floats:
    """One block's sum of clipped gradients, flat, float64.

    Raises:
        InputError: a gradient that is not finite.
    """
    with torch.no_grad():
        scale = factors(gradients, customers, clip)
        least = float(scale.min())
        if not least > 0:  # True for NaN too
            raise InputError(
                "a row's gradient is not finite: look for huge inputs or weights that have run away"
            )
        sums = dict[int, Tensor]()
        for gradient in gradients:
            sums.update((id(p), t) for p, t in gradient.sums(None if least == 1.0 else scale))
        flat = [sums[id(p)].reshape(-1) if id(p) in sums else p.new_zeros(p.numel()) for p in parameters]
        found: Floats = torch.cat(flat).numpy().astype(np.float64) if flat else np.zeros(0)
    if not np.isfinite(found).all():
        raise InputError(
            "a sum of clipped gradients is not finite: the gradients are too large for the model's floats"
        )
    return found


class Way:
    """The fastest pass that serves a module: by hand, layer by layer through autograd, or Opacus' hooks.

    The first time a module comes by, a few of its rows are looked at twice: that the gradients add up to
    autograd's, and that no row moves another's. Both hold for all batches or fail for nearly all.

    Args:
        module: any. inputs: at least one row.

    Raises:
        InputError: the module can't be clipped per customer.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._module = module
        self._links = chain.links(module)
        if len(inputs) != 1 or inputs[0].dim() != 2:
            self._links = None
        if self._links is not None:
            self.parameters, self.block = chain.trainable(self._links), 4 * BLOCK  # keeps little
            return
        self.parameters = check_module(module)
        self._formulas = checked.get(module)
        if self._formulas is None:
            self._formulas = _settled(module, tuple(x[:_FEW] for x in inputs))
        size = sum(p.numel() for p in self.parameters) if not self._formulas else graph.explicit_size(module)
        self.block = max(1, min(BLOCK, _ROOM // max(1, size)))

    def through(self, inputs: tuple[Tensor, ...]) -> Trace:
        """A pass of a block of rows."""
        if self._links is not None:
            return chain.ChainTrace(self._links, inputs[0])
        if self._formulas:
            return graph.GraphTrace(self._module, inputs)
        return HookedTrace(self._module, inputs)


def _settled(module: nn.Module, few: tuple[Tensor, ...]) -> bool:
    """Whether our formulas serve this module; if not, Opacus' hooks do."""
    try:
        graph.GraphTrace(module, few).check(module)
        formulas = True
    except graph.Unsupported:
        check_hooks(module, few)
        formulas = False
    if len(few[0]) > 1:  # one row alone can't show whether rows are mixed
        checked[module] = formulas
    return formulas


def row_loss(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Each row's loss, (rows,).

    Raises:
        InputError: the loss is one number, or a table.
    """
    losses = loss(outputs, targets)
    rows = len(outputs)
    if losses.shape not in ((rows,), (rows, 1)):
        raise InputError(
            f"the loss must give one number a row, shape ({rows},), not {tuple(losses.shape)}: use reduction='none'"
        )
    return losses.reshape(rows)


def check_clip(clip: float) -> None:
    """Raises InputError unless positive and finite."""
    if not (math.isfinite(clip) and clip > 0):
        raise InputError(f"clip must be positive and finite, not {clip}")


def check_inputs(inputs: tuple[Tensor, ...]) -> int:
    """The number of rows.

    Raises:
        InputError: no tensor, different numbers of rows, a number that is not finite.
    """
    if not inputs or not all(isinstance(x, Tensor) and x.dim() for x in inputs):
        raise InputError("inputs must be tensors, rows first")
    if len({len(x) for x in inputs}) != 1:
        raise InputError(f"inputs have different numbers of rows: {[len(x) for x in inputs]}")
    for x in inputs:
        if x.is_floating_point() and not finite(x):
            raise InputError("an input is not finite; look for missing or infinite values")
    return len(inputs[0])


def check_module(module: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters.

    Raises:
        InputError: a layer that mixes the rows of a batch.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, _MIXERS) and (layer.training or layer.running_mean is None):
            raise InputError(
                f"{name or 'the module'}: {type(layer).__name__} mixes the rows of a batch, so no clip bounds a "
                "customer; use LayerNorm or GroupNorm"
            )
    return [p for p in module.parameters() if p.requires_grad]


def finite(values: Tensor) -> bool:
    """Whether all are finite; a sum tells mostly, and is ten times as fast as looking at each."""
    with torch.no_grad():
        return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())


def _differentiate(loss: Loss, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the sum of the rows' losses with respect to the outputs, and the losses."""
    if _is_plain_cross_entropy(loss) and outputs.shape == targets.shape and targets.dtype == outputs.dtype:
        with torch.no_grad():
            losses = row_loss(loss, outputs, targets)
            back = torch.sigmoid(outputs.detach()).sub_(targets)
    else:
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            losses = row_loss(loss, leaf, targets)
            back = torch.zeros_like(leaf)
            if losses.requires_grad:
                (back,) = torch.autograd.grad(losses.sum(), leaf)
            losses = losses.detach()
    if not finite(losses):
        raise InputError("a row's loss is not finite; look at its target and at the weights")
    return back, losses


def _is_plain_cross_entropy(loss: Loss) -> bool:
    return (
        type(loss) is nn.BCEWithLogitsLoss
        and loss.weight is None
        and loss.pos_weight is None
        and not loss._forward_hooks
    )
