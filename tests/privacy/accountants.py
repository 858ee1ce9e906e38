"""What every accountant must satisfy: inherit `AccountantContract`, say how to make one and which events it knows.

`TightContract` is for one that says it is tight: it agrees with two released ones.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from dp_accounting.pld import privacy_loss_distribution as distributions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.special import log_ndtr

from foedus.errors import InputError
from foedus.privacy.accountant import Accountant
from foedus.privacy.events import (
    DistributedDiscreteGaussian,
    Event,
    Gaussian,
    Laplace,
    NonPrivate,
    PoissonSampled,
)

# Several classes inherit a law; hypothesis warns that what fails one of them is replayed by another: no harm here.
LAW = settings(deadline=None, suppress_health_check=[HealthCheck.differing_executors])
DELTAS = (1e-3, 1e-5, 1e-9)
Counted = Sequence[tuple[Event, int]]

discrete = st.builds(
    DistributedDiscreteGaussian,
    sensitivity=st.floats(1.0, 1e6),
    sigma=st.floats(4.0, 1e8),
    shares=st.integers(1, 20),
    dimension=st.integers(1, 2000),
).filter(lambda e: 1e-9 < e.rho < 50)
gaussians = st.builds(Gaussian, st.floats(0.3, 100.0))
laplaces = st.builds(Laplace, st.floats(0.3, 100.0))
sampled = st.builds(PoissonSampled, st.floats(0.001, 1.0), st.builds(Gaussian, st.floats(0.5, 20.0)))


def exact_gaussian_epsilon(mu: float, delta: float) -> float:
    """The analytic Gaussian mechanism (Balle and Wang 2018, Theorem 8), mu = Δ/σ, less the solver's own error."""

    def excess(epsilon: float) -> float:
        one = math.exp(log_ndtr(mu / 2 - epsilon / mu))
        two = math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))
        return one - two - delta

    return float(brentq(excess, 0.0, 1e4, xtol=1e-12)) - 1e-10 if excess(0.0) > 0 else 0.0


class AccountantContract:
    """The laws."""

    ordinary: ClassVar[Event] = DistributedDiscreteGaussian(
        sensitivity=256.0, sigma=2000.0, shares=2, dimension=13
    )
    other: ClassVar[Event] = DistributedDiscreteGaussian(
        sensitivity=64.0, sigma=300.0, shares=3, dimension=48
    )
    events: ClassVar[st.SearchStrategy[Event]]
    rounding: ClassVar[float] = 0.0
    """The most by which, relative, answers may differ that should be the same, or rise."""

    def make(self) -> Accountant:
        raise NotImplementedError

    def of(self, *counted: tuple[Event, int]) -> Accountant:
        accountant = self.make()
        for event, count in counted:
            accountant.compose(event, count)
        return accountant

    @settings(LAW, max_examples=40)
    @given(data=st.data(), count=st.integers(0, 60), delta=st.sampled_from(DELTAS))
    def test_n_at_once_is_n_times_once(self, data: st.DataObject, count: int, delta: float) -> None:
        event = data.draw(self.events)
        at_once = self.of((event, count)).epsilon(delta)
        one_by_one = self.of(*[(event, 1)] * count).epsilon(delta)
        assert at_once == pytest.approx(one_by_one, rel=1e-9)

    @settings(LAW, max_examples=25)
    @given(delta=st.sampled_from(DELTAS), data=st.data())
    def test_the_order_does_not_matter(self, delta: float, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(self.events, min_size=2, max_size=6))
        shuffled = data.draw(st.permutations(chosen))
        one, two = (self.of(*[(e, 1) for e in order]).epsilon(delta) for order in (chosen, shuffled))
        assert one == pytest.approx(two, rel=1e-9)

    @settings(LAW, max_examples=25)
    @given(data=st.data(), delta=st.sampled_from(DELTAS))
    def test_more_is_never_cheaper(self, data: st.DataObject, delta: float) -> None:
        before, event = data.draw(self.events), data.draw(self.events)
        one, both = self.of((before, 1)).epsilon(delta), self.of((before, 1), (event, 1)).epsilon(delta)
        assert one <= both * (1 + self.rounding)
        assert self.of((before, 1)).epsilon(delta / 10) >= one

    @settings(LAW, max_examples=25)
    @given(data=st.data(), count=st.integers(1, 1000), delta=st.sampled_from(DELTAS))
    def test_once_more_is_never_cheaper(self, data: st.DataObject, count: int, delta: float) -> None:
        event = data.draw(self.events)
        one, more = (self.of((event, n)).epsilon(delta) for n in (count, count + 1))
        assert one <= more * (1 + self.rounding)

    @settings(LAW, max_examples=25)
    @given(noise=st.lists(st.floats(0.3, 300.0), min_size=1, max_size=5), delta=st.sampled_from(DELTAS))
    def test_never_below_the_exact_gaussian(self, noise: list[float], delta: float) -> None:
        exact = exact_gaussian_epsilon(math.sqrt(sum(s**-2 for s in noise)), delta)
        assert self.of(*[(Gaussian(s), 1) for s in noise]).epsilon(delta) >= exact

    def test_a_second_event_costs_something(self) -> None:
        assert self.of((self.ordinary, 1)).epsilon(1e-5) < self.of(
            (self.ordinary, 1), (self.other, 1)
        ).epsilon(1e-5)

    def test_nothing_costs_nothing(self) -> None:
        for delta in DELTAS:
            assert self.make().epsilon(delta) == 0
            assert self.of((self.ordinary, 0), (NonPrivate(), 0)).epsilon(delta) == 0

    def test_what_is_not_private_is_infinite_whatever_else_was_done(self) -> None:
        for counted in (
            [(NonPrivate(), 1)],
            [(self.ordinary, 3), (NonPrivate(), 1)],
            [(NonPrivate(), 1), (self.ordinary, 3)],
        ):
            assert self.of(*counted).epsilon(1e-5) == math.inf

    @pytest.mark.parametrize(
        "event", [None, object(), 1.0, {"event": "non_private"}, "non_private", NonPrivate, Gaussian]
    )
    def test_the_unknown_is_refused_and_not_free(self, event: object) -> None:
        accountant = self.of((self.ordinary, 1))
        before = accountant.epsilon(1e-5)
        with pytest.raises(InputError):
            accountant.compose(event)  # type: ignore[arg-type]
        assert accountant.epsilon(1e-5) == before

    @pytest.mark.parametrize("count", [-1, 0.5, True, math.nan, "1", None])
    @pytest.mark.parametrize("event", [ordinary, NonPrivate()])
    def test_a_count_that_is_none_is_refused(self, event: Event, count: Any) -> None:
        accountant = self.of((self.ordinary, 2))
        before = accountant.epsilon(1e-5)
        with pytest.raises(InputError):
            accountant.compose(event, count)
        assert accountant.epsilon(1e-5) == before

    @pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
    def test_a_delta_outside_0_to_1_is_refused(self, delta: float) -> None:
        for accountant in (self.make(), self.of((self.ordinary, 1)), self.of((NonPrivate(), 1))):
            with pytest.raises(InputError):
                accountant.epsilon(delta)


class TightContract(AccountantContract):
    """And what one must satisfy that says it is tight."""

    @settings(LAW, max_examples=15)
    @given(
        counted=st.lists(
            st.tuples(
                st.one_of(
                    st.builds(Gaussian, st.floats(0.5, 20.0)),
                    st.builds(Laplace, st.floats(0.5, 20.0)),
                    st.builds(PoissonSampled, st.floats(0.02, 1), st.builds(Gaussian, st.floats(0.6, 5))),
                ),
                st.integers(1, 20),
            ),
            min_size=1,
            max_size=4,
        ),
        delta=st.sampled_from(DELTAS),
    )
    def test_agrees_with_dp_accounting(self, counted: Counted, delta: float) -> None:
        ours = self.of(*counted).epsilon(delta)
        assert ours == pytest.approx(dp_accounting_epsilon(counted, delta, True), rel=0.02, abs=2e-3)
        assert ours >= dp_accounting_epsilon(counted, delta, False)

    @pytest.mark.parametrize("ratio, count", [(0.7, 1), (3.0, 10), (20.0, 400)])
    def test_agrees_with_dp_accounting_on_discrete_sums(self, ratio: float, count: int) -> None:
        """A sum of shares at large sigma is nearly a Gaussian of noise multiplier σ√n/Δ."""
        event = DistributedDiscreteGaussian(1000.0, 1000.0 * ratio, 4, 5)
        ours = self.of((event, count)).epsilon(1e-5)
        theirs = dp_accounting_epsilon([(Gaussian(2 * ratio), count)], 1e-5, True)
        assert ours == pytest.approx(theirs, rel=0.02)
        assert ours >= dp_accounting_epsilon([(Gaussian(2 * ratio), count)], 1e-5, False)

    @pytest.mark.parametrize(
        "counted",
        [
            [(PoissonSampled(0.01, Gaussian(1.0)), 1000)],
            [(PoissonSampled(0.05, Gaussian(1.5)), 200), (PoissonSampled(0.2, Gaussian(4.0)), 30)],
            [(Gaussian(20.0), 20), (PoissonSampled(0.02, Gaussian(0.9)), 100)],
        ],
    )
    def test_agrees_with_opacus_prv(self, counted: Counted) -> None:
        error, delta = 0.01, 1e-5
        theirs = PRVAccountant()
        for event, count in counted:
            q, noise = (
                (event.sampling_probability, event.event.noise_multiplier)
                if isinstance(event, PoissonSampled)
                else (1.0, event.noise_multiplier)  # type: ignore[union-attr]
            )
            theirs.history.append((noise, q, count))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            upper = theirs.get_epsilon(delta, eps_error=error)
        assert upper - 2 * error - 1e-3 <= self.of(*counted).epsilon(delta) <= upper


def dp_accounting_epsilon(counted: Counted, delta: float, pessimistic: bool, step: float = 1e-3) -> float:
    """By dp-accounting's privacy loss distributions: its upper bound, or its lower."""
    total = None
    logging.disable(logging.WARNING)  # it says that only one of its two ways can be optimistic
    try:
        for event, count in counted:
            how: dict[str, Any] = {
                "pessimistic_estimate": pessimistic,
                "value_discretization_interval": step,
            }
            if isinstance(event, Laplace):
                one = distributions.from_laplace_mechanism(event.noise_multiplier, **how)
            elif isinstance(event, PoissonSampled):
                one = distributions.from_gaussian_mechanism(
                    event.event.noise_multiplier, sampling_prob=event.sampling_probability, **how
                )
            else:
                assert isinstance(event, Gaussian)
                one = distributions.from_gaussian_mechanism(event.noise_multiplier, **how)
            one = one.self_compose(count)
            total = one if total is None else total.compose(one)
    finally:
        logging.disable(logging.NOTSET)
    assert total is not None
    return float(total.get_epsilon_for_delta(delta))
