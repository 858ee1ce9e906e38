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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...compliance.treaty import Treaty
from ...errors import InputError
from ...federation.modes import Sampler
from ...federation.pricing import price
from ...federation.rounds import RoundPlan
from ...federation.study import Study
from ...federation.tasks import train
from ...privacy.accountant import ZCDP
from ...privacy.audit import gaussian_fit, one_run_lower_bound
from ...privacy.noise import discrete_gaussian
from ..features import SIDES, Raw, Side
from ..rehearsal import Silo, rehearse
from .canaries import Canaries, Heard, WatchedSilo, few, most
from .noises import Noises
from .sensitivity import sensitivity

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Verdict = Literal["holds", "refuted"]
ALARM = 1e-7
"""Each line is wrongly refuted with at most this probability; there are fewer than ten."""
CROWD = 300
"""Customers of each silo in every run but the first, which has all: the auditor takes them out of the sum anyway."""
SERVER = "the server"
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
    per_run = min(most(study), canaries)
    runs = -(-canaries // per_run)
    sides = {SIDES[task] for task in study.tasks}
    everybody = {name: {side: silo.dataset(side) for side in sides} for name, silo in silos.items()}
    crowd = {n: {side: few(d, CROWD) for side, d in data.items()} for n, data in everybody.items()}
    noises, games = Noises(_shares(study, treaty)), []
    for number in range(runs):  # 2
        note(number, runs)
        data = crowd if number else everybody
        games.append(_play(study, treaty, silos, data, per_run, sampler, noises))
    note(runs, runs)
    scores, included = np.concatenate([g[0] for g in games]), np.concatenate([g[1] for g in games])
    visible = float(np.mean(np.concatenate([g[2] for g in games])))
    # What guessing proves can't be surer than 2mδ: the verdict is on the claim at a δ that leaves room for it.
    strict = min(delta, ALARM / (100 * len(scores)))
    epsilon, strict_epsilon = (_price(study, treaty, d) for d in (delta, strict))
    plans = [study.round(number, treaty) for number in range(1, study.rounds + 1)]
    claimed = math.sqrt(2 * ZCDP([plan.cost(len(treaty.parties), treaty) for plan in plans]).rho)
    shown = one_run_lower_bound(scores, included, delta=delta, confidence=CONFIDENCE)
    proven = one_run_lower_bound(scores, included, delta=strict, confidence=1 - ALARM)
    fit = gaussian_fit(scores[included], scores[~included], confidence=CONFIDENCE)
    sure = gaussian_fit(scores[included], scores[~included], confidence=1 - ALARM)
    lines = [
        _line(  # 3
            "one-run audit",
            f"ε ≤ {epsilon:.3f} at δ = {delta:g}, {strict_epsilon:.3f} at {strict:.0e}",
            f"ε ≥ {shown:.3f} at 95 %, {proven:.3f} beyond doubt",
            proven <= strict_epsilon,
        ),
        # Against μ = √2ρ too: what the plans themselves say, larger by no accountant's slack.
        _line(
            "Gaussian fit",
            f"μ ≤ {claimed:.3f}, ε ≤ {epsilon:.3f}",
            f"μ = {fit.mu:.3f} ± {fit.standard_error:.3f}, ε = {fit.epsilon(delta):.3f}",
            sure.lower <= claimed and sure.epsilon_bounds(delta)[0] <= epsilon,
        ),
        # An audit that does not see its own canaries would find everything in order.
        _line(
            "the audit's own sight",
            f"canaries show as μ ≥ {0.9 * visible:.3f}",
            f"μ = {fit.mu:.3f} ± {fit.standard_error:.3f}, {len(scores)} canaries",
            sure.upper >= 0.9 * visible,
        ),
        *_noise(noises),  # 4
        *(
            _line(
                f"sensitivity, {m.task}",
                "one customer moves the sum by at most 1 × the bound",
                f"{m.ratio:.4f} × at most, by {m.customer}; {m.tried} tried",
                m.ratio <= 1 + 1e-9,
            )
            for m in moved
        ),
    ]
    return Report(
        study=study.title,
        epsilon=epsilon,
        delta=delta,
        steinke=shown,
        fitted=fit.epsilon_bounds(delta)[0],
        mu=fit.mu,
        mu_error=fit.standard_error,
        mu_claimed=claimed,
        mu_visible=visible,
        detects=_detects(claimed, len(scores)),
        canaries=len(scores),
        runs=runs,
        colluders=treaty.colluders,
        seconds=time.monotonic() - started,
        lines=tuple(lines),
    )


def _price(study: Study, treaty: Treaty, delta: float) -> float:
    """What the study says it costs at `delta` if nobody drops out."""
    there = study.model_copy(update={"privacy": study.privacy.model_copy(update={"delta": delta})})
    everybody = dict.fromkeys(range(1, study.rounds + 1), len(treaty.parties))
    return price(there, treaty, survivors=everybody)


def _shares(study: Study, treaty: Treaty) -> dict[tuple[int, str], int]:
    """Every noise a run may have: (round, who adds it) -> coordinates."""
    found: dict[tuple[int, str], int] = {}
    for number in range(1, study.rounds + 1):
        plan = study.round(number, treaty)
        names = [p.name for p in treaty.parties] if plan.mode.silo_sigma(plan.sigma) else [SERVER]
        found |= {(number, name): plan.dimension for name in names}
    return found


def _play(
    study: Study,
    treaty: Treaty,
    silos: Mapping[str, Silo],
    data: Mapping[str, Mapping[Side, Raw]],
    count: int,
    sampler: Sampler,
    noises: Noises,
) -> tuple[Floats, npt.NDArray[np.bool_], Floats]:
    """One run: the canaries' scores (in standard deviations of the noise there should be), coins, and their μ."""
    names = [p.name for p in treaty.parties]
    honest = names[treaty.colluders :]
    canaries = Canaries.toss(study, treaty, honest, count)
    watched = {name: WatchedSilo.of(silo, name, canaries, data[name]) for name, silo in silos.items()}
    estimates, precision = np.zeros(count), np.zeros(count)
    shares: dict[tuple[int, str], Floats] = {}

    def listen(plan: RoundPlan, state: train.State, total: Integers) -> None:
        heard = {name: silo.heard[plan.round] for name, silo in watched.items()}
        if plan.mode.silo_sigma(plan.sigma):
            shares.update({(plan.round, name): h.noise / plan.sigma for name, h in heard.items()})
        else:
            sent = np.sum([h.summed + h.noise for h in heard.values()], axis=0)
            shares[(plan.round, SERVER)] = (total - sent) / plan.sigma
        for left, moves, variance in _views(plan, treaty, canaries, heard, total):
            speaking = moves.any(axis=1)
            inverse = np.linalg.inv(moves[speaking] @ moves[speaking].T)
            spread = np.diag(inverse) * variance
            estimates[speaking] += (inverse @ (moves[speaking] @ left)) / spread
            precision[speaking] += 1 / spread

    rehearse(study, treaty, watched, sampler=sampler, hook=listen)
    noises.add(shares)
    mu = np.sqrt(precision)
    return estimates / mu, canaries.included, mu


def _views(
    plan: RoundPlan, treaty: Treaty, canaries: Canaries, heard: Mapping[str, Heard], total: Integers
) -> list[tuple[Integers, Floats, float]]:
    """What the mode's adversary is left with of a round: (canaries and noise, what a canary moves it by, σ²).

    Where noises protect together it is the sum, less the colluders' noise; where each protects alone, every
    honest silo's vector by itself; where the server adds it, what the server shows.
    """
    names = [p.name for p in treaty.parties]
    honest, colluding = names[treaty.colluders :], names[: treaty.colluders]
    together = plan.mode.shares(len(names), treaty)
    if plan.mode.silo_sigma(plan.sigma) and together == 1:  # at most n − 2 collude, so this is no sum's
        return [
            (
                heard[name].summed + heard[name].noise - heard[name].known,
                canaries.moves(plan, [name]),
                float(plan.sigma) ** 2,
            )
            for name in honest
        ]
    left = total - sum(h.known for h in heard.values()) - sum(heard[name].noise for name in colluding)
    return [(left, canaries.moves(plan, honest), together * float(plan.sigma) ** 2)]


def _line(name: str, claim: str, found: str, holds: bool) -> Line:
    return Line(name, claim, found, "holds" if holds else "refuted")


def _noise(noises: Noises) -> list[Line]:
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
