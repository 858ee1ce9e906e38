"""Checks 5 to 7 of the guard's list: features, contributions, and the integers that may be masked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import ProtocolError
from ..federation import models
from ..federation.modes import Sampler
from ..federation.rounds import RoundPlan, curvature_shape, row_bound
from ..federation.study import Study
from ..federation.tasks import evaluate, train
from ..privacy.clipping import clipped_sum
from ..privacy.noise import Keystream, discrete_gaussian
from ..privacy.secagg.codec import Whole
from ..privacy.sgd import per_customer_gradients
from . import sources
from .features import Dataset, Side, load
from .home import Home


@dataclass
class Trainer:
    """Works out one silo's contributions to a study.

    Args:
        sampler: what draws the noise share. Only a test replaces it.
    """

    home: Home
    study: Study
    retention_days: int
    sampler: Sampler = discrete_gaussian

    def __post_init__(self) -> None:
        self._cached: dict[Side, tuple[bytes, Dataset]] = {}

    def dataset(self, side: Side, cohort: pd.DataFrame) -> Dataset:
        """5: features by SQL. Kept from round to round until the cohort changes."""
        key = hashlib.sha256("\n".join(cohort["subject"]).encode()).digest()
        if side not in self._cached or self._cached[side][0] != key:
            with sources.table(
                self.home.table, self.study.table.name, customer=self.study.table.customer
            ) as orders:
                self._cached[side] = (key, load(orders, self.study, side, cohort, self.retention_days))
        return self._cached[side][1]

    def contribution(self, plan: RoundPlan, dataset: Dataset, weights: npt.NDArray[np.float64]) -> Whole:
        """6 and 7: train or count; clip, encode and add the noise share. What comes out may be masked.

        Raises:
            InputError: weights or data that are not finite.
        """
        stream = Keystream()
        if plan.task == "curvature":
            rows = train.curvature(dataset.inputs)
            bound = curvature_shape(dataset.inputs.shape[1] + 1).bound
            summed = clipped_sum(rows, bound, 2**plan.scale_bits, stream)
        elif plan.task == "train":
            module = models.build(self.study.model, dataset.inputs.shape[1])
            models.load(module, weights)
            clip = self.study.training.clip
            rows = train.contributions(per_customer_gradients(module, dataset.inputs, dataset.labels), clip)
            summed = clipped_sum(rows, row_bound(clip), 2**plan.scale_bits, stream)
        else:
            scores = models.scores(self.study.model, weights, dataset.inputs)
            cells = evaluate.contributions(scores, dataset.labels, self.study)
            summed = cells.sum(axis=0, dtype=np.int64) * 2**plan.scale_bits
        if summed.size != plan.dimension:
            raise ProtocolError(
                f"round {plan.round}: {summed.size} numbers where the study says {plan.dimension}"
            )
        noisy = plan.mode.at_silo(summed, plan.sigma, self.sampler, stream)
        return Whole(noisy, plan.bound)
