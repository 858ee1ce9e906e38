"""The log with sealed payloads: what an entry shows, what shredding leaves, what a check counts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from foedus.compliance.auditlog.log import SHREDDED, AuditLog, commitment_in, customer_key, study_key
from foedus.compliance.auditlog.payloads import verify_opening
from foedus.errors import InputError, VerificationError

ORIGIN = "treaty.example/log"
ADA = customer_key("ada@example.com")


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "audit.db", ORIGIN)


def tell(log: AuditLog, key: str = ADA, word: str = "moved away") -> int:
    sealed = {"customer": key, "reason": word}
    return log.append("bank-a", "consent.withdrawn", "customer", {"purpose": "dpv:X"}, sealed=sealed, key=key)


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_payload_is_sealed_opened_and_shredded(log: AuditLog, tmp_path: Path) -> None:
    index = tell(log)
    other = tell(log, study_key("ab" * 32))
    assert b"ada@" not in everything(tmp_path)
    assert b"moved" not in everything(tmp_path)
    opening = log.open_payload(index)
    assert opening is not None
    assert opening.payload == {"customer": ADA, "reason": "moved away"}
    commitment = commitment_in(next(log.entries(index, index + 1)).record)
    assert commitment is not None
    verify_opening(commitment, opening)
    root = log.root(2)

    assert log.shred("bank-a", ADA) == 1
    assert log.open_payload(index) is None
    assert log.open_payload(other) is not None
    assert log.root(2) == root
    log.check()
    told = next(log.entries(2, 3)).record
    assert (told["action"], told["subject"], told["details"]) == (SHREDDED, "", {"payloads": 1})
    assert log.shred("bank-a", ADA) == 0
    assert log.size == 3
    tell(log)  # they came back
    log.check()


def test_an_entry_without_a_payload_makes_no_files(log: AuditLog, tmp_path: Path) -> None:
    log.append("a", "b", "c", {})
    assert log.shred("a", ADA) == 0
    log.check()
    assert {path.name for path in tmp_path.iterdir()} <= {"audit.db", "audit.db-journal"}


@pytest.mark.parametrize("what", ["audit-payloads.db", "audit-keys"])
def test_lost_payloads_and_keys_are_found_missing(log: AuditLog, tmp_path: Path, what: str) -> None:
    tell(log)
    log.check()
    lost = tmp_path / what
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    with pytest.raises(VerificationError, match=r"no payload|can't be opened"):
        log.check()


def test_a_key_that_was_deleted_without_a_word_is_found_missing(log: AuditLog, tmp_path: Path) -> None:
    tell(log)
    tell(log, customer_key("bob"))
    log.shred("bank-a", ADA)
    log.check()
    for path in (tmp_path / "audit-keys").glob("*.key"):
        path.unlink()
    with pytest.raises(VerificationError, match=r"2 sealed payloads can't be opened.*1 were shredded"):
        log.check()


def test_a_payload_and_its_key_go_together(log: AuditLog) -> None:
    with pytest.raises(InputError, match="together"):
        log.append("a", "b", "c", {}, sealed={"x": 1})
    with pytest.raises(InputError, match="together"):
        log.append("a", "b", "c", {}, key=ADA)
    with pytest.raises(InputError, match="sealed"):
        log.append("a", "b", "c", {"sealed": "x"})
    with pytest.raises(InputError):
        log.append("", "b", "c", {}, sealed={"x": 1}, key=ADA)
    assert log.size == 0
    log.append("a", "b", "c", {})
    with pytest.raises(InputError, match="no sealed payload"):
        log.open_payload(0)


def test_a_key_that_cannot_be_announced_stays(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tell(log)

    def full(*_: object, **__: object) -> int:
        raise InputError("disk full")

    monkeypatch.setattr(log, "append", full)
    with pytest.raises(InputError, match="disk full"):
        log.shred("bank-a", ADA)
    assert log.open_payload(index) is not None
