"""Perceptrons by hand: a chain of linear layers and activations, forwards and backwards without autograd.

Autograd would also work out what nobody needs here (the unclipped weight gradients' graph); two passes of plain
products are the fastest way there is, and hold the least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .gradients import Gradient, products

_aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """An activation of known kind.

    Args:
        forward: in place on a tensor of ours if `from_output`.
        backward: (gradient, kept) -> gradient; kept is what came out if `from_output`, else what came in.
        within: as `backward`, written over a gradient of ours: fresh memory costs more than the arithmetic.
    """

    forward: Callable[[nn.Module, Tensor], Tensor]
    backward: Callable[[nn.Module, Tensor, Tensor], Tensor]
    from_output: bool
    within: Callable[[Tensor, Tensor], Tensor] | None = None


_KNOWN: dict[type[nn.Module], Activation] = {
    nn.ReLU: Activation(
        lambda _, z: torch.relu_(z),
        lambda _, d, y: _aten.threshold_backward(d, y, 0),
        True,
        lambda d, y: _aten.threshold_backward.grad_input(d, y, 0, grad_input=d),
    ),
    nn.Tanh: Activation(
        lambda _, z: torch.tanh_(z),
        lambda _, d, y: _aten.tanh_backward(d, y),
        True,
        lambda d, y: _aten.tanh_backward.grad_input(d, y, grad_input=d),
    ),
    nn.Sigmoid: Activation(
        lambda _, z: torch.sigmoid_(z),
        lambda _, d, y: _aten.sigmoid_backward(d, y),
        True,
        lambda d, y: _aten.sigmoid_backward.grad_input(d, y, grad_input=d),
    ),
    nn.GELU: Activation(
        lambda m, z: m(z), lambda m, d, z: _aten.gelu_backward(d, z, approximate=m.approximate), False
    ),
    nn.SiLU: Activation(lambda _, z: nn.functional.silu(z), lambda _, d, z: _aten.silu_backward(d, z), False),
    nn.Identity: Activation(lambda _, z: z, lambda _, d, z: d, True),
}


def links(module: nn.Module) -> list[nn.Module] | None:
    """The module as a chain of known layers, the first linear; None if it is anything else."""
    found = _flat(module)
    if not found or type(found[0]) is not nn.Linear:
        return None
    used = [id(p) for layer in found for p in layer._parameters.values() if p is not None]
    return found if len(used) == len(set(used)) else None


def trainable(layers: list[nn.Module]) -> list[nn.Parameter]:
    """The chain's trainable parameters, in the order of the module's `parameters()`."""
    return [p for layer in layers for p in layer._parameters.values() if p is not None and p.requires_grad]


def _flat(module: nn.Module) -> list[nn.Module] | None:
    if _hooked(module):
        return None
    if type(module) is nn.Sequential:
        found: list[nn.Module] = []
        for child in module._modules.values():
            inner = None if child is None else _flat(child)
            if inner is None:
                return None
            found += inner
        return found
    return [module] if type(module) is nn.Linear or type(module) in _KNOWN else None


class ChainTrace:
    """A pass forwards, kept for the pass backwards.

    Args:
        layers: from `links`. x: (rows, in).
    """

    def __init__(self, layers: list[nn.Module], x: Tensor) -> None:
        self._steps: list[tuple[nn.Module, Tensor]] = []
        fresh = False  # nobody keeps x yet: it may be written over
        with torch.no_grad():
            for layer in layers:
                if isinstance(layer, nn.Linear):
                    self._steps.append((layer, x))
                    x, fresh = nn.functional.linear(x, layer.weight, layer.bias), True
                    continue
                known = _KNOWN[type(layer)]
                y = known.forward(layer, x if fresh or not known.from_output else x.clone())
                self._steps.append((layer, y if known.from_output else x))
                x, fresh = y, not known.from_output
        self.outputs = x

    def gradients(self, back: Tensor) -> list[Gradient]:
        """`back`: the loss's gradient with respect to the outputs; it is not changed."""
        found: list[Gradient] = []
        first = next((i for i, (layer, _) in enumerate(self._steps) if trainable([layer])), len(self._steps))
        d, owned = back, False
        with torch.no_grad():
            for at in range(len(self._steps) - 1, first - 1, -1):
                layer, kept = self._steps[at]
                if not isinstance(layer, nn.Linear):
                    known = _KNOWN[type(layer)]
                    if owned and known.within is not None:
                        d = known.within(d, kept)
                        continue
                    after = known.backward(layer, d, kept)
                    owned, d = owned or after is not d, after
                    continue
                gradient = products(d, layer.weight, kept, layer.bias, owned=owned)
                if gradient.parameters:
                    found.append(gradient)
                if at > first:
                    d, owned = d @ layer.weight, True
        return found


def _hooked(module: nn.Module) -> bool:
    """Whether somebody changed what calling the module does."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )
