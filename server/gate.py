"""What stands between the SuperLink's port and Flower's app: who may reach which route, and when it answers.

Open-source Flower serves its Control and Runtime APIs without authentication, to whoever reaches the port.
This gate lets through (everything else is 404, and says nothing):

==================  ==================================================================================
``/health``         to everybody
``/v1/control/``    six routes, to whoever has the secret: `server.control.ControlLink`
``/v1/fleet/``      the nodes' routes, to the gateway, which has the secret; Flower then asks for a node's
                    signature
``/v1/runtime/``    ten routes, to the ServerApp; Flower asks for its task's token
==================  ==================================================================================

Flower's nodes and ServerApps ask for messages over and over, which is what a trip spends most of its time on.
Both ways of every message lead through here, so the gate knows when there is one:

- ``pull-messages`` of a node with the header ``foedus-wait: SECONDS`` is answered when there is a message for
  somebody, or when its seconds are over.
- `WAIT` answers a ServerApp when nodes have answered: see `Bell.replies`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

# Of Flower's Fleet API, what our node calls. Left out: register-node and unregister-node (the server's
# operator registers nodes), get-run and get-fab (our node runs installed code and takes no bundle).
FLEET = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "pull-object",
        "push-object",
        "confirm-message-received",
    )
)
CONTROL = frozenset(
    f"/v1/control/{name}"
    for name in ("register-node", "unregister-node", "list-nodes", "start-run", "list-runs", "stop-run")
)
# Of Flower's Runtime API, what a ServerApp calls. Left out above all: acquire-task, which hands out the tokens
# that Flower asks of every other route. `server.superlink_process` takes tasks inside its own process.
RUNTIME = frozenset(
    f"/v1/runtime/{name}"
    for name in (
        "send-task-heartbeat",
        "pull-task-input",
        "push-task-output",
        "get-nodes",
        "push-messages",
        "pull-messages",
        "push-object",
        "pull-object",
        "confirm-message-received",
        "push-logs",
    )
)
HEALTH = "/health"
WAIT = "/foedus/wait"  # GET, ?seconds=S&seen=N&owed=M: answers `Bell.replies`
KEY_HEADER = b"foedus-key"
WAIT_HEADER = b"foedus-wait"
MAX_WAIT = 20.0  # seconds a request may be held

_START_RUN = "/v1/control/start-run"
_ASKED, _ANSWERED = "/v1/runtime/push-messages", "/v1/fleet/push-messages"
_PULL, _LEAVE = "/v1/fleet/pull-messages", "/v1/fleet/deactivate-node"
_BURST = 0.5  # seconds: who pulls early pulls often, and a trip is over with its last answer
# Flower's handlers are threads over one SQLite file: more at once only wait for its lock and for Python's.
# With ten nodes and two cores, two at a time spend a quarter less CPU than forty.
_AT_ONCE = 2
_MAX_PULL = 65536  # bytes of a request that may be held


class Bell:
    """Counts what passes, and wakes who waits for it."""

    def __init__(self) -> None:
        self.rings = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        self.rings += 1
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def next_ring(self) -> asyncio.Future[None]:
        """Done at the next ring; cancel it if you go before."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    async def replies(self, seen: int, owed: int, seconds: float) -> int:
        """Wait until `owed` rings are heard beyond `seen`, or one and then none for a moment; how many there were."""
        end = time.monotonic() + seconds
        while self.rings < seen + max(owed, 1) and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.next_ring(), min(left, _BURST) if self.rings > seen else left)
                continue
            break
        return self.rings


class Gate:
    """Flower's app behind the gate, as an ASGI app.

    Args:
        app: Flower's.
        control: what a request to the Control API must bring in `KEY_HEADER`.
        fleet: the same, for the Fleet API.
        started: set whenever a run may have been started.
    """

    def __init__(self, app: Any, control: bytes, fleet: bytes, started: threading.Event) -> None:
        self._flower = app
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._keys = dict.fromkeys(CONTROL, control) | dict.fromkeys(FLEET, fleet) | {WAIT: control}
        self._started = started
        self._asked, self._answered = Bell(), Bell()
        self._gone = 0  # nodes that said they go; each wants the question back that is held for it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._flower(scope, receive, send)
        elif scope["type"] == "http":
            if status := self._refusal(scope):
                await _answer(send, status)
            else:
                await self._pass(scope, receive, send)

    def _refusal(self, scope: Scope) -> int:
        """The status that ends a request here; 0: it passes."""
        method, path = scope["method"], scope["path"]
        if (method == "GET" and path == HEALTH) or (method == "POST" and path in RUNTIME):
            return 0
        if method != ("GET" if path == WAIT else "POST") or path not in self._keys:
            return 404
        brought = [value for name, value in scope["headers"] if name == KEY_HEADER]
        return 0 if len(brought) == 1 and hmac.compare_digest(brought[0], self._keys[path]) else 401

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == WAIT:
            await self._wait(scope, send)
        elif path == _PULL and (wait := _number(dict(scope["headers"]).get(WAIT_HEADER))) > 0:
            await self._hold(scope, receive, send, min(wait, MAX_WAIT))
        else:
            await self._app(scope, receive, send)
        # a request that Flower has refused rings too: that costs somebody one look, and nothing else
        self._gone += path == _LEAVE
        if path in (_ASKED, _LEAVE):
            self._asked.ring()
        elif path == _ANSWERED:
            self._answered.ring()
        elif path == _START_RUN:
            self._started.set()

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in FLEET:  # whoever has no key may not take a place: he could keep it
            await self._flower(scope, receive, send)
            return
        async with self._places:
            await self._flower(scope, receive, send)

    async def _wait(self, scope: Scope, send: Send) -> None:
        given = dict(item.partition(b"=")[::2] for item in scope["query_string"].split(b"&"))
        seen, owed, seconds = (_number(given.get(name)) for name in (b"seen", b"owed", b"seconds"))
        rings = await self._answered.replies(int(seen), int(owed), min(seconds, MAX_WAIT))
        await _answer(send, 200, str(rings).encode())

    async def _hold(self, scope: Scope, receive: Receive, send: Send, wait: float) -> None:
        """Flower's answer; of an empty one the last within `wait` seconds."""
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
            if event["type"] == "http.disconnect":
                return
            if len(body) > _MAX_PULL:
                await _answer(send, 413)
                return
        end, gone, before = time.monotonic() + wait, asyncio.ensure_future(receive()), self._gone
        try:
            while True:
                rings = self._asked.rings  # before asking: a ring while Flower answers counts
                answer = _Recorded(body)
                await self._app({**scope, "state": dict(scope.get("state", {}))}, answer.receive, answer.send)
                left = end - time.monotonic()
                if not answer.empty or left <= 0 or self._gone != before:
                    break
                if self._asked.rings == rings:
                    ring = self._asked.next_ring()
                    await asyncio.wait((gone, ring), timeout=left, return_when=asyncio.FIRST_COMPLETED)
                    if gone.done():
                        return
                    if not ring.done():
                        ring.cancel()
                        break
            for event in answer.events:
                await send(event)
        finally:
            gone.cancel()


class _Recorded:
    """A request that may be made again, and what was answered."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.events: list[Event] = []

    async def receive(self) -> Event:
        if self._body is None:
            await asyncio.Event().wait()  # the client is still there; who waits for its end is cancelled
        body, self._body = self._body or b"", None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, event: Event) -> None:
        self.events.append(event)

    @property
    def empty(self) -> bool:
        """A yes with nothing in it: no message."""
        return self.events[0].get("status") == 200 and not any(event.get("body") for event in self.events)


def _number(value: bytes | None) -> float:
    """A number of a request; 0 where it is none."""
    with contextlib.suppress(ValueError, OverflowError):
        number = float(value or 0)
        return number if number > 0 else 0.0
    return 0.0


async def _answer(send: Send, status: int, body: bytes = b"") -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
