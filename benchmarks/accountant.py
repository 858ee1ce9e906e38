"""`make bench-accountant`: our accountant beside dp-accounting's and Opacus', in one run, and what discreteness costs.

A ledger of 1,000 different events is appended to and asked; a DP-SGD run is priced; noise is calibrated. Prints figure,
rival, ratio and bar; exits non-zero if one is missed. A whole run writes docs/benchmarks/accountant.md.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy reads it: one thread each

import argparse
import logging
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import measure
import numpy as np
from dp_accounting import dp_event as theirs
from dp_accounting import mechanism_calibration, privacy_accountant
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant
from measure import Row, markdown, show
from opacus.accountants import PRVAccountant

from foedus.privacy.accountant import PLD, ZCDP, mu_to_epsilon, noise_multiplier
from foedus.privacy.accountant.pairs import pair
from foedus.privacy.events import DistributedDiscreteGaussian, Event, Gaussian, Laplace, PoissonSampled

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "docs" / "benchmarks" / "accountant.md"
HEAD = ("work", "ours", "rival", "ratio", "at most", "")
_SEED, _DELTA = 7, 1e-6
_STEP = 1e-3  # dp-accounting's grid where it is raced: finer is slower
_APPEND, _QUERY = 1e-3, 0.1  # the bars, CPU seconds


def events(count: int, kinds: str = "all") -> list[Event]:
    """Different events, whose sum costs about ε = 1.5."""
    rng = np.random.default_rng(_SEED)

    def one(kind: int) -> Event:
        if kind == 0:
            return PoissonSampled(float(rng.uniform(0.005, 0.05)), Gaussian(float(rng.uniform(2, 4))))
        if kind == 1:
            return Gaussian(float(rng.uniform(50, 150)))
        if kind == 2:
            return Laplace(float(rng.uniform(100, 300)))
        return DistributedDiscreteGaussian(1000.0, float(rng.uniform(3e4, 6e4)), 3, 20)

    return [one(i % 4 if kinds == "all" else 0) for i in range(count)]


def translated(event: Event) -> theirs.DpEvent:
    """The same in dp-accounting's words; a discrete sum as if it were continuous: it has nothing else for it."""
    if isinstance(event, PoissonSampled):
        return theirs.PoissonSampledDpEvent(event.sampling_probability, translated(event.event))
    if isinstance(event, Gaussian):
        return theirs.GaussianDpEvent(event.noise_multiplier)
    if isinstance(event, Laplace):
        return theirs.LaplaceDpEvent(event.noise_multiplier)
    assert isinstance(event, DistributedDiscreteGaussian)
    return theirs.GaussianDpEvent(math.sqrt(event.shares) * event.sigma / event.sensitivity)


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    began = time.process_time()
    work()
    return time.process_time() - began


class Raced(Protocol):
    """What ours and the rivals have in common."""

    def compose(self, event: Any) -> object: ...


def appended(accountant: Raced, made: Sequence[object]) -> list[float]:
    """CPU seconds of each append."""
    return [cpu(partial(accountant.compose, event)) for event in made]


def ledger(count: int, kinds: str, repetitions: int) -> list[Row]:
    """Append them all, ask once."""
    ours_events = events(count, kinds)
    their_events = [translated(event) for event in ours_events]
    appends: list[float] = []
    queries: list[float] = []
    epsilon = 0.0
    for _ in range(repetitions):
        accountant = PLD()
        appends += appended(accountant, ours_events)
        queries.append(cpu(partial(accountant.epsilon, _DELTA)))
        epsilon = accountant.epsilon(_DELTA)
    rivals: dict[str, tuple[list[float], list[float], float]] = {}
    for name, rival in (  # they take seconds, and are run once
        ("dp-accounting PLD", PLDAccountant(value_discretization_interval=_STEP)),
        ("dp-accounting RDP", RdpAccountant()),
    ):
        taken = appended(rival, their_events)
        asked = cpu(partial(rival.get_epsilon, _DELTA))
        rivals[name] = (taken, [asked], float(rival.get_epsilon(_DELTA)))
    tight, loose = rivals["dp-accounting PLD"][2], rivals["dp-accounting RDP"][2]
    if not (0.98 * tight <= epsilon <= 1.02 * tight and epsilon < loose):
        raise AssertionError(f"ε {epsilon} where dp-accounting has {tight} by PLD and {loose} by RDP")
    rows = []
    told = f"{count} different events ({'subsampled Gaussians' if kinds != 'all' else 'of four kinds'})"
    append, worst = statistics.fmean(appends), float(np.percentile(appends, 99))
    query = statistics.median(queries)
    for name, (taken, asked, value) in rivals.items():
        both = (append + query / count, statistics.fmean(taken) + asked[0] / count)
        rows += [
            Row(
                f"append one, {told}; rival: {name}",
                f"{append * 1e3:.2f} ms (99 in 100 under {worst * 1e3:.2f})",
                f"{statistics.fmean(taken) * 1e3:.2f} ms",
                f"{append / statistics.fmean(taken):.3f}×",
                f"{_APPEND * 1e3:g} ms",
                append <= _APPEND,
            ),
            Row(
                f"ask for ε after them; rival: {name}",
                f"{query * 1e3:.1f} ms, ε = {epsilon:.4f}",
                f"{asked[0] * 1e3:.1f} ms, ε = {value:.4f}",
                f"{query / asked[0]:.3f}×; all in all {both[0] / both[1]:.3f}×",
                f"{_QUERY * 1e3:g} ms",
                query <= _QUERY,
            ),
        ]
    return rows


def training(q: float, sigma: float, steps: int, delta: float) -> list[Row]:
    """ε of one run of DP-SGD; our cache is emptied, the first use of scipy is over."""
    event = PoissonSampled(q, Gaussian(sigma))

    def ours() -> float:
        pair.cache_clear()
        accountant = PLD()
        accountant.compose(event, steps)
        return accountant.epsilon(delta)

    def google(accountant: privacy_accountant.PrivacyAccountant) -> float:
        return float(accountant.compose(translated(event), steps).get_epsilon(delta))

    def opacus() -> float:
        accountant = PRVAccountant()
        accountant.history.append((sigma, q, steps))
        return float(accountant.get_epsilon(delta))

    rivals: dict[str, Callable[[], float]] = {
        "dp-accounting PLD (1e-4)": lambda: google(PLDAccountant(value_discretization_interval=1e-4)),
        "dp-accounting RDP": lambda: google(RdpAccountant()),
        "Opacus PRV": opacus,
    }
    mine = statistics.median(cpu(ours) for _ in range(7))
    rows = []
    for name, rival in rivals.items():
        rival()
        other = statistics.median(cpu(rival) for _ in range(3))
        rows.append(
            Row(
                f"ε of {steps} steps, q = {q:g}, σ = {sigma:g}, δ = {delta:g}; rival: {name}",
                f"{mine * 1e3:.1f} ms, ε = {ours():.4f}",
                f"{other * 1e3:.0f} ms, ε = {rival():.4f}",
                f"{mine / other:.3f}×",
            )
        )
    return rows


def calibration() -> Row:
    """σ for ε = 3 over 1,000 steps of q = 0.01, δ = 1e-5."""

    def google() -> float:
        return float(
            mechanism_calibration.calibrate_dp_mechanism(
                lambda: PLDAccountant(value_discretization_interval=_STEP),
                lambda noise: theirs.SelfComposedDpEvent(
                    theirs.PoissonSampledDpEvent(0.01, theirs.GaussianDpEvent(noise)), 1000
                ),
                3.0,
                1e-5,
                mechanism_calibration.ExplicitBracketInterval(0.3, 10.0),
                tol=1e-5,
            )
        )

    def ours() -> float:
        pair.cache_clear()
        return noise_multiplier(3.0, 1e-5, 1000, 0.01)

    mine = statistics.median(cpu(ours) for _ in range(3))
    other = cpu(google)
    return Row(
        "σ for ε = 3, 1000 steps, q = 0.01; rival: dp-accounting PLD (1e-3)",
        f"{mine * 1e3:.0f} ms, σ = {ours():.5f}",
        f"{other * 1e3:.0f} ms, σ = {google():.5f}",
        f"{mine / other:.3f}×",
    )


DISCRETE_HEAD = (
    "σ of a share", "shares", "d", "bound × scale", "rounds", "continuous, not rounded", "continuous, rounded",
    "ours: comparison", "KLS Theorem 1", "slack",
)  # fmt: skip


def discrete(delta: float = 1e-5) -> list[tuple[str, ...]]:
    """ε of integer sums: as if continuous (no theorem says so), by our comparison, by the theorem of 2021."""
    rows = []
    for sigma, shares, dimension, bound, rounds in (
        (4.0, 1, 1, 4.0, 1),
        (4.0, 10, 1, 10.0, 1),
        (16.0, 3, 100, 20.0, 10),
        (64.0, 7, 10_000, 100.0, 50),
        (2_000.0, 2, 13, 256.0, 10),
        (1e5, 3, 13_569, 1e4, 100),
        (1e6, 7, 1_000_000, 1e5, 100),
    ):
        event = DistributedDiscreteGaussian(bound + math.sqrt(dimension), sigma, shares, dimension)
        tight, loose = PLD(), ZCDP()
        tight.compose(event, rounds)
        loose.compose(event, rounds)
        per = math.sqrt(rounds / shares) / sigma
        rows.append(
            (
                f"{sigma:g}", f"{shares}", f"{dimension}", f"{bound:g}", f"{rounds}",
                f"{mu_to_epsilon(bound * per, delta):.4f}", f"{mu_to_epsilon(event.sensitivity * per, delta):.4f}",
                f"{tight.epsilon(delta):.4f}", f"{loose.epsilon(delta):.4f}", f"{rounds * event.slack:.1e}",
            )
        )  # fmt: skip
    return rows


def write(rows: Sequence[Row], repetitions: int, about: str) -> None:
    """The same as a page of the documentation."""
    lines = [
        "# The accountant beside others",
        "",
        "Written by `make bench-accountant`; don't edit it by hand.",
        "",
        f"- Machine: {measure.machine()}; one core.",
        f"- Versions: {about}.",
        f"- {datetime.now(UTC):%Y-%m-%d}; CPU time; ours over {repetitions} runs, rivals of the ledger once; seed {_SEED}, δ = {_DELTA:g}.",
        "",
        *markdown(HEAD, [row.cells for row in rows]),
        "",
        "Appends are means. dp-accounting has no discrete sums: it is given continuous Gaussians in their place. That both",
        f"give the same ε (2 %; dp-accounting's grid is {_STEP:g}) is checked in the run.",
        "",
        "## What discreteness costs",
        "",
        "ε at δ = 1e-5 of integer sums. *Continuous* is what no theorem says: the sum taken for one continuous Gaussian; first with",
        "the bound alone as sensitivity, then with √d for stochastic rounding. Ours and KLS (Kairouz, Liu, Steinke 2021, Theorem 1, by zCDP)",
        "are proven, for the rounded sum. Reduction modulo 2^b is post-processing: it adds 0. Proof: [accounting.md](../protocols/accounting.md).",
        "",
        *markdown(DISCRETE_HEAD, discrete()),
        "",
    ]
    REPORT.write_text("\n".join(lines), encoding="utf-8")


def main() -> int:
    """Run; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", choices=("ledger", "training", "discrete"), help="writes no report")
    told = parser.parse_args()
    warnings.simplefilter("ignore")  # of the rivals
    logging.disable(logging.WARNING)
    measure.one_core()
    about = ", ".join(
        f"{name} {version(name)}" for name in ("foedus", "dp-accounting", "opacus", "numpy", "scipy")
    )
    sys.stdout.write(f"{measure.machine()}\n{about}\n")
    PLD([Laplace(1.0), Gaussian(1.0)]).epsilon(1e-3)  # scipy is imported
    rows: list[Row] = []
    if told.only in (None, "ledger"):
        rows += ledger(1000, "all", told.repetitions) + ledger(1000, "subsampled", told.repetitions)
    if told.only in (None, "training"):
        rows += training(0.01, 1.0, 1000, 1e-5) + training(0.05, 1.5, 400, 1e-6) + [calibration()]
    if rows:
        show("The accountant beside others", HEAD, [row.cells for row in rows])
    if told.only in (None, "discrete"):
        show("What discreteness costs: ε at δ = 1e-5", DISCRETE_HEAD, discrete())
    if told.only is None and told.repetitions >= 5:
        write(rows, told.repetitions, about)
        sys.stdout.write(f"written: {REPORT.relative_to(ROOT)}\n")
    missed = [row.work for row in rows if row.fine is False]
    if missed:
        sys.stdout.write(f"MISSED: {'; '.join(missed)}\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
