"""Approvals: who must agree to a study before it may touch a customer, each by signature.

An approval is a signed document over the study's digest, with the approver's level, the time, the
purpose and the ε they agreed to: changing the study voids it. Four eyes: nobody approves their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import Field, ValidationError

from ..documents import Envelope, SigningKey
from ..errors import InputError, Refused, VerificationError
from .treaty import Approver, Document, Level, Name, Treaty, explain

KIND = "approval"
_CLOCK_SKEW = timedelta(minutes=5)


class Approval(Document):
    """What an approver signs."""

    study: str = Field(pattern=r"^[0-9a-f]{64}$", description="digest of the study")
    treaty: str = Field(pattern=r"^[0-9a-f]{64}$", description="digest of the treaty")
    approver: Name
    level: Level
    party: Name | None = None
    purpose: str
    epsilon: float = Field(gt=0)
    decision: Literal["approve", "reject"]
    time: str = Field(description="RFC 3339, UTC")
    expires: str = Field(description="RFC 3339, UTC")


def decide(
    approver: Approver,
    key: SigningKey,
    *,
    study: str,
    treaty: str,
    purpose: str,
    epsilon: float,
    expires: datetime,
    decision: Literal["approve", "reject"] = "approve",
    now: datetime | None = None,
) -> Envelope:
    """An approval (or rejection) signed by `approver`."""
    content = Approval(
        study=study,
        treaty=treaty,
        approver=approver.name,
        level=approver.level,
        party=approver.party,
        purpose=purpose,
        epsilon=epsilon,
        decision=decision,
        time=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
        expires=expires.isoformat(timespec="seconds"),
    )
    return Envelope(KIND, content.model_dump(mode="json")).signed(approver.name, key)


def parse(envelope: Envelope) -> Approval:
    """The approval in an envelope, its signature not yet checked."""
    if envelope.kind != KIND:
        raise InputError(f"an approval was expected, this is a {envelope.kind!r}")
    try:
        return Approval.model_validate(envelope.payload)
    except ValidationError as error:
        raise explain(error, "approval") from error


def verify_one(envelope: Envelope, treaty: Treaty, *, treaty_digest: str) -> Approval:
    """Check one approval's signature against the treaty's list of approvers.

    Raises:
        VerificationError: unknown approver, wrong level or party, another treaty, bad signature.
    """
    approval = parse(envelope)
    if approval.treaty != treaty_digest:
        raise VerificationError(f"the approval by {approval.approver} is under another treaty")
    for approver in treaty.approvers:
        if (approver.name, approver.level, approver.party) == (
            approval.approver,
            approval.level,
            approval.party,
        ):
            envelope.check(KIND, approver.name, approver.signing_key)
            return approval
    raise VerificationError(f"{approval.approver} is no {approval.level} approver of the treaty")


def missing(
    envelopes: Iterable[Envelope],
    treaty: Treaty,
    *,
    treaty_digest: str,
    study: str,
    author: str,
    purpose: str,
    epsilon: float,
    now: datetime | None = None,
) -> list[str]:
    """The seats of the approval chain not yet filled, e.g. ``["dpo", "partner shop-b"]``.

    An approval fills a seat if it is signed by one of the seat's approvers, is for this study, purpose
    and at least this ε, has not expired, and neither its name nor its key is the author's.

    Raises:
        Refused: somebody rejected the study, or its author approved it.
        VerificationError: an approval does not hold.
    """
    moment = now or datetime.now(UTC)
    author_key = treaty.scientist(author).signing_key
    filled: set[tuple[str, str | None]] = set()
    for envelope in envelopes:
        approval = verify_one(envelope, treaty, treaty_digest=treaty_digest)
        if approval.study != study:
            raise VerificationError(f"the approval by {approval.approver} is for another study")
        key = next(a.signing_key for a in treaty.approvers if a.name == approval.approver)
        if approval.approver == author or key == author_key:
            raise Refused("SELF_APPROVAL", f"{author} wrote this study and can't approve it (four eyes)")
        if approval.decision == "reject":
            raise Refused("STUDY_REJECTED", f"{approval.approver} ({approval.level}) rejected the study")
        if _time(approval.expires) <= moment or _time(approval.time) > moment + _CLOCK_SKEW:
            continue
        if approval.purpose == purpose and approval.epsilon >= epsilon:
            filled.add((approval.level, approval.party))
    seats: list[tuple[str, str | None]] = []
    for level in treaty.approval_chain:
        seats += [(level, p.name) for p in treaty.parties] if level == "partner" else [(level, None)]
    return [f"{level} {party}" if party else level for level, party in seats if (level, party) not in filled]


def require(
    envelopes: Iterable[Envelope],
    treaty: Treaty,
    *,
    treaty_digest: str,
    study: str,
    author: str,
    purpose: str,
    epsilon: float,
    now: datetime | None = None,
) -> None:
    """Raise Refused unless every seat of the approval chain is filled (see `missing`)."""
    seats = missing(
        envelopes,
        treaty,
        treaty_digest=treaty_digest,
        study=study,
        author=author,
        purpose=purpose,
        epsilon=epsilon,
        now=now,
    )
    if seats:
        raise Refused(
            "APPROVAL_MISSING",
            f"study {study[:12]}: not approved by {', '.join(seats)}",
            remedy="each missing approver signs with `foedus study approve`",
        )


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"approval: {text!r} is not an RFC 3339 time") from error
    if moment.tzinfo is None:
        raise InputError(f"approval: {text!r} has no time zone")
    return moment
