"""Repeated refusals: so many within so many minutes, whoever it is. A door that is tried again and again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .alerts import Alert
from .events import Access
from .policy import Policy


class Refusals:
    """The detector of repeated refusals. After an alert it counts anew."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._recent: dict[str, list[list[Any]]] = {}  # actor -> [seconds, entry]

    def observe(self, event: Access) -> Iterator[Alert]:
        """Take in a refusal; what it completes."""
        policy, now = self._policy, event.time.timestamp()
        since = now - 60 * policy.refusal_minutes
        recent = [r for r in self._recent.get(event.actor, []) if since < r[0] <= now]
        recent.append([now, event.id])
        if len(recent) < policy.refusals:
            self._recent[event.actor] = recent
            return
        self._recent.pop(event.actor, None)
        yield Alert(
            "refusals",
            event.time,
            event.silo,
            event.actor,
            "policy",
            {"refusals": len(recent), "minutes": (now - min(r[0] for r in recent)) / 60},
            {"refusals_allowed": policy.refusals - 1, "in_minutes": policy.refusal_minutes},
            tuple(sorted(r[1] for r in recent)),
        )

    def state(self) -> dict[str, Any]:
        """All it knows, as JSON."""
        return dict(self._recent)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self._recent = {actor: [list(r) for r in recent] for actor, recent in state.items()}
