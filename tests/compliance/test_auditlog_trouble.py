"""A log under bad conditions: a clock that is wrong, a disk that is full."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.disks import small_disk

from foedus.compliance.auditlog.log import CLOCK_SET, AuditLog, customer_key
from foedus.documents import canonical, parse_json
from foedus.errors import InputError, VerificationError

from .test_auditlog import tamper

ORIGIN = "treaty.example/log"
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(tmp_path: Path, clock: Clock) -> AuditLog:
    return AuditLog(tmp_path / "audit.db", ORIGIN, clock=clock)


def times(log: AuditLog) -> list[datetime]:
    return [entry.time for entry in log.entries()]


def test_a_clock_that_goes_back_a_little_stands_still(log: AuditLog, clock: Clock) -> None:
    log.append("a", "b", "c", {})
    for seconds in (-1, -299, 1):
        clock.now = NOON + timedelta(seconds=seconds)
        log.append("a", "b", "c", {})
    assert times(log) == [NOON, NOON, NOON, NOON + timedelta(seconds=1)]
    log.check()


def test_nothing_is_logged_under_a_clock_that_was_set_back(log: AuditLog, clock: Clock) -> None:
    clock.now = NOON + timedelta(days=365)  # somebody mistyped the year
    log.append("a", "b", "c", {})
    clock.now = NOON
    with pytest.raises(InputError, match="set back") as caught:
        log.append("a", "b", "c", {})
    assert "2027-11-22T12:00:00.000000Z" in caught.value.message and "set the clock" in caught.value.remedy
    with pytest.raises(InputError, match="set back"):
        log.append("a", "b", "c", {}, sealed={"x": 1}, key=customer_key("ada"))
    assert log.size == 1

    with pytest.raises(InputError, match="reason"):
        log.set_clock("dora", " ")
    assert log.set_clock("dora", "the year was mistyped") == 1
    log.append("a", "b", "c", {})
    assert [entry.record["action"] for entry in log.entries()] == ["b", CLOCK_SET, "b"]
    assert times(log)[1:] == [NOON, NOON]
    log.check()


def test_an_entry_of_an_earlier_time_is_found(
    log: AuditLog, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append("a", "b", "c", {})
    monkeypatch.setattr(log, "_time", lambda *_, **__: "2026-11-22T11:00:00.000000Z")  # as a forger would
    log.append("a", "b", "c", {})
    with pytest.raises(VerificationError, match=r"entry 1 is of 2026-11-22T11:00:00\.000000Z, long before"):
        log.check()


@pytest.mark.parametrize("time", ["2026-13-22T12:00:00.000000Z", "yesterday", "2026-11-22T12:00:00Z"])
def test_an_entry_without_a_time_is_found(log: AuditLog, tmp_path: Path, time: str) -> None:
    log.append("a", "b", "c", {})
    body = canonical({**parse_json(next(log.entries()).body), "time": time})
    tamper(tmp_path / "audit.db", f"UPDATE entry SET body = x'{body.hex()}'")  # noqa: S608
    with pytest.raises(VerificationError, match="its time"):
        log.check()
    with pytest.raises(VerificationError, match="its time"):
        log.append("a", "b", "c", {})


def test_a_full_disk_takes_an_append_whole_or_not(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4) as disk:
        log = AuditLog(disk.path / "audit.db", ORIGIN)
        ada = customer_key("ada")
        log.append("a", "b", "c", {}, sealed={"n": 0}, key=ada)
        refused = 0
        for leave in range(0, 1 << 17, 8192):
            disk.fill(leave)
            before = log.size
            try:
                log.append("a", "b", "c", {"x": "y" * 20_000}, sealed={"z": "w" * 20_000}, key=ada)
            except InputError as error:
                refused += 1
                assert "full" in error.message or "space" in error.message, error.message
                assert log.size == before
            disk.free()
            log.check()
        assert 3 <= refused < 16
        assert log.append("a", "b", "c", {}) == 17 - refused
        log.check()
