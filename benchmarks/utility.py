"""Is it worth it? foedus' distributed privacy beside no privacy, a trusted server, and every silo for itself.

Logistic regression and an MLP on six problems of five public data sets, each dealt to silos by a column of its own
(CDNOW: at random). Every private arm has the same ε (δ = 1e-5, a customer's whole contribution), what it spends
on scaling features included; foedus' also pays for its private evaluation, the others evaluate for nothing, and
its noise is enough though one silo tells the server its own part and (from four silos on) one falls silent. Shown
is the exact AUC on the 30 % of each silo's customers that were held out: over all silos together, and the mean of
the silos' own. Every seed is another split, another start and another noise. Exits with 1 where a bar is missed.

    python benchmarks/utility.py [--sets NAME …] [--seeds 5] [--jobs 2] [--quick] [--write FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import utility_bars
import utility_data
import utility_models as models
import utility_ours
import utility_rivals
from utility_bars import ARMS, EPSILONS, Cell

_FIRST_SEED = 100
"""Recipes, ours and the rivals', were chosen on the splits of seeds 0 to 2."""
_NO_DATA, _MISSED = 2, 1


@dataclass(frozen=True)
class Work:
    """One training: `epsilon` is 0 where there is no privacy."""

    problem: str
    kind: str
    arm: str
    epsilon: float
    seed: int


def train(work: Work) -> Cell:
    """Train and score one cell of the table."""
    started = time.process_time()
    problem = utility_data.load(work.problem, work.seed)
    side, spent = problem.test, work.epsilon
    if work.arm == "distributed":
        scores, side, spent = utility_ours.distributed(problem, work.kind, work.epsilon, work.seed)
    elif work.arm == "federated":
        scores, side = utility_ours.federated(problem, work.kind, work.seed)
    elif work.arm == "pooled":
        scores = _pooled(problem, work)
    else:
        rival = {"trusted server": utility_rivals.central, "local": utility_rivals.local}[work.arm]
        module, scaling = rival(work.kind, problem, work.epsilon, work.seed)
        scores = models.scores(module, scaling.inputs(problem, side))
    of_silos = [
        models.auc(scores[side.silos == silo], side.labels[side.silos == silo])
        for silo in range(problem.silos)
    ]
    return Cell(
        **asdict(work),
        auc=models.auc(scores, side.labels),
        silo_auc=float(np.nanmean(of_silos)),
        spent=spent,
        cpu=time.process_time() - started,
    )


def _pooled(problem: utility_data.Problem, work: Work) -> models.Floats:
    """Everything in one place without privacy, each number column standardised by its mean and deviation."""
    raw, test = problem.raw(problem.train), problem.raw(problem.test)
    mean, deviation = raw.mean(axis=0), raw.std(axis=0) + 1e-12
    inputs, tested = (
        np.hstack([(numbers - mean) / deviation, problem.dummies(side)])
        for numbers, side in ((raw, problem.train), (test, problem.test))
    )
    if work.kind == "LR":
        module = models.newton(inputs, problem.train.labels)
    else:
        module = models.early_stopped(inputs, problem.train.labels, work.seed)
    return models.scores(module, tested)


def works(sets: Sequence[str], kinds: Sequence[str], seeds: int) -> list[Work]:
    """All cells, the longest first."""
    found = [
        Work(problem, kind, arm, epsilon, _FIRST_SEED + seed)
        for seed in range(seeds)
        for problem, kind, arm in itertools.product(sets, kinds, ARMS)
        for epsilon in (EPSILONS if ARMS[arm] else (0.0,))
    ]
    slow = {"bank / job": 3, "cdnow": 2, "shoppers / TrafficType": 2}
    return sorted(found, key=lambda w: -(slow.get(w.problem, 1) * (1 + 4 * (w.kind == "MLP"))))


def run(todo: Sequence[Work], jobs: int) -> Iterator[Cell]:
    """Every cell, in `jobs` processes of one thread each."""
    with multiprocessing.get_context("spawn").Pool(jobs, _alone, maxtasksperchild=40) as pool:
        yield from pool.imap_unordered(train, todo)


def _work(cell: Cell) -> Work:
    return Work(cell.problem, cell.kind, cell.arm, cell.epsilon, cell.seed)


def _kept(file: Path | None) -> list[Cell]:
    if file is None or not file.exists():
        return []
    return [Cell(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def _alone() -> None:
    import torch

    torch.set_num_threads(1)


def machine() -> str:
    """What it runs on."""
    return (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {platform.system()}, Python "
        f"{platform.python_version()}, torch {version('torch')}, opacus {version('opacus')}, "
        f"dp-accounting {version('dp-accounting')}, numpy {version('numpy')}"
    )


def main() -> int:
    """Run it; returns the exit status."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # for the processes started below
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=list(utility_data.SETS), choices=list(utility_data.SETS))
    parser.add_argument("--kinds", nargs="+", default=list(models.KINDS), choices=models.KINDS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument(
        "--cells",
        type=Path,
        help="a file for every single result, JSON lines; what it holds is not run again",
    )
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    options = parser.parse_args()
    if utility_data.directory() is None:
        print("the raw data is not here: set FOEDUS_DATA to its directory", file=sys.stderr)
        return _NO_DATA
    seeds = 1 if options.quick else options.seeds
    print(f"Machine: {machine()}.", flush=True)
    todo = works(options.sets, options.kinds, seeds)
    cells = [cell for cell in _kept(options.cells) if _work(cell) in todo]
    done = set(map(_work, cells))
    if cells:
        print(f"  {len(cells)} are in {options.cells}", flush=True)
    for cell in run([work for work in todo if work not in done], options.jobs):
        cells.append(cell)
        print(f"  {len(cells)}/{len(todo)} {cell.line()}", flush=True)
        if options.cells:
            with options.cells.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(cell)) + "\n")
    minutes = sum(cell.cpu for cell in cells) / 60
    bars = utility_bars.judge(cells)
    table = utility_bars.document(cells, bars)
    print(f"\n{table}\n\n{minutes:.0f} minutes of CPU")
    if options.write:
        text = " ".join((__doc__ or "").split("\n\n")[1].split())
        heading = f"# Is it worth it?\n\n```bash\n# starts servers\nmake bench-utility\n```\n\n{text}\n\n"
        options.write.write_text(
            f"{heading}Machine: {machine()}; {minutes:.0f} minutes of CPU.\n\n{table}\n", encoding="utf-8"
        )
    return 0 if all(bar.met for bar in bars) else _MISSED


if __name__ == "__main__":
    sys.exit(main())
