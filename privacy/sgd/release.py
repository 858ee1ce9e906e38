"""Noise for a clipped sum: a discrete Gaussian on a fine grid."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ..noise import Keystream, discrete_gaussian

Floats = npt.NDArray[np.float64]
_FINENESS = 1000.0  # the clip, in √d grid steps: rounding may add a thousandth to the noise


class LocalNoise:
    """The whole noise, by whoever holds the sum.

    The sum is rounded to multiples of a power of two g, exactly, and N_Z(0, σ²) is added in units of g (Canonne,
    Kamath and Steinke 2020). Rounding moves each coordinate of the difference of two neighbouring sums by less than
    one step, so its L2 sensitivity is at most Δ = clip/g + √d, and σ = ⌈noise_multiplier · Δ⌉: the
    discrete Gaussian has the zero-concentrated bound of the continuous one (their Theorem 4), so the release is
    charged as a Gaussian of that noise multiplier. Every number handed out is a multiple of g:
    its last bits tell nothing (Mironov 2012).

    Args:
        clip: L2 bound of what one customer adds to the sum.
        noise_multiplier: standard deviation ÷ clip, positive.
        dimension: d.
    """

    def __init__(self, clip: float, noise_multiplier: float, dimension: int) -> None:
        if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
            raise InputError(f"the noise multiplier must be positive and finite, not {noise_multiplier}")
        if not (math.isfinite(clip) and clip > 0):
            raise InputError(f"clip must be positive and finite, not {clip}")
        root = math.sqrt(max(1, dimension))
        self.grid = 2.0 ** math.floor(math.log2(clip / (_FINENESS * root)))
        self.sigma = math.ceil(noise_multiplier * (clip / self.grid + root) * (1 + 1e-12))
        self.dimension = dimension
        self._stream = Keystream()

    def release(self, total: Floats) -> Floats:
        """total + noise, on the grid.

        Args:
            total: shape (d,), finite.

        Raises:
            InputError: another shape; a number that is not finite or too large for the grid.
        """
        if total.shape != (self.dimension,):
            raise InputError(f"a sum of {self.dimension} numbers is needed, not {total.shape}")
        noisy = total * np.float64(1 / self.grid)  # exact: a power of two
        np.rint(noisy, out=noisy)
        if self.dimension and not (noisy.min() > -(2.0**52) and noisy.max() < 2.0**52):  # False for NaN too
            raise InputError("the clipped sum is not finite, or too large to be put on the grid of its noise")
        # Whole numbers below 2^53: float64 adds and scales them exactly.
        noisy += discrete_gaussian(self.sigma, self.dimension, self._stream)
        noisy *= self.grid
        return noisy
