"""The audit's statistics: a sound run raises no alarm more often than stated, and planted faults are caught."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from foedus.errors import InputError
from foedus.privacy.audit import (
    gaussian_epsilon,
    gaussian_fit,
    noise_check,
    norm_check,
    one_run_lower_bound,
    reuse_check,
    steinke_lower_bound,
)
from foedus.privacy.noise import Keystream, discrete_gaussian

DELTA = 1e-5
ALARM = 1e-6
Reals = npt.NDArray[np.float64]


def most(tries: int, rate: float) -> int:
    """So many alarms at `rate` or more come in 1 of 10^9 runs of a test."""
    return int(stats.binom.isf(1e-9, tries, rate))


def rng(seed: int) -> np.random.Generator:
    """For what is audited in these tests, which protects nobody."""
    return np.random.default_rng(seed)


# ── ε that is certainly exceeded ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("guesses", [1, 10, 100, 1000])
def test_all_guesses_right_refute_what_makes_that_unlikely(guesses: int) -> None:
    """By hand: q^r = 0.05, ε = ln(q/(1 − q))."""
    q = 0.05 ** (1 / guesses)
    expected = max(0.0, math.log(q / (1 - q)))
    assert steinke_lower_bound(guesses, guesses, guesses, 0.0, 0.95) == pytest.approx(expected, rel=1e-6)


def exact_p(right: int, guesses: int, canaries: int, epsilon: Fraction, delta: Fraction) -> Fraction:
    """Theorem 5.2 in fractions, term by term; `epsilon` stands for e^ε."""
    q = epsilon / (1 + epsilon)
    mass = [math.comb(guesses, w) * q**w * (1 - q) ** (guesses - w) for w in range(guesses + 1)]
    terms = [sum(mass[max(0, right - i) : right]) / i for i in range(1, canaries + 1)]
    return sum(mass[right:], Fraction(0)) + 2 * canaries * delta * max(terms)


@given(st.integers(1, 20), st.data())
@settings(max_examples=60, deadline=None)
def test_the_bound_is_where_the_theorem_reaches_the_level(canaries: int, data: st.DataObject) -> None:
    guesses = data.draw(st.integers(1, canaries))
    right = data.draw(st.integers(0, guesses))
    delta = data.draw(st.sampled_from([Fraction(0), Fraction(1, 10**5), Fraction(1, 1000)]))
    bound = steinke_lower_bound(right, guesses, canaries, float(delta), 0.9)
    level = Fraction(1, 10)
    if bound == 0:
        assert exact_p(right, guesses, canaries, Fraction(1), delta) >= level
    else:
        for factor, below in ((1 - 1e-6, True), (1 + 1e-6, False)):
            p = exact_p(right, guesses, canaries, Fraction(math.exp(bound * factor)), delta)
            assert (p < level) is below


@pytest.mark.parametrize("delta", [0.0, DELTA, 1e-3])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 5.0])
def test_it_is_exceeded_by_mechanisms_of_that_epsilon_no_more_often_than_stated(
    epsilon: float, delta: float
) -> None:
    """Exactly, not by simulation: randomised response that gives each coin away, or all at once, with probability δ."""
    m, q = 60, 1 / (1 + math.exp(-epsilon))
    over = np.array([steinke_lower_bound(v, m, m, delta, 0.95) > epsilon * (1 + 1e-8) for v in range(m + 1)])
    v = np.arange(m + 1)
    each = stats.binom.pmf(v, m, q + delta * (1 - q))
    at_once = (1 - delta) * stats.binom.pmf(v, m, q) + delta * (v == m)
    for chance in (each, at_once):
        assert float(chance[over].sum()) <= 0.05


def test_it_rises_with_right_guesses_and_falls_with_delta_confidence_and_canaries() -> None:
    found = [steinke_lower_bound(v, 100, 1000, DELTA, 0.95) for v in range(101)]
    assert found == sorted(found) and found[50] == 0 and found[100] > 3
    at = steinke_lower_bound(95, 100, 1000, DELTA, 0.95)
    assert (
        at > steinke_lower_bound(95, 100, 1000, 1e-4, 0.95) > steinke_lower_bound(95, 100, 1000, 1e-2, 0.95)
    )
    assert at > steinke_lower_bound(95, 100, 1000, DELTA, 0.99) and at > steinke_lower_bound(
        95, 100, 9000, DELTA, 0.95
    )
    assert steinke_lower_bound(100, 100, 1000, 0.5, 0.95) == 0  # a δ that explains everything


def canaries(mu: float, m: int, seed: int) -> tuple[Reals, npt.NDArray[np.bool_]]:
    """Scores of a mu-Gaussian mechanism."""
    random = rng(seed)
    included = random.random(m) < 0.5
    return random.normal(size=m) + mu * included, included


@pytest.mark.parametrize("mu", [0.0, 0.5, 1.5])
def test_a_sound_gaussian_run_is_not_said_to_exceed_its_epsilon(mu: float) -> None:
    epsilon = gaussian_epsilon(mu, DELTA)
    alarms = sum(one_run_lower_bound(*canaries(mu, 300, seed), delta=DELTA) > epsilon for seed in range(40))
    assert alarms <= most(40, 0.05)


def test_noise_of_a_quarter_is_caught_with_certainty_and_of_half_only_by_the_fit() -> None:
    """As on trained networks (facts: 3.72 over a claimed 3.36, 5,000 canaries); claimed is ε = 3.36."""
    mu = 0.83
    claimed = gaussian_epsilon(mu, DELTA)
    assert 3 < claimed < 4
    for seed in range(5):
        assert one_run_lower_bound(*canaries(4 * mu, 5000, seed), delta=DELTA) > claimed
        scores, included = canaries(2 * mu, 1000, seed)
        assert 0 < one_run_lower_bound(scores, included, delta=DELTA) < claimed
        assert (
            gaussian_fit(scores[included], scores[~included], confidence=0.999).epsilon_bounds(DELTA)[0]
            > claimed
        )


def test_equal_scores_tell_nothing_whatever_their_order() -> None:
    included = np.arange(1000) < 500
    for coins in (included, ~included):
        assert one_run_lower_bound(np.zeros(1000), coins, delta=DELTA) == 0
        few = np.where(np.arange(1000) % 100 == 0, 1.0, 0.0)
        assert one_run_lower_bound(few, coins, delta=DELTA) == 0
    assert one_run_lower_bound(included * 1.0, included, delta=DELTA, parts=(0.5,)) > 3
    assert one_run_lower_bound(-1.0 * included, included, delta=DELTA) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: steinke_lower_bound(5, 4, 10, DELTA, 0.95),
        lambda: steinke_lower_bound(-1, 4, 10, DELTA, 0.95),
        lambda: steinke_lower_bound(1, 11, 10, DELTA, 0.95),
        lambda: steinke_lower_bound(1, 4, 10, -DELTA, 0.95),
        lambda: steinke_lower_bound(1, 4, 10, float("nan"), 0.95),
        lambda: steinke_lower_bound(1, 4, 10, DELTA, 1.0),
        lambda: one_run_lower_bound(np.array([1.0, math.nan]), np.array([True, False]), delta=DELTA),
        lambda: one_run_lower_bound(np.zeros(3), np.array([True, False]), delta=DELTA),
        lambda: one_run_lower_bound(np.zeros(2), np.array([1, 0]), delta=DELTA),  # type: ignore[arg-type]
        lambda: one_run_lower_bound(np.zeros(2), np.array([True, False]), delta=DELTA, parts=(0.6,)),
        lambda: one_run_lower_bound(np.zeros(2), np.array([True, False]), delta=DELTA, parts=()),
        lambda: one_run_lower_bound(np.zeros(1), np.array([True]), delta=DELTA),
        lambda: gaussian_epsilon(-1, DELTA),
        lambda: gaussian_epsilon(math.nan, DELTA),
        lambda: gaussian_epsilon(1, 0),
        lambda: gaussian_fit(np.zeros(9), np.arange(20.0)),
        lambda: gaussian_fit(np.zeros(20), np.zeros(20)),
        lambda: gaussian_fit(np.arange(20.0), np.arange(20.0), confidence=0.5),
        lambda: gaussian_fit(np.full(20, math.inf), np.arange(20.0)),
        lambda: noise_check(np.zeros(0), 1.0),
        lambda: noise_check(np.zeros(5), 0.0),
        lambda: noise_check(np.array([1.0, math.nan]), 1.0),
        lambda: reuse_check(np.ones((2, 63))),
        lambda: reuse_check(np.ones(100)),
        lambda: reuse_check(np.vstack([np.ones(64), np.zeros(64)])),
        lambda: norm_check(np.zeros(3), 1.0),
        lambda: norm_check(np.zeros((0, 3)), 1.0),
        lambda: norm_check(np.full((1, 3), math.nan), 1.0),
        lambda: norm_check(np.zeros((1, 3)), 0.0),
    ],
)
def test_what_cannot_be_audited_is_refused(call: Any) -> None:
    with pytest.raises(InputError):
        call()


# ── ε of a Gaussian mechanism ────────────────────────────────────────────────────────────────────


@given(st.floats(0.01, 30), st.floats(-9, -1))
@settings(deadline=None)
def test_epsilon_of_a_gaussian_is_the_one_of_its_delta(mu: float, digits: float) -> None:
    delta = 10**digits
    epsilon = gaussian_epsilon(mu, delta)

    def delta_of(e: float) -> float:
        """P[L > e] − e^e·P'[L > e] by the loss's own distribution: L ~ N(±μ²/2, μ²)."""
        above = stats.norm.sf(e, mu**2 / 2, mu)
        return float(above - math.exp(e + stats.norm.logsf(e, -(mu**2) / 2, mu)))

    if epsilon == 0:
        assert delta_of(0.0) <= delta
    else:
        assert delta_of(epsilon) == pytest.approx(delta, rel=1e-4)


def test_epsilon_of_a_gaussian_known() -> None:
    """dp-accounting's PLD for 50 rounds of noise multiplier 10 (2.943 at a grid of 10^-4)."""
    assert gaussian_epsilon(math.sqrt(50) / 10, 1e-5) == pytest.approx(2.943, abs=1e-3)
    assert gaussian_epsilon(0, 1e-5) == 0 and gaussian_epsilon(1e-6, 1e-5) == 0


@pytest.mark.parametrize(
    ("mu", "n", "k"), [(0.0, 100, 100), (1.5, 200, 50), (6.0, 15, 12), (3.0, 2500, 2500)]
)
def test_bounds_of_the_fit_hold_as_often_as_stated_and_no_more(mu: float, n: int, k: int) -> None:
    tries = 250
    random = rng(11)
    fits = [
        gaussian_fit(3 + 7 * (random.normal(size=n) + mu), 3 + 7 * random.normal(size=k), confidence=0.9)
        for _ in range(tries)
    ]
    over, under = sum(f.lower > mu for f in fits), sum(f.upper < mu for f in fits)
    for missed in (over, under):
        assert most(tries, 0.1) >= missed >= tries - most(tries, 0.9)  # 0.1, neither more nor less
    errors = np.array([(f.mu - mu) / f.standard_error for f in fits])
    assert 0.8 < errors.std() < 1.25 and all(f.lower < f.mu < f.upper for f in fits)


def test_the_fit_catches_half_the_noise() -> None:
    """1,000 canaries, at a confidence of 0.9999: no alarm in a sound run, one in each with σ/2."""
    mu = 1.0
    claimed = gaussian_epsilon(mu, DELTA)
    for seed in range(40):
        for real, caught in ((mu, False), (2 * mu, True)):
            scores, included = canaries(real, 1000, seed)
            fit = gaussian_fit(scores[included], scores[~included], confidence=0.9999)
            assert (fit.epsilon_bounds(DELTA)[0] > claimed) is caught
            assert fit.epsilon_bounds(DELTA)[0] < fit.epsilon(DELTA) < fit.epsilon_bounds(DELTA)[1]
    scores, included = canaries(-3.0, 1000, 1)
    assert gaussian_fit(scores[included], scores[~included]).epsilon(DELTA) == 0


# ── faults ───────────────────────────────────────────────────────────────────────────────────────


def summed(sigma: int, silos: int, size: int) -> Reals:
    """The noise of so many silos' shares of deviation sigma, by the real sampler."""
    return np.sum([discrete_gaussian(sigma, size, Keystream()) for _ in range(silos)], axis=0).astype(float)


def test_sound_noise_passes_and_its_p_values_are_uniform() -> None:
    found = [noise_check(summed(20, 4, 50), 40.0) for _ in range(300)]
    for name in ("p_value", "p_too_little"):
        assert stats.kstest([getattr(f, name) for f in found], "uniform").pvalue > 1e-9
    assert sum(f.p_value < 0.05 for f in found) <= most(300, 0.05)
    assert noise_check(summed(20, 4, 50_000), 40.0).sigma == pytest.approx(40, rel=0.02)


@pytest.mark.parametrize(
    ("fault", "size", "make"),
    [
        ("half the deviation", 100, lambda n: summed(10, 4, n)),
        ("one of three silos adds none", 1500, lambda n: summed(23, 2, n)),
        ("one of ten silos adds none", 20_000, lambda n: summed(13, 9, n) * (40 / (13 * math.sqrt(10)))),
        ("no noise", 10, lambda n: np.zeros(n)),
    ],
)
def test_too_little_noise_is_caught(fault: str, size: int, make: Any) -> None:
    for _ in range(20):
        found = noise_check(make(size), 40.0)
        assert found.p_value < ALARM and found.p_too_little < ALARM and found.sigma < 40, fault


def test_what_a_check_of_noise_sees_is_what_it_says() -> None:
    """Power by the distribution itself: 60 residuals for half, 9,000 for nine tenths of the variance, at 10^-6."""
    for n, variance in ((60, 0.25), (9000, 0.9)):
        border = stats.chi2.isf(1 - ALARM / 2, n)
        assert stats.chi2.cdf(border / variance, n) > 0.9


def test_too_much_noise_and_a_shift_are_seen_too() -> None:
    for residuals in (summed(30, 4, 500), summed(20, 4, 500) + 30):
        found = noise_check(residuals, 40.0)
        assert found.p_value < ALARM and found.p_too_little > 0.99


def test_independent_noise_is_not_taken_for_reused() -> None:
    found = [
        reuse_check(np.array([discrete_gaussian(sigma, d, Keystream()) for _ in range(4)]))
        for sigma, d in ((1, 64), (5, 500), (1000, 999), (2**20, 300))
        for _ in range(40)
    ]
    assert sum(f.p_value < 0.05 for f in found) <= most(len(found), 0.05)
    assert min(f.p_value for f in found) > 1e-9
    assert sum(f.p_value < 0.9 for f in found) > len(found) // 5  # Bonferroni, but not blind


@pytest.mark.parametrize("d", [400, 1001])
def test_reused_noise_is_caught_and_named(d: int) -> None:
    for sigma in (1, 1000):
        rows = np.array([discrete_gaussian(sigma, d, Keystream()) for _ in range(6)])
        for fault, (expected, shift, sign), reuse in (
            ("in another round", ((1, 4), 0, 1), lambda r: r[1]),
            ("with its sign turned", ((1, 4), 0, -1), lambda r: -r[1]),
            ("further on", ((1, 4), 77, 1), lambda r: np.roll(r[1], 77)),
            ("three fifths of it", ((1, 4), 0, 1), lambda r: np.where(np.arange(d) < 0.6 * d, r[1], r[4])),
            ("within a row", ((4, 4), 50, 1), lambda r: np.resize(r[4][:50], d)),
            ("half round", ((4, 4), d // 2, 1), lambda r: np.resize(r[4][: d // 2], d)),
        ):
            bad = rows.copy()
            bad[4] = reuse(rows)
            found = reuse_check(bad)
            assert found.p_value < ALARM and found.pair == expected, fault
            assert math.copysign(1, found.correlation) == sign and abs(found.correlation) > 0.4, fault
            assert found.shift % shift == 0 if shift else found.shift == 0, fault


def test_a_customer_who_is_not_clipped_is_found() -> None:
    random = rng(5)
    rows = random.normal(size=(100, 30))
    clipped = rows / np.maximum(1, np.linalg.norm(rows, axis=1))[:, None]
    found = norm_check(clipped, 1.0)
    assert found.over == () and found.largest == pytest.approx(1)
    bad = clipped.copy()
    bad[17] = rows[17]
    found = norm_check(bad, 1.0)
    assert found.over == (17,) and found.largest == pytest.approx(np.linalg.norm(rows[17]))
    assert norm_check(clipped.astype(np.float32), 1.0).over == ()


def test_clipping_by_rows_shows_in_sums_with_and_without_a_customer() -> None:
    """Customer 3 has five rows; clipped each, they count for more than a customer may."""
    random = rng(6)
    customers = np.repeat(np.arange(8), [1, 1, 2, 5, 1, 1, 1, 1])
    rows = random.normal(size=(13, 20)) + 2
    by_row = rows / np.linalg.norm(rows, axis=1)[:, None]
    whole = np.array([rows[customers == c].sum(axis=0) for c in range(8)])
    by_customer = whole / np.linalg.norm(whole, axis=1)[:, None]
    for contributions, owners, over in ((by_customer, np.arange(8), ()), (by_row, customers, (2, 3))):
        total = contributions.sum(axis=0)
        without = np.array([contributions[owners != c].sum(axis=0) for c in range(8)])
        assert norm_check(total - without, 1.0).over == over
