"""Evaluation: a histogram of scores by label under the secure sum; AUC and PR-AUC come from the noisy cells.

A customer falls in one cell, so the L2 sensitivity is 1 whatever the number of bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..study import Study

Floats = npt.NDArray[np.float64]


def contributions(scores: Floats, labels: npt.NDArray[np.int64], study: Study) -> npt.NDArray[np.int64]:
    """One cell a customer: shape (customers, 2 × bins), label 0's bins first; scores are logits."""
    bins, low, high = study.evaluation.bins, study.evaluation.lower, study.evaluation.upper
    place = np.floor((np.clip(scores, low, high) - low) / (high - low) * bins).astype(np.int64)
    place = np.minimum(place, bins - 1) + bins * labels
    cells = np.zeros((len(scores), 2 * bins), np.int64)
    cells[np.arange(len(scores)), place] = 1
    return cells


@dataclass(frozen=True)
class Metrics:
    """Estimates from a noisy histogram; `roc` is the curve's points (false positive, true positive).

    `auc_error` is the standard error the noise alone puts on `auc`.
    """

    auc: float
    auc_error: float
    pr_auc: float
    customers: float
    churn_rate: float
    roc: tuple[tuple[float, float], ...]


def metrics(total: npt.NDArray[np.int64], study: Study, silos: int) -> Metrics:
    """What the noisy sum over `silos` says of the model.

    Cells below 0 by noise count as 0 for the curves, not for the totals and the AUC, which stay unbiased.
    """
    bins, scale = study.evaluation.bins, 2.0**study.privacy.scale_bits_evaluate
    cells = total.astype(np.float64) / scale
    stayed, churned = cells[:bins], cells[bins:]
    customers = float(cells.sum())
    n0, n1 = max(stayed.sum(), 1.0), max(churned.sum(), 1.0)
    # A churned customer counts the stayed ones scored below it, ties half; and the other way round.
    below = np.cumsum(stayed) - stayed / 2
    above = churned.sum() - np.cumsum(churned) + churned / 2
    auc = float((churned * below).sum() / (n0 * n1))
    slope = np.concatenate([above / (n0 * n1) - auc / n0, below / (n0 * n1) - auc / n1])
    auc_error = float(
        study.privacy.sigma_evaluate / scale * study.privacy.mode.spread(silos) * np.linalg.norm(slope)
    )
    auc = float(np.clip(auc, 0, 1))
    true, false = np.cumsum(np.maximum(churned[::-1], 0)), np.cumsum(np.maximum(stayed[::-1], 0))
    precision = true / np.maximum(true + false, 1e-9)
    recall = true / max(true[-1], 1e-9)
    pr_auc = float(np.sum(np.diff(np.concatenate([[0.0], recall])) * precision))
    fpr = false / max(false[-1], 1e-9)
    roc = tuple((float(x), float(y)) for x, y in zip([0.0, *fpr], [0.0, *recall], strict=True))
    return Metrics(
        auc, auc_error, pr_auc, customers, float(np.clip(churned.sum() / max(customers, 1.0), 0, 1)), roc
    )


def exact_auc(scores: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Mann–Whitney AUC, ties counted half; NaN if a class is absent."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sizes = np.diff(np.concatenate([starts, [len(scores)]]))
    ranks = np.repeat(starts + (sizes + 1) / 2, sizes)
    positive = labels[order] == 1
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if n0 == 0 or n1 == 0:
        return float("nan")
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n0 * n1))


def exact_pr_auc(scores: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Average precision, ties taken together; NaN without positives."""
    order = np.argsort(-scores, kind="stable")
    ordered, positive = scores[order], labels[order] == 1
    last = np.flatnonzero(np.concatenate([ordered[1:] != ordered[:-1], [True]]))
    true = np.cumsum(positive)[last]
    if not len(true) or true[-1] == 0:
        return float("nan")
    recall = true / true[-1]
    return float(np.sum(np.diff(np.concatenate([[0.0], recall])) * (true / (last + 1))))


def exact_roc(scores: Floats, labels: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """False and true positive rates at every threshold, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    positive = labels[order] == 1
    true = np.concatenate([[0], np.cumsum(positive)])
    false = np.concatenate([[0], np.cumsum(~positive)])
    return false / max(false[-1], 1), true / max(true[-1], 1)
