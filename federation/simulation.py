"""The same study on an in-process Grid: no network, no processes, the same code on both sides.

`LocalGrid` hands each message to a silo's ClientApp at once, in the calling thread. `drop` decides which
messages get lost, so that every pattern of failure can be played.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

App = Callable[[Message, Context], Message]
Drop = Callable[[int, str, "Message"], bool]
RUN_ID = 1
"""The run id of every simulation."""


class LocalGrid(Grid):  # type: ignore[misc]  # flwr is not typed for us
    """Silos in this process, in place of SuperLink and nodes.

    Args:
        apps: Flower node id -> the silo's ClientApp.
        public_keys: Flower node id -> the node's public key (PEM), as a SuperLink would report it.
        drop: (node id, message type, message) -> True if this message never arrives; None loses nothing.
        lose_reply: the same for replies: the silo did its part, the server never hears of it.
    """

    def __init__(
        self,
        apps: Mapping[int, App],
        public_keys: Mapping[int, bytes],
        *,
        drop: Drop | None = None,
        lose_reply: Drop | None = None,
    ) -> None:
        self._apps, self._keys = dict(apps), dict(public_keys)
        self._drop, self._lose_reply = drop, lose_reply
        self._replies: dict[str, Message] = {}
        self.bytes_up: dict[int, int] = dict.fromkeys(apps, 0)
        self._contexts = {
            node: Context(
                run_id=RUN_ID, node_id=node, node_config={}, state=RecordDict(), run_config={}, series_id=1
            )
            for node in apps
        }
        # Flower 1.41 makes messages only inside a task; a simulation is a task of its own.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, 1, 1

    def set_run(self, run: Any) -> None:
        """Nothing to set: there is one run."""

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return Message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._apps)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, public_key=key) for node, key in self._keys.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            identifier = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = identifier
            ids.append(identifier)
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            if self._drop is not None and self._drop(node, kind, message):
                continue
            try:
                reply = self._apps[node](message, self._contexts[node])
            except Exception:  # noqa: BLE001 - a node that fails answers with Flower's error, as a real one does
                reply = Message(Error(code=2, reason="the node failed"), reply_to=message)
            if self._lose_reply is not None and self._lose_reply(node, kind, message):
                continue
            if reply.has_content():
                self.bytes_up[node] += sum(
                    len(v)
                    for r in reply.content.config_records.values()
                    for v in r.values()
                    if isinstance(v, bytes)
                )
            self._replies[identifier] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))
