"""How far one customer moves a silo's integer sum: measured, and held against what the study's price assumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...compliance.treaty import Treaty
from ...errors import InputError
from ...federation.rounds import RoundPlan
from ...federation.study import Study
from ...federation.tasks.train import State
from ...privacy.noise import Keystream
from ..features import Raw
from ..rehearsal import Silo
from ..trainer import Trainer, side_of
from .canaries import some

Floats = npt.NDArray[np.float64]
_COMPANY = 40  # customers that stay while one comes and goes
_SUSPECTS = 3  # of the silo's own customers, those with most rows, and those with the longest
_DITHERS = (0.0, 1 - 2.0**-32)  # rounding down and rounding up


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
    """The worst customer of each task: of each silo's own, and made-up ones with extreme rows at one silo.

    A customer is all rows that bear its name. The models tried are the first one and one of huge weights,
    whose gradients are as long as gradients get. A customer whom the code refuses has moved nothing.
    """
    plans = {study.tasks[n - 1]: study.round(n, treaty) for n in range(study.rounds, 0, -1)}
    start = State.start(study)
    signs = np.where(np.arange(start.weights.size) % 2, 1.0, -1.0)
    sent = (start.sent, replace(start, weights=start.weights + 50.0 * signs).sent)
    worst = {task: Moved(task, 0.0, "nobody", 0) for task in plans}
    # To a made-up customer one silo is like another, but for how many rows customers have there.
    strangers_at = max(silos, key=lambda name: _most_rows(silos[name].dataset("train")))
    for where, silo in silos.items():
        for task, plan in plans.items():
            dataset = silo.dataset(side_of(plan))
            # What the price assumes of a customer of one partner.
            bound = plan.sensitivity / plan.mode.sensitivity(1.0, treaty.overlap.max_partners_per_customer)
            for model in sent:
                for name, crowd in _crowds(
                    silo.trainer, plan, dataset, model, strangers=where == strangers_at
                ):
                    moved = _distance(silo.trainer, plan, crowd, name, model)
                    so_far = worst[task]
                    worst[task] = (
                        Moved(task, moved / bound, name, so_far.tried + 1)
                        if moved / bound > so_far.ratio
                        else replace(so_far, tried=so_far.tried + 1)
                    )
    return list(worst.values())


def _most_rows(dataset: Raw) -> int:
    """The most rows that a customer has."""
    return int(np.unique(dataset.customers, return_counts=True)[1].max(initial=0))


def _crowds(
    trainer: Trainer, plan: RoundPlan, dataset: Raw, sent: Floats, *, strangers: bool
) -> Iterator[tuple[str, Raw]]:
    """(customer to watch, a small data set with it in); with `strangers`, made-up customers too."""
    names, counts = np.unique(dataset.customers, return_counts=True)
    if not len(names):
        return
    company, rows = names[:_COMPANY], int(counts.max())
    suspects = list(names[np.argsort(-counts, kind="stable")[:_SUSPECTS]])
    lengths = np.linalg.norm(trainer.rows(plan, dataset, sent), axis=1)
    if len(lengths) == len(names):
        suspects += list(names[np.argsort(-lengths, kind="stable")[:_SUSPECTS]])
    for name in dict.fromkeys(suspects):
        yield str(name), some(dataset, np.isin(dataset.customers, [*company, name]))
    if not strangers:
        return
    crowd = some(dataset, np.isin(dataset.customers, company))
    width = dataset.values.shape[1]
    signs = np.where(np.arange(width) % 2, 1.0, -1.0)
    for number, values in enumerate(
        (np.zeros(width), np.full(width, 1e9), np.full(width, -1e9), 1e9 * signs, np.full(width, 1e300))
    ):
        for label in (0, 1):
            name = f"a made-up one of extreme values ({number + 1}, label {label})"
            yield name, _joined(crowd, name, values, label, rows)


def _distance(trainer: Trainer, plan: RoundPlan, crowd: Raw, name: str, sent: Floats) -> float:
    """The L2 norm, integer units, of the sum with the customer less the sum without."""
    without, most = some(crowd, crowd.customers != name), 0.0
    try:
        for dither in _DITHERS:
            there, gone = (trainer.exact(plan, data, sent, _Constant(dither)) for data in (crowd, without))
            most = max(most, float(np.linalg.norm((there - gone).astype(np.float64))))
    except InputError:
        return most
    return most


def _joined(crowd: Raw, name: str, values: Floats, label: int, rows: int) -> Raw:
    codes = np.full((rows, crowd.codes.shape[1]), label, np.int64)
    return Raw(
        np.append(crowd.customers, [name] * rows),
        np.vstack([crowd.values, np.tile(values, (rows, 1))]),
        np.vstack([crowd.codes, codes]),
        np.append(crowd.labels, np.full(rows, label)),
    )
