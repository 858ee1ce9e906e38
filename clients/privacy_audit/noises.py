"""The noise that was really added: whether it is as large as the study says, and fresh every time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...privacy.audit import noise_check, reuse_check

Floats = npt.NDArray[np.float64]
Key = tuple[int, str]  # round, who adds the noise
_SHIFTED = 24  # shares of a task that are looked at for noise used again at another place


class Noises:
    """Collects every share of every run, in units of its σ, and says how unlikely it is.

    Args:
        sizes: round and who adds the noise -> coordinates, for all the shares that a run may have.
    """

    def __init__(self, sizes: Mapping[Key, int]) -> None:
        self._keys = tuple(sorted(sizes))
        self._sizes = sizes
        self._runs: list[Mapping[Key, Floats]] = []

    def add(self, shares: Mapping[Key, Floats]) -> None:
        """One run's shares, each divided by the σ it should have; a study that stops early has fewer."""
        if wrong := {k for k, share in shares.items() if share.shape != (self._sizes.get(k, -1),)}:
            raise InputError(f"noise in a round or of a silo that the study has not: {min(wrong)}")
        self._runs.append(shares)

    def scale(self) -> list[tuple[Key, float, float]]:
        """For each round and silo: (key, measured σ ÷ stated σ, p-value)."""
        checks = {key: noise_check(share, 1.0) for key, share in self._joined().items()}
        return [(key, check.sigma, check.p_value) for key, check in checks.items()]

    def reuse(self) -> list[tuple[str, float, float]]:
        """For each pair of shares that must be independent: (what, correlation, p-value).

        A share is held against every other of its round and of its silo, from the first coordinate on, and
        against its own of the next run; some of each length also at every shift.
        """
        # Noise of a wrong size is another line's matter (no noise is, too): in units of the σ there was.
        spreads = {key: float(np.sqrt((s**2).mean())) for key, s in self._joined().items()}
        keys = [key for key in self._keys if spreads.get(key)]
        longest = max((self._sizes[key] for key in keys), default=0)
        n = len(keys)
        products, pairs = np.zeros((n, n)), np.zeros((n, n), np.int64)
        again, again_pairs = np.zeros(n), np.zeros(n, np.int64)
        last, last_here = np.zeros((n, longest)), np.zeros(n, np.int64)
        for shares in self._runs:
            # Rows are padded with zeros, so a product of two of them is over what both have.
            now, here = np.zeros((n, longest)), np.zeros(n, np.int64)
            for place, key in enumerate(keys):
                if key in shares:
                    here[place] = shares[key].size
                    now[place, : here[place]] = shares[key] / spreads[key]
            products += now @ now.T
            pairs += np.minimum.outer(here, here)
            again += (now * last).sum(axis=1)
            again_pairs += np.minimum(here, last_here)
            last, last_here = now, here
        found = []
        for i, (number, silo) in enumerate(keys):
            for j, (other, there) in enumerate(keys[:i]):
                if (number == other or silo == there) and pairs[i, j]:
                    what = f"round {number}, {there} and {silo}"
                    if number != other:
                        what = f"rounds {other} and {number}, {silo}"
                    found.append(_pair(what, products[i, j], pairs[i, j]))
            if again_pairs[i]:
                found.append(_pair(f"round {number}, {silo}, one run and the next", again[i], again_pairs[i]))
        return found + self._shifted(keys)

    def _shifted(self, keys: list[Key]) -> list[tuple[str, float, float]]:
        joined = self._joined()
        groups: dict[int, list[Key]] = {}
        for key in keys:
            groups.setdefault(joined[key].size, []).append(key)
        found = []
        for size, members in groups.items():
            if size >= 64:  # as short as the check goes
                chosen = members[:_SHIFTED]
                check = reuse_check(np.stack([joined[key] for key in chosen]))
                one, other = (f"round {chosen[i][0]}, {chosen[i][1]}" for i in check.pair)
                what = f"{one}, and {other} {check.shift} further on"
                found.append((what, check.correlation, check.p_value))
        return found

    def _joined(self) -> dict[Key, Floats]:
        """Each share of all runs, one behind the other."""
        found = {key: [shares[key] for shares in self._runs if key in shares] for key in self._keys}
        return {key: np.concatenate(parts) for key, parts in found.items() if parts}


def _pair(what: str, product: float, size: int) -> tuple[str, float, float]:
    """Two-sided p-value of Σ xᵢyᵢ of pairs of independent normals: E e^{txy} = (1 − t²)^{−1/2}, Chernoff, best t.

    It holds for short vectors too, where such a sum is far from normal.
    """
    s, n = abs(float(product)), int(size)
    t = 2 * s / (n + math.sqrt(n**2 + 4 * s**2))
    p = min(1.0, 2 * math.exp(-t * s - n / 2 * math.log1p(-t * t)))
    return what, float(product) / n, p
