"""Between integer vectors and the ring Z/2^32: wrap, unwrap, and refuse what would overflow.

A silently wrong sum is the worst bug there is: `wrap` raises at the silo if its own part of the sum
exceeds its share of the ring.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from .masks import Words

Integers = npt.NDArray[np.int64]
MODULUS_BITS = 32


def wrap(values: Integers, *, bound: int) -> Words:
    """Integers as ring elements.

    Args:
        values: shape (d,), int64.
        bound: largest magnitude allowed before noise; n silos within it must fit (−2^31, 2^31).

    Raises:
        InputError: a value beyond the bound.
    """
    if values.dtype != np.int64 or values.ndim != 1:
        raise InputError("a vector to sum is a one-dimensional int64 array")
    # |int64 min| overflows, so the two sides are compared one by one.
    if values.size and (int(values.max()) > bound or int(values.min()) < -bound):
        raise InputError("a value exceeds what this silo may add to the sum; it would wrap around")
    return (values & 0xFFFFFFFF).astype(np.uint32)


def unwrap(words: Words) -> Integers:
    """The signed integers nearest zero: the inverse of `wrap` for sums within (−2^31, 2^31)."""
    return words.astype(np.uint32, copy=False).view(np.int32).astype(np.int64)
