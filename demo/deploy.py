"""A deployment on loopback: SuperLink, gateway, API server and one process a node, each ended by its pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx

from ..errors import FoedusError, Unreachable
from ..server.auth import Role, issue
from ..server.certificates import Certificates, create
from ..server.client import ApiClient
from ..server.store import Store
from ..server.superlink import SuperLink
from .world import World

_LOOPBACK = "127.0.0.1"
_GRACE = 5.0


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind((_LOOPBACK, 0))
        return [int(s.getsockname()[1]) for s in sockets]


class Deployment:
    """The processes of one federation under one directory; `stop` ends those it started, and no others.

    Args:
        root: the world's directory. gateway, api: ports to listen on.
    """

    def __init__(self, root: Path, *, gateway: int, api: int) -> None:
        self.root = root
        self.gateway, self.api = f"{_LOOPBACK}:{gateway}", f"{_LOOPBACK}:{api}"
        self.certificates: Certificates = create(root / "server" / "certs")
        self.superlink = SuperLink(root / "server" / "flower", self.certificates)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        (root / "logs").mkdir(exist_ok=True)

    def start_servers(self, world: World) -> None:
        """Register the treaty's nodes at the SuperLink (started before); start gateway and API server.

        Raises:
            Unreachable: one of them does not come up; the message ends with its log.
        """
        self.superlink.admit(party.node_key.encode() for party in world.treaty.parties)
        certs = str(self.root / "server" / "certs")
        link = self.superlink.address
        self._spawn(
            "gateway",
            "foedus.server.gateway",
            "--listen",
            self.gateway,
            "--upstream",
            link,
            "--certificates",
            certs,
            "--secret",
            str(self.superlink.secret_file),
        )
        port = self.api.rpartition(":")[2]
        self._spawn(
            "api",
            "foedus",
            "server",
            "run",
            str(world.server),
            "--port",
            port,
            "--certificates",
            certs,
            "--superlink",
            link,
            "--secret",
            str(self.superlink.secret_file),
        )

    def start_node(self, world: World, name: str) -> None:
        """Start one partner's node, on its own directory."""
        home = world.homes[name]
        shutil.copyfile(self.certificates.ca_cert, home / "ca.crt")
        self._spawn(f"node-{name}", "foedus", "node", "run", str(home))

    def await_ready(self, nodes: int, *, seconds: float = 90.0) -> None:
        """Wait until gateway and API answer and `nodes` nodes are online."""
        tls = ssl.create_default_context(cafile=str(self.certificates.ca_cert))
        with httpx.Client(verify=tls, trust_env=False, timeout=2.0) as client:
            for name, address in (("gateway", self.gateway), ("api", self.api)):
                self._await(name, partial(_healthy, client, address), seconds)
        self._await(
            "nodes", lambda: sum(n.status == "online" for n in self.superlink.nodes()) >= nodes, seconds
        )

    def kill_node(self, name: str) -> None:
        """End a node without warning (SIGKILL)."""
        process = self._processes[f"node-{name}"]
        process.send_signal(signal.SIGKILL)
        process.wait()

    def running(self, name: str) -> bool:
        """Whether a process of ours ("gateway", "api", "node-…") is running."""
        return name in self._processes and self._processes[name].poll() is None

    def stop(self) -> None:
        """End every process still running: SIGTERM, and SIGKILL for those that don't heed it."""
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + _GRACE
        for process in self._processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.superlink.stop()

    def _spawn(self, name: str, module: str, *arguments: str) -> None:
        log = self.root / "logs" / f"{name}.log"
        environment = {
            **os.environ,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
        }
        with log.open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _await(self, what: str, ready: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, process in self._processes.items():
                if process.poll() not in (None, -signal.SIGKILL):
                    raise Unreachable(
                        f"{name} ended with exit status {process.returncode}\n{self._tail(name)}"
                    )
            with contextlib.suppress(httpx.HTTPError, FoedusError):
                if ready():
                    return
            time.sleep(0.1)
        raise Unreachable(f"{what} not ready within {seconds:.0f} s", remedy=f"see {self.root / 'logs'}")

    def _tail(self, name: str) -> str:
        return (self.root / "logs" / f"{name}.log").read_text(errors="replace")[-2000:].strip()


def _healthy(client: httpx.Client, address: str) -> bool:
    return client.get(f"https://{address}/health").status_code == 200


@contextmanager
def deployed(root: Path, *, gateway: int, api: int) -> Iterator[Deployment]:
    """A deployment whose processes are all ended when the block is left, however it is left."""
    deployment = Deployment(root, gateway=gateway, api=api)
    try:
        yield deployment
    finally:
        deployment.stop()


def client(deployment: Deployment, world: World, name: str, role: Role) -> ApiClient:
    """A person's connection to the API server, with a fresh token of their role."""
    token, row = issue(name, role, days=1)
    with Store(world.server / "server.db") as store:
        store.add_token(row)
    return ApiClient(f"https://{deployment.api}", token, deployment.certificates.ca_cert)
