"""The rest of check 13: malformed Flower messages to the node's loop, and malformed replies to the server."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesResponse
from flwr.proto.message_pb2 import ObjectTree
from redteam.fuzz import Findings, Stand
from redteam.mutations import Mutator, example
from redteam.node_support import VICTIM, node, quiet
from support.sums import Cast, scratch, vectors

from foedus.clients import fleet
from foedus.documents import Envelope
from foedus.errors import Abandoned, FoedusError, ProtocolError
from foedus.federation import messages as m
from foedus.federation.secure_sum import SecureSum
from foedus.federation.simulation import LocalGrid
from foedus.privacy.secagg import codec, masks

TYPES = ("", "query.", ".", "query.keys-reply", "query.a.b", "x", "query.\x00", "train.1", "system", "query." + "k" * 9999)


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
            raise fleet._Denied(404)
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
        trees[0].children.add(object_id="c").children.extend([ObjectTree(object_id=f"{i:064x}") for i in range(20_000)])

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


def fuzz_transport(cases: int, seed: int) -> Findings:
    """`cases` malformed answers to the real node's loop: whatever comes, the loop must go on."""
    found, mutator = Findings(), Mutator(seed)
    with quiet():
        stand = Stand.build("fresh")
        wire, events = Wire(), []
        link = fleet.FleetLink("127.0.0.1:1", Path("ca"), scratch() / "key")
        loop = fleet._Node(
            link, wire, link.node_key, node(stand.play, VICTIM), lambda name, _: events.append(name)  # type: ignore[arg-type]
        )
        good = stand.play.keys_request(VICTIM).model_copy(update={"run": "9"}).record()
        for _ in range(cases):
            found.cases += 1
            wire.next = _spoil(_answer(good), mutator)
            what = str(wire.next.messages_list[0].metadata)[:80] if wire.next.messages_list else "no message"
            try:
                loop._answer_next()
            except (fleet._Lost, fleet._Denied):
                loop._reply = None  # the loop attaches again, and goes on
            except Exception as error:  # noqa: BLE001 - that is what is looked for
                found.fault(f"the node's loop ended: {type(error).__name__}: {str(error)[:120]}", what)
                loop._reply = None
        wire.next, wire.pushed = _answer(stand.play.keys_request(VICTIM).record()), []
        loop._answer_next()
        if len(wire.pushed) != 1 or not wire.pushed[0].messages_list[0].HasField("content"):
            found.fault("the loop does not answer a good message any more", "")
        stand.close()
    return found
