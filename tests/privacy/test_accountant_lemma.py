"""The comparison of discrete sums with a Gaussian (docs/protocols/accounting.md), against exact sums.

Everything here is computed from the probabilities themselves, in extended precision, and not from the lemma.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from foedus.privacy.accountant import PLD, ZCDP, mu_to_epsilon
from foedus.privacy.accountant.gaussian import gaussian_delta, least_epsilon
from foedus.privacy.events import DistributedDiscreteGaussian, Gaussian, ripple

Extended = npt.NDArray[np.longdouble]


def probabilities(sigma: float, shares: int) -> Extended:
    """The sum of shares, exactly: shape (odd,), the middle is 0."""
    reach = math.ceil(14 * sigma) + 2
    z = np.arange(-reach, reach + 1).astype(np.longdouble)
    one = np.exp(-(z**2) / (2 * np.longdouble(sigma) ** 2))
    one /= one.sum()
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    return total


def exact_delta(sigma: float, shares: int, shift: tuple[int, ...], epsilon: float) -> float:
    """Σ (P[Z = z] − e^ε P[Z + v = z])₊ over all of ℤ^d."""
    p = probabilities(sigma, shares)
    unmoved: Extended = np.ones(1, dtype=np.longdouble)
    moved: Extended = np.ones(1, dtype=np.longdouble)
    for v in shift:
        unmoved = np.multiply.outer(unmoved, np.concatenate((p, np.zeros(abs(v)))))
        moved = np.multiply.outer(moved, np.concatenate((np.zeros(abs(v)), p)))
    return float(np.maximum(unmoved - np.exp(np.longdouble(min(epsilon, 1e4))) * moved, 0).sum())


def compared_delta(event: DistributedDiscreteGaussian, epsilon: float) -> float:
    """What the comparison alone says."""
    return math.exp(event.slack) * float(gaussian_delta(event.mu, epsilon - 2 * event.slack))


@settings(max_examples=80, deadline=None)
@given(
    sigma=st.floats(0.45, 4.0),
    shares=st.integers(1, 5),
    shift=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    at=st.floats(-1.0, 8.0),
)
def test_the_bound_holds_for_exact_sums(sigma: float, shares: int, shift: list[int], at: float) -> None:
    assume(any(shift) and len(shift) * sigma <= 6 and (len(shift) < 3 or shares * sigma < 4))
    event = DistributedDiscreteGaussian(math.hypot(*shift), sigma, shares, len(shift))
    mu = math.hypot(*shift) / (math.sqrt(shares) * sigma)
    epsilon = max(0.0, mu * mu / 2 + at * mu)  # from the bulk of the losses far into their tail
    exact = exact_delta(sigma, shares, tuple(shift), epsilon)
    assert exact <= compared_delta(event, epsilon) + 1e-16
    assert exact <= PLD([event]).delta(epsilon) + 1e-16


@pytest.mark.parametrize("sigma, shares", [(0.5, 1), (0.7, 2), (1.0, 1), (1.0, 4), (2.0, 3)])
def test_the_comparison_holds_at_every_point(sigma: float, shares: int) -> None:
    """|log P[Z = z] / P[K(N(0, s² − r²)) = z]| ≤ slack: K's probabilities by the trapezoidal rule, which converges
    faster than any power for such integrands."""
    event = DistributedDiscreteGaussian(1.0, sigma, shares, 1)
    variance = shares * sigma**2
    r2 = variance - (event.sensitivity / event.mu) ** 2
    assert 0 < r2 < variance
    reach = math.ceil(8 * math.sqrt(variance))
    x = np.arange(-reach - 12, reach + 12, 1 / 64)
    density = np.exp(-(x**2) / (2 * (variance - r2))) / math.sqrt(2 * math.pi * (variance - r2)) / 64
    lattice = np.arange(-reach - 40, reach + 41)
    kernel = np.exp(-((lattice[:, None] - x) ** 2) / (2 * r2))
    rounded = (kernel / kernel.sum(axis=0)) @ density
    assert rounded.sum() == pytest.approx(1.0, abs=1e-9)
    exact = probabilities(sigma, shares)
    middle = len(exact) // 2
    near = np.abs(lattice) <= min(reach * 0.7, middle)
    ratio = np.log(rounded[near]) - np.log(exact[middle + lattice[near]].astype(np.float64))
    assert np.abs(ratio).max() <= event.slack + 1e-9
    assert event.slack < 1.5  # and says something


def test_to_account_for_a_sum_as_if_it_were_continuous_is_wrong() -> None:
    """So small a noise is not used, but it shows that a theorem is needed."""
    delta = 1e-3
    exact = least_epsilon(lambda epsilon: exact_delta(1.0, 2, (1,), epsilon), delta)
    as_if = mu_to_epsilon(1 / math.sqrt(2), delta)
    event = DistributedDiscreteGaussian(1.0, 1.0, 2, 1)
    assert as_if < exact < PLD([event]).epsilon(delta)


@pytest.mark.parametrize("sigma, shares, shift", [(2.0, 5, 3), (4.0, 2, 4), (4.0, 10, 10), (8.0, 3, 5)])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_the_order_of_the_bounds(sigma: float, shares: int, shift: int, delta: float) -> None:
    event = DistributedDiscreteGaussian(float(shift), sigma, shares, 1)
    exact = max(
        least_epsilon(lambda epsilon, v=v: exact_delta(sigma, shares, (v,), epsilon), delta)  # type: ignore[misc]
        for v in range(1, shift + 1)
    )
    as_if = mu_to_epsilon(shift / (math.sqrt(shares) * sigma), delta)
    ours, theirs = PLD([event]).epsilon(delta), ZCDP([event]).epsilon(delta)
    assert max(exact, as_if) <= ours <= theirs
    assert ours <= 1.05 * exact


@settings(max_examples=60, deadline=None)
@given(
    sigma=st.floats(4.0, 1e6),
    shares=st.integers(1, 40),
    dimension=st.integers(1, 10**6),
    ratio=st.floats(0.01, 3.0),
)
def test_at_the_noise_we_use_it_is_tight(sigma: float, shares: int, dimension: int, ratio: float) -> None:
    deviation = math.sqrt(shares) * sigma
    event = DistributedDiscreteGaussian(ratio * deviation, sigma, shares, dimension)
    as_if = mu_to_epsilon(ratio, 1e-5)
    # what r² takes from the variance, and twice the slack; never more than one part in ten at σ = 4
    assert as_if <= PLD([event]).epsilon(1e-5) <= as_if * (1 + 3 / deviation**2 + 1e-9) + 3 * event.slack
    assert event.slack < 1e-3


def test_more_shares_more_noise_and_less_sensitivity_cost_less() -> None:
    for sensitivity, sigma, shares, d in itertools.product((1.0, 80.0), (0.6, 4.0, 500.0), (2, 9), (1, 1000)):
        base = DistributedDiscreteGaussian(sensitivity, sigma, shares, d)
        for cheaper in (
            DistributedDiscreteGaussian(sensitivity, sigma, shares + 1, d),
            DistributedDiscreteGaussian(sensitivity, sigma * 1.01, shares, d),
            DistributedDiscreteGaussian(sensitivity * 0.99, sigma, shares, d),
        ):
            assert cheaper.mu < base.mu
            if sigma >= 4:  # under it what is known of the distance of sums decides, and it grows with them
                assert PLD([cheaper]).epsilon(1e-5) < PLD([base]).epsilon(1e-5)


def test_ripple_is_what_a_sum_over_shifted_integers_varies_by() -> None:
    z = np.arange(-60, 61)
    for variance in (0.2, 0.5, 1.0):
        sums = [float(np.exp(-((z - x) ** 2) / (2 * variance)).sum()) for x in np.linspace(0, 1, 101)]
        assert math.log(max(sums) / min(sums)) <= ripple(variance) * (1 + 1e-9) + 1e-14
        assert ripple(variance) <= 1.1 * math.log(max(sums) / min(sums)) + 1e-14
    assert ripple(0.01) == math.inf


def test_hopelessly_small_noise_is_still_bounded_by_the_theorem() -> None:
    event = DistributedDiscreteGaussian(1.0, 0.1, 1, 1)
    assert event.slack == math.inf
    assert PLD([event]).epsilon(1e-5) == pytest.approx(ZCDP([event]).epsilon(1e-5), rel=1e-3)
    assert PLD([event, Gaussian(1.0)]).epsilon(1e-5) < math.inf
