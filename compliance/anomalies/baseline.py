"""Robust baselines: the size of reads and days by median and MAD, and the hours somebody keeps.

Median and MAD bear up to half of the sample being foreign (Hampel 1974); logs of rows, as sizes spread over
orders of magnitude. A baseline holds still within a local day: what is judged today is judged by the past.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

FLOOR = 0.35
"""Least deviation of log rows: who always reads the same would else alert at one row more."""
_NORMAL = 1.4826  # MAD of a normal distribution, inverse
_SAMPLE = 400
HOURS = 24
_DECAY = 0.5 ** (1 / 60)  # a day's weight in the habit, halved in 60 days


@dataclass(frozen=True)
class Typical:
    """Median and robust deviation of logs of rows."""

    centre: float
    spread: float

    def deviations(self, rows: float) -> float:
        """How many deviations `rows` lies above the centre."""
        return (math.log1p(rows) - self.centre) / self.spread

    @property
    def rows(self) -> float:
        """The median, in rows."""
        return math.expm1(self.centre)


def typical(logs: Iterable[float], *, least: float = FLOOR) -> Typical:
    """Median and 1.4826 × MAD of a sample that is not empty."""
    ordered = sorted(logs)
    centre = _median(ordered)
    return Typical(centre, max(least, _NORMAL * _median(sorted(abs(x - centre) for x in ordered))))


def _median(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


class Sizes:
    """The last 400 sizes of one kind, as logs."""

    def __init__(self, logs: Iterable[float] = ()) -> None:
        self.logs: deque[float] = deque(logs, _SAMPLE)
        self._typical: Typical | None = None

    def learn(self, rows: Iterable[float]) -> None:
        self.logs.extend(math.log1p(r) for r in rows)
        self._typical = None

    def __len__(self) -> int:
        return len(self.logs)

    @property
    def typical(self) -> Typical:
        """Of a sample that is not empty."""
        if self._typical is None:
            self._typical = typical(self.logs)
        return self._typical


@dataclass
class Habit:
    """On how many past days somebody was active around each hour; working days and weekends apart.

    Args:
        active: [kind of day][hour], decayed counts of days.
        days: decayed counts of calendar days, of each kind.
        odd: decayed count of days with reads far from all usual hours.
        seen: active days, not decayed.
    """

    active: list[list[float]] = field(default_factory=lambda: [[0.0] * HOURS, [0.0] * HOURS])
    days: list[float] = field(default_factory=lambda: [0.0, 0.0])
    odd: float = 0.0
    seen: int = 0

    def learn(self, kind: int, hours: Iterable[int], odd: bool) -> None:
        """One calendar day of this kind (1 is a weekend), on which somebody was active in `hours`."""
        for row in self.active:
            for hour in range(HOURS):
                row[hour] *= _DECAY
        self.days = [d * _DECAY for d in self.days]
        self.odd = self.odd * _DECAY + odd
        self.days[kind] += 1
        around = {(h + step) % HOURS for h in hours for step in (-1, 0, 1)}  # the clock is a circle
        for hour in around:
            self.active[kind][hour] += 1
        self.seen += bool(around)

    def share(self, kind: int, hour: int) -> float:
        """The part of days of this kind on which somebody was active within an hour of `hour`."""
        return self.active[kind][hour] / max(self.days[kind], 4.0)

    def far(self, kind: int, hour: int, usual: float, hours: int) -> bool:
        """Whether no hour less than `hours` away has a share of `usual` or more; the clock is a circle."""
        near = range(hour - hours + 1, hour + hours)
        return all(self.active[kind][h % HOURS] < usual * max(self.days[kind], 4.0) for h in near)

    @property
    def odd_rate(self) -> float:
        """Days with reads far from all usual hours, of all; one in 40 before anything is known."""
        return (self.odd + 0.5) / (sum(self.days) + 20)

    def to_json(self) -> dict[str, Any]:
        return {"active": self.active, "days": self.days, "odd": self.odd, "seen": self.seen}


def poisson_tail(count: int, mean: float) -> float:
    """P(X ≥ count) of a Poisson variable."""
    term = total = math.exp(-mean)
    for i in range(1, count):
        term *= mean / i
        total += term
    return max(0.0, 1.0 - total) if count > 0 else 1.0
