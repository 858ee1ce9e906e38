"""Budget bursts: ε that a scientist's studies spend in a short window, against their own past and the cap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from .alerts import Alert, Basis
from .events import Access
from .policy import Policy

_WEEKS = 26  # windows that are remembered
_LEAST = 4  # windows from which somebody has a usual one


@dataclass
class _Spender:
    recent: list[list[Any]] = field(default_factory=list)  # [day, run, ε, entry]
    window: int = -1  # number of the calendar window the sum below is of
    sum: float = 0.0
    past: list[float] = field(default_factory=list)  # sums of windows in which something was spent
    told: float = 0.0  # ε already alerted


class Spending:
    """The detector of budget bursts.

    ε of several studies is added up, which is never less than what they cost together. A run that is accepted
    again (a later batch) counts once.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy, self._zone = policy, policy.timezone
        self._spenders: dict[str, dict[str, _Spender]] = {}  # purpose -> actor

    def observe(self, event: Access) -> Iterator[Alert]:
        """Take in what a study spends; what it completes."""
        policy, today = self._policy, event.time.astimezone(self._zone).toordinal()
        everybody = self._spenders.setdefault(event.purpose, {})
        one = everybody.setdefault(event.actor, _Spender())
        one.recent = [r for r in one.recent if today - policy.budget_days < r[0] <= today]
        if any(event.run and r[1] == event.run for r in one.recent):
            return
        if one.window != today // policy.budget_days:
            if one.sum:
                one.past = [*one.past, one.sum][-_WEEKS:]
            one.window, one.sum = today // policy.budget_days, 0.0
        one.sum += event.epsilon
        one.recent.append([today, event.run, event.epsilon, event.id])
        spent, cap = sum(r[2] for r in one.recent), policy.caps.get(event.purpose, 0.0)
        if spent < one.told:
            one.told = 0.0
        usual, basis = self._usual(event.actor, everybody)
        burst = usual > 0 and spent >= policy.budget_factor * usual and len(one.recent) > 1
        large = cap > 0 and spent >= policy.budget_share * cap
        if not (burst or large) or (one.told and spent < 1.5 * one.told):
            return
        one.told = spent
        figures = {"epsilon": spent, "days": policy.budget_days, "studies": len(one.recent)}
        yield Alert(
            "budget",
            event.time,
            event.silo,
            event.actor,
            basis,
            figures,
            {"usual_epsilon": usual, "cap": cap},
            tuple(sorted(r[3] for r in one.recent)),
            (event.study,) if event.study else (),
        )

    def _usual(self, actor: str, everybody: Mapping[str, _Spender]) -> tuple[float, Basis]:
        own = everybody[actor].past
        if len(own) >= _LEAST:
            return median(own), "own"
        others = [x for name, s in sorted(everybody.items()) if name != actor for x in s.past]
        return (median(others), "peers") if len(others) >= _LEAST else (0.0, "policy")

    def state(self) -> dict[str, Any]:
        """All it knows, as JSON."""
        return {
            purpose: {
                name: vars(s) | {"recent": [list(r) for r in s.recent]} for name, s in everybody.items()
            }
            for purpose, everybody in self._spenders.items()
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self._spenders = {
            purpose: {name: _Spender(**told) for name, told in everybody.items()}
            for purpose, everybody in state.items()
        }
