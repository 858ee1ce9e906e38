"""Per-customer gradients of one layer, kept as the factors they are made of: norms and clipped sums without them.

A layer's gradient is a sum of products of what came in and the gradient of what went out ("book-keeping":
Bu, Wang, Zha and Karypis 2022, "Differentially Private Optimization on Large Model at Small Cost"; the
norm of a lone product is Goodfellow 2015, of sums of products Li et al. 2021 and Bu et al. 2022, "mixed ghost
clipping"). What is kept here is per row; the norm is that of a *customer's* rows added up.

`bounds` never returns less than the square of the true norm of what the kept numbers stand for: each formula
adds the error its own arithmetic may have. u is half `eps`; a dot product of n terms, in whatever order
it is added up, is off by at most n·u·Σ|terms| (Higham 2002, "Accuracy and Stability", §3.1; second-order terms are
covered by the slack of eps against u).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .customers import Customers

_ROOM = 1 << 22  # numbers a materialised block of customers' gradients may have
Sums = list[tuple[nn.Parameter, Tensor]]


class Gradient(ABC):
    """Gradients of some parameters, of every row of a block."""

    @property
    @abstractmethod
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Whose gradients these are; frozen ones are not among them."""

    @abstractmethod
    def bounds(self, customers: Customers) -> Tensor:
        """At least the squared L2 norm of each customer's summed gradient: shape (customers,)."""

    @abstractmethod
    def sums(self, factors: Tensor | None) -> Sums:
        """Σ over rows of factor · gradient, a parameter each; `factors` has shape (rows,), None means ones."""

    @abstractmethod
    def joined(self, other: Gradient) -> Gradient | None:
        """Both uses of the same parameters as one gradient; None if they don't go together."""


@dataclass
class Products(Gradient):
    """Σ_t d_t a_tᵀ for weights, Σ_t d_t for biases: linear, convolution, the gates of a recurrent cell.

    Args:
        d: gradient of what went out: (rows, out), or (rows, T, out), or (T, rows, out) if `time_first`.
        parts: (weight of shape (out, …) that flattens to (out, in), what came in, shaped as d with `in` last).
        biases: parameters of shape (out,); all have the same gradient.
        owned: nobody else holds `d`; it may be scaled in place.
    """

    d: Tensor
    parts: tuple[tuple[nn.Parameter, Tensor], ...]
    biases: tuple[nn.Parameter, ...] = ()
    time_first: bool = False
    owned: bool = False

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        return (*(weight for weight, _ in self.parts), *self.biases)

    def bounds(self, customers: Customers) -> Tensor:
        d, parts = self.d, [a for _, a in self.parts]
        if d.dim() == 2 and customers.owner is None:
            return self._alone(d, parts)
        if self.time_first:
            d, parts = d.transpose(0, 1), [a.transpose(0, 1) for a in parts]
        if customers.owner is None:
            return (
                self._together(d, parts) if d.shape[1] > 1 else self._alone(d[:, 0], [a[:, 0] for a in parts])
            )
        if d.dim() == 2:
            d, parts = d[:, None], [a[:, None] for a in parts]
        found = d.new_zeros(customers.count)
        for who, rows, real in customers.buckets():
            if rows.shape[1] == 1 and d.shape[1] == 1:
                one = rows[:, 0]
                found[who] = self._alone(d[one, 0], [a[one, 0] for a in parts])
                continue
            steps = rows.shape[1] * d.shape[1]
            theirs = (d[rows] * real[:, :, None, None]).reshape(len(who), steps, -1)
            found[who] = self._together(theirs, [a[rows].reshape(len(who), steps, -1) for a in parts])
        return found

    def _alone(self, d: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """One product a customer: ‖d‖² (Σ‖a‖² + biases). A square that underflows counts as `tiny`."""
        limits = torch.finfo(d.dtype)
        came: Tensor | None = None
        went: Tensor = torch.linalg.vector_norm(d, dim=1).square_()
        out, width = d.shape[1], 0
        for a in parts:
            width += a.shape[1]
            squared = torch.linalg.vector_norm(a, dim=1).square_()
            came = squared if came is None else came.add_(squared)
        least = len(self.biases) + width * limits.tiny
        slack = 1 + (out + width + 16) * limits.eps
        went.add_(out * limits.tiny)
        if came is None:
            return went.mul_(least * slack)
        return went.mul_(came.add_(least).mul_(slack))

    def _together(self, d: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """K products a customer, (customers, K, ·): the cheaper of the Gram matrices and the gradients themselves."""
        steps, out, width = d.shape[1], d.shape[2], sum(a.shape[2] for a in parts)
        if steps * (out + width) <= out * width:
            return self._gram(d, parts)
        per = max(1, _ROOM // max(1, out * max((a.shape[2] for a in parts), default=1)))
        return torch.cat(
            [self._explicit(d[i : i + per], [a[i : i + per] for a in parts]) for i in range(0, len(d), per)]
        )

    def _gram(self, d: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Σ_{t,s} ⟨d_t, d_s⟩(Σ⟨a_t, a_s⟩ + biases), which cancels: to it the error relative to (Σ_t ‖d_t‖‖a_t‖)²."""
        steps, out, width = d.shape[1], d.shape[2], sum(a.shape[2] for a in parts)
        went = torch.bmm(d, d.transpose(1, 2))
        came = went.new_full((1, 1, 1), float(len(self.biases))).expand_as(went)
        for a in parts:
            came = torch.baddbmm(came, a, a.transpose(1, 2))
        loose = _loose(_diagonal(went), _diagonal(came), out + width)
        squared: Tensor = went.mul_(came).sum(2).sum(1).clamp_(min=0)
        squared += (out + width + 4 * steps + 16) * torch.finfo(d.dtype).eps * loose.square()
        return squared

    def _explicit(self, d: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """The gradients themselves, of few customers at a time; the error of adding up K products on top."""
        steps, limits = d.shape[1], torch.finfo(d.dtype)
        turned = d.transpose(1, 2)
        squared = len(self.biases) * torch.linalg.vector_norm(d.sum(1), dim=1).square()
        came = d.new_full(d.shape[:2], float(len(self.biases)))
        size = d.shape[2] * len(self.biases)
        for a in parts:
            squared += torch.linalg.vector_norm(torch.bmm(turned, a).flatten(1), dim=1).square()
            came += torch.linalg.vector_norm(a, dim=2).square()
            size += d.shape[2] * a.shape[2]
        width = sum(a.shape[2] for a in parts)
        loose = _loose(torch.linalg.vector_norm(d, dim=2).square(), came, d.shape[2] + width)
        norm: Tensor = (squared * (1 + (size + 16) * limits.eps)).sqrt()
        return (norm + (2 * steps + 8) * limits.eps * loose).square() + size * limits.tiny

    def sums(self, factors: Tensor | None) -> Sums:
        d = self.d
        if factors is not None:
            shaped = factors.to(d.dtype)
            shaped = shaped[:, None] if d.dim() == 2 else shaped[:, None, None]
            shaped = shaped.transpose(0, 1) if self.time_first else shaped
            d = d.mul_(shaped) if self.owned else d * shaped
        if d.dim() == 2:
            plain: Sums = [(w, (d.t() @ a).view(w.shape)) for w, a in self.parts]
            return plain + [(bias, d.sum(0)) for bias in self.biases]
        flat = d.reshape(-1, d.shape[-1])
        found: Sums = [
            (weight, (flat.t() @ a.reshape(-1, a.shape[-1])).reshape(weight.shape))
            for weight, a in self.parts
        ]
        if self.biases:
            total = flat.sum(0)
            found += [(bias, total) for bias in self.biases]
        return found

    def joined(self, other: Gradient) -> Gradient | None:
        if not isinstance(other, Products) or list(map(id, other.parameters)) != list(
            map(id, self.parameters)
        ):
            return None
        mine, theirs = self._in_time(), other._in_time()
        if mine.d.shape[0] != theirs.d.shape[0]:
            return None
        pairs = zip(mine.parts, theirs.parts, strict=True)
        return Products(
            torch.cat([mine.d, theirs.d], 1),
            tuple((weight, torch.cat([a, b], 1)) for (weight, a), (_, b) in pairs),
            self.biases,
            owned=True,
        )

    def _in_time(self) -> Products:
        def view(x: Tensor) -> Tensor:
            return x.transpose(0, 1) if self.time_first else x[:, None] if x.dim() == 2 else x

        return Products(view(self.d), tuple((weight, view(a)) for weight, a in self.parts), self.biases)


def products(
    d: Tensor, weight: Tensor, came: Tensor, bias: Tensor | None, *, owned: bool = False
) -> Products:
    """Products of a layer's weight and bias, as far as they are parameters that are trained."""
    parts = ((weight, came),) if isinstance(weight, nn.Parameter) and weight.requires_grad else ()
    biases = (bias,) if isinstance(bias, nn.Parameter) and bias.requires_grad else ()
    return Products(d, parts, biases, owned=owned)


@dataclass
class Lookups(Gradient):
    """An embedding: d_t is added to the row of the table that token t names.

    Args:
        tokens: (rows, T), int64. d: (rows, T, width); where the token is the padding, zeros.
    """

    weight: nn.Parameter
    tokens: Tensor
    d: Tensor

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        return (self.weight,)

    def bounds(self, customers: Customers) -> Tensor:
        rows, steps, width = self.d.shape
        limits = torch.finfo(self.d.dtype)
        owner = torch.arange(rows) if customers.owner is None else customers.owner
        words = self.weight.shape[0]
        cells, place = torch.unique((owner[:, None] * words + self.tokens).reshape(-1), return_inverse=True)
        summed = self.d.new_zeros(len(cells), width).index_add_(0, place, self.d.reshape(-1, width))
        squared = self.d.new_zeros(customers.count).index_add_(
            0, cells // words, torch.linalg.vector_norm(summed, dim=1).square()
        )
        lengths = torch.linalg.vector_norm(self.d, dim=2).sum(1)
        loose = customers.summed(lengths) * (1 + (width + steps * customers.most) * limits.eps)
        most = steps * customers.most  # products in one cell, and cells of one customer
        norm = (squared * (1 + (width + most + 16) * limits.eps)).sqrt()
        return (norm + (2 * most + 8) * limits.eps * loose).square() + width * most * limits.tiny

    def sums(self, factors: Tensor | None) -> Sums:
        d = self.d if factors is None else self.d * factors.to(self.d.dtype)[:, None, None]
        total = torch.zeros_like(self.weight)
        return [(self.weight, total.index_add_(0, self.tokens.reshape(-1), d.reshape(-1, d.shape[2])))]

    def joined(self, other: Gradient) -> Gradient | None:
        if not isinstance(other, Lookups) or other.weight is not self.weight or len(other.d) != len(self.d):
            return None
        return Lookups(
            self.weight, torch.cat([self.tokens, other.tokens], 1), torch.cat([self.d, other.d], 1)
        )


@dataclass
class Explicit(Gradient):
    """Gradients that some other code worked out row by row: (parameter, (rows, its size)) each."""

    rows: tuple[tuple[nn.Parameter, Tensor], ...]

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        return tuple(parameter for parameter, _ in self.rows)

    def bounds(self, customers: Customers) -> Tensor:
        first = self.rows[0][1]
        limits, most = torch.finfo(first.dtype), customers.most
        size = sum(g.shape[1] for _, g in self.rows)
        squared, lengths = first.new_zeros(customers.count), first.new_zeros(len(first))
        for _, g in self.rows:
            squared += torch.linalg.vector_norm(customers.summed(g), dim=1).square()
            lengths += torch.linalg.vector_norm(g, dim=1)
        norm = (squared * (1 + (size + 16) * limits.eps)).sqrt()
        if most == 1:
            return norm.square() + size * limits.tiny
        loose = customers.summed(lengths) * (1 + (size + most) * limits.eps)
        return (norm + (2 * most + 8) * limits.eps * loose).square() + size * limits.tiny

    def sums(self, factors: Tensor | None) -> Sums:
        if factors is None:
            return [(p, g.sum(0).reshape(p.shape)) for p, g in self.rows]
        return [(p, (factors.to(g.dtype) @ g).reshape(p.shape)) for p, g in self.rows]

    def joined(self, other: Gradient) -> Gradient | None:
        if not isinstance(other, Explicit) or list(map(id, other.parameters)) != list(
            map(id, self.parameters)
        ):
            return None
        return Explicit(tuple((p, g + h) for (p, g), (_, h) in zip(self.rows, other.rows, strict=True)))


def joined(gradients: Sequence[Gradient]) -> list[Gradient] | None:
    """One gradient for each parameter, whatever layers share it; None if that can't be said with these formulas."""
    kept: dict[int, Gradient] = {}
    for gradient in gradients:
        holders = {id(kept[id(p)]) for p in gradient.parameters if id(p) in kept}
        if not holders:
            whole: Gradient | None = gradient
        else:
            whole = (
                kept[id(gradient.parameters[0])].joined(gradient)
                if len(holders) == 1 and all(id(p) in kept for p in gradient.parameters)
                else None
            )
        if whole is None or len(set(map(id, whole.parameters))) < len(whole.parameters):
            return None
        for p in whole.parameters:
            kept[id(p)] = whole
    return list({id(g): g for g in kept.values()}.values())


def factors(gradients: Sequence[Gradient], customers: Customers, clip: float) -> Tensor:
    """What each row is multiplied by so that no customer's gradient is longer than `clip`: (rows,), float64.

    The last bits of the model's own floats, in which the factor is applied, are left out of the clip; exactly 1
    for a customer within what is left.

    Returns:
        NaN or 0 where a gradient, or its square, is not finite.
    """
    squared, eps = torch.zeros(customers.count, dtype=torch.float64), 0.0
    for gradient in gradients:
        found = gradient.bounds(customers)
        squared.add_(found, alpha=1 + (len(gradients) + 4) * 2.0**-52)
        eps = max(eps, torch.finfo(found.dtype).eps)
    most = clip * (1 - 8 * eps)
    return customers.of_rows(squared.sqrt_().reciprocal_().mul_(most).clamp_(max=1.0))


def _diagonal(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=1, dim2=2)


def _loose(went: Tensor, came: Tensor, width: int) -> Tensor:
    """At least Σ_t ‖d_t‖‖a_t‖ of squared lengths (customers, K): the length if nothing cancelled."""
    limits = torch.finfo(went.dtype)
    lengths = (went.clamp(min=0) + width * limits.tiny).mul(came.clamp(min=0) + width * limits.tiny).sqrt()
    total: Tensor = lengths.sum(1) * (1 + (width + went.shape[1] + 16) * limits.eps)
    return total
