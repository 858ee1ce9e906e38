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

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...compliance.treaty import Treaty
from ...errors import InputError
from ...federation.rounds import RoundPlan
from ...federation.study import Study, price
from ...federation.tasks import train
from ...privacy.noise import discrete_gaussian
from ..rehearsal import Silo, rehearse
from ..trainer import Sampler
from .canaries import Canaries, WatchedSilo, most
from .noises import Noises
from .sensitivity import sensitivity
from .statistics import Fit, best_steinke_bound, gaussian_epsilon, gaussian_fit, smallest

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
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
    canaries: int = 1000,
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
    if canaries < 20:
        raise InputError(f"{canaries} canaries prove nothing", remedy="ask for 100 or more")
    delta = study.privacy.delta if delta is None else delta
    if not 0 < delta < 1:
        raise InputError(f"delta must lie in (0, 1), not {delta}")
    started = time.monotonic()
    moved = sensitivity(study, treaty, silos)  # 1
    per_run = min(most(study, treaty), canaries)
    runs = -(-canaries // per_run)
    noises, games = Noises(), []
    for number in range(runs):  # 2
        note(number, runs)
        games.append(_play(study, treaty, silos, per_run, sampler, noises))
    note(runs, runs)
    scores, included = np.concatenate([g[0] for g in games]), np.concatenate([g[1] for g in games])
    visible = float(np.sqrt(np.mean([g[2] for g in games])))
    present = dict.fromkeys(range(1, study.rounds + 1), len(treaty.parties))
    at_delta = study.model_copy(update={"privacy": study.privacy.model_copy(update={"delta": delta})})
    epsilon = price(at_delta, treaty, survivors=present)
    events = [study.round(n, treaty).event(present[n] - treaty.colluders) for n in present]
    claimed = float(np.sqrt(2 * sum(e.rho for e in events)))
    fit = gaussian_fit(scores[included], scores[~included])
    shown = best_steinke_bound(scores, included, delta=delta, confidence=CONFIDENCE)
    lines = [
        _steinke(scores, included, epsilon, delta, shown),  # 3
        _fitted(fit, epsilon, delta, claimed),
        _seen(fit, visible, len(scores)),
        *_noise(noises),  # 4
        *(
            Line(
                f"sensitivity, {m.task}",
                "one customer moves the sum by at most 1 × the bound",
                f"{m.ratio:.4f} × at most, by {m.customer}; {m.tried} tried",
                "holds" if m.ratio <= 1 + 1e-9 else "refuted",
            )
            for m in moved
        ),
    ]
    return Report(
        study=study.title,
        epsilon=epsilon,
        delta=delta,
        steinke=shown[0],
        fitted=gaussian_epsilon(fit.lower(1 - CONFIDENCE), delta),
        mu=fit.mu,
        mu_error=fit.error,
        mu_claimed=claimed,
        mu_visible=visible,
        detects=_detects(claimed, len(scores)),
        canaries=len(scores),
        runs=runs,
        colluders=treaty.colluders,
        seconds=time.monotonic() - started,
        lines=tuple(lines),
    )


def _play(
    study: Study, treaty: Treaty, silos: Mapping[str, Silo], count: int, sampler: Sampler, noises: Noises
) -> tuple[Floats, npt.NDArray[np.bool_], float]:
    """One run: the canaries' scores (in standard deviations of the noise there should be), coins, and μ²."""
    names = [p.name for p in treaty.parties]
    colluding, honest = names[: treaty.colluders], names[treaty.colluders :]
    canaries = Canaries.toss(study, treaty, honest, count)
    watched = {name: WatchedSilo.of(silo, name, canaries) for name, silo in silos.items()}
    estimates, precision = np.zeros(count), np.zeros(count)

    def listen(plan: RoundPlan, state: train.State, total: Integers) -> None:
        heard = {name: silo.heard[plan.round] for name, silo in watched.items()}
        left = total - sum(h.known for h in heard.values()) - sum(heard[name].noise for name in colluding)
        moves = canaries.expected(plan)
        inverse = np.linalg.inv(moves @ moves.T)
        variance = np.diag(inverse) * plan.sigma**2 * len(honest)
        estimates[:] += (inverse @ (moves @ left)) / variance
        precision[:] += 1 / variance

    rehearse(study, treaty, watched, sampler=sampler, hook=listen)
    noises.add(
        {
            (number, name): heard.noise / study.round(number, treaty).sigma
            for name, silo in watched.items()
            for number, heard in silo.heard.items()
        }
    )
    return estimates / np.sqrt(precision), canaries.included, float(precision.mean())


def _steinke(
    scores: Floats,
    included: npt.NDArray[np.bool_],
    epsilon: float,
    delta: float,
    shown: tuple[float, int, int],
) -> Line:
    proven, _, _ = best_steinke_bound(scores, included, delta=delta, confidence=1 - ALARM)
    return Line(
        "one-run audit",
        f"ε ≤ {epsilon:.3f} at δ = {delta:g}",
        f"ε ≥ {shown[0]:.3f} at 95 % ({shown[1]} of {shown[2]} guesses right)",
        "holds" if proven <= epsilon else "refuted",
    )


def _fitted(fit: Fit, epsilon: float, delta: float, claimed: float) -> Line:
    """The fit against μ = √2ρ: the plans' own, and by no accountant's slack larger."""
    proven = fit.lower(ALARM)
    point = gaussian_epsilon(fit.mu, delta)
    sound = proven <= claimed and gaussian_epsilon(proven, delta) <= epsilon
    return Line(
        "Gaussian fit",
        f"μ ≤ {claimed:.3f}, ε ≤ {epsilon:.3f}",
        f"μ = {fit.mu:.3f} ± {fit.error:.3f}, ε = {point:.3f}",
        "holds" if sound else "refuted",
    )


def _seen(fit: Fit, visible: float, canaries: int) -> Line:
    """An audit that does not see its own canaries would find everything in order."""
    blind = fit.upper(ALARM) < 0.9 * visible
    return Line(
        "the audit's own sight",
        f"canaries show as μ ≥ {0.9 * visible:.3f}",
        f"μ = {fit.mu:.3f} ± {fit.error:.3f}, {canaries} canaries",
        "refuted" if blind else "holds",
    )


def _noise(noises: Noises) -> list[Line]:
    scale, reuse = noises.scale(), noises.reuse()
    (number, silo), ratio, _ = min(scale, key=lambda s: s[2])
    what, correlation, _ = min(reuse, key=lambda r: r[2])
    off, twice = smallest([p for *_, p in scale]), smallest([p for *_, p in reuse])
    return [
        Line(
            "size of the noise",
            "every silo's share has its σ in every round",
            f"{ratio:.3f} σ at worst (round {number}, {silo}; p = {off:.2g} over {len(scale)} shares)",
            "holds" if off >= ALARM else "refuted",
        ),
        Line(
            "fresh noise",
            "no share is like another's, another round's or another run's",
            f"correlation {correlation:+.3f} at worst ({what}; p = {twice:.2g} over {len(reuse)} pairs)",
            "holds" if twice >= ALARM else "refuted",
        ),
    ]


def _detects(claimed: float, canaries: int) -> float:
    """How many times the claimed μ would be refuted by the fit with probability 95 %."""
    for factor in np.geomspace(1.01, 100, 400):
        fit = Fit(factor * claimed, float(np.sqrt(4 / canaries + (factor * claimed) ** 2 / (2 * canaries))))
        if fit.lower(ALARM) - fit._deviations(0.05) * fit.error > claimed:
            return float(factor)
    return float("inf")
