"""Poisson sampling of customers, by a cipher's bits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...errors import InputError
from ..noise import Keystream
from .customers import Groups, count


class PoissonBatches:
    """Batches in which every customer is, with all its rows, with the same probability and on its own.

    This is what amplification by subsampling supposes (Abadi et al. 2016; Mironov, Talwar and Zhang 2019, "Rényi
    Differential Privacy of the Sampled Gaussian Mechanism"): batches of a fixed size, or reshuffled epochs, are
    something else. A batch may be empty. Iterate once for the `steps` batches:
    (*rows of each tensor) where every row is a customer, (*rows of each tensor, their groups) otherwise.

    Args:
        tensors: rows first, as many rows in each.
        sampling_probability: in (0, 1].
        steps: batches in one iteration.
        groups: shape (rows,), whole numbers: equal ones are one customer.

    Raises:
        InputError: a probability outside (0, 1], no tensor, different numbers of rows.
    """

    def __init__(
        self, *tensors: Tensor, sampling_probability: float, steps: int, groups: Groups = None
    ) -> None:
        if not (math.isfinite(sampling_probability) and 0 < sampling_probability <= 1):
            raise InputError(f"the sampling probability must be in (0, 1], not {sampling_probability}")
        if not tensors or len({len(t) for t in tensors}) != 1:
            raise InputError("tensors with the same number of rows are needed")
        if steps < 1:
            raise InputError(f"steps must be a positive number, not {steps}")
        self._tensors = tensors
        # On the grid of the bits compared with it; upwards would be more than was said.
        self._limit = math.floor(sampling_probability * 2**64)
        if self._limit < 1:
            raise InputError(f"the sampling probability must be 2^-64 at least, not {sampling_probability}")
        self.sampling_probability = sampling_probability
        self.steps = steps
        self.customers = count(len(tensors[0]), groups)
        self.drawn = 0  # batches handed out so far
        self._groups: npt.NDArray[np.int64] | None = None
        if groups is not None:
            given = groups.numpy() if isinstance(groups, Tensor) else np.asarray(groups)
            self._groups = np.unique(given, return_inverse=True)[1].reshape(-1).astype(np.int64)
        self._stream = Keystream()

    @property
    def expected_batch(self) -> float:
        """Customers in a batch, on average."""
        return self.sampling_probability * self.customers

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for _ in range(self.steps):
            words = np.frombuffer(self._stream.take(8 * self.customers), np.uint64)
            chosen = np.ones(self.customers, bool) if self._limit >= 2**64 else words < np.uint64(self._limit)
            self.drawn += 1
            if self._groups is None:
                rows = torch.from_numpy(np.flatnonzero(chosen))
                yield tuple(t[rows] for t in self._tensors)
            else:
                rows = torch.from_numpy(np.flatnonzero(chosen[self._groups]))
                yield (*(t[rows] for t in self._tensors), torch.from_numpy(self._groups)[rows])
