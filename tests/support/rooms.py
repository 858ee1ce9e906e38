"""One server on 127.0.0.1, SuperLink and gateway, and nodes in threads."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from flwr.app import ConfigRecord, Context, Message, RecordDict

from foedus.clients import fleet
from foedus.server import certificates
from foedus.server.certificates import Certificates
from foedus.server.superlink import SuperLink

ECHO = Path(__file__).parent.parent / "deployment" / "echo_app"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


class Node:
    """A node in a thread."""

    def __init__(self, link: fleet.FleetLink, answer: str) -> None:
        self.events: list[str] = []
        self.stop = threading.Event()
        self.error: Exception | None = None
        self._link, self._answer = link, answer
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        try:
            fleet.serve(
                self._link, self._handle, stop=self.stop, on_event=lambda name, _: self.events.append(name)
            )
        except Exception as error:  # noqa: BLE001 - for the test to look at
            self.error = error

    def _handle(self, message: Message, context: Context) -> Message:
        record = dict(message.content["c"])
        self.events.append("asked")
        if self._answer == "slow":
            time.sleep(3)
        if self._answer == "raise":
            raise ValueError("customer 4711 owes 12 euros")
        seen = context.state.get("seen", ConfigRecord({"n": 0}))
        context.state["seen"] = ConfigRecord({"n": int(seen["n"]) + 1})
        record["answer"] = f"{self._answer}-{context.state['seen']['n']}"
        return Message(RecordDict({"c": ConfigRecord(record)}), reply_to=message)

    def end(self) -> None:
        self.stop.set()
        self.thread.join(20)


class House:
    """One server: SuperLink and gateway."""

    def __init__(self, root: Path) -> None:
        self.root = root
        made = (root / "tls" / "server.crt").exists()
        self.files: Certificates = (certificates.load if made else certificates.create)(root / "tls")
        self.address = f"127.0.0.1:{free_port()}"
        self.superlink = SuperLink(root / "superlink", self.files)
        self.superlink.start()
        self.tls = ssl.create_default_context(cafile=str(self.files.ca_cert))
        self.start_gateway()

    def start_gateway(self) -> None:
        command = [sys.executable, "-m", "foedus.server.gateway"]
        command += ["--listen", self.address, "--upstream", self.superlink.address]
        command += ["--certificates", str(self.root / "tls"), "--secret", str(self.superlink.secret_file)]
        self.gateway = subprocess.Popen(command)
        until(self._up)

    def _up(self) -> bool:
        try:
            return self.get("/health").status_code == 200
        except httpx.HTTPError:
            return False

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"https://{self.address}{path}", verify=self.tls, trust_env=False)

    def link(self, name: str, *, registered: bool = True) -> fleet.FleetLink:
        public = fleet.generate_node_key(self.root / name)
        if registered:
            self.superlink.register_node(public)
        return fleet.FleetLink(self.address, self.files.ca_cert, self.root / name)

    def trips(self, nodes: int, count: int, **config: Any) -> list[dict[str, Any]]:
        out = self.root / f"{time.monotonic_ns()}.json"
        run_id = self.superlink.start_run({"out": str(out), "nodes": nodes, "trips": count, **config}, ECHO)
        until(lambda: self.superlink.run_status(run_id).finished, 60)
        assert self.superlink.run_status(run_id).sub_status == "completed", self.superlink.run_status(run_id)
        found: list[dict[str, Any]] = json.loads(out.read_text())
        return found

    def end(self) -> None:
        self.gateway.terminate()
        self.gateway.wait(15)
        self.superlink.stop()
