"""The rest of check 13: malformed Flower messages to the node's loop, and malformed replies to the server."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesResponse
from flwr.proto.message_pb2 import ObjectTree
from redteam.checks import Check, Outcome
from redteam.fuzz import CASES, SEED, STATES, Findings, fuzz_node
from redteam.mutations import Mutator, example
from redteam.node_support import quiet
from support.sums import BOUND, RING, Cast, scratch, vectors

from foedus.clients import fleet
from foedus.clients.app import SiloApp
from foedus.clients.connection import Denied, Lost
from foedus.clients.follower import digest
from foedus.documents import Envelope, b64, canonical, parse_json
from foedus.errors import Abandoned, FoedusError
from foedus.federation import messages as m
from foedus.federation.rounds import RoundPlan
from foedus.federation.secure_sum import SecureSum
from foedus.federation.simulation import LocalGrid
from foedus.privacy.secagg.check import P
from foedus.privacy.secagg.codec import Whole
from foedus.privacy.secagg.statements import shares_digest

TYPES = (
    "",
    "query.",
    ".",
    "query.keys-reply",
    "query.a.b",
    "x",
    "query.\x00",
    "train.1",
    "system",
    "query." + "k" * 9999,
)


class Wire:
    """A server that answers the node's loop with anything; in place of its TLS connection."""

    public_pem = b""

    def __init__(self) -> None:
        self.next = PullMessagesResponse()
        self.pushed: list[Any] = []

    def call(self, route: str, request: Any, response_type: Any, **_: Any) -> Any:
        if route == "pull-messages":
            return self.next
        if route == "push-messages":
            self.pushed.append(request)
            return PushMessagesResponse()
        if route == "pull-object":
            raise Denied(404)
        return response_type()


def _answer(record: RecordDict, kind: str = "query.keys") -> Any:
    """A good answer to a node that asks for messages."""
    message = Message(record, dst_node_id=7, message_type=kind)
    message.metadata.__dict__["_message_id"] = "a" * 64
    return PullMessagesResponse(
        messages_list=[message_to_proto(message)], message_object_trees=[ObjectTree(object_id="a" * 64)]
    )


def _spoil(answer: Any, mutator: Mutator) -> Any:
    """One malformed answer out of a good one."""
    rng, sent = mutator.rng, answer.messages_list[0]
    meta, trees = sent.metadata, answer.message_object_trees

    def deep() -> None:
        tree = trees[0]
        for _ in range(rng.choice((1, 5, 60))):
            tree = tree.children.add(object_id="b" * 64)

    def wide() -> None:
        trees[0].children.add(object_id="c").children.extend(
            [ObjectTree(object_id=f"{i:064x}") for i in range(2_000)]
        )

    def scramble() -> Any:
        with contextlib.suppress(Exception):
            return PullMessagesResponse.FromString(mutator.bytes(answer.SerializeToString()))
        return answer

    def set_to(name: str, value: Any) -> None:
        setattr(meta, name, value)

    change: Callable[[], Any] = rng.choice(
        [
            lambda: set_to("message_type", rng.choice(TYPES)),
            lambda: set_to("ttl", rng.choice((-1.0, 0.0, math.nan, math.inf, 1e300))),
            lambda: set_to("created_at", rng.choice((-1.0, math.nan, math.inf, -math.inf, 1e300))),
            lambda: set_to("run_id", rng.choice((0, 2**64 - 1))),
            lambda: set_to("dst_node_id", rng.choice((0, 1, 2**64 - 1))),
            lambda: set_to("src_node_id", rng.choice((0, 2**64 - 1))),
            lambda: set_to("message_id", rng.choice(("", "x" * 9999))),
            lambda: set_to("reply_to_message_id", "z" * 64),
            lambda: set_to("group_id", "g" * 9999),
            lambda: sent.ClearField("content"),
            lambda: sent.ClearField("metadata"),
            lambda: sent.error.CopyFrom(type(sent.error)(code=rng.randrange(-9, 999), reason="r" * 999)),
            lambda: answer.ClearField("message_object_trees"),
            lambda: trees.extend([ObjectTree()] * 3),
            lambda: setattr(trees[0], "object_id", rng.choice(("", "x", "é" * 99))),
            deep,
            wide,
            scramble,
            scramble,
        ]
    )
    changed = change()
    return changed if isinstance(changed, PullMessagesResponse) else answer


def _handler(message: Message, context: Context) -> Message:
    return Message(
        RecordDict({"good": ConfigRecord({"type": message.metadata.message_type})}), reply_to=message
    )


def fuzz_transport(cases: int, seed: int) -> Findings:
    """`cases` malformed answers to the real node's loop: whatever comes, the loop must go on."""
    found, mutator = Findings(), Mutator(seed)
    good = m.ReceiptRequest(run="1", log=m.LogHead(note="", since=0, proof=[])).record()
    with quiet():
        LocalGrid({}, {})  # Flower makes messages only inside a task; this says that we are in one
        wire = Wire()
        link = fleet.FleetLink("127.0.0.1:1", Path("ca"), scratch() / "key")
        loop = fleet._Node(link, wire, scratch() / "id", _handler, lambda name, _: None)  # type: ignore[arg-type]
        stop = threading.Event()
        for _ in range(cases):
            found.cases += 1
            wire.next = _spoil(_answer(good), mutator)
            what = str(wire.next.messages_list[0].metadata)[:80] if wire.next.messages_list else "no message"
            try:
                loop._answer_next(stop)
            except (Lost, Denied):
                loop._reply = None  # the loop attaches again, and goes on
            except Exception as error:  # noqa: BLE001 - that is what is looked for
                found.fault(f"the node's loop ended: {type(error).__name__}: {str(error)[:120]}", what)
                loop._reply = None
        wire.next, wire.pushed = _answer(good), []
        loop._answer_next(stop)
        if len(wire.pushed) != 1 or not wire.pushed[0].messages_list[0].HasField("content"):
            found.fault("the loop does not answer a good message any more", "")
    return found


# ── the server, and one silo that sends nonsense ─────────────────────────────────────────────────

LIAR, ROUNDS = "s2", (1, 2)


class Nodes:
    """Four silos of a `Cast` behind Flower messages; one of them lies in one of its replies."""

    def __init__(self, spoil: Callable[[Message, RecordDict], Message], action: str) -> None:
        self.cast = Cast(4, 1, ROUNDS)
        self.vectors = vectors(self.cast.names, 6)
        self.spoil, self.action = spoil, action
        self.lied = False
        apps = {100 + i: self._app(name) for i, name in enumerate(self.cast.names)}
        self.grid = LocalGrid(apps, dict.fromkeys(apps, b""))

    def _app(self, name: str) -> Callable[[Message, Context], Message]:
        silo = self.cast.silos[name]

        def reply(message: Message) -> tuple[m.Content, bytes]:
            action = message.metadata.message_type.removeprefix("query.")
            if action == "keys":
                return m.KeysReply(keys=silo.advertise().to_json(), log_size=1), b""
            if action == "shares":
                request, _ = m.SharesRequest.read(message)
                boxes = silo.share([Envelope.from_json(k) for k in request.keys])
                return m.SharesReply(boxes=m.boxes_to_json(boxes)), b""
            if action == "vector":
                asked, _ = m.VectorRequest.read(message)
                if asked.boxes is not None:
                    silo.receive(m.boxes_from_json(asked.boxes))
                if (sum_ := asked.previous) is not None:
                    total = RING.unwrap(
                        RING.unpack(bytes(message.content.config_records[m.RECORD]["data"]), 6)
                    )
                    silo.verify_sum(sum_.round, sum_.survivors, total, int(sum_.check))
                source = Whole(self.vectors[name], BOUND)
                data, header = silo.mask(asked.round, source, RING, task="train", model=digest(b""))
                return m.VectorReply(header=header.to_json(), log_size=1), bytes(data)
            question, _ = m.AnswerRequest.read(message)
            statement, seeds, keys = silo.answer(
                question.round, question.survivors, answering=question.answering
            )
            given = (m.boxes_to_json(seeds), m.boxes_to_json(keys))
            return m.AnswerReply(statement=statement.to_json(), seeds=given[0], mask_keys=given[1]), b""

        def app(message: Message, context: Context) -> Message:
            try:
                content, data = reply(message)
            except FoedusError as error:  # as a node: no
                content, data = m.Refusal(code="PROTOCOL", message=error.message, log_size=1), b""
            record = content.record(data)
            if name == LIAR and message.metadata.message_type == f"query.{self.action}" and not self.lied:
                self.lied = True
                return self.spoil(message, record)
            return Message(record, reply_to=message)

        return app

    def run(self) -> tuple[list[str], dict[str, str]]:
        """Set-up and two rounds: the rounds that gave a wrong sum, and who was put out and why."""
        sums = SecureSum(
            grid=self.grid,
            nodes={name: 100 + i for i, name in enumerate(self.cast.names)},
            roster=self.cast.roster,
            context=self.cast.context,
            seconds=2.0,
            head=lambda silo: m.LogHead(note="", since=0, proof=[]),
            acknowledge=lambda silo, size: None,
        )
        wrong = []
        request = _keys_request()
        sums.set_up(lambda silo: request)
        for number in ROUNDS:
            result = sums.round(_plan(number), b"")
            expected = sum(self.vectors[s] for s in result.survivors)
            if not np.array_equal(np.asarray(result.total), expected):
                wrong.append(f"round {number}: a wrong sum")
        return wrong, {silo: silence.code for silo, silence in sums.out.items()}


def _plan(number: int) -> RoundPlan:
    return RoundPlan(
        round=number,
        task="train",
        dimension=6,
        scale_bits=0,
        sigma=1,
        sensitivity=1.0,
        bits=RING.bits,
        bound=BOUND,
    )


def _keys_request() -> m.KeysRequest:
    started = m.LoggedEntry(index=0, body="", proof=[])
    head = m.LogHead(note="", since=0, proof=[])
    return m.KeysRequest(study={}, approvals=[], run="1", batch=0, rounds=[1], log=head, started=started)


def _lies(mutator: Mutator) -> Callable[[Message, RecordDict], Message]:
    """One malformed reply, of every kind there is."""
    rng = mutator.rng

    def spoil(message: Message, record: RecordDict) -> Message:
        good = record.config_records[m.RECORD]
        action, body, data = str(good["action"]), bytes(good["body"]), bytes(good["data"])
        tree = parse_json(body)

        def made(**changes: Any) -> RecordDict:
            return RecordDict(
                {m.RECORD: ConfigRecord({"action": action, "body": body, "data": data, **changes})}
            )

        refusal = {"code": "X" * 64, "message": "y" * 2000, "log_size": rng.choice((0, 2**53 - 1))}
        unknown = {**refusal, "code": m.LOG_SIZE_UNKNOWN}
        choices: list[Callable[[], RecordDict | Error]] = [
            lambda: made(body=mutator.body(tree)),
            lambda: made(body=mutator.body(tree)),
            lambda: made(body=mutator.body(tree)),
            lambda: made(body=mutator.bytes(body)),
            lambda: made(body=mutator.noise()),
            lambda: made(data=mutator.bytes(data or b"x" * 24)),
            lambda: made(data=np.full(6, np.nan, "<f8").tobytes()),
            lambda: mutator.record(action, body, data),
            lambda: made(action=rng.choice(("", "keys", "vector-reply", "x" * 999))),
            lambda: made(action="refusal", body=canonical(rng.choice((refusal, unknown))), data=b""),
            lambda: made(action="refusal", body=mutator.body(refusal), data=b""),
            lambda: made(body=canonical(example(_reply_class(action), rng))),
            lambda: Error(code=rng.choice((0, 2, 999)), reason="r" * 99),
        ]
        chosen = rng.choice(choices)()
        return Message(chosen, reply_to=message)

    return spoil


def _reply_class(action: str) -> Any:
    return next(c for c in (m.KeysReply, m.SharesReply, m.VectorReply, m.AnswerReply) if c.action == action)


@dataclass
class Served(Findings):
    """What came of a silo's malformed replies at the server.

    Args:
        put_out: runs in which the liar was put out. hurt: runs in which an honest silo was, or too few were left:
            a box that its receiver can't open tells neither the server nor anybody else which of the two lies.
    """

    put_out: int = 0
    hurt: int = 0


def fuzz_server(cases: int, seed: int) -> Served:
    """`cases` runs in which one silo sends one malformed reply."""
    found, mutator = Served(), Mutator(seed)
    with quiet():
        for place in range(cases):
            found.cases += 1
            action = ("keys", "shares", "vector", "answer")[place % 4]
            try:
                wrong, out = Nodes(_lies(mutator), action).run()
            except Abandoned:
                found.hurt += 1
                continue
            except Exception as error:  # noqa: BLE001 - that is what is looked for
                found.fault(f"the run ended: {type(error).__name__}: {str(error)[:150]}", action)
                continue
            found.put_out += LIAR in out
            found.hurt += bool(set(out) - {LIAR})
            for fault in wrong:
                found.fault(fault, action)
    return found


def well_formed_lies() -> str:
    """Not malformed, and yet lies: what one silo can do to a run. (Not to anybody's data.)"""
    ends = []
    for what, spoil, action in (
        ("boxes that do not open", _bad_boxes, "shares"),
        ("wrong shares under the liar's signature", _bad_shares, "answer"),
        ("a wrong check value under the liar's signature", _bad_check, "vector"),
    ):
        nodes = Nodes(lambda message, record: message, action)
        nodes.spoil = partial(spoil, nodes)
        try:
            wrong, out = nodes.run()
            ends.append(
                f"{what}: {'; '.join(wrong) or 'the others finish, out are ' + ', '.join(sorted(out))}"
            )
        except FoedusError as error:
            ends.append(f"{what}: the run stops ({type(error).__name__})")
    return ", ".join(ends)


def _bad_boxes(nodes: Nodes, message: Message, record: RecordDict) -> Message:
    tree = parse_json(bytes(record.config_records[m.RECORD]["body"]))
    return Message(
        m.SharesReply(boxes=dict.fromkeys(tree["boxes"], b64(bytes(144)))).record(), reply_to=message
    )


def _bad_check(nodes: Nodes, message: Message, record: RecordDict) -> Message:
    fields = record.config_records[m.RECORD]
    tree = parse_json(bytes(fields["body"]))
    header = tree["header"]
    told = {**header["payload"], "check": str((int(header["payload"]["check"]) + 1) % P)}
    signed = Envelope(header["kind"], told).signed(LIAR, nodes.cast.keys[LIAR])
    reply = m.VectorReply(header=signed.to_json(), log_size=1)
    return Message(reply.record(bytes(fields["data"])), reply_to=message)


def _bad_shares(nodes: Nodes, message: Message, record: RecordDict) -> Message:
    tree = parse_json(bytes(record.config_records[m.RECORD]["body"]))
    tree["seeds"] = {s: b64(bytes(31) + b"\7") for s in tree["seeds"]}
    given = [m.boxes_from_json(tree[name]) for name in ("seeds", "mask_keys")]
    told = {**tree["statement"]["payload"], "shares": shares_digest(*given)}
    signed = Envelope(tree["statement"]["kind"], told).signed(LIAR, nodes.cast.keys[LIAR])
    return Message(m.AnswerReply(**{**tree, "statement": signed.to_json()}).record(), reply_to=message)


# ── the check ────────────────────────────────────────────────────────────────────────────────────

_TRANSPORT, _SERVER = 1000, 60


def _talkative(self: SiloApp, action: str, error: FoedusError) -> m.Refusal:
    """A node that says all it knows when it refuses."""
    silos = [run.silo for run in self._runs.values()]
    held = " ".join(str(len(silo.participants)) for silo in silos)
    return m.Refusal(code="REFUSED", message=f"{self.home.table}: {error.message}; {held}"[:2000], log_size=0)


def _trusting(message: Message) -> tuple[str, Any, bytes]:
    """Reading a message without looking at its shape."""
    record = message.content.config_records[m.RECORD]
    return str(record["action"]), json.loads(bytes(record["body"])), bytes(record["data"])


def malformed() -> Outcome:
    node_side = fuzz_node(CASES - _TRANSPORT)
    transport = fuzz_transport(_TRANSPORT, SEED)
    server = fuzz_server(_SERVER, SEED)
    faults = node_side.faults + transport.faults + server.faults
    codes = ", ".join(f"{n:,} {code}" for code, n in node_side.codes.most_common(4))
    with patch.object(SiloApp, "_refuse", _talkative):
        leaky = fuzz_node(60, states=STATES[:1])
    with patch.object(m, "_fields", _trusting):
        trusting = fuzz_node(60, states=STATES[:1])
    leaks = sum("a path" in fault for fault in leaky.faults)
    crashes = sum("raised" in fault for fault in trusting.faults)
    said = f"; first fault: {faults[0]}" if faults else ""
    return Outcome(
        not faults and server.put_out > _SERVER / 2,
        f"seed {SEED}: {node_side.cases:,} messages to a real node in {len(STATES)} states of one run ({codes}, …; "
        f"{sum(node_side.accepted.values())} valid after all), {transport.cases} to its loop, {server.cases} replies of "
        f"one silo to the server (put out {server.put_out} times, every sum right, the others hurt {server.hurt} times): "
        f"{len(faults)} crashes or leaks, nothing spent, the run went on after each state{said}. Lies that are not "
        f"malformed cost the run, not the data: {well_formed_lies()}",
        leaks > 30 and crashes > 5,
        f"a node that tells all: {leaks} of 60 replies leak; one that trusts shapes: {crashes} of 60 crash it",
    )


CHECKS = [Check("13", "sends malformed messages", "server, silo", malformed)]
