"""A real deployment under attack: which ports it listens on, and what an outsider on the network can send to them."""

from __future__ import annotations

import atexit
import contextlib
import random
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from support.orders import make_draft, order_log
from support.sums import scratch

from foedus.clients.connection import Connection, FleetLink, generate_node_key, load_key
from foedus.demo import world
from foedus.demo.deploy import Deployment, free_ports
from foedus.demo.world import World
from foedus.server.superlink import _descendants

FOREIGN = Path(__file__).parent / "foreign_app"
REFUSED = frozenset((401, 403, 404, 405))  # nothing ran on the asker's behalf


@dataclass
class Live:
    """Four nodes, gateway, API and SuperLink, as the demo deploys them."""

    deployment: Deployment
    world: World

    @property
    def ca(self) -> Path:
        return self.deployment.certificates.ca_cert

    def pids(self) -> dict[int, str]:
        """Every process that we started, and those they started."""
        mine = {p.pid: name for name, p in self.deployment._processes.items() if p.poll() is None}
        if self.deployment.superlink.pid is not None:
            mine[self.deployment.superlink.pid] = "superlink"
        below = {child: f"{name}'s child" for pid, name in mine.items() for child, _ in _descendants(pid)}
        return below | mine


_running: list[Live] = []


def live() -> Live:
    """The one deployment of this process; `close` ends it."""
    if not _running:
        root = scratch() / "federation"
        gateway, api = free_ports(2)
        deployment = Deployment(_made(root), gateway=gateway, api=api)
        atexit.register(close)
        draft = make_draft(rounds=2, trip_seconds=8.0)
        try:
            built = world.build(root, order_log(), draft, silos=4, gateway=deployment.gateway, may_exist=True)
            _running.append(Live(deployment, built))
            deployment.superlink.start()
            deployment.start_servers(built)
            for name in built.homes:
                deployment.start_node(built, name)
            deployment.await_ready(4)
        except BaseException:
            deployment.stop()
            _running.clear()
            raise
    return _running[0]


def _made(root: Path) -> Path:
    (root / "server").mkdir(parents=True)
    return root


def close() -> None:
    """End every process of it."""
    while _running:
        _running.pop().deployment.stop()


# ── ports ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, order=True)
class Port:
    """Something that listens."""

    owner: str
    protocol: str
    host: str
    number: int

    @property
    def loopback(self) -> bool:
        return self.host in ("127.0.0.1", "::1")

    def __str__(self) -> str:
        return f"{self.owner} {self.protocol} {self.host}:{self.number}"


def ports(pids: dict[int, str]) -> list[Port]:
    """Every listening TCP and bound UDP port of these processes, from /proc."""
    owners: dict[str, str] = {}
    for pid, name in sorted(pids.items()):
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(entry.readlink())
                    if target.startswith("socket:["):
                        owners.setdefault(target[8:-1], name)
    found = set()
    for protocol, states in (("tcp", {"0A"}), ("tcp6", {"0A"}), ("udp", {"07"}), ("udp6", {"07"})):
        for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]:
            fields = line.split()
            address, state, inode = fields[1], fields[3], fields[9]
            if state in states and inode in owners:
                host, _, port = address.rpartition(":")
                found.add(Port(owners[inode], protocol[:3], _host(host), int(port, 16)))
    return sorted(found)


def _host(text: str) -> str:
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, b"".join(words))


# ── what an outsider sends ───────────────────────────────────────────────────────────────────────


_PULL = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n"
_SMUGGLED = b"POST /v1/control/list-runs HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
_NONSENSE = (
    b"GET /health HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\xff\xff" + b"x" * 500,
    b"GET " + b"/" * 99_999 + b" HTTP/1.1\r\n\r\n",
    _PULL + b"content-length: -1\r\n\r\n",
    _PULL + b"content-length: 99999999999\r\n\r\nx",
    _PULL + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    _PULL + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + _SMUGGLED,
    _PULL + b"content-length: 0\r\ncontent-length: 99\r\n\r\n" + _SMUGGLED,
    b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    b"\x00" * 1000,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /health HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
)


class Outsider:
    """Somebody on the network who holds the CA's certificate and nothing else."""

    def __init__(self, ca: Path, port: Port) -> None:
        self.ca, self.port = ca, port
        self.base = f"https://{port.host}:{port.number}"
        self.tls = ssl.create_default_context(cafile=str(ca))
        self.client = httpx.Client(verify=self.tls, trust_env=False, timeout=10.0)
        self.tried = 0
        self.got: list[str] = []
        self.statuses: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def ask(
        self, method: str, path: str, *, refused: frozenset[int] = REFUSED, what: str = "", **options: Any
    ) -> int:
        """One request; what is not refused is noted as got."""
        self.tried += 1
        try:
            status = self.client.request(method, self.base + path, **options).status_code
        except httpx.HTTPError as error:
            status = 0
            if not isinstance(error, httpx.ConnectError | httpx.RemoteProtocolError | httpx.ReadError):
                self.got.append(f"{what or path}: {type(error).__name__}")
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status and status not in refused:
            self.got.append(f"{what or path} ({status})")
        return status

    def documents(self) -> None:
        for path in ("/", "/docs", "/openapi.json", "/redoc", "/docs/oauth2-redirect", "/metrics", "/.env"):
            self.ask("GET", path)

    def flower(self) -> None:
        """Every route Flower 1.41 has, without a key."""
        for method, path in PROTOBUF_REQUEST_TYPES:
            self.ask(method, path, headers={"content-type": "application/protobuf"}, content=b"")

    def with_a_key_of_its_own(self) -> None:
        """The Fleet API under a key nobody registered: signed well, and known to nobody."""
        from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
        from flwr.proto.node_pb2 import Node

        with stranger(self.ca, f"{self.port.host}:{self.port.number}", scratch() / "own.key") as connection:
            headers = {**connection._headers, **connection._signature()}
        unknown = REFUSED | {412}  # Flower's "no such node"
        for route, request in (
            ("register-node", RegisterNodeFleetRequest(public_key=connection.public_pem)),
            ("activate-node", ActivateNodeRequest(public_key=connection.public_pem, heartbeat_interval=30)),
            ("pull-messages", PullMessagesRequest(node=Node(node_id=1))),
        ):
            self.ask(
                "POST", f"/v1/fleet/{route}", refused=unknown, what=f"own key: {route}", headers=headers,
                content=request.SerializeToString(),
            )  # fmt: skip

    def our_api(self) -> None:
        """Our own API without a token and with made-up ones."""
        digest = "0" * 64
        routes = [
            ("GET", "/v1/studies"), ("POST", "/v1/studies"), ("GET", f"/v1/studies/{digest}"),
            ("POST", f"/v1/studies/{digest}/run"), ("POST", f"/v1/studies/{digest}/approvals"),
            ("GET", f"/v1/studies/{digest}/results"), ("GET", f"/v1/studies/{digest}/results/evidence.zip"),
            ("GET", "/v1/runs/1"), ("GET", "/v1/runs/1/events"), ("POST", "/v1/runs/1/stop"), ("GET", "/v1/treaty"),
            ("GET", "/v1/tokens"), ("POST", "/v1/tokens"), ("DELETE", "/v1/tokens/00000000"),
            ("GET", "/v1/log/checkpoint"), ("GET", "/v1/log/checkpoint/cosigned"), ("GET", "/v1/log/entries"), ("GET", "/v1/log/proof/inclusion?index=0&size=1"),
        ]  # fmt: skip
        tokens = [None, "Bearer foedus_" + "0" * 8 + "_" + "0" * 64, "Bearer x", "Basic YWRtaW46YWRtaW4="]
        for method, path in routes:
            for token in tokens:
                self.ask(
                    method, path, headers={} if token is None else {"authorization": token}, content=b"{}"
                )

    def old_tls(self) -> None:
        """TLS 1.2, and no TLS at all."""
        self.tried += 2
        old = ssl.create_default_context(cafile=str(self.ca))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            contextlib.suppress(OSError, ssl.SSLError),
            socket.create_connection(self._address, 5) as plain,
            old.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            self.got.append(f"spoke {wrapped.version()}")
        with contextlib.suppress(OSError), socket.create_connection(self._address, 5) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            plain.settimeout(5)
            if plain.recv(100).startswith(b"HTTP/1.1 200"):
                self.got.append("spoke plain HTTP")

    @property
    def _address(self) -> tuple[str, int]:
        return self.port.host, self.port.number

    def nonsense(self, count: int = 60) -> None:
        """Malformed TLS and HTTP; the server must still be there afterwards."""
        rng = random.Random(7)
        for place in range(count):
            self.tried += 1
            sent = (
                _NONSENSE[place // 2] if place < 2 * len(_NONSENSE) else rng.randbytes(rng.randrange(1, 3000))
            )
            with contextlib.suppress(OSError), socket.create_connection(self._address, 5) as plain:
                plain.settimeout(1.0)
                if place % 2:
                    plain.sendall(sent)
                    plain.recv(1)
                    continue
                with self.tls.wrap_socket(plain, server_hostname="localhost") as wrapped:
                    wrapped.sendall(sent)
                    while heard := wrapped.recv(65536):
                        if b" 200 " in heard[:20] and b"/health" not in sent:
                            self.got.append(f"200 to {sent[:40]!r}")
        health = self.client.get(f"{self.base}/health")
        if health.status_code not in (200, 404):
            self.got.append(f"after nonsense: health {health.status_code}")


def stranger(ca: Path, address: str, key: Path) -> Any:
    """Signed requests under a fresh key."""
    generate_node_key(key)
    return Connection(FleetLink(address, ca, key), load_key(key))
