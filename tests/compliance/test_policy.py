"""The decision on a use of customers' data: what the rules allow, and that everything else is a no."""

from __future__ import annotations

import dataclasses
import time
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foedus.compliance import policy
from foedus.compliance.consent import vocabulary
from foedus.compliance.policy import Action, Classification, Consent, Protection, Role, Use, classify, decide
from foedus.errors import Refused

CRM = "dpv:CustomerRelationshipManagement"
GOOD = Use(
    role=Role.SCIENTIST,
    action=Action.TRAIN,
    classification=Classification.INTERNAL,
    consent=Consent.GIVEN,
    protection=Protection.NOISY_SUM,
    purpose=CRM,
    permitted=frozenset({CRM}),
    approved=True,
    within_retention=True,
)
SCORE = dataclasses.replace(
    GOOD, role=Role.OPERATOR, action=Action.SCORE, protection=Protection.STAYS, approved=False
)
EXPORT = dataclasses.replace(
    SCORE, action=Action.EXPORT, protection=Protection.DIVERSE_GROUPS, consent=Consent.NONE, purpose=None
)
ACCESS = dataclasses.replace(EXPORT, role=Role.CUSTOMER, action=Action.ACCESS, protection=Protection.STAYS)
ALLOWED = [GOOD, SCORE, EXPORT, ACCESS]
uses = st.builds(
    Use,
    role=st.sampled_from(Role),
    action=st.sampled_from(Action),
    classification=st.sampled_from(Classification),
    consent=st.sampled_from(Consent),
    protection=st.sampled_from(Protection),
    purpose=st.sampled_from([None, CRM, "dpv:Marketing", "dpv:Nonsense"]),
    permitted=st.sampled_from([frozenset(), frozenset({CRM}), frozenset({"dpv:Marketing"})]),
    approved=st.booleans(),
    within_retention=st.booleans(),
)
junk = st.one_of(
    st.none(),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.lists(st.integers(), max_size=2),
)


@pytest.mark.parametrize("use", ALLOWED, ids=lambda use: use.action.value)
def test_what_the_rules_allow(use: Use) -> None:
    assert decide(use) == policy.YES
    decide(use).require()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"role": Role.OPERATOR}, "ROLE_NOT_ALLOWED"),
        ({"purpose": None}, "PURPOSE_UNKNOWN"),
        ({"purpose": "dpv:Nonsense"}, "PURPOSE_UNKNOWN"),
        ({"purpose": "dpv:Marketing"}, "PURPOSE_NOT_PERMITTED"),
        ({"permitted": frozenset()}, "PURPOSE_NOT_PERMITTED"),
        ({"approved": False}, "APPROVAL_MISSING"),
        ({"consent": Consent.NONE}, "CONSENT_MISSING"),
        ({"classification": Classification.SENSITIVE}, "CONSENT_MISSING"),
        ({"protection": Protection.DIVERSE_GROUPS}, "NOT_PROTECTED"),
        ({"protection": Protection.NONE}, "NOT_PROTECTED"),
        ({"within_retention": False}, "RETENTION_OVER"),
        ({"approved": 1}, "ATTRIBUTE_MISSING"),
        ({"permitted": [CRM]}, "ATTRIBUTE_MISSING"),
        ({"action": "train"}, "ATTRIBUTE_MISSING"),
    ],
)
def test_why_it_says_no(change: dict[str, Any], code: str) -> None:
    decision = decide(dataclasses.replace(GOOD, **change))
    assert (decision.allowed, decision.code, bool(decision.sentence)) == (False, code, True)
    with pytest.raises(Refused) as refusal:
        decision.require()
    assert refusal.value.code == code


def test_sensitive_data_leaves_only_where_it_differs_within_groups() -> None:
    assert decide(dataclasses.replace(EXPORT, protection=Protection.GROUPS)) == policy.YES
    sensitive = dataclasses.replace(EXPORT, classification=Classification.SENSITIVE)
    assert decide(sensitive) == policy.YES
    assert decide(dataclasses.replace(sensitive, protection=Protection.GROUPS)).code == "NOT_PROTECTED"


@given(st.sampled_from(ALLOWED), st.sampled_from(policy.ATTRIBUTES), junk)
def test_an_attribute_that_is_missing_or_junk_is_a_no(use: Use, name: str, value: Any) -> None:
    if name == "purpose" and not policy.RULES[use.action].purpose:
        return  # it has none of its own
    if name in ("approved", "within_retention") and type(value) is bool:
        value = None
    broken = dataclasses.replace(use, **{name: value})
    assert decide(broken).allowed is False
    gone = dataclasses.replace(use)
    object.__delattr__(gone, name)
    assert decide(gone).allowed is False


@given(junk)
def test_anything_else_is_a_no(what: Any) -> None:
    assert decide(what).allowed is False


def test_an_error_on_the_way_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(dict[Any, Any]):
        def get(self, *_: Any) -> Any:
            raise RuntimeError("no rules today")

    monkeypatch.setattr(policy, "RULES", Broken())
    assert decide(GOOD) == policy.Decision(
        False, "UNDECIDED", "the policy could not be decided (RuntimeError)"
    )


@given(uses)
def test_less_is_never_more(use: Use) -> None:
    """What is allowed stays so with more consent, approvals or purposes, and with data that needs less care."""
    if not decide(use).allowed:
        return
    for more in (
        {"consent": Consent.SEPARATE},
        {"approved": True},
        {"permitted": use.permitted | {"dpv:Marketing"}},
        {"classification": Classification.PUBLIC},
    ):
        assert decide(dataclasses.replace(use, **more)).allowed, more


def test_no_role_gets_raw_rows_out() -> None:
    for role, action, found, consent in product(Role, Action, Classification, Consent):
        use = dataclasses.replace(
            GOOD, role=role, action=action, classification=found, consent=consent, protection=Protection.NONE
        )
        assert not decide(use).allowed


def test_categories_say_how_much_care() -> None:
    assert classify(frozenset({"user.behavior.purchase_history"})) is Classification.INTERNAL
    assert classify(frozenset({"user.behavior.purchase_history", "user.health"})) is Classification.SENSITIVE
    assert classify(frozenset({"user.of.no.such.kind"})) is Classification.SENSITIVE
    assert classify(frozenset()) is classify(None) is None
    assert len(vocabulary.PURPOSES) > 20


def test_it_decides_fast() -> None:
    """20,000 a second; a tenth of that is asked for here, as the machine may be busy."""
    start = time.process_time()
    for _ in range(2_000):
        decide(GOOD)
    assert 2_000 / (time.process_time() - start) > 2_000
