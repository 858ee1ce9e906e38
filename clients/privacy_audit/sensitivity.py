"""How far one customer moves a silo's integer sum: measured, and held against what the study's price assumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...compliance.treaty import Treaty
from ...errors import InputError
from ...federation import models
from ...federation.rounds import RoundPlan
from ...federation.study import Study
from ...privacy.noise import Keystream
from ..features import Dataset
from ..rehearsal import Silo
from ..trainer import Trainer

Floats = npt.NDArray[np.float64]
_COMPANY = 40  # customers that stay while one comes and goes
_SUSPECTS = 3  # of the silo's own customers, those with most rows, and those with the longest
_DITHERS = (0.0, 0.5, 1 - 2.0**-32)


@dataclass(frozen=True)
class Moved:
    """The worst that one customer did in the rounds of a task: `ratio` to the bound is to be at most 1."""

    task: str
    ratio: float
    customer: str
    tried: int


class _Constant(Keystream):
    """The same dither for everybody: the bound holds for every dither, and two sums differ by one customer only."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self._value = value

    def unit(self, shape: tuple[int, ...]) -> Floats:
        return np.full(shape, self._value)


def sensitivity(study: Study, treaty: Treaty, silos: Mapping[str, Silo]) -> list[Moved]:
    """The worst customer of each task, over all silos: the silo's own, and made-up ones with extreme rows.

    A customer is all rows that bear its name. The models tried are the first one and one of huge weights,
    whose gradients are as long as gradients get. A customer whom the code refuses has moved nothing.
    """
    plans = {study.tasks[n - 1]: study.round(n, treaty) for n in range(study.rounds, 0, -1)}
    start = models.initial(study.model, len(study.features))
    signs = np.where(np.arange(start.size) % 2, 1.0, -1.0)
    worst = {task: Moved(task, 0.0, "nobody", 0) for task in plans}
    for silo in silos.values():
        for task, plan in plans.items():
            dataset = silo.dataset("test" if task == "evaluate" else "train")
            bound = plan.sensitivity / treaty.overlap.max_partners_per_customer
            for weights in (start, start + 50.0 * signs):
                for name, crowd in _crowds(silo.trainer, plan, dataset, weights):
                    moved = _distance(silo.trainer, plan, crowd, name, weights)
                    so_far = worst[task]
                    worst[task] = (
                        Moved(task, moved / bound, name, so_far.tried + 1)
                        if moved / bound > so_far.ratio
                        else replace(so_far, tried=so_far.tried + 1)
                    )
    return list(worst.values())


def _crowds(
    trainer: Trainer, plan: RoundPlan, dataset: Dataset, weights: Floats
) -> Iterator[tuple[str, Dataset]]:
    """(customer to watch, a small data set with it in)."""
    names, counts = np.unique(dataset.customers, return_counts=True)
    if not len(names):
        return
    lengths = np.linalg.norm(trainer.rows(plan, dataset, weights), axis=1)
    longest = dataset.customers[np.argsort(-lengths, kind="stable")[:_SUSPECTS]]
    company = names[:_COMPANY]
    for name in dict.fromkeys([*names[np.argsort(-counts, kind="stable")[:_SUSPECTS]], *longest]):
        yield str(name), _take(dataset, np.isin(dataset.customers, [*company, name]))
    crowd = _take(dataset, np.isin(dataset.customers, company))
    width, rows = dataset.inputs.shape[1], int(counts.max())
    alternate = np.where(np.arange(width) % 2, 1.0, -1.0)
    for inputs in (np.ones(width), -np.ones(width), alternate, 1e6 * alternate, np.full(width, 1e300)):
        for label in (0, 1):
            name = f"a made-up one, inputs {inputs[:1].sum():g}…, label {label}"
            yield name, _joined(crowd, name, np.tile(inputs, (rows, 1)), np.full(rows, label))


def _distance(trainer: Trainer, plan: RoundPlan, crowd: Dataset, name: str, weights: Floats) -> float:
    """The L2 norm, integer units, of the sum with the customer less the sum without."""
    without = _take(crowd, crowd.customers != name)
    most = 0.0
    for dither in _DITHERS:
        try:
            sums = [
                trainer.summed(plan, trainer.rows(plan, data, weights), _Constant(dither))
                for data in (crowd, without)
            ]
        except InputError:
            continue
        most = max(most, float(np.linalg.norm((sums[0] - sums[1]).astype(np.float64))))
    return most


def _take(dataset: Dataset, chosen: npt.NDArray[np.bool_]) -> Dataset:
    columns: dict[str, Any] = {f.name: getattr(dataset, f.name)[chosen] for f in fields(dataset)}
    return Dataset(**columns)


def _joined(crowd: Dataset, name: str, inputs: Floats, labels: npt.NDArray[np.int64]) -> Dataset:
    return replace(
        crowd,
        customers=np.append(crowd.customers, [name] * len(inputs)),
        inputs=np.vstack([crowd.inputs, inputs]),
        labels=np.append(crowd.labels, labels),
    )
