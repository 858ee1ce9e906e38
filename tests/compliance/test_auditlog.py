"""The audit log: hashing against published vectors, proofs, checkpoints, tampering, crashes."""

from __future__ import annotations

import base64
import json
import logging
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus.compliance.auditlog import merkle
from foedus.compliance.auditlog.checkpoint import (
    MAX_NOTE,
    Checkpoint,
    key_id,
    open_checkpoint,
    open_note,
    sign_note,
)
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.auditlog.witness import HeadKeeper
from foedus.documents import SigningKey, b64, parse_json
from foedus.errors import InputError, VerificationError

ORIGIN = "treaty.example/log"

# Leaves and roots of Certificate Transparency's own test suites (RFC 6962, SHA-256).
LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}
CONSISTENCY = {
    (1, 8): INCLUSION[0, 8],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


def leaves(count: int) -> list[bytes]:
    """Distinct leaf hashes: with equal leaves, two indices may share a proof."""
    return [merkle.leaf_hash(b"%d" % i) for i in range(count)]


def naive_root(hashes: list[bytes]) -> bytes:
    """The definition of RFC 9162 §2.1.1, as it stands there."""
    if len(hashes) <= 1:
        return hashes[0] if hashes else merkle.EMPTY_ROOT
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    return merkle.node_hash(naive_root(hashes[:k]), naive_root(hashes[k:]))


def nodes_of(hashes: list[bytes]) -> merkle.GetNode:
    stored: dict[tuple[int, int], bytes] = {}
    edge: list[bytes] = []
    for size, leaf in enumerate(hashes):
        added, edge = merkle.grow(edge, size, leaf)
        stored |= {(level, index): value for level, index, value in added}
    return lambda level, index: stored[level, index]


def hexes(values: list[bytes]) -> list[str]:
    return [value.hex() for value in values]


# ── hashing and proofs ───────────────────────────────────────────────────────────────────────────


CT = [merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in LEAVES]


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_certificate_transparency(size: int) -> None:
    assert merkle.root_from_leaves(CT[:size]).hex() == ROOTS[size]
    assert merkle.root_from_edge(merkle.right_edge(nodes_of(CT), size)).hex() == ROOTS[size]


def test_proofs_are_those_of_certificate_transparency() -> None:
    nodes = nodes_of(CT)
    for (index, size), proof in INCLUSION.items():
        assert hexes(merkle.inclusion_proof(nodes, index, size)) == proof
    for (old, new), proof in CONSISTENCY.items():
        assert hexes(merkle.consistency_proof(nodes, old, new)) == proof


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 200])
def test_the_root_is_the_one_defined(size: int) -> None:
    assert merkle.root_from_leaves(leaves(size)) == naive_root(leaves(size))


def test_every_small_proof_holds_and_no_other_index_or_size_does() -> None:
    most = 17
    hashes, nodes = leaves(most), nodes_of(leaves(most))
    roots = [naive_root(hashes[:n]) for n in range(most + 1)]
    for size in range(1, most + 1):
        for index in range(size):
            proof = merkle.inclusion_proof(nodes, index, size)
            merkle.verify_inclusion(hashes[index], index, size, proof, roots[size])
            for other in set(range(-1, size + 2)) - {index}:
                with pytest.raises(VerificationError):
                    merkle.verify_inclusion(hashes[index], other, size, proof, roots[size])
            for other in set(range(most + 1)) - {size}:  # (size, root) as a checkpoint gives them
                with pytest.raises(VerificationError):
                    merkle.verify_inclusion(hashes[index], index, other, proof, roots[other])
        for old in range(size + 1):
            proof = merkle.consistency_proof(nodes, old, size)
            merkle.verify_consistency(old, roots[old], size, roots[size], proof)
            for other in set(range(1, most + 1)) - {old, size}:
                if old:
                    with pytest.raises(VerificationError):
                        merkle.verify_consistency(other, roots[other], size, roots[size], proof)
                    with pytest.raises(VerificationError):
                        merkle.verify_consistency(old, roots[old], other, roots[other], proof)


@st.composite
def damaged_hashes(draw: st.DrawFn, count: int) -> Callable[[list[bytes]], list[bytes]]:
    """One change to a list of `count` hashes: a bit, a lost, doubled or exchanged one."""
    kind = draw(st.sampled_from(["bit", "drop", "add", "shorten"] if count else ["add"]))
    at = draw(st.integers(0, max(0, count - 1)))
    bit = draw(st.integers(0, 255))

    def damage(hashes: list[bytes]) -> list[bytes]:
        out = list(hashes)
        if kind == "bit":
            out[at] = (int.from_bytes(out[at], "big") ^ (1 << bit)).to_bytes(32, "big")
        elif kind == "drop":
            del out[at]
        elif kind == "shorten":
            out[at] = out[at][:31]
        else:
            out.insert(at, bytes([bit]) * 32)
        return out

    return damage


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_inclusion_proof_fails(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 300))
    index = data.draw(st.integers(0, size - 1))
    hashes = leaves(size)
    root, proof = naive_root(hashes), merkle.inclusion_proof(nodes_of(hashes), index, size)
    merkle.verify_inclusion(hashes[index], index, size, proof, root)
    bad = data.draw(damaged_hashes(len(proof)))(proof)
    with pytest.raises(VerificationError):
        merkle.verify_inclusion(hashes[index], index, size, bad, root)
    (other,) = data.draw(damaged_hashes(1).filter(lambda f: len(f([root])) == 1))([root])
    with pytest.raises(VerificationError):
        merkle.verify_inclusion(hashes[index], index, size, proof, other)
    with pytest.raises(VerificationError):
        merkle.verify_inclusion(other, index, size, proof, root)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_consistency_proof_fails(data: st.DataObject) -> None:
    new = data.draw(st.integers(1, 300))
    old = data.draw(st.integers(0, new))
    hashes = leaves(new)
    old_root, new_root = naive_root(hashes[:old]), naive_root(hashes)
    proof = merkle.consistency_proof(nodes_of(hashes), old, new)
    merkle.verify_consistency(old, old_root, new, new_root, proof)
    bad = data.draw(damaged_hashes(len(proof)))(proof)
    with pytest.raises(VerificationError):
        merkle.verify_consistency(old, old_root, new, new_root, bad)
    (other,) = data.draw(damaged_hashes(1).filter(lambda f: len(f([old_root])) == 1))([old_root])
    with pytest.raises(VerificationError):
        merkle.verify_consistency(old, other, new, new_root, proof)
    if old:  # every root continues the empty log
        with pytest.raises(VerificationError):
            merkle.verify_consistency(old, old_root, new, other, proof)


def test_a_proof_must_climb_to_the_top_of_the_size_claimed() -> None:
    proof = merkle.consistency_proof(nodes_of(leaves(3)), 2, 3)
    merkle.verify_consistency(2, naive_root(leaves(2)), 3, naive_root(leaves(3)), proof)
    with pytest.raises(VerificationError):
        merkle.verify_consistency(2, naive_root(leaves(2)), 8, naive_root(leaves(3)), proof)


def test_a_shorter_log_is_not_consistent() -> None:
    with pytest.raises(VerificationError, match="shorter"):
        merkle.verify_consistency(3, naive_root(leaves(3)), 2, naive_root(leaves(2)), [])


def test_proofs_of_what_is_not_there_are_refused() -> None:
    nodes = nodes_of(leaves(4))
    for index, size in ((4, 4), (-1, 4), (0, 0)):
        with pytest.raises(InputError):
            merkle.inclusion_proof(nodes, index, size)
    for old, new in ((5, 4), (-1, 4)):
        with pytest.raises(InputError):
            merkle.consistency_proof(nodes, old, new)


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────


KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))
HEAD = Checkpoint(ORIGIN, 8, bytes.fromhex(ROOTS[8]))

# The example of Go's golang.org/x/mod/sumdb/note: a published key and the note it signs.
GO_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
GO_PUBLIC = b64(base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")[1:])
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
)
GO_NOTE = (
    f"{GO_TEXT}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6"
    "KE6RyyBwJnAM=\n"
)

# Heads that the Go checksum database really signed.
SUMDB_PUBLIC = b64(base64.b64decode("Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8")[1:])
SUMDB = {
    445646: "go.sum database tree\n445646\njEFFy4AtYgBBNTSZTiNnQrgQqMbcH0mfO2oP2FxR9VU=\n\n— sum.golang.org Az3grkGho"
    "/PqvUmEuTv6+r2g303hUhu60FOD6vLpm19mBwH9UjquWY2OKxNmZ55z0gHrp24AgPC3Q5WO7uZrVdvdCQU=\n",
    15368405: "go.sum database tree\n15368405\n/g9am3I6YWNKaZX/jkne1fqd9zEyjss+JXyPXG0WfkY=\n\n— sum.golang.org Az3grq"
    "JGUaSGukG9p8nI2vKgiFn7qGHxn0W+mrwyI6Gz3F0t1J3LzmWk/p96Ybf295EjwdSwlzgijq5WA9d1Ded7owM=\n",
}


def test_notes_are_those_of_the_go_implementation() -> None:
    assert key_id("PeterNeumann", base64.b64decode(GO_PUBLIC)).hex() == "c74f20a3"
    assert open_note(GO_NOTE, "PeterNeumann", GO_PUBLIC) == GO_TEXT
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(GO_SEED))
    assert sign_note(GO_TEXT, "PeterNeumann", key) == GO_NOTE


@pytest.mark.parametrize("size", SUMDB)
def test_heads_of_a_public_log_open(size: int) -> None:
    head = open_checkpoint(SUMDB[size], "sum.golang.org", SUMDB_PUBLIC)
    assert (head.origin, head.size) == ("go.sum database tree", size)
    with pytest.raises(VerificationError):
        open_checkpoint(SUMDB[size].replace(str(size), str(size + 1)), "sum.golang.org", SUMDB_PUBLIC)


def test_a_checkpoint_survives_its_note() -> None:
    note = HEAD.sign(ORIGIN, KEY)
    assert note.startswith(f"{ORIGIN}\n8\n{b64(HEAD.root)}\n\n— {ORIGIN} ")
    assert open_checkpoint(note, ORIGIN, KEY.public) == HEAD


def test_signatures_of_others_are_ignored() -> None:
    note = HEAD.sign(ORIGIN, KEY)
    stranger = HEAD.sign(ORIGIN, SigningKey.generate()).split("\n\n")[1]  # same name, another key
    witness = HEAD.sign("witness.example", SigningKey.generate()).split("\n\n")[1]
    assert open_checkpoint(note + stranger + witness, ORIGIN, KEY.public) == HEAD
    head, own = note.split("\n\n")
    assert open_checkpoint(f"{head}\n\n{witness}{stranger}{own}", ORIGIN, KEY.public) == HEAD


def _bad_notes() -> dict[str, str]:
    good = HEAD.sign(ORIGIN, KEY)
    text, line = good.split("\n\n")
    root = b64(HEAD.root)
    prefix = b64(key_id(ORIGIN, base64.b64decode(KEY.public)) + bytes(64))

    def signed(body: str) -> str:
        return sign_note(body, ORIGIN, KEY)

    return {
        "empty": "",
        "unsigned": text + "\n",
        "no_blank_line": good.replace("\n\n", "\n"),
        "no_signature_line": text + "\n\n",
        "no_final_newline": good[:-1],
        "carriage_returns": good.replace("\n", "\r\n"),
        "control_character": good.replace(ORIGIN, ORIGIN + "\t", 1),
        "lone_surrogate": good.replace(ORIGIN, ORIGIN + "\ud800", 1),
        "hyphen_for_dash": good.replace("—", "-"),
        "signature_of_another_key": HEAD.sign(ORIGIN, SigningKey.generate()),
        "other_key_name": HEAD.sign("else.example", KEY),
        "name_with_plus": good.replace(f"— {ORIGIN}", "— a+b"),
        "name_missing": good.replace(f"— {ORIGIN}", "— "),
        "signature_not_base64": f"{text}\n\n— {ORIGIN} ???\n",
        "signature_of_three_bytes": f"{text}\n\n— {ORIGIN} AAAA\n",
        "signature_zeros": f"{text}\n\n— {ORIGIN} {prefix}\n",
        "good_and_forged_signature": f"{good}— {ORIGIN} {prefix}\n",
        "trailing_words": good[:-1] + " x\n",
        "size_changed": good.replace("\n8\n", "\n9\n"),
        "other_text_signed": f"x\n8\n{root}\n\n{line}",
        "too_long": good + line * (MAX_NOTE // len(line)),
        "size_with_leading_zero": signed(f"{ORIGIN}\n08\n{root}\n"),
        "size_negative": signed(f"{ORIGIN}\n-8\n{root}\n"),
        "size_in_arabic_digits": signed(f"{ORIGIN}\n٨\n{root}\n"),
        "size_beyond_64_bits": signed(f"{ORIGIN}\n{2**64}\n{root}\n"),
        "root_short": signed(f"{ORIGIN}\n8\n{b64(HEAD.root[:31])}\n"),
        "root_not_canonical": signed(f"{ORIGIN}\n8\n{root[:-2]}{chr(ord(root[-2]) + 1)}=\n"),
        "root_of_empty_log_wrong": signed(f"{ORIGIN}\n0\n{root}\n"),
        "origin_empty": signed(f"\n8\n{root}\n"),
        "extension_line": signed(f"{ORIGIN}\n8\n{root}\nmore\n"),
        "two_lines": signed(f"{ORIGIN}\n8\n"),
    }


@pytest.mark.parametrize("name", _bad_notes())
def test_a_bad_note_is_refused(name: str) -> None:
    with pytest.raises(VerificationError):
        open_checkpoint(_bad_notes()[name], ORIGIN, KEY.public)


@given(st.integers(0, 10_000), st.characters())
def test_a_note_with_one_character_changed_is_refused(at: int, character: str) -> None:
    good = HEAD.sign(ORIGIN, KEY)
    at %= len(good)
    bad = good[:at] + character + good[at + 1 :]
    if bad != good:
        with pytest.raises(VerificationError):
            open_checkpoint(bad, ORIGIN, KEY.public)


def test_what_the_format_cannot_carry_is_not_signed() -> None:
    for head in (
        Checkpoint("two\nlines", 8, HEAD.root),
        Checkpoint(ORIGIN, -1, HEAD.root),
        Checkpoint(ORIGIN, 8, b"x"),
    ):
        with pytest.raises(InputError):
            head.sign(ORIGIN, KEY)
    with pytest.raises(InputError, match="key name"):
        HEAD.sign("with space", KEY)


# ── the log ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "audit.db", ORIGIN)


def fill(log: AuditLog, count: int) -> None:
    log.append_many([("dpo@bank", "study.approve", f"study-{i}", {"n": i}) for i in range(count)])


def test_entries_come_back_as_canonical_json(tmp_path: Path) -> None:
    moment = datetime(2026, 11, 22, 13, 48, 57, 123456, tzinfo=UTC)
    log = AuditLog(tmp_path / "audit.db", ORIGIN, clock=lambda: moment)
    assert log.append("dpo@bank", "study.approve", "客户", {"ε": 1.5, "a": [None, True]}) == 0
    assert log.append_many([("a", "b", "", {})] * 3) == range(1, 4)
    assert log.append_many([]) == range(4, 4)
    first, *_ = log.entries()
    text = (
        '{"action":"study.approve","actor":"dpo@bank","details":{"a":[null,true],"ε":1.5},"subject":"客户",'
    )
    assert first.body.decode() == text + '"time":"2026-11-22T13:48:57.123456Z"}'
    assert first.record["details"] == {"ε": 1.5, "a": [None, True]}
    assert [entry.index for entry in log.entries(1, 3)] == [1, 2]
    assert log.size == 4


def test_stored_proofs_hold_at_every_size(log: AuditLog) -> None:
    fill(log, 20)
    fill(log, 13)
    entries = list(log.entries())
    for size in range(1, 34):
        root = log.root(size)
        assert root == naive_root([entry.leaf for entry in entries[:size]])
        for index in range(0, size, 5):
            proof = log.inclusion_proof(index, size)
            merkle.verify_inclusion(entries[index].leaf, index, size, proof, root)
        for old in range(0, size + 1, 4):
            merkle.verify_consistency(old, log.root(old), size, root, log.consistency_proof(old, size))
    assert log.inclusion_proof(7) == log.inclusion_proof(7, 33)
    assert log.consistency_proof(7) == log.consistency_proof(7, 33)
    log.check()


def test_the_checkpoint_is_the_signed_head(log: AuditLog) -> None:
    empty = open_checkpoint(log.checkpoint(ORIGIN, KEY), ORIGIN, KEY.public)
    assert (empty.size, empty.root) == (0, merkle.EMPTY_ROOT)
    fill(log, 5)
    head = open_checkpoint(log.checkpoint(ORIGIN, KEY), ORIGIN, KEY.public)
    assert head == Checkpoint(ORIGIN, 5, log.root())


@pytest.mark.parametrize(
    "row",
    [
        ("", "b", "c", {}),
        ("a", "", "c", {}),
        ("a", 1, "c", {}),
        ("a", "b", "c", []),
        ("a", "b", "c", {"n": 2**60}),
    ],
)
def test_a_bad_row_leaves_nothing(log: AuditLog, row: tuple[str, str, str, dict[str, int]]) -> None:
    with pytest.raises(InputError):
        log.append_many([("a", "b", "c", {}), row])
    assert log.size == 0


def test_a_clock_without_timezone_is_refused(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.db", ORIGIN, clock=lambda: datetime(2026, 1, 1))
    with pytest.raises(InputError, match="timezone"):
        log.append("a", "b", "c", {})


def test_what_the_log_never_was_is_refused(log: AuditLog) -> None:
    fill(log, 3)
    for ask in (
        lambda: log.root(4),
        lambda: log.root(-1),
        lambda: log.inclusion_proof(3, 3),
        lambda: log.inclusion_proof(0, 4),
        lambda: log.consistency_proof(2, 4),
        lambda: log.consistency_proof(3, 2),
        lambda: list(log.entries(0, 4)),
    ):
        with pytest.raises(InputError):
            ask()


# ── not a log ────────────────────────────────────────────────────────────────────────────────────


def test_another_origin_is_refused(log: AuditLog, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not of other\.example"):
        AuditLog(tmp_path / "audit.db", "other.example")


def test_files_that_are_no_log_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("no database at all" * 100)
    other = tmp_path / "other.db"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE t (x)")
    db.close()
    for path in (text, other, tmp_path):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(InputError):
            AuditLog(path, ORIGIN)
        assert not path.is_file() or path.read_bytes() == before
    with pytest.raises(InputError, match="no such"):
        AuditLog(tmp_path / "missing.db", ORIGIN, create=False)
    assert not (tmp_path / "missing.db").exists()


def test_a_lost_file_does_not_come_back_empty(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 1)
    (tmp_path / "audit.db").unlink()
    with pytest.raises(InputError):
        log.append("a", "b", "c", {})
    assert not (tmp_path / "audit.db").exists()


def test_the_files_are_private_and_never_in_wal_mode(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 1)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"audit.db", "audit.db-journal"}  # and no -wal: the WAL-reset fault needs one
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in names} == {0o600}
    assert (tmp_path / "audit.db").read_bytes()[18:20] == b"\x01\x01"  # the format: 2 would be WAL
    db = sqlite3.connect(tmp_path / "audit.db")
    assert db.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    db.close()
    fill(AuditLog(tmp_path / "audit.db", ORIGIN), 1)  # taken out of it
    assert (tmp_path / "audit.db").read_bytes()[18:20] == b"\x01\x01"


@pytest.mark.parametrize(
    "statement", ["DELETE FROM entry", "UPDATE entry SET body = x''", "DELETE FROM node"]
)
def test_triggers_stop_accidents(log: AuditLog, tmp_path: Path, statement: str) -> None:
    fill(log, 3)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        tamper(tmp_path / "audit.db", statement, drop=False)
    for replace in ("entry VALUES (1, x'00')", f"node VALUES (0, 1, x'{'00' * 32}')", "log VALUES ('x')"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            tamper(tmp_path / "audit.db", f"INSERT OR REPLACE INTO {replace}", drop=False)
    log.check()


# ── tampering ────────────────────────────────────────────────────────────────────────────────────


def tamper(path: Path, *statements: str, drop: bool = True) -> None:
    """Change a log as its owner can: drop the triggers, run the statements, put the triggers back."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers if drop else []:
            db.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            db.execute(statement)
        for _, sql in triggers if drop else []:
            db.execute(sql)
    finally:
        db.close()


SEEN = {
    "edit": [
        "UPDATE entry SET body = CAST(replace(CAST(body AS TEXT), 'study-3', 'study-4') AS BLOB) WHERE seq = 3"
    ],
    "edit_to_nonsense": ["UPDATE entry SET body = x'ff' WHERE seq = 3"],
    "edit_hash": ["UPDATE node SET hash = zeroblob(32) WHERE level = 2 AND idx = 1"],
    "reorder": [
        "UPDATE entry SET seq = -1 WHERE seq = 3",
        "UPDATE entry SET seq = 3 WHERE seq = 4",
        "UPDATE entry SET seq = 4 WHERE seq = -1",
    ],
    "delete_inside": ["DELETE FROM entry WHERE seq = 3"],
    "delete_tail_entries": ["DELETE FROM entry WHERE seq >= 6"],
    "delete_last": ["DELETE FROM entry WHERE seq = 10"],
    "delete_node": ["DELETE FROM node WHERE level = 1 AND idx = 0"],
    "extra_node": ["INSERT INTO node VALUES (9, 0, zeroblob(32))"],
    "extra_entry": ["INSERT INTO entry VALUES (11, x'00')"],
    "entry_before_the_first": ["INSERT INTO entry VALUES (-5, x'00')"],
    "move_node": ["UPDATE node SET idx = 77 WHERE level = 0 AND idx = 2"],
}


@pytest.mark.parametrize("name", SEEN)
def test_tampering_inside_the_file_is_seen(log: AuditLog, tmp_path: Path, name: str) -> None:
    fill(log, 11)
    log.check()
    tamper(tmp_path / "audit.db", *SEEN[name])
    with pytest.raises(VerificationError):
        AuditLog(tmp_path / "audit.db", ORIGIN).check()


def test_a_dropped_trigger_is_seen(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 2)
    db = sqlite3.connect(tmp_path / "audit.db")
    db.execute("DROP TRIGGER entry_delete")
    db.close()
    with pytest.raises(VerificationError, match="triggers"):
        log.check()
    with pytest.raises(VerificationError, match="triggers"):
        AuditLog(tmp_path / "audit.db", ORIGIN)


def test_appending_to_a_cut_log_is_refused(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 8)
    tamper(tmp_path / "audit.db", "DELETE FROM entry WHERE seq >= 6")
    with pytest.raises(VerificationError):
        fill(log, 1)


def test_every_corrupt_page_is_seen(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 300)
    path = tmp_path / "audit.db"
    good = path.read_bytes()
    for page in range(len(good) // 4096):
        path.write_bytes(good[: page * 4096] + b"\xa5" * 4096 + good[(page + 1) * 4096 :])
        with pytest.raises((VerificationError, InputError)):
            AuditLog(path, ORIGIN).check()
    path.write_bytes(good[: len(good) // 4096 // 2 * 4096])  # cut in the middle
    with pytest.raises((VerificationError, InputError)):
        AuditLog(path, ORIGIN).check()
    path.write_bytes(good)
    log.check()


# ── the witness ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def keeper(tmp_path: Path) -> HeadKeeper:
    return HeadKeeper(tmp_path / "node" / "head.note", ORIGIN, KEY.public)


def show(log: AuditLog, keeper: HeadKeeper) -> Checkpoint:
    """One round: the node asks for the proof from its own head."""
    size = keeper.head.size if keeper.head else 0
    new = log.size
    return keeper.advance(log.checkpoint(ORIGIN, KEY), log.consistency_proof(min(size, new), new))


def evidence(tmp_path: Path) -> list[dict[str, str]]:
    return [parse_json(path.read_bytes()) for path in (tmp_path / "node").glob("head.note.refused-*.json")]


def test_the_keeper_follows_a_growing_log(
    log: AuditLog, keeper: HeadKeeper, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert keeper.head is None
    with caplog.at_level(logging.WARNING):
        show(log, keeper)
    assert "first contact" in caplog.text
    caplog.clear()
    for count in (0, 1, 1, 5, 0, 64):
        fill(log, count)
        head = show(log, keeper)
        assert head == keeper.head == Checkpoint(ORIGIN, log.size, log.root())
        again = HeadKeeper(tmp_path / "node" / "head.note", ORIGIN, KEY.public)
        assert again.head == head
    assert not caplog.text
    assert not evidence(tmp_path)


def test_first_contact_with_a_long_log(log: AuditLog, keeper: HeadKeeper) -> None:
    fill(log, 9)
    with pytest.raises(VerificationError):
        keeper.advance(log.checkpoint(ORIGIN, KEY), log.consistency_proof(3))
    assert keeper.head is None
    assert show(log, keeper).size == 9


def rebuilt(path: Path, count: int, changed: int | None = None) -> AuditLog:
    """A flawless log whose entry `changed` says something else."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    log = AuditLog(path, ORIGIN, clock=lambda: moment)
    log.append_many([("a", "b", "x" if i == changed else "c", {"i": i}) for i in range(count)])
    log.check()
    return log


@pytest.mark.parametrize("changed", [0, 5, 9])
@pytest.mark.parametrize("longer", [0, 1, 30])
def test_a_fork_is_refused_and_kept(keeper: HeadKeeper, tmp_path: Path, changed: int, longer: int) -> None:
    honest = rebuilt(tmp_path / "honest.db", 10)
    head = show(honest, keeper)
    fork = rebuilt(tmp_path / "fork.db", 10 + longer, changed)
    with pytest.raises(VerificationError, match="fork"):
        show(fork, keeper)
    assert keeper.head == head
    (kept,) = evidence(tmp_path)
    for name, expected in (("kept", head), ("refused", Checkpoint(ORIGIN, fork.size, fork.root()))):
        assert open_checkpoint(kept[name], ORIGIN, KEY.public) == expected
    with pytest.raises(VerificationError, match="fork"):  # again: one file
        show(fork, keeper)
    assert len(evidence(tmp_path)) == 1
    fill(honest, 3)
    show(honest, keeper)


def test_a_cut_log_is_refused_though_it_checks(log: AuditLog, keeper: HeadKeeper, tmp_path: Path) -> None:
    fill(log, 12)
    show(log, keeper)
    tamper(
        tmp_path / "audit.db",
        "DELETE FROM entry WHERE seq >= 8",
        "DELETE FROM node WHERE (idx + 1) << level > 8",  # those that the cut entries completed
    )
    log.check()
    with pytest.raises(VerificationError, match="truncated"):
        show(log, keeper)
    fill(log, 10)  # grown again past the head, with other entries
    log.check()
    with pytest.raises(VerificationError, match="fork"):
        show(log, keeper)
    assert len(evidence(tmp_path)) == 2


def test_what_the_log_did_not_sign_changes_nothing(log: AuditLog, keeper: HeadKeeper, tmp_path: Path) -> None:
    fill(log, 2)
    head = show(log, keeper)
    for note in (
        log.checkpoint(ORIGIN, SigningKey.generate()),
        log.checkpoint("other.example", KEY),
        Checkpoint("other.example", 9, HEAD.root).sign(ORIGIN, KEY),
        "nonsense",
    ):
        with pytest.raises(VerificationError):
            keeper.advance(note, [])
    assert keeper.head == head
    assert not evidence(tmp_path)


def test_a_damaged_head_is_not_a_first_contact(log: AuditLog, keeper: HeadKeeper, tmp_path: Path) -> None:
    fill(log, 2)
    show(log, keeper)
    for damage in (b"", b"\xff", b"text"):
        (tmp_path / "node" / "head.note").write_bytes(damage)
        with pytest.raises(VerificationError):
            keeper.advance(log.checkpoint(ORIGIN, KEY), [])


def test_evidence_is_bounded(keeper: HeadKeeper, tmp_path: Path) -> None:
    show(rebuilt(tmp_path / "honest.db", 10), keeper)
    for i in range(120):
        with pytest.raises(VerificationError):
            keeper.advance(Checkpoint(ORIGIN, 10, bytes([i]) * 32).sign(ORIGIN, KEY), [])
    assert len(evidence(tmp_path)) == 100


def test_keepers_in_threads_never_go_back(log: AuditLog, keeper: HeadKeeper, tmp_path: Path) -> None:
    fill(log, 1)
    show(log, keeper)
    path, seen = tmp_path / "node" / "head.note", []

    def run() -> None:
        mine = HeadKeeper(path, ORIGIN, KEY.public)
        for _ in range(15):
            log.append("a", "b", "c", {})
            try:
                seen.append(show(log, mine).size)
            except VerificationError:
                continue  # another thread advanced between our question and our note

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keeper.head is not None
    assert keeper.head.size == max(seen)


# ── processes ────────────────────────────────────────────────────────────────────────────────────


WRITER = """
import sys
from pathlib import Path
from foedus.compliance.auditlog.log import AuditLog
log = AuditLog(Path(sys.argv[1]), sys.argv[2])
for i in range(int(sys.argv[4])):
    print(log.append(sys.argv[3], "write", str(i), {}), flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), ORIGIN, name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_and_two_threads_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    processes = [writer(path, name, 60) for name in ("one", "two")]  # both make the file, too
    log = AuditLog(path, ORIGIN)
    threads = [
        threading.Thread(target=lambda: [log.append("t", "write", "", {}) for _ in range(30)]) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    acknowledged = {}
    for name, process in zip(("one", "two"), processes, strict=True):
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        acknowledged |= {int(index): (name, str(i)) for i, index in enumerate(out.split())}
    for thread in threads:
        thread.join()
    records = [entry.record for entry in log.entries()]
    assert len(records) == 180
    assert len(acknowledged) == 120
    for index, said in acknowledged.items():
        assert (records[index]["actor"], records[index]["subject"]) == said
    log.check()


def test_kill_9_loses_no_acknowledged_entry(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    log, heads, total = AuditLog(path, ORIGIN), [], 0
    for kill in range(10):
        process = writer(path, f"run {kill}", 10**9)
        assert process.stdout is not None
        process.stdout.readline()  # it is running
        time.sleep(0.01 + 0.013 * kill)
        process.send_signal(signal.SIGKILL)
        rest = re.findall(r"(\d+)\n", process.stdout.read())  # whole lines only
        process.stdout.close()
        process.wait()
        acknowledged = [int(index) for index in rest]
        size = log.size  # recovers the journal, if one was left
        assert size > (acknowledged[-1] if acknowledged else total)
        for index in acknowledged:
            (entry,) = log.entries(index, index + 1)
            assert entry.record["actor"] == f"run {kill}"
        for old, root in heads:
            assert log.root(old) == root
        heads.append((size, log.root()))
        total = size
    log.check()
    assert total > 10


def test_a_copy_taken_while_idle_is_a_log(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 10)
    shutil.copy(tmp_path / "audit.db", tmp_path / "copy.db")
    (tmp_path / "copy.db").chmod(0o400)
    copy = AuditLog(tmp_path / "copy.db", ORIGIN, create=False)
    copy.check()
    assert copy.root() == log.root()
    assert json.loads(next(iter(copy.entries())).body)["actor"] == "dpo@bank"
