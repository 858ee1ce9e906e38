"""`make bench-union`: cells of a table kept by one gate on the union of all silos, beside each silo's gate for itself.

The same table, the same k, the same ε a customer, noise included on both sides. A cell counts for the silos if any one of them
shows its part of it, and its customers are those of the parts that are shown: the best that can be made of separate tables.
With no noise at all, the second pair, a silo keeps a cell of k or more. Both bars are from the start: 1.3 times the cells, and of
the cells shown in all draws none with fewer than k people in it.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Console
from rich.table import Table

from foedus.compliance.gate import UNDER_K, least_shown
from foedus.compliance.masking import hierarchies
from foedus.privacy.accountant import epsilon_to_mu
from foedus.privacy.noise import Keystream, discrete_gaussian

Counts = npt.NDArray[np.int64]
BAR = 1.3
K, DELTA = 10, 1e-5
EPSILONS = (1.0, 2.0, 4.0)
SPLITS = {4: (0.40, 0.30, 0.20, 0.10), 12: tuple(w / 30 for w in (6, 5, 4, 3, 2, 2, 2, 2, 1, 1, 1, 1))}
LEVELS = {"sex": 0, "age": 2, "race": 0, "marital-status": 1, "education": 2, "workclass": 1, "occupation": 1}
SEED = 20261201


@dataclass(frozen=True)
class Data:
    """Each customer's cell, and how many cells the domain has, empty ones included."""

    name: str
    cells: Counts
    domain: int


def adult(root: Path) -> Data | None:
    """UCI Adult as ARX ships it, in coarse groups of ARX's own hierarchies."""
    folder = root / "adult_arx"
    if not (folder / "adult.csv").is_file():
        return None
    frame = pd.read_csv(folder / "adult.csv", sep=";", dtype="str")
    place, domain = np.zeros(len(frame), np.int64), 1
    for column, level in LEVELS.items():
        tree = hierarchies.read(folder / f"adult_hierarchy_{column}.csv")
        code = dict(zip(tree.values, tree.codes[level], strict=True))
        width = len(tree.labels[level])
        place, domain = place * width + frame[column].map(code).to_numpy(np.int64), domain * width
    return Data(f"UCI Adult, {len(frame):,} × {len(LEVELS)} columns, {domain:,} cells", place, domain)


def made(customers: int = 30_000) -> Data:
    """Customers over 1,000 cells, few of them large."""
    rng = np.random.default_rng(SEED)
    weights = 1 / np.arange(1, 1001) ** 1.1
    cells = rng.choice(1000, customers, p=weights / weights.sum())
    return Data(f"generated, {customers:,} customers, 1,000 cells", cells, 1000)


def dealt(data: Data, shares: Sequence[float]) -> Counts:
    """Counts by silo and cell: shape (silos, cells)."""
    rng = np.random.default_rng(
        SEED + 1
    )  # of its own: whoever drew cells by the same numbers would deal by cell
    silo = rng.choice(len(shares), len(data.cells), p=np.array(shares) / sum(shares))
    return np.stack(
        [np.bincount(data.cells[silo == s], minlength=data.domain) for s in range(len(shares))]
    ).astype(np.int64)


@dataclass(frozen=True)
class Row:
    """What one pair of gates kept, means over draws."""

    data: str
    silos: int
    epsilon: float | None
    union_cells: float
    union_customers: float
    alone_cells: float
    alone_customers: float
    under_k: int
    shown: int

    @property
    def ratio(self) -> float:
        return self.union_cells / max(self.alone_cells, 1e-9)


def exact(data: Data, counts: Counts) -> Row:
    """By the true counts, which nobody may hold: what k alone costs."""
    union, alone = counts.sum(axis=0), counts >= K
    shown = union >= K
    return Row(
        data.name, len(counts), None, int(shown.sum()), int(union[shown].sum()), int(alone.any(axis=0).sum()),
        int(counts[alone].sum()), 0, int(shown.sum()),
    )  # fmt: skip


def noisy(data: Data, counts: Counts, epsilon: float, draws: int) -> Row:
    """With the noise of `distributed` studies on the union, and with each silo's own at the same ε on its own table.

    m = 1. Of n silos t = max(⌊(n + c)/2⌋ + 1, 3) noise shares less c must do; here all n answer.
    """
    n = len(counts)
    c = max(1, (n - 1) // 3)
    shares = max((n + c) // 2 + 1, 3) - c
    scale = 64
    one = scale / epsilon_to_mu(epsilon, DELTA)
    sigma, own = math.ceil(one / math.sqrt(shares)), math.ceil(one)
    union, found = counts.sum(axis=0), np.zeros(4)
    gate = least_shown(K, 1, sigma * math.sqrt(n), data.domain, scale)
    gates = least_shown(K, 1, own, data.domain, scale)
    under = shown_in_all = 0
    stream = Keystream()
    for _ in range(draws):
        noise = discrete_gaussian(sigma, n * data.domain, stream).reshape(n, data.domain).sum(axis=0)
        shown = union * scale + noise >= gate
        parts = counts * scale + discrete_gaussian(own, counts.size, stream).reshape(counts.shape) >= gates
        found += (shown.sum(), union[shown].sum(), parts.any(axis=0).sum(), counts[parts].sum())
        under += int((union[shown] < K).sum())
        shown_in_all += int(shown.sum())
    mean = found / draws
    return Row(data.name, n, epsilon, *mean.tolist(), under, shown_in_all)


def planted(draws: int, cells: int = 1000, silos: int = 4, epsilon: float = 1.0) -> int:
    """Of a table whose every cell has k − 1 people, the most that may not be shown: cells shown in so many draws."""
    scale, shares = 64, max((silos + 1) // 2 + 1, 3) - 1
    sigma = math.ceil(scale / epsilon_to_mu(epsilon, DELTA) / math.sqrt(shares))
    gate = least_shown(K, 1, sigma * math.sqrt(silos), cells, scale)
    stream, shown = Keystream(), 0
    for _ in range(draws):
        noise = discrete_gaussian(sigma, silos * cells, stream).reshape(silos, cells).sum(axis=0)
        shown += int(((K - 1) * scale + noise >= gate).sum())
    return shown


def rows(root: Path, draws: int) -> Iterator[Row]:
    """Every pair of gates."""
    real = adult(root)
    for data in (made(),) if real is None else (real, made()):
        for shares in SPLITS.values():
            counts = dealt(data, shares)
            yield exact(data, counts)
            for epsilon in EPSILONS:
                yield noisy(data, counts, epsilon, draws)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="write the report here")
    parser.add_argument("--draws", type=int, default=200, help="noisy tables a row")
    options = parser.parse_args()
    root = Path(os.environ.get("FOEDUS_DATA", "../shared/data"))
    found = list(rows(root, options.draws))
    # The bars are on noisy tables, where both sides can be had.
    worst = planted(10 * options.draws)
    missed = [r for r in found if r.epsilon is not None and (r.ratio < BAR or r.under_k)]
    text = report(found, options.draws, missed, worst)
    console = Console()
    grid = Table(
        "data", "silos", "ε", "cells, union", "cells, alone", "ratio", "customers, union", "alone", "under k"
    )
    for r in found:
        grid.add_row(r.data.split(",")[0], *line(r)[1:])
    console.print(grid)
    console.print(
        "missed: " + ", ".join(f"{r.data}, {r.silos} silos, ε = {r.epsilon}" for r in missed)
        if missed
        else "bars met"
    )
    console.print(f"1,000 cells of {K - 1} people each, {10 * options.draws} draws: {worst} shown")
    if options.write is not None:
        options.write.write_text(text, encoding="utf-8")
    return 1 if missed or worst else 0


def line(r: Row) -> list[str]:
    """A row's figures as text."""
    return [
        r.data, str(r.silos), "no noise" if r.epsilon is None else f"{r.epsilon:g}", f"{r.union_cells:.1f}",
        f"{r.alone_cells:.1f}", f"{r.ratio:.2f}×", f"{r.union_customers:,.0f}", f"{r.alone_customers:,.0f}",
        "–" if r.epsilon is None else f"{r.under_k} of {r.shown:,}",
    ]  # fmt: skip


def report(found: Sequence[Row], draws: int, missed: Sequence[Row], worst: int) -> str:
    """The page, as it stands in docs/benchmarks."""
    lines = [
        "# The union gate",
        "",
        f"Cells of one table kept at k = {K} by one gate on the sum over all silos, beside every silo's gate on its own table, at the",
        f"same ε a customer (δ = {DELTA:g}, m = 1, all silos answer), means of {draws} noisy tables. Alone: a cell counts if any silo",
        "shows its part. Silos are uneven: 40, 30, 20, 10 %; or 20 down to 3 %. No noise: by exact counts, which nobody holds.",
        "Printed by `make bench-union`.",
        "",
        "| data | silos | ε | cells, union | cells, alone | union ÷ alone | customers, union | customers, alone | shown cells with fewer than k people |",
        "|---|---|---|---|---|---|---|---|---|",
        *("| " + " | ".join(line(r)) + " |" for r in found),
        "",
        (
            f"Bars, with noise: {BAR} times the cells, and no shown cell with fewer than k people in any draw (bound: {UNDER_K:g} a table):"
            f" **{'missed' if missed or worst else 'met'}**."
        ),
        "",
        f"Of a table of 1,000 cells of {K - 1} people each, at ε = 1 over 4 silos, {worst} cells were shown in {10 * draws} draws.",
        "",
        (
            f"On {platform.machine()}, {os.cpu_count()} cores, Linux, Python {platform.python_version()}, numpy {np.__version__}; seed of"
            f" the split {SEED + 1}, noise fresh in every run."
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
