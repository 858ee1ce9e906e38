"""`make bench-secagg`: our secure sum beside Flower's SecAgg+ and NVFlare's CKKS, timed by turns in one run.

Prints figure, rival, ratio and bar of every row; exits non-zero if one is missed. A whole run writes
docs/benchmarks/secagg.md.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy reads it: one thread each

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import measure
import numpy as np
import numpy.typing as npt
import ours_secagg as ours
import rival_ckks
import rival_flwr
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from measure import Comparison, Job, Row, Watch, compare, markdown, show

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "docs" / "benchmarks" / "secagg.md"
HEAD = ("work", "ours", "rival", "ratio (spread)", "at most", "")
_SEED = 7  # of the vectors
_MEMORY_RUNS = 7  # fresh processes a side; their growth repeats to a few pages
_CHUNK = 1 << 18  # bytes of keystream made at once: stays in cache, the fastest there is


def vector(d: int) -> npt.NDArray[np.float32]:
    """What every silo sums: normal, deviation 0.1."""
    return (np.random.default_rng(_SEED).normal(size=d) * 0.1).astype(np.float32)


def raw_keystream(size: int) -> Iterator[Job]:
    """AES-256-CTR as fast as this machine's library makes `size` bytes of it."""
    zeros, room = memoryview(bytes(_CHUNK)), memoryview(bytearray(_CHUNK))
    while True:

        def job(watch: Watch) -> None:
            with watch:
                encryptor = Cipher(algorithms.AES256(bytes(range(32))), modes.CTR(bytes(16))).encryptor()
                for _ in range(size // _CHUNK):
                    encryptor.update_into(zeros, room)
                encryptor.update_into(zeros[: size % _CHUNK], room)
            watch.size = size

        yield job


class Bench:
    """The rows, each run when asked for."""

    def __init__(self, repetitions: int) -> None:
        self.repetitions = repetitions

    def row(self, work: str, found: Comparison, bar: float, *, sizes: float | None = None) -> Row:
        """A row of CPU seconds; `sizes` is the most our bytes may be of the rival's, if that counts too."""
        figure, rival = _side(found.ours), _side(found.rival)
        ratio, allowed, fine = _times(found.ratio, found.spread), f"{bar:g}×", found.ratio <= bar
        if sizes is not None:
            ratio += f"; bytes 1/{found.rival.size / found.ours.size:.1f}"
            allowed += f"; bytes 1/{1 / sizes:.0f}"
            fine = fine and found.ours.size <= sizes * found.rival.size
        return Row(work, figure, rival, ratio, allowed, fine)

    def client(self, d: int, width: int | None = None) -> Row:
        """Mask and encode; at another width than the rows', for the reader: it has no bar."""
        n, data = 10, vector(d)
        t = ours.threshold(n)
        ours.verify(n)
        rival_flwr.verify(n, t)
        found = compare(
            lambda: ours.client_mask(n, data, self.repetitions + 1, width),
            lambda: rival_flwr.client_mask(n, data, t),
            self.repetitions,
        )
        name = f"client: mask and encode, n = {n}, d = {d:.0e} ({width or ours.bits(n, d)} bits)"
        row = self.row(name, found, 0.15)
        return row if width is None else replace(row, bar="–", fine=None)

    def server(self, n: int, d: int, dropped: int, bar: float) -> Row:
        """Everything from received vectors and answers to the mean."""
        data, t = vector(d), ours.threshold(n)
        found = compare(
            lambda: ours.server_sum(n, data, dropped, self.repetitions + 1),
            lambda: rival_flwr.server_sum(n, data, dropped, t),
            self.repetitions,
        )
        return self.row(
            f"server, n = {n}, d = {d:.0e}, {dropped} dropped ({ours.bits(n, d)} bits)", found, bar
        )

    def set_up(self, n: int) -> Row:
        """One client's set-up, by the round."""
        ours.verify(n)  # Flower's is verified by the server's row: a whole round of n = 50 takes it a minute
        found = compare(
            lambda: ours.set_up(n), lambda: rival_flwr.set_up(n, ours.threshold(n)), self.repetitions
        )
        return self.row(f"client: set-up by the round, n = {n} (ours serves {ours.BATCH})", found, 0.02)

    def size(self, n: int, d: int) -> Row:
        """Bytes up, and what the coarser grid costs in noise."""
        data, watches = vector(d), (Watch(), Watch())
        sides = (ours.client_mask(n, data, 1), rival_flwr.client_mask(n, data, ours.threshold(n)))
        for jobs, watch in zip(sides, watches, strict=True):
            next(jobs)(watch)
        mine, theirs = (watch.size / d for watch in watches)
        extra = ours.extra_noise(n, d)
        return Row(
            f"bytes up a parameter, n = {n}, d = {d:.0e} ({ours.bits(n, d)} bits)",
            f"{mine:.3f} B, {extra:.2%} extra noise",
            f"{theirs:.3f} B",
            f"{mine / theirs:.3f}×",
            "2.04 B at 1% extra noise or less",
            mine <= 2.04 and extra <= 0.01,
        )

    def masks(self, d: int, times: int = 20) -> Row:
        """Masks against the keystream they are made of."""
        width = 16
        size = d * width // 8 * times
        found = compare(
            lambda: ours.keystream(d, times, width), lambda: raw_keystream(size), self.repetitions
        )
        return self.row(f"masks alone: {times} of d = {d:.0e} ({width} bits); rival: AES-256-CTR", found, 1.5)

    def memory(self, d: int) -> Row:
        """Peak resident memory of one client's masking, each side in fresh processes by turns."""
        growth: dict[str, list[int]] = {"ours": [], "rival": []}
        for _ in range(_MEMORY_RUNS):
            for side, values in growth.items():
                command = [sys.executable, __file__, "--memory", side, "--dimension", str(d)]
                values.append(int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        mine, theirs = (statistics.median(growth[side]) for side in ("ours", "rival"))
        ratio = mine / theirs
        name = f"client: peak memory above its input, n = 10, d = {d:.0e} ({ours.bits(10, d)} bits)"
        return Row(
            name, f"{mine / 1e6:.0f} MB", f"{theirs / 1e6:.0f} MB", f"{ratio:.3f}×", "0.3×", ratio <= 0.3
        )

    def ckks(self, d: int) -> Row:
        """Our client against encryption."""
        data = vector(d)
        ours.verify(10)
        found = compare(
            lambda: ours.client_mask(10, data, self.repetitions + 1),
            lambda: rival_ckks.encrypt(data),
            self.repetitions,
        )
        return self.row(
            f"client, n = 10, d = {d:.0e} ({ours.bits(10, d)} bits); rival: CKKS as NVFlare",
            found,
            0.02,
            sizes=1 / 25,
        )


def growth_of(side: str, d: int) -> int:
    """Bytes by which one masking of d numbers raises this process's peak; its input is there before."""
    data = vector(d)
    jobs = (
        ours.client_mask(10, data, 1)
        if side == "ours"
        else rival_flwr.client_mask(10, data, ours.threshold(10))
    )
    watch = measure.MemoryWatch()
    next(jobs)(watch)
    return watch.growth


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _side(side: measure.Side) -> str:
    told = f"{_seconds(statistics.median(side.cpu))} CPU, {_seconds(statistics.median(side.wall))} wall"
    return told + (f", {side.size / 1e6:.3g} MB" if side.size else "")


def _times(ratio: float, spread: tuple[float, float]) -> str:
    return f"{ratio:.3g}× ({spread[0]:.3g}–{spread[1]:.3g})"


def _versions() -> str:
    numbers = f"flwr {rival_flwr.VERSION}, nvflare {rival_ckks.VERSION}, numpy {np.__version__}"
    return f"foedus {ours.VERSION}, {numbers}"


def write(rows: Sequence[Row], repetitions: int) -> None:
    """The same as a page of the documentation."""
    lines = [
        "# The secure sum beside others",
        "",
        "Written by `make bench-secagg`; don't edit it by hand.",
        "",
        f"- Machine: {measure.machine()}; one core for both.",
        f"- Versions: {_versions()}.",
        f"- {datetime.now(UTC):%Y-%m-%d}; medians of {repetitions} runs by turns ({_MEMORY_RUNS} for memory), seed {_SEED}.",
        "",
        *markdown(HEAD, [row.cells for row in rows]),
        "",
        "Ratios are of the medians of CPU seconds (all threads); the spread is of pairs of runs that stood side by side.",
        "Before a row is timed both sides have given the right sum, and each server's result is checked in every run.",
        "",
        "What counts:",
        "",
        "- Client: from float32 numbers to bytes for the wire, key agreement and signature included. Flower: its",
        "  `_collect_masked_vectors`, from the serialised parameters its mod hands it. No DP noise on either side.",
        "- Server: from received bytes to float means, shares combined, every check made. Flower: the two",
        "  last stages of its workflow over recorded replies; its strategy's own averaging is left out.",
        "- Set-up: ours makes, deals and receives the keys and shares of a batch of rounds; Flower makes and deals",
        "  them every round (it decrypts what it receives in the client's row).",
        f"- Our words have the least bits that cost 1% more noise or less at σ = clip/{1 / ours.SIGMA:.0f} where no coordinate",
        f"  passes clip/{1 / ours.PEAK:.0f}: 16. At σ = clip it takes 20 where d ≥ 10^6; the client at wider words is shown, without a bar.",
        "- Both have the same threshold: t = ⌊(n + c)/2⌋ + 1 with c = n/5.",
        "- Memory: the kernel's peak (VmHWM) within one client's masking, above what was resident before it, in a fresh",
        "  process: its output counts, its input (40 MB of float32, or the same serialised) does not.",
        "- CKKS: NVFlare's `HEModelEncryptor` with the context its provisioning makes, and the ciphertext serialised.",
        "- Bytes: ours with the signed header; Flower's without the message around its vectors. Extra noise: by what part",
        "  the grid raises the standard deviation of what is released over a central Gaussian's at σ = clip: rounding,",
        "  and the noise that covers the sensitivity it adds.",
        "",
    ]
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text("\n".join(lines), encoding="utf-8")


def main() -> int:
    """Run the rows asked for; 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--only", help="rows whose name holds this text; writes no report")
    parser.add_argument("--memory", choices=("ours", "rival"), help=argparse.SUPPRESS)
    parser.add_argument("--dimension", type=int, default=10**7, help=argparse.SUPPRESS)
    told = parser.parse_args()
    core = measure.one_core()
    if told.memory:
        sys.stdout.write(str(growth_of(told.memory, told.dimension)))
        return 0
    bench = Bench(told.repetitions)
    plan = {
        "client 1e6": lambda: bench.client(10**6),
        "client 1e7": lambda: bench.client(10**7),
        "client 1e6 at 24 bits": lambda: bench.client(10**6, 24),
        "client 1e6 at 32 bits": lambda: bench.client(10**6, 32),
        "server 20": lambda: bench.server(20, 10**6, 2, 0.1),
        "server 50": lambda: bench.server(50, 10**5, 5, 0.02),
        "set-up": lambda: bench.set_up(50),
        "bytes": lambda: bench.size(10, 10**5),
        "masks": lambda: bench.masks(10**6),
        "memory": lambda: bench.memory(10**7),
        "ckks": lambda: bench.ckks(10**6),
    }
    started, rows = time.monotonic(), []
    for name, run in plan.items():
        if told.only is None or told.only in name:
            began = time.monotonic()
            rows.append(run())
            told_row = f"{rows[-1].figure} | {rows[-1].rival} | {rows[-1].ratio}"
            sys.stderr.write(f"{name}, {time.monotonic() - began:.0f} s: {told_row}\n")
    sys.stdout.write(f"{measure.machine()}, all on core {core}\n{_versions()}\n")
    title = f"The secure sum beside others: medians of {told.repetitions}, {time.monotonic() - started:.0f} s"
    show(title, HEAD, [row.cells for row in rows])
    if told.only is None and told.repetitions >= 7:
        write(rows, told.repetitions)
        sys.stdout.write(f"written: {REPORT.relative_to(ROOT)}\n")
    missed = [row.work for row in rows if row.fine is False]
    if missed:
        sys.stdout.write(f"MISSED: {'; '.join(missed)}\n")
    return 1 if missed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
