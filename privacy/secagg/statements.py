"""What silos sign in a round, and what it is about: alike for who signs and for who checks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from ...documents import digest
from .keys import Context
from .rings import Ring
from .topology import Topology, names_digest

READY = "secure-sum-ready"
UPLOAD = "secure-sum-upload"
CONFIRM = "secure-sum-confirm"
ANSWER = "secure-sum-answer"


def subject(task: str, dimension: int, ring: Ring, model: str) -> str:
    """Names what a round sums up. Masks of silos that were told different things never cancel."""
    what = {"task": task, "dimension": dimension, "bits": ring.bits, "model": model}
    return digest("secure-sum-subject", what)


def readiness(context: Context, silo: str, shape: Topology, participants: Sequence[str]) -> dict[str, object]:
    """What a silo signs to state the participants of a batch."""
    return {
        "context": context.digest,
        "silo": silo,
        "topology": shape.digest,
        "participants": names_digest(participants),
    }


def confirmation(
    context: Context, number: int, silo: str, shape: Topology, survivors: Sequence[str]
) -> dict[str, object]:
    """What a silo signs to confirm a set of survivors."""
    return {
        "context": context.digest,
        "round": number,
        "silo": silo,
        "topology": shape.digest,
        "survivors": names_digest(survivors),
    }


def shares_digest(seeds: Mapping[str, bytes], mask_keys: Mapping[str, bytes]) -> str:
    """What an answer's signature says of the shares beside it."""
    content = hashlib.sha256()
    for label, values in (("seed", seeds), ("mask", mask_keys)):
        for silo in sorted(values):
            content.update(f"{label}\0{silo}\0".encode() + values[silo])
    return content.hexdigest()
