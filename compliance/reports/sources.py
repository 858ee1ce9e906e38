"""What a report may rest on: the entries of audit logs, and documents that such an entry has the digest of.

Two logs at most: the server's, from a bundle that `foedus verify` has passed, and that of one node. Whoever
makes `Sources` has verified the bundle before: what is here only reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path as File
from typing import Any

from ...documents import Envelope, parse_json
from ...errors import InputError, VerificationError
from ...privacy.ledger import Ledger
from ..auditlog.log import AuditLog
from ..auditlog.merkle import leaf_hash, root_from_leaves
from ..treaty import Treaty
from ..treaty import parse as parse_treaty

Json = Any
Path = tuple[str | int, ...]
SERVER, NODE = "server", "node"
STUDY, TREATY, MODEL, METRICS, LEDGER = (
    "study.json",
    "treaty.json",
    "release/model.json",
    "release/metrics.json",
    "ledger.db",
)


@dataclass(frozen=True)
class Entry:
    """An entry of a log. `log` is SERVER or NODE; `leaf` its leaf hash, hex."""

    log: str
    index: int
    body: str
    leaf: str
    record: Mapping[str, Any]

    @property
    def place(self) -> tuple[str, int]:
        return self.log, self.index


@dataclass(frozen=True)
class Log:
    """A log as it stands in a bundle or a node's directory."""

    name: str
    origin: str
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, name: str, origin: str, bodies: Iterable[bytes]) -> Log:
        """From the bytes of its entries, oldest first."""
        entries = [
            Entry(name, index, body.decode(), leaf_hash(body).hex(), parse_json(body))
            for index, body in enumerate(bodies)
        ]
        return cls(name, origin, tuple(entries))

    @cached_property
    def root(self) -> str:
        return root_from_leaves([bytes.fromhex(e.leaf) for e in self.entries]).hex()

    def find(self, action: str, subject: str | None = None, **details: Json) -> list[Entry]:
        """The entries of an action (and subject), whose details have these values."""
        return [
            e
            for e in self.entries
            if e.record["action"] == action
            and subject in (None, e.record["subject"])
            and all(e.record["details"].get(key) == value for key, value in details.items())
        ]


@dataclass(frozen=True)
class Document:
    """A document beside a log: its digest, as an entry or another document has it, and its content."""

    digest: str
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class Sources:
    """A verified bundle, and perhaps a node's directory.

    `party` is the node's; empty without one.
    """

    server: Log
    documents: Mapping[str, Document]
    study: str
    run: str
    node: Log | None = None
    party: str = ""
    logs: tuple[Log, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "logs", (self.server, *([self.node] if self.node else [])))

    @classmethod
    def of_bundle(cls, files: Mapping[str, bytes], study: str, run: str) -> Sources:
        """From the files of a bundle that was verified, for the study (digest) and run it is about."""
        envelopes = {TREATY: Envelope.loads(files[TREATY]), STUDY: Envelope.loads(files[STUDY])}
        for name in (MODEL, METRICS):
            if name in files:
                envelopes[name] = Envelope.loads(files[name])
        for value in parse_json(files["approvals.json"]):
            approval = Envelope.from_json(value)
            envelopes[f"approval of {approval.payload['approver']}"] = approval
        for value in parse_json(files["receipts.json"]):
            receipt = Envelope.from_json(value)
            envelopes[f"receipt of {receipt.payload['silo']}"] = receipt
        treaty = parse_treaty(envelopes[TREATY])
        log = Log.of(SERVER, treaty.coordinator.origin, files["log/entries.jsonl"].splitlines())
        documents = {name: Document(e.digest, e.payload) for name, e in envelopes.items()}
        return cls(log, documents, study, run)

    def with_node(self, directory: File, party: str, size: int | None = None) -> Sources:
        """The same, and a node's own log and ledger, both checked.

        Args:
            size: take the log's first `size` entries, as they were when a report was made; all by default.

        Raises:
            InputError: not a node's directory, or one that had no part in the study.
            VerificationError: its log or ledger was altered, or is not the one that its receipt speaks of.
        """
        log = AuditLog(directory / "audit.db", f"foedus node {party}", create=False)
        log.check()
        if size is not None and not 0 <= size <= log.size:
            raise VerificationError(
                f"{directory}: its log has {log.size} entries, the report cites one of {size}"
            )
        own = Log.of(NODE, log.origin, (entry.body for entry in log.entries(0, size)))
        if not own.find("study.accepted", self.study, run=self.run):
            raise InputError(f"{directory}: this node did not accept study {self.study[:12]}, run {self.run}")
        receipt = self.documents.get(f"receipt of {party}")
        noted = {str(e.record["details"]["round"]): e for e in own.find("cohort", self.study, run=self.run)}
        for number, leaf in (receipt.payload["cohorts"] if receipt else {}).items():
            if number not in noted or noted[number].leaf != leaf:
                raise VerificationError(
                    f"{directory}: the cohort of round {number} in its log is not the one its receipt names"
                )
        documents = dict(self.documents)
        if (ledger := self._ledger(directory, party, own)) is not None:
            documents[LEDGER] = ledger
        return Sources(self.server, documents, self.study, self.run, own, party)

    def _ledger(self, directory: File, party: str, log: Log) -> Document | None:
        """What the ledger said of the study's purpose when its last head in the node's log was taken."""
        heads = log.find("ledger.head")
        if not heads or not (directory / LEDGER).is_file():
            return None
        ledger, head = Ledger(directory / LEDGER, party), heads[-1].record["details"]
        ledger.verify()
        if ledger.hash_at(head["size"]) != head["hash"]:
            raise VerificationError(
                f"{directory}: the ledger does not continue the head of {head['size']} lines in the node's log",
                remedy="foedus ledger verify NODE says more; no report is made from a ledger that was changed",
            )
        lines = list(ledger.lines())[: head["size"]]
        purpose = self.documents[STUDY].payload["purpose"]
        delta = self.treaty.terms(purpose).delta
        latest = {line.ref: line for line in lines if line.purpose == purpose}
        spent = ledger.account()
        for event, count in Counter(line.cost for line in latest.values() if line.event is not None).items():
            spent.compose(event, count)
        lost = any(line.kind == "written-off" for line in lines)  # what that was is unknown
        told = {"lines": len(lines), "purpose": purpose, "delta": delta}
        return Document(head["hash"], told | {"epsilon": None if lost else spent.epsilon(delta)})

    @cached_property
    def treaty(self) -> Treaty:
        return parse_treaty(Envelope("treaty", dict(self.documents[TREATY].payload)))

    def log(self, name: str) -> Log:
        """SERVER's or NODE's.

        Raises:
            InputError: there is no such log here.
        """
        for log in self.logs:
            if log.name == name:
                return log
        raise InputError(
            f"the report cites the log of a {name}, which was not given",
            remedy="give the node's directory with --node" if name == NODE else "",
        )

    def bound(self, entry: Entry, document: str) -> Mapping[str, Any]:
        """The record of `entry`; or the content of a document, once it is seen that the entry has its digest.

        The study is an entry's subject; approvals, receipts and releases stand in its details; the treaty
        stands in the study; the ledger's head in the node's log.

        Raises:
            VerificationError: the entry says nothing of this document.
        """
        if not document:
            return entry.record
        if document not in self.documents:
            raise VerificationError(f"there is no document {document!r} here")
        digest = self.documents[document].digest
        held = {entry.record["subject"], *(entry.record["details"].get(k) for k in ("approval", "digest"))}
        if document == LEDGER:
            held = {entry.record["details"].get("hash")} if entry.log == NODE else set()
        if document == TREATY and self.documents[STUDY].digest in held:
            held = {self.documents[STUDY].payload["treaty"]}
        if digest not in held:
            raise VerificationError(
                f"entry {entry.index} of the {entry.log}'s log does not hold the digest of {document}"
            )
        return self.documents[document].payload

    # ── entries that all reports use ─────────────────────────────────────────────────────────────

    def mine(self, action: str, **details: Json) -> list[Entry]:
        """The server's entries of the study, and of its run where they name one."""
        return [
            e
            for e in self.server.find(action, self.study, **details)
            if e.record["details"].get("run") in (None, self.run)
        ]

    @property
    def submitted(self) -> Entry:
        return self.mine("study.submitted")[0]

    @property
    def started(self) -> Entry:
        return self.mine("run.started")[0]

    @property
    def released(self) -> list[Entry]:
        return self.mine("released")

    @property
    def last(self) -> Entry:
        """The last entry about the run."""
        return [
            e
            for e in self.server.entries[self.started.index :]
            if e.record["subject"] == self.study and e.record["details"].get("run") == self.run
        ][-1]

    @property
    def ended(self) -> datetime:
        """When the last entry about the run was made."""
        return datetime.fromisoformat(str(self.last.record["time"]))

    def own(self, action: str, **details: Json) -> list[Entry]:
        """The node's entries of the study and its run; none without a node."""
        if self.node is None:
            return []
        return self.node.find(action, self.study, run=self.run, **details)


def at(content: Json, path: Sequence[str | int]) -> Json:
    """The value at a path of keys and indices.

    Raises:
        VerificationError: there is none.
    """
    for step in path:
        key = isinstance(content, Mapping) and isinstance(step, str) and step in content
        if not key and not (isinstance(content, list) and type(step) is int and 0 <= step < len(content)):
            raise VerificationError(f"there is no value at {'.'.join(map(str, path))}")
        content = content[step]
    return content
