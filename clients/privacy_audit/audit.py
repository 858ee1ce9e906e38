"""The audit: rehearse, guess, measure, and say for each claim whether it holds.

1. Sensitivity: one customer, real or made up, moves a silo's sum by no more than the price assumes.
2. Runs: the study is rehearsed with canaries until there were enough of them. In each, the auditor knows
   all real customers' rows and the noise of the c colluding silos; what is left of every round's sum is
   canaries and honest noise. A canary's score is its least-squares estimate from each round ("is it in?",
   other canaries' directions taken out), weighted by inverse variance over the rounds.
3. The claim: Steinke, Nasr and Jagielski's lower bound on ε, and the fit of Gaussian DP to the scores.
4. The noise: its size in every round and at every silo, and that none came twice.

Canaries of different runs are independent, so all runs count as one audit of as many canaries.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal, Self

import numpy as np

from ...compliance.treaty import Treaty
from ...errors import InputError
from ...federation.modes import Sampler
from ...federation.pricing import price
from ...federation.study import Study
from ...privacy.accountant import ZCDP
from ...privacy.audit import GaussianFit, gaussian_fit, one_run_lower_bound
from ...privacy.noise import discrete_gaussian
from ..rehearsal import Silo
from .noises import Noises
from .runs import Guesses, Trial
from .sensitivity import Moved, sensitivity

Verdict = Literal["holds", "refuted"]
ALARM = 1e-7
"""Each line is wrongly refuted with at most this probability; there are fewer than ten."""
CONFIDENCE = 0.95
"""Of the bounds that are shown; a verdict wants more (`ALARM`)."""


@dataclass(frozen=True)
class Line:
    """One claim, what was found, and the verdict."""

    name: str
    claim: str
    found: str
    verdict: Verdict


@dataclass(frozen=True)
class Report:
    """What an audit found.

    `epsilon` is the claim at `delta`; `steinke` and `fitted` are lower bounds at 95 %; `mu` ± `mu_error` is
    the fit, `mu_claimed` what the plans say, `mu_visible` the largest that these canaries can show of it.
    `detects` is how many times too large μ must be to be refuted with probability 95 %.
    """

    study: str
    epsilon: float
    delta: float
    steinke: float
    fitted: float
    mu: float
    mu_error: float
    mu_claimed: float
    mu_visible: float
    detects: float
    canaries: int
    runs: int
    colluders: int
    seconds: float
    lines: tuple[Line, ...]

    @property
    def holds(self) -> bool:
        return all(line.verdict == "holds" for line in self.lines)

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {"report": "privacy audit", "holds": self.holds, **asdict(self)}


def audit(
    study: Study,
    treaty: Treaty,
    silos: Mapping[str, Silo],
    *,
    canaries: int = 5000,
    delta: float | None = None,
    sampler: Sampler = discrete_gaussian,
    note: Callable[[int, int], None] = lambda done, of: None,
) -> Report:
    """Audit a study on silos whose data this process holds.

    Args:
        canaries: how many in all; each run has as many as its shortest sum has directions.
        delta: at which ε is claimed and bounded; the study's own by default.
        sampler: of the noise shares. Only a test replaces it.
        note: told (runs done, runs in all).

    Raises:
        InputError: too few canaries for any statement, or a δ outside (0, 1).
        VerificationError: never; a claim that does not hold is a line of the report.
    """
    if canaries < 100:
        raise InputError(f"{canaries} canaries prove nothing", remedy="ask for 100 or more")
    delta = study.privacy.delta if delta is None else delta
    if not 0 < delta < 1:
        raise InputError(f"delta must lie in (0, 1), not {delta}")
    started = time.monotonic()
    moved = sensitivity(study, treaty, silos)  # 1
    trial = Trial(study, treaty, silos, sampler)
    runs = trial.run(canaries, note)  # 2
    guesses = Guesses.joined(runs)
    claim = _Claim.of(study, treaty, delta, len(guesses.scores))
    found = _Found.of(guesses, claim)  # 3
    lines = [*_claim_lines(claim, found), *_noise_lines(trial.noises), *_sensitivity_lines(moved)]  # 4
    return Report(
        study=study.title,
        epsilon=claim.epsilon,
        delta=delta,
        steinke=found.shown,
        fitted=found.fit.epsilon_bounds(delta)[0],
        mu=found.fit.mu,
        mu_error=found.fit.standard_error,
        mu_claimed=claim.mu,
        mu_visible=found.visible,
        detects=_detects(claim.mu, found.canaries),
        canaries=found.canaries,
        runs=len(runs),
        colluders=treaty.colluders,
        seconds=time.monotonic() - started,
        lines=tuple(lines),
    )


@dataclass(frozen=True)
class _Claim:
    """What a study says it costs if nobody drops out: ε at δ, ε at a stricter δ, and μ."""

    delta: float
    epsilon: float
    strict_delta: float
    strict_epsilon: float
    mu: float

    @classmethod
    def of(cls, study: Study, treaty: Treaty, delta: float, canaries: int) -> Self:
        # What guessing proves can't be surer than 2mδ: the verdict is on the claim at a δ that leaves room for it.
        strict = min(delta, ALARM / (100 * canaries))
        plans = [study.round(number, treaty) for number in range(1, study.rounds + 1)]
        rho = ZCDP([plan.cost(len(treaty.parties), treaty) for plan in plans]).rho
        epsilon, strict_epsilon = (_price(study, treaty, d) for d in (delta, strict))
        return cls(delta, epsilon, strict, strict_epsilon, math.sqrt(2 * rho))


@dataclass(frozen=True)
class _Found:
    """What the scores say of the claim: bounds that are shown, at 95 %, and bounds for a verdict."""

    canaries: int
    visible: float
    shown: float
    proven: float
    fit: GaussianFit
    sure: GaussianFit

    @classmethod
    def of(cls, guesses: Guesses, claim: _Claim) -> Self:
        scores, included = guesses.scores, guesses.included
        inside, outside = scores[included], scores[~included]
        return cls(
            canaries=len(scores),
            visible=float(np.mean(guesses.mu)),
            shown=one_run_lower_bound(scores, included, delta=claim.delta, confidence=CONFIDENCE),
            proven=one_run_lower_bound(scores, included, delta=claim.strict_delta, confidence=1 - ALARM),
            fit=gaussian_fit(inside, outside, confidence=CONFIDENCE),
            sure=gaussian_fit(inside, outside, confidence=1 - ALARM),
        )


def _price(study: Study, treaty: Treaty, delta: float) -> float:
    """What the study says it costs at `delta` if nobody drops out."""
    there = study.model_copy(update={"privacy": study.privacy.model_copy(update={"delta": delta})})
    everybody = dict.fromkeys(range(1, study.rounds + 1), len(treaty.parties))
    return price(there, treaty, survivors=everybody)


def _line(name: str, claim: str, found: str, holds: bool) -> Line:
    return Line(name, claim, found, "holds" if holds else "refuted")


def _claim_lines(claim: _Claim, found: _Found) -> list[Line]:
    fit, sure, delta = found.fit, found.sure, claim.delta
    return [
        _line(
            "one-run audit",
            f"ε ≤ {claim.epsilon:.3f} at δ = {delta:g}, {claim.strict_epsilon:.3f} at {claim.strict_delta:.0e}",
            f"ε ≥ {found.shown:.3f} at 95 %, {found.proven:.3f} beyond doubt",
            found.proven <= claim.strict_epsilon,
        ),
        # Against μ = √2ρ too: what the plans themselves say, larger by no accountant's slack.
        _line(
            "Gaussian fit",
            f"μ ≤ {claim.mu:.3f}, ε ≤ {claim.epsilon:.3f}",
            f"μ = {fit.mu:.3f} ± {fit.standard_error:.3f}, ε = {fit.epsilon(delta):.3f}",
            sure.lower <= claim.mu and sure.epsilon_bounds(delta)[0] <= claim.epsilon,
        ),
        # An audit that does not see its own canaries would find everything in order.
        _line(
            "the audit's own sight",
            f"canaries show as μ ≥ {0.9 * found.visible:.3f}",
            f"μ = {fit.mu:.3f} ± {fit.standard_error:.3f}, {found.canaries} canaries",
            sure.upper >= 0.9 * found.visible,
        ),
    ]


def _sensitivity_lines(moved: Iterable[Moved]) -> list[Line]:
    return [
        _line(
            f"sensitivity, {m.task}",
            "one customer moves the sum by at most 1 × the bound",
            f"{m.ratio:.4f} × at most, by {m.customer}; {m.tried} tried",
            m.ratio <= 1 + 1e-9,
        )
        for m in moved
    ]


def _noise_lines(noises: Noises) -> list[Line]:
    scale, reuse = noises.scale(), noises.reuse()
    (number, who), ratio, off = min(scale, key=lambda s: s[2])
    off = min(1.0, off * len(scale))  # Bonferroni's: the worst of so many
    size = _line(
        "size of the noise",
        "every share has its σ in every round",
        f"{ratio:.3f} σ at worst (round {number}, {who}; p = {off:.2g} over {len(scale)} shares)",
        off >= ALARM,
    )
    what, correlation, twice = min(reuse, key=lambda r: r[2], default=("no noise at all", 0.0, 1.0))
    twice = min(1.0, twice * len(reuse))
    fresh = _line(
        "fresh noise",
        "no share is like another's, another round's or another run's",
        f"correlation {correlation:+.3f} at worst ({what}; p = {twice:.2g} over {len(reuse)} looks)",
        twice >= ALARM,
    )
    return [size, fresh]


def _detects(claimed: float, canaries: int) -> float:
    """How many times the claimed μ would be refuted by the fit with probability 95 %: normal approximation."""
    sure, mostly = -NormalDist().inv_cdf(ALARM), NormalDist().inv_cdf(0.95)
    for factor in np.geomspace(1.01, 100, 400):
        error = math.sqrt(4 / canaries + (factor * claimed) ** 2 / (2 * canaries))
        if factor * claimed - (sure + mostly) * error > claimed:
            return float(factor)
    return math.inf
