"""The statistics of a privacy audit: what the outputs of one run say about the ε it really had.

Pure functions; nothing is trained here. A *canary* is a made-up customer put into the run or left out by a fair
coin; its *score* is how much the output looks as if it were in. Two answers to two questions:

- `one_run_lower_bound`: an ε that the run certainly exceeds, whatever the mechanism; seldom more than a
  third of the truth;
- `gaussian_fit`: the ε that these scores would mean if the mechanism is Gaussian; near the truth, on that condition.

The others look for faults that a proof on paper does not see: `noise_check` (too little noise, a silo's share
missing), `reuse_check` (noise used twice), `norm_check` (a customer not clipped).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from ..errors import InputError

Reals = npt.NDArray[np.floating[Any]] | npt.NDArray[np.integer[Any]]

_CEILING = 200.0  # no audit shows more: e^200 canaries could not


# ── ε that is certainly exceeded ─────────────────────────────────────────────────────────────────


def steinke_lower_bound(
    guesses_right: int, guesses: int, canaries: int, delta: float, confidence: float
) -> float:
    """The greatest ε such that, were the run (ε, δ)-DP, so many right guesses had probability below 1 − confidence.

    Steinke, Nasr and Jagielski 2023 (NeurIPS, "Privacy Auditing with One (1) Training Run"), Theorem 5.2 for fair
    coins: P[right ≥ v] ≤ f(v) + 2mδ · max_i (f(v − i) − f(v))/i with f(v) = P[Binomial(r, e^ε/(1 + e^ε)) ≥ v].
    Where 2mδ > i, f(v)·(1 − 2mδ/i) is negative and left out: then the bound rises with ε, always, and one
    search finds all that is refuted.

    Args:
        guesses_right: v, of `guesses`: r ≤ `canaries`: m, each in by its own fair coin. r is fixed before the
            run is seen, and counts every guess.
        delta: in [0, 1). confidence: in (0, 1).

    Returns: ε ≥ 0, 0 if nothing is refuted.

    Raises:
        InputError: the counts or probabilities are not such numbers.
    """
    if not 0 <= guesses_right <= guesses <= canaries:
        raise InputError(f"{guesses_right} right of {guesses} guesses about {canaries} canaries cannot be")
    _probabilities(delta, confidence)
    level = 1 - confidence
    if _p_value(guesses_right, guesses, canaries, 0.0, delta) >= level:
        return 0.0
    low, high = 0.0, 1.0
    while high < _CEILING and _p_value(guesses_right, guesses, canaries, high, delta) < level:
        low, high = high, 2 * high
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        if _p_value(guesses_right, guesses, canaries, middle, delta) < level:
            low = middle
        else:
            high = middle
    return low


def _p_value(right: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    rate = float(special.expit(epsilon))
    tail = float(stats.binom.sf(right - 1, guesses, rate))
    if right == 0 or delta == 0:
        return min(1.0, tail)
    i = np.arange(1, right + 1)
    share = 2 * canaries * delta / i
    reached = stats.binom.sf(right - i - 1, guesses, rate)
    return min(1.0, float((tail * np.maximum(0.0, 1 - share) + share * reached).max()))


def one_run_lower_bound(
    scores: Reals,
    included: npt.NDArray[np.bool_],
    *,
    delta: float,
    confidence: float = 0.95,
    parts: Sequence[float] = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2),
) -> float:
    """`steinke_lower_bound` at its best of several numbers of guesses, each at its share of 1 − confidence.

    With k guesses a side, the k highest scores are guessed to be in and the k lowest to be out. One that ties
    with a score beyond the border is not guessed, since the order of equals could give the coins away; it counts
    as a wrong guess.

    Args:
        scores: shape (m,), finite. included: shape (m,), the coins.
        parts: of m, how many to guess a side; each in (0, 1/2]. Chosen before the run is seen.

    Returns: ε ≥ 0. A run that is (ε, δ)-DP gives more with probability at most 1 − confidence.
    """
    values = _finite(scores, "scores")
    if values.ndim != 1 or included.shape != values.shape or included.dtype != np.bool_:
        raise InputError("an audit needs one score and one coin (true or false) a canary, in one row each")
    if not parts or not all(0 < part <= 0.5 for part in parts):
        raise InputError("the numbers of guesses are parts of the canaries, each above 0 and at most a half")
    _probabilities(delta, confidence)
    m = values.size
    counts = sorted({max(1, int(part * m)) for part in parts})
    if m < 2:
        raise InputError("an audit needs two canaries or more")
    ranked = np.sort(values)
    share = 1 - (1 - confidence) / len(counts)
    return max(
        steinke_lower_bound(
            int((included & (values > ranked[m - k - 1])).sum() + (~included & (values < ranked[k])).sum()),
            2 * k,
            m,
            delta,
            share,
        )
        for k in counts
    )


# ── ε of a Gaussian mechanism ────────────────────────────────────────────────────────────────────


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The exact ε of a Gaussian mechanism of sensitivity/σ = mu.

    δ = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ): Balle and Wang 2018 (ICML), Theorem 8; Dong, Roth and Su 2022
    (JRSS B), Corollary 2.13.

    Args:
        mu: at least 0. delta: in (0, 1).
    """
    if not 0 <= mu < math.inf or not 0 < delta < 1:
        raise InputError(f"a Gaussian mechanism needs 0 ≤ mu < ∞ and 0 < delta < 1, not {mu} and {delta}")

    def delta_of(epsilon: float) -> float:
        return float(
            special.ndtr(mu / 2 - epsilon / mu)
            - math.exp(min(0.0, epsilon + special.log_ndtr(-mu / 2 - epsilon / mu)))
        )

    if mu == 0 or delta_of(0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_of(high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle) > delta else (low, middle)
    return high


@dataclass(frozen=True)
class GaussianFit:
    """How far apart canaries that were in and out score, in standard deviations.

    Args:
        mu: the estimate; negative where those that were out score higher. standard_error: of it.
        lower, upper: each holds with probability `confidence`.
    """

    mu: float
    standard_error: float
    lower: float
    upper: float
    confidence: float

    def epsilon(self, delta: float) -> float:
        """The ε(δ) of the estimate."""
        return gaussian_epsilon(max(0.0, self.mu), delta)

    def epsilon_bounds(self, delta: float) -> tuple[float, float]:
        """The ε(δ) of the lower and of the upper bound."""
        return gaussian_epsilon(max(0.0, self.lower), delta), gaussian_epsilon(max(0.0, self.upper), delta)


def gaussian_fit(scores_in: Reals, scores_out: Reals, *, confidence: float = 0.95) -> GaussianFit:
    """Fit mu to the scores of one run, taking them for normal, of one variance, and independent.

    So they are if every round releases a sum with Gaussian noise and a canary's score is linear in the releases, with
    the canaries' directions made orthogonal and the part of the other customers taken off. For a run with
    Poisson sampling, or a network seen from outside, it is a heuristic. Differences of means in pooled deviations;
    bounds by the noncentral t distribution, exact for such scores (Hedges and Olkin 1985, chapter 5).

    Args:
        scores_in, scores_out: shapes (n,) and (k,), finite; at least 10 each.
        confidence: of each bound by itself, in (1/2, 1).
    """
    inside, outside = _finite(scores_in, "scores"), _finite(scores_out, "scores")
    if inside.ndim != 1 or outside.ndim != 1 or min(inside.size, outside.size) < 10:
        raise InputError("a fit needs ten scores or more of each kind, in one row each")
    if not 0.5 < confidence < 1:
        raise InputError(f"the confidence of a bound lies between 1/2 and 1, not {confidence}")
    n, k = inside.size, outside.size
    freedom = n + k - 2
    spread = math.sqrt(
        float(((inside - inside.mean()) ** 2).sum() + ((outside - outside.mean()) ** 2).sum()) / freedom
    )
    if spread == 0:
        raise InputError("all scores of a kind are equal: nothing was added to them, or they are no scores")
    mu = float(inside.mean() - outside.mean()) / spread
    size = math.sqrt(n * k / (n + k))
    return GaussianFit(
        mu,
        math.sqrt(1 / size**2 + mu**2 / (2 * freedom)),
        _noncentral(mu * size, freedom, confidence) / size,
        _noncentral(mu * size, freedom, 1 - confidence) / size,
        confidence,
    )


def _noncentral(t: float, freedom: int, level: float) -> float:
    """The noncentrality at which P[T ≤ t] = level."""
    reach = 10 * math.sqrt(1 + t * t / (2 * freedom)) + 1
    low, high = t - reach, t + reach
    for _ in range(60):
        middle = (low + high) / 2
        # P falls as the noncentrality rises. By symmetry, of a positive one.
        below = (
            float(special.nctdtr(freedom, middle, t))
            if middle >= 0
            else 1 - float(special.nctdtr(freedom, -middle, -t))
        )
        low, high = (middle, high) if below > level else (low, middle)
    return (low + high) / 2


# ── faults ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class NoiseCheck:
    """Whether noise has the deviation it should have.

    Args:
        sigma: the estimate. expected: what it should be.
        p_value: of as great a difference, either way. p_too_little: of so little noise or less.
    """

    sigma: float
    expected: float
    p_value: float
    p_too_little: float


def noise_check(residuals: Reals, expected_sigma: float) -> NoiseCheck:
    """χ² test of Σ residual²/σ², for normal noise of known mean 0 or discrete Gaussian noise of σ ≥ 1.

    With n residuals it sees, at p < 10^-6, a deviation wrong by about 3.6/√n of it: half the noise in 60, one
    silo's share of ten missing (5 %) in 9,000. A shift of the mean shows as too much noise.

    Args:
        residuals: any shape, at least one: releases less the sums they stand for. expected_sigma: > 0, of the survivors
            that there were, in the same unit.
    """
    values = _finite(residuals, "residuals").ravel()
    if not 0 < expected_sigma < math.inf or values.size == 0:
        raise InputError("a check of noise needs residuals and a positive expected deviation")
    scaled = values / expected_sigma
    total = float(scaled @ scaled)
    below = float(stats.chi2.cdf(total, values.size))
    above = float(stats.chi2.sf(total, values.size))
    sigma = expected_sigma * math.sqrt(total / values.size)
    return NoiseCheck(sigma, expected_sigma, min(1.0, 2 * min(below, above)), below)


@dataclass(frozen=True)
class ReuseCheck:
    """The likeness of two noise vectors that is hardest to explain by chance.

    Args:
        p_value: of so great a correlation anywhere among all pairs and shifts.
        pair: the rows; the same twice for one that repeats itself. shift: of the second against the first, round the
            end. correlation: theirs; −1 is the same noise with its sign turned.
    """

    p_value: float
    pair: tuple[int, int]
    shift: int
    correlation: float


def reuse_check(noises: Reals) -> ReuseCheck:
    """Look for noise used twice: every row against every other and itself, at every shift.

    Of independent Gaussian rows, r·√d at one pair and shift is at most about as large as a standard normal is; the
    p-value is Bonferroni's over all of them. A part f of a row used again gives r ≈ f, found (p < 10^-6) from
    f ≈ 8/√d for a few rows.

    Args:
        noises: shape (k, d), one row a round or silo, k ≥ 1, d ≥ 64.
    """
    values = _finite(noises, "noises")
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 64:
        raise InputError("a search for reused noise needs rows of 64 numbers or more")
    rows, d = values.shape
    norms = np.sqrt((values**2).sum(axis=1))
    if not norms.all():
        raise InputError(f"row {int(np.argmin(norms))} of the noises is all zero: there is no noise in it")
    spectra = np.fft.rfft(values / norms[:, None], axis=1)
    strongest, tried = 0.0, 0
    correlation, pair, shift = 0.0, (0, 0), 0
    for one, other in itertools.combinations_with_replacement(range(rows), 2):
        # Circular cross-correlation: at s, the sum over x of one[x]·other[x + s].
        likeness = np.fft.irfft(spectra[one].conj() * spectra[other], d)
        strength = np.abs(likeness) * math.sqrt(d)
        if one == other:
            strength = strength[: d // 2 + 1]  # the other half mirrors it
            strength[0] = 0.0  # a row is like itself
            if d % 2 == 0:
                strength[-1] /= math.sqrt(2)  # half round, every product counts twice
        tried += strength.size
        at = int(np.argmax(strength))
        if strength[at] > strongest:
            strongest, correlation, pair, shift = float(strength[at]), float(likeness[at]), (one, other), at
    p_value = min(1.0, 2 * tried * float(stats.norm.sf(strongest)))
    return ReuseCheck(p_value, pair, shift, correlation)


@dataclass(frozen=True)
class NormCheck:
    """The customers whose contribution passes the bound.

    Args:
        largest: the greatest norm. bound: what is allowed. over: the rows above it.
    """

    largest: float
    bound: float
    over: tuple[int, ...]


def norm_check(contributions: Reals, bound: float, *, slack: float = 1e-6) -> NormCheck:
    """Compare each customer's contribution with its L2 bound: no statistics, one case is enough.

    A contribution is measured from outside as the difference of two sums without noise, with a customer and all its
    rows and without: so clipping by rows shows as a norm of up to the number of rows.

    Args:
        contributions: shape (k, d). bound: > 0. slack: relative, for the arithmetic clipping is done in (float32: 1e-6).
    """
    values = _finite(contributions, "contributions")
    if values.ndim != 2 or values.shape[0] < 1 or not 0 < bound < math.inf or not 0 <= slack < 1:
        raise InputError("a check of norms needs one row a customer and a positive bound")
    norms = np.sqrt((values**2).sum(axis=1))
    over = np.flatnonzero(norms > bound * (1 + slack))
    return NormCheck(float(norms.max()), bound, tuple(int(i) for i in over))


def _finite(values: Reals, name: str) -> npt.NDArray[np.float64]:
    numbers = np.asarray(values, np.float64)
    if not np.isfinite(numbers).all():
        raise InputError(f"the {name} of an audit must be finite numbers; one is not")
    return numbers


def _probabilities(delta: float, confidence: float) -> None:
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise InputError(f"0 ≤ delta < 1 and 0 < confidence < 1 are needed, not {delta} and {confidence}")
