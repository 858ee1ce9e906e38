"""How much noise a run needs."""

from __future__ import annotations

import math

from ...errors import InputError
from ..events import Gaussian, PoissonSampled
from .duty import check_delta, check_epsilon
from .gaussian import epsilon_to_mu
from .pld import PLD


def noise_multiplier(epsilon: float, delta: float, steps: int, sampling_probability: float = 1.0) -> float:
    """The least noise multiplier whose `steps` steps cost at most `epsilon` at `delta`; never less than it takes.

    By `PLD`: the closed form without sampling, bisection to 1e-5 with it.

    Raises:
        InputError: an argument out of its range.
    """
    check_epsilon(epsilon)
    check_delta(delta)
    PoissonSampled(sampling_probability, Gaussian(1.0))  # refuses what is no probability
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps must be a whole number from 1 up, not {steps}")

    def spent(sigma: float) -> float:
        accountant = PLD()
        accountant.compose(PoissonSampled(sampling_probability, Gaussian(sigma)), steps)
        return accountant.epsilon(delta)

    high = math.sqrt(steps) / epsilon_to_mu(epsilon, delta)  # enough without sampling
    while spent(high) > epsilon:
        high *= 1 + 1e-12 if sampling_probability == 1 else 1 + 1e-3
    if sampling_probability == 1:
        return high
    low = high / 2
    while spent(low) <= epsilon:
        low, high = low / 2, low
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return high
