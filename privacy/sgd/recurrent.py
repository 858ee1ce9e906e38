"""LSTM and GRU by hand: the arithmetic of torch's own layers, and gradients up to the gates' pre-activations.

The equations and the layout of the weights are those of `torch.nn.LSTM` and `torch.nn.GRU`, so that their
state_dict is the weights of this, both ways. Time comes first inside: (T, rows, ·).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from .gradients import Gradient, Products


class Desk:
    """Where layers put their gradients.

    Args:
        again: the same pass may be differentiated again, so nothing of it may be written over.
    """

    def __init__(self) -> None:
        self.gradients: list[Gradient] = []
        self.again = False

    def keep(self, gradient: Gradient) -> None:
        """One more."""
        self.gradients.append(gradient)

    def room(self, gates: Tensor) -> Tensor:
        """Where the gradient of the gates may be written: over the gates themselves, a step behind."""
        return torch.empty_like(gates) if self.again else gates


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


def run(layer: nn.LSTM | nn.GRU, desk: Desk, anchor: Tensor, came: Any, state: Any = None) -> Any:
    """`layer(came, state)`; when the result is differentiated, the layer's gradients lie on `desk`.

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
                out, h, c = _Lstm.apply(weights, desk, anchor, flipped, h0[at], c0[at])  # type: ignore[no-untyped-call]
                last_c.append(c)
            else:
                out, h = _Gru.apply(weights, desk, anchor, flipped, h0[at])  # type: ignore[no-untyped-call]
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


def _projected(w_in: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """x W_inᵀ + bias of all time at once, (T, rows, gates·H)."""
    flat = x.reshape(-1, x.shape[2])
    turned = w_in.t()
    out = flat @ turned if bias is None else torch.addmm(bias, flat, turned)
    return out.view(*x.shape[:2], -1)


class _Lstm(torch.autograd.Function):
    """h_t = o tanh(c_t), c_t = f c_{t−1} + i g; gates i, f, g, o."""

    @staticmethod
    def forward(
        ctx: Any, weights: Weights, desk: Desk, anchor: Tensor, x: Tensor, h0: Tensor, c0: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        steps, rows, _ = x.shape
        x, size = x.contiguous(), h0.shape[1]
        w_in: Tensor = weights.w_in
        w_hidden: Tensor = weights.w_hidden
        bias = None
        if weights.b_in is not None and weights.b_hidden is not None:
            bias = weights.b_in + weights.b_hidden
        quick = x.dtype == torch.float32
        if quick:  # tanh(z) = 2σ(2z) − 1, so that one σ serves all gates: torch has it three times as fast
            double = x.new_ones(4 * size)
            double[2 * size : 3 * size] = 2
            w_in, w_hidden = w_in * double[:, None], w_hidden * double[:, None]
            bias = None if bias is None else bias * double
        gates = _projected(w_in, x, bias)
        hidden, cells = x.new_empty(steps + 1, rows, size), x.new_empty(steps + 1, rows, size)
        squashed = x.new_empty(steps, rows, size)
        hidden[0], cells[0] = h0, c0
        turned = w_hidden.t()
        h, c = hidden.unbind(0), cells.unbind(0)
        i, f, new, o = (gate.unbind(0) for gate in gates.view(steps, rows, 4, size).unbind(2))
        both = gates[:, :, : 2 * size].unbind(0)
        for t, (gate, tanh_c) in enumerate(zip(gates.unbind(0), squashed.unbind(0), strict=True)):
            gate.addmm_(h[t], turned)
            if quick:
                gate.sigmoid_()
                torch.add(_MINUS, new[t], alpha=2, out=new[t])
            else:
                both[t].sigmoid_()
                o[t].sigmoid_()
                new[t].tanh_()
            torch.mul(f[t], c[t], out=c[t + 1])
            c[t + 1].addcmul_(i[t], new[t])
            if quick:
                torch.mul(c[t + 1], 2, out=tanh_c).sigmoid_()
                torch.add(_MINUS, tanh_c, alpha=2, out=tanh_c)
            else:
                torch.tanh(c[t + 1], out=tanh_c)
            torch.mul(o[t], tanh_c, out=h[t + 1])
        ctx.weights, ctx.desk = weights, desk
        ctx.kept, ctx.version = (x, gates, hidden, cells, squashed), hidden._version
        return hidden[1:], hidden[-1].clone(), cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_h: Tensor | None, d_c: Tensor | None) -> Any:
        x, gates, hidden, cells, tanh_c = ctx.kept
        weights, (steps, rows, size) = ctx.weights, tanh_c.shape
        _unchanged(hidden, ctx.version)
        # What the gradients of c (for i, f, g) and of h (for o) are multiplied by, of all time at once; then
        # backwards through it, in the same place.
        i, f, new, o = gates.view(steps, rows, 4, size).unbind(2)
        forget, through = f.clone(), _TANH_BACK(o, tanh_c)
        slope_i, slope_new = _SIGMOID_BACK(new, i), _TANH_BACK(i, new)
        d = ctx.desk.room(gates)
        d_i, d_f, d_new, d_o = d.view(steps, rows, 4, size).unbind(2)
        _SIGMOID_BACK_OUT(cells[:-1], f, grad_input=d_f)
        _SIGMOID_BACK_OUT(tanh_c, o, grad_input=d_o)
        d_i.copy_(slope_i)
        d_new.copy_(slope_new)
        dh = hidden.new_zeros(rows, size) if d_h is None else d_h.clone()
        dc = hidden.new_zeros(rows, size) if d_c is None else d_c.clone()
        of_cell, of_out = d.view(steps, rows, 4, size)[:, :, :3].unbind(0), d_o.unbind(0)
        by_cell = dc[:, None, :]
        for t in range(steps - 1, -1, -1):
            if d_out is not None:
                dh += d_out[t]
            dc.addcmul_(dh, through[t])
            of_cell[t].mul_(by_cell)
            of_out[t].mul_(dh)
            dc.mul_(forget[t])
            torch.mm(d[t], weights.w_hidden, out=dh)
        ctx.desk.keep(weights.gradient(d, x, hidden[:-1]))
        dx = None
        if ctx.needs_input_grad[3]:
            dx = (d.view(-1, 4 * size) @ weights.w_in).view_as(x)
        return None, None, dh.new_zeros(()), dx, dh, dc


class _Gru(torch.autograd.Function):
    """h_t = (1 − z) n + z h_{t−1}, n = tanh(W_in x + b_in + r (W_hn h + b_hn)); gates r, z, n."""

    @staticmethod
    def forward(
        ctx: Any, weights: Weights, desk: Desk, anchor: Tensor, x: Tensor, h0: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        steps, rows, _ = x.shape
        x, size = x.contiguous(), h0.shape[1]
        gates = _projected(weights.w_in, x, weights.b_in)
        hidden = x.new_empty(steps + 1, rows, size)
        inner = x.new_empty(steps, rows, size)  # W_hn h + b_hn
        hidden[0] = h0
        turned, bias = weights.w_hidden.t(), weights.b_hidden
        h, both = hidden.unbind(0), gates[:, :, : 2 * size].unbind(0)
        r, z, new = (gate.unbind(0) for gate in gates.view(steps, rows, 3, size).unbind(2))
        for t in range(steps):
            state = h[t] @ turned if bias is None else torch.addmm(bias, h[t], turned)
            both[t].add_(state[:, : 2 * size]).sigmoid_()
            inner[t] = state[:, 2 * size :]
            _tanh_(new[t].addcmul_(r[t], inner[t]))
            torch.lerp(new[t], h[t], z[t], out=h[t + 1])
        ctx.weights, ctx.desk = weights, desk
        ctx.kept, ctx.version = (x, gates, hidden, inner), hidden._version
        return hidden[1:], hidden[-1].clone()

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_h: Tensor | None) -> Any:
        x, gates, hidden, inner = ctx.kept
        weights, (steps, rows, size) = ctx.weights, inner.shape
        _unchanged(hidden, ctx.version)
        d_in = ctx.desk.room(gates)
        d_state = torch.empty_like(gates)  # as d_in, but for the new gate what r lets through
        dh = hidden.new_zeros(rows, size) if d_h is None else d_h.clone()
        h = hidden.unbind(0)
        r, z, new = (gate.unbind(0) for gate in gates.view(steps, rows, 3, size).unbind(2))
        for t in range(steps - 1, -1, -1):
            if d_out is not None:
                dh += d_out[t]
            a, b = d_in[t], d_state[t]
            dz = _SIGMOID_BACK(dh * (h[t] - new[t]), z[t])
            kept = dh * z[t]
            dn = _TANH_BACK(dh - kept, new[t])
            torch.mul(dn, r[t], out=b[:, 2 * size :])
            dr = _SIGMOID_BACK(dn * inner[t], r[t])
            torch.cat([dr, dz, dn], 1, out=a)
            b[:, : 2 * size] = a[:, : 2 * size]
            dh = torch.addmm(kept, b, weights.w_hidden)
        ctx.desk.keep(weights.gradient(d_in, x, None))
        ctx.desk.keep(weights.gradient(d_state, None, hidden[:-1]))
        dx = None
        if ctx.needs_input_grad[3]:
            dx = (d_in.view(-1, 3 * size) @ weights.w_in).view_as(x)
        return None, None, dh.new_zeros(()), dx, dh


def _tanh_(x: Tensor) -> Tensor:
    """tanh in place; of float32 by the logistic function, which torch has three times as fast, to 1e-7."""
    if x.dtype == torch.float32:
        return x.mul_(2).sigmoid_().mul_(2).sub_(1)
    return x.tanh_()


def _unchanged(hidden: Tensor, version: int) -> None:
    if hidden._version != version:
        raise InputError("the output of a recurrent layer was changed in place: clone it first")


_MINUS = torch.tensor(-1.0)
_SIGMOID_BACK = torch.ops.aten.sigmoid_backward
_SIGMOID_BACK_OUT = torch.ops.aten.sigmoid_backward.grad_input
_TANH_BACK = torch.ops.aten.tanh_backward
