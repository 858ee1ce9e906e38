"""Group commit: threads share a transaction, each gets its own answer, and nobody is left waiting."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from foedus.compliance.auditlog.batches import GroupCommit
from foedus.compliance.auditlog.log import AuditLog
from foedus.errors import InputError, VerificationError

ORIGIN = "treaty.example/log"


def together(count: int, job: Callable[[int], Any]) -> list[Any]:
    """What `job(i)` returned or raised, in a thread each."""
    out: list[Any] = [None] * count

    def run(i: int) -> None:
        try:
            out[i] = job(i)
        except BaseException as error:  # noqa: BLE001
            out[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return out


class Slow:
    """Commits that wait until everybody has handed in, and say what they were given."""

    def __init__(self, callers: int, error: BaseException | None = None) -> None:
        self.batches: list[list[int]] = []
        self.callers, self.error = callers, error
        self.group = GroupCommit(self.commit)

    def commit(self, batch: Sequence[int]) -> list[int]:
        self.batches.append(list(batch))
        while sum(map(len, self.batches)) + len(self.group._waiting) < self.callers:
            pass
        if self.error is not None:
            raise self.error
        return [10 * item for item in batch]


def test_two_batches_serve_all_who_came_meanwhile() -> None:
    slow = Slow(20)
    assert together(20, slow.group) == [10 * i for i in range(20)]
    assert sorted(map(len, slow.batches)) == [1, 19]
    assert slow.group(7) == 70  # and a lone caller after it


def test_a_batch_is_bounded_and_in_order() -> None:
    slow = Slow(20)
    slow.group = GroupCommit(slow.commit, most=4)
    together(20, slow.group)
    assert [len(batch) for batch in slow.batches] == [1, 4, 4, 4, 4, 3]


@pytest.mark.parametrize("error", [VerificationError("the tree is gone", remedy="r"), KeyboardInterrupt()])
def test_a_failed_batch_fails_for_everybody_in_it(error: BaseException) -> None:
    slow = Slow(9, error)
    said = together(9, slow.group)
    if isinstance(error, VerificationError):
        assert {str(e) for e in said} == {"the tree is gone"}
        assert len({id(e) for e in said}) == 9  # each its own, with its own traceback
    else:  # whoever led was interrupted; the others are told that they don't know
        assert sum(isinstance(e, KeyboardInterrupt) for e in said) == 2
        assert sum("interrupted" in str(e) for e in said) == 7
    slow.error = None
    assert slow.group(7) == 70


def test_threads_get_the_index_of_their_own_entry(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.db", ORIGIN)
    rows = {i: [(f"t{i}", "write", str(j), {}) for j in range(1 + i % 3)] for i in range(40)}
    given = together(40, lambda i: log.append_many(rows[i]))
    records = [entry.record for entry in log.entries()]
    assert sorted(index for indices in given for index in indices) == list(range(len(records)))
    for i, indices in enumerate(given):
        assert [(records[n]["actor"], records[n]["subject"]) for n in indices] == [r[::2] for r in rows[i]]
    assert len({record["time"] for record in records}) < 40  # transactions were shared
    log.check()


def test_a_bad_row_hurts_nobody_else(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.db", ORIGIN)
    said = together(30, lambda i: log.append("a", "b", "c", {"n": 2**60 if i % 3 == 0 else i}))
    assert all(isinstance(one, InputError) == (i % 3 == 0) for i, one in enumerate(said))
    assert log.size == 20
    log.check()


def test_a_file_that_refuses_is_told_to_all(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    log = AuditLog(path, ORIGIN)
    log.append("a", "b", "c", {})
    db = sqlite3.connect(path)
    db.executescript("DROP TRIGGER node_delete; DELETE FROM node")
    db.close()
    said = together(10, lambda i: log.append("a", "b", "c", {}))
    assert all(isinstance(one, VerificationError) for one in said)
    assert log.size == 1
