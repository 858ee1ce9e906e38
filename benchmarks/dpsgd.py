"""`make bench-dpsgd`: a private training step beside plain PyTorch and Opacus, by turns in one run, one thread.

Prints figure, rival, ratio and bar of every row; exits non-zero if one is missed. `--write FILE` writes the table.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch reads it

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import dpsgd_steps as steps
import measure
import torch
from measure import MemoryWatch, Row, Side, Watch, markdown, show

PLAIN_BAR = {"mlp": 1.3, "lstm": 1.5}
OPACUS_BAR, OPACUS_FROM = 8.0, 1024
MEMORY_BAR, MEMORY_RUNS = 1.5, 5
BATCHES = {"mlp": (256, 1024, 4096), "lstm": (256, 1024)}
NAMES = {"mlp": "MLP 40-128-64-1", "lstm": f"LSTM {steps.STEPS}×{steps.FEATURES}, hidden {steps.HIDDEN}"}
HEAD = ("work", "ours", "rival", "ratio (spread)", "bar", "")
WAYS = ("plain", "ours", "ours, loop unchanged", *steps.OPACUS)


def timed(kind: str, batch: int, repetitions: int) -> list[Row]:
    """A step of every way, by turns; the order goes round."""
    repeat = max(1, {"mlp": 4096, "lstm": 256}[kind] // batch)
    work = {name: steps.jobs(name, kind, batch, repeat) for name in WAYS}
    sides = {name: Side() for name in WAYS}
    for job in work.values():
        next(job)(Watch())
    for repetition in range(repetitions):
        turn = repetition % len(WAYS)
        for name in (*WAYS[turn:], *WAYS[:turn]):
            watch = Watch()
            next(work[name])(watch)
            sides[name].cpu.append(watch.cpu / repeat)
    medians = {name: statistics.median(side.cpu) for name, side in sides.items()}
    what = f"{NAMES[kind]}, B = {batch}"
    bar = PLAIN_BAR[kind]

    def against_plain(name: str, bar: float | None) -> Row:
        ratio = medians[name] / medians["plain"]
        pairs = [a / b for a, b in zip(sides[name].cpu, sides["plain"].cpu, strict=True)]
        return Row(
            f"{what}: {name}; rival: plain PyTorch",
            _ms(medians[name]),
            _ms(medians["plain"]),
            f"{ratio:.2f}× ({min(pairs):.2f}–{max(pairs):.2f})",
            "–" if bar is None else f"≤ {bar:g}×",
            None if bar is None else ratio <= bar,
        )

    rows = [against_plain("ours", bar), against_plain("ours, loop unchanged", None)]
    for name in steps.OPACUS:
        ratio = medians[name] / medians["ours"]
        counts = name == "hooks" and batch >= OPACUS_FROM
        rows.append(
            Row(
                f"{what}: ours; rival: Opacus {name}" + (", its default" if name == "hooks" else ""),
                _ms(medians["ours"]),
                _ms(medians[name]),
                f"1/{ratio:.1f}",
                f"1/{OPACUS_BAR:g}" if counts else "–",
                ratio >= OPACUS_BAR if counts else None,
            )
        )
    return rows


def memory(kind: str, batch: int) -> list[Row]:
    """Peak resident memory of three steps above what was there before, in fresh processes by turns."""
    growth: dict[str, list[int]] = {name: [] for name in ("plain", "ours", "hooks", "ghost")}
    for _ in range(MEMORY_RUNS):
        for name, values in growth.items():
            command = [sys.executable, __file__, "--memory", name, "--kind", kind, "--batch", str(batch)]
            values.append(int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    medians = {name: statistics.median(values) for name, values in growth.items()}
    ratio = medians["ours"] / max(1, medians["plain"])
    what = f"{NAMES[kind]}, B = {batch}: peak memory above the start"
    first = Row(
        f"{what}; rival: plain PyTorch",
        _mb(medians["ours"]),
        _mb(medians["plain"]),
        f"{ratio:.2f}×",
        f"≤ {MEMORY_BAR:g}×",
        ratio <= MEMORY_BAR,
    )
    others = [
        Row(
            f"{what}; rival: Opacus {name}",
            _mb(medians["ours"]),
            _mb(medians[name]),
            f"1/{medians[name] / max(1, medians['ours']):.1f}",
            "–",
            None,
        )
        for name in ("hooks", "ghost")
    ]
    return [first, *others]


def growth_of(name: str, kind: str, batch: int) -> int:
    """Bytes by which three steps raise this process's peak, after one of eight rows has loaded what it needs."""
    step, (x, y) = steps.way(name, kind, batch), steps.rows(kind, batch)
    if name not in steps.OPACUS:  # Opacus looks at the batch it was promised
        steps.way(name, kind, 8)(x[:8], y[:8])
    watch = MemoryWatch()
    with watch:
        for _ in range(3):
            step(x, y)
    return watch.growth


def write(path: Path, rows: Sequence[Row], repetitions: int) -> None:
    """The same as a page of the documentation."""
    lines = [
        "# A private training step beside others",
        "",
        "Written by `make bench-dpsgd`; don't edit it by hand.",
        "",
        f"- Machine: {measure.machine()}; one thread, one core.",
        f"- Versions: {_versions()}.",
        (
            f"- {datetime.now(UTC):%Y-%m-%d}; medians of CPU time of {repetitions} repetitions by turns ({MEMORY_RUNS} fresh "
            f"processes for memory), seed {steps.SEED}; clip {steps.CLIP:g}, noise multiplier {steps.NOISE:g}, float32."
        ),
        "",
        *markdown(HEAD, [row.cells for row in rows]),
        "",
        "A step is forward, backward, clipping, noise and SGD. Before anything is timed our clipped sum is compared with",
        "what Opacus steps by without noise. Our noise is an exact discrete Gaussian from a cipher, Opacus' is torch's",
        "float generator (its secure mode doesn't install). “Loop unchanged” is `criterion(model(x), y).backward()`;",
        "“ours” is `model.loss(x, y).backward()`, which works in blocks.",
        "",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _mb(size: float) -> str:
    return f"{size / 1e6:.0f} MB"


def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("foedus", "torch", "opacus", "numpy"))


def main() -> int:
    """Run the rows asked for; 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--only", help="parts whose name holds this text, as 'mlp 256' or 'memory'")
    parser.add_argument("--write", type=Path, help="where to write the table")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    told = parser.parse_args()
    core = measure.one_core()
    torch.set_num_threads(1)
    warnings.showwarning = lambda *_, **__: None  # Opacus' hooks warn at every step, past any filter
    if told.memory:
        sys.stdout.write(str(growth_of(told.memory, told.kind, told.batch)))
        return 0
    started, rows = time.monotonic(), list[Row]()
    for kind in BATCHES:
        sys.stderr.write(f"{kind}: our sum and Opacus' differ by {steps.verify(kind):.0e} (relative)\n")
    plan = {f"{kind} {batch}": (timed, kind, batch) for kind, sizes in BATCHES.items() for batch in sizes}
    for name, (run, kind, batch) in plan.items():
        if told.only is None or told.only in name:
            rows += run(kind, batch, told.repetitions)
            sys.stderr.write(f"{name}: {rows[-6].ratio}, Opacus {rows[-4].ratio}\n")
    for kind, batch in (("mlp", 4096), ("lstm", 1024)):
        if told.only is None or told.only in f"memory {kind}":
            rows += memory(kind, batch)
    sys.stdout.write(f"{measure.machine()}, all on core {core}\n{_versions()}\n")
    title = f"A private training step: medians of {told.repetitions}, {time.monotonic() - started:.0f} s"
    show(title, HEAD, [row.cells for row in rows])
    if told.write:
        write(told.write, rows, told.repetitions)
        sys.stdout.write(f"written: {told.write}\n")
    missed = [f"{row.work} ({row.ratio}, bar {row.bar})" for row in rows if row.fine is False]
    if missed:
        sys.stdout.write("MISSED:\n" + "\n".join(missed) + "\n")
    return 1 if missed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
