"""Made-up customers whose presence an auditor tries to tell from a study's noisy sums.

A canary lives in the space of contributions ("white box"): its rows go through the very code that clips,
rounds and adds the noise to a customer's. Each is there by the toss of a coin, in every round, at as many
partners as the treaty says a person may be a customer of. Its gradient and its products are asked for
`LOUD` times too long, so that a clip that does not clip is heard.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...compliance.treaty import Treaty
from ...errors import InputError
from ...federation.modes import Sampler
from ...federation.rounds import COUNT_SHARE, RoundPlan, Task
from ...federation.study import Study, shape_of
from ...federation.tasks import train
from ...privacy.noise import Keystream
from ...privacy.secagg.codec import Whole
from ..features import Raw, Side
from ..rehearsal import Silo
from ..trainer import Trainer, side_of

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
LOUD = 4.0
"""How many times longer than its bound a canary's row is asked to be, where the code is to clip it."""


def most(study: Study) -> int:
    """How many canaries can be told apart in one run: as many as the shortest sum has directions.

    The two numbers of a look do not count: canaries after the second keep silent there.
    """
    return min(_directions(study, task) for task in set(study.tasks) - {"validate"})


def _directions(study: Study, task: Task) -> int:
    """How many canaries can have a direction of their own in a round of this task."""
    if task == "train":
        return study.parameters  # the constant behind a gradient is no direction
    if task == "statistics":
        return study.scaling.cells if shape_of(study, task).dimension > 2 else 2
    if task in ("curvature", "validate", "evaluate"):
        return shape_of(study, task).dimension
    raise InputError(f"the audit has no canary for rounds of the task {task!r}")


@dataclass(frozen=True)
class Canaries:
    """One run's canaries.

    Args:
        asked: task -> shape (canaries, length of a row): what each adds if it is included, before clipping;
            zeros where it keeps silent. sound: the same, (canaries, dimension), as sound code clips it.
        included: shape (canaries,), the coins.
        places: canary -> the silos it is a customer of.
    """

    asked: dict[Task, Floats]
    sound: dict[Task, Floats]
    included: npt.NDArray[np.bool_]
    places: tuple[tuple[str, ...], ...]

    @classmethod
    def toss(cls, study: Study, treaty: Treaty, honest: Sequence[str], count: int) -> Canaries:
        """Fresh canaries; coins, directions and places come from the operating system's randomness."""
        stream = Keystream()
        partners = min(treaty.overlap.max_partners_per_customer, len(honest))
        starts = [stream.below(len(honest)) for _ in range(count)]
        rows = {task: _rows(study, task, count, stream) for task in dict.fromkeys(study.tasks)}
        return cls(
            {task: asked for task, (asked, _) in rows.items()},
            {task: sound for task, (_, sound) in rows.items()},
            np.array([stream.below(2) == 1 for _ in range(count)], dtype=bool),
            tuple(tuple(honest[(s + i) % len(honest)] for i in range(partners)) for s in starts),
        )

    def rows(self, plan: RoundPlan, silo: str) -> Floats:
        """What the included canaries of a silo ask to add, one row each, before any clipping."""
        asked = self.asked[plan.task]
        here = [i for i, names in enumerate(self.places) if self.included[i] and silo in names]
        return asked[[i for i in here if asked[i].any()]]

    def moves(self, plan: RoundPlan, silos: Sequence[str]) -> Floats:
        """What each canary moves the integer sum over `silos` by, if the code is sound: (canaries, dimension)."""
        times = np.array([[sum(name in silos for name in names)] for names in self.places])
        moved: Floats = self.sound[plan.task] * 2.0**plan.scale_bits * times
        return moved


def _rows(study: Study, task: Task, count: int, stream: Keystream) -> tuple[Floats, Floats]:
    """Rows as asked for and as sound code clips them, in directions that no canary shares with another."""
    speaking, shape = min(count, _directions(study, task)), shape_of(study, task)
    if task in ("statistics", "evaluate"):  # a customer falls in one cell of each histogram
        blocks = [2 * study.evaluation.bins]
        if task == "statistics":
            blocks = [study.scaling.cells] * ((shape.dimension - 2) // study.scaling.cells) + [2]
        chosen = np.hstack([_cells(speaking, width, stream) for width in blocks])
        rows = np.vstack([chosen, np.zeros((count - speaking, shape.dimension))])
        return rows, rows
    width = study.parameters if task == "train" else shape.dimension
    bound = study.clip if task == "train" else shape.bound
    # Any full-rank matrix does: its columns, orthonormalised, are directions nobody chose.
    basis, _ = np.linalg.qr(stream.unit((width, speaking)) - 0.5)
    sound = np.vstack([bound * basis.T, np.zeros((count - speaking, width))])
    if task != "train":
        return LOUD * sound, sound
    return LOUD * sound, np.hstack([sound, np.full((count, 1), study.clip * COUNT_SHARE)])


def _cells(count: int, width: int, stream: Keystream) -> Floats:
    """One cell of `width` for each canary, its own as long as there are enough; else any."""
    order = list(range(width))
    for i in range(width):
        j = i + stream.below(width - i)
        order[i], order[j] = order[j], order[i]
    at = order[:count] if count <= width else [stream.below(width) for _ in range(count)]
    cells: Floats = np.eye(width)[at]
    return cells


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

    Args:
        data: its customers, by side.
    """

    name: str
    canaries: Canaries
    data: Mapping[Side, Raw]
    heard: dict[int, Heard] = field(default_factory=dict)

    @classmethod
    def of(cls, silo: Silo, name: str, canaries: Canaries, data: Mapping[Side, Raw]) -> WatchedSilo:
        return cls(silo.trainer, silo.cohort, name, canaries, data)

    def dataset(self, side: Side) -> Raw:
        return self.data[side]

    def contribution(self, plan: RoundPlan, state: train.State, sampler: Sampler) -> Whole:
        heard = self.heard[plan.round] = Heard()
        kind = type(self.trainer)
        trainer = copy.copy(self.trainer)
        trainer.__class__ = type(f"Watched{kind.__name__}", (_Watching, kind), {})
        trainer.__dict__ |= {"sampler": sampler, "silo": self.name, "canaries": self.canaries, "heard": heard}
        whole = trainer.contribution(plan, self.dataset(side_of(plan)), state.sent)
        heard.noise = whole.values.astype(np.int64) - heard.summed
        return whole


def few(dataset: Raw, customers: int) -> Raw:
    """All rows of the first customers."""
    names = np.unique(dataset.customers)
    return (
        dataset if len(names) <= customers else some(dataset, np.isin(dataset.customers, names[:customers]))
    )


def some(dataset: Raw, chosen: npt.NDArray[np.bool_]) -> Raw:
    """The chosen rows of a data set."""
    return Raw(
        dataset.customers[chosen], dataset.values[chosen], dataset.codes[chosen], dataset.labels[chosen]
    )


class _Watching(Trainer):
    """Put before a trainer's own class: appends the canaries' rows, and notes what became of the customers'."""

    silo: str
    canaries: Canaries
    heard: Heard

    def exact(
        self, plan: RoundPlan, dataset: Raw, sent: Floats, stream: Keystream, *, more: Floats | None = None
    ) -> Integers:
        tape = _Tape()
        made_up = self.canaries.rows(plan, self.silo)
        self.heard.summed = super().exact(plan, dataset, sent, tape, more=made_up)
        tape.rewind()
        self.heard.known = super().exact(plan, dataset, sent, tape, more=more)
        return self.heard.summed
