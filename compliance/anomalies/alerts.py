"""An alert: which rule, on which figures, against which baseline, by which entries of the log.

It holds numbers, entry indices, digests and words of this package, and nothing else that a log entry says: what a
subject or a detail names can't get into it. Actors are named by `events.label`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from ...documents import canonical
from ...errors import InputError

Rule = Literal["bulk", "drip", "budget", "refusals", "differencing", "clock"]
RULES: tuple[Rule, ...] = get_args(Rule)

Basis = Literal["own", "peers", "policy"]
"""Whose baseline: the actor's own history; their peers', for who has little; the policy's, where nobody has."""

_SAYS: dict[Rule, str] = {
    "bulk": "far more rows at once than usual",
    "drip": "reads at unusual hours, day after day",
    "budget": "much ε in a short time",
    "refusals": "refused again and again",
    "differencing": "two statistics whose difference is about few customers",
    "clock": "the log's clock went back",
}
_BASES: dict[Basis, str] = {
    "own": "the actor's own history",
    "peers": "peers, as the actor has little history",
    "policy": "the policy's defaults, as nobody has history yet",
}


@dataclass(frozen=True)
class Alert:
    """One alert.

    Args:
        time: of the event that completed it.
        figures: what was seen. baseline: what it was compared with.
        evidence: indices of the entries of `silo`'s log it rests on, ascending.
        studies: digests of the studies it is about.
    """

    rule: Rule
    time: datetime
    silo: str
    actor: str
    basis: Basis
    figures: Mapping[str, float]
    baseline: Mapping[str, float]
    evidence: tuple[int, ...]
    studies: tuple[str, ...] = field(default=())

    @property
    def id(self) -> str:
        """16 hex digits; the same alert on the same log has the same id."""
        return hashlib.sha256(canonical(self._content())).hexdigest()[:16]

    @property
    def sentence(self) -> str:
        """What it says, for a person."""
        seen = ", ".join(f"{name} {value:g}" for name, value in self.figures.items())
        usual = ", ".join(f"{name} {value:g}" for name, value in self.baseline.items())
        return f"{_SAYS[self.rule]}: {seen}; compared with {_BASES[self.basis]}: {usual}"

    def to_json(self) -> dict[str, Any]:
        """As it is logged, sent and stored; the id is in it."""
        return {"id": self.id, **self._content()}

    def _content(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "time": self.time.isoformat(timespec="microseconds"),
            "silo": self.silo,
            "actor": self.actor,
            "basis": self.basis,
            # As text: canonical JSON gives a float another form than was computed
            "figures": {name: f"{value:.6g}" for name, value in self.figures.items()},
            "baseline": {name: f"{value:.6g}" for name, value in self.baseline.items()},
            "evidence": list(self.evidence),
            "studies": list(self.studies),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Alert:
        """The alert that `to_json` gave.

        Raises:
            InputError: it is none, or its id is not that of its content.
        """
        try:
            alert = cls(
                rule=content["rule"],
                time=datetime.fromisoformat(content["time"]),
                silo=content["silo"],
                actor=content["actor"],
                basis=content["basis"],
                figures={name: float(value) for name, value in content["figures"].items()},
                baseline={name: float(value) for name, value in content["baseline"].items()},
                evidence=tuple(content["evidence"]),
                studies=tuple(content["studies"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not an alert: {error}") from error
        if alert.rule not in RULES or alert.id != content.get("id"):
            raise InputError(f"alert {content.get('id')!r}: its content has another id")
        return alert
