"""SIGKILL before every single write, sync, truncation and unlink of the ledger: no line is lost, none doubled.

A kill loses what a process had not written; a power cut also what it had not synced. The last test
looks at the order of the syncs instead, as a kill can't show that one is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.ptrace import Say, available, traced
from support.sums import scratch

from foedus.privacy.events import DistributedDiscreteGaussian
from foedus.privacy.ledger import Cap, Ledger

pytestmark = pytest.mark.skipif(not available(), reason="needs ptrace on x86-64 Linux")
COST = DistributedDiscreteGaussian(sensitivity=256.0, sigma=2000.0, shares=2, dimension=13)
LESS = DistributedDiscreteGaussian(sensitivity=256.0, sigma=2000.0, shares=3, dimension=13)
WIDE = Cap(100.0, 1e-5)
PLAN = ["reserve", "commit", "reserve", "abort", "reserve"]


@pytest.fixture
def folder() -> Iterator[Path]:
    made = scratch()
    yield made
    shutil.rmtree(made)


def reserve(ledger: Ledger) -> int:
    return ledger.reserve(COST, purpose="dpv:Marketing", study="1" * 64, label="x", cap=WIDE, study_cap=WIDE)


def work(path: Path, say: Say) -> None:
    ledger = Ledger(path, "shop-a")
    first = reserve(ledger)
    say("reserve")
    ledger.commit(first, LESS)
    say("commit")
    second = reserve(ledger)
    say("reserve")
    ledger.abort(second)
    say("abort")
    reserve(ledger)
    say("reserve")


def test_killed_before_every_write_nothing_is_lost_or_doubled(folder: Path) -> None:
    whole = traced(lambda say: work(folder / "whole.db", say))
    assert whole.code == 0 and list(whole.said) == PLAN
    points = len(whole.calls)
    assert points > 60 and {"pwrite64", "unlink"} <= {name for name, _ in whole.calls}
    unacknowledged = 0
    for point in range(points):
        path = folder / f"{point}.db"
        ended = traced(lambda say, path=path: work(path, say), kill_before=point)  # type: ignore[misc]
        assert ended.code == -9 and len(ended.calls) == point + 1
        again = Ledger(path, "shop-a")
        kinds = [line.kind for line in again.lines()]  # raises where the chain is broken
        said = list(ended.said)
        # What was acknowledged is there; at most the one line that was under way is there as well.
        assert kinds in (said, PLAN[: len(said) + 1]), (point, ended.calls[-1])
        unacknowledged += kinds != said
        counted = {0: [], 1: [COST], 2: [LESS], 3: [LESS, COST], 4: [LESS], 5: [LESS, COST]}[len(kinds)]
        assert again.events() == counted
        reserve(again)  # and it goes on
        assert again.verify().size == len(kinds) + 1
    assert unacknowledged >= len(PLAN)  # the kills did fall between a line and its acknowledgement


def test_one_ledger_survives_kill_after_kill(folder: Path) -> None:
    """The same file, killed at one point after the other: what one kill left is what the next begins with."""
    path = folder / "ledger.db"
    reserve(Ledger(path, "shop-a"))
    lines = 1
    for point in range(0, 120, 3):
        ended = traced(lambda say: work(path, say), kill_before=point)
        now = Ledger(path).head.size
        grown = now - lines
        assert grown in (len(ended.said), len(ended.said) + 1), point
        lines = now
    found = list(Ledger(path).lines())
    assert [line.number for line in found] == list(range(1, lines + 1))
    closed = [line.ref for line in found if line.kind in ("commit", "abort")]
    assert len(closed) == len(set(closed))
    aborted = sum(line.kind == "abort" for line in found)
    assert len(Ledger(path).events()) == sum(line.kind == "reserve" for line in found) - aborted


def test_every_line_is_synced_before_it_is_acknowledged(folder: Path) -> None:
    """A kill can't show a sync that is missing, a power cut could: journal, then file, then directory."""
    path = folder / "ledger.db"
    Ledger(path, "shop-a")

    def once(say: Say) -> None:
        reserve(Ledger(path))
        say("reserved")

    calls = [(name.replace("fdatasync", "fsync"), file) for name, file in traced(once).calls]
    assert calls[-1][0] == "write"  # the acknowledgement
    journal, last = path.name + "-journal", len(calls)
    first_write = calls.index(("pwrite64", path.name))
    assert ("fsync", journal) in calls[:first_write]  # what undoes the write is safe before it begins
    unlink = next(i for i, (name, _) in enumerate(calls) if name == "unlink")
    writes = [i for i, call in enumerate(calls) if call == ("pwrite64", path.name)]
    synced = calls.index(("fsync", path.name))
    assert max(writes) < synced < unlink  # the line is safe before the undoing is given up
    assert ("fsync", folder.name) in calls[unlink:last]  # and so is its giving up, before anybody hears
