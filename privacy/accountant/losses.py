"""A privacy loss distribution on a grid that never understates, and its composition.

For a pair of distributions (P, Q) the loss is log P(x)/Q(x) under P, and

    δ(ε) = infinite mass + Σ mass(l)·(1 − e^{ε−l})₊ ,

which grows if mass moves to a larger loss, or if it spreads to the left and right so that Σ mass(l)·e^{−l} stays: the
summand is increasing in l and convex in e^{−l}. Everything below only ever does these two things, or raises a mass
by a bound of its rounding error. docs/protocols/accounting.md has the argument.

The step of a grid is a power of two, so that a grid holds every coarser one. It follows the width of
what it holds: 32 to 64 steps to a standard deviation, which costs some 1e-4 of ε, whatever is composed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_U = 2.0**-53
_FINE = 64  # steps to a standard deviation, at most
_LONGEST = 2**16  # grid points; a heavier tail gets a coarser step
_SHORTEST = 512  # grid points not worth saving
_UPPER = 1e-20  # mass of the upper tail that may become infinite at each composition
_LOWER = 1e-9  # mass of the lower tail that may be moved up to one point
_TILT = 2.0  # standard deviations by which a composition is shifted before it is transformed
_TILT_LOG = 4.0  # and at most this much in log E[e^{θl}]


@dataclass(frozen=True)
class Losses:
    """`mass[i]` at the loss (low + i)·step, and `infinite` mass; they sum to 1 or a little less."""

    low: int
    step: float
    mass: Array
    infinite: float

    @cached_property
    def values(self) -> Array:
        """The losses, shape (len(mass),)."""
        return (self.low + np.arange(len(self.mass), dtype=np.float64)) * self.step

    @cached_property
    def mean(self) -> float:
        """Mean of the finite losses."""
        return float(self.mass @ self.values) / float(self.mass.sum())

    @cached_property
    def variance(self) -> float:
        """Variance of the finite losses."""
        return float(self.mass @ (self.values - self.mean) ** 2) / float(self.mass.sum())

    def coarser(self) -> Losses:
        """The same on every second point: what lies between spreads to its two neighbours, Σ mass·e^{−l} kept."""
        low, mass = self.low, self.mass
        if low % 2:
            low, mass = low - 1, np.concatenate(([0.0], mass))
        if len(mass) % 2 == 0:
            mass = np.concatenate((mass, [0.0]))
        up = 1 / (1 + math.exp(-self.step)) * (1 + 8 * _U)
        odd, even = mass[1::2], mass[0::2].copy()
        even[1:] += up * odd
        even[:-1] += (1 - up) * odd
        return Losses(low // 2, 2 * self.step, even, self.infinite)

    def at(self, step: float) -> Losses:
        """The same on a coarser grid."""
        losses = self
        while losses.step < step:
            losses = losses.coarser()
        return losses

    def fitted(self) -> Losses:
        """The same on the grid that its width asks for."""
        losses = self
        while len(losses.mass) > _LONGEST or (
            losses.variance > (_FINE * losses.step) ** 2 and len(losses.mass) > _SHORTEST
        ):
            losses = losses.coarser()
        return losses

    def trimmed(self, total: float) -> Losses:
        """The tails cut: the upper one becomes infinite, the lower one moves up to one point.

        What exceeds `total`, a bound of the finite mass, came from raising it, and is taken off the low end: the mass above any
        loss stays at least what it was or `total`.
        """
        above = np.cumsum(self.mass[::-1])[::-1]  # of the mass here and further up
        end = max(1, int(np.searchsorted(-above, -_UPPER, side="right")))
        infinite = self.infinite + (float(above[end]) if end < len(above) else 0.0)
        total = min(total, float(above[0]))
        start = max(0, int(np.searchsorted(-above[:end], -(total - _LOWER), side="right")) - 1)
        mass = self.mass[start:end].copy()
        rest = float(above[start + 1]) if start + 1 < len(above) else 0.0
        mass[0] = max(total - rest, 0.0)
        return Losses(self.low + start, self.step, mass, infinite)

    def __mul__(self, other: Losses) -> Losses:
        """The losses of both mechanisms together: their sum.

        By a fast Fourier transform of tilted masses mass·e^{θ(l − mean)}: its rounding error, the same everywhere there,
        is far below the masses of the upper tail here. Every mass is raised by a bound of its error.
        """
        step = max(self.step, other.step)
        one, two = self.at(step), other.at(step)
        theta, centre, (first, second) = _tilt(one, two)
        scale = float(first.sum()) * float(second.sum())
        first, second = first / first.sum(), second / second.sum()
        length = len(first) + len(second) - 1
        size = 1 << (length - 1).bit_length()
        product = np.fft.irfft(np.fft.rfft(first, size) * np.fft.rfft(second, size), size)[:length]
        # Higham 2002, Theorem 24.2: a transform of 2^k points errs by at most 8uk, relative, in L2. Both sides sum
        # to 1, so neither transform exceeds 1, and no coordinate errs by more than all do in L2.
        norms = float(np.linalg.norm(first)), float(np.linalg.norm(second))
        error = 8 * _U * (math.log2(size) + 1) * (sum(norms) + min(norms))
        low = one.low + two.low
        # The weights were exponentials of whole multiples of θ·step, and so are these: they cancel but for some units.
        with np.errstate(over="ignore"):  # at the low end, where `trimmed` takes off whatever is too much
            back = np.exp(-theta * step * (low - centre + np.arange(length))) * (scale * (1 + 1e-12))
            mass = np.maximum(product + error, 0.0) * back
        total = float(one.mass.sum()) * float(two.mass.sum()) * (1 + 1e-12)
        infinite = one.infinite + two.infinite * (1 - one.infinite) * (1 + 8 * _U)
        joined = Losses(low, step, mass, infinite)
        return joined.trimmed(min(total, 1.0)).fitted()


def _tilt(one: Losses, two: Losses) -> tuple[float, int, tuple[Array, Array]]:
    """θ, the grid point of the sum where the weight is 1, and the tilted masses of both, on the same grid.

    Any θ is sound; a larger one makes the upper tail more exact and the lower one less.
    """
    deviation = math.sqrt(one.variance + two.variance)
    centres = [round(side.mean / side.step) for side in (one, two)]
    if deviation == 0:
        return 0.0, sum(centres), (one.mass, two.mass)
    reach = float(one.values[-1] + two.values[-1]) - one.mean - two.mean
    theta = min(_TILT / deviation, 60 / max(reach, deviation, one.step))
    with np.errstate(over="ignore", invalid="ignore"):
        while True:
            first, second = (
                side.mass * np.exp(theta * side.step * (side.low - centre + np.arange(len(side.mass))))
                for side, centre in zip((one, two), centres, strict=True)
            )
            if math.log(first.sum()) + math.log(second.sum()) <= _TILT_LOG:  # false of inf and nan
                return theta, sum(centres), (first, second)
            theta /= 2
