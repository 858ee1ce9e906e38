"""Which rows belong to which customer, and the blocks in which they are worked through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...errors import InputError

Groups = npt.NDArray[np.integer] | Tensor | None


@dataclass(frozen=True)
class Customers:
    """The customers of a block of rows.

    Args:
        rows: rows of the block.
        owner: shape (rows,), int64, each row's customer in 0 … count−1; None where every row is its own.
        count: customers of the block, each with one row at least.
    """

    rows: int
    owner: Tensor | None
    count: int
    _buckets: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list, repr=False)

    def buckets(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Customers with about as many rows each: (who (m,), their rows (m, k), which of these are real (m, k)).

        k is a power of two; a place that no row fills points at row 0 and is marked False.
        """
        if self.owner is None:
            raise ValueError("every row is its own customer")
        if not self._buckets:
            order = torch.argsort(self.owner, stable=True)
            sizes = torch.bincount(self.owner, minlength=self.count)
            starts = sizes.cumsum(0) - sizes
            padded = 2 ** torch.ceil(torch.log2(sizes.double())).long()
            for k in sorted(set(padded.tolist())):
                who = torch.nonzero(padded == k).squeeze(1)
                place = torch.arange(k)
                real = place[None, :] < sizes[who][:, None]
                index = torch.where(real, starts[who][:, None] + place[None, :], 0)
                self._buckets.append((who, torch.where(real, order[index], 0), real))
        return self._buckets

    def summed(self, values: Tensor) -> Tensor:
        """Sum over each customer's rows: (rows, …) → (count, …)."""
        if self.owner is None:
            return values
        return values.new_zeros((self.count, *values.shape[1:])).index_add_(0, self.owner, values)

    def of_rows(self, values: Tensor) -> Tensor:
        """Each row's customer's value: (count,) → (rows,)."""
        return values if self.owner is None else values[self.owner]

    @property
    def most(self) -> int:
        """The largest number of rows of one customer."""
        return 1 if self.owner is None else int(torch.bincount(self.owner, minlength=1).max())


def blocks(rows: int, groups: Groups, most: int) -> Iterator[tuple[slice | Tensor, Customers]]:
    """Cut rows into blocks of at most `most` rows, a customer's rows always in one block (however many they are).

    Args:
        groups: shape (rows,), whole numbers; equal numbers are one customer. None: each row is its own.

    Yields:
        (which rows, their customers); nothing if there is no row.

    Raises:
        InputError: `groups` is not one whole number a row.
    """
    if groups is None:
        for start in range(0, rows, most):
            part = min(most, rows - start)
            yield slice(start, start + part), Customers(part, None, part)
        return
    owner = _owners(rows, groups)
    if rows == 0:
        return
    sizes = np.bincount(owner)
    if sizes.max() == 1:
        yield from blocks(rows, None, most)
        return
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(sizes)
    first = 0  # customer
    while first < len(sizes):
        begin = int(ends[first] - sizes[first])
        last = max(first + 1, int(np.searchsorted(ends, begin + most, side="right")))
        chosen = order[begin : ends[last - 1]]
        local = torch.from_numpy(owner[chosen] - first)
        which = slice(0, rows) if len(chosen) == rows else torch.from_numpy(chosen)
        if len(chosen) == rows:
            local = torch.from_numpy(owner)
        yield which, Customers(len(chosen), local, last - first)
        first = last


def count(rows: int, groups: Groups) -> int:
    """How many customers these rows belong to."""
    return rows if groups is None else len(np.unique(_owners(rows, groups)))


def _owners(rows: int, groups: Groups) -> npt.NDArray[np.int64]:
    given = groups.numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    if given.shape != (rows,) or (rows and not np.issubdtype(given.dtype, np.integer)):
        raise InputError(
            f"groups must be one whole number a row, shape ({rows},), not {given.dtype} {given.shape}"
        )
    return np.unique(given, return_inverse=True)[1].reshape(-1).astype(np.int64)
