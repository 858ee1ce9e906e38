"""PLD keeps the laws, agrees with two released accountants, and is never below what is known exactly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf, ncdf

from foedus.errors import InputError
from foedus.privacy.accountant import PLD, ZCDP, epsilon_to_mu, mu_to_epsilon, noise_multiplier
from foedus.privacy.accountant.gaussian import gaussian_delta
from foedus.privacy.accountant.losses import Losses
from foedus.privacy.accountant.pairs import pair
from foedus.privacy.events import DistributedDiscreteGaussian, Event, Gaussian, Laplace, PoissonSampled

from .accountants import AccountantContract, TightContract, discrete, gaussians, laplaces, sampled


class TestPLD(TightContract):
    events = st.one_of(discrete, gaussians, laplaces, sampled)
    rounding = 1e-3  # the grid's share: coarser where more is on it

    def make(self) -> PLD:
        return PLD()


class TestPLDOfSampled(AccountantContract):
    ordinary = PoissonSampled(0.02, Gaussian(1.2))
    other = PoissonSampled(0.05, Gaussian(3.0))
    events = st.one_of(laplaces, sampled)
    rounding = 1e-3

    def make(self) -> PLD:
        return PLD()


def many(count: int) -> list[Event]:
    """Different events of every kind."""
    rng = np.random.default_rng(5)
    made: list[Event] = []
    for i in range(count):
        one: list[Event] = [
            PoissonSampled(float(rng.uniform(0.005, 0.05)), Gaussian(float(rng.uniform(1, 4)))),
            Laplace(float(rng.uniform(30, 300))),
            Gaussian(float(rng.uniform(50, 150))),
            DistributedDiscreteGaussian(1000.0, float(rng.uniform(3e4, 6e4)), 3, 20),
        ]
        made.append(one[i % 4])
    return made


def test_of_many_kinds_neither_order_nor_grouping_matters_much() -> None:
    events = many(200)
    one = PLD(events).epsilon(1e-6)
    assert PLD(events[::-1]).epsilon(1e-6) == pytest.approx(one, rel=1e-3)
    twice = PLD([*events, *events])
    at_once = PLD()
    for event in events:
        at_once.compose(event, 2)
    assert twice.epsilon(1e-6) == pytest.approx(at_once.epsilon(1e-6), rel=1e-3)
    assert twice.epsilon(1e-6) > one


def test_what_was_asked_changes_nothing() -> None:
    asked, silent = PLD(), PLD()
    for event in many(60):
        asked.compose(event)
        silent.compose(event)
        asked.epsilon(1e-5)
    assert asked.epsilon(1e-5) == silent.epsilon(1e-5)


# ── Gaussians ────────────────────────────────────────────────────────────────────────────────────


def high_precision_delta(mu: float, epsilon: float) -> float:
    """δ of the Gaussian mechanism with sixty digits."""
    with mp.workdps(60):
        m, e = mpf(mu), mpf(epsilon)
        return float(ncdf(m / 2 - e / m) - mp.exp(e) * ncdf(-m / 2 - e / m))


@settings(max_examples=150, deadline=None)
@given(log_mu=st.floats(-7, 4), deviations=st.floats(-9, 9))
def test_delta_of_a_gaussian_is_exact_and_rounded_up(log_mu: float, deviations: float) -> None:
    mu = math.exp(log_mu)
    epsilon = mu * mu / 2 + mu * deviations
    exact = high_precision_delta(mu, epsilon)
    ours = float(gaussian_delta(mu, epsilon))
    assert exact <= ours <= exact * (1 + 1e-8) + 1e-300


@settings(max_examples=60, deadline=None)
@given(epsilon=st.floats(1e-3, 1e3), exponent=st.floats(-15, -1))
def test_epsilon_and_mu_are_inverse_and_safe(epsilon: float, exponent: float) -> None:
    delta = 10.0**exponent
    mu = epsilon_to_mu(epsilon, delta)
    assert epsilon * (1 - 1e-9) <= mu_to_epsilon(mu, delta) <= epsilon
    assert high_precision_delta(mu, epsilon) <= delta


@pytest.mark.parametrize(
    "arguments", [(0.0, 1e-5), (-1.0, 1e-5), (math.inf, 1e-5), (math.nan, 1e-5), (1.0, 0.0)]
)
def test_no_mu_without_a_budget(arguments: tuple[float, float]) -> None:
    with pytest.raises(InputError):
        epsilon_to_mu(*arguments)


@pytest.mark.parametrize("mu", [-1e-9, math.nan, math.inf])
def test_a_mu_that_is_none_has_no_epsilon(mu: float) -> None:
    with pytest.raises(InputError):
        mu_to_epsilon(mu, 1e-5)


def test_gaussians_are_the_closed_form() -> None:
    accountant = PLD([Gaussian(3.0), Gaussian(4.0), PoissonSampled(1.0, Gaussian(12.0))])
    mu = math.sqrt(1 / 9 + 1 / 16 + 1 / 144)
    assert accountant.epsilon(1e-5) == pytest.approx(mu_to_epsilon(mu, 1e-5), rel=1e-11)
    assert accountant.delta(0.7) == pytest.approx(high_precision_delta(mu, 0.7), rel=1e-8)


@settings(max_examples=30, deadline=None)
@given(event=st.one_of(gaussians, laplaces, sampled), count=st.integers(1, 30), exponent=st.floats(-9, -2))
def test_delta_and_epsilon_are_inverse(event: Event, count: int, exponent: float) -> None:
    accountant, delta = PLD(), 10.0**exponent
    accountant.compose(event, count)
    epsilon = accountant.epsilon(delta)
    assert accountant.delta(epsilon) <= delta * (1 + 1e-9)
    assert epsilon == 0 or accountant.delta(epsilon * (1 - 1e-4)) > delta * (1 - 1e-9) or epsilon < 1e-8


@pytest.mark.parametrize("epsilon", [-1e-9, math.nan])
def test_an_epsilon_that_is_none_has_no_delta(epsilon: float) -> None:
    with pytest.raises(InputError):
        PLD([Gaussian(1.0)]).delta(epsilon)


# ── the grid ─────────────────────────────────────────────────────────────────────────────────────

CURVE = np.concatenate((np.geomspace(1e-3, 40, 60), [0.0]))


def delta_of(losses: Losses, epsilon: float) -> float:
    """What a distribution of losses says."""
    return losses.infinite + float(losses.mass @ np.maximum(-np.expm1(epsilon - losses.values), 0.0))


def sampled_delta(q: float, sigma: float, epsilon: float, add: bool) -> float:
    """δ of one Poisson-sampled Gaussian: a probability beyond one point, with forty digits."""
    with mp.workdps(40):
        q_, s, e = mpf(q), mpf(sigma), mp.exp(epsilon)
        bound = (1 / e if add else e) - 1 + q_
        if bound <= 0:
            return 0.0
        x = s**2 * mp.log(bound / q_) + mpf(1) / 2
        if add:  # P = N(0), Q the mixture, the loss falls with x
            p, other = ncdf(x / s), (1 - q_) * ncdf(x / s) + q_ * ncdf((x - 1) / s)
        else:
            p, other = (1 - q_) * ncdf(-x / s) + q_ * ncdf((1 - x) / s), ncdf(-x / s)
        return float(p - e * other)


@settings(max_examples=40, deadline=None)
@given(q=st.floats(1e-4, 0.9999), sigma=st.floats(0.2, 50.0))
@example(q=1e-12, sigma=1e4)
@example(q=1 - 1e-12, sigma=0.05)
def test_one_sampled_gaussian_is_never_below_the_exact_curve(q: float, sigma: float) -> None:
    found = pair(PoissonSampled(q, Gaussian(sigma)), 1)
    for side, add in ((found.remove, False), (found.add, True)):
        assert 1 - 1e-9 <= float(side.mass.sum()) + side.infinite <= 1 + 1e-9
        for epsilon in CURVE:
            assert delta_of(side, float(epsilon)) >= sampled_delta(q, sigma, float(epsilon), add) * (
                1 - 1e-11
            )


@settings(max_examples=40, deadline=None)
@given(noise=st.floats(1e-2, 1e4))
@example(noise=1e-3)
@example(noise=1e8)
def test_one_laplace_is_never_below_the_exact_curve_and_close(noise: float) -> None:
    side = pair(Laplace(noise), 1).remove
    for part in (0.0, 0.1, 0.5, 0.9, 0.999, 1.0):
        exact = -math.expm1((part - 1) / noise / 2)
        found = delta_of(side, part / noise)
        assert exact * (1 - 1e-12) <= found <= exact + 0.004 / noise


@pytest.mark.parametrize("count", [1, 7, 64, 1000, 100_000])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-9, 1e-12])
def test_sampling_nearly_everybody_is_no_sampling(count: int, delta: float) -> None:
    """Composed on the grid, and known exactly: a ten thousandth part above it, never below."""
    sigma = 2 * math.sqrt(count)
    accountant = PLD()
    accountant.compose(PoissonSampled(1 - 1e-13, Gaussian(sigma)), count)
    exact = mu_to_epsilon(0.5, delta)
    assert exact * (1 - 1e-9) <= accountant.epsilon(delta) <= exact * (1 + 1e-3) + 1e-4


@st.composite
def grids(draw: st.DrawFn) -> Losses:
    """Masses over many orders of magnitude."""
    exponents = draw(st.lists(st.floats(-30, 0), min_size=1, max_size=60))
    mass = 10.0 ** np.array(exponents)
    infinite = draw(st.sampled_from([0.0, 1e-15, 1e-3]))
    return Losses(
        draw(st.integers(-80, 80)),
        2.0 ** draw(st.integers(-6, 1)),
        mass / mass.sum() * (1 - infinite),
        infinite,
    )


@settings(max_examples=200, deadline=None)
@given(one=grids(), two=grids())
def test_a_composition_is_never_below_the_exact_one(one: Losses, two: Losses) -> None:
    product = one * two
    step = max(one.step, two.step)
    first, second = one.at(step), two.at(step)
    exact = Losses(
        first.low + second.low,
        step,
        np.convolve(first.mass.astype(np.longdouble), second.mass.astype(np.longdouble)).astype(np.float64),
        one.infinite + two.infinite - one.infinite * two.infinite,
    )
    assert float(product.mass.sum()) + product.infinite <= 1 + 1e-11
    for epsilon in np.linspace(float(exact.values[0]) - 1, float(exact.values[-1]) + 1, 50):
        assert delta_of(product, float(epsilon)) >= delta_of(exact, float(epsilon)) * (1 - 1e-9)


@settings(max_examples=100, deadline=None)
@given(losses=grids())
def test_a_coarser_grid_is_never_below_and_keeps_both_sums(losses: Losses) -> None:
    coarse = losses.coarser()
    for weight in (lambda side: 1.0, lambda side: np.exp(-side.values + losses.values[0])):
        sums = [float((side.mass * weight(side)).sum()) for side in (losses, coarse)]
        assert sums[1] == pytest.approx(sums[0], rel=1e-12)
    for epsilon in np.linspace(float(losses.values[0]) - 1, float(losses.values[-1]) + 1, 50):
        assert delta_of(coarse, float(epsilon)) >= delta_of(losses, float(epsilon)) * (1 - 1e-12)


def test_a_tail_is_resolved_far_below_double_precision() -> None:
    """Why masses are tilted before they are transformed: without, everything under 1e-16 is noise."""
    event = PoissonSampled(0.05, Gaussian(2.0))
    together = pair(event, 500).remove
    above = float(together.mass[together.values > 5.0].sum())
    assert together.infinite < 1e-14
    deep = PLD()
    deep.compose(event, 500)
    assert deep.epsilon(1e-12) < 1.3 * deep.epsilon(1e-9) and above < 1e-10


@pytest.mark.parametrize("q", [1e-12, 1e-4, 0.5, 1 - 1e-12])
@pytest.mark.parametrize("sigma", [2e-50, 1e-3, 0.02, 0.2, 1.0, 50.0, 1e8, 9e49])
def test_no_setting_breaks_it(q: float, sigma: float) -> None:
    for count in (1, 1000):
        accountant = PLD()
        accountant.compose(PoissonSampled(q, Gaussian(sigma)), count)
        assert 0 <= accountant.epsilon(1e-5) <= accountant.epsilon(1e-9)
        assert accountant.epsilon(0.999) <= accountant.epsilon(1e-5)


@pytest.mark.parametrize("event", [PoissonSampled(0.01, Gaussian(9e-4)), Laplace(9e-4)])
def test_next_to_no_noise_is_no_privacy(event: Event) -> None:
    accountant = PLD([Gaussian(1.0)])
    accountant.compose(event, 0)
    assert accountant.epsilon(1e-5) < 5
    accountant.compose(event)
    assert accountant.epsilon(1e-5) == math.inf and accountant.delta(1e6) == 1


# ── calibration ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("epsilon", "delta", "steps", "q"),
    [
        (3.0, 1e-5, 1000, 0.01),
        (1.0, 1e-6, 200, 0.1),
        (8.0, 1e-5, 50, 0.5),
        (0.5, 1e-5, 30, 1.0),
        (0.1, 1e-9, 1, 1.0),
    ],
)
def test_noise_is_enough_and_not_more(epsilon: float, delta: float, steps: int, q: float) -> None:
    def spent(sigma: float) -> float:
        accountant = PLD()
        accountant.compose(PoissonSampled(q, Gaussian(sigma)), steps)
        return accountant.epsilon(delta)

    sigma = noise_multiplier(epsilon, delta, steps, q)
    assert spent(sigma) <= epsilon < spent(sigma * 0.999)


def test_the_noise_agrees_with_dp_accounting() -> None:
    # calibrate_dp_mechanism over PLDAccountant, step 1e-3, gives 0.8136
    assert noise_multiplier(3.0, 1e-5, 1000, 0.01) == pytest.approx(0.8136, abs=1e-3)


@pytest.mark.parametrize(
    "arguments",
    [(0.0, 1e-5, 10, 0.1), (1.0, 0.0, 10, 0.1), (1.0, 1e-5, 0, 0.1), (1.0, 1e-5, 1.5, 0.1), (1.0, 1e-5, True, 0.1),
     (1.0, 1e-5, 10, 0.0), (1.0, 1e-5, 10, 1.1), (math.nan, 1e-5, 10, 0.1)],
)  # fmt: skip
def test_noise_for_no_run_is_refused(arguments: Any) -> None:
    with pytest.raises(InputError):
        noise_multiplier(*arguments)


def test_it_is_tighter_than_zcdp_on_our_own_event() -> None:
    event = DistributedDiscreteGaussian(1000.0, 8000.0, 2, 13)
    tight, loose = PLD(), ZCDP()
    tight.compose(event, 10)
    loose.compose(event, 10)
    assert 0.9 < tight.epsilon(1e-5) / loose.epsilon(1e-5) < 0.93
