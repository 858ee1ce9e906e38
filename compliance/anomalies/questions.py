"""What a study asks, reduced to what two studies are compared by: a digest of the measure, and its predicates.

Nothing of a study's text is kept: a predicate is the digest of where it stands in the document and that of its
value. So a filter that names a customer does not name them here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...documents import canonical

# The fields of a study that choose whose rows count, and those that say nothing about what is computed
SELECTING = frozenset({"table", "split", "label", "cohort", "filter", "filters", "where"})
_APART = frozenset({"title", "author", "created", "nonce", "privacy", "release", "trip_seconds", "treaty"})


@dataclass(frozen=True)
class Question:
    """What was computed, over whom.

    Args:
        measure: digest of everything but the selection.
        predicates: place in the document -> value, both digests.
        customers: size of the cohort; None if nobody says.
        root: a digest of the cohort, salted at the silo; empty if nobody says.
    """

    task: str
    measure: str
    predicates: Mapping[str, str]
    customers: int | None = None
    root: str = ""

    @classmethod
    def of(cls, study: Mapping[str, Any], *, customers: int | None = None, root: str = "") -> Question:
        """The question of a study's document (the payload of its envelope)."""
        selection = {name: study[name] for name in study if name in SELECTING}
        rest = {name: study[name] for name in study if name not in SELECTING | _APART}
        predicates = {_short(place): _short(value) for place, value in _leaves("", selection)}
        return cls(str(study.get("task", "")), _short(rest), predicates, customers, root)

    def changed(self, other: Question) -> set[str]:
        """The places at which the predicates of two questions differ."""
        mine, theirs = self.predicates, other.predicates
        return {place for place in {*mine, *theirs} if mine.get(place) != theirs.get(place)}

    def to_json(self) -> dict[str, Any]:
        """As a node logs it."""
        return {
            "task": self.task,
            "measure": self.measure,
            "predicates": dict(self.predicates),
            "customers": self.customers,
            "root": self.root,
        }

    @classmethod
    def from_json(cls, content: object) -> Question | None:
        """What `to_json` gave; None of anything else."""
        try:
            told = dict(content)  # type: ignore[call-overload]
            found = cls(
                told["task"], told["measure"], dict(told["predicates"]), told["customers"], told["root"]
            )
        except (KeyError, TypeError, ValueError):
            return None
        return found if isinstance(found.customers, int | None) else None


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield from _leaves(f"{place}/{name}", below)
    elif isinstance(value, list | tuple):
        for below in value:  # a list of filters is a set of predicates, so the item is its own place
            yield f"{place}/{_short(below)}", below
    else:
        yield place, value


def _short(value: Any) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()[:16]
