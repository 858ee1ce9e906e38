"""The tight accountant: Gaussians in closed form, privacy loss distributions for the rest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from ...errors import InputError
from ..events import DistributedDiscreteGaussian, Event, Gaussian, Laplace, NonPrivate, PoissonSampled
from .duty import check_count, check_delta
from .gaussian import gaussian_delta, least_epsilon
from .pairs import LEAST, Pair, pair
from .zcdp import ORDERS

_APART = 16
"""Kinds of events that are kept with their counts, so that one that returns is counted and not composed again."""


class PLD:
    """Privacy loss distributions.

    - Gaussians, and sums of discrete Gaussians by their comparison with one, are kept as Σ mu² and Σ slack: exact.
    - Of the others, those met last are kept with their counts. Older ones are composed in a binary counter, whose k-th
      place holds compositions of 2^k of them: each is composed some log₂ n times, on a grid of the width it needs.

    Every answer is an upper bound. Where more than 16 kinds of other events were composed it depends on their order
    and grouping, in the fourth digit.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._mu2 = self._slack = 0.0
        self._rho = 0.0  # of the same events, and infinite as soon as there are others
        self._apart: Counter[PoissonSampled | Laplace] = Counter()
        self._places: list[list[Pair]] = [[]]
        self._composed: Pair | None = None  # of all in the two above, once it was asked for
        self._runs = 0
        self._non_private = False
        for event in events:
            self.compose(event)

    def compose(self, event: Event, count: int = 1) -> None:
        """Add `count` runs of `event`.

        Raises:
            InputError: no such count, or no such event.
        """
        check_count(count)
        if isinstance(event, PoissonSampled) and event.sampling_probability == 1:
            event = event.event
        if isinstance(event, NonPrivate):
            self._non_private = self._non_private or count > 0
        elif isinstance(event, DistributedDiscreteGaussian):
            if count:
                self._mu2 += count * event.mu**2
                self._slack += count * event.slack
                self._rho += count * event.rho
        elif isinstance(event, Gaussian):
            self._mu2 += count / event.noise_multiplier**2
            self._rho += count * 0.5 / event.noise_multiplier**2
        elif isinstance(event, PoissonSampled | Laplace):
            noise = event.noise_multiplier if isinstance(event, Laplace) else event.event.noise_multiplier
            if count and noise < LEAST:  # a loss of 1,000 and more: no grid for it, and nobody's privacy
                self._non_private = True
            elif count:
                self._rho = math.inf
                self._runs += count
                self._composed = None
                self._keep(event, count)
        else:
            raise InputError(f"this accountant has no rule for {type(event).__name__}")

    def epsilon(self, delta: float) -> float:
        """The smallest ε provable at `delta`, rounded up; infinite if none is."""
        check_delta(delta)
        if self._non_private:
            return math.inf
        if self._mu2 == 0 and not self._runs:
            return 0.0
        rest = self._rest()
        found = least_epsilon(lambda epsilon: self._delta(epsilon, rest), delta)
        return found * (1 + 1e-12) + self._rounding

    def delta(self, epsilon: float) -> float:
        """The smallest δ provable at `epsilon` ≥ 0, rounded up."""
        if not epsilon >= 0:
            raise InputError(f"epsilon must not be negative, it is {epsilon}")
        if self._non_private:
            return 1.0
        if self._mu2 == 0 and not self._runs:
            return 0.0
        return self._delta(max(0.0, epsilon * (1 - 1e-12) - self._rounding), self._rest())

    @property
    def _rounding(self) -> float:
        """Bounds the rounding of the losses themselves: some units in the last place of each."""
        return 1e-14 * self._runs

    def _delta(self, epsilon: float, rest: Pair | None) -> float:
        by_comparison = 1.0
        if math.isfinite(self._slack):
            mu, shifted = math.sqrt(self._mu2), epsilon - 2 * self._slack
            factor = math.exp(min(self._slack, 700.0)) * (1 + 1e-9 * bool(rest))
            if rest is None:
                by_comparison = factor * float(gaussian_delta(mu, shifted))
            else:
                by_comparison = factor * max(
                    side.infinite + float(side.mass @ gaussian_delta(mu, shifted - side.values))
                    for side in (rest.remove, rest.add)
                )
        return min(1.0, by_comparison, _concentrated_delta(self._rho, epsilon))

    def _keep(self, event: PoissonSampled | Laplace, count: int) -> None:
        if event not in self._apart and len(self._apart) == _APART:
            oldest = next(iter(self._apart))
            self._carry(pair(oldest, self._apart.pop(oldest)))
        self._apart[event] += count

    def _carry(self, new: Pair) -> None:
        """Put one in and compose at most two, so that no append takes long: every second one is free for a carry."""
        self._places[0].append(new)
        for place, held in enumerate(self._places):
            if len(held) > 1:
                if place + 1 == len(self._places):
                    self._places.append([])
                self._places[place + 1].append(held.pop() * held.pop())
                return

    def _rest(self) -> Pair | None:
        """Everything that has no closed form, composed in one order whatever the order it came in."""
        if self._composed is None:
            for one in self._parts():
                self._composed = one if self._composed is None else self._composed * one
        return self._composed

    def _parts(self) -> Iterator[Pair]:
        for event, count in sorted(self._apart.items(), key=repr):
            yield pair(event, count)
        for held in self._places:
            yield from held


_ORDERS = np.array(ORDERS)


def _concentrated_delta(rho: float, epsilon: float) -> float:
    """δ of ρ-zCDP: Canonne, Kamath and Steinke 2020, Corollary 13, at the best of `ORDERS`."""
    if not math.isfinite(rho):
        return 1.0
    a = _ORDERS
    exponents = (a - 1) * (a * rho - epsilon) + a * np.log1p(-1 / a) - np.log(a - 1)
    return min(1.0, math.exp(min(0.0, float(exponents.min()))) * (1 + 1e-9))
