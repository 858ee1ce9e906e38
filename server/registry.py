"""The register of studies: what may enter it, what each still lacks, how far it has come.

Everything is verified against the server's own treaty, and every yes and no is in the audit log. The
nodes trust none of it: they verify the same documents again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from ..compliance import approvals
from ..compliance.anomalies.patrol import Patrol
from ..compliance.auditlog.log import AuditLog, study_key
from ..compliance.treaty import Treaty
from ..documents import Envelope
from ..errors import FoedusError, InputError, Refused
from ..federation import limits
from ..federation import study as studies
from ..federation.study import AnyStudy
from .problems import NotFound, code_of
from .store import RunRow, Store, StudyRow

LEAST_DIGITS = 8
_DIGEST = re.compile(r"[0-9a-f]{1,64}", re.ASCII)


@dataclass(frozen=True)
class Standing:
    """How far a study has come: ``submitted``, ``approved``, ``running``, ``finished``, ``failed`` or
    ``rejected``, or ``void`` under an amended treaty; the seats of the approval chain still empty; who said no."""

    status: str
    missing: tuple[str, ...] = ()
    reason: str = ""


class Registry:
    """The studies of one server under one treaty."""

    def __init__(
        self, store: Store, log: AuditLog, treaty: Treaty, treaty_digest: str, patrol: Patrol
    ) -> None:
        self._store, self._audit, self._treaty, self._treaty_digest = store, log, treaty, treaty_digest
        self._patrol = patrol

    # ── what comes in ────────────────────────────────────────────────────────────────────────────

    def submit(self, body: bytes, *, actor: str) -> StudyRow:
        """Take in a study: the bytes of its signed envelope.

        Raises:
            InputError: malformed. VerificationError: bad signature.
            Refused: the treaty does not permit it, it was submitted before, or the watch has blocked its author.
        """
        with _Refusals(self._audit, actor, "study.refused", body) as refusals:
            envelope = _envelope(body)
            refusals.subject = digest = envelope.digest
            study = limits.verify(envelope, self._treaty, self._treaty_digest)
            self._patrol.admit(study.author)
            details = {
                "author": study.author,
                "purpose": study.purpose,
                "epsilon": study.privacy.epsilon,
                "delta": study.privacy.delta,
            }
            self._store.add_study(
                envelope,
                author=study.author,
                title=study.title,
                submitted_by=actor,
                record=lambda: self._audit.append(
                    actor,
                    "study.submitted",
                    digest,
                    details,
                    sealed={"title": study.title},
                    key=study_key(digest),
                ),
            )
        return self.find(digest)

    def decide(self, abbreviation: str, body: bytes, *, actor: str) -> Standing:
        """Take in an approver's decision on a study: the bytes of its signed envelope.

        1. It is signed by an approver of the treaty, for this study, and not by its author.
        2. If it approves, it fills a seat: right purpose, enough ε, in force, a level of the chain.
        3. It is kept, in the audit log first.

        Raises:
            NotFound: no such study. InputError: malformed. VerificationError: by 1.
            Refused: ``SELF_APPROVAL``, ``APPROVAL_VOID`` by 2, ``ALREADY_DECIDED`` by 3.
        """
        row = self.find(abbreviation)
        with _Refusals(self._audit, actor, "approval.refused", body) as refusals:
            refusals.subject = row.digest
            envelope, moment = _envelope(body), datetime.now(UTC)
            # 1.
            approval = approvals.verify_one(envelope, self._treaty, treaty_digest=self._treaty_digest)
            try:
                lacking = self._missing(row, [envelope], moment)
            except Refused as error:
                if error.code != "STUDY_REJECTED":
                    raise
            else:  # 2.
                if lacking == self._missing(row, [], moment):
                    raise Refused(
                        "APPROVAL_VOID",
                        f"the approval by {approval.approver} fills no seat: it has expired, is for another "
                        "purpose or a smaller ε, or for a level the treaty does not ask for",
                        remedy="sign a new one with `foedus study approve`",
                    )
            # 3.
            action = "study.approved" if approval.decision == "approve" else "study.rejected"
            details: dict[str, Any] = {"approval": envelope.digest, "epsilon": approval.epsilon}
            details |= {"approver": approval.approver, "level": approval.level}
            details |= {"party": approval.party} if approval.party else {}
            self._store.add_approval(
                envelope,
                study=row.digest,
                approver=approval.approver,
                level=approval.level,
                party=approval.party,
                decision=approval.decision,
                expires=_time(approval.expires),
                moment=moment,
                record=lambda: self._audit.append(actor, action, row.digest, details),
            )
        return self.standing(row)

    # ── what is there ────────────────────────────────────────────────────────────────────────────

    def find(self, abbreviation: str) -> StudyRow:
        """The study whose digest starts with `abbreviation`, of at least 8 hex digits.

        Raises:
            InputError: not such a text, or several studies start so. NotFound: none does.
        """
        if not _DIGEST.fullmatch(abbreviation) or len(abbreviation) < LEAST_DIGITS:
            raise InputError(f"a study is named by its digest: {LEAST_DIGITS} to 64 hex digits, lower case")
        found = self._store.studies(abbreviation)
        if not found:
            raise NotFound(
                f"no study {abbreviation[:12]}", remedy="`foedus study list` shows those there are"
            )
        if len(found) > 1:
            raise InputError(f"{len(found)} studies start with {abbreviation}", remedy="give more digits")
        return found[0]

    def study(self, row: StudyRow) -> AnyStudy:
        """The content of a kept study."""
        return studies.parse(Envelope.loads(row.envelope))

    def standing(self, row: StudyRow) -> Standing:
        """How far a study has come, from its approvals and runs."""
        runs = [run.status for run in self._store.runs(row.digest)]
        for status in ("running", "finished"):
            if status in runs:
                return Standing(status)
        if self.study(row).treaty != self._treaty_digest:
            return Standing("void", reason="it was signed under a treaty that has been amended since")
        try:
            lacking = tuple(self._missing(row, self._store.approvals(row.digest), datetime.now(UTC)))
        except Refused as error:
            return Standing("rejected", reason=error.message)
        if runs:
            return Standing("failed", lacking)
        return Standing("submitted" if lacking else "approved", lacking)

    def rejected(self, digest: str) -> str | None:
        """Who said no to a study, in a sentence; None if nobody did."""
        try:
            row = self.find(digest)
            self._missing(row, self._store.approvals(row.digest), datetime.now(UTC))
        except Refused as error:
            return error.message
        return None

    def runs(self, row: StudyRow) -> list[RunRow]:
        return self._store.runs(row.digest)

    def require_runnable(self, digest: str) -> None:
        """Raise Refused unless every approval is there, no run has finished and the watch lets the author go on.

        A failed or stopped study may be run again: what its nodes have spent is in *their* ledgers,
        and they refuse what would pass the cap.
        """
        row = self.find(digest)
        self._patrol.admit(row.author)
        if self.study(row).treaty != self._treaty_digest:
            raise Refused(
                "OTHER_TREATY",
                f"study {row.digest[:12]} is under a treaty that has been amended since",
                remedy="sign the draft anew under the treaty in force, and ask for approvals",
            )
        if "finished" in [run.status for run in self._store.runs(row.digest)]:
            raise Refused(
                "STUDY_FINISHED",
                f"study {row.digest[:12]} has been run; its approvals cover its ε once",
                remedy="sign the draft anew, and ask for approvals of the new study",
            )
        approvals.require(self._store.approvals(row.digest), **self._terms(row), now=datetime.now(UTC))

    def _missing(self, row: StudyRow, envelopes: list[Envelope], moment: datetime) -> list[str]:
        return approvals.missing(envelopes, **self._terms(row), now=moment)

    def _terms(self, row: StudyRow) -> dict[str, Any]:
        study = self.study(row)
        return {
            "treaty": self._treaty,
            "treaty_digest": self._treaty_digest,
            "study": row.digest,
            "author": study.author,
            "purpose": study.purpose,
            "epsilon": study.privacy.epsilon,
        }


class _Refusals:
    """Notes in the audit log that what is done inside the `with` was refused, and with which code.

    The message is not logged: it may quote what was sent, and an entry can't be erased.
    """

    def __init__(self, log: AuditLog, actor: str, action: str, body: bytes) -> None:
        self._note: Callable[[str], object] = lambda code: log.append(
            actor, action, self.subject, {"code": code}
        )
        self.subject = hashlib.sha256(body).hexdigest()  # until the document's own digest is known

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, FoedusError):
            self._note(code_of(error))


def _envelope(body: bytes) -> Envelope:
    try:
        envelope = Envelope.loads(body)
        envelope.dumps()  # signer names, too, must be what canonical JSON can carry
    except UnicodeError as error:
        raise InputError("not a signed document: it has half a surrogate pair") from error
    return envelope


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
