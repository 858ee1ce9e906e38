"""Counting: a customer falls in one cell of a public table; cells that pass the union gate are released.

The server's half is post-processing of the one noisy sum. The nodes get that sum to check and can do it again, and so
can whoever holds the evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...compliance.gate import UNDER_K, least_shown
from ...compliance.treaty import Treaty
from ...errors import InputError, VerificationError
from ...privacy.noise import Keystream
from ..counting import CountStudy

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class State:
    """Where a counting study stands: the noisy sum, once it is known, and over how many silos."""

    total: Integers | None = None
    silos: int = 0

    @property
    def sent(self) -> Floats:
        """What nodes are sent before the round: nothing."""
        return np.zeros(0)


def contributions(cells: Integers, values: Floats | None, study: CountStudy, stream: Keystream) -> Integers:
    """The exact sum of this silo's rows, in whole-number units; without noise, so it stays here.

    Args:
        cells: each customer's cell. values: each customer's quantity, finite, if the study measures one.

    Returns:
        shape (dimension,): counts × 2^scale_bits; behind them the sums of values from −1 to 1, each rounded without
        bias and within its bounds, × 2^scale_bits.
    """
    scale, count = 2**study.privacy.scale_bits_count, study.count
    counts: Integers = np.bincount(cells, minlength=count.cells).astype(np.int64) * scale
    if count.of is None:
        return counts
    if values is None or not np.isfinite(values).all():
        raise InputError(f"{count.of.called!r} has missing or infinite values")
    placed = (np.clip(values, count.of.lower, count.of.upper) - count.of.middle) / count.of.half
    whole = np.floor(np.clip(placed, -1, 1) * scale + stream.unit(placed.shape)).astype(np.int64)
    sums = np.zeros(count.cells, np.int64)
    np.add.at(sums, cells, np.clip(whole, -scale, scale))
    return np.concatenate([counts, sums])


def least(study: CountStudy, treaty: Treaty, silos: int) -> int:
    """The least noisy sum of a cell, in whole-number units, with which it is shown."""
    noise = study.privacy.sigma_count * study.privacy.mode.spread(silos)
    partners = treaty.overlap.max_partners_per_customer
    return least_shown(study.k, partners, noise, study.count.cells, 2.0**study.privacy.scale_bits_count)


def passing(total: Integers, study: CountStudy, treaty: Treaty, silos: int) -> npt.NDArray[np.bool_]:
    """Which cells pass the gate: shape (cells,)."""
    shown: npt.NDArray[np.bool_] = total[: study.count.cells] >= least(study, treaty, silos)
    return shown


def table(total: Integers, study: CountStudy, treaty: Treaty, silos: int) -> dict[str, Any]:
    """The released table: every cell in the order of the sum, with its count if it passes, and null if not.

    `noise` is the standard deviation that the noise puts on a count, as `sum_noise` and `mean_noise` are of theirs.
    """
    count, scale = study.count, 2.0**study.privacy.scale_bits_count
    noise = study.privacy.sigma_count * study.privacy.mode.spread(silos) / scale
    shown, cells = passing(total, study, treaty, silos), []
    for place, labels in enumerate(count.labels()):
        cell: dict[str, Any] = {"cell": list(labels), "count": None}
        if shown[place]:
            n = float(total[place]) / scale
            cell["count"] = n
            if count.of is not None:
                of, summed = count.of, float(total[count.cells + place]) / scale
                at = min(max(summed / n, -1.0), 1.0)
                cell |= {
                    "sum": of.middle * n + of.half * summed,
                    "sum_noise": noise * float(np.hypot(of.middle, of.half)),
                    "mean": of.middle + of.half * at,
                    "mean_noise": of.half * noise / n * float(np.hypot(1.0, at)),
                }
        cells.append(cell)
    return {
        "by": [key.called for key in count.by],
        "of": None if count.of is None else count.of.called,
        "k": study.k,
        "under_k": UNDER_K,
        "least": least(study, treaty, silos) / scale,
        "noise": noise,
        "silos": silos,
        "shown": int(shown.sum()),
        "cells": cells,
    }


def require_equal(
    claimed: Mapping[str, Any], expected: Mapping[str, Any], same: Callable[[str, Any, Any], None]
) -> None:
    """Raise unless a table that is claimed is the one that the sum gives.

    Args:
        expected: as `table` gives it. same: (what, claimed, recomputed) raises unless two numbers are equal.

    Raises:
        VerificationError: a cell under the gate is shown, one is held back, or anything else differs.
    """
    if set(claimed) != set(expected) or len(claimed["cells"]) != len(expected["cells"]):
        raise VerificationError("the table has other fields or other cells than the study's")
    for theirs, ours in zip(claimed["cells"], expected["cells"], strict=True):
        where = " / ".join(ours["cell"])
        if theirs.get("count") is not None and ours["count"] is None:
            raise VerificationError(
                f"the cell {where} is shown, and does not pass the gate of k = {expected['k']}"
            )
        if set(theirs) != set(ours) or theirs["cell"] != ours["cell"]:
            raise VerificationError(f"the cell {where} has other fields or labels than the study's")
        if (theirs["count"] is None) != (ours["count"] is None):
            raise VerificationError(f"the cell {where} passes the gate, and is not shown")
        for field in set(ours) - {"cell"} if ours["count"] is not None else ():
            same(f"the {field} of the cell {where}", theirs[field], ours[field])
    for field in ("least", "noise", "under_k", "k", "silos", "shown"):
        same(f"the table's {field}", claimed[field], expected[field])
    if (claimed["by"], claimed["of"]) != (expected["by"], expected["of"]):
        raise VerificationError("the table names other columns than the study")
