"""The benchmarks run: small, and whatever they find."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.deployment


@pytest.mark.skipif(
    "FOEDUS_BENCHMARKS" not in os.environ, reason="a minute of stock Flower; FOEDUS_BENCHMARKS=1 runs it"
)
def test_trips(tmp_path: Path) -> None:
    """Both fleets come up and answer, and the ratio is worked out from what is shown."""
    out = tmp_path / "trips.md"
    command = [sys.executable, str(ROOT / "benchmarks" / "trips.py"), "--quick", "--write", str(out)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert ended.returncode in (0, 1), ended.stderr
    table = out.read_text()
    rows = re.findall(r"^\| 2 \| ([\w ]+) \| 1 \| ([\d.]+) \(", table, re.MULTILINE)
    assert [name for name, _ in rows] == ["stock Flower", "foedus"]
    (ratio,) = re.findall(r"\*\*ratio\*\* \| \| \*\*([\d.]+)\*\* \(bar 0\.08\)", table)
    assert float(ratio) == pytest.approx(float(rows[1][1]) / float(rows[0][1]), abs=0.01)
    assert (ended.returncode == 1 or float(ratio) <= 0.08) and table.rstrip() and "/" + "tmp" not in table
