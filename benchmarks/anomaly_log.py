"""A made-up access log of one silo, and what was planted in it: for `anomalies.py` and the tests.

200 people, 90 days of Berlin time over the change to summer time, some nine reads a person and working day; one in ten
works nights. Planted are 60 bulk reads between midnight and five, and 40 slow drips: a read or two of ordinary size on
each of ten nights running, by whoever it falls on, those who work nights too.

Honest work that looks like it is in the log as well, for a log without it would flatter every rule: late evenings,
weeks before a deadline with several of them, on-call nights, reports of twenty times the usual size, month ends,
holidays, shifts that change for good, newcomers.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np

from foedus.compliance.anomalies.events import Access

PEOPLE, DAYS = 200, 90
BULK, DRIPS, NIGHTS = 60, 40, 10
ZONE = ZoneInfo("Europe/Berlin")
FIRST = datetime(2026, 1, 12)
WARM_UP = 21  # days before anything is planted


@dataclass(frozen=True)
class Planted:
    """One incident: its events' ids."""

    kind: str
    actor: str
    ids: frozenset[int]


@dataclass(frozen=True)
class Log:
    events: list[Access]
    planted: list[Planted]


@dataclass
class _Person:
    name: str
    centre: float  # local hour around which they work
    reach: float  # deviation of hours
    size: float  # mean and deviation of log rows
    spread: float
    pace: float  # reads a working day
    weekends: bool
    first: int
    away: tuple[int, int]
    moves: tuple[int, float]  # from that day on, hours later
    rush: tuple[int, int]  # days of late evenings


def generate(
    seed: int, *, people: int = PEOPLE, days: int = DAYS, bulk: int = BULK, drips: int = DRIPS
) -> Log:
    """The log of a seed, by time."""
    rng = np.random.default_rng(seed)
    crowd = [_person(rng, i, days) for i in range(people)]
    rows: list[tuple[datetime, str, int, int]] = []  # local time, who, rows, incident or -1
    for person in crowd:
        for day in range(person.first, days):
            rows += [(*event, -1) for event in _ordinary(rng, person, day)]
    incidents: list[tuple[str, str]] = []
    for number in range(bulk):
        person, day = _victim(rng, crowd, days, 1)
        size = int(np.exp(person.size) * 30 * 10 ** rng.uniform())
        rows.append((_at(day, rng.uniform(0, 5)), person.name, size, number))
        incidents.append(("bulk", person.name))
    for number in range(drips):
        person, start = _victim(rng, crowd, days, NIGHTS)
        for night in range(start, start + NIGHTS):
            for _ in range(rng.integers(1, 3)):
                size = int(np.exp(person.size + rng.normal(0.6, 0.5 * person.spread))) + 1
                rows.append((_at(night, rng.uniform(0, 5)), person.name, size, bulk + number))
        incidents.append(("drip", person.name))
    return _log(rows, incidents)


def _log(rows: list[tuple[datetime, str, int, int]], incidents: list[tuple[str, str]]) -> Log:
    told = sorted((t.replace(tzinfo=ZONE).astimezone(UTC), who, size, which) for t, who, size, which in rows)
    events, ids = [], [set[int]() for _ in incidents]
    for index, (time, who, size, which) in enumerate(told):
        events.append(Access(index, time, who, "read", "shop-a", "staff", size))
        if which >= 0:
            ids[which].add(index)
    return Log(
        events,
        [Planted(kind, who, frozenset(found)) for (kind, who), found in zip(incidents, ids, strict=True)],
    )


def _person(rng: np.random.Generator, number: int, days: int) -> _Person:
    night = rng.uniform() < 0.1
    start = int(rng.integers(0, max(days - 14, 1)))
    rush = int(rng.integers(0, max(days - 5, 1)))
    return _Person(
        name=f"user-{number:03}",
        centre=float(rng.normal(2, 1) if night else rng.normal(13, 1)),
        reach=float(rng.uniform(1.2, 2.4)),
        size=float(rng.normal(np.log(60), 1.0)),
        spread=float(rng.uniform(0.4, 0.9)),
        pace=float(rng.uniform(5, 20)),
        weekends=bool(rng.uniform() < 0.1),
        first=int(rng.integers(15, 60)) if rng.uniform() < 0.05 else 0,
        away=(start, start + int(rng.integers(5, 15))) if rng.uniform() < 0.7 else (days, days),
        moves=(int(rng.integers(25, 75)), float(rng.normal(0, 3))) if rng.uniform() < 0.05 else (days, 0.0),
        rush=(rush, rush + int(rng.integers(3, 6))) if rng.uniform() < 0.15 else (days, days),
    )


def _ordinary(rng: np.random.Generator, person: _Person, day: int) -> list[tuple[datetime, str, int]]:
    if person.away[0] <= day < person.away[1]:
        return []
    weekend = (FIRST + timedelta(days=day)).weekday() >= 5
    works = not weekend or person.weekends or rng.uniform() < 0.02
    centre = person.centre + (person.moves[1] if day >= person.moves[0] else 0.0)
    hours = list(rng.normal(centre, person.reach, rng.poisson(person.pace))) if works else []
    late = 0.5 if person.rush[0] <= day < person.rush[1] else 0.012
    if works and rng.uniform() < late:
        hours += list(rng.normal(centre + 8, 1.0, rng.integers(1, 4)))
    if rng.uniform() < 0.004:  # called at night
        hours += list(rng.uniform(0, 6, rng.integers(1, 4)))
    sizes = np.exp(rng.normal(person.size, person.spread, len(hours)))
    month_end = (FIRST + timedelta(days=day + 2)).month != (FIRST + timedelta(days=day - 1)).month
    big = rng.uniform(size=len(hours)) < (0.01 if month_end else 0.001)
    sizes[big] *= rng.uniform(5, 20, int(big.sum()))
    return [(_at(day, h), person.name, int(s) + 1) for h, s in zip(hours, sizes, strict=True)]


def _victim(rng: np.random.Generator, crowd: list[_Person], days: int, length: int) -> tuple[_Person, int]:
    """Somebody who is there on all of these days."""
    while True:
        person, day = crowd[rng.integers(len(crowd))], int(rng.integers(WARM_UP, days - length))
        present = day >= person.first + 7 and not (day < person.away[1] and day + length > person.away[0])
        if present:
            return person, day


def _at(day: int, hour: float) -> datetime:
    """A local time, without its zone yet."""
    return FIRST + timedelta(days=day, seconds=round(hour * 3600, 3))
