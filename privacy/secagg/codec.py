"""What a silo puts into a sum: integers as they are, or real numbers on a fixed-point grid.

A *source* hands out the vector chunk by chunk, so that a vector of 10^8 numbers needs no second copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ..noise import Keystream
from .rings import OVERFLOW_BITS, WIDTHS, Integers, Ring, noise_tail

Signed = npt.NDArray[np.signedinteger[Any]]
Numbers = Signed | npt.NDArray[np.float64]
Reals = npt.NDArray[np.floating[Any]]


class Source(Protocol):
    """A vector of signed integers to be summed, read once, in order."""

    @property
    def size(self) -> int:
        """Number of elements."""

    def chunk(self, start: int, stop: int) -> Numbers:
        """The next elements, `start` to `stop`: whole numbers. Good until the next is asked for."""


@dataclass(frozen=True)
class Whole:
    """Integers that are in memory already.

    Args:
        values: shape (d,), signed integers.
        bound: the largest magnitude this silo may add in a coordinate, noise included.
    """

    values: Signed
    bound: int

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or not np.issubdtype(self.values.dtype, np.signedinteger):
            raise InputError("a vector to sum is a one-dimensional array of signed integers")

    @property
    def size(self) -> int:
        return int(self.values.size)

    def chunk(self, start: int, stop: int) -> Signed:
        part = self.values[start:stop]
        # |int64 min| overflows, so the two sides are compared one by one.
        if part.size and (int(part.max()) > self.bound or int(part.min()) < -self.bound):
            raise InputError("a value exceeds what this silo may add to the sum; it would wrap around")
        return part


@dataclass(frozen=True)
class Grid:
    """A fixed-point grid for silos' real vectors, and the ring their noisy sum fits in.

    Args:
        ring: of the sum. scale: grid points per 1.0.
        clip: L2 bound of one silo's vector. dimension: its length.
        peak: the largest magnitude of a coordinate; by default the clip. Far below it in long vectors, which
            leaves the ring to the noise.
    """

    ring: Ring
    scale: float
    clip: float
    dimension: int
    peak: float = math.inf

    @classmethod
    def choose(
        cls,
        *,
        silos: int,
        clip: float,
        sigma: float,
        dimension: int,
        extra_noise: float = 0.01,
        peak: float = math.inf,
    ) -> Grid:
        """The narrowest ring, with the finest grid that fits in it, that asks for little more noise.

        Args:
            silos: n. sigma: standard deviation of all silos' noise together, in units of the vector.
            extra_noise: how much more noise (its standard deviation) the grid may ask for.

        Raises:
            InputError: no ring will do: the sum could overflow with probability 2^-40 or more.
        """
        if silos < 1 or dimension < 1 or not 0 < clip < math.inf or not 0 <= sigma < math.inf or not peak > 0:
            raise InputError("a grid needs silos, a dimension, a clip and a finite noise")
        for bits in WIDTHS:
            # n·(peak·scale + 1) + z·σ·scale < half, by so much that rounding of these floats can't matter;
            # σ with what the grid itself may ask for, since that noise is added too.
            room = (1 << (bits - 1)) * (1 - 2.0**-30) - silos
            noise = noise_tail(dimension) * sigma * (1 + extra_noise)
            grid = cls(Ring(bits), room / (silos * min(peak, clip) + noise), clip, dimension, peak)
            if grid.scale > 0 and grid.extra_noise(silos, sigma) <= extra_noise:
                return grid
        raise InputError(
            f"{silos} silos' vectors of {dimension} numbers with clip {clip:g} and noise {sigma:g} fit no modulus"
            f" up to 2^{WIDTHS[-1]} at {extra_noise:.1%} more noise",
            remedy="fewer numbers, a smaller clip, or more extra noise",
        )

    @property
    def norm_bound(self) -> float:
        """L2 bound of a rounded vector, grid units: conditional rounding of Kairouz, Liu and Steinke 2021 (ICML).

        A vector whose rounding passes it, with probability below β = 2^-40, is not sent.
        """
        reach, d = self.clip * self.scale, self.dimension
        # 2 ln(1/β) under the root, β = 2^-40
        typical = math.sqrt(2 * OVERFLOW_BITS * math.log(2)) * (reach + math.sqrt(d) / 2)
        return min(reach + math.sqrt(d), math.sqrt(reach**2 + d / 4 + typical))

    def extra_noise(self, silos: int, sigma: float) -> float:
        """By what part the grid raises the noise's standard deviation in the result.

        It raises the sensitivity, which the noise must follow, and adds each silo's rounding.
        """
        if sigma == 0:
            return 0.0
        noise = sigma * self.norm_bound / self.clip
        return math.sqrt(noise**2 + silos / 4) / (sigma * self.scale) - 1

    def decode(self, total: Integers) -> npt.NDArray[np.float64]:
        """A sum on the grid as real numbers."""
        return total / self.scale


class Fixed:
    """Real numbers, rounded onto a grid as they are read, noise added.

    Rounding is stochastic, its dither from a cipher, and unbiased: of float64, up to 2^-32 of a grid step where
    the grid has under 2^20 steps and up to 2^-22 at its largest; of float32 up to 2^-16 (beside the rounding
    of the product with the scale: a float32 knows no finer).

    Args:
        values: shape (d,), float32 or float64, L2 norm at most the grid's clip, coordinates at most its peak.
        noise: count -> so many integers of this silo's noise share; None adds none.

    Raises:
        InputError: a number that is not finite, another length, or a norm over the clip.
    """

    def __init__(self, values: Reals, grid: Grid, *, noise: Callable[[int], Integers] | None = None) -> None:
        if values.ndim != 1 or values.dtype not in (np.float32, np.float64) or values.size != grid.dimension:
            raise InputError(f"the grid is for {grid.dimension} float32 or float64 numbers in one row")
        self._values, self._grid, self._noise = values, grid, noise
        squares = _squares(values)
        # Vectors are clipped in their own arithmetic; what they count for is `norm_bound`, which is exact.
        slack = 2.0**-16 if values.dtype == np.float32 else 2.0**-20
        if not squares <= (grid.clip * (1 + slack)) ** 2:
            raise InputError(
                f"a vector of L2 norm {math.sqrt(squares):g} where {grid.clip:g} is allowed"
                if math.isfinite(squares)
                else "a number to sum is not finite"
            )
        self._stream = Keystream()
        # In the narrower rings whatever fits is exact in float32.
        self._exact = np.dtype(
            np.float32 if values.dtype == np.float32 and grid.ring.bits < 32 else np.float64
        )
        self._room = np.empty((2, 0), self._exact)
        self._whole = np.empty(0)
        self._norm = 0.0

    @property
    def size(self) -> int:
        return int(self._values.size)

    def chunk(self, start: int, stop: int) -> Numbers:
        count = stop - start
        if self._whole.size < count:
            self._room, self._whole = np.empty((2, count), self._exact), np.empty(count)
        whole = self._whole[:count]
        if self._exact == np.float32:
            self._round_narrow(start, stop, whole)
        else:
            self._round(start, stop, whole)
        self._norm += float(whole @ whole)
        if not self._norm <= self._grid.norm_bound**2:
            # Probability below 2^-40; the upload has not left, so nothing is lost but the round.
            raise InputError("a rounded vector passes its bound; the round is not entered")
        if self._grid.peak < self._grid.clip:
            most = self._grid.peak * self._grid.scale + 1
            if count and not (whole.max() <= most and whole.min() >= -most):
                raise InputError(f"a number to sum is beyond the grid's peak of {self._grid.peak:g}")
        if self._noise is not None:
            np.add(whole, self._noise(count), out=whole)
        return whole

    def _round(self, start: int, stop: int, whole: npt.NDArray[np.float64]) -> None:
        dither = self._room[0, : whole.size]
        np.copyto(whole, self._values[start:stop])
        np.multiply(whole, self._grid.scale, out=whole)
        np.multiply(np.frombuffer(self._stream.take(4 * whole.size), "<u4"), 2.0**-32, out=dither)
        np.add(whole, dither, out=whole)
        np.floor(whole, out=whole)

    def _round_narrow(self, start: int, stop: int, whole: npt.NDArray[np.float64]) -> None:
        real, dither = self._room[0, : whole.size], self._room[1, : whole.size]
        np.copyto(dither, np.frombuffer(self._stream.take(2 * whole.size), "<u2"))
        np.multiply(dither, np.float32(2.0**-16), out=dither)
        np.multiply(self._values[start:stop], np.float32(self._grid.scale), out=real)
        # Dither is compared with the fraction, which is exact; added to a large float32 it would be rounded.
        down = np.floor(real)
        np.subtract(real, down, out=real)
        np.add(down, dither < real, out=whole, dtype=np.float64)


_BLOCK = 1 << 16


def _squares(values: Reals) -> float:
    """The squared L2 norm; in float32 for float32, unless that overflows."""
    total = 0.0
    for start in range(0, values.size, _BLOCK):
        part = values[start : start + _BLOCK]
        with np.errstate(over="ignore"):
            square = float(part @ part)
            if not math.isfinite(square):
                wide = part.astype(np.float64)
                square = float(wide @ wide)
        total += square
    return total
