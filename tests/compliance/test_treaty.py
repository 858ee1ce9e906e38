"""The treaty: what its parties may write, and that only what all of them signed counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.treaties import PURPOSE, make_treaty

from foedus.compliance import treaty as treaties
from foedus.compliance.treaty import Approver, Overlap, Person, PurposeTerms, Treaty
from foedus.documents import Envelope, SigningKey, b64
from foedus.errors import InputError, Refused, VerificationError

SIGNED, CONTENT, KEYS = make_treaty(4)


def edited(**changes: Any) -> dict[str, Any]:
    return {**json.loads(SIGNED.dumps())["payload"], **changes}


def test_a_treaty_signed_by_all_holds(tmp_path: Path) -> None:
    assert treaties.verify(SIGNED) == CONTENT
    (tmp_path / "treaty.json").write_bytes(SIGNED.dumps())
    envelope, content = treaties.load(tmp_path / "treaty.json")
    assert (envelope.digest, content) == (SIGNED.digest, CONTENT)


@pytest.mark.parametrize("party", ["shop-1", "shop-2", "shop-3", "shop-4"])
def test_a_signature_less_and_it_holds_no_more(party: str) -> None:
    without = Envelope(
        SIGNED.kind, SIGNED.payload, {k: v for k, v in SIGNED.signatures.items() if k != party}
    )
    with pytest.raises(VerificationError, match=f"{party} has not signed"):
        treaties.verify(without)
    forged = Envelope(SIGNED.kind, SIGNED.payload, without.signatures).signed(party, SigningKey.generate())
    with pytest.raises(VerificationError, match="does not hold"):
        treaties.verify(forged)


def test_a_strangers_signature_is_refused() -> None:
    with pytest.raises(VerificationError, match="mallory, who is no party"):
        treaties.verify(SIGNED.signed("mallory", SigningKey.generate()))


@pytest.mark.parametrize("field", [{"min_cohort": 1}, {"version": 2}, {"colluders": 2}, {"name": "x"}])
def test_every_change_voids_the_signatures(field: dict[str, Any]) -> None:
    with pytest.raises(VerificationError, match="does not hold"):
        treaties.verify(Envelope(SIGNED.kind, edited(**field), SIGNED.signatures))


def test_another_kind_of_document_is_no_treaty() -> None:
    with pytest.raises(InputError, match="a treaty was expected"):
        treaties.verify(Envelope("study", SIGNED.payload, SIGNED.signatures))


def party(i: int, **changes: Any) -> dict[str, Any]:
    return {**edited()["parties"][i], **changes}


def approver(name: str, /, **changes: Any) -> dict[str, Any]:
    return next(a for a in edited()["approvers"] if a["name"] == name) | changes


def approvers_without(*names: str) -> list[dict[str, Any]]:
    return [a for a in edited()["approvers"] if a["name"] not in names]


P, A = edited()["parties"], edited()["approvers"]
KEY = SigningKey.generate().public
BAD: list[tuple[dict[str, Any], str]] = [
    ({"parties": P[:1]}, "parties"),
    ({"parties": [*P[:3], party(3, name="shop-1")]}, "a party is named twice"),
    ({"parties": [*P[:3], party(3, signing_key=P[0]["signing_key"])]}, "a key is used by parties"),
    ({"parties": [*P[:3], party(3, node_key=P[0]["node_key"])]}, "a node key is used twice"),
    ({"parties": [*P[:3], party(3, signing_key="AAAA")]}, "parties.3.signing_key"),
    ({"parties": [*P[:3], party(3, signing_key="***")]}, "parties.3.signing_key"),
    ({"parties": [*P[:3], party(3, name="Shop 4")]}, "parties.3.name"),
    ({"parties": [*P[:3], party(3, more=1)]}, "parties.3.more"),
    (
        {"coordinator": {"origin": "o", "signing_key": P[0]["signing_key"]}},
        "parties or the coordinator twice",
    ),
    ({"scientists": []}, "scientists"),
    ({"scientists": [{"name": "shop-1", "signing_key": KEY}]}, "bears the name of a party"),
    (
        {"scientists": [{"name": "al", "signing_key": KEY}, {"name": "al", "signing_key": KEY}]},
        "a scientist is named twice",
    ),
    ({"approvers": [*A, approver("dora")]}, "an approver is named twice"),
    ({"approvers": [*A, approver("dora", name="doris")]}, "an approver's key is used twice"),
    ({"approvers": approvers_without("officer-2")}, "no approver for shop-2"),
    ({"approvers": approvers_without("dora")}, "nobody can approve at level dpo"),
    ({"approvers": approvers_without("bianca")}, "nobody can approve at level business"),
    (
        {"approvers": [*approvers_without("dora"), approver("dora", party="shop-1")]},
        "a party is named for the level",
    ),
    (
        {"approvers": [*approvers_without("officer-1"), approver("officer-1", party=None)]},
        "a party is named for the level",
    ),
    (
        {"approvers": [*A, approver("officer-1", name="o9", signing_key=KEY, party="shop-9")]},
        "unknown party shop-9",
    ),
    ({"approvers": [*A, approver("dora", name="d2", signing_key=KEY, level="king")]}, "level"),
    ({"approval_chain": []}, "at least one"),
    ({"approval_chain": ["dpo", "dpo"]}, "each of its levels once"),
    ({"approval_chain": ["dpo", "king"]}, "approval_chain.1"),
    ({"purposes": []}, "purposes"),
    ({"purposes": [*edited()["purposes"], *edited()["purposes"]]}, "a purpose is listed twice"),
    ({"purposes": [{"purpose": PURPOSE, "epsilon": 0.0, "delta": 1e-5}]}, "purposes.0.epsilon"),
    ({"purposes": [{"purpose": PURPOSE, "epsilon": 1000.0, "delta": 1e-5}]}, "purposes.0.epsilon"),
    ({"purposes": [{"purpose": PURPOSE, "epsilon": 1.0, "delta": 0.01}]}, "purposes.0.delta"),
    ({"purposes": [{"purpose": PURPOSE, "epsilon": "1", "delta": 1e-5}]}, "purposes.0.epsilon"),
    ({"min_silos": 5}, "min_silos 5 with 4 parties"),
    ({"min_silos": 1}, "min_silos"),
    ({"colluders": 0}, "colluders"),
    ({"colluders": 3}, "leave nobody to protect"),
    ({"min_cohort": 0}, "min_cohort"),
    ({"min_cohort": 200_000}, "min_cohort is above max_cohort"),
    ({"max_cohort": 10**9}, "max_cohort"),
    ({"overlap": {"max_partners_per_customer": 1, "attestation": " "}}, "needs an attestation"),
    ({"overlap": {"max_partners_per_customer": 5, "attestation": "x"}}, "exceeds the number of parties"),
    ({"overlap": {"max_partners_per_customer": 0, "attestation": "x"}}, "overlap.max_partners_per_customer"),
    ({"retention_days": 2000}, "retention_days"),
    ({"retention_days": 365.5}, "retention_days"),
    ({"version": True}, "version"),
    ({"more": 1}, "more"),
]


@pytest.mark.parametrize(("changes", "why"), BAD, ids=[f"{why}-{i}" for i, (_, why) in enumerate(BAD)])
def test_what_no_treaty_may_say_is_named(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=f"treaty: .*{why}"):
        treaties.parse(Envelope("treaty", edited(**changes)))


@pytest.mark.parametrize(
    "field",
    sorted(
        set(Treaty.model_fields)
        - {"amends", "approval_chain", "min_group", "retention_days", "unsafe", "witness_quorum"}
    ),
)
def test_every_missing_field_is_named(field: str) -> None:
    with pytest.raises(InputError, match=f"{field}: "):
        treaties.parse(Envelope("treaty", {k: v for k, v in edited().items() if k != field}))


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("y", [*treaties._SMALL, treaties._P, treaties._P + 1])
def test_a_key_under_which_anybody_can_sign_is_refused(y: int, sign: int) -> None:
    weak = b64((y | sign << 255).to_bytes(32, "little"))
    with pytest.raises(InputError, match="small order"):
        treaties.draft(edited(parties=[*P[:3], party(3, signing_key=weak)]))


def test_by_default_a_person_counts_at_every_partner() -> None:
    everywhere = make_treaty(3, overlap=Overlap(max_partners_per_customer=3))[1]
    assert everywhere.overlap.attestation == ""


@pytest.mark.parametrize(("n", "c", "t"), [(3, 1, 3), (4, 1, 3), (5, 1, 4), (10, 3, 7)])
def test_the_threshold(n: int, c: int, t: int) -> None:
    assert make_treaty(n, colluders=c)[1].threshold == t


def test_strangers_are_refused_by_code() -> None:
    for look, code in (
        (lambda: CONTENT.party("mallory"), "UNKNOWN_PARTY"),
        (lambda: CONTENT.index("mallory"), "UNKNOWN_PARTY"),
        (lambda: CONTENT.scientist("mallory"), "UNKNOWN_AUTHOR"),
        (lambda: CONTENT.terms("dpv:Advertising"), "PURPOSE_NOT_PERMITTED"),
    ):
        with pytest.raises(Refused) as found:
            look()
        assert found.value.code == code
    assert CONTENT.index("shop-3") == 3
    assert CONTENT.terms(PURPOSE) == PurposeTerms(purpose=PURPOSE, epsilon=8.0, delta=1e-5)


def test_documents_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        CONTENT.min_cohort = 1
    with pytest.raises(ValueError, match="party is named"):
        Approver(name="x", signing_key=KEY, level="partner")
    with pytest.raises(ValueError, match="name"):
        Person(name="", signing_key=KEY)
