"""The Merkle tree of RFC 6962 §2.1 (RFC 9162 §2.1): hashes, proofs, and their verification.

Pure functions over hashes (32 bytes each, SHA-256). Leaves are numbered from 0; the subtree of
``2**level`` leaves that begins at leaf ``index * 2**level`` is node ``(level, index)``. The log stores
every *complete* one, so a proof takes O(log n) look-ups through a `GetNode`, whatever the store.

A proof says nothing about the size by itself: one inclusion proof may hold for two sizes under the
same root hash. Give the verifiers a (size, root) pair that came signed together, from a checkpoint.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence

from ...errors import InputError, VerificationError

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()

GetNode = Callable[[int, int], bytes]
"""``(level, index) -> hash`` of a complete subtree; raises if the store lacks it."""


def leaf_hash(data: bytes) -> bytes:
    """``SHA-256(0x00 || data)``: the prefix keeps a leaf from passing for a node."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """``SHA-256(0x01 || left || right)``."""
    return hashlib.sha256(b"\x01" + left + right).digest()


# ── growing ──────────────────────────────────────────────────────────────────────────────────────


def right_edge(get_node: GetNode, size: int) -> list[bytes]:
    """Roots of the maximal complete subtrees of a tree of `size` leaves, the largest first."""
    levels = [level for level in reversed(range(size.bit_length())) if size >> level & 1]
    return [get_node(level, (size >> level) - 1) for level in levels]


def grow(edge: Sequence[bytes], size: int, leaf: bytes) -> tuple[list[tuple[int, int, bytes]], list[bytes]]:
    """Append one leaf to a tree known by its right edge.

    Args:
        edge: `right_edge` of the tree of `size` leaves.
        leaf: the hash of the new leaf.

    Returns:
        The nodes ``(level, index, hash)`` completed by it, the leaf first, and the new right edge.
    """
    left = list(edge)
    level, index, value = 0, size, leaf
    nodes = [(level, index, value)]
    while index & 1:
        value = node_hash(left.pop(), value)
        level, index = level + 1, index >> 1
        nodes.append((level, index, value))
    return nodes, [*left, value]


def root_from_edge(edge: Sequence[bytes]) -> bytes:
    """The root hash of a tree known by its right edge."""
    if not edge:
        return EMPTY_ROOT
    value = edge[-1]
    for left in reversed(edge[:-1]):
        value = node_hash(left, value)
    return value


def root_from_leaves(leaves: Sequence[bytes]) -> bytes:
    """The root hash over `leaves` (their hashes, in order), with no store."""
    edge: list[bytes] = []
    for size, leaf in enumerate(leaves):
        edge = grow(edge, size, leaf)[1]
    return root_from_edge(edge)


# ── proving ──────────────────────────────────────────────────────────────────────────────────────


def _split(width: int) -> int:
    """The largest power of two smaller than `width` (≥ 2): where RFC 9162 §2.1.1 splits a tree."""
    return 1 << ((width - 1).bit_length() - 1)


def _subtree(get_node: GetNode, start: int, end: int) -> bytes:
    """The hash over leaves [start, end), a subtree of RFC 9162's recursion."""
    width = end - start
    if width & (width - 1) == 0:  # complete, so it is stored; `start` is a multiple of its width
        level = width.bit_length() - 1
        return get_node(level, start >> level)
    middle = start + _split(width)
    return node_hash(_subtree(get_node, start, middle), _subtree(get_node, middle, end))


def inclusion_proof(get_node: GetNode, index: int, size: int) -> list[bytes]:
    """The audit path of leaf `index` in the tree of `size` leaves (RFC 9162 §2.1.3.1).

    Raises:
        InputError: no such leaf in that tree.
    """
    if not 0 <= index < size:
        raise InputError(f"no leaf {index} in a tree of {size}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_subtree(get_node, middle, end))
            end = middle
        else:
            path.append(_subtree(get_node, start, middle))
            start = middle
    return path[::-1]  # descended from the root, whereas a path is given from the leaf


def consistency_proof(get_node: GetNode, old_size: int, new_size: int) -> list[bytes]:
    """That the tree of `old_size` leaves is a prefix of that of `new_size` (RFC 9162 §2.1.4.1).

    Empty where there is nothing to prove: from size 0, or between equal sizes.

    Raises:
        InputError: the old size is negative or beyond the new one.
    """
    if not 0 <= old_size <= new_size:
        raise InputError(f"no tree of {old_size} leaves within one of {new_size}")
    if old_size in (0, new_size):
        return []
    path: list[bytes] = []
    start, end = 0, new_size
    while old_size != end:
        middle = start + _split(end - start)
        if old_size <= middle:
            path.append(_subtree(get_node, middle, end))
            end = middle
        else:
            path.append(_subtree(get_node, start, middle))
            start = middle
    if start:  # else what remains is the whole old tree, whose root the verifier holds
        path.append(_subtree(get_node, start, end))
    return path[::-1]


# ── verifying ────────────────────────────────────────────────────────────────────────────────────


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf hash `leaf` is at `index` in the tree (size, root): RFC 9162 §2.1.3.2.

    Raises:
        VerificationError: it is not, or the proof is malformed.
    """
    what = f"inclusion of entry {index} in a log of {size}"
    # 1. the index is inside the tree
    if not 0 <= index < size:
        raise VerificationError(f"{what}: there is no such entry")
    path = _hashes([leaf, *proof, root], what)[1:-1]
    # 2-3. fn: where we are on this level; sn: the last node of the level
    fn, sn, value = index, size - 1, leaf
    # 4. climb
    for sibling in path:
        if sn == 0:
            raise VerificationError(f"{what}: the proof is too long")
        if fn & 1 or fn == sn:
            value = node_hash(sibling, value)
            while not fn & 1 and fn:  # levels at which the last node has no sibling
                fn, sn = fn >> 1, sn >> 1
        else:
            value = node_hash(value, sibling)
        fn, sn = fn >> 1, sn >> 1
    # 5. arrived at the top, and it is the root
    if sn != 0 or not hmac.compare_digest(value, root):
        raise VerificationError(f"{what}: the proof does not lead to the root")


def verify_consistency(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the tree (old_size, old_root) is a prefix of (new_size, new_root): RFC 9162 §2.1.4.2.

    Everything continues the empty tree, and a tree of the same size must have the same root; there
    the proof must be empty (nothing that was sent goes unread).

    Raises:
        VerificationError: it is not a prefix, or the proof is malformed.
    """
    what = f"consistency of a log of {new_size} with its earlier {old_size}"
    if not 0 <= old_size <= new_size:
        raise VerificationError(f"{what}: the log has become shorter")
    path = _hashes([old_root, *proof, new_root], what)[1:-1]
    for size, root in ((old_size, old_root), (new_size, new_root)):
        if size == 0 and root != EMPTY_ROOT:
            raise VerificationError(f"{what}: not the root of an empty log")
    if old_size in (0, new_size):
        if path:
            raise VerificationError(f"{what}: the proof must be empty")
        if old_size == new_size and not hmac.compare_digest(old_root, new_root):
            raise VerificationError(f"{what}: two roots for one size")
        return
    # 1. there is something to prove
    if not path:
        raise VerificationError(f"{what}: the proof is empty")
    # 2. a complete old tree is itself the first node
    if old_size & (old_size - 1) == 0:
        path = [old_root, *path]
    # 3-4. climb to the root of the old tree's last complete subtree
    fn, sn = old_size - 1, new_size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    # 5-6. from there rebuild both roots at once
    old = new = path[0]
    for node in path[1:]:
        if sn == 0:
            raise VerificationError(f"{what}: the proof is too long")
        if fn & 1 or fn == sn:
            old, new = node_hash(node, old), node_hash(node, new)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = node_hash(new, node)
        fn, sn = fn >> 1, sn >> 1
    # 7. both came out, at the top
    if sn != 0 or not hmac.compare_digest(old, old_root) or not hmac.compare_digest(new, new_root):
        raise VerificationError(f"{what}: the proof does not lead to both roots")


def _hashes(values: Sequence[bytes], what: str) -> list[bytes]:
    if not all(isinstance(value, bytes) and len(value) == HASH_BYTES for value in values):
        raise VerificationError(f"{what}: a hash is {HASH_BYTES} bytes")
    return list(values)


def nodes_in(size: int) -> int:
    """How many complete subtrees (leaves included) a tree of `size` leaves has: 2n − popcount(n)."""
    return 2 * size - size.bit_count()
