"""How long a message takes to every node and back: foedus beside stock Flower 1.41, both deployed here.

A trip does nothing: 32 bytes to every node, which sends them back. Both fleets run at once on 127.0.0.1, with
TLS and node authentication; blocks of trips of one and of the other take turns. The rival works its own way: a
process for every message, its polling, its ``send_and_receive``. Exits with 1 where foedus misses the bar.

    python benchmarks/trips.py [--nodes 4 10] [--trips 4] [--blocks 2] [--idle 30] [--write FILE] [--quick]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from trips_app.trips.server_app import cpu
from trips_fleets import Fleet, Ours, Stock

BAR = 0.08  # of the rival's wall time, at most
IDLE_BAR = 2.0  # percent of a core for an idle node, heartbeats and all
COLUMNS = (
    "| nodes | fleet | trips | wall, s | CPU, s | kB between nodes and server "
    "| an idle node, % of a core | the idle server, % of a core |"
)
_FAILED = 1


def machine() -> str:
    """What it runs on."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        processor = names[0] if names else processor
    load = os.getloadavg()[0]
    return (
        f"{processor}, {os.cpu_count()} cores, load {load:.1f} at the start; {platform.system()}, Python "
        f"{platform.python_version()}, flwr {version('flwr')}, httpx {version('httpx')}, "
        f"uvicorn {version('uvicorn')}, cryptography {version('cryptography')}"
    )


def spread(values: Sequence[float], form: str) -> str:
    """Median, and from where to where."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}}–{high:{form}})"


def idle(fleets: Sequence[Fleet], seconds: float) -> dict[str, tuple[float, float]]:
    """Percent of a core, while nothing happens: the costliest node, and all that runs at the server."""
    started = [([cpu([p]) for p in f.silos], cpu(list(f.server.values()))) for f in fleets]
    begin = time.monotonic()
    time.sleep(seconds)
    past, found = time.monotonic() - begin, {}
    for fleet, (silos, server) in zip(fleets, started, strict=True):
        node = max(cpu([pid]) - before for pid, before in zip(fleet.silos, silos, strict=True))
        found[fleet.name] = (100 * node / past, 100 * (cpu(list(fleet.server.values())) - server) / past)
    return found


def compare(root: Path, nodes: int, options: argparse.Namespace) -> tuple[list[str], bool]:
    """The rows of the table for one size of fleet, and whether foedus met the bars."""
    with Stock(root / f"stock-{nodes}", nodes) as rival, Ours(root / f"ours-{nodes}", nodes) as ours:
        trips: dict[str, list[dict[str, float]]] = {rival.name: [], ours.name: []}
        for number in range(options.blocks):
            for fleet in (rival, ours):
                trips[fleet.name] += fleet.block(options.trips)
                wall = [f"{trip['wall']:.2f}" for trip in trips[fleet.name][-options.trips :]]
                print(f"  {nodes} nodes, block {number + 1}, {fleet.name}: {' '.join(wall)} s", flush=True)
        resting = idle((rival, ours), options.idle)
    rows, medians = [], {}
    for name in (rival.name, ours.name):
        wall, spent, size = ([trip[key] for trip in trips[name]] for key in ("wall", "cpu", "bytes"))
        medians[name] = [statistics.median(values) for values in (wall, spent, size)]
        node, server = resting[name]
        rows.append(
            f"| {nodes} | {name} | {len(wall)} | {spread(wall, '.2f')} | {spread(spent, '.2f')} "
            f"| {spread([value / 1000 for value in size], '.0f')} | {node:.2f} | {server:.2f} |"
        )
    ratios = [a / b for a, b in zip(medians[ours.name], medians[rival.name], strict=True)]
    good = ratios[0] <= BAR and resting[ours.name][0] < IDLE_BAR
    rows.append(
        f"| {nodes} | **ratio** | | **{ratios[0]:.3f}** (bar {BAR}) | {ratios[1]:.3f} | {ratios[2]:.3f} "
        f"| (bar {IDLE_BAR:.0f}) | |"
    )
    return rows, good


def main() -> int:
    """Run it; returns the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends too
    parser = argparse.ArgumentParser(description="No-op trips: foedus beside stock Flower 1.41.")
    parser.add_argument("--nodes", type=int, nargs="+", default=[4, 10])
    parser.add_argument("--trips", type=int, default=4, help="trips of a block, after a warm-up")
    parser.add_argument("--blocks", type=int, default=2, help="blocks of each fleet, taking turns")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds over which idle cost is measured")
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    parser.add_argument("--quick", action="store_true", help="two nodes, one block of one trip: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.nodes, options.trips, options.blocks, options.idle = [2], 1, 1, 3.0
    heading = [
        f"Machine: {machine()}.",
        "",
        COLUMNS,
        "|---|---|---|---|---|---|---|---|",
    ]
    print(heading[0], flush=True)
    root, rows, good = Path(tempfile.mkdtemp(prefix="foedus-trips-")), [], True
    for nodes in options.nodes:
        added, met = compare(root, nodes, options)
        rows, good = rows + added, good and met
    shutil.rmtree(root)  # kept where something failed: the logs are in it
    table = "\n".join([*heading, *rows])
    print(
        f"\n{table}\n\n{'met' if good else 'MISSED'}: wall at most {BAR} of the rival's, and an idle node "
        f"under {IDLE_BAR:.0f} % of a core"
    )
    if options.write:
        options.write.write_text(_document(table), encoding="utf-8")
    return 0 if good else _FAILED


def _document(table: str) -> str:
    text = " ".join((__doc__ or "").split("\n\n")[1].split())
    return (
        "# A trip to every node and back\n\n"
        "```bash\n# starts servers\nmake bench-trips\n```\n\n"
        f"{text} Medians, with the least and the most in brackets; CPU is the sum over all processes of a fleet,\n"
        "those that ended with them; bytes are TLS records between nodes and server, both ways.\n\n"
        f"{table}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
