"""Approvals: every seat of the chain, each by its own signature, nobody their own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.treaties import PURPOSE, Keys, all_approvals, decision, make_study, make_treaty

from foedus.compliance import approvals
from foedus.compliance.treaty import Approver
from foedus.documents import Envelope, SigningKey
from foedus.errors import InputError, Refused, VerificationError

DOCUMENT, CONTENT, KEYS = make_treaty(4)
STUDY = make_study(DOCUMENT, CONTENT, KEYS)
GIVEN = all_approvals(DOCUMENT, CONTENT, KEYS, STUDY)
NOW = datetime.now(UTC)
SEATS = ["business", "dpo", "partner shop-1", "partner shop-2", "partner shop-3", "partner shop-4"]


def missing(given: list[Envelope], **changes: Any) -> list[str]:
    asked: dict[str, Any] = {
        "treaty_digest": DOCUMENT.digest, "study": STUDY.digest, "author": "alice", "purpose": PURPOSE,
        "epsilon": STUDY.payload["privacy"]["epsilon"],
    }  # fmt: skip
    return approvals.missing(given, CONTENT, **(asked | changes))


def by(approver: str, **changes: Any) -> Envelope:
    return decision(DOCUMENT, CONTENT, KEYS, STUDY, approver, **{"now": NOW, **changes})


def instead(place: int, envelope: Envelope) -> list[Envelope]:
    return [*GIVEN[:place], envelope, *GIVEN[place + 1 :]]


def test_all_approvals_fill_all_seats() -> None:
    assert missing(GIVEN) == []
    assert missing(list(reversed(GIVEN))) == []
    assert missing(GIVEN + GIVEN) == []


def test_no_approvals_fill_none() -> None:
    assert missing([]) == SEATS


@pytest.mark.parametrize("place", range(6))
def test_each_missing_seat_is_named(place: int) -> None:
    given = GIVEN[:place] + GIVEN[place + 1 :]
    assert missing(given) == [SEATS[place]]
    with pytest.raises(Refused, match=SEATS[place]) as found:
        approvals.require(
            given,
            CONTENT,
            treaty_digest=DOCUMENT.digest,
            study=STUDY.digest,
            author="alice",
            purpose=PURPOSE,
            epsilon=1.0,
        )
    assert found.value.code == "APPROVAL_MISSING"


def test_a_seat_is_not_filled_twice_for_another() -> None:
    assert missing([GIVEN[2]] * 6) == [s for s in SEATS if s != "partner shop-1"]


@pytest.mark.parametrize(
    ("changes", "seats"),
    [
        ({"expires": NOW - timedelta(seconds=1)}, ["dpo"]),
        ({"expires": NOW + timedelta(hours=1)}, []),
        ({"now": NOW + timedelta(minutes=6), "expires": NOW + timedelta(days=1)}, ["dpo"]),  # of the future
        ({"now": NOW + timedelta(minutes=4), "expires": NOW + timedelta(days=1)}, []),  # a clock may be off
        ({"purpose": "dpv:Advertising"}, ["dpo"]),
        ({"epsilon": 3.99}, ["dpo"]),
        ({"epsilon": 4.0}, []),
        ({"epsilon": 5.0}, []),
    ],
)
def test_what_an_approval_must_say(changes: dict[str, Any], seats: list[str]) -> None:
    assert missing(instead(1, by("dora", **changes)), now=NOW) == seats


def test_time_passes() -> None:
    given = instead(1, by("dora", expires=NOW + timedelta(hours=1)))
    assert missing(given, now=NOW + timedelta(minutes=59)) == []
    assert missing(given, now=NOW + timedelta(hours=1)) == ["dpo"]
    assert missing(GIVEN, now=NOW + timedelta(days=31)) == SEATS
    assert missing(GIVEN, now=NOW - timedelta(hours=1)) == SEATS  # given after the moment in question


def test_one_rejection_is_enough() -> None:
    for name in ("bianca", "officer-3"):
        with pytest.raises(Refused, match=f"{name} .* rejected") as found:
            missing([*GIVEN, by(name, decision="reject")])
        assert found.value.code == "STUDY_REJECTED"


@pytest.mark.parametrize("changes", [{"study": "0" * 64}, {"treaty": "0" * 64}])
def test_an_approval_of_something_else_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(VerificationError, match="another"):
        missing(instead(0, by("bianca", **changes)))


def test_forged_approvals_are_refused() -> None:
    payload = GIVEN[0].payload
    forged = [
        Envelope("approval", payload),
        Envelope("approval", payload).signed("bianca", SigningKey.generate()),
        Envelope("approval", payload).signed("dora", KEYS.approvers["dora"]),
        Envelope("approval", {**payload, "approver": "dora"}).signed(
            "dora", KEYS.approvers["dora"]
        ),  # another's level
        Envelope("approval", {**payload, "epsilon": 8.0}, GIVEN[0].signatures),
        Envelope("approval", {**payload, "approver": "mallory"}).signed("mallory", SigningKey.generate()),
        Envelope("approval", {**GIVEN[2].payload, "party": "shop-2"}).signed(
            "officer-1", KEYS.approvers["officer-1"]
        ),
        Envelope("approval", {**GIVEN[2].payload, "party": None}).signed(
            "officer-1", KEYS.approvers["officer-1"]
        ),
    ]
    for envelope in forged:
        with pytest.raises(VerificationError):
            missing(instead(0, envelope))


@pytest.mark.parametrize("how", ["by name", "by key"])
def test_nobody_approves_their_own_study(how: str) -> None:
    _, content, keys = make_treaty(4)
    alice = content.scientist("alice")
    name, key = ("alice", SigningKey.generate()) if how == "by name" else ("alicia", keys.scientists["alice"])
    owner = Approver(name=name, signing_key=key.public, level="business")
    changed = content.model_copy(update={"approvers": (owner, *content.approvers[1:])})
    document = changed.envelope()
    for party, party_key in keys.parties.items():
        document = document.signed(party, party_key)
    everybody = Keys(
        keys.parties, keys.nodes, keys.coordinator, keys.scientists, {**keys.approvers, name: key}
    )
    study = make_study(document, changed, everybody)
    given = all_approvals(document, changed, everybody, study)
    assert alice.signing_key == keys.scientists["alice"].public
    with pytest.raises(Refused, match="four eyes") as found:
        approvals.missing(
            given,
            changed,
            treaty_digest=document.digest,
            study=study.digest,
            author="alice",
            purpose=PURPOSE,
            epsilon=4.0,
        )
    assert found.value.code == "SELF_APPROVAL"
    bobs = make_study(document, changed, everybody, author="bob")  # somebody else's study they may approve
    given = all_approvals(document, changed, everybody, bobs)
    assert not approvals.missing(
        given,
        changed,
        treaty_digest=document.digest,
        study=bobs.digest,
        author="bob",
        purpose=PURPOSE,
        epsilon=4.0,
    )


def test_an_unknown_author_has_no_approvals() -> None:
    with pytest.raises(Refused, match="mallory") as found:
        missing(GIVEN, author="mallory")
    assert found.value.code == "UNKNOWN_AUTHOR"


@pytest.mark.parametrize(
    "fields",
    [
        {"study": "xyz"}, {"decision": "maybe"}, {"epsilon": 0.0}, {"epsilon": "4"}, {"level": "king"}, {"more": 1},
        {"time": "yesterday"}, {"expires": "2099-01-01T00:00:00"}, {"time": "2020-01-01"},
    ],
)  # fmt: skip
def test_malformed_approvals_are_refused(fields: dict[str, Any]) -> None:
    bad = Envelope("approval", {**GIVEN[0].payload, **fields}).signed("bianca", KEYS.approvers["bianca"])
    with pytest.raises(InputError, match="approval: "):
        missing(instead(0, bad))


def test_another_kind_is_no_approval() -> None:
    with pytest.raises(InputError, match="an approval was expected"):
        missing([STUDY])
