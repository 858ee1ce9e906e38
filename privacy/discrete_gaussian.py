"""The discrete Gaussian's distribution in whole numbers: every figure a bound that holds, none a float.

C_k = P(magnitude ≤ k), of two distributions on 0, 1, 2, …:

- *folded*: |X| of X ~ N_Z(0, v), the discrete Gaussian of Canonne, Kamath and Steinke 2020 (NeurIPS,
  Definition 1): weight 1 at 0 and 2·exp(−k²/2v) at k > 0;
- *half*: weight exp(−k²/2v) at k ≥ 0, of which larger Gaussians are built (`noise`).

An inverse of C needs only as many bits of a uniform real u as tell on which side of C_k it lies (Knuth and
Yao 1976, "The complexity of nonuniform random number generation"): a `Table` tells it from 15 or 63 bits,
`settle` from however many it takes. What comes out has the exact distribution, its whole support included.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

CELL_BITS = 15
PREFIX_BITS = 63
"""Bits of u that a `Table`'s cell, and its prefixes, look at."""
FINER = 32
"""Bits by which a bound is known better than what it is compared with, so that the bound's own width hardly counts."""

_GUARD = 96  # bits beyond those asked for; rounding eats about 3·log2(13σ) + 5 of them
_LAST = (1 << PREFIX_BITS) - 1


def exp_bounds(numerator: int, denominator: int, bits: int) -> tuple[int, int]:
    """(low, high) with low ≤ 2^bits · exp(−numerator/denominator) ≤ high, a few units apart.

    Args:
        numerator: at least 0. denominator: positive.
    """
    if numerator == 0:
        return 1 << bits, 1 << bits
    if numerator > bits * denominator:
        return 0, 1
    # exp(−x) = exp(−x/2^h)^(2^h), with x/2^h < 1/2.
    halvings = (2 * numerator // denominator).bit_length()
    work = bits + halvings + 16
    divisor = denominator << halvings
    # Alternating series. A term is rounded down, by less than 1 + (what the last was short of)/2 < 2; what is left
    # out is less than the last term, of which less than 2 was left.
    term = total = 1 << work
    count = 0
    while term:
        count += 1
        term = term * numerator // (divisor * count)
        total += -term if count % 2 else term
    low, high = max(0, total - 2 * count - 2), total + 2 * count + 2
    for _ in range(halvings):
        low, high = low * low >> work, (high * high >> work) + 1
    return low >> (work - bits), (high >> (work - bits)) + 1


@dataclass(frozen=True)
class Cumulative:
    """low[k] ≤ 2^bits · C_k < high[k], both rising, for all k whose C_k differs from 1 by 2^-bits, and more."""

    low: list[int]
    high: list[int]


def cumulative(variance: Fraction, folded: bool, bits: int) -> Cumulative:
    """C_k of variance v to about 2^-bits, for k = 0 … about σ·√(2·ln 2·(bits + 96)).

    exp(−k²/2v) comes by w_k = w_(k−1)·r_k, r_(k+1) = r_k·q², r_1 = q = exp(−1/2v). Products are rounded down, so
    all of it is at most the truth. With q short by at most e units, r_k is short by at most k·(2e + 2), w_k by
    k²·(2e + 3), and a sum of the first k, each twice, by 2k³·(2e + 3).
    """
    work = bits + _GUARD
    low, high = exp_bounds(variance.denominator, 2 * variance.numerator, work)
    unit = 2 * (high - low) + 3
    times = 2 if folded else 1
    square, ratio, weight = low * low >> work, low, 1 << work
    sums, total = [], weight
    while weight:
        sums.append(total)
        weight = weight * ratio >> work
        ratio = ratio * square >> work
        total += times * weight
    # The first weight left out is w_k, less than k²·unit. From there the weights fall by exp(−(2k + 1)/2v) or
    # faster, so all of them are at most (1 + 2v/(2k + 1))·w_k, as 1/(1 − exp(−x)) ≤ 1 + 1/x.
    k = len(sums)
    short = 2 * k**3 * unit
    rest = times * k**2 * unit * (2 + 2 * variance.numerator // (variance.denominator * (2 * k + 1)))
    most = total + short + rest
    return Cumulative([(s << bits) // most for s in sums], [((s + short) << bits) // total + 1 for s in sums])


_precise = lru_cache(maxsize=4)(cumulative)


def settle(prefix: int, more: Callable[[], int], variance: Fraction, folded: bool) -> int:
    """The magnitude at u, whose first 63 bits are `prefix`; `more` gives 64 further ones as often as needed."""
    bits = PREFIX_BITS
    while True:
        bits += 64
        prefix = prefix << 64 | more()
        bounds = _precise(variance, folded, bits + FINER)
        # The answer is the first k with u < C_k: there C_(k−1) ≤ prefix ≤ u, and u < prefix + 1 ≤ C_k.
        k = bisect.bisect_left(bounds.low, (prefix + 1) << FINER)
        if k < len(bounds.low) and (k == 0 or bounds.high[k - 1] <= prefix << FINER):
            return k


@dataclass(frozen=True)
class Table:
    """Where the C_k lie, to 63 bits.

    Args:
        prefixes: uint64, ⌊2^63·C_k⌋ for k = 0, 1, …; the last is the first to be 2^63 − 1. A u whose prefix is none
            of these has the magnitude "how many are smaller"; one whose prefix is, is to be settled. So is, with
            that, all that lies beyond the table.
        cells: int16, shape (2^15,): the magnitude of every u that begins with these 15 bits, or −1 if they
            don't tell.
    """

    variance: Fraction
    folded: bool
    prefixes: npt.NDArray[np.uint64]
    cells: npt.NDArray[np.int16]


@lru_cache(maxsize=32)
def table(variance: Fraction, folded: bool) -> Table:
    """The table of variance v, 1 ≤ v ≤ 2^20: at most 10,000 prefixes."""
    bits = PREFIX_BITS + FINER
    while (found := _prefixes(variance, folded, bits)) is None:
        bits += 64
    prefixes = np.array(found, np.uint64)
    cells = cells_of(prefixes)
    prefixes.setflags(write=False)
    cells.setflags(write=False)
    return Table(variance, folded, prefixes, cells)


def cells_of(prefixes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int16]:
    """What `Table.cells` says, of rising prefixes."""
    starts = np.arange(1 << CELL_BITS, dtype=np.uint64) << np.uint64(PREFIX_BITS - CELL_BITS)
    ends = starts + np.uint64((1 << (PREFIX_BITS - CELL_BITS)) - 1)
    first = prefixes.searchsorted(starts, side="left")
    return np.where(first == prefixes.searchsorted(ends, side="right"), first, -1).astype(np.int16)


def _prefixes(variance: Fraction, folded: bool, bits: int) -> list[int] | None:
    """⌊2^63·C_k⌋ up to the first that is 2^63 − 1, or None if so many bits don't tell one of them."""
    bounds = cumulative(variance, folded, bits)
    found = []
    for low, high in zip(bounds.low, bounds.high, strict=True):
        floor = low >> (bits - PREFIX_BITS)
        # C_k < 1, whatever its upper bound; below that bound, which C_k does not reach.
        if floor != min((high - 1) >> (bits - PREFIX_BITS), _LAST):
            return None
        found.append(floor)
        if floor == _LAST:
            return found
    return None
