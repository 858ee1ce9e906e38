"""Receipts: what DPV's profile of ISO/IEC TS 27560 says must be there, is; signed; and nobody is named."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from support.consents import ADS, CRM, HEALTH, PURCHASES, day, notice

from foedus.compliance.consent import ConsentRegister, Grant, receipts
from foedus.documents import Envelope, SigningKey
from foedus.errors import InputError, VerificationError

KEY = bytes(range(32))
TIME = {"type": "string", "format": "date-time"}
TEXT = {"type": "string", "minLength": 1}


def shape(*required: str, **properties: Any) -> dict[str, Any]:
    """An object with at least these fields; `a__b` stands for ``a:b`` and `at_x` for ``@x``."""
    named = {k.replace("at_", "@", 1).replace("__", ":"): v for k, v in properties.items()}
    return {"type": "object", "required": list(required), "properties": named}


def some(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": items}


def of(*kinds: str) -> dict[str, Any]:
    return {"enum": list(kinds)}


# The profile's tables (w3c/dpv, guides/consent-27560): a field that MUST be present is required here.
PARTY = shape(
    "@type", "dct:identifier", "dpv:hasName", "dpv:hasAddress", "dpv:hasContact",
    at_type=of("dpv:DataController"), dct__identifier=TEXT, dpv__hasName=TEXT, dpv__hasAddress=TEXT,
    dpv__hasContact=TEXT,
)  # fmt: skip
PROCESS = shape(
    "dpv:hasPurpose", "dpv:hasPersonalData", "dpv:hasStorageCondition", "dpv:hasDataController", "dpv:hasRecipient",
    "dpv:hasConsentControl", "dpv:hasJurisdiction", "dpv:hasRight", "dpv:hasLegalBasis",
    at_type=of("dpv:Process"),
    dpv__hasPurpose={"type": "string", "pattern": "^dpv:[A-Za-z]+$"},
    dpv__hasPersonalData=some(
        shape("@type", "dct:identifier", at_type=of("dpv:PersonalData", "dpv:SensitivePersonalData"))
    ),
    dpv__hasStorageCondition=shape(
        "dpv:hasLocation", "dpv:hasDuration", dpv__hasDuration={"type": "string", "format": "duration"}
    ),
    dpv__hasDataController=PARTY,
    dpv__hasRecipient=some(shape("@type", at_type=of("dpv:ThirdParty", "dpv:DataController"))),
    dpv__hasConsentControl=shape(
        "@type", "dpv:isExercisedAt", at_type=of("dpv:WithdrawConsent"), dpv__isExercisedAt={"type": "string", "format": "uri"}
    ),
    dpv__hasJurisdiction={"type": "string", "pattern": "^loc:[A-Z]{2}$"},
    dpv__hasRight=shape("@type", "dpv:isExercisedAt", at_type=of("dpv:DataSubjectRight")),
    dpv__hasLegalBasis=of("dpv:ExpressedConsent", "dpv:ExplicitlyExpressedConsent"),
)  # fmt: skip
EVENT = shape(
    "@type", "dct:date", "dpv:isIndicatedBy", dct__date=TIME,
    at_type=of("dpv:ConsentGiven", "dpv:ConsentWithdrawn", "dpv:ConsentExpired"),
)  # fmt: skip
RECORD = shape(
    "@id", "@type", "dct:conformsTo", "dct:identifier", "dpv:hasDataSubject", "dpv:hasNotice", "dpv:hasProcess",
    "dpv:hasConsentStatus",
    at_type=of("dpv:ConsentRecord"),
    dct__conformsTo={"type": "string", "format": "uri"},
    dpv__hasDataSubject=shape("@id", "@type", at_type=of("dpv:DataSubject")),
    dpv__hasNotice=shape(
        "@type", "dct:identifier", "dct:language", "foedus:sha256", at_type=of("dpv:ConsentNotice"),
        dct__language=of("zh", "en"), dct__issued=TIME, foedus__sha256={"type": "string", "pattern": "^[0-9a-f]{64}$"},
    ),
    dpv__hasProcess=some(PROCESS),
    dpv__hasConsentStatus=some(EVENT),
)  # fmt: skip
RECEIPT = shape(
    "@context", "@id", "@type", "dct:conformsTo", "dct:identifier", "dct:created", "dpv:hasRecordOfActivity",
    at_type=of("dpv:ConsentReceipt"), dct__created=TIME, dpv__hasRecordOfActivity=RECORD,
)  # fmt: skip
PROFILE = Draft202012Validator(RECEIPT, format_checker=FormatChecker())


def made(register: ConsentRegister, subject: str, at: datetime) -> dict[str, Any]:
    record = register.records(subject)[-1]
    version = record.notice_version.partition("/")[0]
    return receipts.receipt(record, register.notices()[version], "shop-a", pseudonyms=KEY, at=at)


@pytest.fixture
def register(tmp_path: Path) -> ConsentRegister:
    register = ConsentRegister(tmp_path / "consent.db")
    register.publish(notice())
    register.publish(notice("all", audience="all", recipients=[], purposes={CRM: [PURCHASES, HEALTH]}))
    return register


def test_the_profile_here_checks_formats() -> None:
    register_free = {"@context": {}, "@id": "x", "@type": "dpv:ConsentReceipt", "dct:created": "yesterday"}
    said = {error.message for error in PROFILE.iter_errors(register_free)}
    assert any("date-time" in message for message in said)


def test_a_receipt_is_of_the_profile(register: ConsentRegister) -> None:
    grants = [
        Grant("c1", CRM, "2026-01/zh", day(1), day(90), "web", sharing=("bank-b",), evidence="ab" * 32),
        Grant("c2", ADS, "2026-01/en", day(1)),
        Grant("c3", CRM, "all/zh", day(1), sensitive=True, born=date(2015, 1, 1), guardian="g-77"),
        Grant("c4", CRM, "all/en", day(1), day(2), born=date(1990, 1, 1)),
    ]
    register.grant_many(grants)
    register.withdraw("c2", ADS, at=day(4))
    for subject in ("c1", "c2", "c3", "c4"):
        found = made(register, subject, day(10))
        PROFILE.validate(found)
        text = json.dumps(found)
        assert f'"{subject}"' not in text and "g-77" not in text
        # every prefix that is used is declared inside
        assert set(found["@context"]) == {"dpv", "dct", "loc", "fideslang", "foedus"}
    one, child = made(register, "c1", day(10)), made(register, "c3", day(10))
    (process,) = one["dpv:hasRecordOfActivity"]["dpv:hasProcess"]
    assert [r["foedus:consented"] for r in process["dpv:hasRecipient"]] == [True, False]
    assert process["dpv:hasLegalBasis"] == "dpv:ExplicitlyExpressedConsent"
    given = child["dpv:hasRecordOfActivity"]["dpv:hasConsentStatus"][0]
    assert given["dpv:isIndicatedBy"]["@type"] == "dpv:Representative"


def test_a_receipt_says_what_became_of_the_consent(register: ConsentRegister) -> None:
    register.grant_many([Grant("c1", CRM, "2026-01/zh", day(1), day(30))])
    register.withdraw("c1", CRM, at=day(5))

    def states(at: datetime) -> list[str]:
        return [
            e["@type"] for e in made(register, "c1", at)["dpv:hasRecordOfActivity"]["dpv:hasConsentStatus"]
        ]

    assert states(day(4)) == ["dpv:ConsentGiven"]
    assert states(day(6)) == ["dpv:ConsentGiven", "dpv:ConsentWithdrawn"]
    first = register.records("c1")[0]
    register.grant("c1", CRM, notice_version="2026-01/zh", at=day(7), expires_at=day(8))
    assert states(day(9)) == ["dpv:ConsentGiven", "dpv:ConsentExpired"]
    newer = made(register, "c1", day(9))["dpv:hasRecordOfActivity"]
    assert newer["dct:replaces"] == f"foedus:record:{first.record_id}"


def test_a_receipt_is_verified_with_the_silos_public_key_alone(register: ConsentRegister) -> None:
    register.grant("c1", CRM, notice_version="2026-01/zh", at=day(1))
    key, content = SigningKey.generate(), made(register, "c1", day(2))
    data = receipts.sign(content, "shop-a", key).dumps()
    assert receipts.verify(Envelope.loads(data), "shop-a", key.public) == content
    with pytest.raises(VerificationError):
        receipts.verify(Envelope.loads(data), "shop-a", SigningKey.generate().public)
    changed = Envelope.loads(data.replace(b"dpv:ConsentGiven", b"dpv:ConsentOther"))
    with pytest.raises(VerificationError):
        receipts.verify(changed, "shop-a", key.public)
    other = Envelope(receipts.KIND, content | {"dct:publisher": "b"}).signed("shop-a", key)
    with pytest.raises(InputError):
        receipts.verify(other, "shop-a", key.public)


def test_pseudonyms_of_two_silos_do_not_meet() -> None:
    assert receipts.pseudonym(KEY, "c1") != receipts.pseudonym(bytes(32), "c1")
    assert receipts.pseudonym(KEY, "c1") != receipts.pseudonym(KEY, "c2")


def test_a_receipt_under_another_notice_is_refused(register: ConsentRegister) -> None:
    register.grant("c1", CRM, notice_version="2026-01/zh", at=day(1))
    (record,) = register.records("c1")
    other = replace(record, terms=replace(record.terms, notice_version="all/zh"))
    with pytest.raises(InputError, match="not that of record"):
        receipts.receipt(
            other, register.notices()["2026-01"], "s", pseudonyms=KEY, at=day(1) + timedelta(hours=1)
        )
