"""Files that are replaced: killed anywhere, they hold the old bytes or the new, and are synced in this order."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.ptrace import Say, available, traced
from support.sums import scratch

from foedus import durable
from foedus.errors import InputError

traceable = pytest.mark.skipif(not available(), reason="needs ptrace on x86-64 Linux")
OLD, NEW = b"old", b"new" * 1000


@pytest.fixture
def path() -> Iterator[Path]:
    made = scratch()
    (made / "head").write_bytes(OLD)
    yield made / "head"
    shutil.rmtree(made)


def replaced(path: Path, say: Say) -> None:
    durable.replace(path, NEW)
    say("replaced")


@traceable
def test_killed_before_any_write_a_file_is_old_or_new(path: Path) -> None:
    found = set()
    points = len(traced(lambda say: replaced(path, say)).calls)
    for point in range(points):
        path.write_bytes(OLD)
        ended = traced(lambda say: replaced(path, say), kill_before=point)
        assert ended.code == -9
        found.add(path.read_bytes())
        assert not ended.said or path.read_bytes() == NEW
    assert found == {OLD, NEW}


@traceable
def test_the_bytes_are_synced_before_the_name_and_the_name_before_the_return(path: Path) -> None:
    calls = [call for call, _ in traced(lambda say: replaced(path, say)).calls]
    assert calls == ["write", "fsync", "rename", "fsync", "write"]  # the last: "replaced"


def test_what_cannot_be_written_leaves_the_old_bytes_and_nothing_beside_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        durable.replace(path, NEW)
    assert path.read_bytes() == OLD and list(path.parent.iterdir()) == [path]
