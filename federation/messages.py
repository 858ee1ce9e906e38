"""What server and nodes say to each other, and how it rides on Flower's Message API.

A message is one Flower record with two bytes fields: `body`, canonical JSON of one of the classes
here, and `data`, raw little-endian numbers (model weights down, masked words up). Everything is parsed
strictly at the border; a node answers with a reply of its action or with `Refusal`, never with anything else.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Self

from flwr.app import ConfigRecord, Message, RecordDict
from pydantic import Field, ValidationError

from ..compliance.auditlog.checkpoint import MAX_NOTE
from ..compliance.treaty import Document
from ..documents import b64, canonical, parse_json, unb64
from ..errors import InputError, ProtocolError, Refused

RECORD = "foedus"
MAX_BODY = 32 << 20
MAX_SILOS = 20_000
Json = dict[str, Any]
Whole = Annotated[int, Field(ge=0, lt=2**53)]
Cosignature = Annotated[str, Field(max_length=400)]
"""A node's line under the head that it has taken (`compliance.auditlog.cosignature`); empty: none."""
Cosigned = Annotated[str, Field(max_length=MAX_NOTE)]
"""A head of the log with the lines of those who have cosigned it."""


class Content(Document):
    """Base of all bodies; `action` names the Flower message type ``query.<action>``."""

    action: ClassVar[str]

    def record(self, data: bytes = b"") -> RecordDict:
        """As the content of a Flower message."""
        body = canonical(self.model_dump(mode="json"))
        return RecordDict({RECORD: ConfigRecord({"action": self.action, "body": body, "data": data})})

    @classmethod
    def read(cls, message: Message) -> tuple[Self, bytes]:
        """The body and data of a Flower message.

        Raises:
            ProtocolError: anything but a well-formed message of this action.
        """
        action, body, data = _fields(message)
        if action != cls.action:
            raise ProtocolError(f"a message {cls.action!r} was expected, this is {action!r}")
        try:
            return cls.model_validate(body), data
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}"
                for e in error.errors(include_input=False, include_url=False)[:4]
            )
            raise ProtocolError(f"malformed {cls.action!r} message: {faults}") from error


def _fields(message: Message) -> tuple[str, Any, bytes]:
    if not message.has_content():
        raise ProtocolError("a message without content")
    content = message.content
    record = content.config_records.get(RECORD)
    if record is None or len(content) != 1 or set(record) != {"action", "body", "data"}:
        raise ProtocolError("not a foedus message")
    action, body, data = record["action"], record["body"], record["data"]
    if not isinstance(action, str) or not isinstance(body, bytes) or not isinstance(data, bytes):
        raise ProtocolError("not a foedus message")
    if len(body) > MAX_BODY:
        raise ProtocolError(f"a message body of {len(body)} bytes is over the limit of {MAX_BODY}")
    try:
        parsed = parse_json(body)
        if b"\\ud" in body.lower():  # an escaped half of a surrogate pair can't be hashed, signed or logged
            json.dumps(parsed, ensure_ascii=False).encode()
    except InputError as error:
        raise ProtocolError(f"malformed {action!r} message: {error.message}") from error
    except UnicodeEncodeError as error:
        raise ProtocolError(f"malformed {action!r} message: half a surrogate pair") from error
    return action, parsed, data


class LogHistory(Document):
    """Every entry of the audit log since the head that the node keeps, so that none can be held back.

    `edge` is the right edge of the tree that the node keeps the root of (`merkle.right_edge`), from which
    the entries, in order, make the tree of the head sent beside it.
    """

    edge: list[str] = Field(max_length=64)
    entries: list[str]

    def edge_bytes(self) -> list[bytes]:
        return _hashes(self.edge)


class LogHead(Document):
    """The audit log's signed head, and the proof that it extends what this node saw last.

    `note` is a C2SP checkpoint; `proof` the RFC 9162 consistency proof from `since`, the size the server
    believes this node saw last. A node that saw another refuses with `LOG_SIZE_UNKNOWN` and its own size.
    Without `history` it refuses: a revocation could be held back.
    """

    note: str = Field(max_length=4096)
    since: Whole
    proof: list[str] = Field(max_length=64)
    history: LogHistory | None = None

    def proof_bytes(self) -> list[bytes]:
        return _hashes(self.proof)


class LoggedEntry(Document):
    """An entry of the audit log with the proof that it is in the head sent beside it."""

    index: Whole
    body: str = Field(max_length=1 << 22)
    proof: list[str] = Field(max_length=64)

    def proof_bytes(self) -> list[bytes]:
        return _hashes(self.proof)


def _hashes(proof: list[str]) -> list[bytes]:
    try:
        return [unb64(h, length=32) for h in proof]
    except InputError as error:
        raise ProtocolError(f"log proof: {error.message}") from error


class KeysRequest(Content):
    """Set-up, trip 1: here is the study and why it may run; advertise keys for these rounds.

    `anchor` is the last entry of the audit log that has a head of this silo's ledger; there may be none.
    """

    action = "keys"
    study: Json
    approvals: list[Json] = Field(max_length=200)
    run: str = Field(pattern=r"^\d{1,20}$")
    batch: Whole
    rounds: list[Whole] = Field(min_length=1, max_length=1000)
    log: LogHead
    started: LoggedEntry
    anchor: LoggedEntry | None = None


class KeysReply(Content):
    """The keys, and the signed head of the node's ledger (`federation.ledger_heads`) for the log to anchor."""

    action = "keys-reply"
    keys: Json
    ledger: Json | None = None
    log_size: Whole
    cosignature: Cosignature = ""


class SharesRequest(Content):
    """Set-up, trip 2: the signed keys of everybody you share with; deal shares.

    `digests` names everybody's keys (silo -> digest) where those sent are not all. `cosigned` is the head of
    trip 1 under a quorum's cosignatures.
    """

    action = "shares"
    run: str
    batch: Whole
    keys: list[Json] = Field(max_length=MAX_SILOS)
    digests: dict[str, str] | None = Field(default=None, max_length=MAX_SILOS)
    cosigned: Cosigned | None = None


class SharesReply(Content):
    action = "shares-reply"
    boxes: dict[str, str]


class ReadyRequest(Content):
    """Set-up, trip 3, on a sparse graph: your boxes, and who dealt shares at all; sign who takes part."""

    action = "ready"
    run: str
    batch: Whole
    boxes: dict[str, str] = Field(max_length=MAX_SILOS)
    participants: list[str] = Field(max_length=MAX_SILOS)


class ReadyReply(Content):
    action = "ready-reply"
    statement: Json


class SumNotice(Document):
    """What a round gave; its total travels packed in `data`, behind what else is there."""

    batch: Whole
    round: Whole
    survivors: list[str] = Field(max_length=MAX_SILOS)
    check: str = Field(pattern=r"^\d{1,19}$", description="the opened check value, decimal")


class VectorRequest(Content):
    """Round, trip 1: the model is in `data`; send your masked vector.

    `boxes` (or on a sparse graph `ready`, what the neighbours stated) comes once a batch; `previous` is the
    sum that was opened last; `cosigned` the last head under a quorum's cosignatures.
    """

    action = "vector"
    run: str
    batch: Whole
    round: Whole
    boxes: dict[str, str] | None = Field(default=None, max_length=MAX_SILOS)
    ready: list[Json] | None = Field(default=None, max_length=MAX_SILOS)
    previous: SumNotice | None = None
    log: LogHead
    cosigned: Cosigned | None = None


class VectorReply(Content):
    """The signed header; the masked words are in `data`."""

    action = "vector-reply"
    header: Json
    log_size: Whole
    cosignature: Cosignature = ""


class ConfirmRequest(Content):
    """Round, on a sparse graph: these silos' vectors are in the sum; sign that you heard so."""

    action = "confirm"
    run: str
    batch: Whole
    round: Whole
    survivors: list[str] = Field(max_length=MAX_SILOS)


class ConfirmReply(Content):
    action = "confirm-reply"
    statement: Json


class AnswerRequest(Content):
    """Round, last trip: these silos' vectors are in the sum; help to open it.

    `answering` are those asked, all of whose answers are needed; on a sparse graph it is empty, and
    `confirmed` holds what a quorum signed. `cosigned` is the head of trip 1 under a quorum's cosignatures.
    """

    action = "answer"
    run: str
    batch: Whole
    round: Whole
    survivors: list[str] = Field(max_length=MAX_SILOS)
    answering: list[str] = Field(max_length=MAX_SILOS)
    confirmed: list[Json] | None = Field(default=None, max_length=MAX_SILOS)
    cosigned: Cosigned | None = None


class AnswerReply(Content):
    action = "answer-reply"
    statement: Json
    seeds: dict[str, str]
    mask_keys: dict[str, str]


class ReceiptRequest(Content):
    """The run is over: sign what it cost your customers, which sums you checked and which log you saw."""

    action = "receipt"
    run: str
    previous: SumNotice | None = None
    log: LogHead


class ReceiptReply(Content):
    action = "receipt-reply"
    receipt: Json
    log_size: Whole
    cosignature: Cosignature = ""


class WitnessRequest(Content):
    """Any time, of any node: here is the log's head; cosign it."""

    action = "witness"
    log: LogHead


class WitnessReply(Content):
    action = "witness-reply"
    log_size: Whole
    cosignature: Cosignature = ""


COSIGNING = KeysReply, VectorReply, ReceiptReply, WitnessReply


LOG_SIZE_UNKNOWN = "LOG_SIZE_UNKNOWN"


class Refusal(Content):
    """A node's no. `code` and `message` never depend on its data beyond the fact of refusal.

    `log_size` tells a server that lost count which consistency proof the node needs; with ``NO_QUORUM`` comes the
    node's own cosignature of that head, lest all wait for each other.
    """

    action = "refusal"
    code: str = Field(max_length=64)
    message: str = Field(max_length=2000)
    log_size: Whole
    cosignature: Cosignature = ""

    def error(self) -> Refused:
        return Refused(self.code, self.message)


def refusal_in(message: Message) -> Refusal | None:
    """The refusal a reply holds, if it is one."""
    if _fields(message)[0] != Refusal.action:
        return None
    return Refusal.read(message)[0]


def boxes_to_json(boxes: dict[str, bytes]) -> dict[str, str]:
    return {name: b64(value) for name, value in boxes.items()}


def boxes_from_json(boxes: dict[str, str], *, length: int | None = None) -> dict[str, bytes]:
    """Decode named base64 values.

    Raises:
        ProtocolError: not base64 of the given length.
    """
    try:
        return {name: unb64(value, length=length, what=name) for name, value in boxes.items()}
    except InputError as error:
        raise ProtocolError(error.message) from error
