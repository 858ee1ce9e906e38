"""The union gate: which cells of a table counted over all silos may be shown.

What is known of a cell is its noisy count: nobody holds the exact one (DESIGN §7), so nobody can compare that with k.
A cell is shown if its noisy count is so far above k that fewer than k people being in it would take a noise
that practically does not occur:

    P(any cell of a table is shown though fewer than k people are in it) ≤ `UNDER_K`.

1. Of fewer than k people, each a customer of m partners at most, a cell counts (k − 1)·m or less.
2. A discrete Gaussian of σ² is subgaussian with variance proxy σ² (Canonne, Kamath and Steinke 2020, NeurIPS,
   Corollary 17), so the sum's noise, of n silos, is with nσ²: P(noise ≥ t) ≤ exp(−t²/2nσ²).
3. With t = σ√n·√(2 ln(cells/UNDER_K)) that is UNDER_K/cells, and at most UNDER_K over all cells.

So a cell passes from (k − 1)·m + t on. No margin of the table is released, and what one adds up from released cells holds
nothing that they don't. A suppressed cell can't be told by subtraction: no exact total is anywhere.
"""

from __future__ import annotations

import math

from ..errors import Refused

UNDER_K = 1e-6
"""The bound stated with every table."""


def least_shown(k: int, partners: int, noise: float, cells: int, scale: float = 1.0) -> int:
    """The least noisy sum with which a cell is shown.

    Args:
        k: people. partners: m, how many partners one person may be a customer of.
        noise: standard deviation of a cell's noise, in the sum's units. cells: of the whole table.
        scale: what one customer adds to the sum.
    """
    margin = noise * math.sqrt(2 * math.log(cells / UNDER_K))
    return math.ceil((k - 1) * partners * scale + margin)


def require_k(k: int, floor: int, most: int, what: str) -> None:
    """Raise unless `floor` ≤ k ≤ `most`.

    Args:
        floor: `min_group` of the treaty. most: people there can be at all.

    Raises:
        Refused: ``K_UNDER_FLOOR`` or ``K_TOO_LARGE``.
    """
    if k < floor:
        raise Refused(
            "K_UNDER_FLOOR",
            f"{what}: k = {k} is under the treaty's {floor}",
            remedy=f"ask for k = {floor} or more; a lower floor needs an amended treaty signed by every party",
        )
    if k > most:
        raise Refused(
            "K_TOO_LARGE", f"{what}: k = {k} is more than the {most} customers there can be", remedy="lower k"
        )
