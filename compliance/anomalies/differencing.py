"""Differencing: two statistics that were each let in, and whose difference is about few customers.

Two statistics of one measure (`questions`) are flagged if

1. their selections are the same, the cohorts are not (other Merkle root or size), and the sizes differ by less than k; or
2. one predicate was added, dropped or changed, and the sizes differ by less than k, or are not known.

With one predicate more, the smaller cohort is part of the larger, so the sizes tell exactly how many customers the
difference is about. With a changed one (``age < 40``, ``age < 41``) they tell it if the two are nested, as ranges are.
Several authors are compared with each other: they may be one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .alerts import Alert
from .events import Access
from .policy import Policy
from .questions import Question

_KEPT = 1_000  # statistics of one measure that are compared


class Differencing:
    """The detector of differences."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._asked: dict[str, list[tuple[int, str, str, Question]]] = {}  # measure -> entry, run, study

    def observe(self, event: Access) -> Iterator[Alert]:
        """Take in a statistic; an alert for each earlier one that it differs little from."""
        question = event.question
        if question is None or question.task not in self._policy.tasks:
            return
        earlier = self._asked.setdefault(question.measure, [])
        if any(event.run and run == event.run for _, run, _, _ in earlier):
            return
        for entry, _, study, asked in earlier:
            changed = len(question.changed(asked))
            apart = _apart(question, asked)
            same = changed == 0 and question.root == asked.root and question.customers == asked.customers
            unknown = apart is None and changed == 1
            if same or changed > 1 or not (unknown or (apart is not None and apart < self._policy.k)):
                continue
            figures = {"predicates_changed": float(changed)}
            if apart is not None:
                figures["customers_apart"] = float(apart)
            yield Alert(
                "differencing",
                event.time,
                event.silo,
                event.actor,
                "policy",
                figures,
                {"k": self._policy.k},
                tuple(sorted({entry, event.id})),
                tuple(dict.fromkeys(s for s in (study, event.study) if s)),
            )
        earlier.append((event.id, event.run, event.study, question))
        del earlier[:-_KEPT]

    def state(self) -> dict[str, Any]:
        """All it knows, as JSON."""
        return {
            measure: [[entry, run, study, q.to_json()] for entry, run, study, q in asked]
            for measure, asked in self._asked.items()
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self._asked = {
            measure: [
                (entry, run, study, q) for entry, run, study, told in asked if (q := Question.from_json(told))
            ]
            for measure, asked in state.items()
        }


def _apart(one: Question, other: Question) -> int | None:
    if one.customers is None or other.customers is None:
        return None
    return abs(one.customers - other.customers)
