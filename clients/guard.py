"""The guard: what must hold before a node lets anything be computed, in this order (DESIGN §4).

1. Signatures, against this node's own copy of the treaty: the treaty by every party, the study by its
   author, every approval of the chain; the treaty permits purpose, ε, noise, shape; the secure sum has
   the silos it needs; the watch has not blocked its author.
2. The audit log: its head is signed by the treaty's coordinator and extends the head kept here, and the
   start of this very run is an entry of it; the treaty's quorum of nodes has cosigned it, or the one before.
3. Consent: the cohort is who allowed this purpose and has not withdrawn, now; it is large enough.
4. The budget: this node's ledger is the one that it was, and the round's event is reserved in it (`budget`).
5. Features in the silo's SQL engine.      6. Train or count.      7. Clip, encode, noise share, mask.

5–7 are `trainer` and `app`. Each step raises; whoever calls logs the refusal and says no.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pandas as pd

from ..compliance import approvals, treaty
from ..compliance.anomalies.book import blocked
from ..compliance.anomalies.patrol import Patrol
from ..compliance.anomalies.questions import Question
from ..compliance.auditlog.checkpoint import Checkpoint
from ..compliance.auditlog.log import AuditLog, Entry
from ..compliance.auditlog.merkle import grow, leaf_hash, root_from_edge, verify_inclusion
from ..compliance.auditlog.witness import HeadKeeper
from ..compliance.consent import Ask, ConsentRegister, proofs
from ..compliance.consent.membership import CohortTree, StudyKey
from ..documents import Envelope, Payload, parse_json
from ..errors import InputError, ProtocolError, Refused, VerificationError
from ..federation import ledger_heads, limits
from ..federation.messages import LOG_SIZE_UNKNOWN, KeysRequest, LoggedEntry, LogHead, LogHistory
from ..federation.rounds import RoundPlan
from ..federation.study import AnyStudy
from ..privacy.events import Event
from ..privacy.ledger import Ledger
from ..privacy.secagg.keys import Roster
from . import uses
from .budget import Budget
from .cohort import Cohort, Cohorts, ask_of
from .home import Home
from .logged_sums import LoggedSums
from .revocations import Revocations
from .witnessing import Witness, check_clear

Records = Sequence[tuple[int, dict[str, Any]]]
"""Entries of the server's log with their indices."""


@dataclass(frozen=True)
class Permit:
    """A study the guard let in, for one run."""

    study: AnyStudy
    digest: str
    run: str
    approvals: tuple[Envelope, ...]


class Guard:
    """The checks of one node. Everything it trusts lies in the node's directory."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.treaty_envelope, self.treaty = treaty.load(home.path / "treaty.json")
        self.treaty_digest = self.treaty_envelope.digest
        self.identity = home.identity()
        if self.treaty.party(home.party).signing_key != self.identity.public:
            raise InputError(f"{home.path}: identity.key is not the key the treaty names for {home.party}")
        self.audit = AuditLog(home.path / "audit.db", f"foedus node {home.party}")
        self.budget = Budget(home, self.treaty, self.treaty_digest, self.audit)
        self.consent = ConsentRegister(home.path / "consent.db")
        self._cohorts = Cohorts(self.consent)
        self.noted: Entry | None = None  # of the cohort that was noted last
        self._noted: tuple[str, pd.Series[str], CohortTree, StudyKey] | None = None
        coordinator = self.treaty.coordinator
        self.revocations = Revocations(home.path / "revoked.db", self.audit, home.party)
        self.sums = LoggedSums()
        self.patrol: Patrol | None = None  # the watch on duty, in a node that serves
        self.heads = HeadKeeper(home.path / "log-head", coordinator.origin, coordinator.signing_key)
        self.witness = Witness(self.treaty, home.party, self.identity, home.path / "log-head.cosigned")

    @property
    def caps(self) -> dict[str, float]:
        """ε of each purpose of the treaty, for the watch."""
        return {terms.purpose: terms.epsilon for terms in self.treaty.purposes}

    @property
    def roster(self) -> Roster:
        """The silos of the treaty, for the secure sum."""
        return Roster({p.name: p.signing_key for p in self.treaty.parties}, self.treaty.colluders)

    @property
    def log_size(self) -> int:
        """Entries of the server's log this node has seen."""
        head = self.heads.head
        return 0 if head is None else head.size

    def admit(self, request: KeysRequest) -> Permit:
        """Checks 1 and 2 for a run, and that the budget could pay for all of it."""
        envelope = Envelope.from_json(request.study)
        study = limits.verify(envelope, self.treaty, self.treaty_digest)
        given = tuple(Envelope.from_json(a) for a in request.approvals)
        permit = Permit(study, envelope.digest, request.run, given)
        self.check_approvals(permit)
        if (
            list(request.rounds) != sorted(set(request.rounds))
            or not 1 <= request.rounds[0] <= request.rounds[-1] <= study.rounds
        ):
            raise Refused("UNKNOWN_ROUND", f"the study has rounds 1 to {study.rounds}, asked for are others")
        head = self.advance_log(request.log, partial(self._find_anchors, request))
        self.revocations.require_none(permit.digest)
        self._check_started(request.started, head, permit)
        planned = [self.worst_event(study.round(number, self.treaty)) for number in request.rounds]
        self.budget.admit(permit.digest, study, planned)
        return permit

    def check_approvals(self, permit: Permit) -> None:
        """Every seat of the approval chain is filled, nobody has taken it back, and the author is not blocked, now (part of check 1)."""
        if self.patrol is not None:
            self.patrol.require()
        self._require_same_treaty()
        self.revocations.require_none(permit.digest)
        reason = blocked(self.home.path / "watch.db", permit.study.author)
        if reason is not None:
            raise reason.refusal()
        approvals.require(
            permit.approvals,
            self.treaty,
            treaty_digest=self.treaty_digest,
            study=permit.digest,
            author=permit.study.author,
            purpose=permit.study.purpose,
            epsilon=permit.study.privacy.epsilon,
        )
        uses.of_study(permit.study, self.ask(permit).categories, self.treaty, approved=True)

    def _require_same_treaty(self) -> None:
        """The treaty in the node's directory is still the one this process has read (`compliance.amendments`)."""
        found = Envelope.load(self.home.path / "treaty.json").digest
        if found != self.treaty_digest:
            raise Refused(
                "OTHER_TREATY",
                f"the treaty was amended to {found[:12]}: nothing is given under {self.treaty_digest[:12]} any more",
                remedy="start the node again; studies are signed and approved anew under the amendment",
            )

    def advance_log(
        self, log: LogHead, accept: Callable[[Checkpoint, Records], None] = lambda offered, new: None
    ) -> Checkpoint:
        """Check 2: the log's head extends the one kept here, which it replaces on disk.

        Every entry in between is shown, so that no revocation can be held back; what they revoke is kept here first.

        Args:
            accept: one more check, before that, of the head offered and the entries in between.

        Raises:
            Refused: the proof starts at another size than this node saw last: no fork, the server lost
                count (a reply of ours got lost); it is told the size and may ask again.
                ``LOG_CONTRADICTED``: heads that contradict each other are kept here, and were not looked into.
            VerificationError: fork or truncation; the contradicting head is kept as evidence.
        """
        check_clear(self.heads)
        seen = self.log_size
        if log.since != seen:
            raise Refused(
                LOG_SIZE_UNKNOWN, f"the log's proof starts at {log.since} entries, this node has seen {seen}"
            )

        def read(kept: Checkpoint, offered: Checkpoint) -> None:
            new = _shown(log.history, kept, offered)
            accept(offered, new)
            self.revocations.read(record for _, record in new)
            self.sums.read(record for _, record in new)

        return self.heads.advance(log.note, log.proof_bytes(), accept=read)

    def cosign(self) -> tuple[int, str]:
        """The size of the head kept here, which `advance_log` has checked, and this party's cosignature of it."""
        return self.witness.cosign(self.heads)

    def kept(self) -> Checkpoint:
        """The head of the server's log kept here."""
        head = self.heads.head
        if head is None:
            raise ProtocolError("no head of the audit log has been shown")
        return head

    def require_quorum(self, note: str | None, *wanted: Checkpoint) -> None:
        """Check 2, second half: one of these heads is shown under the cosignatures of the treaty's quorum (`witnessing`)."""
        self.witness.require(self.witness.read(note, self.heads), *wanted)

    def _find_anchors(self, request: KeysRequest, offered: Checkpoint, new: Records) -> None:
        """Check 4, first half: no head of this silo's ledger in the server's log is ahead of the ledger.

        1. The server shows every entry since the head kept here (`advance_log`). After a restore of the whole directory
           the head kept is an old one, and what this node stated since is among them.
        2. It shows the last entry with a head of this silo's ledger, in case the head kept is newer than
           ledger and audit log are.
        """
        records = list(new)  # 1.
        if request.anchor is not None:  # 2.
            self._check_included(request.anchor, offered)
            records.append((request.anchor.index, _record(request.anchor.index, request.anchor.body)))
        party = self.home.party
        for index, record in records:
            if party in ledger_heads.silos_in(record):
                stated = ledger_heads.stated_in(record, party)
                self.budget.anchored(ledger_heads.read(stated, party, self.identity.public).head, index)

    @staticmethod
    def _check_included(entry: LoggedEntry, head: Checkpoint) -> None:
        leaf = leaf_hash(entry.body.encode())
        verify_inclusion(leaf, entry.index, head.size, entry.proof_bytes(), head.root)

    def _check_started(self, entry: LoggedEntry, head: Checkpoint, permit: Permit) -> None:
        self._check_included(entry, head)
        record = _record(entry.index, entry.body)
        told = (record.get("action"), record.get("subject"), record["details"].get("run"))
        if told != ("run.started", permit.digest, permit.run):
            raise VerificationError(
                f"log entry {entry.index} is not the start of run {permit.run} of this study"
            )

    @property
    def ledger(self) -> Ledger:
        """What this silo's customers have paid."""
        return self.budget.ledger

    def state_ledger(self) -> Payload:
        """The head of the ledger, signed, for the server's log to anchor."""
        return ledger_heads.state(self.ledger.head, self.home.party, self.log_size, self.identity)

    def ask(self, permit: Permit) -> Ask:
        """What the study wants to use customers' data for, and which data."""
        return ask_of(self.home, permit.study.purpose, order_log=permit.study.reads_orders)

    def cohort(self, permit: Permit) -> Cohort:
        """Check 3, first half: who consents to the study's use of their data now."""
        return self._cohorts.of(self.ask(permit), datetime.now(UTC))

    def note_cohort(self, permit: Permit, number: int, cohort: Cohort) -> str:
        """Write into the audit log that a round uses this cohort, before it does.

        Returns:
            The entry's leaf hash, hex. The root in the entry is keyed, so it tells nothing and may leave.
        """
        tree, key = self._tree(permit.digest, cohort)
        details = proofs.entry_details(
            cohort.ask, run=permit.run, number=number, at=cohort.at, marks=cohort.marks, tree=tree, key=key
        )
        index = self.audit.append(self.home.party, proofs.ACTION, permit.digest, details)
        self.noted = next(self.audit.entries(index, index + 1))
        return self.noted.leaf.hex()

    def _tree(self, study: str, cohort: Cohort) -> tuple[CohortTree, StudyKey]:
        """The cohort's tree, made anew only where it is another cohort than the last one."""
        subjects = cohort.frame["subject"]
        if self._noted is None or self._noted[0] != study or not self._noted[1].equals(subjects):
            key = StudyKey(self.home.cohort_key(), study)
            self._noted = (study, subjects, CohortTree(key, subjects), key)
        return self._noted[2], self._noted[3]

    def describe(self, permit: Permit, customers: int) -> dict[str, Any]:
        """What the node's own log says of a study it lets in, for the watch to compare with others."""
        names = "\n".join(self.cohort(permit).frame["subject"]).encode()
        root = hmac.digest(self.home.cohort_key(), b"foedus cohort snapshot\0" + names, "sha256").hex()
        return Question.of(permit.study.model_dump(mode="json"), customers=customers, root=root).to_json()

    def check_size(self, customers: int) -> None:
        """Check 3, second half, once the cohort met the table."""
        low, high = self.treaty.min_cohort, self.treaty.max_cohort
        if customers < low:
            raise Refused(
                "COHORT_TOO_SMALL", f"the cohort has {customers} customers, the treaty wants {low} or more"
            )
        if customers > high:
            raise Refused(
                "COHORT_TOO_LARGE", f"the cohort has {customers} customers, the treaty allows {high}"
            )

    def reserve(self, permit: Permit, plan: RoundPlan) -> int:
        """Check 4: set the round's event aside, at the most it can cost; its number in the ledger."""
        label = f"run {permit.run} round {plan.round} {plan.task}"
        return self.budget.reserve(permit.digest, permit.study, self.worst_event(plan), label)

    def settle(self, ref: int, plan: RoundPlan, survivors: Sequence[str]) -> None:
        """The sum was opened over `survivors`: state in the ledger what it cost with their noise in it."""
        self.budget.commit(ref, plan.cost(len(survivors), self.treaty))

    def worst_event(self, plan: RoundPlan) -> Event:
        """A round's event when just the threshold survives."""
        return plan.cost(self.treaty.threshold, self.treaty)


def _shown(history: LogHistory | None, kept: Checkpoint, offered: Checkpoint) -> Records:
    """Every entry between two heads of the server's log, with its index; none is held back.

    Raises:
        ProtocolError, VerificationError: they are not shown, or do not make the tree of the head offered.
    """
    if history is None:
        raise ProtocolError("the entries of the audit log since the head kept here are not shown")
    edge, size = history.edge_bytes(), kept.size
    if len(edge) != size.bit_count() or root_from_edge(edge) != kept.root:
        raise VerificationError("the audit log's right edge is not that of the head kept here")
    records: list[tuple[int, dict[str, Any]]] = []
    for body in history.entries:
        edge = grow(edge, size, leaf_hash(body.encode()))[1]
        records.append((size, _record(size, body)))
        size += 1
    if size != offered.size or root_from_edge(edge) != offered.root:
        raise VerificationError("the audit log's entries since the head kept here are not all shown")
    return records


def _record(index: int, body: str) -> dict[str, Any]:
    try:
        record = parse_json(body)
    except InputError as error:
        raise ProtocolError(f"log entry {index}: {error.message}") from error
    if not isinstance(record, dict) or not isinstance(record.get("details"), dict) or "action" not in record:
        raise ProtocolError(f"log entry {index} is no entry of an audit log")
    return record
