"""What masks and check values are made from, each bound to one round of one batch."""

from __future__ import annotations

from . import check, masks, shares
from .keys import Context


def pair_seed(secret: bytes, context: Context, number: int, one: str, other: str, about: str) -> bytes:
    """The seed of the mask two silos share in a round; the lesser name adds it, the greater subtracts.

    Args:
        about: the digest of the round's `subject`.
    """
    low, high = sorted((one, other))
    return masks.derive(secret, "pair", context.digest, number, low, high, about)


def self_seed(seed: int, context: Context, number: int, silo: str) -> bytes:
    """The seed of a silo's own mask in a round."""
    return masks.derive(shares.to_bytes(seed), "self", context.digest, number, silo)


def tag_of(key: bytes, context: Context, number: int) -> check.Tag:
    """The tag of a round's vectors, from a check key."""
    columns, rows = (masks.derive(key, name, context.digest, number) for name in ("columns", "rows"))
    return check.Tag(columns, rows)


def pad_key(key: bytes, context: Context, number: int, silo: str) -> bytes:
    """The key of the pad over a silo's check value in a round."""
    return masks.derive(key, "pad", context.digest, number, silo)


def pad(key: bytes, context: Context, number: int, silo: str) -> int:
    """That pad."""
    return check.pads([pad_key(key, context, number, silo)])
