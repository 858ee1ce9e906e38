"""The secure sum over Flower's Message API: set-up in two trips, every round in two (three each on a sparse graph).

A trip is one message to every node still present and their replies, with its own deadline: Flower
itself notices a dead node only after up to 60 s, and its `send_and_receive` sleeps 3 s at a time.

What a process that was killed left behind can be taken up (`restore`, `restore_round`): nodes give the
very same reply to the very same question, so a trip that may have been made is simply made again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from ..compliance.auditlog.cosignature import NO_QUORUM
from ..documents import Envelope, Payload
from ..errors import FoedusError, ProtocolError
from ..privacy.noise import discrete_gaussian
from ..privacy.secagg.aggregator import Aggregator
from ..privacy.secagg.keys import Context, Roster
from ..privacy.secagg.rings import Integers
from . import messages as m
from .cosigning import Nobody, Witnesses
from .modes import Sampler
from .rounds import RoundPlan

Observe = Callable[[str, Mapping[str, Any]], None]
Reply = TypeVar("Reply", bound=m.Content)
HeadFor = Callable[[str], m.LogHead]
Closed = Callable[[int], None]
_POLL = 0.02
_WOKEN = 0.3  # seconds: the longest wait where the transport wakes us when a reply is in
SET_UP_PATIENCE = 4.0
# Why a silo is out, as this side calls it; a refusal has the node's own code.
SILENT, NODE_FAILED, BAD_REPLY, ABSENT = "SILENT", "NODE_FAILED", "BAD_REPLY", "ABSENT"
ALREADY_DONE = "ALREADY_DONE"


@dataclass
class Silence:
    """Why a silo is out of the rest of a batch."""

    silo: str
    code: str
    message: str
    log_size: int | None = None


@dataclass(frozen=True)
class Sum:
    """What a round gave: the noisy total and its check value, over whom, and the signed transcript.

    `data` is what the round was for: the model as it was sent.
    """

    plan: RoundPlan
    batch: int
    total: Integers
    check: int
    survivors: tuple[str, ...]
    transcript: Mapping[str, Sequence[Envelope]]
    data: bytes

    @property
    def round(self) -> int:
        return self.plan.round

    def notice(self) -> tuple[m.SumNotice, bytes]:
        """What nodes are told of it, and the packed total."""
        told = m.SumNotice(
            batch=self.batch, round=self.round, survivors=list(self.survivors), check=str(self.check)
        )
        return told, self.plan.ring.pack(self.plan.ring.wrap(self.total))


@dataclass
class SecureSum:
    """One batch of rounds with the silos reachable at its start.

    Args:
        nodes: silo -> Flower node id.
        seconds: deadline of one trip; set-up, for which a silo reads its table for the first time, has
            `SET_UP_PATIENCE` times as long.
        head: the log head to send to a silo (it differs: each has seen another size).
        closed: called with a round's number when its survivors stand and before anybody is asked to open
            their sum: what is not on disk then could be asked for twice, over different survivors.
        observe: called with (kind, data) as things happen.
        last: the sum opened last before this batch, to be shown to the nodes.
        sampler: what draws the noise in the mode where the server adds it.
        pause: waits up to so many seconds for replies; a transport that can be woken passes its own.
        ledger: judges and keeps the head of its ledger that a silo states; it raises, and the silo is out.
        witnesses: collects what silos cosign of the log, and gives what to show them of it.
    """

    grid: Grid
    nodes: Mapping[str, int]
    roster: Roster
    context: Context
    seconds: float
    head: HeadFor
    acknowledge: Callable[[str, int], None]
    closed: Closed = lambda number: None
    observe: Observe = lambda kind, data: None
    pause: Callable[[float], None] = time.sleep
    ledger: Callable[[str, m.Json | None], None] = lambda silo, stated: None
    last: Sum | None = None
    sampler: Sampler = discrete_gaussian
    witnesses: Witnesses = field(default_factory=Nobody)
    out: dict[str, Silence] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.aggregator = Aggregator(self.roster, self.context)
        self._told: set[str] = set()  # silos that have what each gets once a batch
        self._knocks: dict[str, str] = {}  # message id -> silo
        self._restored: set[int] = set()

    @property
    def present(self) -> list[str]:
        """The silos not yet given up, sorted."""
        return sorted(s for s in self.nodes if s not in self.out)

    def set_up(self, request: Callable[[str], m.KeysRequest], *, patience: float = SET_UP_PATIENCE) -> None:
        """Both set-up trips.

        Args:
            patience: times `seconds`, how long either may take.

        Raises:
            Abandoned: fewer than t silos took part.
        """
        patience *= self.seconds
        replies = self._trip("keys", self.present, lambda s: (request(s), b""), m.KeysReply, patience)
        for silo, (reply, _) in replies.items():
            self.acknowledge(silo, reply.log_size)
            self._take(silo, partial(self._add_keys, silo, reply))
        self.aggregator.require(len(self.present), "set-up, keys")
        aggregator, run, batch = self.aggregator, self.context.run, self.context.batch
        sparse = aggregator.topology.sparse
        digests = aggregator.digests if sparse else None
        everybody = None if sparse else [e.to_json() for e in aggregator.advertisements]

        def shares(silo: str) -> tuple[m.Content, bytes]:
            keys = everybody or [e.to_json() for e in aggregator.keys_for(silo)]
            cosigned = self.witnesses.shown()
            request = m.SharesRequest(run=run, batch=batch, keys=keys, digests=digests, cosigned=cosigned)
            return request, b""

        dealt = self._trip("shares", self.present, shares, m.SharesReply, patience)
        for silo, (answer, _) in dealt.items():
            self._take(silo, partial(self._add_boxes, silo, answer))
        self.aggregator.require(len(self.present), "set-up, shares")
        if sparse:
            self._make_ready(patience)
        self.observe("set-up", {"participants": list(self.aggregator.participants)})

    def _make_ready(self, patience: float) -> None:
        aggregator, run, batch = self.aggregator, self.context.run, self.context.batch
        participants = list(aggregator.participants)

        def request(silo: str) -> tuple[m.Content, bytes]:
            boxes = m.boxes_to_json(aggregator.boxes_for(silo))
            return m.ReadyRequest(run=run, batch=batch, boxes=boxes, participants=participants), b""

        for silo, (reply, _) in self._trip("ready", self.present, request, m.ReadyReply, patience).items():
            self._take(silo, partial(self._add_ready, silo, reply))
        aggregator.require(len(self.present), "set-up, participants")

    def restore(self, state: Payload) -> None:
        """Take up a batch whose set-up is finished; who had no part in it, or is not there now, is out."""
        self.aggregator.restore_set_up(state)
        for silo in self.nodes:
            if silo not in self.aggregator.participants:
                self.out[silo] = Silence(silo, ABSENT, "was not there at the set-up of this batch")

    def restore_round(self, number: int, state: Payload, total: bytes) -> None:
        """Take up a round whose survivors stand: `round` goes on with the trips that open it."""
        self.aggregator.restore_round(number, state, total)
        self._restored.add(number)

    def time_to_live(self) -> float:
        """Seconds after which a message of a trip of the usual length is dropped, whoever has not taken it."""
        return max(60.0, 2 * self.seconds)

    def knock(self, silo: str, request: m.KeysRequest) -> None:
        """Send one silo set-up's first message and don't wait: `heard` tells whether it has come back.

        The batch of a knock is never used for a sum.
        """
        self._knocks |= self._push("keys", [silo], lambda _: (request, b""), self.seconds)

    def heard(self) -> dict[str, Silence | None]:
        """Who has answered a knock so far: None if it advertised keys, or why it did not."""
        found: dict[str, Silence | None] = {}
        for message in self.grid.pull_messages(list(self._knocks)) if self._knocks else ():
            silo = self._knocks.pop(message.metadata.reply_to_message_id, None)
            if silo is None:
                continue
            try:
                reply, _ = self._read(message, m.KeysReply)
                self._add_keys(silo, reply)
                self._take_cosignature(silo, reply)
                self.acknowledge(silo, reply.log_size)
                found[silo] = None
            except _Out as out:
                if out.log_size is not None:
                    self.acknowledge(silo, out.log_size)
                found[silo] = Silence(silo, out.code, out.message, out.log_size)
            except FoedusError as error:
                found[silo] = Silence(silo, BAD_REPLY, error.message)
        return found

    def round(self, plan: RoundPlan, data: bytes) -> Sum:
        """One secure sum.

        Args:
            plan: its number, what it is for, its shape. data: what the nodes need for it (the model).

        Raises:
            Abandoned: fewer than t silos answered at some trip; nothing is revealed.
        """
        # Who sent this round's vector in an earlier batch sends no other; it may send the next one's.
        self.out = {s: silence for s, silence in self.out.items() if silence.code != ALREADY_DONE}
        if plan.round not in self._restored:
            self._collect(plan, data)
        self.last = self._open(plan, data)
        return self.last

    def _collect(self, plan: RoundPlan, data: bytes) -> None:
        """Trip 1: the masked vectors; the survivors stand when it returns."""
        aggregator, run, batch, number = self.aggregator, self.context.run, self.context.batch, plan.round
        model = hashlib.sha256(data).hexdigest()
        aggregator.open_round(number, plan.dimension, plan.task, plan.ring, model=model)
        previous, shown = (None, b"") if self.last is None else self.last.notice()
        sparse = aggregator.topology.sparse

        def request(silo: str) -> tuple[m.Content, bytes]:
            first = silo not in self._told
            boxes = m.boxes_to_json(aggregator.boxes_for(silo)) if first and not sparse else None
            ready = [e.to_json() for e in aggregator.ready_for(silo).values()] if first and sparse else None
            content = m.VectorRequest(
                run=run,
                batch=batch,
                round=number,
                boxes=boxes,
                ready=ready,
                previous=previous,
                log=self.head(silo),
                cosigned=self.witnesses.shown(),
            )
            return content, data + shown

        for silo, (reply, words) in self._trip("vector", self.present, request, m.VectorReply).items():
            self._told.add(silo)
            self.acknowledge(silo, reply.log_size)
            self._take(silo, partial(self._add_vector, number, silo, reply, words))
        aggregator.survivors(number)
        self.closed(number)

    def _open(self, plan: RoundPlan, data: bytes) -> Sum:
        """The trips that open the sum over the survivors, and nothing else."""
        aggregator, number = self.aggregator, plan.round
        survivors = aggregator.survivors(number)
        confirmed = self._confirmed(number, survivors) if aggregator.topology.sparse else None
        while True:
            asked = aggregator.ask(number)
            request = m.AnswerRequest(
                run=self.context.run,
                batch=self.context.batch,
                round=number,
                survivors=list(survivors),
                answering=[] if confirmed else list(asked),
                confirmed=confirmed,
            )
            present = [s for s in asked if s not in self.out]
            replies = self._trip("answer", present, partial(self._with_head, request), m.AnswerReply)
            for silo, (answer, _) in replies.items():
                self._take(silo, partial(self._add_answer, number, silo, answer))
            if aggregator.answered(number):
                break
        opened = aggregator.total(number)
        transcript = aggregator.transcript(number)
        # Here and not later, so that in the central mode nothing else ever holds the exact sum. Noise is drawn
        # anew only for a sum that was not kept, and so was shown to nobody: the checkpoint has all others.
        total, check = plan.mode.at_server(opened.total, opened.check, plan.sigma, self.sampler)
        return Sum(plan, self.context.batch, total, check, survivors, transcript, data)

    def _confirmed(self, number: int, survivors: Sequence[str]) -> list[m.Json]:
        """On a sparse graph: a quorum's word on the survivors."""
        run, batch = self.context.run, self.context.batch
        ask = m.ConfirmRequest(run=run, batch=batch, round=number, survivors=list(survivors))
        asked = [s for s in self.present if s in survivors]
        replies = self._trip("confirm", asked, partial(_same, ask), m.ConfirmReply)
        for silo, (reply, _) in replies.items():
            self._take(silo, partial(self._add_confirmation, number, silo, reply))
        return [envelope.to_json() for envelope in self.aggregator.confirmed(number).values()]

    def _with_head(self, request: m.AnswerRequest, _silo: str) -> tuple[m.Content, bytes]:
        return request.model_copy(update={"cosigned": self.witnesses.shown()}), b""

    def cosign(self) -> None:
        """Show every node there is the log's head, to be cosigned; who does not is out."""
        request = lambda silo: (m.WitnessRequest(log=self.head(silo)), b"")
        for silo, (reply, _) in self._trip("witness", self.present, request, m.WitnessReply).items():
            self.acknowledge(silo, reply.log_size)

    def receipts(self) -> dict[str, Envelope]:
        """Every present node's signed statement of what the run cost and which log it saw."""
        found: dict[str, Envelope] = {}
        previous, shown = (None, b"") if self.last is None else self.last.notice()

        def request(silo: str) -> tuple[m.Content, bytes]:
            content = m.ReceiptRequest(run=self.context.run, previous=previous, log=self.head(silo))
            return content, shown

        for silo, (reply, _) in self._trip("receipt", self.present, request, m.ReceiptReply).items():
            self.acknowledge(silo, reply.log_size)
            self._take(silo, partial(self._add_receipt, found, silo, reply))
        return found

    def _add_receipt(self, found: dict[str, Envelope], silo: str, reply: m.ReceiptReply) -> None:
        envelope = Envelope.from_json(reply.receipt)
        envelope.check("receipt", silo, self.roster.key(silo))
        told = {name: envelope.payload.get(name) for name in ("silo", "study", "run")}
        if told != {"silo": silo, "study": self.context.study, "run": self.context.run}:
            raise ProtocolError(f"the receipt of {silo} is of another silo, study or run")
        self.ledger(silo, envelope.payload.get("ledger"))
        found[silo] = envelope

    def _add_keys(self, silo: str, reply: m.KeysReply) -> None:
        self.ledger(silo, reply.ledger)
        self.aggregator.add_advertisement(silo, Envelope.from_json(reply.keys))

    def _add_boxes(self, silo: str, reply: m.SharesReply) -> None:
        self.aggregator.add_boxes(silo, m.boxes_from_json(reply.boxes))

    def _add_ready(self, silo: str, reply: m.ReadyReply) -> None:
        self.aggregator.add_ready(silo, Envelope.from_json(reply.statement))

    def _add_confirmation(self, number: int, silo: str, reply: m.ConfirmReply) -> None:
        self.aggregator.add_confirmation(number, silo, Envelope.from_json(reply.statement))

    def _add_vector(self, number: int, silo: str, reply: m.VectorReply, words: bytes) -> None:
        self.aggregator.add_vector(number, silo, words, Envelope.from_json(reply.header))

    def _add_answer(self, number: int, silo: str, reply: m.AnswerReply) -> None:
        self.aggregator.add_answer(
            number,
            silo,
            Envelope.from_json(reply.statement),
            m.boxes_from_json(reply.seeds, length=32),
            m.boxes_from_json(reply.mask_keys, length=32),
        )

    def _take(self, silo: str, step: Callable[[], Any]) -> None:
        """Run a check of one silo's reply; what does not hold puts that silo out, not the round."""
        try:
            step()
        except FoedusError as error:
            self._give_up(Silence(silo, BAD_REPLY, error.message))

    def _give_up(self, silence: Silence) -> None:
        self.out[silence.silo] = silence
        self.observe("silo-out", {"silo": silence.silo, "code": silence.code, "message": silence.message})

    def _trip(
        self,
        action: str,
        silos: Sequence[str],
        request: Callable[[str], tuple[m.Content, bytes]],
        reply: type[Reply],
        seconds: float | None = None,
    ) -> dict[str, tuple[Reply, bytes]]:
        """Send one message each, wait for all replies or the deadline; the silent and the refusing are out.

        A silo that has seen another size of the log than we believed is asked once more, with that size. So is one
        that misses a quorum on the head it keeps: its own cosignature came with its no, and those of the others come
        with their replies.
        """
        with self.witnesses.one_head():
            replies = self._exchange(action, silos, request, reply, seconds)
        self.witnesses.keep()
        return replies

    def _exchange(
        self,
        action: str,
        silos: Sequence[str],
        request: Callable[[str], tuple[m.Content, bytes]],
        reply: type[Reply],
        seconds: float | None,
    ) -> dict[str, tuple[Reply, bytes]]:
        started, limit = time.monotonic(), self.seconds if seconds is None else seconds
        waiting = self._push(action, silos, request, limit)
        replies: dict[str, tuple[Reply, bytes]] = {}
        corrected: set[str] = set()
        doubting: dict[str, _Out] = {}  # silos that miss a quorum
        convinced: set[str] = set()
        # From here: on an in-process Grid the silos do all their work inside push_messages.
        deadline = time.monotonic() + limit
        while (waiting or doubting) and time.monotonic() < deadline:
            pulled = list(self.grid.pull_messages(list(waiting)))
            for message in pulled:
                silo = waiting.pop(message.metadata.reply_to_message_id, None)
                if silo is None:
                    continue
                try:
                    found = self._read(message, reply)
                    self._take_cosignature(silo, found[0])
                    replies[silo] = found
                except _Out as out:
                    if out.code == NO_QUORUM and out.log_size is not None and silo not in convinced:
                        self._hear_doubt(silo, out, doubting)
                    elif (
                        out.code == m.LOG_SIZE_UNKNOWN and out.log_size is not None and silo not in corrected
                    ):
                        corrected.add(silo)
                        self.acknowledge(silo, out.log_size)
                        pushing = time.monotonic()
                        waiting |= self._push(action, [silo], request, limit)
                        deadline += time.monotonic() - pushing
                    else:
                        if out.log_size:  # it may be asked to cosign, or be back in a later batch
                            self.acknowledge(silo, out.log_size)
                        self._give_up(Silence(silo, out.code, out.message, out.log_size))
            ready = [s for s, doubt in doubting.items() if self.witnesses.reached(doubt.log_size or 0)]
            if ready:
                convinced |= set(ready)
                doubting = {s: doubt for s, doubt in doubting.items() if s not in convinced}
                pushing = time.monotonic()
                waiting |= self._push(action, ready, request, limit)
                deadline += time.monotonic() - pushing
            elif doubting and not waiting:
                break  # nobody is left who could cosign
            if waiting and not pulled:
                self.pause(_POLL if self.pause is time.sleep else _WOKEN)
        for silo in waiting.values():
            self._give_up(Silence(silo, "SILENT", f"no reply to {action!r} within {limit:g} s"))
        for silo, doubt in doubting.items():
            self._give_up(Silence(silo, doubt.code, doubt.message, doubt.log_size))
        self.observe(
            "trip", {"action": action, "seconds": time.monotonic() - started, "replies": len(replies)}
        )
        return replies

    def _hear_doubt(self, silo: str, out: _Out, doubting: dict[str, _Out]) -> None:
        """A silo that misses a quorum on the head it keeps: it waits for one, if it has itself cosigned that head."""
        size = out.log_size or 0
        try:
            self.witnesses.take(silo, size, out.cosignature)
        except FoedusError:
            self._give_up(Silence(silo, out.code, out.message, out.log_size))
        else:
            self.acknowledge(silo, size)
            doubting[silo] = out

    def _take_cosignature(self, silo: str, reply: m.Content) -> None:
        """Raises _Out: it does not hold."""
        if isinstance(reply, m.COSIGNING):
            try:
                self.witnesses.take(silo, reply.log_size, reply.cosignature)
            except FoedusError as error:
                raise _Out(BAD_REPLY, error.message) from error

    def _push(
        self,
        action: str,
        silos: Sequence[str],
        request: Callable[[str], tuple[m.Content, bytes]],
        limit: float,
    ) -> dict[str, str]:
        """Send a silo each its message; message id -> silo."""
        outgoing = []
        for silo in silos:
            content, data = request(silo)
            outgoing.append(
                Message(
                    content.record(data),
                    dst_node_id=self.nodes[silo],
                    message_type=f"query.{action}",
                    group_id=f"{self.context.batch}",
                    ttl=max(60.0, 2 * limit),
                )
            )
        return dict(zip(self.grid.push_messages(outgoing), silos, strict=True))

    def _read(self, message: Message, reply: type[Reply]) -> tuple[Reply, bytes]:
        if message.has_error():
            raise _Out(NODE_FAILED, f"the node answered with an error (code {message.error.code})")
        try:
            refusal = m.refusal_in(message)
            if refusal is None:
                return reply.read(message)
        except FoedusError as error:
            raise _Out(BAD_REPLY, error.message) from error
        raise _Out(refusal.code, refusal.message, refusal.log_size, refusal.cosignature)


def _same(content: m.Content, _silo: str) -> tuple[m.Content, bytes]:
    """One message for every silo, and nothing beside it."""
    return content, b""


class _Out(Exception):
    def __init__(self, code: str, message: str, log_size: int | None = None, cosignature: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.log_size, self.cosignature = code, message, log_size, cosignature
