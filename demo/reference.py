"""What the federated model is held against: the same features pooled without privacy, each partner
alone, and recency alone. Only a demo can compute it: it owns every silo's table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..clients.cohort import ask_of
from ..clients.features import Dataset, Side, load
from ..clients.home import Home
from ..compliance.consent import ConsentRegister
from ..federation import models
from ..federation.schema import ColumnLabel
from ..federation.study import Study
from ..federation.tasks.evaluate import exact_auc, exact_pr_auc
from .world import World

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One line of the table; PR-AUC of churners, and of those who come back (the rarer class)."""

    name: str
    auc: float
    pr_auc: float
    pr_auc_return: float
    customers: int


@dataclass(frozen=True)
class Benchmark:
    """The cohorts of all silos: `train` by silo, `test` of all together."""

    study: Study
    train: dict[str, Dataset]
    test: Dataset

    def row(self, name: str, scores: Floats, customers: int) -> Row:
        """How well `scores` (higher: more likely to churn) rank the test customers."""
        labels = self.test.labels
        return Row(
            name,
            exact_auc(scores, labels),
            exact_pr_auc(scores, labels),
            exact_pr_auc(-scores, 1 - labels),
            customers,
        )

    def model_row(self, name: str, weights: Floats, customers: int) -> Row:
        return self.row(name, self.scores(weights), customers)

    def scores(self, weights: Floats) -> Floats:
        """A model's logits of the test customers."""
        return models.scores(self.study.model, weights, self.test.inputs)

    @property
    def pooled(self) -> Dataset:
        return _stack(list(self.train.values()))


def gather(world: World, study: Study) -> Benchmark:
    """Every silo's consenting cohort, as its node computes it."""
    now = datetime.now(UTC)
    sides: dict[Side, dict[str, Dataset]] = {"train": {}, "test": {}}
    for name, path in world.homes.items():
        home = Home.load(path)
        ask = ask_of(home, study.purpose, order_log=not isinstance(study.label, ColumnLabel))
        cohort = ConsentRegister(path / "consent.db").cohort(ask, now)
        with home.orders(study.table) as orders:
            for side, found in sides.items():
                found[name] = load(orders, study, side, cohort, world.treaty.retention_days)
    return Benchmark(study, sides["train"], _stack(list(sides["test"].values())))


def reference_rows(benchmark: Benchmark) -> tuple[list[Row], Floats]:
    """Pooled without privacy, each partner alone, recency alone; and the pooled model's weights."""
    study, pooled = benchmark.study, benchmark.pooled
    weights = fit(study, pooled)
    rows = [benchmark.model_row("pooled, no privacy", weights, len(pooled.labels))]
    for name, dataset in benchmark.train.items():
        rows.append(benchmark.model_row(f"{name} alone", fit(study, dataset), len(dataset.labels)))
    recency = [i for i, f in enumerate(study.features) if f.called == "recency"]
    if recency:
        rows.append(benchmark.row("recency alone", benchmark.test.inputs[:, recency[0]], 0))
    return rows, weights


def fit(study: Study, dataset: Dataset) -> Floats:
    """The study's model fitted without clipping and without noise, as well as one would at home.

    Logistic regression to convergence (L-BFGS); an MLP by Adam, stopped where the loss of a fifth of the
    customers, held out, is least.
    """
    module = models.build(study.model, dataset.inputs.shape[1])
    x, y = torch.from_numpy(dataset.inputs), torch.from_numpy(dataset.labels.astype(np.float64))
    if study.model.kind == "logistic_regression":
        _converge(module, x, y, study.training.l2)
    else:
        _stop_early(module, x, y, study.training.l2)
    return models.to_vector(module)


def _loss(module: nn.Module, x: torch.Tensor, y: torch.Tensor, l2: float) -> torch.Tensor:
    penalty = torch.stack([(p**2).sum() for p in module.parameters()]).sum() * l2 / 2
    return nn.functional.binary_cross_entropy_with_logits(module(x).squeeze(-1), y) + penalty


def _converge(module: nn.Module, x: torch.Tensor, y: torch.Tensor, l2: float) -> None:
    optimiser = torch.optim.LBFGS(module.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = _loss(module, x, y, l2)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]


def _stop_early(module: nn.Module, x: torch.Tensor, y: torch.Tensor, l2: float, *, steps: int = 400) -> None:
    held = torch.arange(len(y)) % 5 == 0
    optimiser = torch.optim.Adam(module.parameters(), lr=0.03)
    torch.set_num_threads(1)  # the tensors are small: more threads only get in each other's way
    best, least = models.to_vector(module), float("inf")
    for _ in range(steps):
        optimiser.zero_grad()
        _loss(module, x[~held], y[~held], l2).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            value = float(_loss(module, x[held], y[held], 0.0))
        if value < least:
            best, least = models.to_vector(module), value
    models.load(module, best)


def _stack(parts: Sequence[Dataset]) -> Dataset:
    return Dataset(
        np.concatenate([p.customers for p in parts]),
        np.concatenate([p.inputs for p in parts]),
        np.concatenate([p.labels for p in parts]),
    )
