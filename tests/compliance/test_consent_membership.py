"""Cohorts as trees: proofs of being in and of not being in, known answers, and a customer's proof file."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.consents import CRM, PURCHASES, T0, day, notice

from foedus.clients.cohort import Cohorts
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.auditlog.merkle import root_from_leaves
from foedus.compliance.consent import Ask, ConsentRegister, Grant, proofs
from foedus.compliance.consent.membership import (
    CohortTree,
    Proof,
    StudyKey,
    verify_membership,
    verify_non_membership,
)
from foedus.documents import Envelope, SigningKey
from foedus.errors import InputError, VerificationError

VECTORS = Path(__file__).parents[1] / "vectors" / "cohort"
KEY = StudyKey(bytes(range(32)), "5" * 64)


def load(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


# ── known answers ────────────────────────────────────────────────────────────────────────────────


def test_the_script_makes_just_these_files_again() -> None:
    made = runpy.run_path(str(VECTORS.parent / "make_cohort.py"))["files"]()
    assert {p.name: p.read_text(encoding="utf-8") for p in VECTORS.glob("*.json")} == made


def test_labels_and_root() -> None:
    known = load("tree")
    key = StudyKey(bytes.fromhex(known["silo_key"]), known["study"])
    tree = CohortTree(key, known["customers"])
    assert {c: key.label(c).hex() for c in known["customers"]} == known["labels"]
    assert (tree.size, tree.root.hex(), key.commitment) == (known["size"], known["root"], known["key"])


def test_good_proofs() -> None:
    tree = CohortTree(KEY, load("tree")["customers"])
    member = load("member")
    assert tree.prove(KEY.label(member["customer"])).to_json() == member["proof"]
    verify_membership(Proof.from_json(member["proof"]))
    for case in load("absent"):
        verify_non_membership(Proof.from_json(case["proof"]))
        assert KEY.label(case["customer"]).hex() == case["proof"]["label"]
        if case["proof"]["size"]:
            assert tree.prove(KEY.label(case["customer"])).to_json() == case["proof"]


@pytest.mark.parametrize("name", sorted(p.stem for p in VECTORS.glob("*_bad_*.json")))
def test_bad_proofs(name: str) -> None:
    verify = verify_membership if name.startswith("member") else verify_non_membership
    with pytest.raises(VerificationError):
        verify(Proof.from_json(load(name)))


# ── any cohort ───────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 60), max_size=40))
def test_everybody_is_shown_in_or_out_and_never_both(inside: set[int]) -> None:
    tree = CohortTree(KEY, [f"c{i}" for i in inside])
    assert tree.root == root_from_leaves(tree._levels[0])
    for i in range(61):
        proof = Proof.from_json(tree.prove(KEY.label(f"c{i}")).to_json())
        assert proof.root == tree.root
        (verify_membership if i in inside else verify_non_membership)(proof)
        with pytest.raises(VerificationError):
            (verify_non_membership if i in inside else verify_membership)(proof)
        if proof.size:
            with pytest.raises(VerificationError):
                (verify_membership if i in inside else verify_non_membership)(replace(proof, root=bytes(32)))


def test_roots_are_unlinkable_across_studies_and_the_key_does_not_print() -> None:
    other = StudyKey(bytes(range(32)), "6" * 64)
    assert CohortTree(KEY, ["a", "b"]).root != CohortTree(other, ["a", "b"]).root
    assert KEY.label("a") != other.label("a")
    assert repr(KEY) == "StudyKey(…)"
    with pytest.raises(InputError):
        StudyKey(b"short", "5" * 64)


# ── a customer's file ────────────────────────────────────────────────────────────────────────────

ASK = Ask(CRM, frozenset([PURCHASES]))
STUDY = "a" * 64


class Silo:
    """A silo that has used three cohorts: before the withdrawal of c3, and twice after it."""

    def __init__(self, folder: Path) -> None:
        self.register = ConsentRegister(folder / "consent.db")
        self.register.publish(notice())
        self.register.grant_many([Grant(f"c{i}", CRM, "2026-01/zh", day(1)) for i in range(9)])
        self.log, self.identity = AuditLog(folder / "audit.db", "foedus node s"), SigningKey.generate()
        self.key, self.cohorts = bytes(range(32)), Cohorts(self.register)
        self.use(1, day(2))
        self.register.withdraw("c3", CRM, at=day(3))
        self.use(2, day(4))
        self.log.append("s", "sent", "vector-reply", {"bytes": 1})
        self.use(3, day(5))

    def use(self, number: int, at: datetime) -> None:
        cohort, key = self.cohorts.of(ASK, at), StudyKey(self.key, STUDY)
        details = proofs.entry_details(
            ASK,
            run="7",
            number=number,
            at=at,
            marks=cohort.marks,
            tree=CohortTree(key, cohort.frame["subject"]),
            key=key,
        )
        self.log.append("s", proofs.ACTION, STUDY, details)

    def prove(self, subject: str = "c3", since: datetime | None = None, key: bytes | None = None) -> Envelope:
        return proofs.prove(
            subject,
            silo="s",
            log=self.log,
            register=self.register,
            silo_key=key or self.key,
            identity=self.identity,
            since=since,
        )

    def check(self, envelope: Envelope) -> list[tuple[int, bool]]:
        again = Envelope.loads(envelope.dumps())
        return [(f.round, f.member) for f in proofs.check(again, "s", self.identity.public)]

    def forged(self, envelope: Envelope, **content: Any) -> Envelope:
        return Envelope(proofs.KIND, {**envelope.payload, **content}).signed("s", self.identity)


@pytest.fixture
def silo(tmp_path: Path) -> Silo:
    return Silo(tmp_path)


def test_a_withdrawn_customer_is_shown_to_be_in_no_later_cohort(silo: Silo) -> None:
    assert silo.check(silo.prove()) == [(1, True), (2, False), (3, False)]
    assert silo.check(silo.prove(since=day(3))) == [(2, False), (3, False)]
    assert silo.check(silo.prove("c1")) == [(1, True), (2, True), (3, True)]
    assert silo.check(silo.prove("who?")) == [(1, False), (2, False), (3, False)]
    with pytest.raises(InputError, match="nothing to prove"):
        silo.prove(since=day(6))


def test_what_is_told_later_does_not_change_a_proof(silo: Silo) -> None:
    """A withdrawal that was told late makes another cohort of then; the one that was used stays provable."""
    silo.register.withdraw("c5", CRM, at=day(1.5))
    assert silo.check(silo.prove("c5")) == [(1, True), (2, True), (3, True)]
    silo.use(4, day(5))
    assert silo.check(silo.prove("c5"))[-1] == (4, False)


def test_the_log_names_nobody(silo: Silo) -> None:
    text = b"".join(entry.body for entry in silo.log.entries())
    assert b'"c3"' not in text and STUDY.encode() in text


def test_a_silo_without_its_key_or_register_can_prove_nothing(silo: Silo, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"cohort\.key"):
        silo.prove(key=bytes(32))
    silo.register = ConsentRegister(tmp_path / "other.db")
    silo.register.publish(notice())
    silo.register.grant_many([Grant(f"c{i}", CRM, "2026-01/zh", day(1)) for i in range(8)])
    with pytest.raises(VerificationError, match=r"consent\.db"):
        silo.prove()


def test_a_changed_proof_is_refused_even_if_the_silo_signs_it(silo: Silo) -> None:
    good = silo.prove()
    one, two, three = good.payload["cohorts"]
    with pytest.raises(VerificationError):  # by somebody else
        proofs.check(good, "s", SigningKey.generate().public)
    with pytest.raises(VerificationError):  # changed after it was signed
        silo.check(replace(good, payload={**good.payload, "subject": "c4"}))
    silo.log.append("s", "other", "x", {})
    newer = silo.log.checkpoint("s", silo.identity)
    label = StudyKey(silo.key, STUDY).label("c8").hex()
    lied = json.loads(two["entry"])
    lied["details"]["size"] += 1
    cases: list[dict[str, Any]] = [
        {"head": newer},
        {"head": silo.log.checkpoint("s", SigningKey.generate())},
        {"cohorts": [one, three, two]},
        {"cohorts": [two, two]},
        {"cohorts": [{**two, "proof": one["proof"]}]},
        {"cohorts": [{**two, "index": 0}]},
        {"cohorts": [{**two, "path": []}]},
        {"cohorts": [{**two, "entry": json.dumps(lied, separators=(",", ":"))}]},
        {"cohorts": [{**two, "proof": {**two["proof"], "label": label}}]},
        {"cohorts": [two, {**three, "proof": silo.prove("who?").payload["cohorts"][2]["proof"]}]},
    ]
    for changed in cases:
        with pytest.raises(VerificationError):
            silo.check(silo.forged(good, **changed))
    for malformed in (
        {"more": 1}, {"cohorts": {}}, {"cohorts": [1]}, {"cohorts": [{**two, "more": 1}]},
        {"cohorts": [{**two, "path": ["zz"]}]}, {"cohorts": [{**two, "proof": {}}]},
        {"cohorts": [{**two, "proof": {**two["proof"], "label": "0"}}]},
    ):  # fmt: skip
        with pytest.raises(InputError):
            silo.check(silo.forged(good, **malformed))


def test_time_zones_do_not_matter(silo: Silo) -> None:
    assert silo.check(silo.prove(since=T0.astimezone(UTC))) == [(1, True), (2, False), (3, False)]
