"""Studies that an approver has taken back, at one node; for good, whatever the server says later.

They come from two sides: the server's log, every entry of which the node is shown before it takes a new head; and the
party's own people, who may hand their signed rejection to the node themselves (``foedus node revoke``), should the server keep
it back. A rejection is final: a study that is to run after all is signed anew, and approved anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..compliance import approvals
from ..compliance.auditlog.database import Schema, append_only, connection, establish, transaction
from ..compliance.auditlog.log import AuditLog
from ..compliance.treaty import Treaty
from ..documents import Envelope
from ..errors import InputError, Refused

REVOKED = "REVOKED"
ACTION = "study.revoked"
LOGGED = "study.rejected"
_INSERT = "INSERT INTO revoked VALUES (?, ?, ?, ?)"
_SCHEMA = Schema(
    title="a node's list of revoked studies",
    application_id=0x666F7276,  # "forv"
    statements=(
        "CREATE TABLE revoked (study TEXT PRIMARY KEY, approver TEXT NOT NULL, source TEXT NOT NULL, time TEXT NOT NULL) STRICT",
        *append_only("revoked", "EXISTS (SELECT 1 FROM revoked WHERE study = NEW.study)", "IGNORE"),
    ),
)


class Revocations:
    """The list, in one file.

    Raises:
        InputError, VerificationError: the file is something else, or damaged.
    """

    def __init__(self, path: Path, audit: AuditLog, party: str) -> None:
        self._path, self._audit, self._party = path, audit, party
        establish(path, _SCHEMA, first=self._remembered())

    def _remembered(self) -> list[tuple[str, tuple[Any, ...]]]:
        """What this node's own log says was taken back, if the file is lost: the server shows no entry twice."""
        if self._path.exists() and self._path.stat().st_size:
            return []
        found = [e.record for e in self._audit.entries() if e.record["action"] == ACTION]
        told = [(r["subject"], r["details"]["approver"], r["details"]["source"], r["time"]) for r in found]
        return [(_INSERT, row) for row in told]

    def require_none(self, study: str) -> None:
        """Raises: Refused: ``REVOKED``."""
        with connection(self._path) as db:
            found = db.execute("SELECT approver FROM revoked WHERE study = ?", (study,)).fetchone()
        if found is not None:
            raise Refused(
                "REVOKED",
                f"{found[0]} has taken back the approval of study {study[:12]}",
                remedy="sign the draft anew, and ask for approvals of the new study",
            )

    def read(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take in what entries of the server's log say of rejected studies.

        Nothing is verified: a server that makes one up stops a study, which it could do anyway.
        """
        for record in records:
            if record["action"] == LOGGED:
                approver = record["details"].get("approver")
                self._note(str(record["subject"]), str(approver or "somebody"), "the server's log")

    def take(self, envelope: Envelope, treaty: Treaty, treaty_digest: str) -> str:
        """Take in a rejection that its approver signed. Returns the study's digest.

        Raises:
            InputError: it approves, or is something else. VerificationError: no approver of the treaty signed it.
        """
        decision = approvals.verify_one(envelope, treaty, treaty_digest=treaty_digest)
        if decision.decision != "reject":
            raise InputError(
                f"{decision.approver} approves in it", remedy="foedus study revoke STUDY --out FILE"
            )
        self._note(decision.study, decision.approver, "handed in")
        return decision.study

    def _note(self, study: str, approver: str, source: str) -> None:
        with connection(self._path) as db:
            if db.execute("SELECT 1 FROM revoked WHERE study = ?", (study,)).fetchone():
                return
        self._audit.append(self._party, ACTION, study, {"approver": approver, "source": source})
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with transaction(self._path) as db:
            db.execute(_INSERT, (study, approver, source, now))
