"""Shamir secret sharing over the prime field GF(2^255 − 19) (Shamir 1979).

Secrets are field elements. Python integers are not constant-time; every secret shared here serves
one round and is gone after it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

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


def combine(shares: Mapping[int, int], threshold: int) -> int:
    """The secret from at least `threshold` shares (x → y): Lagrange interpolation at 0.

    Any surplus share must lie on the same polynomial, so that a silo's wrong share is noticed
    whenever one more than the threshold answered.

    Raises:
        ProtocolError: too few shares, a share outside the field, or shares that disagree.
    """
    if len(shares) < threshold:
        raise ProtocolError(f"{len(shares)} shares where {threshold} are needed")
    if not all(0 < x < PRIME and 0 <= y < PRIME for x, y in shares.items()):
        raise ProtocolError("a share lies outside the field")
    points = sorted(shares)
    base = points[:threshold]
    for x in points[threshold:]:
        if _interpolate(base, shares, x) != shares[x]:
            raise ProtocolError("the shares of one secret disagree: somebody sent a wrong one")
    return _interpolate(base, shares, 0)


def _interpolate(base: Sequence[int], shares: Mapping[int, int], at: int) -> int:
    total = 0
    for i in base:
        numerator = denominator = 1
        for j in base:
            if j != i:
                numerator = numerator * (at - j) % PRIME
                denominator = denominator * (i - j) % PRIME
        total = (total + shares[i] * numerator * pow(denominator, -1, PRIME)) % PRIME
    return total


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
