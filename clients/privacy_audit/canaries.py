"""Made-up customers whose presence an auditor tries to tell from a study's noisy sums.

A canary lives in the space of contributions ("white box"): its rows go through the very code that clips,
rounds and adds the noise to a customer's. Each is there by the toss of a coin, in every round, at as many
partners as the treaty says a person may be a customer of. Its gradient and its products are asked for
`LOUD` times too long, so that a clip that does not clip is heard.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...compliance.treaty import Treaty
from ...errors import InputError
from ...federation.rounds import COUNT_SHARE, RoundPlan, Task
from ...federation.study import Study
from ...federation.tasks import train
from ...privacy.noise import Keystream
from ...privacy.secagg.codec import Whole
from ..features import Dataset
from ..rehearsal import Silo
from ..trainer import Sampler, Trainer

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
LOUD = 4.0
"""How many times longer than its bound a canary's row is asked to be, where the code is to clip it."""


def most(study: Study, treaty: Treaty) -> int:
    """How many canaries can be told apart in one run: as many as the shortest sum has directions."""
    return min(_width(study, study.round(number, treaty)) for number in range(1, study.rounds + 1))


def _width(study: Study, plan: RoundPlan) -> int:
    """The length of a customer's row before it is clipped: the constant behind a gradient is no direction."""
    return study.parameters if plan.task == "train" else plan.dimension


@dataclass(frozen=True)
class Canaries:
    """One run's canaries.

    Args:
        directions: task -> shape (canaries, length of a row), orthonormal rows.
        included: shape (canaries,), the coins.
        places: canary -> the silos it is a customer of.
        clip: of a gradient.
    """

    directions: dict[Task, Floats]
    included: npt.NDArray[np.bool_]
    places: tuple[tuple[str, ...], ...]
    clip: float

    @classmethod
    def toss(cls, study: Study, treaty: Treaty, honest: Sequence[str], count: int) -> Canaries:
        """Fresh canaries; coins, directions and places come from the operating system's randomness."""
        stream = Keystream()
        plans = {study.tasks[n - 1]: study.round(n, treaty) for n in range(study.rounds, 0, -1)}
        partners = min(treaty.overlap.max_partners_per_customer, len(honest))
        starts = [stream.below(len(honest)) for _ in range(count)]
        return cls(
            {task: _directions(count, _width(study, plan), task, stream) for task, plan in plans.items()},
            np.array([stream.below(2) == 1 for _ in range(count)], dtype=bool),
            tuple(tuple(honest[(s + i) % len(honest)] for i in range(partners)) for s in starts),
            study.training.clip,
        )

    def rows(self, plan: RoundPlan, silo: str) -> Floats:
        """What the included canaries of a silo ask to add, one row each, before any clipping."""
        here = [i for i, names in enumerate(self.places) if self.included[i] and silo in names]
        chosen = self.directions[plan.task][here]
        return chosen if plan.task == "evaluate" else LOUD * self._bound(plan) * chosen

    def expected(self, plan: RoundPlan) -> Floats:
        """What each canary moves the integer sum by, over all its silos, if the code is sound.

        Shape (canaries, dimension).
        """
        rows = self._bound(plan) * self.directions[plan.task]
        if plan.task == "train":
            rows = np.hstack([rows, np.full((len(rows), 1), self.clip * COUNT_SHARE)])
        return rows * 2.0**plan.scale_bits * np.array([[len(names)] for names in self.places])

    def _bound(self, plan: RoundPlan) -> float:
        if plan.task == "train":
            return self.clip
        return math.sqrt(plan.dimension) if plan.task == "curvature" else 1.0


def _directions(count: int, width: int, task: Task, stream: Keystream) -> Floats:
    if count > width:
        raise InputError(f"{count} canaries in a sum of {width} directions can't be told apart")
    if task == "evaluate":  # a customer falls in one cell
        cells = list(range(width))
        for i in range(count):
            j = i + stream.below(width - i)
            cells[i], cells[j] = cells[j], cells[i]
        chosen: Floats = np.eye(width)[cells[:count]]
        return chosen
    if task not in ("train", "curvature"):
        raise InputError(f"the audit has no canary for rounds of the task {task!r}")
    # Any full-rank matrix does: its rows, orthonormalised, span directions nobody chose.
    basis, _ = np.linalg.qr(stream.unit((width, count)) - 0.5)
    rows: Floats = basis.T
    return rows


class _Tape(Keystream):
    """A keystream that can hand out its dither a second time, so that one part of a sum is known exactly."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn = np.zeros(0)
        self._played = 0

    def rewind(self) -> None:
        self._played = 0

    def unit(self, shape: tuple[int, ...]) -> Floats:
        size = math.prod(shape)
        if (short := self._played + size - len(self._drawn)) > 0:
            self._drawn = np.append(self._drawn, super().unit((short,)))
        self._played += size
        return self._drawn[self._played - size : self._played].reshape(shape)


@dataclass
class Heard:
    """What the auditor knows of one contribution: the exact sum of the real customers' rows, and the noise."""

    known: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    summed: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    noise: Integers = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass
class WatchedSilo(Silo):
    """A silo with canaries among its customers, and an auditor at its side.

    Its trainer does what it does, of whatever class it is; canaries' rows come behind those of customers.
    """

    name: str
    canaries: Canaries
    heard: dict[int, Heard] = field(default_factory=dict)

    @classmethod
    def of(cls, silo: Silo, name: str, canaries: Canaries) -> WatchedSilo:
        return cls(silo.trainer, silo.cohort, name, canaries)

    def contribution(self, plan: RoundPlan, state: train.State, sampler: Sampler) -> Whole:
        heard = self.heard[plan.round] = Heard()
        dataset = self.dataset("test" if plan.task == "evaluate" else "train")
        kind = type(self.trainer)
        watching = type(f"Watched{kind.__name__}", (_Watching, kind), {})
        trainer = copy.copy(self.trainer)
        trainer.__class__ = watching
        trainer.__dict__ |= {"sampler": sampler, "silo": self.name, "canaries": self.canaries, "heard": heard}
        whole = trainer.contribution(plan, dataset, state.weights)
        heard.noise = whole.values.astype(np.int64) - heard.summed
        return whole


class _Watching(Trainer):
    """Put before a trainer's own class: appends the canaries' rows, and notes what became of the customers'."""

    silo: str
    canaries: Canaries
    heard: Heard

    def rows(self, plan: RoundPlan, dataset: Dataset, weights: Floats) -> Floats:
        self._customers = super().rows(plan, dataset, weights)
        return np.vstack([self._customers, self.canaries.rows(plan, self.silo)])

    def summed(self, plan: RoundPlan, rows: Floats, stream: Keystream) -> Integers:
        tape = _Tape()
        self.heard.summed = super().summed(plan, rows, tape)
        tape.rewind()
        self.heard.known = super().summed(plan, self._customers, tape)
        return self.heard.summed
