"""One customer's contribution, bounded in L2 and put on an integer grid."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .noise import Keystream


def clip_factors(rows: npt.NDArray[np.float64], clip: float) -> npt.NDArray[np.float64]:
    """What each row is to be multiplied by so that its L2 norm is at most `clip`: shape (customers, 1), 1 if it is.

    Relative to each row's largest entry, so that neither the huge nor the tiny overflow or vanish.
    """
    peak = np.maximum(np.abs(rows).max(axis=1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)
    relative = np.linalg.norm(rows / peak, axis=1, keepdims=True)
    with np.errstate(over="ignore"):  # a clip infinitely far above a tiny row
        most = clip / peak
    return np.where(relative > most, most / np.maximum(relative, 1.0), 1.0)


def rounded(total: npt.NDArray[np.float64], scale: int, stream: Keystream) -> npt.NDArray[np.int64]:
    """A sum of clipped vectors, scaled and stochastically rounded without bias: shape (d,).

    For any one dither, adding or removing a customer moves each coordinate by less than 1 more than the
    customer's own scaled vector does; so by at most clip·scale + √d in L2, as in `clipped_sum`, and what
    the floats' own addition may err by (see `rounds.FLOAT_SLACK`).

    Raises:
        InputError: a non-finite number.
    """
    if not np.isfinite(total).all():
        raise InputError("a sum of contributions is not finite; look for huge values in the table")
    return np.floor(total * scale + stream.unit(total.shape)).astype(np.int64)


def clipped_sum(
    contributions: npt.NDArray[np.float64], clip: float, scale: int, stream: Keystream
) -> npt.NDArray[np.int64]:
    """The exact integer sum of every customer's clipped, scaled, stochastically rounded vector.

    Each row is scaled to L2 norm at most `clip`, multiplied by `scale`, and rounded without bias by a
    uniform dither from a cipher. Rounding moves a coordinate by less than 1, so adding or removing one
    customer moves the sum by at most clip·scale + √d in L2, whatever the others are: integer addition
    has no rounding of its own.

    Args:
        contributions: shape (customers, d), one row a customer.

    Returns:
        shape (d,), int64; zeros if there is no customer.

    Raises:
        InputError: a non-finite number.
    """
    if contributions.ndim != 2:
        raise InputError("contributions must have one row a customer")
    if not np.isfinite(contributions).all():
        raise InputError(
            "a customer's contribution is not finite; look for missing or infinite values in the table"
        )
    n, d = contributions.shape
    if n == 0:
        return np.zeros(d, np.int64)
    integers = np.floor(
        contributions * clip_factors(contributions, clip) * scale + stream.unit((n, d))
    ).astype(np.int64)
    bound = clip * scale + math.sqrt(d)
    if float(np.sqrt((integers.astype(np.float64) ** 2).sum(axis=1)).max()) > bound * (1 + 1e-12):
        raise InputError("a clipped contribution exceeds its bound")  # can't happen; refusing is cheap
    total: npt.NDArray[np.int64] = integers.sum(axis=0, dtype=np.int64)
    return total
