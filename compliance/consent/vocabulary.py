"""The words of a consent: purposes of the W3C Data Privacy Vocabulary, data categories of fideslang.

A small table of our own, so that a typing error is refused and nothing is fetched. Purposes are those of
DPV 2.3 (`DPV`) that concern a company and its customers; categories are keys of fideslang 3
(ethyca/fideslang, ``data_files/data_categories.csv``).

Sensitive is what PIPL art. 28 names (biometrics, religion, specific identity, health, financial accounts,
whereabouts; data of minors under 14, which `decisions` adds) and what GDPR art. 9 and 10 add.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import InputError

DPV = "https://w3id.org/dpv#"
FIDESLANG = "https://ethyca.github.io/fideslang/taxonomy/data_categories/#"

PURPOSES = frozenset(
    f"dpv:{name}"
    for name in (
        "AcademicResearch",
        "AccountManagement",
        "Advertising",
        "CommercialResearch",
        "CommunicationForCustomerCare",
        "CustomerCare",
        "CustomerClaimsManagement",
        "CustomerManagement",
        "CustomerOrderManagement",
        "CustomerRelationshipManagement",
        "CustomerSolvencyMonitoring",
        "DeliveryOfGoods",
        "DirectMarketing",
        "FraudPreventionAndDetection",
        "Marketing",
        "Personalisation",
        "PersonalisedAdvertising",
        "ResearchAndDevelopment",
        "ServiceMonitoring",
        "ServiceOptimisation",
        "ServicePersonalisation",
        "ServiceProvision",
        "ServiceUsageAnalytics",
        "TargetedAdvertising",
    )
)

# key -> sensitive
CATEGORIES = {
    "user.account": False,
    "user.behavior": False,
    "user.behavior.browsing_history": False,
    "user.behavior.media_consumption": False,
    "user.behavior.purchase_history": False,
    "user.behavior.search_history": False,
    "user.biometrics": True,
    "user.contact": False,
    "user.contact.address": False,
    "user.contact.email": False,
    "user.contact.phone_number": False,
    "user.criminal_history": True,
    "user.demographic.age_range": False,
    "user.demographic.citizenship_or_immigration_status": True,
    "user.demographic.date_of_birth": False,
    "user.demographic.gender": False,
    "user.demographic.language": False,
    "user.demographic.marital_status": False,
    "user.demographic.philosophical_belief": True,
    "user.demographic.political_opinion": True,
    "user.demographic.race_ethnicity": True,
    "user.demographic.religious_belief": True,
    "user.demographic.sexual_orientation": True,
    "user.demographic.union_membership": True,
    "user.device": False,
    "user.financial": True,
    "user.financial.bank_account": True,
    "user.financial.credit_card": True,
    "user.government_id": True,
    "user.health": True,
    "user.health.genetic": True,
    "user.location": True,
    "user.name": False,
    "user.payment": True,
    "user.social_activity": False,
    "user.unique_id": False,
}


def purpose(iri: str) -> str:
    """The purpose itself.

    Raises:
        InputError: it is none of `PURPOSES`.
    """
    if not isinstance(iri, str) or iri not in PURPOSES:
        raise InputError(
            f"the purpose {iri!r} is not in the vocabulary",
            remedy="purposes are IRIs such as dpv:CustomerRelationshipManagement",
        )
    return iri


def categories(keys: Iterable[str]) -> frozenset[str]:
    """The categories themselves.

    Raises:
        InputError: one is none of `CATEGORIES`, or there is none.
    """
    found = frozenset(keys)
    for key in sorted(found, key=str):
        if key not in CATEGORIES:
            raise InputError(
                f"the data category {key!r} is not in the vocabulary",
                remedy="categories are fideslang keys such as user.behavior.purchase_history",
            )
    if not found:
        raise InputError("no data category is named")
    return found


def sensitive(keys: Iterable[str]) -> bool:
    """Whether one of these categories is sensitive; an unknown one is."""
    return any(CATEGORIES.get(key, True) for key in keys)
