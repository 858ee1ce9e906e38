"""What a study costs a customer: in all, as nodes reckon it anew, and line by line, for whoever writes one."""

from __future__ import annotations

from dataclasses import dataclass

from ..compliance.treaty import Treaty
from ..privacy.accountant import PLD
from .rounds import Task
from .study import AnyStudy, shape_of

WHAT: dict[Task, str] = {
    "statistics": "scales of features, counts of labels",
    "curvature": "second moments of the inputs",
    "train": "clipped gradients",
    "validate": "loss of held-out customers, to stop early",
    "evaluate": "scores by label: AUC and the rest",
    "count": "customers by cell, and what they add up to",
}


def price(study: AnyStudy, treaty: Treaty, *, survivors: dict[int, int] | None = None) -> float:
    """ε per customer of the whole study at its δ.

    Args:
        survivors: round → how many silos' vectors were summed, of the rounds there were. Without it: every
            round of the study, over the threshold of silos, which is the most it can cost.
    """
    if survivors is None:
        survivors = dict.fromkeys(range(1, study.rounds + 1), treaty.threshold)
    accountant = PLD()
    for number, present in survivors.items():
        accountant.compose(study.round(number, treaty).cost(present, treaty))
    return accountant.epsilon(study.privacy.delta)


@dataclass(frozen=True)
class Line:
    """One kind of sum of a study.

    `share` is its part of the whole mu²; `epsilon` what its sums alone would cost, so that the lines add up to
    more than the whole. `noise` is the standard deviation of the sum's noise over `silos`, as a multiple of
    the most one customer adds in L2.
    """

    task: Task
    what: str
    sums: int
    numbers: int
    share: float
    epsilon: float
    noise: float


def lines(study: AnyStudy, treaty: Treaty, silos: int | None = None) -> list[Line]:
    """The lines of a study in the order its sums are taken.

    Args:
        silos: how many answer every time; by default the threshold, which costs most.
    """
    present = treaty.threshold if silos is None else silos
    tasks = list(dict.fromkeys(study.tasks))
    spent: dict[Task, PLD] = {}
    parts: dict[Task, float] = {}
    for task in tasks:
        plan = study.round(study.tasks.index(task) + 1, treaty)
        event, count = plan.cost(present, treaty), study.tasks.count(task)
        spent[task] = PLD()
        spent[task].compose(event, count)
        parts[task] = count * event.mu**2
    whole = sum(parts.values())
    found = []
    for task in tasks:
        plan, shape = study.round(study.tasks.index(task) + 1, treaty), shape_of(study, task)
        found.append(
            Line(
                task,
                WHAT[task],
                study.tasks.count(task),
                plan.dimension,
                parts[task] / whole,
                spent[task].epsilon(study.privacy.delta),
                plan.mode.spread(present) * plan.sigma / 2.0**plan.scale_bits / shape.bound,
            )
        )
    return found
