"""Who was in a cohort, as one number; and proofs, to one customer, that they were or were not.

A cohort is a Merkle tree (RFC 6962, `auditlog.merkle`) over its customers' labels, sorted and each once:

    study key = HKDF-SHA-256(silo's key, info = "foedus cohort key\\0" || study digest), 32 bytes
    label     = HMAC-SHA-256(study key, "foedus cohort label\\0" || customer in UTF-8)
    leaf hash = SHA-256(0x00 || label)

The key never leaves the silo, so nobody else can tell from labels who is meant, nor follow a customer from
study to study. Not in it: the two labels between which the customer's would stand are neighbours in the
tree; or the first one is beyond it, or the last one before it, or the tree is empty. Each is shown by its
inclusion proof under the root that stands in the silo's audit log since the round.

What such a proof rests on: that the label is this customer's, and that the tree is sorted, are the silo's
word under its signature; an auditor who is shown the study key recomputes both from the register. Without it
nobody can, and that is what keeps other people's membership secret.
"""

from __future__ import annotations

import hashlib
import hmac
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...errors import InputError, VerificationError
from ..auditlog import merkle

KEY_BYTES = 32
_FIELDS = {"label": str, "size": int, "root": str, "leaves": list}


class StudyKey:
    """The key of one study's labels. It has no `repr`."""

    def __init__(self, silo_key: bytes, study: str) -> None:
        if len(silo_key) != KEY_BYTES:
            raise InputError(f"a cohort key is {KEY_BYTES} bytes")
        info = b"foedus cohort key\0" + study.encode()
        self._key = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(silo_key)

    def label(self, customer: str) -> bytes:
        """The customer's label in every cohort of the study: 32 bytes."""
        return hmac.digest(self._key, b"foedus cohort label\0" + customer.encode(), hashlib.sha256)

    @property
    def commitment(self) -> str:
        """SHA-256 (hex) that binds the silo to this key and tells nothing of it."""
        return hashlib.sha256(b"foedus cohort commitment\0" + self._key).hexdigest()

    def __repr__(self) -> str:
        return "StudyKey(…)"


@dataclass(frozen=True)
class Leaf:
    """A label in a tree: where, and the proof that it is there."""

    index: int
    label: bytes
    path: tuple[bytes, ...]


@dataclass(frozen=True)
class Proof:
    """That `label` is in the tree (size, root), if `leaves` has it; that it is not, if they are its neighbours."""

    label: bytes
    size: int
    root: bytes
    leaves: tuple[Leaf, ...]

    def to_json(self) -> dict[str, Any]:
        leaves = [
            {"index": leaf.index, "label": leaf.label.hex(), "path": [h.hex() for h in leaf.path]}
            for leaf in self.leaves
        ]
        return {"label": self.label.hex(), "size": self.size, "root": self.root.hex(), "leaves": leaves}

    @classmethod
    def from_json(cls, value: Any) -> Proof:
        """A proof from parsed JSON.

        Raises:
            InputError: any other shape.
        """
        if not isinstance(value, Mapping) or {k: type(v) for k, v in value.items()} != _FIELDS:
            raise InputError(f"not a proof of membership: it has exactly {', '.join(_FIELDS)}")
        try:
            leaves = tuple(
                Leaf(_whole(leaf["index"]), _hash(leaf["label"]), tuple(_hash(h) for h in leaf["path"]))
                for leaf in value["leaves"]
            )
            return cls(_hash(value["label"]), value["size"], _hash(value["root"]), leaves)
        except (TypeError, KeyError, ValueError) as error:
            raise InputError("not a proof of membership: a leaf is malformed") from error


class CohortTree:
    """The tree of one cohort, in memory. Three hashes a customer: some four seconds of CPU for a million."""

    def __init__(
        self, key: StudyKey, customers: Iterable[str], kept: Mapping[str, bytes] | None = None
    ) -> None:
        """`kept`: the labels of customers whose names were erased since, by tombstone."""
        kept = kept or {}
        self._labels = sorted({kept.get(customer) or key.label(customer) for customer in customers})
        level = [merkle.leaf_hash(label) for label in self._labels]
        self._levels = [level]
        while len(level) > 1:
            # A node without a sibling stands for no complete subtree: it is not kept, as in `merkle`.
            pairs = zip(level[::2], level[1::2], strict=False)
            level = [merkle.node_hash(left, right) for left, right in pairs]
            self._levels.append(level)

    @property
    def size(self) -> int:
        return len(self._labels)

    @property
    def root(self) -> bytes:
        return merkle.root_from_edge(merkle.right_edge(self._node, self.size))

    def prove(self, label: bytes) -> Proof:
        """That the label is in the tree, or that it is not."""
        place = bisect_left(self._labels, label)
        if place < self.size and self._labels[place] == label:
            near = [place]
        else:
            near = [i for i in (place - 1, place) if 0 <= i < self.size]
        return Proof(label, self.size, self.root, tuple(self._leaf(i) for i in near))

    def _leaf(self, index: int) -> Leaf:
        path = merkle.inclusion_proof(self._node, index, self.size)
        return Leaf(index, self._labels[index], tuple(path))

    def _node(self, level: int, index: int) -> bytes:
        return self._levels[level][index]


def verify_membership(proof: Proof) -> None:
    """Check that `proof.label` is in the tree (size, root).

    Raises:
        VerificationError: it does not show that.
    """
    if len(proof.leaves) != 1 or proof.leaves[0].label != proof.label:
        raise VerificationError("the proof does not show the label itself")
    _check_included(proof)


def verify_non_membership(proof: Proof) -> None:
    """Check that `proof.label` is not in the sorted tree (size, root).

    1. In a tree of nobody nothing is to be shown.
    2. Every leaf shown is in the tree.
    3. They are neighbours, the label strictly between; or the first leaf, beyond it; or the last, before it.

    Raises:
        VerificationError: it does not show that.
    """
    leaves, size = proof.leaves, proof.size
    # 1.
    if size == 0:
        if leaves or proof.root != merkle.EMPTY_ROOT:
            raise VerificationError("a cohort of nobody has no leaves, and the root of no leaves")
        return
    # 2.
    _check_included(proof)
    # 3.
    if len(leaves) == 2:
        low, high = leaves
        fine = high.index == low.index + 1 and low.label < proof.label < high.label
    elif len(leaves) == 1:
        (leaf,) = leaves
        first, last = leaf.index == 0, leaf.index == size - 1
        fine = (first and proof.label < leaf.label) or (last and leaf.label < proof.label)
    else:
        fine = False
    if not fine:
        raise VerificationError("the leaves shown are not the neighbours of the label")


def _check_included(proof: Proof) -> None:
    for leaf in proof.leaves:
        leaf_hash = merkle.leaf_hash(leaf.label)
        merkle.verify_inclusion(leaf_hash, leaf.index, proof.size, list(leaf.path), proof.root)


def _hash(text: object) -> bytes:
    if not isinstance(text, str) or len(text) != 2 * merkle.HASH_BYTES or text != text.lower():
        raise ValueError("not a hash")
    return bytes.fromhex(text)


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not an index")
    return value
