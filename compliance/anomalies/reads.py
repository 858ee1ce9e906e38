"""Bulk reads and slow drips: each actor against their own past.

A *bulk read* has far more rows than the actor's reads have: `Policy.bulk_off` robust deviations at hours that are
unusual for them, `Policy.bulk_any` at any hour. A read that is cut in pieces is seen as well: at unusual hours
the day's rows count against the actor's usual *day*.

A *slow drip* has no read that stands out. What stands out is that so many of the last 7 or 14 days have reads at
unusual hours, given how often the actor has such days (a Poisson tail), and that they come to a good part of
a usual day's rows in all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from .alerts import Alert, Basis
from .baseline import HOURS, Habit, Sizes, Typical, poisson_tail, typical
from .events import Access
from .policy import Policy

_EVIDENCE = 200  # entries an alert names at most, a day
_LEAST_READS = 20  # sizes from which an actor has a typical size of their own
_LEAST_PEERS = 5
_STRENGTH: tuple[Basis, ...] = ("policy", "peers", "own")  # from the weakest
_DEFAULT = Typical(math.log1p(100), 1.5)  # where nobody has history: reads of 100 rows, within 5 to 2,000


@dataclass
class Day:
    """One local day of one actor. `odd` are the reads at unusual hours, `far` those far from any usual one."""

    rows: float = 0.0
    sizes: list[float] = field(default_factory=list)
    hours: set[int] = field(default_factory=set)
    odd_rows: float = 0.0
    odd: list[int] = field(default_factory=list)
    far_rows: float = 0.0
    far: list[int] = field(default_factory=list)
    told: bool = False  # the day's sum was alerted
    suspect: bool = False  # part of a drip that was alerted

    def to_json(self) -> list[Any]:
        return [
            *(self.rows, self.sizes, sorted(self.hours), self.odd_rows, self.odd),
            *(self.far_rows, self.far, self.told, self.suspect),
        ]

    @classmethod
    def from_json(cls, told: list[Any]) -> Day:
        rows, sizes, hours, odd_rows, odd, far_rows, far, *marks = told
        return cls(rows, list(sizes), set(hours), odd_rows, list(odd), far_rows, list(far), *marks)


@dataclass
class Person:
    """What is known of one actor's reading.

    Args:
        learned: ordinal of the last day that went into `habit`.
        days: ordinal -> day, of the last `Policy.delay` days and today.
        closed: ordinal of the last day whose sizes are learned.
        quiet: rows up to which a drip that was alerted is not news; 0 is none.
    """

    group: str
    learned: int
    closed: int
    reads: Sizes = field(default_factory=Sizes)
    totals: Sizes = field(default_factory=Sizes)
    habit: Habit = field(default_factory=Habit)
    days: dict[int, Day] = field(default_factory=dict)
    quiet: float = 0.0


@dataclass(frozen=True)
class _Peers:
    """A group's baseline on one day: the spread between people is in `reads` and `totals`."""

    people: int
    reads: Typical
    totals: Typical
    keep: tuple[tuple[float, ...], ...]  # [kind of day][hour]: the part of them that is active then

    def to_json(self) -> list[Any]:
        return [self.people, astuple(self.reads), astuple(self.totals), self.keep]

    @classmethod
    def from_json(cls, told: list[Any]) -> _Peers:
        return cls(told[0], Typical(*told[1]), Typical(*told[2]), tuple(map(tuple, told[3])))


class Reads:
    """The detector of bulk reads and slow drips."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._zone = policy, policy.timezone
        self._people: dict[str, Person] = {}
        self._peers: dict[str, tuple[int, _Peers | None]] = {}

    def observe(self, event: Access) -> Iterator[Alert]:
        """Take in a read; what it completes."""
        local = event.time.astimezone(self._zone)  # DST: the hour that people's clocks show
        today = local.toordinal()
        person = self._people.get(event.actor)
        if person is None:
            person = self._people[event.actor] = Person(event.group, today - 1, today - 1)
        self._turn(person, today)
        policy, kind = self._policy, self._kind(today)
        day = person.days.setdefault(today, Day())
        peers = self._peers_of(person, today) if self._new(person) else None
        odd, hours_of = self._unusual(person, kind, local.hour, peers)
        day.hours.add(local.hour)
        if not event.rows:
            return
        day.sizes.append(float(event.rows))
        day.rows += event.rows
        if odd:
            day.odd_rows += event.rows
            if len(day.odd) < _EVIDENCE:
                day.odd.append(event.id)
        usual, basis = self._typical(person.reads, _LEAST_READS, peers.reads if peers else None)
        above = usual.deviations(event.rows)
        # Among usual hours size alone speaks, so it must be out of proportion, too: for who reads evenly, five
        # deviations are a report of seven times the usual
        strict = not odd or hours_of == "policy"
        much = event.rows >= max(policy.least_rows, policy.bulk_times * usual.rows if strict else 0)
        if much and above >= (policy.bulk_any if strict else policy.bulk_off):
            figures = {"rows": event.rows, "deviations": above, "hour": local.hour, "unusual_hour": odd}
            yield self._bulk(event, _weaker(basis, hours_of), figures, usual, len(person.reads), [event.id])
            day.told |= odd
        elif odd:
            yield from self._day(person, day, event, peers, hours_of)
        if hours_of == "policy" or not (odd if peers else self._far(person, kind, local.hour)):
            return
        day.far_rows += event.rows
        if len(day.far) < _EVIDENCE:
            day.far.append(event.id)
        yield from self._drip(person, today, event, peers, hours_of)

    def _day(
        self, person: Person, day: Day, event: Access, peers: _Peers | None, hours_of: Basis
    ) -> Iterator[Alert]:
        """The day's rows at unusual hours, against usual days: a bulk read in pieces."""
        usual, basis = self._typical(person.totals, self._policy.established, peers.totals if peers else None)
        above = usual.deviations(day.odd_rows)
        if day.told or day.odd_rows < self._policy.least_rows or above < self._policy.bulk_off:
            return
        day.told = True
        figures = {"rows_of_day": day.odd_rows, "reads": len(day.odd), "deviations": above}
        yield self._bulk(event, _weaker(basis, hours_of), figures, usual, len(person.totals), day.odd)

    def _drip(
        self, person: Person, today: int, event: Access, peers: _Peers | None, hours_of: Basis
    ) -> Iterator[Alert]:
        """Days with reads at unusual hours, in the last 7 and 14, against the actor's rate of such days."""
        policy, rate = self._policy, person.habit.odd_rate
        usual, basis = self._typical(person.totals, policy.established, peers.totals if peers else None)
        for window in (policy.delay // 2, policy.delay):
            days = [d for n, d in sorted(person.days.items()) if today - window < n <= today and d.far]
            rows, mean = sum(d.far_rows for d in days), rate * window
            if (
                len(days) < (policy.drip_days if hours_of == "own" else policy.drip_days_new)
                or rows < max(policy.least_rows, policy.drip_volume * usual.rows, person.quiet)
                or poisson_tail(len(days), mean) > policy.drip_chance
            ):
                continue
            person.quiet = 2 * rows
            for day in days:
                day.suspect = True
            figures = {"window_days": window, "days": len(days), "rows": rows}
            baseline = {
                "expected_days": mean,
                "rows_of_a_usual_day": usual.rows,
                "days_of_history": person.habit.seen,
            }
            evidence = sorted({i for d in days for i in d.far})
            yield Alert(
                "drip", event.time, event.silo, event.actor, _weaker(basis, hours_of), figures, baseline,
                tuple(evidence),
            )  # fmt: skip
            return

    # ── baselines ────────────────────────────────────────────────────────────────────────────────

    def _turn(self, person: Person, today: int) -> None:
        """Learn the days that are over. A clock that went back finds days of the future: they are forgotten."""
        if person.closed >= today:
            person.closed, person.learned = today - 1, min(person.learned, today - 1)
            person.days = {n: d for n, d in person.days.items() if n <= today}
        if person.closed == today - 1:
            return
        for number in sorted(n for n in person.days if person.closed < n < today):
            day = person.days[number]
            if day.sizes:
                person.reads.learn(day.sizes)
                person.totals.learn([day.rows])
                day.sizes = []
        person.closed = today - 1
        for number in range(max(person.learned + 1, today - 400), today - self._policy.delay):
            old = person.days.pop(number, None)
            hours, kind = old.hours if old else set[int](), self._kind(number)
            # Hours are learned all the same: a new shift is a habit after a while. The rate is not, or one
            # drip would hide the next
            known = person.habit.seen >= self._policy.established and not (old and old.suspect)
            person.habit.learn(kind, hours, known and any(self._far(person, kind, h) for h in hours))
            person.learned = number
        person.days = {n: d for n, d in person.days.items() if n >= today - self._policy.delay}
        if not any(d.far for d in person.days.values()):
            person.quiet = 0.0

    def _kind(self, ordinal: int) -> int:
        return int((ordinal - 1) % 7 in self._policy.weekend)  # 1 January of year 1 was a Monday

    def _new(self, person: Person) -> bool:
        return person.habit.seen < self._policy.established or len(person.reads) < _LEAST_READS

    def _far(self, person: Person, kind: int, hour: int) -> bool:
        return person.habit.far(kind, hour, self._policy.usual, self._policy.far_hours)

    def _unusual(self, person: Person, kind: int, hour: int, peers: _Peers | None) -> tuple[bool, Basis]:
        if person.habit.seen >= self._policy.established:
            return person.habit.share(kind, hour) < self._policy.rare, "own"
        if peers is not None:
            return peers.keep[kind][hour] < self._policy.peers_rare, "peers"
        first, until = self._policy.hours
        return not first <= hour < until, "policy"

    @staticmethod
    def _typical(own: Sizes, least: int, peers: Typical | None) -> tuple[Typical, Basis]:
        if len(own) >= least:
            return own.typical, "own"
        return (peers, "peers") if peers is not None else (_DEFAULT, "policy")

    def _peers_of(self, person: Person, today: int) -> _Peers | None:
        """Of the person's group, reckoned once a day."""
        known = self._peers.get(person.group)
        if known is None or known[0] != today:
            known = self._peers[person.group] = today, self._reckon(person.group)
        return known[1]

    def _reckon(self, group: str) -> _Peers | None:
        people = [p for p in self._people.values() if p.group == group and not self._new(p) and len(p.totals)]
        if len(people) < _LEAST_PEERS:
            return None
        keep = tuple(
            tuple(
                sum(p.habit.share(kind, hour) >= self._policy.rare for p in people) / len(people)
                for hour in range(HOURS)
            )
            for kind in (0, 1)
        )
        return _Peers(
            len(people), _pooled([p.reads.typical for p in people]), _pooled([p.totals.typical for p in people]), keep
        )  # fmt: skip

    @staticmethod
    def _bulk(
        event: Access, basis: Basis, figures: dict[str, Any], usual: Typical, sample: int, evidence: list[int]
    ) -> Alert:
        baseline = {"usual_rows": usual.rows, "deviation_of_log": usual.spread, "sample": sample}
        told = {name: float(value) for name, value in figures.items()}
        return Alert(
            "bulk", event.time, event.silo, event.actor, basis, told, baseline, tuple(sorted(evidence))
        )

    # ── state ────────────────────────────────────────────────────────────────────────────────────

    def state(self) -> dict[str, Any]:
        """All it knows, as JSON."""
        people = {
            name: {
                "group": p.group,
                "learned": p.learned,
                "closed": p.closed,
                "reads": list(p.reads.logs),
                "totals": list(p.totals.logs),
                "habit": p.habit.to_json(),
                "days": {str(n): d.to_json() for n, d in p.days.items()},
                "quiet": p.quiet,
            }
            for name, p in self._people.items()
        }
        peers = {group: [day, None if p is None else p.to_json()] for group, (day, p) in self._peers.items()}
        return {"people": people, "peers": peers}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self._peers = {
            group: (day, None if p is None else _Peers.from_json(p))
            for group, (day, p) in state["peers"].items()
        }
        self._people = {
            name: Person(
                told["group"],
                told["learned"],
                told["closed"],
                Sizes(told["reads"]),
                Sizes(told["totals"]),
                Habit(**told["habit"]),
                {int(n): Day.from_json(d) for n, d in told["days"].items()},
                told["quiet"],
            )
            for name, told in state["people"].items()
        }


def _pooled(people: list[Typical]) -> Typical:
    """Within and between people: robust deviations add up in squares."""
    between = typical([t.centre for t in people])
    within = typical([t.spread for t in people], least=0.0).centre
    return Typical(between.centre, math.hypot(between.spread, within))


def _weaker(*bases: Basis) -> Basis:
    return next(b for b in _STRENGTH if b in bases)
