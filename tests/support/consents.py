"""Notices and their words, for tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from foedus.compliance.consent import Notice

CRM = "dpv:CustomerRelationshipManagement"
ADS = "dpv:Advertising"
PURCHASES = "user.behavior.purchase_history"
EMAIL = "user.contact.email"
HEALTH = "user.health"
T0 = datetime(2026, 1, 1, tzinfo=UTC)
BOTH = {CRM: [PURCHASES, EMAIL], ADS: [PURCHASES]}


def day(number: float) -> datetime:
    return T0 + timedelta(days=number)


def content(version: str = "2026-01", **fields: Any) -> dict[str, Any]:
    """The fields of a notice, as YAML or JSON has them."""
    return {
        "version": version,
        "effective_from": (T0 - timedelta(days=30)).isoformat(),
        "controller": {
            "name": "Shop A",
            "address": "1 Nanjing Road, Shanghai",
            "contact": "dpo@shop-a.example",
        },
        "jurisdiction": "CN",
        "audience": "own_consent",
        "recipients": ["bank-b", "shop-c"],
        "purposes": BOTH,
        "storage": {"location": "CN", "days": 1096},
        "withdraw_at": "https://shop-a.example/consent",
        "rights_at": "https://shop-a.example/rights",
        "text": {"zh": f"告知书 {version}", "en": f"Notice {version}"},
    } | fields


def notice(version: str = "2026-01", **fields: Any) -> Notice:
    return Notice.checked(content(version, **fields))
