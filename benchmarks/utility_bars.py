"""The table of the utility benchmark, and the bars it is held to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

EPSILONS = (8.0, 3.0, 1.0)
ARMS = {"pooled": False, "federated": False, "distributed": True, "trusted server": True, "local": True}
"""Arm → whether it is private."""
NEAR = 0.005
CLOSED, GAP = 0.9, 0.02
TELCO_AT_ONE = 0.825


@dataclass(frozen=True)
class Cell:
    """One trained model. `auc` over all silos' held-out customers, `silo_auc` the mean of the silos' own."""

    problem: str
    kind: str
    arm: str
    epsilon: float
    seed: int
    auc: float
    silo_auc: float
    spent: float
    cpu: float

    def line(self) -> str:
        """For watching it run."""
        at = f" ε = {self.epsilon:g} (spent {self.spent:.4f})" if self.epsilon else ""
        return f"{self.problem}, {self.kind}, seed {self.seed}, {self.arm}{at}: AUC {self.auc:.4f}, {self.cpu:.0f} s"


@dataclass(frozen=True)
class Bar:
    """One statement that is met or missed."""

    what: str
    where: str
    figure: str
    met: bool


class Means:
    """Means over seeds, by (problem, kind, arm, ε)."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        found: dict[tuple[str, str, str, float], list[Cell]] = defaultdict(list)
        for cell in cells:
            found[cell.problem, cell.kind, cell.arm, cell.epsilon].append(cell)
        self._cells = dict(found)

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Problems and kinds, in the order of the first cells."""
        return sorted({(problem, kind) for problem, kind, _, _ in self._cells})

    def auc(self, problem: str, kind: str, arm: str, epsilon: float = 0.0) -> float:
        return float(np.mean([c.auc for c in self._cells[problem, kind, arm, epsilon]]))

    def shown(self, problem: str, kind: str, arm: str, epsilon: float = 0.0) -> str:
        """Mean ± standard deviation over seeds."""
        values = [c.auc for c in self._cells[problem, kind, arm, epsilon]]
        spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
        return f"{np.mean(values):.4f}{spread}"

    def of_silos(self, problem: str, kind: str, arm: str, epsilon: float = 0.0) -> float:
        return float(np.mean([c.silo_auc for c in self._cells[problem, kind, arm, epsilon]]))


def judge(cells: Sequence[Cell]) -> list[Bar]:
    """Every bar, of means over seeds."""
    means, bars = Means(cells), []
    for problem, kind in means.rows:
        where = f"{problem}, {kind}"
        pooled, federated = (means.auc(problem, kind, arm) for arm in ("pooled", "federated"))
        bars.append(
            Bar(
                f"federated at most {NEAR} under pooled",
                where,
                f"{federated - pooled:+.4f}",
                federated >= pooled - NEAR,
            )
        )
        for epsilon in EPSILONS:
            ours, trusted, local = (
                means.auc(problem, kind, arm, epsilon) for arm in ("distributed", "trusted server", "local")
            )
            at = f"{where}, ε = {epsilon:g}"
            bars.append(
                Bar(
                    f"distributed at most {NEAR} under trusted server",
                    at,
                    f"{ours - trusted:+.4f}",
                    ours >= trusted - NEAR,
                )
            )
            if pooled - local > GAP:
                closed, theirs = ((auc - local) / (pooled - local) for auc in (ours, trusted))
                bars.append(
                    Bar(
                        f"closes {CLOSED:.0%} of local's gap to pooled, where it is over {GAP}",
                        at,
                        f"{closed:.0%} of {pooled - local:.4f} (a trusted server: {theirs:.0%})",
                        closed >= CLOSED,
                    )
                )
    if ("telco / zip2", "LR") in means.rows:
        found = means.auc("telco / zip2", "LR", "distributed", 1.0)
        bars.append(
            Bar(
                f"telco zip2, LR, distributed, ε = 1 at least {TELCO_AT_ONE}",
                "telco / zip2, LR, ε = 1",
                f"{found:.4f}",
                found >= TELCO_AT_ONE,
            )
        )
    return bars


def document(cells: Sequence[Cell], bars: Sequence[Bar]) -> str:
    """Tables of AUC, of the silos' own AUC, and of the bars."""
    means = Means(cells)
    private = [arm for arm, yes in ARMS.items() if yes]
    heading = f"| problem | model | ε | pooled, no privacy | federated, no privacy | {' | '.join(private)} |"
    lines = [
        f"AUC over all silos, mean ± standard deviation over {len({c.seed for c in cells})} seeds:",
        "",
        heading,
        "|" + "---|" * (5 + len(private)),
    ]
    own = ["Mean of the AUCs inside the silos:", "", heading, "|" + "---|" * (5 + len(private))]
    for problem, kind in means.rows:
        for epsilon in EPSILONS:
            first = epsilon == EPSILONS[0]
            free = [means.shown(problem, kind, arm) if first else "" for arm in ("pooled", "federated")]
            shown = [means.shown(problem, kind, arm, epsilon) for arm in private]
            lines.append(f"| {' | '.join([problem, kind, f'{epsilon:g}', *free, *shown])} |")
            free = [
                f"{means.of_silos(problem, kind, arm):.4f}" if first else ""
                for arm in ("pooled", "federated")
            ]
            shown = [f"{means.of_silos(problem, kind, arm, epsilon):.4f}" for arm in private]
            own.append(f"| {' | '.join([problem, kind, f'{epsilon:g}', *free, *shown])} |")
    return "\n".join([*lines, "", *_verdict(bars), "", *own])


def _verdict(bars: Sequence[Bar]) -> list[str]:
    groups: dict[str, list[Bar]] = defaultdict(list)
    for bar in bars:
        groups[bar.what].append(bar)
    lines = ["| bar | met | where it is missed |", "|---|---|---|"]
    for what, found in groups.items():
        missed = "; ".join(f"{b.where}: {b.figure}" for b in found if not b.met)
        lines.append(f"| {what} | {sum(b.met for b in found)} of {len(found)} | {missed or 'nowhere'} |")
    return lines
