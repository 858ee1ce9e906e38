"""`make bench-noise`: the exact discrete Gaussian, samples a second, beside the algorithm of its paper, by turns.

The rival is Algorithms 1–3 of Canonne, Kamath and Steinke 2020 in whole numbers, sample by sample, which is also what
the tests compare with. Prints both sides, their ratio and the bar of every row; exits non-zero if one is missed.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy reads it

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import measure
import numpy as np
import numpy.typing as npt
from measure import Job, Side, Watch, compare
from support.gaussians import cks
from support.goodness import same_p

from foedus.privacy.noise import Keystream, discrete_gaussian

SIGMAS = (4, 64, 1024, 2**20)
BAR = 8.0  # million samples a CPU second, for sigma up to 2^10
OURS, RIVAL = 1_000_000, 5_000  # samples a repetition
Sampler = Callable[[int, int, Keystream], npt.NDArray[np.int64]]


def jobs(sampler: Sampler, sigma: int, size: int) -> Iterator[Job]:
    """Draws; the first job, which isn't counted, builds the table."""
    stream = Keystream()

    def job(watch: Watch) -> None:
        with watch:
            samples = sampler(sigma, size, stream)
        if not abs(samples.std() / sigma - 1) < 8 / np.sqrt(2 * size):
            raise AssertionError(f"{sampler.__name__}: a deviation of {samples.std():g} where {sigma} is due")

    while True:
        yield job


def rate(side: Side, size: int) -> tuple[float, float, float]:
    """Median, least and greatest, million samples a CPU second."""
    rates = [size / seconds / 1e6 for seconds in side.cpu]
    return statistics.median(rates), min(rates), max(rates)


def row(sigma: int, repetitions: int) -> tuple[str, bool]:
    """A line of the table, and whether its bar is met."""
    agree = same_p(discrete_gaussian(sigma, 20_000, Keystream()), cks(sigma, 10_000, Keystream()))
    if agree < 1e-9:
        raise AssertionError(f"at sigma = {sigma} the two samplers disagree: p = {agree:.1g}")
    found = compare(
        lambda: jobs(discrete_gaussian, sigma, OURS), lambda: jobs(cks, sigma, RIVAL), repetitions
    )
    ours, rival = rate(found.ours, OURS), rate(found.rival, RIVAL)
    barred = sigma <= 2**10
    fine = ours[0] >= BAR or not barred
    cells = (
        f"2^{sigma.bit_length() - 1}",
        "{:.1f} ({:.1f}–{:.1f})".format(*ours),
        "{:.4f} ({:.4f}–{:.4f})".format(*rival),
        f"{ours[0] / rival[0]:,.0f}×",
        f"≥ {BAR:g}" if barred else "–",
        "met" if fine and barred else "–" if fine else "**missed**",
    )
    return "| " + " | ".join(cells) + " |", fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    core = measure.one_core()
    rows = [row(sigma, options.repetitions) for sigma in SIGMAS]
    lines = [
        "# The discrete Gaussian",
        "",
        f"Million samples a CPU second, one thread: median (least–greatest) of {options.repetitions} runs by turns,",
        f"{OURS:,} samples a run of ours, {RIVAL:,} of the rival's, which is Canonne, Kamath and Steinke's",
        "algorithm in Python's whole numbers, sample by sample. Printed by `make bench-noise`.",
        "",
        "| σ | ours | rival | ratio | bar | |",
        "|---|---|---|---|---|---|",
        *(line for line, _ in rows),
        "",
        f"On {measure.machine()}, numpy {np.__version__}, core {core} alone.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    return 0 if all(fine for _, fine in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
