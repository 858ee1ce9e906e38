"""A run in the hands of the coordinator: what was agreed, and where to record what happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ..compliance.auditlog.log import AuditLog, Entry, study_key
from ..compliance.treaty import Treaty
from ..documents import Envelope, Payload, SigningKey, b64
from ..errors import InputError, Refused, VerificationError
from ..federation import ledger_heads
from ..federation import messages as m
from ..federation.modes import Sampler
from ..federation.secure_sum import SecureSum, Sum
from ..federation.study import AnyStudy
from ..privacy.noise import discrete_gaussian
from .checkpoint import Checkpoint
from .cosigned import Cosigned

Note = Callable[[str, Mapping[str, Any]], None]


@dataclass
class Case:
    """One run of one study.

    Args:
        out: directory for the release and the evidence.
        lineage: the server's lineage.db.
        kept: how far the run has come; empty at its first attempt.
        heads: silo -> entries of the audit log its node has acknowledged.
        acknowledge, note: record such an acknowledgement, or a step for whoever follows the run.
        pause: see `SecureSum`.
        told: rounds whose event has been noted in an earlier attempt.
        patience: seconds to wait at the roll call for as many nodes as a sum needs.
        log_cosigned: file of the newest head of the log that a quorum has cosigned.
        sampler: what draws the noise in the mode where the server adds it. Only a test replaces it.
    """

    treaty_envelope: Envelope
    treaty: Treaty
    study_envelope: Envelope
    study: AnyStudy
    approvals: list[Envelope]
    run: str
    key: SigningKey
    log: AuditLog
    out: Path
    lineage: Path
    kept: Checkpoint
    heads: dict[str, int]
    acknowledge: Callable[[str, int], None]
    note: Note
    pause: Callable[[float], None] = time.sleep
    told: frozenset[int] = frozenset()
    patience: float = 15.0
    log_cosigned: Path | None = None
    sampler: Sampler = discrete_gaussian
    batches: list[SecureSum] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cosigned = Cosigned(self.log, self.treaty, self.key, self.log_cosigned)
        self._entries: list[tuple[str, dict[str, Any]]] = []
        self._start: Entry | None = None
        self._looked = 0  # entries of the audit log in which nobody takes this study back
        self._anchors: dict[str, Entry] = {}  # silo -> the last entry with a head of its ledger
        self.ledgers: dict[str, Payload] = {}  # silo -> the last head of its ledger that it stated
        for entry in self.log.entries():
            record = entry.record
            for silo in ledger_heads.silos_in(record):
                self._anchors[silo] = entry
            if record["subject"] == self.study_envelope.digest and record["details"].get("run") == self.run:
                self._entries.append((record["action"], record["details"]))
                if record["action"] == "run.started":
                    self._start = entry

    @property
    def origin(self) -> str:
        return self.treaty.coordinator.origin

    @property
    def started(self) -> datetime:
        """When the audit log says that the run started.

        Raises:
            InputError: it does not.
        """
        if self._start is None:
            raise InputError(f"run {self.run} is not in the audit log")
        return datetime.fromisoformat(self._start.record["time"])

    # ── the audit log ────────────────────────────────────────────────────────────────────────────

    def record(
        self,
        action: str,
        details: Mapping[str, Any],
        *,
        once: tuple[str, ...] = (),
        sealed: Mapping[str, Any] | None = None,
    ) -> None:
        """An entry in the audit log, unless an earlier attempt has made it.

        Args:
            sealed: free text, under the study's key; such an entry is not compared with one that was made before.
            once: the details that tell one entry of this action from another; there is one, by default.

        Raises:
            VerificationError: it was made, and says otherwise.
        """
        whole = {"run": self.run, **details}
        for said, logged in self._entries:
            if said == action and all(logged.get(name) == whole[name] for name in once):
                if logged != whole and sealed is None:
                    raise VerificationError(
                        f"run {self.run}: the audit log has another {action!r} than its checkpoint gives"
                    )
                return
        digest = self.study_envelope.digest
        key = "" if sealed is None else study_key(digest)
        index = self.log.append("coordinator", action, digest, whole, sealed=sealed, key=key)
        for entry in self.log.entries(index, index + 1):
            self._anchors |= dict.fromkeys(ledger_heads.silos_in(entry.record), entry)
        self._entries.append((action, whole))

    def require_not_rejected(self) -> None:
        """Nobody has taken back their approval, by what the audit log says now.

        Raises:
            Refused: ``STUDY_REJECTED``.
        """
        size = self.log.size
        for entry in self.log.entries(self._looked, size):
            record = entry.record
            if record["action"] == "study.rejected" and record["subject"] == self.study_envelope.digest:
                raise Refused(
                    "STUDY_REJECTED",
                    f"{record['details'].get('approver')} has taken back their approval: no further round, no release",
                )
        self._looked = size

    def logged(self, action: str) -> bool:
        """Whether the audit log has such an entry of this run."""
        return any(said == action for said, _ in self._entries)

    def ended(self) -> str | None:
        """How the audit log says that this run has ended: ``run.failed`` or ``run.stopped``."""
        return next((a for a, _ in self._entries if a in ("run.failed", "run.stopped")), None)

    def head(self, silo: str) -> m.LogHead:
        """The log's signed head, and the proof from what this silo has seen."""
        return self._head(silo)[0]

    def _head(self, silo: str) -> tuple[m.LogHead, int]:
        note = self.cosigned.note()
        size = int(note.split("\n")[1])
        seen = min(self.heads.get(silo, 0), size)
        proof = self.log.consistency_proof(seen, size) if seen else []
        history = m.LogHistory(
            edge=[b64(h) for h in self.log.edge(seen)],
            entries=[entry.body.decode() for entry in self.log.entries(seen, size)],
        )
        return m.LogHead(note=note, since=seen, proof=[b64(h) for h in proof], history=history), size

    def seen(self, silo: str, size: int) -> None:
        """A silo acknowledged the log up to `size`."""
        self.heads[silo] = size
        self.acknowledge(silo, size)

    def take_ledger(self, silo: str, stated: Payload | None) -> None:
        """The head of its ledger that a silo states, for the log to anchor.

        Raises:
            VerificationError: the silo has not signed it, or it goes back behind one in the log.
        """
        if stated is None:
            raise VerificationError(f"{silo} states no head of its ledger")
        key = self.treaty.party(silo).signing_key
        head, anchor = ledger_heads.read(stated, silo, key), self._anchors.get(silo)
        if anchor is not None:
            logged = ledger_heads.read(ledger_heads.stated_in(anchor.record, silo), silo, key)
            ledger_heads.check_order(silo, [logged, head])
        self.ledgers[silo] = stated

    def _logged(self, entry: Entry, size: int) -> m.LoggedEntry:
        proof = self.log.inclusion_proof(entry.index, size)
        return m.LoggedEntry(index=entry.index, body=entry.body.decode(), proof=[b64(h) for h in proof])

    def keys_request(self, silo: str, batch: int, rounds: list[int]) -> m.KeysRequest:
        """Set-up's first message to a silo."""
        if self._start is None:
            raise InputError(f"run {self.run} is not in the audit log")
        head, size = self._head(silo)
        anchor = self._anchors.get(silo)
        return m.KeysRequest(
            study=self.study_envelope.to_json(),
            approvals=[a.to_json() for a in self.approvals],
            run=self.run,
            batch=batch,
            rounds=rounds,
            log=head,
            started=self._logged(self._start, size),
            anchor=None if anchor is None else self._logged(anchor, size),
        )
