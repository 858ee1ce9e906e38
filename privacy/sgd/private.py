"""The drop-in: PyTorch's own loop, with gradients clipped per customer and noise added.

batches = PoissonBatches(x, y, sampling_probability=0.01, steps=1000)
model = PrivateModel(model, clip=1.0)
optimizer = PrivateOptimizer(torch.optim.Adam(model.parameters()), model, noise_multiplier=1.1, batches=batches)
for x, y in batches:
    loss = criterion(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...errors import InputError, ProtocolError
from ..events import Gaussian, PoissonSampled
from . import clipped as clipping
from .customers import Customers, Groups, blocks, count
from .release import LocalNoise
from .sampling import PoissonBatches

Floats = npt.NDArray[np.float64]
SecureSum = Callable[[Floats], Floats]


@dataclass
class _Sum:
    """A clipped sum that lies in the parameters' `.grad` and waits for its noise."""

    total: Floats
    customers: int
    written: list[tuple[Tensor, int]]  # each .grad and its version when it was written


class PrivateModel(nn.Module):
    """A module whose gradients are sums of clipped gradients of customers.

    In training mode, `loss.backward()` puts Σ clipped gradients into `.grad`, for any loss that is a mean or
    a sum over rows of something of that row alone. (A loss that compares rows with each other breaks the clip's
    promise, and can't be seen from here; `loss(…)` sees it.) In eval mode, or without autograd, it is the module.

    Args:
        module: returns one tensor, rows first.
        clip: L2 bound of what one customer adds.
        loss: (outputs, targets) -> one number a row; needed for `loss` alone.
        reduction: what the loop's own criterion does over rows; a wrong word makes for bad clipping, not for less
            privacy.

    Raises:
        InputError: a layer that mixes rows; a clip that is not positive.
    """

    def __init__(
        self,
        module: nn.Module,
        clip: float,
        *,
        loss: clipping.Loss | None = None,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        clipping.check_clip(clip)
        if reduction not in ("mean", "sum"):
            raise InputError(f"reduction is 'mean' or 'sum', not {reduction!r}")
        if not clipping.check_module(module):
            raise InputError("there is nothing to train: every parameter is frozen")
        self.module = module
        self.clip = clip
        self._loss, self._reduction = loss, reduction
        self._pending: _Sum | None = None
        self._written: list[tuple[Tensor, int]] = []
        self._parameters_then = list(module.parameters())

    def forward(self, *inputs: Tensor, groups: Groups = None) -> Tensor:
        """Outputs, rows first; `groups` says which rows are one customer's."""
        if not (self.training and torch.is_grad_enabled()):
            found: Tensor = self.module(*inputs)
            return found
        rows = clipping.check_inputs(inputs)
        if rows == 0:
            count(0, groups)
            outputs = self._shape_of_none(inputs)
            return self._bound(outputs, lambda back: (self._nothing(), 0))
        parts: list[tuple[Any, Customers, clipping.Trace]] = []
        way = clipping.Way(self.module, inputs)
        self._check_same(way.parameters)
        for which, part in blocks(rows, groups, way.block):
            parts.append((which, part, way.through(tuple(x[which] for x in inputs))))
        outputs = parts[0][2].outputs.detach()
        if len(parts) > 1:
            outputs = outputs.new_empty((rows, *outputs.shape[1:]))
            for which, _, trace in parts:
                outputs[which] = trace.outputs.detach()

        def summed(back: Tensor) -> tuple[Floats, int]:
            total, customers = self._nothing(), 0
            for which, part, trace in parts:
                total += clipping.clipped(trace.gradients(back[which]), part, self.clip, way.parameters)
                customers += part.count
            return total, customers

        return self._bound(outputs, summed)

    def loss(self, inputs: clipping.Inputs, targets: Tensor, groups: Groups = None) -> Tensor:
        """The mean loss over rows, with gradients as the loop's own; works in blocks, so holds less than a batch.

        Raises:
            InputError: no `loss` was given to the model; what `clipped_gradient_sum` refuses.
        """
        if self._loss is None:
            raise InputError("give the model its loss: PrivateModel(module, clip, loss=…)")
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        if not (self.training and torch.is_grad_enabled()):
            return clipping.row_loss(self._loss, self.module(*inputs), targets).mean()
        total, customers, lost = clipping.summed(
            self.module, self._loss, inputs, targets, self.clip, groups, self._check_same
        )
        mean = torch.tensor(lost / max(1, len(targets)), dtype=torch.float64)
        return self._bound(mean, lambda back: self._whole(back, total, customers))

    @staticmethod
    def _whole(back: Tensor, total: Floats, customers: int) -> tuple[Floats, int]:
        if float(back) != 1.0:
            raise InputError("the private loss must be differentiated as it is: a factor would undo the clip")
        return total, customers

    def _bound(self, value: Tensor, summed: Callable[[Tensor], tuple[Floats, int]]) -> Tensor:
        """`value`, which when differentiated puts what `summed` finds into `.grad`."""

        def arrived(back: Tensor) -> None:
            if self._pending is not None:
                raise InputError(
                    "two batches were differentiated before one step: a customer in both would count twice. "
                    "Call step(), or zero_grad() to drop the first; blocks keep the memory small on their own"
                )
            if any(not self._is_ours(p.grad) for p in self._trainable()):
                raise InputError(
                    "a .grad holds something that is not a clipped sum: the private loss must be differentiated "
                    "alone; use the optimiser's weight decay for a penalty"
                )
            scaled = back
            if value.dim() and self._reduction == "mean":
                scaled = back * len(back)
            total, customers = summed(scaled)
            self._pending = _Sum(total, customers, self._write(total))

        anchor = torch.zeros((), dtype=value.dtype, requires_grad=True)
        found: Tensor = _Boundary.apply(anchor, value, arrived)  # type: ignore[no-untyped-call]
        return found

    def _write(self, total: Floats) -> list[tuple[Tensor, int]]:
        """Put a flat vector into the trainable parameters' `.grad`."""
        trainable = self._trainable()
        dtypes = {p.dtype for p in trainable}
        flat = torch.from_numpy(total).to(dtypes.pop() if len(dtypes) == 1 else torch.float64, copy=True)
        self._written = []
        for p, part in zip(trainable, torch.split(flat, [p.numel() for p in trainable]), strict=True):
            p.grad = part.view(p.shape) if part.dtype == p.dtype else part.to(p.dtype).view(p.shape)
            self._written.append((p.grad, p.grad._version))
        return self._written

    def _is_ours(self, grad: Tensor | None) -> bool:
        """Nothing, zeros, or what was last written."""
        if grad is None or any(grad is ours and grad._version == version for ours, version in self._written):
            return True
        return not grad.any()

    def take(self) -> _Sum | None:
        """The clipped sum that waits, once.

        Raises:
            InputError: a `.grad` was changed, or replaced, since it was written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            if len(pending.total) != self.dimension:
                raise InputError("a parameter was frozen or freed between backward() and step()")
            for p, (grad, version) in zip(self._trainable(), pending.written, strict=True):
                if p.grad is not grad or grad._version != version:
                    raise InputError(
                        "a .grad was changed between backward() and step(): only clipped gradients may be there. "
                        "Use the optimiser's weight decay for a penalty; the clip is the model's"
                    )
        return pending

    def drop(self) -> None:
        """Forget a clipped sum that waits."""
        self._pending = None

    def _check_same(self, parameters: list[nn.Parameter]) -> None:
        """Raises InputError if a layer was replaced, or put in."""
        if list(map(id, self._trainable())) != list(map(id, parameters)):
            raise InputError("the module has other parameters than when it was made private: wrap it again")

    def _trainable(self) -> list[nn.Parameter]:
        return [p for p in self._parameters_then if p.requires_grad]

    @property
    def dimension(self) -> int:
        """How many numbers the sum has."""
        return sum(p.numel() for p in self._trainable())

    def _nothing(self) -> Floats:
        return np.zeros(self.dimension)

    def _shape_of_none(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Outputs of no row: of one made up, without it."""
        before = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                one: Tensor = self.module(*(x.new_zeros((1, *x.shape[1:])) for x in inputs))
                return one[:0].clone()
        finally:
            self.module.train(before)


class _Boundary(torch.autograd.Function):
    """Hands on a value; hands its gradient to who asked for it, and nothing further."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor, arrived: Callable[[Tensor], None]) -> Tensor:
        ctx.arrived = arrived
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, back: Tensor) -> Any:
        arrived, ctx.arrived = ctx.arrived, _twice
        with torch.no_grad():
            arrived(back)
        return None, None, None


def _twice(back: Tensor) -> None:
    raise InputError("a private loss can be differentiated once")


class _Stepping:
    """What both optimisers do: only protected sums reach the inner one."""

    def __init__(self, optimizer: torch.optim.Optimizer, model: PrivateModel, expected_batch: float) -> None:
        ours = {id(p) for p in model.parameters()}
        if any(id(p) not in ours for group in optimizer.param_groups for p in group["params"]):
            raise InputError("the optimiser holds a parameter that is not the private model's")
        if not (np.isfinite(expected_batch) and expected_batch > 0):
            raise InputError(f"the expected batch must be positive, not {expected_batch}")
        self.optimizer, self.model, self.expected_batch = optimizer, model, float(expected_batch)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the inner optimiser's; drops a sum that was not stepped on."""
        self.model.drop()
        self.optimizer.zero_grad(set_to_none)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimiser's."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    def state_dict(self) -> dict[str, Any]:
        """The inner optimiser's."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inner optimiser's."""
        self.optimizer.load_state_dict(state)

    def _waiting(self) -> Floats:
        pending = self.model.take()
        if pending is None:
            raise InputError("there is no clipped sum: call backward() on a loss of the private model first")
        return pending.total

    def _apply(self, noisy: Floats) -> None:
        self.model._write(noisy / self.expected_batch)
        self.optimizer.step()


class PrivateOptimizer(_Stepping):
    """Adds the whole noise itself (local mode), steps, and notes what was done.

    Args:
        optimizer: any of torch's, over the model's parameters.
        noise_multiplier: standard deviation of the noise on the sum ÷ clip.
        batches: where batches come from; each step must belong to one newly drawn. Its probability is what the
            events claim.
        expected_batch: customers a step is divided by, where there are no `batches`; then no sampling is claimed.

    Raises:
        InputError: both or neither of `batches` and `expected_batch`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: PrivateModel,
        *,
        noise_multiplier: float,
        batches: PoissonBatches | None = None,
        expected_batch: float | None = None,
    ) -> None:
        if (batches is None) == (expected_batch is None):
            raise InputError("give batches=PoissonBatches(…), or expected_batch and no sampling is claimed")
        super().__init__(
            optimizer, model, batches.expected_batch if batches is not None else expected_batch or 0.0
        )
        self.noise = LocalNoise(model.clip, noise_multiplier, model.dimension)
        self._batches, self._drawn = batches, 0 if batches is None else batches.drawn
        self._clip = model.clip
        self._event: Gaussian | PoissonSampled = Gaussian(noise_multiplier)
        if batches is not None:
            self._event = PoissonSampled(batches.sampling_probability, Gaussian(noise_multiplier))
        self.steps = 0

    @property
    def events(self) -> list[Gaussian | PoissonSampled]:
        """What was done to the data so far, a line a step."""
        return [self._event] * self.steps

    def step(self) -> None:
        """Noise on the waiting sum, then the inner optimiser's step.

        Raises:
            InputError: nothing waits; a `.grad` was touched; no new batch was drawn since the last step.
        """
        total = self._waiting()
        if self.model.clip != self._clip:
            raise InputError("the model's clip was changed after its noise was made for it")
        if self._batches is not None:
            if self._batches.drawn == self._drawn:
                raise InputError("a step needs a batch of its own: none was drawn since the last one")
            self._drawn = self._batches.drawn
        self.steps += 1  # counted before anything is released
        self._apply(self.noise.release(total))


class SecureSumOptimizer(_Stepping):
    """Hands the clipped sum out and takes the noisy total of all parties back (distributed mode).

    The noise, and the events, are the secure sum's; `expected_batch` counts the customers of all parties.

    Args:
        secure_sum: (d,) float64 of this party -> (d,) float64, everybody's with noise.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: PrivateModel,
        *,
        secure_sum: SecureSum,
        expected_batch: float,
    ) -> None:
        super().__init__(optimizer, model, expected_batch)
        self._secure_sum = secure_sum

    def step(self) -> None:
        """One round: the sum out, the total back, the inner optimiser's step.

        Raises:
            InputError: nothing waits, or a `.grad` was touched. ProtocolError: the total is no such vector.
        """
        mine = self._waiting()
        total = np.asarray(self._secure_sum(mine), np.float64)
        if total.shape != mine.shape or not np.isfinite(total).all():
            raise ProtocolError(
                f"the secure sum gave back {total.shape} where {mine.shape} finite numbers are due"
            )
        self._apply(total)
