"""A node as one process on Flower's Fleet API.

With `clients.connection` and `clients.mail` it is what knows Flower's internals here. Stock Flower runs whatever
app bundle the server sends, in a new process per message. This loop takes messages, calls *installed* code and
pushes the reply; it never asks for a bundle (no ``get-fab``).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.node_pb2 import Node

from ..durable import disk_full
from ..errors import InputError, Unreachable
from .connection import (
    MAX_MESSAGE,
    Connection,
    Denied,
    FleetLink,
    Lost,
    TooLarge,
    Untrusted,
    generate_node_key,
    load_key,
    node_public_key,
)
from .mail import Reply, fetch, push

__all__ = ["FAILED", "FleetLink", "Handler", "Listener", "generate_node_key", "node_public_key", "serve"]

Handler = Callable[[Message, Context], Message]
Listener = Callable[[str, dict[str, object]], None]

FAILED = "the node failed; see its own log"

_HOLD = 10.0  # seconds the server may hold a question for messages
_HEARTBEAT = 10.0  # seconds, Flower's minimum; a dead node is noticed after two of them
_BACKOFF = (0.25, 10.0)  # seconds: first and longest wait between attempts to reach a lost server
_CONTEXTS = 32  # runs whose state is kept
_PATIENCE = 25.0  # seconds after which Flower holds a node that crashed for offline, and lets it in again
_REMIND = 600.0  # seconds until the same trouble is logged again

_log = logging.getLogger("foedus.node")


def serve(
    link: FleetLink,
    app: Handler,
    *,
    stop: threading.Event,
    on_event: Listener | None = None,
    poll: float = 0.05,
    idle_poll: float = 0.25,
) -> None:
    """Answer messages until `stop` is set; a lost server is waited for.

    Args:
        link: the gateway and the keys.
        app: called with one message at a time and the context of its run, whose state lives in memory only.
        stop: ends the loop; looked at between messages and while waiting.
        on_event: told ``attached``, ``lost``, ``answered`` and ``failed``, from this thread.
        poll: seconds between questions right after activity, growing to `idle_poll`. They matter only where
            the server does not hold questions until there is a message.
        idle_poll: the longest wait between questions.

    Raises:
        Unreachable: the server does not know this node, or at first contact its certificate is not the CA's.
            What time or somebody at the server can put right is waited for: a certificate that has expired,
            a clock that is wrong, a full disk.
        InputError: the key or the CA file is unusable, or another process serves this key.
    """
    key = load_key(link.node_key)
    with _claimed(link.node_key) as id_file, Connection(link, key) as connection:
        node = _Node(link, connection, id_file, app, on_event or (lambda _name, _detail: None))
        node.run(stop, poll, max(poll, idle_poll))


@contextlib.contextmanager
def _claimed(node_key: Path) -> Iterator[Path]:
    """Hold ``<node_key>.id``: one process per key, and the id the server gave it, kept over restarts.

    Flower refuses to activate a node it believes online, so a node that crashed would have to wait
    until its heartbeats expire. Knowing its id, it simply sends the next heartbeat.
    """
    path = node_key.with_name(node_key.name + ".id")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{node_key}: another process on this machine serves this key",
                remedy="stop it first: two nodes with one key would take each other's messages",
            ) from error
        yield path
    finally:
        os.close(descriptor)


class _Node:
    """The loop of one node: attach, ask, answer."""

    def __init__(
        self, link: FleetLink, connection: Connection, id_file: Path, app: Handler, on_event: Listener
    ) -> None:
        self._link = link
        self._connection = connection
        self._id_file = id_file
        self._app = app
        self._on_event = on_event
        self._node_id = self._known_id()
        self._attached = False
        self._asking = threading.Event()  # a question is out that the server may hold
        self._known = bool(self._node_id)  # the server knew us once
        self._refused_since = float("-inf")
        self._told = ("", float("-inf"))
        self._contexts: OrderedDict[int, Context] = OrderedDict()
        self._reply: Reply | None = None

    def run(self, stop: threading.Event, poll: float, idle_poll: float) -> None:
        backoff, ever = _BACKOFF[0], False
        quiet = threading.Event()
        threads = [
            threading.Thread(target=self._beat, args=(quiet,), name="heartbeat", daemon=True),
            threading.Thread(target=self._leave, args=(stop, quiet), name="leave", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            while not stop.is_set():
                try:
                    self._attach()
                    ever, backoff = True, _BACKOFF[0]
                    self._deliver()
                    wait = poll
                    while not stop.is_set():
                        asked = time.monotonic()
                        if self._answer_next(stop) or time.monotonic() - asked > _HOLD / 4:
                            wait = poll  # answered, or held by the server: ask again at once
                        else:
                            stop.wait(wait)
                            wait = min(wait * 1.2, idle_poll)
                        if self._connection.trusts_anew():
                            _log.info("%s: another CA file, taken up", self._link.root_certificates)
                except Untrusted as error:
                    if not ever:
                        raise Unreachable(
                            f"{self._link.address}: the server's certificate is not to be trusted ({error})",
                            remedy=f"check the address, and that {self._link.root_certificates} is its CA",
                        ) from error
                    backoff = self._pause(stop, backoff, error)
                except (Lost, Denied) as error:
                    backoff = self._pause(stop, backoff, error)
        finally:
            quiet.set()
            if self._attached:
                self._deactivate()
            for thread in threads:
                thread.join(timeout=6.0)

    def _leave(self, stop: threading.Event, quiet: threading.Event) -> None:
        # the server answers the question that it holds when it hears that a node goes
        while not stop.wait(2.0):
            if quiet.is_set():
                return
        while self._asking.is_set():
            self._attached = False
            self._deactivate()
            quiet.wait(0.5)

    def _deactivate(self) -> None:
        with contextlib.suppress(Lost, Denied, TooLarge):
            request = DeactivateNodeRequest(node_id=self._node_id)
            self._connection.call("deactivate-node", request, DeactivateNodeResponse, timeout=3.0)

    def _pause(self, stop: threading.Event, backoff: float, error: Lost | Denied) -> float:
        text = str(error)
        if stop.is_set():
            return backoff
        before, at = self._told
        if text != before or time.monotonic() - at > _REMIND:
            self._told = (text, time.monotonic())
            remedy = error.remedy if isinstance(error, Lost) else ""
            _log.warning(
                "%s: lost (%s); trying again%s", self._link.address, text, remedy and f"\n  {remedy}"
            )
        self._on_event("lost", {"reason": text})
        self._attached = False
        stop.wait(backoff * random.uniform(0.8, 1.2))  # noqa: S311 - spreads the nodes, guards nothing
        self._connection.reopen()
        return min(backoff * 2, _BACKOFF[1])

    # --- being known to the server

    def _known_id(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int(self._id_file.read_text())
        return 0

    def _heartbeat(self) -> bool:
        request = SendNodeHeartbeatRequest(node=Node(node_id=self._node_id), heartbeat_interval=_HEARTBEAT)
        answer = self._connection.call("send-node-heartbeat", request, SendNodeHeartbeatResponse, timeout=5.0)
        return bool(answer.success)

    def _beat(self, quiet: threading.Event) -> None:
        # a thread, because one message may take an hour; failures are the loop's to notice
        while not quiet.wait(_HEARTBEAT * 0.8):
            if self._attached:
                with contextlib.suppress(Lost, Denied, TooLarge):
                    self._heartbeat()

    def _attach(self) -> None:
        if self._node_id:
            with contextlib.suppress(Denied):
                if self._heartbeat():
                    self._up()
                    return
        request = ActivateNodeRequest(public_key=self._connection.public_pem, heartbeat_interval=_HEARTBEAT)
        try:
            self._node_id = self._connection.call("activate-node", request, ActivateNodeResponse).node_id
        except Denied as error:
            raise self._refused(error) from error
        self._keep_id()
        self._up()

    def _keep_id(self) -> None:
        # a torn one does no harm: the server refuses it, and says the right one when asked by the key
        try:
            with self._id_file.open("r+") as file:  # in place, for this file is locked
                file.write(str(self._node_id))
                file.truncate()
        except OSError as error:
            # not worth a stop: it only spares a node that crashes the wait for its heartbeats to expire
            _log.error("%s: not written: %s", self._id_file, error.strerror or error)

    def _up(self) -> None:
        self._attached = self._known = True
        self._refused_since, self._told = float("-inf"), ("", float("-inf"))
        _log.info("%s: attached as node %d", self._link.address, self._node_id)
        self._on_event("attached", {"node_id": self._node_id})

    def _refused(self, error: Denied) -> Exception:
        where, key = self._link.address, self._link.node_key
        if error.status == 401:
            minutes, way = abs(error.skew) / 60, "ahead of" if error.skew > 0 else "behind"
            off = f"; this machine's clock is {minutes:.0f} min {way} it" if minutes > 1 else ""
            return Lost(
                f"the server does not accept this node's signature{off}",
                "set this machine's clock: it may be two minutes off at most. The node goes on by itself",
            )
        if error.status == 412:
            if self._refused_since < 0:
                self._refused_since = time.monotonic()
            if self._known and time.monotonic() - self._refused_since < _PATIENCE:
                return Lost("the server believes that this node is online elsewhere, or has forgotten it")
            return Unreachable(
                f"{where}: the server does not know this node's key ({key}), or it is in use elsewhere",
                remedy="have the server's operator register this key's public half; "
                "if it is registered, stop the other node that uses it",
            )
        return Unreachable(
            f"{where}: no foedus gateway answers there (HTTP status {error.status})",
            remedy="check the address in the node's configuration",
        )

    # --- messages

    def _answer_next(self, stop: threading.Event) -> bool:
        """Take one message if there is one, and answer it."""
        request = PullMessagesRequest(node=Node(node_id=self._node_id))
        self._asking.set()
        try:
            if stop.is_set():
                return True
            taken = self._connection.call("pull-messages", request, PullMessagesResponse, wait=_HOLD)
        except TooLarge:
            _log.error("a message beyond %d bytes was refused", MAX_MESSAGE)
            return True
        finally:
            self._asking.clear()
        if not taken.messages_list:
            return False
        try:
            head, tree = message_from_proto(taken.messages_list[0]), taken.message_object_trees[0]
        except Exception:  # noqa: BLE001 - what can't even be answered must not end this process
            _log.exception("a message without a readable head was passed over")
            return False  # ask again, after a wait
        head.metadata.__dict__["_message_id"] = tree.object_id
        run_id, started = head.metadata.run_id, time.monotonic()
        inline = not tree.children
        try:
            message = head if inline else fetch(self._connection, self._node_id, head, tree)
        except Denied as error:
            _log.info("run %d: its message is no longer to be had (%s)", run_id, error)
            return True
        except Lost:
            raise
        except Exception:  # noqa: BLE001 - whatever a malformed message raises, the node goes on
            message = None
            _log.exception("run %d: a message could not be read", run_id)
        reply = self._failed(head, run_id) if message is None else self._call(message, run_id)
        spent = time.monotonic() - started
        # by the server's clock, whatever ours says: Flower drops a reply that seems to have expired
        reply.metadata.created_at = head.metadata.created_at + spent
        reply.metadata.ttl = head.metadata.ttl - spent
        self._reply = Reply(reply, tree.object_id, inline, spent, started + head.metadata.ttl)
        self._deliver()
        return True

    def _call(self, message: Message, run_id: int) -> Message:
        try:
            reply = self._app(message, self._context(run_id))
            if reply.metadata.reply_to_message_id != message.metadata.message_id:
                raise ValueError("the handler's reply answers another message")
            return reply
        except Exception as error:  # noqa: BLE001 - nothing of what went wrong may leave the node
            kind = message.metadata.message_type
            if disk_full(error):
                _log.error(
                    "run %d: %r was not answered: the disk is full (%s); free some space", run_id, kind, error
                )
            else:
                _log.exception("run %d: the handler failed on %r", run_id, kind)
            return self._failed(message, run_id)

    def _failed(self, message: Message, run_id: int) -> Message:
        self._on_event("failed", {"run_id": run_id, "message_type": message.metadata.message_type})
        return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=FAILED), reply_to=message)

    def _context(self, run_id: int) -> Context:
        context = self._contexts.pop(run_id, None) or Context(
            run_id=run_id, node_id=self._node_id, node_config={}, state=RecordDict(), run_config={}
        )
        self._contexts[run_id] = context
        while len(self._contexts) > _CONTEXTS:
            self._contexts.popitem(last=False)
        return context

    def _deliver(self) -> None:
        """Push the reply that waits, if any; it stays for the next attempt if the server is lost."""
        if self._reply is None:
            return
        waiting, metadata = self._reply, self._reply.message.metadata
        detail: dict[str, object] = {
            "run_id": metadata.run_id,
            "message_type": metadata.message_type,
            "seconds": waiting.seconds,
        }
        if time.monotonic() < waiting.until:
            try:
                push(self._connection, self._node_id, waiting)
                self._on_event("answered", detail)
            except Denied as error:  # the run is over
                _log.info("run %d: the reply is no longer wanted (%s)", metadata.run_id, error)
            except TooLarge:
                _log.error("run %d: a reply beyond %d bytes was not sent", metadata.run_id, MAX_MESSAGE)
                failed = Message(
                    metadata=metadata, error=Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, FAILED)
                )
                with contextlib.suppress(Denied):
                    push(self._connection, self._node_id, replace(waiting, message=failed))
                self._on_event("failed", detail)
        self._reply = None
