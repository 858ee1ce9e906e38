"""The runs: a study rehearsed with canaries among its customers, and what an auditor makes of what it hears.

The auditor knows all real customers' rows and the noise of the c colluding silos; what is left of every round's
sum is canaries and honest noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from ...compliance.treaty import Treaty
from ...federation.modes import Sampler
from ...federation.rounds import RoundPlan
from ...federation.study import Study
from ...federation.tasks import train
from ..features import SIDES, Raw, Side
from ..rehearsal import Silo, rehearse
from .canaries import Canaries, Heard, WatchedSilo, few, most
from .noises import Noises

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
CROWD = 300
"""Customers of each silo in every run but the first, which has all: the auditor takes them out of the sum anyway."""
SERVER = "the server"


@dataclass(frozen=True)
class Guesses:
    """What was made of each canary, shape (canaries,).

    `scores` are in standard deviations of the noise there should be, `included` says which canaries were in, and
    `mu` is by how many such deviations one that was in should show.
    """

    scores: Floats
    included: npt.NDArray[np.bool_]
    mu: Floats

    @classmethod
    def joined(cls, runs: Sequence[Self]) -> Self:
        """Those of several runs, whose canaries are independent."""
        return cls(
            np.concatenate([run.scores for run in runs]),
            np.concatenate([run.included for run in runs]),
            np.concatenate([run.mu for run in runs]),
        )


@dataclass
class Trial:
    """A study, silos whose data this process holds, and the noises of all runs so far."""

    study: Study
    treaty: Treaty
    silos: Mapping[str, Silo]
    sampler: Sampler
    noises: Noises = field(init=False)

    def __post_init__(self) -> None:
        self.noises = Noises(_shares(self.study, self.treaty))

    def run(self, canaries: int, note: Callable[[int, int], None]) -> list[Guesses]:
        """As many runs as it takes for so many canaries; `note` is told (runs done, runs in all)."""
        per_run = min(most(self.study), canaries)
        runs = -(-canaries // per_run)
        sides = {SIDES[task] for task in self.study.tasks}
        everybody = {name: {side: s.dataset(side) for side in sides} for name, s in self.silos.items()}
        crowd = {name: {side: few(d, CROWD) for side, d in data.items()} for name, data in everybody.items()}
        found = []
        for number in range(runs):
            note(number, runs)
            found.append(self._play(crowd if number else everybody, per_run))
        note(runs, runs)
        return found

    def _play(self, data: Mapping[str, Mapping[Side, Raw]], count: int) -> Guesses:
        """One run with so many canaries."""
        honest = [p.name for p in self.treaty.parties][self.treaty.colluders :]
        canaries = Canaries.toss(self.study, self.treaty, honest, count)
        watched = {n: WatchedSilo.of(silo, n, canaries, data[n]) for n, silo in self.silos.items()}
        estimates, precision = np.zeros(count), np.zeros(count)
        shares: dict[tuple[int, str], Floats] = {}

        def listen(plan: RoundPlan, state: train.State, total: Integers) -> None:
            heard = {name: silo.heard[plan.round] for name, silo in watched.items()}
            shares.update(_noise_in(plan, heard, total))
            for left, moves, variance in _views(plan, self.treaty, canaries, heard, total):
                speaking = moves.any(axis=1)
                inverse = np.linalg.inv(moves[speaking] @ moves[speaking].T)
                spread = np.diag(inverse) * variance
                estimates[speaking] += (inverse @ (moves[speaking] @ left)) / spread
                precision[speaking] += 1 / spread

        rehearse(self.study, self.treaty, watched, sampler=self.sampler, hook=listen)
        self.noises.add(shares)
        mu = np.sqrt(precision)
        return Guesses(estimates / mu, canaries.included, mu)


def _shares(study: Study, treaty: Treaty) -> dict[tuple[int, str], int]:
    """Every noise a run may have: (round, who adds it) -> coordinates."""
    found: dict[tuple[int, str], int] = {}
    for number in range(1, study.rounds + 1):
        plan = study.round(number, treaty)
        names = [p.name for p in treaty.parties] if plan.mode.silo_sigma(plan.sigma) else [SERVER]
        found |= {(number, name): plan.dimension for name in names}
    return found


def _noise_in(plan: RoundPlan, heard: Mapping[str, Heard], total: Integers) -> dict[tuple[int, str], Floats]:
    """The noises of a round in units of the σ they should have: (round, who added it) -> shape (d,)."""
    if plan.mode.silo_sigma(plan.sigma):
        return {(plan.round, name): h.noise / plan.sigma for name, h in heard.items()}
    sent = np.sum([h.summed + h.noise for h in heard.values()], axis=0)
    return {(plan.round, SERVER): (total - sent) / plan.sigma}


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
