"""Amendments of a treaty: by everybody, one version on, and nothing that was spent comes back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.treaties import Keys, make_treaty

from foedus.compliance import amendments
from foedus.compliance import treaty as treaties
from foedus.compliance.amendments import ACTION, diff, install
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.treaty import Treaty
from foedus.documents import Envelope, SigningKey
from foedus.errors import FoedusError, InputError, VerificationError

LEAVES = "shop-4"


@dataclass
class Case:
    old: Envelope
    treaty: Treaty
    keys: Keys

    def draft(self, **changes: Any) -> Envelope:
        content = self.treaty.model_dump(mode="json") | {"version": 2, "amends": self.old.digest} | changes
        return treaties.draft(content).envelope()

    def signed(self, envelope: Envelope, *, but: str = "", **others: SigningKey) -> Envelope:
        for name, key in (self.keys.parties | others).items():
            if name != but:
                envelope = envelope.signed(name, key)
        return envelope


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(*make_treaty())


def without(case: Case, name: str) -> dict[str, Any]:
    """The content without one party."""
    told = case.treaty.model_dump(mode="json")
    return {
        "parties": [p for p in told["parties"] if p["name"] != name],
        "approvers": [a for a in told["approvers"] if a["party"] != name],
        "overlap": {"max_partners_per_customer": 3, "attestation": ""},
    }


def test_all_sign_and_it_is_in_force(case: Case, tmp_path: Path) -> None:
    home = tmp_path / "node"
    home.mkdir()
    (home / "treaty.json").write_bytes(case.old.dumps())
    log = AuditLog(home / "audit.db", "foedus node shop-1")
    amended = case.signed(case.draft(min_cohort=case.treaty.min_cohort + 10))
    for _ in range(2):  # the second time changes nothing
        assert install(home, amended, log, "shop-1").version == 2
    assert treaties.load(home / "treaty.json")[0].digest == amended.digest
    assert (home / "treaty-1.json").read_bytes() == case.old.dumps()
    (entry,) = [e.record for e in log.entries()]
    assert (entry["action"], entry["subject"], entry["details"]["former"]) == (
        ACTION,
        amended.digest,
        case.old.digest,
    )
    third = treaties.draft(
        treaties.parse(amended).model_dump(mode="json") | {"version": 3, "amends": amended.digest}
    ).envelope()
    assert install(home, case.signed(third), log, "shop-1").version == 3


def test_who_leaves_signs_too(case: Case) -> None:
    draft = case.draft(**without(case, LEAVES))
    assert amendments.verify(case.signed(draft), case.old).version == 2
    with pytest.raises(VerificationError, match=LEAVES):
        amendments.verify(case.signed(draft, but=LEAVES), case.old)
    amendments.sign_as_leaving(draft, case.old, LEAVES, case.keys.parties[LEAVES].public)
    with pytest.raises(InputError):
        amendments.sign_as_leaving(draft, case.old, LEAVES, SigningKey.generate().public)


def test_who_joins_signs(case: Case) -> None:
    told, fresh = case.treaty.model_dump(mode="json"), make_treaty(5)
    joins = fresh[1].party("shop-5").model_dump(mode="json")
    approver = {
        "name": "officer-5",
        "signing_key": SigningKey.generate().public,
        "level": "partner",
        "party": "shop-5",
    }
    draft = case.draft(parties=[*told["parties"], joins], approvers=[*told["approvers"], approver])
    key = fresh[2].parties["shop-5"]
    assert len(amendments.verify(case.signed(draft, **{"shop-5": key}), case.old).parties) == 5
    with pytest.raises(VerificationError, match="shop-5"):
        amendments.verify(case.signed(draft), case.old)


def _swap_key(case: Case) -> Envelope:
    parties = case.treaty.model_dump(mode="json")["parties"]
    key = SigningKey.generate()
    parties[0] |= {"signing_key": key.public}
    return case.signed(case.draft(parties=parties), **{parties[0]["name"]: key})


LIES: dict[str, Any] = {
    "no signature of one": lambda c: c.signed(c.draft(), but="shop-2"),
    "another's signature": lambda c: c.signed(c.draft(), **{"shop-2": SigningKey.generate()}),
    "a stranger's signature": lambda c: c.signed(c.draft(), mallory=SigningKey.generate()),
    "a version skipped": lambda c: c.signed(c.draft(version=3)),
    "another treaty amended": lambda c: c.signed(c.draft(amends="0" * 64)),
    "no word of amending": lambda c: c.signed(c.draft(amends=None)),
    "another name": lambda c: c.signed(c.draft(name="others")),
    "another coordinator": lambda c: c.signed(
        c.draft(
            coordinator={"origin": c.treaty.coordinator.origin, "signing_key": SigningKey.generate().public}
        )
    ),
    "a party under another key": _swap_key,
    "a study": lambda c: Envelope("study", {}),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_no_amendment_changes_nothing(case: Case, tmp_path: Path, lie: str) -> None:
    (tmp_path / "treaty.json").write_bytes(case.old.dumps())
    log = AuditLog(tmp_path / "audit.db", "foedus node shop-1")
    with pytest.raises(FoedusError):
        install(tmp_path, LIES[lie](case), log, "shop-1")
    assert (tmp_path / "treaty.json").read_bytes() == case.old.dumps() and log.size == 0


def test_nobody_goes_back(case: Case, tmp_path: Path) -> None:
    (tmp_path / "treaty.json").write_bytes(case.old.dumps())
    log = AuditLog(tmp_path / "audit.db", "foedus node shop-1")
    install(tmp_path, case.signed(case.draft()), log, "shop-1")
    with pytest.raises(VerificationError):
        install(tmp_path, case.old, log, "shop-1")
    with pytest.raises(VerificationError):  # another second version
        install(tmp_path, case.signed(case.draft(min_cohort=7)), log, "shop-1")


def test_version_one_amends_none(case: Case) -> None:
    with pytest.raises(InputError, match="version 1"):
        case.draft(version=1)


@pytest.mark.parametrize(
    ("changes", "term", "effect"),
    [
        ({"min_cohort": 1000}, "min_cohort", "stricter"),
        ({"min_group": 2}, "min_group", "looser"),
        ({"retention_days": 30}, "retention_days", "stricter"),
        ({"unsafe": ["central"]}, "unsafe", "looser"),
        ({"approval_chain": ["dpo", "partner"]}, "approval_chain", "looser"),
    ],
)
def test_the_difference_says_what_gets_looser(
    case: Case, changes: dict[str, Any], term: str, effect: str
) -> None:
    (change,) = diff(case.treaty, treaties.parse(case.draft(**changes)))
    assert (change.term, change.effect) == (term, effect) and change.was != change.now


def test_a_budget_that_grows_is_looser(case: Case) -> None:
    purposes = case.treaty.model_dump(mode="json")["purposes"]
    purposes[0]["epsilon"] *= 2
    (change,) = diff(case.treaty, treaties.parse(case.draft(purposes=purposes)))
    assert change.effect == "looser" and change.term == f"purpose {purposes[0]['purpose']}"
    assert not diff(case.treaty, treaties.parse(case.draft()))
