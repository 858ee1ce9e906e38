"""Proofs for one customer: in which cohorts of a silo they were, and in which they were not.

Before a silo uses a cohort its audit log says so, in an entry ``cohort``: study, run, round, time, the tree's
size and root (`membership`), the commitment to the study's key, and how far the register was. The register only
grows, so the cohort of any entry can be made again from it, and nothing else need be kept.

A proof is one file, signed by the silo: the customer, the signed head of the silo's audit log, and for
each cohort the entry, its inclusion under that head, and (non-)membership under the entry's root.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ...documents import Envelope, SigningKey
from ...errors import InputError, VerificationError
from ..auditlog.checkpoint import open_checkpoint
from ..auditlog.log import AuditLog, Entry
from ..auditlog.merkle import leaf_hash, verify_inclusion
from .decisions import Ask
from .membership import CohortTree, Proof, StudyKey, verify_membership, verify_non_membership
from .register import ConsentRegister
from .store import Marks

KIND = "consent.proof"
ACTION = "cohort"
_FIELDS = {"silo", "subject", "head", "cohorts"}


def entry_details(
    ask: Ask, *, run: str, number: int, at: datetime, marks: Marks, tree: CohortTree, key: StudyKey
) -> dict[str, Any]:
    """What the audit log says of a cohort; its subject is the study. It names nobody."""
    return {
        "run": run,
        "round": number,
        "purpose": ask.purpose,
        "categories": sorted(ask.categories),
        "at": at.astimezone(UTC).isoformat(timespec="microseconds"),
        "register": marks._asdict(),
        "size": tree.size,
        "root": tree.root.hex(),
        "key": key.commitment,
    }


@dataclass(frozen=True)
class Finding:
    """What a proof showed of one cohort."""

    study: str
    run: str
    round: int
    at: datetime
    member: bool


def prove(
    subject: str,
    *,
    silo: str,
    log: AuditLog,
    register: ConsentRegister,
    silo_key: bytes,
    identity: SigningKey,
    since: datetime | None = None,
) -> Envelope:
    """A signed proof about `subject` for every cohort in the silo's log, from `since` on.

    Raises:
        InputError: the log has no such cohort.
        VerificationError: register, key or log are not those of then.
    """
    cohorts, made = [], _Trees(register, silo_key)
    found = [e for e in log.entries() if _is_cohort(e) and (since is None or _at(e) >= since)]
    if not found:
        raise InputError(f"the audit log of {silo} has no cohort from then on: there is nothing to prove")
    head = log.checkpoint(silo, identity)
    size = open_checkpoint(head, silo, identity.public).size
    for entry in found:
        tree, key = made.of(entry)
        cohorts.append(
            {
                "index": entry.index,
                "entry": entry.body.decode(),
                "path": [h.hex() for h in log.inclusion_proof(entry.index, size)],
                "proof": tree.prove(key.label(subject)).to_json(),
            }
        )
    content = {"silo": silo, "subject": subject, "head": head, "cohorts": cohorts}
    return Envelope(KIND, content).signed(silo, identity)


def check(envelope: Envelope, silo: str, public: str) -> list[Finding]:
    """Check a proof with nothing but the silo's public key. Returns what it shows, in the log's order.

    1. The silo signed it, and the head of its log in it.
    2. Every entry is under that head, later than the one before, and is the use of a cohort by the silo.
    3. Its membership proof is for the size and root that the entry states; it shows in, or not in.
    4. In cohorts of one study the customer has one label, under one key.

    Raises:
        VerificationError: one of these does not hold.
        InputError: not a proof.
    """
    # 1.
    envelope.check(KIND, silo, public)
    content = envelope.payload
    if set(content) != _FIELDS or content["silo"] != silo or not isinstance(content["cohorts"], list):
        raise InputError(f"not a consent proof of {silo}: it has exactly {', '.join(sorted(_FIELDS))}")
    head = open_checkpoint(str(content["head"]), silo, public)
    findings: list[Finding] = []
    named: dict[str, tuple[str, bytes]] = {}
    before = -1
    for item in content["cohorts"]:
        entry, path, proof = _parsed(item)
        # 2.
        if entry.index <= before:
            raise VerificationError(f"entry {entry.index}: shown twice, or out of order")
        before = entry.index
        verify_inclusion(leaf_hash(entry.body), entry.index, head.size, path, head.root)
        if not _is_cohort(entry) or entry.record["actor"] != silo:
            raise VerificationError(f"entry {entry.index} is not the use of a cohort by {silo}")
        # 3.
        record = entry.record
        details = record["details"]
        if (proof.size, proof.root.hex()) != (details.get("size"), details.get("root")):
            raise VerificationError(f"entry {entry.index}: the proof is for another cohort")
        member = any(leaf.label == proof.label for leaf in proof.leaves)
        (verify_membership if member else verify_non_membership)(proof)
        # 4.
        if named.setdefault(record["subject"], (details.get("key"), proof.label)) != (
            details.get("key"),
            proof.label,
        ):
            raise VerificationError(f"entry {entry.index}: another label or key in the same study")
        findings.append(
            Finding(record["subject"], str(details.get("run")), int(details["round"]), _at(entry), member)
        )
    return findings


def _parsed(item: Any) -> tuple[Entry, list[bytes], Proof]:
    if not isinstance(item, Mapping) or set(item) != {"index", "entry", "path", "proof"}:
        raise InputError("not a consent proof: a cohort has exactly index, entry, path and proof")
    try:
        entry = Entry(int(item["index"]), str(item["entry"]).encode())
        path = [bytes.fromhex(h) for h in item["path"]]
    except (TypeError, ValueError) as error:
        raise InputError("not a consent proof: a path is malformed") from error
    return entry, path, Proof.from_json(item["proof"])


@dataclass(frozen=True)
class Use:
    """One use of a cohort, as entry `index` of the silo's audit log states it."""

    index: int
    study: str
    run: str
    ask: Ask
    at: datetime
    until: Marks


def uses(log: AuditLog, start: int = 0) -> Iterator[Use]:
    """Every use of a cohort in the silo's log from entry `start` on, in order.

    Raises:
        VerificationError: an entry is malformed.
    """
    for entry in log.entries(start):
        if _is_cohort(entry):
            record = entry.record
            details = record["details"]
            try:
                ask = Ask(details["purpose"], frozenset(details["categories"]))
                until = Marks(**details["register"])
                yield Use(entry.index, record["subject"], str(details["run"]), ask, _at(entry), until)
            except (KeyError, TypeError) as error:
                raise VerificationError(f"entry {entry.index}: not the use of a cohort") from error


def _is_cohort(entry: Entry) -> bool:
    return f'"action":"{ACTION}"'.encode() in entry.body and entry.record["action"] == ACTION


def _at(entry: Entry) -> datetime:
    try:
        return datetime.fromisoformat(entry.record["details"]["at"])
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"entry {entry.index}: the use of a cohort at no time") from error


class _Trees:
    """The trees of entries, made again; one is kept, as many rounds use the same cohort."""

    def __init__(self, register: ConsentRegister, silo_key: bytes) -> None:
        self._register, self._silo_key = register, silo_key
        self._last: tuple[StudyKey, list[str], CohortTree] | None = None

    def of(self, entry: Entry) -> tuple[CohortTree, StudyKey]:
        record = entry.record
        details = record["details"]
        key = StudyKey(self._silo_key, record["subject"])
        if key.commitment != details["key"]:
            raise VerificationError(f"entry {entry.index}: cohort.key is not the key of then")
        ask = Ask(details["purpose"], frozenset(details["categories"]))
        until = Marks(**details["register"])
        subjects = self._register.cohort(ask, _at(entry), until=until)["subject"].tolist()
        if self._last is None or (self._last[0].commitment, self._last[1]) != (key.commitment, subjects):
            kept = self._register.labels(record["subject"])
            self._last = key, subjects, CohortTree(key, subjects, kept)
        tree = self._last[2]
        if (tree.size, tree.root.hex()) != (details["size"], details["root"]):
            raise VerificationError(
                f"entry {entry.index}: consent.db does not give the cohort that was used",
                remedy="restore the register that belongs to this audit log",
            )
        return tree, key
