"""LSTM and GRU by hand: the arithmetic of torch's own layers, and gradients up to the gates' pre-activations.

The equations and the layout of the weights are those of `torch.nn.LSTM` and `torch.nn.GRU`, so that their
state_dict is the weights of this, both ways. Time comes first inside: (T, rows, ·).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from .gradients import Gradient, Products

Keep = Callable[[Gradient], None]


@dataclass(frozen=True)
class Weights:
    """One layer and direction of an nn.LSTM or nn.GRU."""

    w_in: nn.Parameter  # (gates·H, in)
    w_hidden: nn.Parameter  # (gates·H, H)
    b_in: nn.Parameter | None
    b_hidden: nn.Parameter | None

    def gradient(self, d: Tensor, came: Tensor | None, hidden: Tensor | None) -> Products:
        """Gradient of what of `came` (input side) and `hidden` (state side) is given and not frozen."""
        parts = ((self.w_in, came), (self.w_hidden, hidden))
        biases = ((self.b_in, came), (self.b_hidden, hidden))
        return Products(
            d,
            tuple((w, a) for w, a in parts if a is not None and w.requires_grad),
            tuple(b for b, a in biases if a is not None and b is not None and b.requires_grad),
            time_first=True,
            owned=True,
        )


def supported(layer: nn.Module) -> bool:
    """Whether `run` does all this layer does."""
    return type(layer) in (nn.LSTM, nn.GRU) and not getattr(layer, "proj_size", 0)


def run(layer: nn.LSTM | nn.GRU, keep: Keep, anchor: Tensor, came: Any, state: Any = None) -> Any:
    """`layer(came, state)`; when the result is differentiated, `keep` is handed the layer's gradients.

    Args:
        came: (rows, T, in), or (T, rows, in) unless `batch_first`.
        anchor: a number that requires a gradient; differentiate with respect to it too, or nothing is handed out.

    Raises:
        InputError: packed sequences or a lone unbatched one.
    """
    if not isinstance(came, Tensor) or came.dim() != 3:
        raise InputError(
            f"{type(layer).__name__}: rows of padded sequences, a tensor of 3 dimensions, are needed"
        )
    x = came.transpose(0, 1) if layer.batch_first else came
    ways = 2 if layer.bidirectional else 1
    lstm = isinstance(layer, nn.LSTM)
    zeros = x.new_zeros(layer.num_layers * ways, x.shape[1], layer.hidden_size)
    h0, c0 = (zeros, zeros) if state is None else state if lstm else (state, zeros)
    if h0.dim() != 3 or h0.shape != zeros.shape:
        raise InputError(f"{type(layer).__name__}: the first state must have shape {tuple(zeros.shape)}")
    last_h, last_c = [], []
    for depth in range(layer.num_layers):
        outs = []
        for way in range(ways):
            at = depth * ways + way
            weights = _weights(layer, depth, way)
            flipped = x.flip(0) if way else x
            if lstm:
                out, h, c = _Lstm.apply(weights, keep, anchor, flipped, h0[at], c0[at])  # type: ignore[no-untyped-call]
                last_c.append(c)
            else:
                out, h = _Gru.apply(weights, keep, anchor, flipped, h0[at])  # type: ignore[no-untyped-call]
            outs.append(out.flip(0) if way else out)
            last_h.append(h)
        x = torch.cat(outs, 2) if ways == 2 else outs[0]
        if layer.dropout and layer.training and depth + 1 < layer.num_layers:
            x = nn.functional.dropout(x, layer.dropout)
    y = x.transpose(0, 1) if layer.batch_first else x
    return (y, (torch.stack(last_h), torch.stack(last_c))) if lstm else (y, torch.stack(last_h))


def _weights(layer: nn.LSTM | nn.GRU, depth: int, way: int) -> Weights:
    end = f"_l{depth}" + ("_reverse" if way else "")
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return Weights(*(getattr(layer, name + end, None) for name in names))  # type: ignore[arg-type]


def _projected(weights: Weights, x: Tensor, bias: Tensor | None) -> Tensor:
    """x W_inᵀ + bias of all time at once, (T, rows, gates·H)."""
    flat = x.reshape(-1, x.shape[2])
    turned = weights.w_in.t()
    out = flat @ turned if bias is None else torch.addmm(bias, flat, turned)
    return out.view(*x.shape[:2], -1)


class _Lstm(torch.autograd.Function):
    """h_t = o tanh(c_t), c_t = f c_{t−1} + i g; gates i, f, g, o."""

    @staticmethod
    def forward(
        ctx: Any, weights: Weights, keep: Keep, anchor: Tensor, x: Tensor, h0: Tensor, c0: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        steps, rows, _ = x.shape
        x, size = x.contiguous(), h0.shape[1]
        bias = None if weights.b_in is None or weights.b_hidden is None else weights.b_in + weights.b_hidden
        gates = _projected(weights, x, bias)
        hidden, cells = x.new_empty(steps + 1, rows, size), x.new_empty(steps + 1, rows, size)
        squashed = x.new_empty(steps, rows, size)
        hidden[0], cells[0] = h0, c0
        turned = weights.w_hidden.t()
        for t in range(steps):
            g = gates[t]
            g.addmm_(hidden[t], turned)
            g[:, : 2 * size].sigmoid_()
            g[:, 2 * size : 3 * size].tanh_()
            g[:, 3 * size :].sigmoid_()
            torch.mul(g[:, size : 2 * size], cells[t], out=cells[t + 1])
            cells[t + 1].addcmul_(g[:, :size], g[:, 2 * size : 3 * size])
            torch.tanh(cells[t + 1], out=squashed[t])
            torch.mul(g[:, 3 * size :], squashed[t], out=hidden[t + 1])
        ctx.weights, ctx.keep = weights, keep
        ctx.kept = (x, gates, hidden, cells, squashed)
        return hidden[1:].clone(), hidden[-1].clone(), cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_h: Tensor | None, d_c: Tensor | None) -> Any:
        x, gates, hidden, cells, squashed = ctx.kept
        weights, size = ctx.weights, hidden.shape[2]
        steps = len(x)
        dh = torch.zeros_like(hidden[0]) if d_h is None else d_h.clone()
        dc = torch.zeros_like(dh) if d_c is None else d_c.clone()
        d = torch.empty_like(gates)
        for t in range(steps - 1, -1, -1):
            if d_out is not None:
                dh += d_out[t]
            g, tanh_c = gates[t], squashed[t]
            i, f = g[:, :size], g[:, size : 2 * size]
            new, o = g[:, 2 * size : 3 * size], g[:, 3 * size :]
            dh_o = dh * o
            dc += _TANH_BACK(dh_o, tanh_c)
            slot = d[t]
            torch.mul(dc, new, out=slot[:, :size])
            torch.mul(dc, cells[t], out=slot[:, size : 2 * size])
            torch.mul(dh, tanh_c, out=slot[:, 3 * size :])
            _SIGMOID_BACK_OUT(slot[:, : 2 * size], g[:, : 2 * size], grad_input=slot[:, : 2 * size])
            _SIGMOID_BACK_OUT(slot[:, 3 * size :], o, grad_input=slot[:, 3 * size :])
            torch.mul(dc, i, out=slot[:, 2 * size : 3 * size])
            _TANH_BACK_OUT(slot[:, 2 * size : 3 * size], new, grad_input=slot[:, 2 * size : 3 * size])
            dc.mul_(f)
            torch.mm(slot, weights.w_hidden, out=dh)
        ctx.keep(weights.gradient(d, x, hidden[:-1]))
        dx = None
        if ctx.needs_input_grad[3]:
            dx = (d.view(-1, 4 * size) @ weights.w_in).view_as(x)
        return None, None, dh.new_zeros(()), dx, dh, dc


class _Gru(torch.autograd.Function):
    """h_t = (1 − z) n + z h_{t−1}, n = tanh(W_in x + b_in + r (W_hn h + b_hn)); gates r, z, n."""

    @staticmethod
    def forward(
        ctx: Any, weights: Weights, keep: Keep, anchor: Tensor, x: Tensor, h0: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        steps, rows, _ = x.shape
        x, size = x.contiguous(), h0.shape[1]
        gates = _projected(weights, x, weights.b_in)
        hidden = x.new_empty(steps + 1, rows, size)
        inner = x.new_empty(steps, rows, size)  # W_hn h + b_hn
        hidden[0] = h0
        turned = weights.w_hidden.t()
        for t in range(steps):
            g, h = gates[t], hidden[t]
            bias = weights.b_hidden
            from_state = h @ turned if bias is None else torch.addmm(bias, h, turned)
            g[:, : 2 * size].add_(from_state[:, : 2 * size]).sigmoid_()
            inner[t] = from_state[:, 2 * size :]
            g[:, 2 * size :].addcmul_(g[:, :size], inner[t]).tanh_()
            torch.lerp(g[:, 2 * size :], h, g[:, size : 2 * size], out=hidden[t + 1])
        ctx.weights, ctx.keep = weights, keep
        ctx.kept = (x, gates, hidden, inner)
        return hidden[1:].clone(), hidden[-1].clone()

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_h: Tensor | None) -> Any:
        x, gates, hidden, inner = ctx.kept
        weights, size = ctx.weights, hidden.shape[2]
        dh = torch.zeros_like(hidden[0]) if d_h is None else d_h.clone()
        d_in = torch.empty_like(gates)
        d_state = torch.empty_like(gates)  # as d_in, but for the new gate what r lets through
        for t in range(len(x) - 1, -1, -1):
            if d_out is not None:
                dh += d_out[t]
            g, a, b = gates[t], d_in[t], d_state[t]
            r, z, new = g[:, :size], g[:, size : 2 * size], g[:, 2 * size :]
            dn = _TANH_BACK(dh - dh * z, new)
            a[:, 2 * size :] = dn
            torch.mul(dn, r, out=b[:, 2 * size :])
            a[:, :size] = _SIGMOID_BACK(dn * inner[t], r)
            a[:, size : 2 * size] = _SIGMOID_BACK(dh * (hidden[t] - new), z)
            b[:, : 2 * size] = a[:, : 2 * size]
            dh = torch.addmm(dh * z, b, weights.w_hidden)
        for d, came, state in ((d_in, x, None), (d_state, None, hidden[:-1])):
            ctx.keep(weights.gradient(d, came, state))
        dx = None
        if ctx.needs_input_grad[3]:
            dx = (d_in.view(-1, 3 * size) @ weights.w_in).view_as(x)
        return None, None, dh.new_zeros(()), dx, dh


_SIGMOID_BACK = torch.ops.aten.sigmoid_backward
_SIGMOID_BACK_OUT = torch.ops.aten.sigmoid_backward.grad_input
_TANH_BACK = torch.ops.aten.tanh_backward
_TANH_BACK_OUT = torch.ops.aten.tanh_backward.grad_input
