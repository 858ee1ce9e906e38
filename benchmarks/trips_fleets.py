"""Two fleets on 127.0.0.1, both with TLS and node authentication: foedus' and stock Flower's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import httpx
from cryptography.hazmat.primitives import serialization
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab

from foedus.clients.fleet import generate_node_key
from foedus.server import tls
from foedus.server.certificates import Certificates, create
from foedus.server.superlink import SuperLink

HERE = Path(__file__).parent
APP = HERE / "trips_app"
_LOOPBACK = "127.0.0.1"
_READY = 240.0  # seconds for a whole fleet to come up


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


class Relay(threading.Thread):
    """Between nodes and server: passes bytes on, and keeps how many passed when."""

    def __init__(self, target: int) -> None:
        super().__init__(name="relay", daemon=True)
        self.port, self._target = free_port(), target
        self.passed: list[tuple[float, int]] = []
        self._loop = asyncio.new_event_loop()
        self.start()

    def run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._serve, _LOOPBACK, self.port))
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(_LOOPBACK, self._target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self.passed.append((time.time(), len(data)))
                writer.write(data)
                await writer.drain()
        writer.close()

    def between(self, start: float, end: float) -> int:
        """Bytes that passed, both ways."""
        return sum(size for at, size in self.passed if start <= at <= end)


class Fleet:
    """Processes of one federation under one directory; `stop` ends those it started, and no others."""

    name = ""

    def __init__(self, root: Path, nodes: int) -> None:
        self.root, self.nodes = root, nodes
        root.mkdir(parents=True)
        self.files: Certificates = create(root / "certs")
        self.keys = [generate_node_key(root / f"node{i}") for i in range(nodes)]
        self.server: dict[str, int] = {}  # what runs at the server: name -> pid
        self.silos: list[int] = []  # and at the silos
        self._started: list[subprocess.Popen[bytes]] = []

    def spawn(self, name: str, *command: str, **environment: str) -> int:
        """Start a process; its output goes to a file."""
        home = self.root / f"home-{name}"
        home.mkdir(exist_ok=True)
        variables = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            **environment,
        }
        with (self.root / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=home,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process.pid

    def await_http(self, port: int) -> None:
        """Wait until a server answers."""
        self._await(f"port {port}", lambda: _healthy(port, self.files))

    def await_nodes(self) -> None:
        """Wait until all nodes are online."""
        self._await(f"{self.nodes} nodes", lambda: self.online() >= self.nodes)

    def _await(self, what: str, ready: Any) -> None:
        end = time.monotonic() + _READY
        while not ready():
            ended = [process.args for process in self._started if process.poll() is not None]
            if ended or time.monotonic() > end:
                raise RuntimeError(
                    f"{self.name}: {what} did not come up; {ended or 'too late'}; see {self.root}"
                )
            time.sleep(0.3)

    def online(self) -> int:
        """Nodes that are online."""
        raise NotImplementedError

    def block(self, trips: int) -> list[dict[str, float]]:
        """Some trips in one ServerApp: wall and CPU seconds, and bytes between nodes and server."""
        raise NotImplementedError

    def stop(self) -> None:
        """End everything that was started; nothing the second time."""
        started, self._started = self._started, []
        for process in reversed(started):
            if process.poll() is None:
                process.terminate()
        end = time.monotonic() + 20
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()


def _healthy(port: int, files: Certificates) -> bool:
    try:
        answer = httpx.get(f"https://{_LOOPBACK}:{port}/health", verify=tls.trusting(files), trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


class Ours(Fleet):
    """foedus: SuperLink behind its gate, gateway, one process a node."""

    name = "foedus"

    def __init__(self, root: Path, nodes: int) -> None:
        super().__init__(root, nodes)
        self._link = SuperLink(root / "superlink", self.files)

    def __enter__(self) -> Self:
        self._link.start()
        self._link.admit(self.keys)
        port = free_port()
        command = [sys.executable, "-m", "foedus.server.gateway", "--listen", f"{_LOOPBACK}:{port}"]
        command += ["--upstream", self._link.address, "--certificates", str(self.root / "certs")]
        gateway = self.spawn("gateway", *command, "--secret", str(self._link.secret_file))
        self.server = {"SuperLink": self._link.pid or 0, "gateway": gateway}
        self.await_http(port)
        self.relay = Relay(port)
        self.silos = [
            self.spawn(
                f"node-{i}",
                sys.executable,
                str(HERE / "trips_node.py"),
                f"{_LOOPBACK}:{self.relay.port}",
                str(self.files.ca_cert),
                str(self.root / f"node{i}"),
            )
            for i in range(self.nodes)
        ]
        self.await_nodes()
        return self

    def online(self) -> int:
        return sum(node.status == "online" for node in self._link.nodes())

    def block(self, trips: int) -> list[dict[str, float]]:
        out = self.root / "trips.json"
        roots = " ".join(map(str, [*self.server.values(), *self.silos]))
        config = {"quick": True, "nodes": self.nodes, "trips": trips, "roots": roots, "out": str(out)}
        run = self._link.start_run(config, APP)
        while not (status := self._link.run_status(run)).finished:
            time.sleep(2.0)
        return _read(self, out, f"{status.sub_status} {status.details}")

    def stop(self) -> None:
        super().stop()
        self._link.stop()


class Stock(Fleet):
    """Flower as it comes: SuperLink, SuperNodes, a process for every message."""

    name = "stock Flower"

    def __enter__(self) -> Self:
        port, files = free_port(), self.files
        command = ["flower-superlink", "--host", _LOOPBACK, "--port", str(port)]
        command += ["--ssl-certfile", str(files.server_cert), "--ssl-keyfile", str(files.server_key)]
        command += ["--ssl-ca-certfile", str(files.ca_cert), "--enable-supernode-auth"]
        self.server = {"SuperLink": self.spawn("superlink", *command)}
        self.await_http(port)
        self._control = ControlHttpClient.from_server_address(
            server_address=f"{_LOOPBACK}:{port}",
            insecure=False,
            root_certificates=files.ca_cert.read_bytes(),
            interceptors=[],
        )
        for key in self.keys:
            serialization.load_pem_public_key(key)
            self._control.RegisterNode(RegisterNodeRequest(public_key=key))
        self.relay = Relay(port)
        for i in range(self.nodes):
            command = ["flower-supernode", "--superlink", f"{_LOOPBACK}:{self.relay.port}"]
            command += ["--root-certificates", str(files.ca_cert), "--host", _LOOPBACK]
            command += ["--port", str(free_port()), "--max-retries", "10"]
            command += ["--auth-supernode-private-key", str(self.root / f"node{i}")]
            self.silos.append(self.spawn(f"node-{i}", *command))
        self.await_nodes()
        return self

    def online(self) -> int:
        return sum(n.status == "online" for n in self._control.ListNodes(ListNodesRequest()).nodes_info)

    def block(self, trips: int) -> list[dict[str, float]]:
        out = self.root / "trips.json"
        roots = " ".join(map(str, [*self.server.values(), *self.silos]))
        config = {"quick": False, "nodes": self.nodes, "trips": trips, "roots": roots, "out": str(out)}
        content = build_fab_from_disk(APP)
        fab = fab_to_proto(Fab(_sha256(content), content, {}))
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto(config), federation="")
        run = self._control.StartRun(request).run_id
        while True:
            status = self._control.ListRuns(ListRunsRequest(run_id=run)).run_dict[run].status
            if status.status == "finished":
                return _read(self, out, f"{status.sub_status} {status.details}")
            time.sleep(2.0)


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def _read(fleet: Any, out: Path, status: str) -> list[dict[str, float]]:
    import json

    if not out.exists():
        raise RuntimeError(f"{fleet.name}: no trips; the run is {status}; see {fleet.root}")
    found: list[dict[str, float]] = json.loads(out.read_text())
    out.unlink()
    return [{**trip, "bytes": fleet.relay.between(trip["from"], trip["to"])} for trip in found]
