"""Checks 11 and 14, on real processes: foreign code in a bundle, and an outsider on every port.

The outsider holds the CA's certificate and nothing else; afterwards one of the registered nodes tries what
its key gives beyond its own messages.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.node_pb2 import Node
from redteam import live
from redteam.checks import Check, Outcome
from redteam.live import FOREIGN, Live, Outsider, Port
from redteam.stock import stock_network
from support.sums import scratch

from foedus.clients.connection import Denied, Lost, generate_node_key
from foedus.compliance.auditlog.log import AuditLog
from foedus.errors import FoedusError
from foedus.federation import messages as m
from foedus.server import secret
from foedus.server.control import ControlLink

# ── 11: foreign code ─────────────────────────────────────────────────────────────────────────────


def _run_foreign(
    superlink: ControlLink, folder: Path, nodes: int, seconds: float = 25.0
) -> list[dict[str, Any]]:
    """The operator itself starts a run of foreign code; what every node answered."""
    run = superlink.start_run({"out": str(folder), "nodes": nodes, "seconds": seconds}, FOREIGN)
    end = time.monotonic() + seconds + 30
    while not superlink.run_status(run).finished:
        if time.monotonic() > end:
            superlink.stop_run(run)
            break
        time.sleep(0.2)
    found = folder / "replies.json"
    return list(json.loads(found.read_text())) if found.exists() else []


def foreign_code() -> Outcome:
    stage = live.live()
    folder, stock_folder = scratch(), scratch()
    heard = _run_foreign(stage.deployment.superlink, folder, 4)
    with stock_network(stage, stock_folder) as (link, stock):
        stolen = [reply for reply in _run_foreign(link, stock_folder, 1) if "loot" in reply]
    refusals = [r for r in heard if r.get(m.RECORD, {}).get("action") == "refusal"]
    at_ours = sorted(p.name for p in folder.glob("ran-on-*"))
    seen = 0
    for name, home in stage.world.homes.items():
        entries = [
            e.record for e in AuditLog(home / "audit.db", f"foedus node {name}", create=False).entries()
        ]
        seen += sum(e["action"] == "refused" for e in entries)
    with Outsider(stage.ca, _gateway(stage)) as outsider:
        fetched = outsider.ask("POST", "/v1/fleet/get-fab", content=b"")
    server = (folder / "ran-at-the-server").exists()  # what its operator runs there is the operator's affair
    return Outcome(
        server and not at_ours and len(refusals) == len(heard) == 12 and fetched == 404 and seen >= 12,
        f"a foreign bundle started by the operator itself; 12 messages to four nodes: {len(refusals)} refusals, "
        f"{len(at_ours)} marks of its code on them, {seen} refusals in their own logs; get-fab at the gateway: {fetched}",
        (stock_folder / f"ran-on-{stock}").exists() and len(stolen) > 0,
        f"the same bundle on a stock Flower SuperLink: it ran on the stock SuperNode ({len(stolen)} replies with its loot)",
    )


# ── 14: an outsider on every port ────────────────────────────────────────────────────────────────


def _gateway(stage: Live) -> Port:
    host, _, port = stage.deployment.gateway.rpartition(":")
    return Port("gateway", "tcp", host, int(port))


def _control(stage: Live, port: Port, outsider: Outsider) -> None:
    """Flower's Control API as its own client speaks it: register a node, list runs, start one."""
    guess = secret.ensure(scratch() / "guess")
    with ControlLink(f"{port.host}:{port.number}", stage.ca, guess) as link:
        for what, call in (
            ("lists nodes", link.nodes),
            ("reads runs", lambda: link.run_status(1)),
            ("registers a node", lambda: link.register_node(generate_node_key(scratch() / "k"))),
            (
                "starts a run with code of its own",
                lambda: link.start_run({"out": str(scratch()), "seconds": 0.1}, FOREIGN),
            ),
        ):
            outsider.tried += 1
            try:
                call()
                outsider.got.append(f"Control: {what}")
            except FoedusError as error:
                if "there is no such run" in error.message or "not found" in error.message.lower():
                    outsider.got.append(f"Control: {what}")


def _tcp(stage: Live, port: Port) -> Outsider:
    with Outsider(stage.ca, port) as outsider:
        outsider.documents()
        outsider.flower()
        outsider.with_a_key_of_its_own()
        outsider.our_api()
        _control(stage, port, outsider)
        outsider.old_tls()
        outsider.nonsense()
    return outsider


def _udp(port: Port) -> tuple[int, list[str]]:
    """Datagrams to a port; what comes back."""
    got = []
    with socket.socket(socket.AF_INET6 if ":" in port.host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.3)
        for data in (b"", b"\0", b"x" * 1400, b"\xff" * 60_000):
            with contextlib.suppress(OSError):
                sock.sendto(data, (port.host, port.number))
                got.append(f"{len(sock.recv(65536))} bytes")
    return 4, got


class Keyed:
    """A node of the network with a registered key, in the hands of somebody who speaks Flower by hand."""

    def __init__(self, stage: Live, name: str) -> None:
        self.connection = live.stranger(stage.ca, stage.deployment.gateway, scratch() / f"{name}.key")
        stage.deployment.superlink.register_node(self.connection.public_pem)
        request = ActivateNodeRequest(public_key=self.connection.public_pem, heartbeat_interval=30)
        self.node = int(self.connection.call("activate-node", request, ActivateNodeResponse).node_id)

    def pull(self, node: int) -> Any:
        return self.connection.call(
            "pull-messages", PullMessagesRequest(node=Node(node_id=node)), PullMessagesResponse
        )

    def push(self, node: int, taken: Any) -> Any:
        """A reply to a message `taken` from the server, as `node`."""
        from flwr.app import ConfigRecord, Error, Message, RecordDict
        from flwr.app.message import make_message
        from flwr.common.constant import ErrorCode
        from flwr.common.serde import message_from_proto, message_to_proto
        from flwr.supercore.inflatable.inflatable_object import get_object_tree

        head = message_from_proto(taken.messages_list[0])
        head.metadata.__dict__["_message_id"] = taken.message_object_trees[0].object_id
        reply = Message(RecordDict({"by": ConfigRecord({"node": str(self.node)})}), reply_to=head)
        tree = get_object_tree(make_message(metadata=reply.metadata, error=Error(code=ErrorCode.UNKNOWN)))
        sent = message_to_proto(reply)
        sent.metadata.message_id, sent.metadata.src_node_id = tree.object_id, node
        request = PushMessagesRequest(
            node=Node(node_id=node),
            messages_list=[sent],
            message_object_trees=[tree],
            clientapp_runtime_list=[0.1],
        )
        return self.connection.call("push-messages", request, PushMessagesResponse)


def _another_nodes(stage: Live, listening: list[Port]) -> tuple[list[str], str, bool]:
    """What a registered node gets of another node's, by claiming its id; and whether there was something to get."""
    one, two = Keyed(stage, "one"), Keyed(stage, "two")
    folder = scratch()
    superlink = stage.deployment.superlink
    run = superlink.start_run({"out": str(folder), "nodes": 6, "seconds": 15.0, "inline": True}, FOREIGN)
    end = time.monotonic() + 30
    while not (folder / "sent").exists() and time.monotonic() < end:
        time.sleep(0.1)
    got: list[str] = []
    said: dict[str, str] = {}
    attempts: list[tuple[str, Any]] = [
        ("pulls another's messages", lambda: one.pull(two.node)),
        (
            "sends another's heartbeat",
            lambda: one.connection.call(
                "send-node-heartbeat",
                SendNodeHeartbeatRequest(node=Node(node_id=two.node), heartbeat_interval=30),
                SendNodeHeartbeatResponse,
            ),
        ),
        (
            "signs another off",
            lambda: one.connection.call(
                "deactivate-node", DeactivateNodeRequest(node_id=two.node), DeactivateNodeResponse
            ),
        ),
        (
            "activates another's key",
            lambda: one.connection.call(
                "activate-node",
                ActivateNodeRequest(public_key=two.connection.public_pem, heartbeat_interval=30),
                ActivateNodeResponse,
            ),
        ),
    ]
    for what, attempt in attempts:
        try:
            answer = attempt()
            if (
                getattr(answer, "messages_list", None)
                or getattr(answer, "success", False)
                or isinstance(answer, ActivateNodeResponse)
            ):
                got.append(what)
            said[what] = "answered"
        except (Lost, Denied) as error:
            said[what] = str(error).removeprefix("HTTP status ")
    taken = two.pull(two.node)  # there was something to steal
    there = bool(taken.messages_list)
    if there:
        try:
            one.push(two.node, taken)
            said["answers for another"] = "answered"
            got.append("answers for another")
        except (Lost, Denied) as error:
            said["answers for another"] = str(error).removeprefix("HTTP status ")
        try:
            one.push(one.node, taken)
            said["answers another's message as itself"] = "not refused"
        except (Lost, Denied) as error:
            said["answers another's message as itself"] = str(error).removeprefix("HTTP status ")
        two.push(two.node, taken)  # and the owner answers it, in the same form
    more = [str(port) for port in live.ports(stage.pids()) if port not in listening]
    end = time.monotonic() + 40
    while not superlink.run_status(run).finished and time.monotonic() < end:
        time.sleep(0.3)
    replies = json.loads((folder / "replies.json").read_text()) if (folder / "replies.json").exists() else []
    by = [r["by"]["node"] for r in replies if "by" in r]
    forged, own = by.count(str(one.node)), by.count(str(two.node))
    said["at the server"] = f"{own} of the owner's replies, {forged} forged"
    if forged:
        got.append(f"the server took {forged} forged replies")
    got += [f"during a run {port} listens too" for port in more]
    for keyed in (one, two):
        with keyed.connection, contextlib.suppress(Lost, Denied):
            keyed.connection.call(
                "deactivate-node", DeactivateNodeRequest(node_id=keyed.node), DeactivateNodeResponse
            )
    return got, ", ".join(f"{what}: {status}" for what, status in said.items()), there and own > 0


def every_port() -> Outcome:
    stage = live.live()
    listening = live.ports(stage.pids())
    lines, fallen, tried = [], [], 0
    control = 0
    for port in listening:
        if port.protocol == "udp":
            count, got = _udp(port)
        else:
            outsider = _tcp(stage, port)
            count, got = outsider.tried, outsider.got
            control += _health(stage, port)
        tried += count
        lines.append(f"{port}: {_summary(got)}")
        fallen += [port] if got else []
    keyed, said, there = _another_nodes(stage, listening)
    expected = {("gateway", "tcp"), ("api", "tcp"), ("superlink", "tcp")}
    seen = {(p.owner, p.protocol) for p in listening}
    return Outcome(
        not fallen and not keyed and seen >= expected,
        f"{tried} attempts on {len(listening)} ports. "
        + ". ".join(lines)
        + f". A registered node claiming another's id "
        f"({said}): {', '.join(keyed) or 'nothing'}",
        control >= 2 and there,
        f"the doors are there: {control} ports answer /health with the CA's certificate, and the other node's own key "
        f"{'gets the message and answers it' if there else 'got nothing: the check is void'}",
    )


def _summary(got: list[str]) -> str:
    """What was got, routes of one API together."""
    if not got:
        return "nothing"
    routes = [g for g in got if g.startswith("/v1/")]
    rest = [g for g in dict.fromkeys(got) if g not in routes]
    for api in ("control", "runtime", "fleet"):
        some = [g for g in routes if g.startswith(f"/v1/{api}/")]
        if some:
            rest.append(f"{len(some)} {api} routes answer, e.g. {some[0]}")
    rest += [g for g in routes if g.split("/")[2] not in ("control", "runtime", "fleet")]
    return "; ".join(rest)


def _health(stage: Live, port: Port) -> int:
    with Outsider(stage.ca, port) as outsider, contextlib.suppress(httpx.HTTPError):
        return int(outsider.client.get(f"{outsider.base}/health").status_code == 200)
    return 0


CHECKS = [
    Check("11", "ships foreign code in a bundle", "server", foreign_code, deployment=True),
    Check("14", "tries every port with the CA certificate", "outsider, node", every_port, deployment=True),
]
