"""The watch: every rule over a stream of events, with a state that can be put away and taken up.

1. Events of one instant are taken in the order of their ids, however they come.
2. A clock that went back is an alert, once a step; the events count all the same, at the time they say.
3. Each event goes to the detectors of its kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any

from ...errors import InputError
from .alerts import Alert
from .differencing import Differencing
from .events import Access
from .policy import Policy
from .reads import Reads
from .refusals import Refusals
from .spending import Spending

_VERSION = 1
_TIME, _ID = attrgetter("time"), attrgetter("id")


class Watch:
    """All detectors under one policy."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._reads, self._spending = Reads(policy), Spending(policy)
        self._refusals, self._differencing = Refusals(policy), Differencing(policy)
        self._last: tuple[datetime, int] | None = None

    def feed(self, events: Iterable[Access]) -> list[Alert]:
        """Take in events in the order of the log; the alerts they complete, in that order."""
        found: list[Alert] = []
        for time, group in groupby(events, key=_TIME):
            together = sorted(group, key=_ID)  # 1.
            found += self._clock(time, together[0])  # 2.
            self._last = time, together[-1].id
            for event in together:  # 3.
                if event.kind == "read":
                    found += self._reads.observe(event)
                elif event.kind == "spend":
                    found += self._spending.observe(event)
                    found += self._differencing.observe(event)
                elif event.kind == "refusal":
                    found += self._refusals.observe(event)
        return found

    def _clock(self, time: datetime, event: Access) -> list[Alert]:
        if self._last is None:
            return []
        before, entry = self._last
        back = (before - time).total_seconds()
        if back <= self.policy.clock_seconds:
            return []
        figures, allowed = {"seconds_back": back}, {"seconds_allowed": self.policy.clock_seconds}
        evidence = tuple(sorted({entry, event.id}))
        return [Alert("clock", time, event.silo, event.actor, "policy", figures, allowed, evidence)]

    def state(self) -> dict[str, Any]:
        """All it knows, as JSON; `restore` takes it up as if nothing had been."""
        return {
            "version": _VERSION,
            "last": None if self._last is None else [self._last[0].isoformat(), self._last[1]],
            "reads": self._reads.state(),
            "spending": self._spending.state(),
            "refusals": self._refusals.state(),
            "differencing": self._differencing.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave.

        Raises:
            InputError: it is none, or of another version.
        """
        if state.get("version") != _VERSION:
            raise InputError(
                "the watch's state is of another version", remedy="remove watch.db: it learns anew"
            )
        last = state["last"]
        self._last = None if last is None else (datetime.fromisoformat(last[0]), last[1])
        self._reads.restore(state["reads"])
        self._spending.restore(state["spending"])
        self._refusals.restore(state["refusals"])
        self._differencing.restore(state["differencing"])
