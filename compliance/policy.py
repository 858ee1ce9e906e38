"""Who may use which data for what: one function, asked on every path of customers' data, that says no unless a rule says yes.

Purpose limitation (GDPR art. 5 (1) b, PIPL art. 6) and the care for sensitive data (PIPL art. 28–29, GDPR art. 9) are decided here
and nowhere else. What is asked (`Use`) holds only what somebody has established: an attribute that is missing, of
another type, or a word that is not in its list is a reason to say no, and so is anything that goes wrong on the way.

1. The rule for the action, if there is one.
2. The role is among those of the rule.
3. The purpose is one of the vocabulary, stated by what is used (study, model), and permitted by the treaty.
4. Each of the approvals that the rule asks for is given.
5. Customers were asked: for sensitive data separately.
6. What leaves is protected as the rule says.
7. The data is within retention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from ..errors import Refused
from .consent import vocabulary


class Role(StrEnum):
    """On whose behalf data is used."""

    SCIENTIST = "scientist"
    OPERATOR = "operator"
    """The partner itself, at its own node."""
    CUSTOMER = "customer"
    """The person whom the data is about."""


class Action(StrEnum):
    """What is done with it."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    STATISTICS = "statistics"
    COUNT = "count"
    SCORE = "score"
    EXPORT = "export"
    ACCESS = "access"


class Classification(StrEnum):
    """How much care the data needs; of several columns, the highest."""

    PUBLIC = "public"
    INTERNAL = "internal"
    SENSITIVE = "sensitive"


class Consent(StrEnum):
    """How the customers whose data it is were asked. Each one's own record is checked by the cohort's query."""

    NONE = "none"
    GIVEN = "given"
    SEPARATE = "separate"
    """For sensitive data by itself (PIPL art. 29)."""


class Protection(StrEnum):
    """What becomes of what leaves the silo."""

    NONE = "none"
    GROUPS = "groups"
    """Only classes of the treaty's k people or more leave."""
    DIVERSE_GROUPS = "diverse groups"
    """And within each, what is sensitive differs (ℓ-diversity or t-closeness)."""
    NOISY_SUM = "noisy sum"
    """Only a sum over silos leaves, under masks, with noise, paid for in the ledger."""
    STAYS = "stays"
    """Nothing leaves the silo, or it goes to the person whom it is about."""


@dataclass(frozen=True)
class Use:
    """A use that somebody asks for.

    Args:
        purpose: what the study or model says it is for; None for an action that has none of its own.
        permitted: the purposes of the treaty.
        approved: every seat of the treaty's chain has signed, now.
        within_retention: no row older than the treaty allows is read.
    """

    role: Role
    action: Action
    classification: Classification
    consent: Consent
    protection: Protection
    purpose: str | None
    permitted: frozenset[str]
    approved: bool
    within_retention: bool


@dataclass(frozen=True)
class Decision:
    """Yes, or no with a code and a sentence."""

    allowed: bool
    code: str
    sentence: str

    def require(self) -> None:
        """Raises: Refused: no."""
        if self.allowed is not True:
            raise Refused(self.code, self.sentence, remedy="foedus policy show says what is allowed")


@dataclass(frozen=True)
class Rule:
    """What an action takes. `protection` is by the classification of the data; a class that is not there is not allowed."""

    roles: frozenset[Role]
    purpose: bool
    approvals: bool
    consent: bool
    protection: Mapping[Classification, frozenset[Protection]]


def _all(*protections: Protection) -> Mapping[Classification, frozenset[Protection]]:
    return dict.fromkeys(Classification, frozenset(protections))


_STUDY = Rule(frozenset({Role.SCIENTIST}), True, True, True, _all(Protection.NOISY_SUM))
RULES: Mapping[Action, Rule] = {
    Action.TRAIN: _STUDY,
    Action.EVALUATE: _STUDY,
    Action.STATISTICS: _STUDY,
    Action.COUNT: _STUDY,
    Action.SCORE: Rule(frozenset({Role.OPERATOR}), True, False, True, _all(Protection.STAYS)),
    Action.EXPORT: Rule(
        frozenset({Role.OPERATOR}),
        False,
        False,
        False,
        {
            Classification.PUBLIC: frozenset({Protection.GROUPS, Protection.DIVERSE_GROUPS}),
            Classification.INTERNAL: frozenset({Protection.GROUPS, Protection.DIVERSE_GROUPS}),
            Classification.SENSITIVE: frozenset({Protection.DIVERSE_GROUPS}),
        },
    ),
    Action.ACCESS: Rule(frozenset({Role.CUSTOMER}), False, False, False, _all(Protection.STAYS)),
}
_TYPES = {
    "role": Role,
    "action": Action,
    "classification": Classification,
    "consent": Consent,
    "protection": Protection,
    "permitted": frozenset,
    "approved": bool,
    "within_retention": bool,
}
YES = Decision(True, "ALLOWED", "a rule allows it")


def decide(use: Use) -> Decision:
    """Whether the use is allowed. It never raises: what goes wrong is a no."""
    try:
        return _decide(use)
    except Exception as error:  # noqa: BLE001 - whatever it is, the answer is no
        return _no("UNDECIDED", f"the policy could not be decided ({type(error).__name__})")


def _decide(use: Use) -> Decision:
    if type(use) is not Use:
        return _no("ATTRIBUTE_MISSING", "what is asked is no use")
    for name, kind in _TYPES.items():
        if type(getattr(use, name, None)) is not kind:
            return _no("ATTRIBUTE_MISSING", f"the use does not say its {name}")
    # 1.
    rule = RULES.get(use.action)
    if rule is None:
        return _no("NO_RULE", f"no rule allows to {use.action}")
    # 2.
    if use.role not in rule.roles:
        return _no("ROLE_NOT_ALLOWED", f"a {use.role} may not {use.action}")
    # 3.
    if rule.purpose:
        if type(use.purpose) is not str or use.purpose not in vocabulary.PURPOSES:
            return _no("PURPOSE_UNKNOWN", "no purpose of the vocabulary is stated")
        if use.purpose not in use.permitted:
            return _no("PURPOSE_NOT_PERMITTED", f"the treaty does not permit {use.purpose}")
    # 4.
    if rule.approvals and use.approved is not True:
        return _no("APPROVAL_MISSING", "not every seat of the approval chain has signed")
    # 5.
    if rule.consent:
        enough = {Consent.SEPARATE}
        if use.classification is not Classification.SENSITIVE:
            enough.add(Consent.GIVEN)
        if use.consent not in enough:
            return _no("CONSENT_MISSING", f"customers have not consented to it for {use.classification} data")
    # 6.
    if use.protection not in rule.protection.get(use.classification, frozenset()):
        return _no(
            "NOT_PROTECTED",
            f"{use.classification} data may not leave so ({use.action}, protection: {use.protection})",
        )
    # 7.
    if use.within_retention is not True:
        return _no("RETENTION_OVER", "data older than the treaty's retention would be read")
    return YES


def _no(code: str, sentence: str) -> Decision:
    return Decision(False, code, sentence)


def classify(categories: frozenset[str] | None) -> Classification | None:
    """How much care data of these categories needs; None (and so a no) where nobody says. An unknown one is sensitive."""
    if not categories:
        return None
    return Classification.SENSITIVE if vocabulary.sensitive(categories) else Classification.INTERNAL


def rows() -> list[tuple[str, ...]]:
    """The rules as a table: action, role, purpose, approvals, consent, protection of internal and of sensitive data."""
    found: list[tuple[str, ...]] = []
    for action, rule in RULES.items():
        internal, sensitive = (
            " or ".join(sorted(rule.protection.get(c, frozenset()))) or "never"
            for c in (Classification.INTERNAL, Classification.SENSITIVE)
        )
        found.append(
            (
                action.value,
                ", ".join(sorted(rule.roles)),
                "of the treaty" if rule.purpose else "–",
                "every seat" if rule.approvals else "–",
                "given; separate for sensitive data" if rule.consent else "–",
                internal,
                sensitive,
            )
        )
    return found


ATTRIBUTES = tuple(f.name for f in fields(Use))
