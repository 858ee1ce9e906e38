"""How things are timed and shown here: CPU and wall of what stands inside `with watch:`, rival and we by turns."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.table import Table


class Watch:
    """Adds up CPU (all threads of this process) and wall seconds of every block `with watch:`."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0
        self.size = 0  # bytes the work made to be sent; the job sets it

    def __enter__(self) -> None:
        gc.collect()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cpu += time.process_time() - self._cpu
        self.wall += time.perf_counter() - self._wall


class MemoryWatch(Watch):
    """The highest resident memory inside the block, above what was resident at its start (Linux, bytes)."""

    growth = 0

    def __enter__(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text(
            "5", encoding="ascii"
        )  # sets the peak to what is resident now
        self._before = _status("VmRSS")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.growth = max(self.growth, _status("VmHWM") - self._before)


# One repetition: prepares, works inside `with watch:`, and raises if the result is wrong.
Job = Callable[[Watch], None]
Jobs = Callable[[], Iterator[Job]]


@dataclass
class Side:
    """What one of two rivals took, a value a repetition."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    size: int = 0

    def add(self, watch: Watch) -> None:
        self.cpu.append(watch.cpu)
        self.wall.append(watch.wall)
        self.size = watch.size


@dataclass(frozen=True)
class Comparison:
    """Both sides of one row."""

    ours: Side
    rival: Side

    @property
    def ratio(self) -> float:
        """Of the medians of CPU seconds."""
        return statistics.median(self.ours.cpu) / statistics.median(self.rival.cpu)

    @property
    def spread(self) -> tuple[float, float]:
        """Least and greatest ratio of two runs that stood side by side."""
        ratios = [a / b for a, b in zip(self.ours.cpu, self.rival.cpu, strict=True)]
        return min(ratios), max(ratios)


def compare(ours: Jobs, rival: Jobs, repetitions: int) -> Comparison:
    """Time two kinds of jobs by turns; who goes first changes. The first of each is not counted, only checked."""
    mine, theirs = ours(), rival()
    next(mine)(Watch())
    next(theirs)(Watch())
    result = Comparison(Side(), Side())
    for repetition in range(repetitions):
        turns = [(mine, result.ours), (theirs, result.rival)]
        for jobs, side in turns if repetition % 2 else reversed(turns):
            watch = Watch()
            next(jobs)(watch)
            side.add(watch)
    return result


@dataclass(frozen=True)
class Row:
    """One line of a table: `ratio` is figure over rival, or says what it is; `fine` is None without a bar."""

    work: str
    figure: str
    rival: str
    ratio: str
    bar: str = "–"
    fine: bool | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text, the verdict last."""
        verdict = "" if self.fine is None else "ok" if self.fine else MISS
        return (self.work, self.figure, self.rival, self.ratio, self.bar, verdict)


MISS = "**MISS**"
_COLOURS = {"ok": "[green]ok[/]", MISS: "[red]MISS[/]"}


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table, on the terminal."""
    table = Table(title=title, show_lines=True)
    for name in head:
        table.add_column(name)
    for row in rows:
        table.add_row(*row[:-1], _COLOURS.get(row[-1], row[-1]))
    Console(width=max(Console().width, 150)).print(table)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The same, as lines of a page."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def one_core() -> int:
    """Keep this process and its children on one core, so that nobody has two."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def machine() -> str:
    """Processor, cores, memory, system."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
