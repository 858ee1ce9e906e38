"""How messages and replies travel between a node and Flower's Fleet API.

A message's content travels one of two ways, and the reply goes the way its instruction came:

- *inline*: inside the message, as `server.trips.quicken` sends it. Two requests a message.
- *objects*: Flower's own way, one object per record. Eight requests a message.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from flwr.app import Error, Message
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from .connection import MAX_MESSAGE, Connection, Denied, TooLarge

INLINE_REPLY = 8 * 2**20  # bytes; a larger reply goes as objects

_OBJECT_WAIT = 60.0  # seconds to wait for an object that is announced but not uploaded yet
_MAX_OBJECTS = 10_000
_NO_CONTENT = Error(code=ErrorCode.UNKNOWN)


@dataclass(frozen=True)
class Reply:
    """An answer on its way: kept until the server has it or no longer wants it."""

    message: Message
    instruction_id: str
    inline: bool
    seconds: float
    until: float  # by the monotonic clock; nobody waits for it any longer


def fetch(connection: Connection, node_id: int, head: Message, tree: ObjectTree) -> Message:
    """Pull a message's objects. The message's own object holds nothing that `head` does not.

    Raises:
        Denied: an object is not to be had. TooLarge, Lost.
    """
    content = tree.children[0]
    wanted = list(dict.fromkeys(node.object_id for node in iterate_object_tree(content)))
    if len(wanted) > _MAX_OBJECTS:
        raise TooLarge
    objects: dict[str, bytes] = {}
    size, end, wait = 0, time.monotonic() + _OBJECT_WAIT, 0.02
    while wanted:
        request = PullObjectRequest(
            node=Node(node_id=node_id), run_id=head.metadata.run_id, object_id=wanted[-1]
        )
        answer = connection.call("pull-object", request, PullObjectResponse)
        if not answer.object_found or (not answer.object_available and time.monotonic() > end):
            raise Denied(404)
        if not answer.object_available:
            time.sleep(wait)
            wait = min(wait * 1.5, 1.0)
            continue
        objects[wanted.pop()] = answer.object_content
        size += len(answer.object_content)
        if size > MAX_MESSAGE:
            raise TooLarge
    head.content = inflate_object_from_contents(content.object_id, objects)
    return head


def push(connection: Connection, node_id: int, waiting: Reply) -> None:
    """Push a reply.

    Raises:
        Denied: nobody waits for it any longer. TooLarge, Lost.
    """
    reply, node = waiting.message, Node(node_id=node_id)
    run_id = reply.metadata.run_id
    objects: dict[str, bytes] = {}
    with no_object_id_recompute():
        sent = message_to_proto(reply) if waiting.inline else None
        if sent is not None and sent.ByteSize() <= INLINE_REPLY:
            # Flower knows a message by the digest of its own object; this one names no content, and
            # nobody will pull it, so it is announced and never uploaded
            tree = get_object_tree(make_message(metadata=reply.metadata, error=_NO_CONTENT))
        else:
            tree = get_object_tree(reply)
            objects = {name: item.deflate() for name, item in get_all_nested_objects(reply).items()}
            sent = message_to_proto(remove_content_from_message(reply))
    if sum(map(len, objects.values())) > MAX_MESSAGE:
        raise TooLarge
    sent.metadata.message_id = tree.object_id
    request = PushMessagesRequest(
        node=node,
        messages_list=[sent],
        message_object_trees=[tree],
        clientapp_runtime_list=[waiting.seconds],
    )
    answer = connection.call("push-messages", request, PushMessagesResponse)
    for name in answer.objects_to_push:
        if name in objects:
            pushed = PushObjectRequest(
                node=node,
                run_id=run_id,
                object_id=name,
                object_content=objects[name],
                session_id=answer.session_id,
            )
            connection.call("push-object", pushed, PushObjectResponse)
    if not waiting.inline:  # an inline message has left nothing of size at the server
        confirmed = ConfirmMessageReceivedRequest(
            node=node, run_id=run_id, message_object_id=waiting.instruction_id
        )
        connection.call("confirm-message-received", confirmed, ConfirmMessageReceivedResponse)
