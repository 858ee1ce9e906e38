"""Payloads beside the log: committed to, sealed, and gone with their key while the log still verifies."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from foedus.compliance.auditlog import merkle
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.auditlog.payloads import Opening, SealedPayloads, SqliteRows, verify_opening
from foedus.documents import b64, canonical
from foedus.errors import InputError, VerificationError

SECRET = {"email": "ada@example.com", "rows": 3}


@pytest.fixture
def store(tmp_path: Path) -> SealedPayloads:
    return SealedPayloads(SqliteRows(tmp_path / "payloads.db"), tmp_path / "keys")


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_an_entry_verifies_with_its_payload_and_without(store: SealedPayloads, tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.db", "treaty.example/log")
    commitments = [store.seal(f"subject-{i % 2}", {**SECRET, "i": i}) for i in range(4)]
    log.append_many([("node", "row.read", "", {"commitment": c}) for c in commitments])
    root = log.root()
    opening = store.open(commitments[1])
    assert opening is not None
    assert opening.payload == {**SECRET, "i": 1}
    verify_opening(next(iter(log.entries(1, 2))).record["details"]["commitment"], opening)

    assert store.shred("subject-1") == 2
    found = [store.open(c) for c in commitments]
    assert [one is None for one in found] == [False, True, False, True]
    log.check()
    assert log.root() == root
    for entry in log.entries():
        merkle.verify_inclusion(entry.leaf, entry.index, 4, log.inclusion_proof(entry.index), root)
    assert store.shred("subject-1") is None


def test_nothing_readable_is_left_of_what_was_shredded(store: SealedPayloads, tmp_path: Path) -> None:
    store.seal("eve", SECRET)
    before = set((tmp_path / "keys").iterdir())
    commitment = store.seal("Xanthippe", SECRET)
    made = set((tmp_path / "keys").iterdir()) - before
    (key,) = [path.read_bytes() for path in made if path.suffix == ".key"]
    assert len(key) == 32
    assert b"Xanthippe" not in everything(tmp_path)  # neither the payload nor the holder, even before
    store.shred("Xanthippe")
    assert key not in everything(tmp_path)
    assert set((tmp_path / "keys").iterdir()) - before == set()
    assert store.open(commitment) is None


def test_equal_payloads_look_unequal(store: SealedPayloads) -> None:
    assert len({store.seal("ada", SECRET) for _ in range(5)}) == 5


def test_a_holder_that_comes_back_gets_another_key(store: SealedPayloads) -> None:
    old = store.seal("ada", SECRET)
    store.shred("ada")
    new = store.seal("ada", SECRET)
    assert store.open(old) is None
    assert store.open(new) is not None


@pytest.mark.parametrize("removed", [True, False])
def test_a_cut_off_shredding_is_ended_by_the_next(
    store: SealedPayloads, tmp_path: Path, removed: bool
) -> None:
    old = store.seal("ada", SECRET)
    (path,) = (tmp_path / "keys").glob("*.key")
    path.write_bytes(bytes(32))
    if removed:
        path.unlink()  # the key is gone, its name is not yet
    assert store.open(old) is None
    new = store.seal("ada", SECRET)
    assert store.open(new) is not None
    assert store.shred("ada") == 1
    assert [path.name for path in (tmp_path / "keys").glob("*.name")] == []


def test_a_damaged_key_is_not_a_deleted_one(store: SealedPayloads, tmp_path: Path) -> None:
    commitment = store.seal("ada", SECRET)
    (path,) = (tmp_path / "keys").glob("*.key")
    path.write_bytes(path.read_bytes()[:31])
    with pytest.raises(VerificationError, match="damaged"):
        store.open(commitment)


@pytest.mark.parametrize("change", ["sealed", "key_id", "moved", "gone"])
def test_a_changed_payload_is_refused(store: SealedPayloads, tmp_path: Path, change: str) -> None:
    first, second = store.seal("ada", SECRET), store.seal("ada", {"other": 1})
    db = sqlite3.connect(tmp_path / "payloads.db", isolation_level=None)
    triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    rows = dict(db.execute("SELECT commitment, sealed FROM payload").fetchall())
    mine = next(c for c in rows if b64(c) == first)
    other = next(c for c in rows if b64(c) == second)
    match change:
        case "sealed":
            bad = rows[mine][:-1] + bytes([rows[mine][-1] ^ 1])
            db.execute("UPDATE payload SET sealed = ? WHERE commitment = ?", (bad, mine))
        case "key_id":
            db.execute("UPDATE payload SET key_id = '../x' WHERE commitment = ?", (mine,))
        case "moved":  # bound to its commitment, so another's ciphertext does not open
            db.execute("UPDATE payload SET sealed = ? WHERE commitment = ?", (rows[other], mine))
        case _:
            db.execute("DELETE FROM payload WHERE commitment = ?", (mine,))
    for _, sql in triggers:
        db.execute(sql)
    db.close()
    with pytest.raises(VerificationError):
        store.open(first)
    assert store.open(second) is not None


def test_an_opening_is_of_one_commitment(store: SealedPayloads) -> None:
    commitment = store.seal("ada", SECRET)
    opening = store.open(commitment)
    assert opening is not None
    assert "ada" not in repr(opening)
    for bad in (
        Opening(opening.salt, {**SECRET, "rows": 4}),
        Opening(bytes(32), SECRET),
        Opening(opening.salt[:31], SECRET),
        # a byte moved from the payload to the salt
        Opening(opening.salt + canonical(SECRET)[:1], SECRET),
    ):
        with pytest.raises(VerificationError):
            verify_opening(commitment, bad)
    for text in ("", "x", b64(bytes(31))):
        with pytest.raises(VerificationError):
            verify_opening(text, opening)


def test_what_cannot_be_sealed_is_refused(store: SealedPayloads) -> None:
    with pytest.raises(InputError, match="holder"):
        store.seal("", SECRET)
    with pytest.raises(InputError):
        store.seal("ada", {"n": 2**60})


def test_threads_share_one_key_of_a_holder(tmp_path: Path) -> None:
    def run() -> None:
        mine = SealedPayloads(SqliteRows(tmp_path / "payloads.db"), tmp_path / "keys")
        given.extend(mine.seal("ada", {"i": i}) for i in range(5))

    given: list[str] = []
    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = SealedPayloads(SqliteRows(tmp_path / "payloads.db"), tmp_path / "keys")
    assert len(given) == 30
    assert all(store.open(commitment) is not None for commitment in given)
    assert len(list((tmp_path / "keys").glob("*.key"))) == 1
