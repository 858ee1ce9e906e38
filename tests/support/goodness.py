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
    """p-value of integers against N_Z(0, sigma²); what lies beyond 12 sigma counts in the last cells.

    To sigma = 5000 every integer is a cell, by its own probability. Above, cells are sigma/500 wide, and theirs is the
    normal one from half an integer below to half above, which is wrong by 1/(24·sigma²) of it (Euler–Maclaurin).
    """
    width = 1 if sigma <= 5000 else int(sigma) // 500
    reach = math.ceil(12 * sigma / width)
    cells = np.clip((samples + width // 2) // width, -reach, reach) + reach
    counts = np.bincount(cells, minlength=2 * reach + 1)
    if width == 1:
        expected = discrete_gaussian_pmf(sigma, reach)
    else:
        starts = np.arange(-reach, reach + 2) * float(width) - width // 2 - 0.5
        starts[0], starts[-1] = -math.inf, math.inf
        expected = np.diff(stats.norm.cdf(starts / sigma))
    return chi_square(counts.tolist(), (expected * len(samples)).tolist())


def same_p(one: Integers, other: Integers, *, least: float = 40.0) -> float:
    """p-value of two samples having one distribution: χ² of homogeneity, neighbours pooled to `least` of both."""
    values = np.sort(np.concatenate([one, other]))
    borders = np.unique(values[int(least) :: int(least)])
    counts = np.array(
        [np.bincount(np.searchsorted(borders, s), minlength=len(borders) + 1) for s in (one, other)]
    )
    counts = counts[:, counts.sum(axis=0) > 0]
    if counts.shape[1] < 2:
        raise ValueError("too few samples to tell anything")
    return float(stats.chi2_contingency(counts, correction=False).pvalue)


def uniform_bytes_p(data: bytes) -> float:
    """p-value of bytes against the uniform distribution."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    return chi_square(counts.tolist(), [len(data) / 256] * 256)
