"""Roots, proofs and signed heads, beside implementations that are not ours. Needs pymerkle (GPL) and aics-tlog, which no
extra of ours names: `make bench-auditlog` installs them beside and runs this.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import foedus.verify_foedus as one_file
from foedus.compliance.auditlog import merkle
from foedus.compliance.auditlog.checkpoint import Checkpoint
from foedus.compliance.auditlog.cosignature import cosign, cosigners
from foedus.compliance.auditlog.log import AuditLog
from foedus.documents import SigningKey, b64

SIZES = [*range(1, 70), 127, 128, 129, 300]
RAW = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
KEY = SigningKey(RAW)


@pytest.fixture(scope="module")
def bodies() -> list[bytes]:
    rng = random.Random(20261122)
    return [rng.randbytes(rng.randrange(1, 200)) for _ in range(max(SIZES))]


@pytest.fixture(scope="module")
def nodes(bodies: list[bytes]) -> merkle.GetNode:
    stored: dict[tuple[int, int], bytes] = {}
    edge: list[bytes] = []
    for size, body in enumerate(bodies):
        added, edge = merkle.grow(edge, size, merkle.leaf_hash(body))
        stored |= {(level, index): value for level, index, value in added}
    return lambda level, index: stored[level, index]


def root(nodes: merkle.GetNode, size: int) -> bytes:
    return merkle.root_from_edge(merkle.right_edge(nodes, size))


def test_the_one_file_verifier_has_the_same_roots(bodies: list[bytes], nodes: merkle.GetNode) -> None:
    tree = one_file.Tree(bodies)
    assert all(tree.root(size) == root(nodes, size) for size in SIZES)


def test_pymerkle_has_the_same_roots(bodies: list[bytes], nodes: merkle.GetNode) -> None:
    pymerkle = pytest.importorskip("pymerkle", reason="pymerkle is not installed (make bench-auditlog does)")
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for body in bodies:
        tree.append_entry(body)
    assert all(tree.get_root(size) == root(nodes, size) for size in SIZES)


def test_aics_tlog_has_the_same_roots_and_proofs(bodies: list[bytes], nodes: merkle.GetNode) -> None:
    aics = pytest.importorskip("aics_tlog", reason="aics-tlog is not installed (make bench-auditlog does)")
    rng = random.Random(1)
    for size in SIZES:
        tree = aics.MerkleTree(bodies[:size])
        assert tree.root() == root(nodes, size)
        index, old = rng.randrange(size), rng.randrange(1, size + 1)
        assert list(tree.inclusion_proof(index)) == merkle.inclusion_proof(nodes, index, size)
        assert list(tree.consistency_proof(old)) == merkle.consistency_proof(nodes, old, size)


def test_aics_tlog_reads_our_heads_and_cosignatures(tmp_path: Path) -> None:
    aics = pytest.importorskip("aics_tlog", reason="aics-tlog is not installed (make bench-auditlog does)")
    log = AuditLog(tmp_path / "audit.db", "treaty.example/log")
    log.append_many([("a", "b", "c", {"i": i}) for i in range(5)])
    head = Checkpoint(log.origin, log.size, log.root())
    line = cosign(head, "bank-a", KEY, 1_790_000_000)
    note = log.checkpoint(log.origin, KEY) + line
    found = aics.parse_checkpoint(note.partition("\n\n")[0] + "\n")
    assert (found.origin, found.size) == (head.origin, head.size)
    _, theirs = aics.sign_cosignature(RAW, "bank-a", 1_790_000_000, head.origin, head.size, head.root)
    assert b64(theirs.key_id + theirs.signature) == line.split()[2]
    assert cosigners(note, {"bank-a": b64(RAW.public_key().public_bytes_raw())}) == {"bank-a": 1_790_000_000}
