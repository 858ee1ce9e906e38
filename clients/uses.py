"""What each path of customers' data asks the policy (`compliance.policy`): a study's task, scores, exported rows."""

from __future__ import annotations

from ..compliance import policy
from ..compliance.masking.policy import Column, Policy
from ..compliance.masking.roles import Role
from ..compliance.policy import Action, Consent, Protection, Use
from ..compliance.treaty import Treaty
from ..federation.rounds import Task
from ..federation.study import AnyStudy

_TASKS: dict[Task, Action] = {
    "statistics": Action.STATISTICS,
    "curvature": Action.TRAIN,
    "train": Action.TRAIN,
    "validate": Action.EVALUATE,
    "evaluate": Action.EVALUATE,
    "count": Action.COUNT,
}


def of_study(study: AnyStudy, categories: frozenset[str], treaty: Treaty, *, approved: bool) -> None:
    """May the data go into each of a study's sums?

    Args:
        categories: what the table holds, as node.yaml says. approved: every seat has signed.

    Raises:
        Refused: no.
    """
    for action in dict.fromkeys(_TASKS[task] for task in study.tasks):
        _ask(policy.Role.SCIENTIST, action, categories, Protection.NOISY_SUM, study.purpose, treaty, approved)


def of_scores(purpose: str, categories: frozenset[str], treaty: Treaty) -> None:
    """May a released model score the silo's own customers, here? Raises: Refused: no."""
    _ask(policy.Role.OPERATOR, Action.SCORE, categories, Protection.STAYS, purpose, treaty, False)


def of_masked(rules: Policy, treaty: Treaty) -> None:
    """May a table that was masked by these rules leave? Raises: Refused: no."""
    sensitive = rules.names(Role.SENSITIVE)
    diverse = all(_differs(rules.columns[name]) for name in sensitive)
    classification = policy.Classification.SENSITIVE if sensitive else policy.Classification.INTERNAL
    protection = Protection.DIVERSE_GROUPS if sensitive and diverse else Protection.GROUPS
    _export(classification, protection, treaty)


def of_union(keep: bool, categories: frozenset[str], treaty: Treaty) -> None:
    """May rows leave whose groups have k on the union?

    Args:
        keep: further columns go with them, as they are.

    Raises:
        Refused: no.
    """
    found = policy.classify(categories) if keep else policy.Classification.INTERNAL
    _export(found, Protection.GROUPS, treaty)


def of_access() -> None:
    """May a customer be given all that is kept of them, sensitive or not? Raises: Refused: no."""
    policy.decide(
        Use(
            role=policy.Role.CUSTOMER,
            action=Action.ACCESS,
            classification=policy.Classification.SENSITIVE,
            consent=Consent.NONE,
            protection=Protection.STAYS,
            purpose=None,
            permitted=frozenset(),
            approved=False,
            within_retention=True,
        )
    ).require()


def _differs(column: Column) -> bool:
    """Whether the rules ask that the values of a sensitive column differ within every group."""
    return (column.l is not None and column.l > 1) or (column.t is not None and column.t < 1)


def _export(found: policy.Classification | None, protection: Protection, treaty: Treaty) -> None:
    policy.decide(
        Use(
            role=policy.Role.OPERATOR,
            action=Action.EXPORT,
            classification=found,  # type: ignore[arg-type]  # None is a no
            consent=Consent.NONE,
            protection=protection,
            purpose=None,
            permitted=_permitted(treaty),
            approved=False,
            within_retention=True,
        )
    ).require()


def _ask(
    role: policy.Role,
    action: Action,
    categories: frozenset[str],
    protection: Protection,
    purpose: str | None,
    treaty: Treaty,
    approved: bool,
) -> None:
    found = policy.classify(categories)
    sensitive = found is policy.Classification.SENSITIVE
    policy.decide(
        Use(
            role=role,
            action=action,
            classification=found,  # type: ignore[arg-type]  # None is a no
            # the cohort's query asks each customer's record for just these categories
            consent=Consent.SEPARATE if sensitive else Consent.GIVEN,
            protection=protection,
            purpose=purpose,
            permitted=_permitted(treaty),
            approved=approved,
            within_retention=True,  # the features' query reads no row older than the treaty allows
        )
    ).require()


def _permitted(treaty: Treaty) -> frozenset[str]:
    return frozenset(terms.purpose for terms in treaty.purposes)
