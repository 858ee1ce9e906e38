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
    """Collects every share of every run, in units of its σ, and says how unlikely it is.

    Args:
        sizes: round and who adds the noise -> coordinates, for all the shares that a run may have.
    """

    def __init__(self, sizes: Mapping[Key, int]) -> None:
        self._keys = tuple(sorted(sizes))
        self._sizes = np.array([sizes[key] for key in self._keys], np.int64)
        n = len(self._keys)
        self._squares, self._again = np.zeros(n), np.zeros(n)
        self._counts, self._again_counts = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._products, self._pairs = np.zeros((n, n)), np.zeros((n, n), np.int64)
        self._last: tuple[Floats, npt.NDArray[np.int64]] | None = None

    def add(self, shares: Mapping[Key, Floats]) -> None:
        """One run's shares, each divided by the σ it should have; a study that stops early has fewer."""
        if unknown := set(shares) - set(self._keys):
            raise InputError(f"noise in a round or of a silo that the study has not: {min(unknown)}")
        now = np.zeros((len(self._keys), int(self._sizes.max(initial=0))))
        here = np.zeros(len(self._keys), np.int64)
        for place, key in enumerate(self._keys):
            if key in shares:
                here[place] = shares[key].size
                now[place, : here[place]] = shares[key]
        # Rows are padded with zeros, so a product of two of them is over what both have.
        self._products += now @ now.T
        self._pairs += np.minimum.outer(here, here)
        self._squares += (now**2).sum(axis=1)
        self._counts += here
        if self._last is not None:
            self._again += (now * self._last[0]).sum(axis=1)
            self._again_counts += np.minimum(here, self._last[1])
        self._last = (now, here)

    def scale(self) -> list[tuple[Key, float, float]]:
        """For each round and silo: (key, measured σ ÷ stated σ, p-value)."""
        return [
            (key, float(np.sqrt(squares / count)), variance_p(float(squares), int(count)))
            for key, squares, count in zip(self._keys, self._squares, self._counts, strict=True)
            if count
        ]

    def reuse(self) -> list[tuple[str, float, float]]:
        """For each pair of shares that must be independent: (what, correlation, p-value)."""
        found = []
        spread = np.sqrt(self._squares / np.maximum(self._counts, 1))
        for i, (number, silo) in enumerate(self._keys):
            for j in range(i):
                other, there = self._keys[j]
                if (number == other or silo == there) and self._pairs[i, j]:
                    what = (
                        f"round {number}, {there} and {silo}"
                        if number == other
                        else f"rounds {other} and {number}, {silo}"
                    )
                    scale = spread[i] * spread[j]
                    found.append(_pair(what, self._products[i, j], scale, int(self._pairs[i, j])))
            if self._again_counts[i]:
                what = f"round {number}, {silo}, one run and the next"
                found.append(_pair(what, self._again[i], spread[i] ** 2, int(self._again_counts[i])))
        return found


def _pair(what: str, product: float, scale: float, size: int) -> tuple[str, float, float]:
    # In units of the σ there was: noise of a wrong size is another line's matter. (No noise at all is, too.)
    total = float(product / scale) if scale > 1e-200 else 0.0
    return what, total / size, products_p(total, size)
