"""`make bench-masking`: what masking loses and takes, on UCI Adult with ARX's hierarchies, beside anjana, anonypy, pyCANON.

Prints figure, rival, ratio and bar side by side; exits non-zero if a bar is missed. Loss is GCP by one reading of the
labels for everybody: the meaning of ARX's hierarchies over the values in the table, age by extent, a suppressed
row 1. Times are CPU seconds of one process: the machine may be shared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import masking_rivals as rivals
import measure
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table as Grid

from foedus.compliance.masking import measures, tables
from foedus.compliance.masking.classes import Tuples
from foedus.compliance.masking.domains import Domain
from foedus.compliance.masking.lattice import Constraint, Lattice
from foedus.compliance.masking.measures import Classes
from foedus.compliance.masking.models import KAnonymity
from foedus.compliance.masking.policy import Policy
from foedus.compliance.masking.recoding_global import recode
from foedus.compliance.masking.release import mask
from foedus.compliance.masking.report import utility
from foedus.compliance.masking.tables import Table

QUASI = ["sex", "age", "race", "marital-status", "education", "native-country", "workclass", "occupation"]
SENSITIVE = "salary-class"
KS = (5, 10, 50)
LIMITS = (0.0, 0.02, 0.1, 1.0)
GCP = {5: 0.054, 10: 0.079, 50: 0.151}
ARX_LOCAL = {5: 0.0609, 10: 0.0843, 50: 0.1577}  # ARX 3.9.2, once, elsewhere: it is no Python package
SEED = 1


@dataclass(frozen=True)
class Row:
    """A line of the table; `fine` is None where there is no bar."""

    work: str
    ours: str
    rival: str
    ratio: str
    bar: str
    fine: bool | None


class Adult:
    """The table, its policy and its domains."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "adult_arx"
        if not (self.directory / "adult.csv").is_file():
            raise SystemExit(
                f"{self.directory}: no Adult data here; say where with --data or FOEDUS_DATA (…/shared/data)"
            )
        self.frame = tables.read(self.directory / "adult.csv")

    def policy(self, **more: Any) -> Policy:
        columns: dict[str, Any] = {
            name: {
                "role": "quasi-identifier",
                "hierarchy": self.directory / f"adult_hierarchy_{name}.csv",
                "loss": "extent" if name == "age" else "leaves",
            }
            for name in QUASI
        }
        return Policy.of({"columns": columns | {SENSITIVE: {"role": "sensitive"}}} | more)

    def lattice(self) -> Lattice:
        policy = self.policy(k=2)
        table = Table.of(self.frame, {n: c.role for n, c in policy.columns.items()})
        self.domains = [
            Domain(n, c.values, policy.hierarchy(n, c), policy.columns[n].loss)
            for n, c in table.quasi.items()
        ]
        columns = [(c.codes, len(c.values)) for c in table.quasi.values()]
        return Lattice(self.domains, Tuples.of(columns, {}, table.rows))

    def million(self) -> pd.DataFrame:
        """A million rows drawn from Adult; in each column, one cell in ten is another row's."""
        rng = np.random.default_rng(SEED)
        rows = rng.integers(0, len(self.frame), 1_000_000)
        found = {}
        for name in [*QUASI, SENSITIVE]:
            codes, values = pd.factorize(self.frame[name])
            column = codes[rows]
            if name in QUASI:
                other = rng.random(len(rows)) < 0.1
                column[other] = codes[rng.integers(0, len(codes), int(other.sum()))]
            found[name] = pd.Categorical.from_codes(column, values)
        return pd.DataFrame(found)


def seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the CPU it took."""
    watch = measure.Watch()
    with watch:
        found = work()
    return found, watch.cpu


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def local(adult: Adult) -> Iterator[Row]:
    adult.lattice()
    for k in KS:
        (_, report), took = seconds(lambda k=k: mask(adult.frame, adult.policy(k=k)))  # type: ignore[misc]
        gcp, gone = report.utility.gcp, report.utility.suppressed
        theirs, long = seconds(lambda k=k: rivals.anjana(adult.frame, QUASI, adult.directory, k, 2))  # type: ignore[misc]
        lost = utility(Classes.of(theirs, QUASI), adult.domains, len(adult.frame)).gcp
        yield Row(
            f"local, k = {k}: GCP",
            f"{gcp:.4f}",
            f"{lost:.4f} anjana; {ARX_LOCAL[k]:.4f} ARX, as measured before",
            f"{gcp / lost:.3f}",
            f"≤ {GCP[k]}",
            gcp <= GCP[k] and report.k >= k,
        )
        yield Row(f"local, k = {k}: suppressed", f"{gone:.4%}", "", "", "≤ 0.04%", gone <= 0.0004)
        yield Row(
            f"local, k = {k}: CPU", f"{took:.2f} s", f"{long:.2f} s anjana", f"{took / long:.3f}", "", None
        )


def mondrian(adult: Adult) -> Iterator[Row]:
    (_, report), took = seconds(
        lambda: mask(adult.frame, adult.policy(k=10, method="mondrian", labels="set"))
    )
    parts, long = seconds(lambda: rivals.anonypy(adult.frame, QUASI, SENSITIVE, 10))
    gcp, lost = report.utility.gcp, rivals.set_loss(adult.frame, QUASI, parts)
    yield Row(
        "Mondrian, sets, k = 10: GCP",
        f"{gcp:.4f}",
        f"{lost:.4f} anonypy",
        f"{gcp / lost:.3f}",
        "≤ 1×",
        gcp <= lost,
    )
    yield Row(
        "Mondrian, sets, k = 10: CPU",
        f"{took:.2f} s",
        f"{long:.1f} s anonypy",
        f"{took / long:.4f}",
        "",
        None,
    )


def optimum(adult: Adult) -> Iterator[Row]:
    lattice = adult.lattice()
    best, long = seconds(lambda: brute_force(lattice))
    for k in KS:
        constraint = Constraint.of([KAnonymity(k)], lattice.tuples)
        for limit in LIMITS:
            found, took = seconds(lambda c=constraint, s=limit: recode(lattice, c, s))  # type: ignore[misc]
            least = best[k, limit]
            yield Row(
                f"global, k = {k}, {limit:.0%} suppressed",
                f"{found.loss:.4f}, {took:.2f} s",
                f"{least:.4f}, all nodes; {long:.1f} s for the 12",
                f"{found.loss / least:.6f}",
                "= 1, ≤ 3 s",
                abs(found.loss - least) < 1e-9 and took <= 3,
            )


def brute_force(lattice: Lattice) -> dict[tuple[int, float], float]:
    """Every node's loss, straight from the labels' codes; shares nothing with the search but them."""
    weight = lattice.tuples.weight.astype(np.float64)
    rows = weight.sum()
    best = {(k, limit): np.inf for k in KS for limit in LIMITS}
    columns = list(zip(lattice.domains, lattice.tuples.codes, strict=True))
    labels = [[d.hierarchy.codes[level][c] for level in range(d.hierarchy.levels)] for d, c in columns]
    losses = [[found[c] / len(columns) for found in d.level_losses()] for d, c in columns]
    for node in lattice.nodes:
        keys, lost = np.zeros(len(weight), np.int64), np.zeros(len(weight))
        for column, level in enumerate(node):
            found = labels[column][level]
            keys = keys * (int(found.max()) + 1) + found
            lost += losses[column][level]
        ids, _ = pd.factorize(keys)
        size = np.bincount(ids, weight)[ids]
        for k in KS:
            small = size < k
            gone = weight[small].sum()
            loss = float((np.where(small, 1.0, lost) * weight).sum() / rows)
            for limit in LIMITS:
                if gone <= limit * rows and loss < best[k, limit]:
                    best[k, limit] = loss
    return best


def verifier(adult: Adult) -> Iterator[Row]:
    theirs, long = seconds(lambda: rivals.pycanon(adult.frame, QUASI, SENSITIVE))
    runs = [seconds(lambda: verify(adult.frame)) for _ in range(7)]
    found, took = runs[0][0], float(np.median([cpu for _, cpu in runs]))
    for name, value in theirs.items():
        if not np.isclose(found[name], value):
            raise AssertionError(f"{name} is {found[name]} here and {value} by pyCANON")
    yield Row(
        "verifier, 30,162 rows",
        f"{took * 1e3:.0f} ms: k, l, entropy l, t, α, β, δ, risks",
        f"{long:.1f} s pyCANON: k, l, t, α; equal",
        f"{took / long:.5f}",
        "≤ 0.1 s",
        took <= 0.1,
    )


def verify(frame: pd.DataFrame) -> dict[str, float]:
    classes = Classes.of(frame, QUASI, [SENSITIVE])
    found = measures.disclosure(classes, SENSITIVE)
    measures.prosecutor(classes, 0.2)
    measures.marketer(classes)
    return {"k": classes.size.min(), "l": found.distinct_l, "t": found.t, "alpha": found.alpha}


def million(adult: Adult, root: Path) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as here:
        file = Path(here) / "million.parquet"
        adult.million().astype("str").to_parquet(file)
        command = [sys.executable, __file__, "--data", str(root), "--million", str(file)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    yield Row(
        "1,000,000 × 8, k = 10: CPU",
        f"{told['cpu']:.1f} s (wall {told['wall']:.1f} s)",
        "40 s ARX, as measured before",
        "",
        "≤ 5 s",
        told["cpu"] <= 5,
    )
    yield Row(
        "1,000,000 × 8, k = 10: GCP",
        f"{told['gcp']:.4f}",
        ".0171 ARX, as measured before",
        "",
        "≤ 0.0145",
        told["gcp"] <= 0.0145 and told["k"] >= 10,
    )
    yield Row(
        "1,000,000 × 8: peak memory",
        f"{told['peak'] / 1e9:.2f} GB",
        "14 GB allowed ARX",
        "",
        "≤ 1 GB",
        told["peak"] <= 1e9,
    )
    yield Row("verifier, 1,000,000 rows", f"{told['verify']:.2f} s", "", "", "≤ 0.5 s", told["verify"] <= 0.5)


def million_here(adult: Adult, file: Path) -> None:
    """In a process of its own: mask, verify, and say what that took."""
    frame = tables.read(file)
    wall = time.perf_counter()
    (released, report), cpu = seconds(lambda: mask(frame, adult.policy(k=10)))
    wall = time.perf_counter() - wall
    runs = sorted(seconds(lambda: verify(released))[1] for _ in range(5))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = {
        "cpu": cpu,
        "wall": wall,
        "gcp": report.utility.gcp,
        "k": report.k,
        "peak": peak,
        "verify": runs[2],
    }
    sys.stdout.write(json.dumps(told))


# ── the table ────────────────────────────────────────────────────────────────────────────────────


def show(rows: list[Row]) -> None:
    grid = Grid("work", "ours", "rival", "ours/rival", "bar", "")
    for r in rows:
        grid.add_row(r.work, r.ours, r.rival, r.ratio, r.bar, _word(r))
    Console(width=max(Console().width, 150)).print(grid)


def write(path: Path, rows: list[Row]) -> None:
    """The same as a page of the documentation."""
    lines = [
        "# Masking beside others",
        "",
        "Written by `make bench-masking`; don't edit it by hand.",
        "",
        f"- Machine: {measure.machine()}. {datetime.now(UTC):%Y-%m-%d}. Seed {SEED}.",
        f"- Versions: {_versions()}.",
        "- UCI Adult, 30,162 × 8 quasi-identifiers, ARX's hierarchies; the million is drawn from it, a cell in ten replaced.",
        "- GCP: the mean loss over cells, a suppressed row 1, by one reading for all; lower is better. CPU of one process.",
        "",
        "| work | ours | rival | ours/rival | bar | |",
        "|---|---|---|---|---|---|",
        *(f"| {r.work} | {r.ours} | {r.rival} | {r.ratio} | {r.bar} | {_word(r)} |" for r in rows),
        "",
        "Local recoding stands beside anjana's Datafly, which recodes globally with 2 % suppressed: no Python package has",
        "local recoding over hierarchies. ARX has, in Java, and is not run here: its figures are of one run on another day. The",
        "order in which local recoding visits nodes has two constants chosen on this very table. anonypy's labels are sets.",
        "",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")


def _word(row: Row) -> str:
    return "" if row.fine is None else "ok" if row.fine else "**MISS**"


def _versions() -> str:
    found = []
    for name in ("foedus", "numpy", "pandas", "anjana", "anonypy", "pycanon"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def main() -> int:
    """Run the rows asked for; 1 if one is missed."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FOEDUS_DATA") or beside))
    parser.add_argument(
        "--only", help="parts whose name holds this text: local, mondrian, optimum, verifier, million"
    )
    parser.add_argument("--write", type=Path, help="where to write the table")
    parser.add_argument("--million", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    adult = Adult(told.data)
    if told.million:
        million_here(adult, told.million)
        return 0
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "local": lambda: local(adult),
        "mondrian": lambda: mondrian(adult),
        "optimum": lambda: optimum(adult),
        "verifier": lambda: verifier(adult),
        "million": lambda: million(adult, told.data),
    }
    rows: list[Row] = []
    for name, part in parts.items():
        if told.only is None or told.only in name:
            rows += part()
            sys.stderr.write(f"{name}: done\n")
    sys.stdout.write(f"{measure.machine()}\n{_versions()}\n")
    show(rows)
    if told.write and told.only is None:
        write(told.write, rows)
        sys.stdout.write(f"written: {told.write}\n")
    missed = [f"{row.work}: {row.ours}, bar {row.bar}" for row in rows if row.fine is False]
    if missed:
        sys.stdout.write("MISSED:\n" + "\n".join(missed) + "\n")
    return 1 if missed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
