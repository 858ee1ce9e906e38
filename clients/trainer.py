"""Checks 5 to 7 of the guard's list: features, contributions, and the integers that may be masked."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import ibis
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ..errors import ProtocolError
from ..federation import models
from ..federation.modes import Sampler
from ..federation.rounds import COUNT_SHARE, RoundPlan, row_bound
from ..federation.schema import Table
from ..federation.study import Study, shape_of
from ..federation.tasks import evaluate, statistics, train
from ..privacy.clipping import clipped_sum, rounded
from ..privacy.noise import Keystream, discrete_gaussian
from ..privacy.secagg.codec import Whole
from ..privacy.sgd import clipped_gradient_sum, per_customer_gradients
from .features import SIDES, Raw, Side, load_raw, written

Floats = npt.NDArray[np.float64]


class Source(Protocol):
    """Where a silo's table is: a node's `Home`, or a frame in a rehearsal."""

    def orders(self, names: Table, text: Collection[str] = ()) -> AbstractContextManager[ibis.Table]:
        """The table of this name, open for as long as the context lasts.

        Args:
            text: columns to take as they are written, where the table has no types of its own.
        """


@dataclass
class Trainer:
    """Works out one silo's contributions to a study.

    Args:
        sampler: what draws the noise share. Only a test replaces it.
    """

    source: Source
    study: Study
    retention_days: int
    sampler: Sampler = discrete_gaussian

    def __post_init__(self) -> None:
        self._cached: dict[Side, tuple[bytes, Raw]] = {}
        self._inputs: dict[int, tuple[Raw, bytes, Floats]] = {}

    def dataset(self, side: Side, cohort: pd.DataFrame) -> Raw:
        """5: features by SQL. Kept from round to round until the cohort changes."""
        key = hashlib.sha256("\n".join(cohort["subject"]).encode()).digest()
        if side not in self._cached or self._cached[side][0] != key:
            text = written(self.study.features, self.study.label)
            with self.source.orders(self.study.table, text) as orders:
                self._cached[side] = (key, load_raw(orders, self.study, side, cohort, self.retention_days))
        return self._cached[side][1]

    def contribution(self, plan: RoundPlan, dataset: Raw, sent: Floats) -> Whole:
        """6 and 7: train or count; clip, encode and add the noise share. What comes out may be masked.

        Args:
            dataset: of the round's side. sent: weights and statistics, shape (study.sent,).

        Raises:
            InputError: weights or data that are not finite.
        """
        stream = Keystream()
        exact = self.exact(plan, dataset, sent, stream)
        return Whole(plan.mode.at_silo(exact, plan.sigma, self.sampler, stream), plan.bound)

    def exact(
        self, plan: RoundPlan, dataset: Raw, sent: Floats, stream: Keystream, *, more: Floats | None = None
    ) -> npt.NDArray[np.int64]:
        """What the customers add to the round's sum, clipped and encoded; without noise, so it stays here.

        Args:
            more: rows, as `rows` gives them, of customers that an audit makes up.
        """
        if plan.task == "train" and self.study.model.kind != "logistic_regression" and dataset.first.all():
            return self._trained(plan, dataset, sent, stream, more)
        rows = self.rows(plan, dataset, sent)
        return self.summed(plan, rows if more is None else np.vstack([rows, more]), stream)

    def _trained(
        self, plan: RoundPlan, dataset: Raw, sent: Floats, stream: Keystream, more: Floats | None
    ) -> npt.NDArray[np.int64]:
        """The sum of clipped gradients by book-keeping, no customer's gradient ever written out; rounded once.

        Rounding the sum moves as little by a customer as rounding the customer's row does: under the same
        dither less than 1 a coordinate.
        """
        study, clip = self.study, self.study.clip
        learned = sent[study.parameters :]
        module = models.build(study.model, study.inputs)
        models.load(module, sent[: study.parameters])
        weights = statistics.class_weights(learned, study)[dataset.labels]
        gradients, customers = clipped_gradient_sum(
            module,
            train.weighted_loss,
            torch.from_numpy(self._scaled(dataset, learned)),
            torch.from_numpy(np.stack([dataset.labels, weights], axis=1)),
            clip,
        )
        total = np.append(gradients, customers * clip * COUNT_SHARE)
        if more is not None:
            total += train.contributions(more, clip).sum(axis=0)
        return rounded(total, 2**plan.scale_bits, stream)

    def rows(self, plan: RoundPlan, dataset: Raw, sent: Floats) -> Floats:
        """What each customer would add to the round's sum, not clipped yet: one row a customer."""
        study = self.study
        weights, learned = sent[: study.parameters], sent[study.parameters :]
        if plan.task == "statistics":
            first = dataset.first
            return statistics.contributions(dataset.values[first], dataset.labels[first], study).astype(
                np.float64
            )
        inputs, labels = self._scaled(dataset, learned), dataset.labels
        if plan.task == "curvature":
            return dataset.averaged(train.curvature(inputs, study.curvature_clip))
        if plan.task == "train":
            module = models.build(study.model, study.inputs)
            models.load(module, weights)
            counts = statistics.class_weights(learned, study)[labels]
            return dataset.averaged(per_customer_gradients(module, inputs, labels) * counts[:, None])
        first = dataset.first
        scores = models.scores(study.model, weights, inputs[first])
        if plan.task == "validate":
            return train.losses(scores, labels[first])
        return evaluate.contributions(scores, labels[first], study).astype(np.float64)

    def summed(self, plan: RoundPlan, rows: Floats, stream: Keystream) -> npt.NDArray[np.int64]:
        """The exact integer sum of the rows, each clipped and encoded; without noise, so it stays here."""
        scale = 2**plan.scale_bits
        if plan.task == "train":
            clip = self.study.clip
            summed = clipped_sum(train.contributions(rows, clip), row_bound(clip), scale, stream)
        elif (shape := shape_of(self.study, plan.task)).rounded:
            summed = clipped_sum(rows, shape.bound, scale, stream)
        else:
            summed = rows.astype(np.int64).sum(axis=0, dtype=np.int64) * scale
        if summed.size != plan.dimension:
            raise ProtocolError(
                f"round {plan.round}: {summed.size} numbers where the study says {plan.dimension}"
            )
        return summed

    def _scaled(self, dataset: Raw, learned: Floats) -> Floats:
        """The model's inputs; kept until the statistics change, as they do once."""
        key = learned.tobytes()
        kept = self._inputs.get(id(dataset))
        if kept is None or kept[0] is not dataset or kept[1] != key:
            inputs = statistics.inputs(dataset.values, dataset.codes, self.study.features, learned)
            kept = self._inputs[id(dataset)] = (dataset, key, inputs)
        return kept[2]


def side_of(plan: RoundPlan) -> Side:
    """Whose customers a round is about."""
    return SIDES[plan.task]
