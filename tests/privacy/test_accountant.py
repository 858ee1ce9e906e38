"""ZCDP keeps every accountant's laws, and its numbers agree with others' mathematics."""

from __future__ import annotations

import math

import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import rdp_privacy_accountant as rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus.errors import InputError
from foedus.privacy.accountant import ZCDP, epsilon_to_rho, rho_to_epsilon
from foedus.privacy.events import DistributedDiscreteGaussian, Gaussian, PoissonSampled

from .accountants import AccountantContract, discrete, exact_gaussian_epsilon, gaussians, laplaces


class TestZCDP(AccountantContract):
    events = st.one_of(discrete, gaussians, laplaces)

    def make(self) -> ZCDP:
        return ZCDP()


def test_zcdp_has_no_rule_for_sampling() -> None:
    with pytest.raises(InputError, match="PoissonSampled"):
        ZCDP([PoissonSampled(0.1, Gaussian(1.0))])


def test_the_reference_agrees_with_a_published_value() -> None:
    # Balle and Wang, classical: σ = 1, Δ = 1, δ = 1e-5 needs ε ≈ 4.377.
    assert exact_gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.377, abs=2e-3)


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("rho", [1e-4, 1e-3, 0.01, 0.03, 0.1, 0.5, 2.0, 10.0])
def test_epsilon_is_never_below_the_exact_one(rho: float, delta: float) -> None:
    assert rho_to_epsilon(rho, delta) >= exact_gaussian_epsilon(math.sqrt(2 * rho), delta)


@pytest.mark.parametrize("delta", [1e-4, 1e-5, 1e-6])
def test_epsilon_is_within_15_percent_of_the_exact_one_near_1(delta: float) -> None:
    rho = epsilon_to_rho(1.0, delta)
    assert (
        exact_gaussian_epsilon(math.sqrt(2 * rho), delta)
        <= 1.0
        <= 1.15 * exact_gaussian_epsilon(math.sqrt(2 * rho), delta)
    )


@pytest.mark.parametrize(("ratio", "count"), [(0.7, 1), (3.0, 10), (20.0, 400)])
def test_it_agrees_with_dp_accounting_on_gaussians(ratio: float, count: int) -> None:
    """A sum of shares at large sigma is a Gaussian of noise multiplier σ√n/Δ."""
    event = DistributedDiscreteGaussian(sensitivity=1000.0, sigma=1000.0 * ratio, shares=4, dimension=5)
    ours = ZCDP()
    ours.compose(event, count)
    theirs = rdp.RdpAccountant()
    theirs.compose(dp_event.GaussianDpEvent(ratio * 2), count)
    assert ours.epsilon(1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=5e-3)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 90.0), st.sampled_from([1e-3, 1e-5, 1e-9]))
def test_the_inverse_never_overspends_and_wastes_nothing(epsilon: float, delta: float) -> None:
    rho = epsilon_to_rho(epsilon, delta)
    assert rho_to_epsilon(rho, delta) <= epsilon
    assert rho_to_epsilon(rho * (1 + 1e-6), delta) > epsilon * (1 - 1e-6)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_an_epsilon_that_is_none_has_no_rho(epsilon: float) -> None:
    with pytest.raises(InputError):
        epsilon_to_rho(epsilon, 1e-5)


@pytest.mark.parametrize("rho", [-1e-9, math.nan])
def test_a_rho_that_is_none_has_no_epsilon(rho: float) -> None:
    with pytest.raises(InputError):
        rho_to_epsilon(rho, 1e-5)


# ── the theorem ──────────────────────────────────────────────────────────────────────────────────


def test_tau_is_that_of_the_theorem() -> None:
    small = DistributedDiscreteGaussian(sensitivity=1.0, sigma=0.5, shares=3, dimension=1)
    a, b = math.exp(-2 * math.pi**2 * 0.25 * 1 / 2), math.exp(-2 * math.pi**2 * 0.25 * 2 / 3)
    assert small.tau == pytest.approx(10 * (a + b), rel=1e-12)
    assert DistributedDiscreteGaussian(1.0, 0.5, 1, 1).tau == 0  # one share is one discrete Gaussian: exact


def test_rho_is_the_lesser_of_the_theorems_two_bounds() -> None:
    for sigma, shares, dimension in ((0.6, 2, 1), (0.6, 2, 10_000), (50.0, 4, 100)):
        event = DistributedDiscreteGaussian(3.0, sigma, shares, dimension)
        base = 3.0 / (math.sqrt(shares) * sigma)
        one = math.sqrt(base**2 + event.tau * dimension / 2)
        two = base + event.tau * math.sqrt(dimension)
        assert event.rho == pytest.approx(min(one, two) ** 2 / 2, rel=1e-12)


def test_more_shares_more_noise_and_less_sensitivity_cost_less() -> None:
    base = DistributedDiscreteGaussian(100.0, 500.0, 3, 10)
    for cheaper in (
        DistributedDiscreteGaussian(100.0, 500.0, 4, 10),
        DistributedDiscreteGaussian(100.0, 501.0, 3, 10),
        DistributedDiscreteGaussian(99.0, 500.0, 3, 10),
    ):
        assert cheaper.rho < base.rho
