"""Statistics before training: the scale of features that have no public bounds, and how many bear each label.

One secure sum of histograms: a customer falls in one cell of every such feature's, and in one of two for the
label, so the L2 sensitivity is √(features + 1) whatever the number of cells. What the server and every
node make of the noisy sum is post-processing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..schema import CategoryColumn, learned, quantities
from ..study import Plan, Study

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def edges(study: Plan) -> Floats:
    """The cells' edges in asinh(x / unit), the same for every feature: shape (cells + 1,)."""
    end = np.arcsinh(study.scaling.limit / study.scaling.unit)
    return np.linspace(-end, end, study.scaling.cells + 1)


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
        cell = np.searchsorted(grid, np.arcsinh(values[:, column] / study.scaling.unit), side="right") - 1
        rows[at, place * cells + np.clip(cell, 0, cells - 1)] = 1
    rows[at, len(chosen) * cells + labels] = 1
    return rows


def initial(study: Plan) -> Floats:
    """What stands in for the statistics before they are known: shape (study.learned,)."""
    knots = np.tile(np.linspace(-1.0, 1.0, study.scaling.knots), learned(study.features))
    return np.concatenate([knots, np.ones(study.learned - knots.size)])


def learn(total: Integers, study: Study, noise: float) -> Floats:
    """Knots of every learned feature's scale, then the weights of the labels, if the study wants them.

    Cells that don't stand out of the noise (√(2 ln cells) of its standard deviations) count as empty: else
    the many empty cells' noise would drown the tails.

    Args:
        noise: standard deviation of a cell of `total` / scale.
    """
    cells, knots = study.scaling.cells, study.scaling.knots
    counts = total.astype(np.float64) / 2.0**study.privacy.scale_bits_statistics
    grid = edges(study)
    tail = study.scaling.tail
    levels = np.linspace(tail, 1 - tail, knots)
    least = noise * np.sqrt(2 * np.log(cells))
    found = [
        _quantiles(counts[i * cells : (i + 1) * cells], grid, levels, least)
        for i in range(learned(study.features))
    ]
    scales = np.sinh(np.array(found).reshape(-1)) * study.scaling.unit
    if not study.counts_labels:
        return scales
    labels = np.maximum(counts[-2:], max(1.0, 2 * noise))
    return np.concatenate([scales, labels.sum() / (2 * labels)])


def _quantiles(histogram: Floats, grid: Floats, levels: Floats, least: float) -> Floats:
    """Quantiles of a noisy histogram, strictly increasing; the whole grid's if nothing stands out."""
    kept = np.where(histogram > least, histogram, 0.0)
    if kept.sum() <= 0:
        return grid[0] + (grid[-1] - grid[0]) * np.linspace(0, 1, levels.size)
    share = np.concatenate([[0.0], np.cumsum(kept)]) / kept.sum()
    # np.interp wants its x increasing: an empty cell's two edges have the same share.
    found = np.interp(levels, share + 1e-12 * np.arange(share.size), grid)
    step = (grid[1] - grid[0]) * 1e-3
    return found + step * np.arange(levels.size)


def class_weights(statistics: Floats, study: Plan) -> Floats:
    """What a customer of label 0 and of label 1 counts for in training: shape (2,)."""
    return statistics[-2:] if study.counts_labels else np.ones(2)


def inputs(values: Floats, codes: Integers, study: Plan, statistics: Floats) -> Floats:
    """A model's inputs in [−1, 1], in the order of the study's features.

    Args:
        values: shape (rows, quantities), finite. codes: shape (rows, categories), a level's place or −1.
        statistics: shape (study.learned,).

    Returns:
        shape (rows, study.inputs).
    """
    knots = study.scaling.knots
    columns: list[Floats] = []
    quantity, category, scale = 0, 0, 0
    for feature in study.features:
        if isinstance(feature, CategoryColumn):
            levels = np.arange(1, len(feature.levels))
            columns += list((codes[:, category, None] == levels).astype(np.float64).T)
            category += 1
            continue
        x = values[:, quantity]
        quantity += 1
        if feature.upper is None:
            points = statistics[scale * knots : (scale + 1) * knots]
            columns.append(np.interp(x, points, np.linspace(-1, 1, knots)))
            scale += 1
            continue
        low, high = feature.least, feature.upper
        if feature.log:
            x, low, high = np.log1p(np.maximum(x, 0)), float(np.log1p(low)), float(np.log1p(high))
        columns.append(np.clip((x - low) / (high - low), 0, 1) * 2 - 1)
    return np.stack(columns, axis=1)
