"""Shorter trips to the nodes, inside the ServerApp's process: content travels inside messages, and nobody polls."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Error
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.superlink.grid import HttpGrid

from . import secret
from .gate import KEY_HEADER, WAIT

INLINE_INSTRUCTION = 2**20  # bytes; larger goes as objects, for the SuperLink re-reads it at every poll

_POLL = 0.05  # seconds between pulls where the gate does not know us
_NO_CONTENT = Error(code=ErrorCode.UNKNOWN)
_push_as_objects = HttpGrid.push_messages


class _Patience:
    """Waits for the nodes' answers at the SuperLink's gate (`server.gate.Bell.replies`)."""

    def __init__(self) -> None:
        self.owed = 0  # replies not pulled yet
        self._seen = 0
        self._client: httpx.Client | None = None
        self._key = b""

    def connect(self, grid: Any) -> None:
        """Before anything is pushed, so that no answer is missed."""
        if self._client is None and (path := os.environ.get(secret.VARIABLE)):
            self._key = secret.key(Path(path), "control")
            context = ssl.create_default_context(cadata=grid._cert.decode("ascii"))
            self._client = httpx.Client(
                base_url=f"https://{grid._addr}", verify=context, trust_env=False, timeout=30.0
            )
            self.pause(0.0)

    def pause(self, seconds: float) -> None:
        """Return as soon as nodes have answered, or after `seconds`."""
        if self._client is None:
            time.sleep(min(seconds, _POLL))
            return
        wanted = {"seconds": seconds, "seen": self._seen, "owed": self.owed}
        try:
            answer = self._client.get(WAIT, params=wanted, headers={KEY_HEADER.decode(): self._key.decode()})
            self._seen = int(answer.raise_for_status().text)
        except (httpx.HTTPError, ValueError):  # the SuperLink is away: the next pull says so
            time.sleep(min(seconds, _POLL))


_patience = _Patience()


def quicken() -> Callable[[float], None]:
    """Shorten this process' trips; returns the pause to make between two pulls of replies.

    Flower stores every record, the record dictionary and the message as objects of their own, pulled
    and pushed one HTTP request each, with a one-second back-off where an object is not there yet: some
    seventeen requests per node and trip. Its message table has a column for content, though, that
    Flower 1.41 leaves empty. Used for contents up to `INLINE_INSTRUCTION`, a trip takes two requests
    per node and three in all. Our nodes answer the way they were asked.

    ``pause(seconds)`` returns as soon as nodes have answered.
    """
    HttpGrid.push_messages = _push_messages
    HttpGrid.pull_messages = _pull_messages
    return _patience.pause


def _push_messages(grid: Any, messages: Iterable[Any]) -> list[str]:
    """`HttpGrid.push_messages`, with content inside."""
    batch = list(messages)
    _patience.connect(grid)
    sent, trees = [], []
    for message in batch:
        proto = message_to_proto(message)
        if proto.ByteSize() > INLINE_INSTRUCTION:
            pushed = list(_push_as_objects(grid, batch))
            _patience.owed += len(pushed)
            return pushed
        # Flower knows a message by the digest of its own object; this one names no content, and
        # nobody will pull it, so it is announced and never uploaded
        tree = get_object_tree(make_message(metadata=message.metadata, error=_NO_CONTENT))
        proto.metadata.message_id = message.metadata.__dict__["_message_id"] = tree.object_id
        sent.append(proto)
        trees.append(tree)
    if not sent:
        return []
    request = PushAppMessagesRequest(messages_list=sent, message_object_trees=trees)
    pushed = list(grid._runtime_client.PushMessages(request).message_ids)
    _patience.owed += len(pushed)
    return pushed


def _pull_messages(grid: Any, message_ids: Iterable[str]) -> list[Any]:
    """`HttpGrid.pull_messages`, for content inside as well as for objects."""
    answer = grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=list(message_ids)))
    pulled = []
    for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
        message = message_from_proto(proto)
        message.metadata.__dict__["_message_id"] = proto.metadata.message_id
        if tree.children and not message.has_error():
            message.content = _pull_content(grid, message, tree.children[0])
        pulled.append(message)
    _patience.owed = max(0, _patience.owed - len(pulled))
    return pulled


def _pull_content(grid: Any, message: Any, tree: ObjectTree) -> Any:
    run_id = message.metadata.run_id
    pull = make_pull_object_fn_protobuf(
        pull_object_protobuf=grid._runtime_client.PullObject, node=grid.node, run_id=run_id
    )
    wanted = list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))
    objects = pull_objects(wanted, pull, initial_backoff=0.02, backoff_cap=0.5)
    grid._runtime_client.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(
            node=grid.node, run_id=run_id, message_object_id=message.metadata.message_id
        )
    )
    return inflate_object_from_contents(tree.object_id, objects)
