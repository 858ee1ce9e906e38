"""Any module, through autograd: what came into each layer, and the gradient of what went out of it.

Autograd is asked for the gradients of the layers' outputs alone, so no weight's gradient is worked out by it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ...errors import InputError
from . import recurrent
from .checks import by_row, compare_rows, compare_sums, probe, row_weights
from .gradients import Explicit, Gradient, Lookups, Products, joined, products
from .reference import layer_gradient


class Unsupported(InputError):
    """This module's gradients can't be put together layer by layer; Opacus' hooks may still serve it."""


@dataclass
class _Use:
    layer: nn.Module
    name: str
    came: Tensor
    version: int
    out: GradientEdge


class GraphTrace:
    """A pass through a module, with what its layers' gradients are made of.

    Args:
        module: any; layers are found by `layers`. inputs: rows first.

    Raises:
        Unsupported: a layer is called in a way that has no formula.
        InputError: the module keeps something of the rows it saw (running statistics).
    """

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._rows = len(inputs[0])
        self._uses: list[_Use] = []
        self._desk = recurrent.Desk()
        self._recurrent: set[int] = set()
        self._anchor = inputs[0].new_zeros((), dtype=_dtype(module)).requires_grad_()
        with self._watched(module), torch.enable_grad():
            outputs = module(*inputs)
        if not isinstance(outputs, Tensor) or outputs.dim() == 0 or len(outputs) != self._rows:
            raise InputError(
                f"{type(module).__name__} must return one tensor, rows first ({self._rows} of them)"
            )
        self.outputs: Tensor = outputs

    @contextmanager
    def _watched(self, module: nn.Module) -> Iterator[None]:
        before = {name: (b, b._version) for name, b in module.named_buffers()}
        with ExitStack() as stack:
            for name, layer in layers(module):
                if recurrent.supported(layer):
                    self._recurrent.update(map(id, layer.parameters()))
                    run = functools.partial(recurrent.run, layer, self._desk, self._anchor)  # type: ignore[arg-type]
                    if "forward" in vars(layer):
                        raise Unsupported(f"{name}: its forward was replaced")
                    layer.forward = run
                    stack.callback(delattr, layer, "forward")
                elif isinstance(layer, nn.RNNBase):
                    raise Unsupported(f"{name}: {type(layer).__name__} of this kind")
                else:
                    hook = layer.register_forward_hook(functools.partial(self._seen, name), with_kwargs=True)
                    stack.callback(hook.remove)
            yield
        for name, b in module.named_buffers():
            old, version = before.get(name, (b, -1))
            if b is not old or b._version != version:
                raise InputError(
                    f"the forward pass writes the buffer {name}: what it keeps of customers is not protected; "
                    "use a layer without running statistics, or eval()"
                )

    def _seen(
        self, name: str, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], out: Any
    ) -> None:
        given = [*args, *named.values()]
        if len(given) != 1 or not isinstance(given[0], Tensor) or not isinstance(out, Tensor):
            raise Unsupported(f"{name}: one tensor in and one out")
        if not out.requires_grad:
            return
        came = given[0].detach()
        if came.dim() == 0 or len(came) != self._rows or len(out) != self._rows:
            raise InputError(
                f"layer {name or type(layer).__name__} saw {list(came.shape)} where there are {self._rows} rows: "
                "rows must stay the first dimension"
            )
        self._uses.append(_Use(layer, name, came, given[0]._version, get_gradient_edge(out)))

    def gradients(self, back: Tensor) -> list[Gradient]:
        """`back`: the loss's gradient with respect to the outputs, rows first."""
        return self._gradients(back, keep_graph=False)

    def _gradients(self, back: Tensor, *, keep_graph: bool) -> list[Gradient]:
        if not self.outputs.requires_grad:
            return []
        self._desk.gradients, self._desk.again = [], keep_graph
        edges: list[Any] = [use.out for use in self._uses]
        went = torch.autograd.grad(
            self.outputs, [*edges, self._anchor], back, retain_graph=keep_graph, allow_unused=True
        )
        found = list(self._desk.gradients)
        with torch.no_grad():
            for use, d in zip(self._uses, went, strict=False):
                if d is None:
                    continue
                if use.came._version != use.version:
                    raise Unsupported(f"{use.name}: what came in was changed later on")
                found += _formula(use.layer, use.came, d)
        whole = joined([g for g in found if g.parameters])
        if whole is None:
            raise Unsupported("layers of different kinds share a parameter")
        return whole

    def check(self, module: nn.Module) -> None:
        """That the formulas fit this module: their sum is autograd's gradient, and no row moves another's.

        Raises:
            InputError: the sum is another, or rows influence each other. Unsupported: as `gradients`.
        """
        back = probe(self.outputs)
        gradients = self._gradients(back, keep_graph=True)
        trainable = [p for p in module.parameters() if p.requires_grad and id(p) not in self._recurrent]
        if self.outputs.requires_grad and trainable:
            told = {id(p): total for g in gradients for p, total in g.sums(None)}
            truth = torch.autograd.grad(self.outputs, trainable, back, retain_graph=True, allow_unused=True)
            compare_sums(
                module,
                [told.get(id(p), torch.zeros_like(p)) for p in trainable],
                [torch.zeros_like(p) if t is None else t for p, t in zip(trainable, truth, strict=True)],
            )
        weights = row_weights(self._rows)
        again = self._gradients(by_row(back, weights), keep_graph=True)
        for one, two in zip(gradients, again, strict=True):
            compare_rows(module, list(_spread(one)), list(_spread(two)), weights)


def layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold trainable parameters themselves; what is inside such a module belongs to it."""
    if any(p.requires_grad for p in module.parameters(recurse=False)):
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from layers(child, f"{name}.{child_name}" if name else child_name)


def explicit_size(module: nn.Module) -> int:
    """How many numbers a row's gradients take in the layers without a formula."""
    return sum(
        sum(p.numel() for p in layer.parameters() if p.requires_grad)
        for _, layer in layers(module)
        if type(layer) not in _FORMULAS and not recurrent.supported(layer)
    )


def _formula(layer: nn.Module, came: Tensor, d: Tensor) -> list[Gradient]:
    formula = _FORMULAS.get(type(layer))
    found = None if formula is None else formula(layer, came, d)
    return [layer_gradient(layer, came, d)] if found is None else found


def _linear(layer: Any, came: Tensor, d: Tensor) -> list[Gradient]:
    if came.dim() > 3:
        came, d = came.flatten(1, -2), d.flatten(1, -2)
    return [products(d, layer.weight, came, layer.bias)]


def _embedding(layer: Any, tokens: Tensor, d: Tensor) -> list[Gradient] | None:
    if layer.max_norm is not None or layer.scale_grad_by_freq:
        raise InputError("an Embedding with max_norm or scale_grad_by_freq mixes customers")
    tokens = tokens.reshape(len(tokens), -1)
    d = d.reshape(*tokens.shape, d.shape[-1])
    if layer.padding_idx is not None:
        d = d * (tokens != layer.padding_idx)[:, :, None]
    return [Lookups(layer.weight, tokens, d)]


def _conv1d(layer: Any, came: Tensor, d: Tensor) -> list[Gradient] | None:
    if came.dim() != 3 or layer.groups != 1:
        return None
    if any(layer._reversed_padding_repeated_twice):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        came = nn.functional.pad(came, layer._reversed_padding_repeated_twice, mode=mode)
    (kernel,), (stride,), (dilation,) = layer.kernel_size, layer.stride, layer.dilation
    windows = came.unfold(2, dilation * (kernel - 1) + 1, stride)[..., ::dilation]  # (rows, in, T, kernel)
    windows = windows.transpose(1, 2).flatten(2)
    return [products(d.transpose(1, 2), layer.weight, windows, layer.bias)]


_FORMULAS: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], list[Gradient] | None]] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.Conv1d: _conv1d,
}


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def _spread(gradient: Gradient) -> Sequence[Tensor]:
    """What of a gradient is linear in the gradient of the outputs, rows first."""
    if isinstance(gradient, Products):
        return [gradient.d.transpose(0, 1) if gradient.time_first else gradient.d]
    if isinstance(gradient, Lookups):
        return [gradient.d]
    if isinstance(gradient, Explicit):
        return [g for _, g in gradient.rows]
    raise TypeError(f"unknown gradient {type(gradient).__name__}")
