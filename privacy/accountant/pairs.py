"""The privacy loss distributions of single events, in both directions: a customer removed, a customer added.

Each event has a pair of distributions that dominates it (Zhu, Dong and Wang 2022, AISTATS). The loss axis is cut into the
cells of a grid; what P and Q hold in a cell is known in closed form, and goes to the two ends of the cell so that
both are kept ("connect the dots": Doroshenko, Ghazi, Kamath, Kumar, Manurangsi 2022, PoPETs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..events import Laplace, PoissonSampled
from .losses import Losses

Array = npt.NDArray[np.float64]
Cells = tuple[Array, Array]  # masses, and bounds of their rounding errors
_U = 2.0**-53
_STEPS = 16  # grid steps to a standard deviation, at least
_LONGEST = 2**16
LEAST = 1e-3  # less noise than this is taken for none
_MOST = 1e8  # and more for this much: it costs no less
_REACH = 9.3  # deviations beyond which a Gaussian has less than 1e-20


@dataclass(frozen=True)
class Pair:
    """The losses if a customer is removed, and if one is added."""

    remove: Losses
    add: Losses

    def __mul__(self, other: Pair) -> Pair:
        remove = self.remove * other.remove
        if self.add is self.remove and other.add is other.remove:  # as those of Laplace noise
            return Pair(remove, remove)
        return Pair(remove, self.add * other.add)

    def power(self, count: int) -> Pair:
        """The losses of `count` ≥ 1 runs, by squaring."""
        if count == 1:
            return self
        half = self.power(count // 2)
        return half * half * self if count % 2 else half * half


@lru_cache(maxsize=64)
def pair(event: PoissonSampled | Laplace, count: int) -> Pair:
    """`count` runs of an event whose noise multiplier is at least `LEAST`."""
    return (_laplace(event) if isinstance(event, Laplace) else _sampled(event)).power(count)


def _sampled(event: PoissonSampled) -> Pair:
    """Removed: P = (1 − q)N(0, σ²) + qN(1, σ²), Q = N(0, σ²); the loss rises with x. Added: P and Q change places."""
    q, sigma = event.sampling_probability, min(event.event.noise_multiplier, _MOST)
    from scipy.special import ndtr  # 0.2 s: not for `foedus --help`

    def loss(x: float) -> float:
        # log(1 − q + q·e^y), from whichever end does not overflow
        y = (2 * x - 1) / (2 * sigma**2)
        return y + math.log(q + (1 - q) * math.exp(-y)) if y > 30 else math.log1p(q * math.expm1(y))

    low, high = loss(-_REACH * sigma), loss(1 + _REACH * sigma)
    variance = min(q * q * math.expm1(min(sigma**-2, 700.0)), sigma**-2)
    step = _step(math.sqrt(variance), high - low)
    first, last = math.floor(low / step), math.ceil(high / step)
    edges = np.arange(first, last + 1) * step
    # x of a loss l: σ²·log((e^l − (1 − q))/q) + ½, minus infinity where no x loses so little
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = -np.expm1(math.log1p(-q) - edges)
        x = np.where(inner > 0, sigma**2 * (edges + np.log(inner) - math.log(q)) + 0.5, -np.inf)
    without, shifted = _normal_cells(x / sigma), _normal_cells((x - 1) / sigma)
    within = (1 - q) * without[0] + q * shifted[0], (1 - q) * without[1] + q * shifted[1]
    beyond = (1 - q) * ndtr(-x[-1] / sigma) + q * ndtr((1 - x[-1]) / sigma)
    remove = _dots(first, step, within, without, float(beyond))
    add = _dots(-last, step, _reversed(without), _reversed(within), float(ndtr(x[0] / sigma)))
    return Pair(remove, add)


def _laplace(event: Laplace) -> Pair:
    """P = Laplace(0, b), Q = Laplace(1, b), b = 1/e: the loss is at most e, and the same in both directions.

    Between −e and e: P[L ≥ l] = 1 − ½e^{−(e−l)/2},  Q[L ≥ l] = ½e^{−(e+l)/2}.
    """
    e = 1 / min(event.noise_multiplier, _MOST)
    step = _step(min(e, 2.0) / 8, 2 * e)  # finer: where its losses end is seen in ε, and the grid is short
    last = math.floor(e / step) + 1
    edges = np.arange(-last, last + 1) * step
    inside = np.clip(edges, -e, e)

    def cells(at_least: Array) -> Cells:
        at_least = np.where(edges > e, 0.0, np.where(edges <= -e, 1.0, at_least))
        mass = at_least[:-1] - at_least[1:]
        return mass, 4 * _U * at_least[:-1]

    one = cells(1 - 0.5 * np.exp(-(e - inside) / 2))
    two = cells(0.5 * np.exp(-(e + inside) / 2))
    losses = _dots(-last, step, one, two, 0.0)
    return Pair(losses, losses)


def _step(deviation: float, width: float) -> float:
    """A power of two: fine enough for the deviation, unless the grid would be too long."""
    step = 2.0 ** math.floor(math.log2(deviation / _STEPS))
    return max(step, 2.0 ** math.ceil(math.log2(width / (_LONGEST - 2))))


def _normal_cells(edges: Array) -> Cells:
    """The mass of a standard normal between edges, shape (len(edges) − 1,), and a bound of its rounding error.

    Taken as a difference of tails on the same side of 0: each keeps its relative precision.
    """
    from scipy.special import ndtr

    tail = ndtr(-np.abs(edges))
    right = edges >= 0
    mass = np.diff(np.where(right, -tail, tail))
    if (middle := int(np.searchsorted(right, True))) and middle < len(edges):
        mass[middle - 1] += 1.0
    return np.maximum(mass, 0.0), 8 * _U * np.maximum(tail[:-1], tail[1:])


def _reversed(cells: Cells) -> Cells:
    return cells[0][::-1], cells[1][::-1]


def _dots(first: int, step: float, p: Cells, q: Cells, infinite: float) -> Losses:
    """Give the mass of each cell to its ends: up to the upper, the rest to the lower, so that

        up + rest = P(cell),   up·e^{−upper} + rest·e^{−lower} = Q(cell):   up = (P − e^{lower} Q)/(1 − e^{−step}).

    Rounding errors are added to both, upwards, where they cost more.
    """
    (p_mass, p_error), (q_mass, q_error) = p, q
    # no overflow: too small a factor makes `up` too large
    ratio = np.exp(np.minimum((first + np.arange(len(p_mass))) * step, 700.0)) * (1 - 4 * _U)
    total = p_mass + p_error
    doubt = ratio * q_error + p_error + 4 * _U * p_mass
    up = np.clip((total - ratio * q_mass + doubt) / -math.expm1(-step), 0.0, total)
    mass = np.zeros(len(total) + 1)
    mass[1:] = up
    mass[:-1] += total - up
    return Losses(first, step, mass, infinite).trimmed(1.0 - infinite)
