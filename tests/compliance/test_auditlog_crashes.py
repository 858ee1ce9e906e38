"""Nothing acknowledged is lost: kill -9 and power cuts, while eight threads append. More rounds: `make bench-auditlog`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import killing, powercut

compiler = pytest.mark.skipif(
    powercut.COMPILER is None or sys.platform != "linux", reason="the recorder needs a C compiler, and Linux"
)


def test_kill_9_under_group_commit(tmp_path: Path) -> None:
    command = [sys.executable, str(killing.__file__), str(tmp_path), "15", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    found = json.loads(done.stdout)
    assert found["faults"] == []
    assert found["entries"] >= found["acknowledged"] > 15


@compiler
def test_a_power_cut_takes_nothing_acknowledged(tmp_path: Path) -> None:
    found = powercut.power_cuts(tmp_path, 120, seed=1)
    assert found.faults == []
    assert found.steps > 200
    assert found.acknowledged > 40


@compiler
def test_the_simulation_sees_a_missing_sync(tmp_path: Path) -> None:
    found = powercut.power_cuts(tmp_path, 60, seed=1, synchronous="OFF", count=6)
    assert len(found.faults) > 5
