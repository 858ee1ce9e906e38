"""The guard: what must hold before a node lets anything be computed, in this order (DESIGN §4).

1. Signatures, against this node's own copy of the treaty: the treaty by every party, the study by its
   author, every approval of the chain; the treaty permits purpose, ε, noise, shape; the secure sum has
   the silos it needs.
2. The audit log: its head is signed by the treaty's coordinator and extends the head kept here, and the
   start of this very run is an entry of it.
3. Consent: the cohort is who allowed this purpose and has not withdrawn, now; it is large enough.
4. The budget: the round's event is reserved in this node's ledger.
5. Features in the silo's SQL engine.      6. Train or count.      7. Clip, encode, noise share, mask.

5–7 are `trainer` and `app`. Each step raises; whoever calls logs the refusal and says no.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd

from ..compliance import approvals, treaty
from ..compliance.auditlog.checkpoint import Checkpoint
from ..compliance.auditlog.merkle import leaf_hash, verify_inclusion
from ..compliance.auditlog.witness import HeadKeeper
from ..compliance.consent import ConsentRegister
from ..documents import Envelope, parse_json
from ..errors import BudgetExceeded, InputError, ProtocolError, Refused, VerificationError
from ..federation import study as studies
from ..federation.messages import LOG_SIZE_UNKNOWN, KeysRequest, LoggedEntry, LogHead
from ..federation.rounds import RoundPlan
from ..federation.study import Study
from ..privacy.accountant import ZCDP
from ..privacy.events import Event
from ..privacy.ledger import Cap, Ledger
from ..privacy.secagg.keys import Roster
from .home import Home


@dataclass(frozen=True)
class Permit:
    """A study the guard let in, for one run."""

    study: Study
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
        self.ledger = Ledger(home.path / "ledger.db")
        self.consent = ConsentRegister(home.path / "consent.db")
        coordinator = self.treaty.coordinator
        self.heads = HeadKeeper(home.path / "log-head", coordinator.origin, coordinator.signing_key)

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
        study = studies.verify(envelope, self.treaty, self.treaty_digest)
        given = tuple(Envelope.from_json(a) for a in request.approvals)
        permit = Permit(study, envelope.digest, request.run, given)
        self.check_approvals(permit)
        if (
            list(request.rounds) != sorted(set(request.rounds))
            or not 1 <= request.rounds[0] <= request.rounds[-1] <= study.rounds
        ):
            raise Refused("UNKNOWN_ROUND", f"the study has rounds 1 to {study.rounds}, asked for are others")
        head = self.advance_log(request.log)
        self._check_started(request.started, head, permit)
        planned = ZCDP(self.ledger.events(purpose=study.purpose))
        for number in request.rounds:
            planned.compose(self.worst_event(study.round(number, self.treaty)))
        terms = self.treaty.terms(study.purpose)
        total = planned.epsilon(terms.delta)
        if not total <= terms.epsilon:
            raise BudgetExceeded(
                f"the study would take {study.purpose} to ε = {total:.4f}, over this silo's cap of {terms.epsilon:g}"
            )
        return permit

    def check_approvals(self, permit: Permit) -> None:
        """Every seat of the approval chain is filled, now (part of check 1; approvals expire)."""
        approvals.require(
            permit.approvals,
            self.treaty,
            treaty_digest=self.treaty_digest,
            study=permit.digest,
            author=permit.study.author,
            purpose=permit.study.purpose,
            epsilon=permit.study.privacy.epsilon,
        )

    def advance_log(self, log: LogHead) -> Checkpoint:
        """Check 2: the log's head extends the one kept here, which it replaces on disk.

        Raises:
            Refused: the proof starts at another size than this node saw last: no fork, the server lost
                count (a reply of ours got lost); it is told the size and may ask again.
            VerificationError: fork or truncation; the contradicting head is kept as evidence.
        """
        seen = self.log_size
        if log.since != seen:
            raise Refused(
                LOG_SIZE_UNKNOWN, f"the log's proof starts at {log.since} entries, this node has seen {seen}"
            )
        return self.heads.advance(log.note, log.proof_bytes())

    def _check_started(self, entry: LoggedEntry, head: Checkpoint, permit: Permit) -> None:
        proof = entry.proof_bytes()
        verify_inclusion(leaf_hash(entry.body.encode()), entry.index, head.size, proof, head.root)
        try:
            record = parse_json(entry.body)
        except InputError as error:
            raise ProtocolError(f"log entry {entry.index}: {error.message}") from error
        if not isinstance(record, dict) or not isinstance(record.get("details"), dict):
            raise ProtocolError(f"log entry {entry.index} is no entry of an audit log")
        told = (record.get("action"), record.get("subject"), record["details"].get("run"))
        if told != ("run.started", permit.digest, permit.run):
            raise VerificationError(
                f"log entry {entry.index} is not the start of run {permit.run} of this study"
            )

    def cohort(self, permit: Permit) -> pd.DataFrame:
        """Check 3, first half: who consents to the study's purpose now (column `subject`)."""
        return self.consent.in_force(permit.study.purpose, datetime.now(UTC))

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
        terms, own = self.treaty.terms(permit.study.purpose), permit.study.privacy
        return self.ledger.reserve(
            self.worst_event(plan),
            purpose=permit.study.purpose,
            study=permit.digest,
            label=f"run {permit.run} round {plan.round} {plan.task}",
            cap=Cap(terms.epsilon, terms.delta),
            study_cap=Cap(own.epsilon, own.delta),
        )

    def settle(self, ref: int, plan: RoundPlan, survivors: Sequence[str]) -> None:
        """The sum was opened over `survivors`: state in the ledger what it cost with their noise in it."""
        self.ledger.commit(ref, plan.cost(len(survivors), self.treaty))

    def worst_event(self, plan: RoundPlan) -> Event:
        """A round's event when just the threshold survives."""
        return plan.cost(self.treaty.threshold, self.treaty)
