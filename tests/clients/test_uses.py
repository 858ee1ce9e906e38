"""Every path of customers' data asks the policy: where it says no to all, each refuses.

Scores are in `test_scoring`, exported rows in `test_release_gate`.
"""

from __future__ import annotations

import pytest
import yaml
from support.nodes import Rehearsal, assert_refused

from foedus.compliance import policy
from foedus.compliance.policy import Decision, Use

NODE = "aster-music"


def nothing(_: Use) -> Decision:
    return Decision(False, "NOT_TODAY", "nothing is allowed today")


def test_a_study_is_held_against_the_policy_when_it_comes_and_in_each_round(
    play: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Use] = []

    def spied(use: Use) -> Decision:
        asked.append(use)
        return policy.YES

    monkeypatch.setattr(policy, "decide", spied)
    play.set_up()
    actions = {use.action.value for use in asked}
    assert actions == {"train", "evaluate"} and {use.protection.value for use in asked} == {"noisy sum"}
    monkeypatch.setattr(policy, "decide", nothing)
    assert_refused(play, NODE, play.ask(NODE, play.vector_request(NODE), play.weights), "NOT_TODAY")


def test_a_study_the_policy_does_not_allow_is_not_let_in(
    play: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "decide", nothing)
    assert_refused(play, NODE, play.ask(NODE, play.keys_request(NODE)), "NOT_TODAY")


def test_sensitive_categories_ask_for_separate_consent(
    play: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Use] = []
    monkeypatch.setattr(policy, "decide", lambda use: asked.append(use) or policy.YES)
    file = play.home(NODE) / "node.yaml"
    said = yaml.safe_load(file.read_text()) | {
        "categories": ["user.behavior.purchase_history", "user.health"]
    }
    file.write_text(yaml.safe_dump(said))
    play.restart(NODE)
    refusal = play.ask(NODE, play.keys_request(NODE)).refusal
    assert refusal is not None and refusal.code == "COHORT_TOO_SMALL"  # nobody was asked separately
    assert {(use.classification.value, use.consent.value) for use in asked} == {("sensitive", "separate")}
