"""The Gaussian mechanism, exactly: δ(ε) of Balle and Wang 2018 (ICML), Theorem 8, rounded up, and its inverses.

mu is sensitivity ÷ standard deviation. Over mechanisms mu² adds up (Dong, Roth and Su 2022, Corollary 3.3),
also if each is chosen after seeing what the ones before it said.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from .duty import check_delta, check_epsilon

Array = npt.NDArray[np.float64]
_U = 2.0**-53


def gaussian_delta(mu: float, epsilon: float | Array) -> Array:
    """δ at `epsilon` (of any sign, any shape) of the Gaussian mechanism; never below the true one.

        δ = Φ(−a) − e^ε Φ(−b),  a = ε/mu − mu/2,  b = ε/mu + mu/2

    With m(x) = Φ(−x)/φ(x) and φ(a) = e^ε φ(b) it is φ(a)·(m(a) − m(b)): no overflow, and relative precision however
    small δ is. A bound of the rounding error is added.
    """
    from scipy.special import erfcx, ndtr  # 0.2 s: not for `foedus --help`

    epsilon = np.asarray(epsilon, dtype=np.float64)
    if mu == 0:
        return cast(Array, -np.expm1(np.minimum(epsilon, 0.0)))
    a, b = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    scaled = 0.5 * np.exp(-0.5 * a * a)  # φ(a)·√(π/2): m(x) = √(π/2) erfcx(x/√2)
    root = math.sqrt(0.5)
    one = np.where(a >= 0, scaled * erfcx(np.maximum(a, 0) * root), ndtr(-a))
    far = np.exp(np.minimum(epsilon, 0)) * ndtr(np.maximum(-b, 0))  # b < 0 is ε < −mu²/2
    two = np.where(b >= 0, scaled * erfcx(np.maximum(b, 0) * root), far)
    error = 16 * _U * (1 + np.abs(a * b)) * (one + two)
    return cast(Array, np.clip(one - two + error, 1e-300, 1.0))


def mu_to_epsilon(mu: float, delta: float) -> float:
    """The ε of the Gaussian mechanism at `delta`, rounded up."""
    check_delta(delta)
    if not (math.isfinite(mu) and mu >= 0):
        raise InputError(f"mu must be finite and not negative, it is {mu}")
    return least_epsilon(lambda epsilon: float(gaussian_delta(mu, epsilon)), delta)


def epsilon_to_mu(epsilon: float, delta: float) -> float:
    """The largest mu whose ε at `delta` is at most `epsilon`; `mu_to_epsilon` of it never exceeds it."""
    check_delta(delta)
    check_epsilon(epsilon)
    low, high = 0.0, 1.0
    while float(gaussian_delta(high, epsilon)) <= delta:
        low, high = high, 2 * high
    while high - low > 1e-14 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if float(gaussian_delta(middle, epsilon)) <= delta else (low, middle)
    while mu_to_epsilon(low, delta) > epsilon:  # which is itself rounded up
        low *= 1 - 1e-13
    return low


def least_epsilon(delta_of: Callable[[float], float], delta: float) -> float:
    """Where the falling function `delta_of` comes down to `delta`, from above: within 1e-12 of it, never less.

    Infinite if it never does. Regula falsi on log δ (Illinois: an end that stays counts half), between a bracket.
    """
    if delta_of(0.0) <= delta:
        return 0.0
    if delta_of(_FAR) > delta:
        return math.inf
    goal = math.log(delta)

    def excess(epsilon: float) -> float:
        return math.log(max(delta_of(epsilon), 1e-300)) - goal

    low, below, high = 0.0, excess(0.0), 1.0
    above = excess(high)
    while above > 0:
        low, below, high = high, above, 2 * high
        above = excess(high)
    stayed = 0
    for step in range(200):
        if high - low <= 1e-12 * high:
            break
        middle = (low * above - high * below) / (above - below)
        if step % 8 == 7 or not low < middle < high:
            middle = (low + high) / 2
        value = excess(middle)
        if value > 0:
            low, below = middle, value
            above = above / 2 if stayed > 0 else above
            stayed = 1
        else:
            high, above = middle, value
            below = below / 2 if stayed < 0 else below
            stayed = -1
    return high


_FAR = 1e9
"""An ε at which nobody cares any more."""
