"""Does a sample come from a distribution? p-values, with nothing hidden in empty cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

Integers = npt.NDArray[np.int64]


def discrete_gaussian_pmf(sigma: float, reach: int, *, mean: float = 0.0) -> npt.NDArray[np.float64]:
    """P(x) ∝ exp(−(x − mean)²/2σ²) on −reach … reach."""
    x = np.arange(-reach, reach + 1)
    weight = np.exp(-((x - mean) ** 2) / (2 * sigma**2))
    return weight / weight.sum()


def chi_square(counts: Sequence[float], expected: Sequence[float], *, least: float = 20.0) -> float:
    """p-value of `counts` against `expected`; neighbours are pooled until each cell expects `least`."""
    if len(counts) != len(expected) or not math.isclose(sum(counts), sum(expected), rel_tol=1e-9):
        raise ValueError("counts and expectation must cover the same cells and the same total")
    cells: list[tuple[float, float]] = []
    seen, due = 0.0, 0.0
    for count, want in zip(counts, expected, strict=True):
        seen, due = seen + count, due + want
        if due >= least:
            cells.append((seen, due))
            seen, due = 0.0, 0.0
    if len(cells) < 2:
        raise ValueError("too few samples to tell anything")
    cells[-1] = (cells[-1][0] + seen, cells[-1][1] + due)
    statistic = sum((count - want) ** 2 / want for count, want in cells)
    return float(stats.chi2.sf(statistic, len(cells) - 1))


def discrete_gaussian_p(samples: Integers, sigma: float) -> float:
    """p-value of integers against N_Z(0, sigma²); what lies beyond 12 sigma counts in the last cells."""
    reach = math.ceil(12 * sigma)
    counts = np.bincount(np.clip(samples, -reach, reach) + reach, minlength=2 * reach + 1)
    return chi_square(counts.tolist(), (discrete_gaussian_pmf(sigma, reach) * len(samples)).tolist())


def gaussian_p(samples: Integers, sigma: float) -> float:
    """Kolmogorov–Smirnov p-value against N(0, sigma²), for sigma so large that the grid does not show."""
    return float(stats.kstest(samples, "norm", args=(0.0, sigma)).pvalue)


def uniform_bytes_p(data: bytes) -> float:
    """p-value of bytes against the uniform distribution."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    return chi_square(counts.tolist(), [len(data) / 256] * 256)
