"""Receipts: a customer's own copy of a consent record, in JSON-LD, signed by the silo, checked without it.

The form is DPV's profile of ISO/IEC TS 27560:2023 (w3c/dpv, ``guides/consent-27560``): a
``dpv:ConsentReceipt`` around a ``dpv:ConsentRecord`` with what the profile says must be there: schema version,
identifiers, data subject, notice and its language, and for the process purpose, personal data and its type,
storage condition, controller, recipients, withdrawal, jurisdiction, rights, and the events with their
time, state and entity. Terms are of DPV 2.3. The prefixes stand inside: nothing is fetched to read it.

The data subject is named by a keyed pseudonym: the receipt of one silo can't be joined to another's.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

from ...documents import Envelope, SigningKey
from ...errors import InputError
from . import vocabulary
from .notices import Notice, split_version
from .records import SCHEMA_VERSION, ConsentRecord

KIND = "consent.receipt"
RECEIPT_SCHEMA = "https://w3id.org/dpv/schema/dpv-27560#receipt"
CONTEXT = {
    "dpv": vocabulary.DPV,
    "dct": "http://purl.org/dc/terms/",
    "loc": "https://w3id.org/dpv/loc#",
    "fideslang": vocabulary.FIDESLANG,
    "foedus": "urn:foedus:",
}
_STATE = {
    "requested": "dpv:ConsentRequested",
    "given": "dpv:ConsentGiven",
    "expired": "dpv:ConsentExpired",
    "withdrawn": "dpv:ConsentWithdrawn",
}


def pseudonym(key: bytes, subject: str) -> str:
    """How receipts call a data subject: HMAC-SHA-256 under a key of the silo, 128 bits in hex."""
    return hmac.digest(key, b"foedus consent subject\0" + subject.encode(), hashlib.sha256)[:16].hex()


def receipt(
    record: ConsentRecord, notice: Notice, silo: str, *, pseudonyms: bytes, at: datetime
) -> dict[str, Any]:
    """The receipt of `record` as it stands at `at`.

    Args:
        silo: the party that keeps the record. pseudonyms: its key for `pseudonym`.

    Raises:
        InputError: the notice is not the record's.
    """
    version, language = split_version(record.notice_version)
    if version != notice.version or record.purpose not in notice.purposes:
        raise InputError(f"the notice {notice.version} is not that of record {record.record_id}")
    who = {"@id": f"foedus:subject:{pseudonym(pseudonyms, record.subject)}", "@type": "dpv:DataSubject"}
    party = {
        "@id": f"foedus:party:{silo}",
        "@type": "dpv:DataController",
        "dct:identifier": silo,
        "dpv:hasName": notice.controller.name,
        "dpv:hasAddress": notice.controller.address,
        "dpv:hasContact": notice.controller.contact,
    }
    recipients = [_recipient(name, name in record.terms.sharing) for name in notice.recipients]
    told: dict[str, Any] = {
        "@id": f"foedus:record:{record.record_id}",
        "@type": "dpv:ConsentRecord",
        "dct:conformsTo": SCHEMA_VERSION,
        "dct:identifier": record.record_id,
        "dpv:hasDataSubject": who,
        "dpv:hasNotice": {
            "@id": f"foedus:notice:{notice.digest}",
            "@type": "dpv:ConsentNotice",
            "dct:identifier": version,
            "dct:language": language,
            "dct:issued": _time(notice.effective_from),
            "foedus:sha256": notice.text_digest(language),
        },
        "dpv:hasProcess": [
            {
                "@type": "dpv:Process",
                "dpv:hasPurpose": record.purpose,
                "dpv:hasPersonalData": [_data(key) for key in sorted(record.terms.categories)],
                "dpv:hasLegalBasis": record.legal_basis,
                "dpv:hasDataController": party,
                # The profile wants a recipient; where there is no other, it is the controller.
                "dpv:hasRecipient": recipients or [{"@id": party["@id"], "@type": "dpv:DataController"}],
                "dpv:hasStorageCondition": {
                    "@type": "dpv:StorageCondition",
                    "dpv:hasLocation": notice.storage.location,
                    "dpv:hasDuration": f"P{notice.storage.days}D",
                },
                "dpv:hasConsentControl": {
                    "@type": "dpv:WithdrawConsent",
                    "dpv:isExercisedAt": notice.withdraw_at,
                },
                "dpv:hasJurisdiction": f"loc:{notice.jurisdiction}",
                "dpv:hasRight": {"@type": "dpv:DataSubjectRight", "dpv:isExercisedAt": notice.rights_at},
                "foedus:separateConsent": {
                    "foedus:sensitiveData": record.terms.sensitive,
                    "foedus:sharing": sorted(record.terms.sharing),
                },
            }
        ],
        "dpv:hasConsentStatus": _events(record, who["@id"], at),
    }
    if record.supersedes is not None:
        told["dct:replaces"] = f"foedus:record:{record.supersedes}"
    if record.evidence is not None:
        told["foedus:evidence"] = record.evidence
    number = hashlib.sha256(f"{record.record_id} {_time(at)}".encode()).hexdigest()[:32]
    return {
        "@context": CONTEXT,
        "@id": f"foedus:receipt:{number}",
        "@type": "dpv:ConsentReceipt",
        "dct:conformsTo": RECEIPT_SCHEMA,
        "dct:identifier": number,
        "dct:created": _time(at),
        "dct:publisher": silo,
        "dpv:hasRecordOfActivity": told,
    }


def sign(content: dict[str, Any], silo: str, key: SigningKey) -> Envelope:
    """The receipt under the silo's signature."""
    return Envelope(KIND, content).signed(silo, key)


def verify(envelope: Envelope, silo: str, public: str) -> dict[str, Any]:
    """The receipt that `silo` signed.

    Raises:
        VerificationError: another kind of document, or the signature does not hold.
        InputError: signed, and yet no receipt of that silo.
    """
    envelope.check(KIND, silo, public)
    if envelope.payload.get("@type") != "dpv:ConsentReceipt" or envelope.payload.get("dct:publisher") != silo:
        raise InputError(f"not a consent receipt of {silo}")
    return envelope.payload


def _events(record: ConsentRecord, who: str, at: datetime) -> list[dict[str, Any]]:
    entity = (
        {"@id": who, "@type": "dpv:DataSubject"}
        if record.guardian is None
        else {"@type": "dpv:Representative", "dct:description": "parent or guardian"}
    )
    given = {
        "@type": _STATE["given"],
        "dct:date": _time(record.granted_at),
        "dct:valid": "indefinite" if record.expires_at is None else _time(record.expires_at),
        "dpv:isIndicatedBy": entity,
        "dpv:hasIndicationMethod": record.method,
    }
    state = record.state(at)
    if state == "withdrawn" and record.withdrawn_at is not None:
        when = record.withdrawn_at
    elif state == "expired" and record.expires_at is not None:
        when = record.expires_at
    else:
        return [given]
    return [given, {"@type": _STATE[state], "dct:date": _time(when), "dpv:isIndicatedBy": {"@id": who}}]


def _data(key: str) -> dict[str, str]:
    kind = "dpv:SensitivePersonalData" if vocabulary.sensitive([key]) else "dpv:PersonalData"
    return {"@id": f"fideslang:{key}", "@type": kind, "dct:identifier": key}


def _recipient(name: str, agreed: bool) -> dict[str, Any]:
    return {"@type": "dpv:ThirdParty", "dct:identifier": name, "foedus:consented": agreed}


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
