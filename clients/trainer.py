"""Checks 5 to 7 of the guard's list: features, contributions, and the integers that may be masked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import ibis
import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import ProtocolError
from ..federation import models
from ..federation.rounds import RoundPlan, curvature_shape, row_bound
from ..federation.schema import Table
from ..federation.study import Study
from ..federation.tasks import evaluate, train
from ..privacy.clipping import clipped_sum
from ..privacy.noise import Keystream, discrete_gaussian
from ..privacy.secagg.codec import Whole
from ..privacy.sgd import per_customer_gradients
from .features import Dataset, Side, load

Sampler = Callable[[int, int, Keystream], npt.NDArray[np.int64]]


class Source(Protocol):
    """Where a silo's table is: a node's `Home`, or a frame in a rehearsal."""

    def orders(self, names: Table) -> AbstractContextManager[ibis.Table]:
        """The table of this name, open for as long as the context lasts."""


@dataclass
class Trainer:
    """Works out one silo's contributions to a study.

    Args:
        sampler: (sigma, size, stream) -> noise share. Only a test replaces it.
    """

    source: Source
    study: Study
    retention_days: int
    sampler: Sampler = discrete_gaussian

    def __post_init__(self) -> None:
        self._cached: dict[Side, tuple[bytes, Dataset]] = {}

    def dataset(self, side: Side, cohort: pd.DataFrame) -> Dataset:
        """5: features by SQL. Kept from round to round until the cohort changes."""
        key = hashlib.sha256("\n".join(cohort["subject"]).encode()).digest()
        if side not in self._cached or self._cached[side][0] != key:
            with self.source.orders(self.study.table) as orders:
                self._cached[side] = (key, load(orders, self.study, side, cohort, self.retention_days))
        return self._cached[side][1]

    def contribution(self, plan: RoundPlan, dataset: Dataset, weights: npt.NDArray[np.float64]) -> Whole:
        """6 and 7: train or count; clip, encode and add the noise share. What comes out may be masked.

        Raises:
            InputError: weights or data that are not finite.
        """
        stream = Keystream()
        summed = self.summed(plan, self.rows(plan, dataset, weights), stream)
        return Whole(summed + self.sampler(plan.sigma, plan.dimension, stream), plan.bound)

    def rows(
        self, plan: RoundPlan, dataset: Dataset, weights: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """What each customer would add to the round's sum, not clipped yet: one row a customer."""
        if plan.task == "curvature":
            return train.curvature(dataset.inputs)
        if plan.task == "train":
            module = models.build(self.study.model, dataset.inputs.shape[1])
            models.load(module, weights)
            return per_customer_gradients(module, dataset.inputs, dataset.labels)
        scores = models.scores(self.study.model, weights, dataset.inputs)
        return evaluate.contributions(scores, dataset.labels, self.study).astype(np.float64)

    def summed(
        self, plan: RoundPlan, rows: npt.NDArray[np.float64], stream: Keystream
    ) -> npt.NDArray[np.int64]:
        """The exact integer sum of the rows, each clipped and encoded; without noise, so it stays here."""
        if plan.task == "curvature":
            bound = curvature_shape(len(self.study.features) + 1).bound
            summed = clipped_sum(rows, bound, 2**plan.scale_bits, stream)
        elif plan.task == "train":
            clip = self.study.training.clip
            summed = clipped_sum(train.contributions(rows, clip), row_bound(clip), 2**plan.scale_bits, stream)
        else:
            summed = rows.astype(np.int64).sum(axis=0, dtype=np.int64) * 2**plan.scale_bits
        if summed.size != plan.dimension:
            raise ProtocolError(
                f"round {plan.round}: {summed.size} numbers where the study says {plan.dimension}"
            )
        return summed
