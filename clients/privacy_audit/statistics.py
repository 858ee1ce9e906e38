"""What the scores and noises of an audit prove: lower bounds on ε, and p-values that hold for every sample size.

Tails are Chernoff bounds, not asymptotics: an alarm at level p is false with probability p at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ...errors import InputError

Floats = npt.NDArray[np.float64]
_LARGEST = 200.0  # no study's ε comes near


def steinke_lower_bound(
    right: int, guesses: int, canaries: int, *, delta: float, confidence: float = 0.95
) -> float:
    """The largest ε that so many right guesses refute, at this confidence; 0 if none.

    Steinke, Nasr and Jagielski 2023 (NeurIPS, "Privacy Auditing with One (1) Training Run"), Theorem 5.2:
    whatever is (ε, δ)-DP lets one guess right `right` times or more of `guesses`, abstaining on the rest
    of `canaries`, with probability at most β + 2mδα, where W ~ Binomial(guesses, e^ε/(1 + e^ε)),
    β = P(W ≥ right) and α = max_i P(right − i ≤ W < right)/i.
    """
    if not (0 <= right <= guesses <= canaries and 0 <= delta < 1 and 0 < confidence < 1):
        raise InputError("a bound needs 0 ≤ right ≤ guesses ≤ canaries, a δ and a confidence")
    level = 1 - confidence

    def refuted(epsilon: float) -> bool:
        return _guessing_p(right, guesses, canaries, epsilon, delta) <= level

    if not guesses or not refuted(0.0):
        return 0.0
    low, high = 0.0, _LARGEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _guessing_p(right: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    w = np.arange(guesses + 1)
    log_choose = np.array(
        [math.lgamma(guesses + 1) - math.lgamma(k + 1) - math.lgamma(guesses - k + 1) for k in w]
    )
    log_right, log_wrong = -math.log1p(math.exp(-epsilon)), -epsilon - math.log1p(math.exp(-epsilon))
    mass = np.exp(log_choose + w * log_right + (guesses - w) * log_wrong)
    below = np.cumsum(mass[:right][::-1])  # P(right − i ≤ W < right) for i = 1, 2, …
    alpha = float((below / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, float(mass[right:].sum()) + 2 * canaries * delta * alpha)


def best_steinke_bound(
    scores: Floats, included: npt.NDArray[np.bool_], *, delta: float, confidence: float = 0.95
) -> tuple[float, int, int]:
    """The best bound over how many of the highest and lowest scores are guessed: (ε, right, guesses).

    Args:
        scores: shape (canaries,), higher where a canary looks included. included: which were.

    The numbers of guesses are fixed beforehand, and the error is shared among them (union bound).
    """
    m, order = len(scores), np.argsort(scores)
    numbers = sorted({k for part in (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5) if (k := int(m * part)) > 0})
    best = (0.0, 0, 0)
    for k in numbers:
        right = int(included[order[-k:]].sum() + (~included[order[:k]]).sum())
        share = 1 - (1 - confidence) / len(numbers)
        best = max(best, (steinke_lower_bound(right, 2 * k, m, delta=delta, confidence=share), right, 2 * k))
    return best


@dataclass(frozen=True)
class Fit:
    """μ of Gaussian DP as two groups of scores show it, and its standard error."""

    mu: float
    error: float

    def lower(self, level: float) -> float:
        """What μ exceeds, but with probability `level`; never below 0."""
        return max(0.0, self.mu - self._deviations(level) * self.error)

    def upper(self, level: float) -> float:
        """What μ stays under, but with probability `level`."""
        return self.mu + self._deviations(level) * self.error

    @staticmethod
    def _deviations(level: float) -> float:
        return -NormalDist().inv_cdf(level)


def gaussian_fit(scores_in: Floats, scores_out: Floats) -> Fit:
    """μ̂ = difference of means ÷ pooled standard deviation, for scores that are Gaussian.

    Dong, Roth and Su 2022 (JRSS B, "Gaussian Differential Privacy"): telling N(0, 1) from N(μ, 1) is what
    μ-GDP means. The error is the delta method's: √(1/n₁ + 1/n₀ + μ̂²/2(n − 2)).
    """
    n1, n0 = len(scores_in), len(scores_out)
    if min(n1, n0) < 2:
        raise InputError("a fit needs two canaries or more on each side", remedy="ask for more canaries")
    squares = ((scores_in - scores_in.mean()) ** 2).sum() + ((scores_out - scores_out.mean()) ** 2).sum()
    spread = math.sqrt(float(squares) / (n1 + n0 - 2))
    gap = float(scores_in.mean() - scores_out.mean())
    mu = gap / spread if spread > 0 else math.copysign(math.inf, gap) if gap else 0.0
    return Fit(mu, math.sqrt(1 / n1 + 1 / n0 + mu**2 / (2 * (n1 + n0 - 2))) if math.isfinite(mu) else 0.0)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """ε at `delta` of μ-GDP, exactly (Balle and Wang 2018, ICML, Theorem 8)."""
    if mu <= 0:
        return 0.0

    def spent(epsilon: float) -> float:
        near, far = (epsilon / mu - mu / 2) / math.sqrt(2), (epsilon / mu + mu / 2) / math.sqrt(2)
        return (math.erfc(near) - math.exp(epsilon) * math.erfc(far)) / 2

    low, high = 0.0, _LARGEST
    if not math.isfinite(mu) or spent(high) > delta:
        return math.inf
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


def variance_p(squares: float, count: int) -> float:
    """Two-sided p-value of Σx² of `count` standard normals: (x e^{1−x})^{n/2} on either side, x = Σx²/n."""
    if count < 1:
        raise InputError("no noise was seen, so nothing can be said of it")
    x = squares / count
    return min(1.0, 2 * math.exp(count / 2 * (math.log(x) + 1 - x))) if x > 0 else 0.0


def products_p(total: float, count: int) -> float:
    """Two-sided p-value of Σ xᵢyᵢ of `count` pairs of independent standard normals.

    E e^{txy} = (1 − t²)^{−1/2}, and Chernoff with the best t.
    """
    s = abs(total)
    if s == 0 or count < 1:
        return 1.0
    t = 2 * s / (count + math.sqrt(count**2 + 4 * s**2))
    return min(1.0, 2 * math.exp(-t * s - count / 2 * math.log1p(-t * t)))


def smallest(p_values: Sequence[float]) -> float:
    """The p-value of the worst of several looks: Bonferroni's."""
    return min(1.0, min(p_values) * len(p_values)) if p_values else 1.0
