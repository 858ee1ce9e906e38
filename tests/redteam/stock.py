"""Flower as it is shipped, a SuperLink and a SuperNode: what foreign code meets where foedus is not."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from redteam.live import Live

from foedus.clients.connection import generate_node_key
from foedus.demo.deploy import free_ports
from foedus.errors import FoedusError
from foedus.server import secret
from foedus.server.control import ControlLink
from foedus.server.superlink import _descendants, _start_time


@contextlib.contextmanager
def stock_network(stage: Live, folder: Path) -> Iterator[tuple[ControlLink, int]]:
    """A stock SuperLink, with the certificates of ours and node keys asked for, and a stock SuperNode; the node's id."""
    files = stage.deployment.certificates
    port, health = free_ports(2)
    superlink = [
        *("flower-superlink", "--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-certfile", str(files.server_cert), "--ssl-keyfile", str(files.server_key)),
        *("--ssl-ca-certfile", str(files.ca_cert), "--database", str(folder / "superlink.db")),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
    ]
    node = [
        *("flower-supernode", "--superlink", f"127.0.0.1:{port}", "--root-certificates", str(stage.ca)),
        *("--auth-supernode-private-key", str(folder / "stock.key")),
        *("--host", "127.0.0.1", "--port", str(health), "--max-retries", "3"),
    ]
    unused = secret.ensure(folder / "secret")  # a stock SuperLink asks for none
    with (
        _process(superlink, folder, "superlink") as one,
        ControlLink(f"127.0.0.1:{port}", stage.ca, unused) as link,
    ):
        _await(one, folder / "superlink.log", lambda: link.nodes() == [])
        number = link.register_node(generate_node_key(folder / "stock.key"))
        with _process(node, folder, "node") as two:
            _await(two, folder / "node.log", lambda: [n.status for n in link.nodes()] == ["online"])
            yield link, number


@contextlib.contextmanager
def _process(command: list[str], folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """One of Flower's programs; ended with all that it started."""
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(folder / f"flwr-{name}"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
    }
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(binaries / command[0]), *command[1:]], env=environment, cwd=folder, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        started = list(_descendants(process.pid))
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid, at in started:
            if _start_time(pid) == at:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)


def _await(process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while True:
        with contextlib.suppress(FoedusError):
            if ready():
                return
        if time.monotonic() > end or process.poll() is not None:
            raise RuntimeError(log.read_text(errors="replace")[-1500:])
        time.sleep(0.2)
