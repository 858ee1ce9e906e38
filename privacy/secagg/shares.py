"""Shamir secret sharing over the prime field GF(2^255 − 19) (Shamir 1979).

Secrets are field elements. Python integers are not constant-time; every secret shared here serves
one round and is gone after it.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence

from ...errors import ProtocolError

PRIME = 2**255 - 19
SHARE_BYTES = 32


def random_element() -> int:
    """A uniform field element from the operating system."""
    return secrets.randbelow(PRIME)


def split(secret: int, threshold: int, points: Sequence[int]) -> dict[int, int]:
    """Shares of `secret` at the given x coordinates; any `threshold` of them rebuild it.

    Args:
        secret: field element.
        points: distinct, non-zero x coordinates, at least `threshold` of them.
    """
    if not 0 <= secret < PRIME:
        raise ProtocolError("a secret to share must be a field element")
    if (
        not 1 <= threshold <= len(points)
        or len(set(points)) != len(points)
        or not all(0 < x < PRIME for x in points)
    ):
        raise ProtocolError(f"{threshold} of {len(points)} shares can't be dealt to these points")
    coefficients = [secret, *(random_element() for _ in range(threshold - 1))]
    shares = {}
    for x in points:
        y = 0
        for coefficient in reversed(coefficients):
            y = (y * x + coefficient) % PRIME
        shares[x] = y
    return shares


class Combiner:
    """Rebuilds many secrets from shares at the same points: Lagrange interpolation at 0.

    The weights are worked out once. Surplus shares must lie on the same polynomial, so that a silo's
    wrong share is noticed whenever one more than the threshold answered.

    Args:
        points: x coordinates of the shares there are; `threshold` or more.

    Raises:
        ProtocolError: too few points, or one outside the field.
    """

    def __init__(self, points: Collection[int], threshold: int) -> None:
        if len(points) < threshold:
            raise ProtocolError(f"{len(points)} shares where {threshold} are needed")
        if not all(0 < x < PRIME for x in points):
            raise ProtocolError("a share lies outside the field")
        ordered = sorted(points)
        self._base, self._surplus = ordered[:threshold], ordered[threshold:]
        self._weights = {at: [weight(x, self._base, at) for x in self._base] for at in (0, *self._surplus)}

    def combine(self, shares: Mapping[int, int]) -> int:
        """The secret whose shares (x → y) these are.

        Raises:
            ProtocolError: other points, a share outside the field, or shares that disagree.
        """
        if len(shares) != len(self._base) + len(self._surplus) or not all(
            0 <= y < PRIME for y in shares.values()
        ):
            raise ProtocolError("a share is missing or lies outside the field")
        values = [shares[x] for x in self._base]
        for x in self._surplus:
            if sum(w * y for w, y in zip(self._weights[x], values, strict=True)) % PRIME != shares[x]:
                raise ProtocolError("the shares of one secret disagree: somebody sent a wrong one")
        return sum(w * y for w, y in zip(self._weights[0], values, strict=True)) % PRIME


def combine(shares: Mapping[int, int], threshold: int) -> int:
    """One secret from at least `threshold` shares (x → y); see `Combiner`."""
    return Combiner(shares.keys(), threshold).combine(shares)


def weight(point: int, base: Collection[int], at: int = 0) -> int:
    """Lagrange's: Σ weight·y over the points of `base` is the polynomial's value at `at`."""
    numerator = denominator = 1
    for other in base:
        if other != point:
            numerator = numerator * (at - other) % PRIME
            denominator = denominator * (point - other) % PRIME
    return numerator * pow(denominator, -1, PRIME) % PRIME


def to_bytes(element: int) -> bytes:
    """32 bytes, big-endian."""
    return element.to_bytes(SHARE_BYTES, "big")


def from_bytes(data: bytes) -> int:
    """A field element from 32 bytes.

    Raises:
        ProtocolError: another length, or not below the prime.
    """
    value = int.from_bytes(data, "big")
    if len(data) != SHARE_BYTES or value >= PRIME:
        raise ProtocolError("not an encoded field element")
    return value
