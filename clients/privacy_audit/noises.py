"""The noise that was really added: whether it is as large as the study says, and fresh every time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from .statistics import products_p, variance_p

Floats = npt.NDArray[np.float64]
Key = tuple[int, str]  # round, silo


class Noises:
    """Collects every share of every run, in units of its σ, and says how unlikely it is."""

    def __init__(self) -> None:
        self._keys: tuple[Key, ...] = ()
        self._squares: Floats = np.zeros(0)
        self._sizes: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._products: Floats = np.zeros((0, 0))
        self._again: Floats = np.zeros(0)
        self._last: Floats | None = None
        self._runs = 0

    def add(self, shares: Mapping[Key, Floats]) -> None:
        """One run's shares, each divided by the σ it should have; the same rounds and silos every time."""
        keys = tuple(sorted(shares))
        sizes = np.array([shares[key].size for key in keys], np.int64)
        if not self._runs:
            self._keys, self._sizes = keys, sizes
            self._squares, self._again = np.zeros(len(keys)), np.zeros(len(keys))
            self._products = np.zeros((len(keys), len(keys)))
        elif keys != self._keys or (sizes != self._sizes).any():
            raise InputError("two runs of an audit have other rounds or other silos")
        now = np.zeros((len(keys), int(sizes.max(initial=0))))
        for row, key in zip(now, keys, strict=True):
            row[: shares[key].size] = shares[key]
        # Rows are padded with zeros, so a product of two of them is over what both have.
        self._products += now @ now.T
        self._squares += (now**2).sum(axis=1)
        if self._last is not None:
            self._again += (now * self._last).sum(axis=1)
        self._last, self._runs = now, self._runs + 1

    def scale(self) -> list[tuple[Key, float, float]]:
        """For each round and silo: (key, measured σ ÷ stated σ, p-value)."""
        counts = self._sizes * self._runs
        return [
            (key, float(np.sqrt(squares / count)), variance_p(float(squares), int(count)))
            for key, squares, count in zip(self._keys, self._squares, counts, strict=True)
        ]

    def reuse(self) -> list[tuple[str, float, float]]:
        """For each pair of shares that must be independent: (what, correlation, p-value)."""
        found = []
        spread = np.sqrt(np.maximum(self._squares / (self._sizes * max(self._runs, 1)), 1e-300))
        for i, (number, silo) in enumerate(self._keys):
            for j in range(i):
                other, there = self._keys[j]
                if number == other or silo == there:
                    size = int(min(self._sizes[i], self._sizes[j])) * self._runs
                    what = f"rounds {other} and {number}, {there} and {silo}"
                    found.append(self._pair(what, self._products[i, j], spread[i] * spread[j], size))
            if self._runs > 1:
                size = int(self._sizes[i]) * (self._runs - 1)
                what = f"round {number}, {silo}, one run and the next"
                found.append(self._pair(what, self._again[i], spread[i] ** 2, size))
        return found

    @staticmethod
    def _pair(what: str, product: float, spread: float, size: int) -> tuple[str, float, float]:
        # In units of the σ there was, so that noise of a wrong size is another line's matter.
        total = product / spread if spread > 1e-200 else 0.0
        return what, total / size, products_p(total, size)
