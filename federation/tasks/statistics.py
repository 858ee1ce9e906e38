"""Statistics before training: the scale of features that have no public bounds, and how many bear each label.

One secure sum of histograms: a customer falls in one cell of every such feature's, and in one of two for the
label, so the L2 sensitivity is √(features + 1) whatever the number of cells. What the server and every
node make of the noisy sum is post-processing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .. import schema
from ..schema import AnyFeature, CategoryColumn, quantities
from ..study import Plan, Study

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def edges(study: Plan) -> Floats:
    """The cells' edges in asinh(x / unit), the same for every feature: shape (cells + 1,)."""
    end = np.arcsinh(study.scaling.limit / study.scaling.unit)
    grid: Floats = np.linspace(-end, end, study.scaling.cells + 1)
    return grid


def contributions(values: Floats, labels: Integers, study: Study) -> Integers:
    """A row a customer: one cell in each learned feature's histogram, and in the label's.

    Args:
        values: shape (customers, quantities), finite. labels: 0 or 1.

    Returns:
        shape (customers, learned × cells + 2).
    """
    cells, grid = study.scaling.cells, edges(study)
    chosen = [i for i, f in enumerate(quantities(study.features)) if f.learned]
    rows = np.zeros((len(values), len(chosen) * cells + 2), np.int64)
    at = np.arange(len(values))
    for place, column in enumerate(chosen):
        within = np.clip(values[:, column], -study.scaling.limit, study.scaling.limit)
        cell = np.searchsorted(grid, np.arcsinh(within / study.scaling.unit), side="right") - 1
        rows[at, place * cells + np.clip(cell, 0, cells - 1)] = 1
    rows[at, len(chosen) * cells + labels] = 1
    return rows


def initial(study: Plan) -> Floats:
    """What stands in for the statistics before they are known: shape (study.learned,)."""
    bounds = np.tile([-1.0, 1.0], schema.learned(study.features))
    return np.concatenate([bounds, np.ones(study.learned - bounds.size)])


def learn(total: Integers, study: Study, noise: float) -> Floats:
    """Lower and upper bound of every learned scale, then the weights of the labels, if the study wants them.

    Args:
        noise: standard deviation of a cell of `total` / scale.
    """
    cells, scaling = study.scaling.cells, study.scaling
    counts = total.astype(np.float64) / 2.0**study.privacy.scale_bits_statistics
    grid, found = edges(study), []
    for i in range(schema.learned(study.features)):
        low, high = (
            np.sinh(_spread(counts[i * cells : (i + 1) * cells], grid, scaling.tail, noise)) * scaling.unit
        )
        margin = scaling.margin * (high - low)
        found += [low - margin, high + margin]
    if study.counts_labels:
        labels = np.maximum(counts[-2:], max(1.0, 2 * noise))
        found += list(labels.sum() / (2 * labels))
    return np.array(found, dtype=np.float64)


_STANDS_OUT = 3.2
"""Standard deviations of the noise: of 128 empty cells one in eleven histograms has one that passes it."""


def _spread(histogram: Floats, grid: Floats, tail: float, noise: float) -> Floats:
    """The `tail` and 1 − `tail` quantiles of a noisy histogram, on the grid.

    Cells that don't stand out of the noise count as empty (the largest never does): else the many empty
    cells' noise would drown the tails. If both fall in one cell, the outer edges of all that stand out.
    """
    kept = np.where(histogram > _STANDS_OUT * noise, np.maximum(histogram, 0.0), 0.0)
    if kept.sum() <= 0:
        kept[np.argmax(histogram)] = 1.0
    share = np.concatenate([[0.0], np.cumsum(kept)]) / kept.sum()
    place = np.searchsorted(share, [tail, 1 - tail], side="right") - 1
    if place[0] == place[1]:
        full = np.flatnonzero(kept)
        return np.array([grid[full[0]], grid[full[-1] + 1]])
    within = (np.array([tail, 1 - tail]) - share[place]) / kept[place] * kept.sum()
    return np.asarray(grid[place] + within * (grid[1] - grid[0]), np.float64)


def class_weights(learned: Floats, study: Plan) -> Floats:
    """What a customer of label 0 and of label 1 counts for in training: shape (2,)."""
    return learned[-2:] if study.counts_labels else np.ones(2)


def inputs(values: Floats, codes: Integers, features: Sequence[AnyFeature], learned: Floats) -> Floats:
    """A model's inputs in [−1, 1], in the order of the study's features.

    Args:
        values: shape (rows, quantities), finite. codes: shape (rows, categories), a level's place or −1.
        learned: `State.statistics`.

    Returns:
        shape (rows, inputs).
    """
    columns: list[Floats] = []
    quantity, category, scale = 0, 0, 0
    for feature in features:
        if isinstance(feature, CategoryColumn):
            levels = np.arange(1, len(feature.levels))
            columns += list((codes[:, category, None] == levels).astype(np.float64).T)
            category += 1
            continue
        x = values[:, quantity]
        quantity += 1
        if feature.upper is None:
            low, high = float(learned[2 * scale]), float(learned[2 * scale + 1])
            scale += 1
        else:
            low, high = feature.least, feature.upper
        if feature.log:
            x, low, high = np.log1p(np.maximum(x, 0)), float(np.log1p(low)), float(np.log1p(high))
        columns.append(np.clip((np.clip(x, low, high) - low) / (high - low), 0, 1) * 2 - 1)
    return np.stack(columns, axis=1)
