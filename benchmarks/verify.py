"""`make bench-verify`: how long the two verifiers take, each a process of its own, offline.

Two bundles: a study of 100 training rounds over four silos; and a small study in an audit log of 100,000 entries, in which
500 other studies state 4,000 ledger heads. Both verifiers must accept both and find the same ε. Prints CPU seconds of the whole
process, start and imports in it, the bar, and whether it is met; exits non-zero on a miss.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
from support.bundles import Tampered
from support.orders import make_draft, small_world

import foedus
from foedus.compliance.auditlog.merkle import leaf_hash, root_from_leaves
from foedus.demo.simulate import simulate
from foedus.demo.world import World
from foedus.documents import Envelope, SigningKey, parse_json
from foedus.federation import ledger_heads
from foedus.privacy.ledger import Head

ENTRIES, STUDIES = 100_000, 500
ROUNDS = 100
ONE_FILE = Path(foedus.__file__).resolve().parent / "verify_foedus.py"


@dataclass
class Row:
    """A bundle, its bar in seconds, and what each verifier took."""

    what: str
    path: Path
    treaty: Path
    bar: float
    cpu: dict[str, list[float]] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)


def commands(row: Row) -> dict[str, list[str]]:
    """How an officer runs either."""
    rest = [str(row.path), "--treaty", str(row.treaty)]
    return {
        "foedus verify": [sys.executable, "-m", "foedus", "verify", *rest],
        "verify_foedus.py": [sys.executable, "-I", "-S", str(ONE_FILE), *rest],
    }


def long_study(folder: Path) -> Row:
    """A hundred training rounds; with the curvature and the evaluation 102 sums."""
    draft = make_draft(rounds=ROUNDS)
    world = small_world(folder, draft)
    path = simulate(world, draft).evidence
    return Row(f"a study of {ROUNDS} rounds, 4 silos", path, world.server / "treaty.json", 5.0)


def long_log(folder: Path) -> Row:
    """A small study whose log has other studies' entries before it; its silos' heads and receipts say so."""
    draft = make_draft()
    world = small_world(folder, draft)
    bundle = Tampered(simulate(world, draft).evidence, world)
    before = _history(world, ENTRIES - len(bundle.files["log/entries.jsonl"].splitlines()))
    extra = len(before)

    def later(stated: dict[str, Any], silo: str) -> dict[str, Any]:
        head = Head(stated["size"] + 1, stated["hash"], stated["write_offs"])
        return ledger_heads.state(head, silo, stated["log"] + extra, bundle.silo_key(silo))

    def prepend(entries: list[Any]) -> list[Any]:
        for entry in entries:
            if entry["action"] == "run.set-up":
                told = entry["details"]["ledgers"]
                entry["details"]["ledgers"] = {silo: later(told[silo], silo) for silo in told}
        return [*before, *entries]

    bundle.lines("log/entries.jsonl", prepend)
    leaves = [leaf_hash(line) for line in bundle.files["log/entries.jsonl"].splitlines()]

    def saw(payload: dict[str, Any]) -> None:
        size = payload["log"]["size"] + extra
        payload["log"] = {"size": size, "root": root_from_leaves(leaves[:size]).hex()}
        payload["ledger"] = later(payload["ledger"], payload["silo"])

    for place in range(len(world.homes)):
        bundle.receipt(place, saw, logged=False)
    receipts = {r["payload"]["silo"]: r for r in parse_json(bundle.files["receipts.json"])}

    def relog(entries: list[Any]) -> None:
        for entry in entries[extra:]:
            if entry["action"] == "receipt":
                receipt = Envelope.from_json(receipts[entry["details"]["silo"]])
                entry["details"] |= {"digest": receipt.digest, "ledger": receipt.payload["ledger"]}

    bundle.log(relog)
    path = bundle.write(folder / "long.zip")
    return Row(f"a log of {ENTRIES:,} entries", path, world.server / "treaty.json", 10.0)


def _history(world: World, entries: int) -> list[dict[str, Any]]:
    """What earlier studies left in the log: every one a submission, approvals, a run, its sums, receipts, a release."""
    made: list[dict[str, Any]] = []
    keys = {silo: SigningKey.load(home / "identity.key") for silo, home in world.homes.items()}
    while len(made) < entries:
        number = len(made)
        subject = f"{number:064x}"

        def add(action: str, subject: str = subject, **details: Any) -> None:
            made.append(
                {
                    "time": "2026-01-01T00:00:00.000000Z",
                    "actor": "coordinator",
                    "action": action,
                    "subject": subject,
                    "details": details,
                }
            )

        heads = {s: ledger_heads.state(Head(0, "0" * 64, 0), s, number, key) for s, key in keys.items()}
        add("study.submitted", title="an earlier study")
        for approver in world.treaty.approvers:
            add("study.approved", approver=approver.name)
        add("run.started", run=str(number))
        add("run.set-up", run=str(number), batch=0, ledgers=heads)
        for n in range(ENTRIES // STUDIES - 6 - len(world.treaty.approvers) - len(keys)):
            add("round.summed", run=str(number), round=n, sum="0" * 64, silos=4)
        for silo, head in heads.items():
            add("receipt", run=str(number), silo=silo, digest="0" * 64, ledger=head)
        add("released", run=str(number), file="model.json", digest="0" * 64, epsilon=1.5)
        add("run.finished", run=str(number), epsilon=1.5)
    return made[:entries]


def timed(command: list[str]) -> tuple[float, float, str]:
    """CPU and wall seconds of a process that must accept, and the ε it found."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    found = re.search(r"verything holds: ε = ([0-9.]+)", done.stdout, re.IGNORECASE)
    if done.returncode or not found:
        raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, wall, found.group(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    with tempfile.TemporaryDirectory() as folder:
        rows = [long_study(Path(folder) / "study"), long_log(Path(folder) / "log")]
        for row in rows:
            for _ in range(options.repetitions):
                found = set()
                for name, command in commands(row).items():
                    cpu, wall, epsilon = timed(command)
                    row.cpu.setdefault(name, []).append(cpu)
                    row.wall.setdefault(name, []).append(wall)
                    found.add(epsilon)
                if len(found) != 1:
                    raise AssertionError(f"{row.what}: the verifiers found different ε: {found}")
        lines = [
            "# Verifying offline",
            "",
            f"Seconds of CPU of the whole process: median (least–greatest) of {options.repetitions} runs by turns; wall: median.",
            "Both must accept, and find the same ε. Printed by `make bench-verify`.",
            "",
            "| bundle | size | verifier | CPU | wall | bar | |",
            "|---|---|---|---|---|---|---|",
        ]
        fine = True
        for row in rows:
            size = f"{row.path.stat().st_size / 1e6:.1f} MB"
            for name, cpu in row.cpu.items():
                met = statistics.median(cpu) <= row.bar
                fine = fine and met
                took = f"{statistics.median(cpu):.2f} ({min(cpu):.2f}–{max(cpu):.2f})"
                wall = f"{statistics.median(row.wall[name]):.2f}"
                cells = (
                    row.what,
                    size,
                    f"`{name}`",
                    took,
                    wall,
                    f"≤ {row.bar:g}",
                    "met" if met else "**missed**",
                )
                lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"On {measure.machine()}."]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
