"""Flower's SuperLink as a process of ours: started, watched and ended with all that it started.

It runs `server.superlink_process` on loopback. Its Control API: `control`; a ServerApp's trips to the nodes: `trips`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import httpx

from ..errors import InputError, Unreachable
from . import secret, tls
from .certificates import Certificates
from .control import ControlLink
from .tether import tethered

_LOOPBACK = "127.0.0.1"
_LOG_TAIL = 2000  # characters of the SuperLink's log shown when it does not start
_GRACE = 15.0  # seconds for the SuperLink to end by itself


class SuperLink(ControlLink):
    """Flower's SuperLink as a process of ours: TLS, node keys, a database on disk, loopback only.

    Args:
        root: its directory: ``superlink.db``, ``superlink.log``, ``superlink.secret`` and Flower's home. The
            same `root` and `port` after a crash take up the registered nodes again.
        certificates: of this server.
        port: 0 takes a free one, and keeps it.
        environment: set for the SuperLink and with it for every ServerApp.
        tether: end it when the thread that starts it ends, however that happens.
    """

    def __init__(
        self,
        root: Path,
        certificates: Certificates,
        *,
        port: int = 0,
        environment: Mapping[str, str] | None = None,
        tether: bool = False,
    ) -> None:
        self._tether = tether
        self.port = port or _free_port()
        self._root = root.absolute()
        self.secret_file = self._root / "superlink.secret"
        super().__init__(f"{_LOOPBACK}:{self.port}", certificates.ca_cert, self.secret_file)
        self._certificates = certificates
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id, if it was started and not stopped."""
        return None if self._process is None else self._process.pid

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, timeout: float = 60.0) -> None:
        """Start it and wait until it answers.

        Raises:
            InputError: the port is in use.
            Unreachable: it ended, or did not answer within `timeout` seconds; the message ends with its log.
        """
        if self.alive():
            return
        _check_free(self.port)
        self._root.mkdir(parents=True, exist_ok=True)
        secret.ensure(self.secret_file)
        command = [sys.executable, "-m", "foedus.server.superlink_process", "--port", str(self.port)]
        command += ["--certificates", str(self._certificates.server_cert.absolute().parent)]
        command += ["--database", str(self._root / "superlink.db"), "--secret", str(self.secret_file)]
        environment = {
            **os.environ,
            "FLWR_HOME": str(self._root / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_INTERNAL_GRPC_CONTROL_API": "0",  # these would listen on ports without a gate
            "FLWR_INTERNAL_GRPC_FLEET_API": "0",
            "PYTHONUNBUFFERED": "1",
            secret.VARIABLE: str(self.secret_file),
            **self._environment,
        }
        log = self._root / "superlink.log"
        before = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                tethered(command) if self._tether else command,
                cwd=self._root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        problem = self._await_health(self._process, timeout)
        if problem:
            self.stop()
            with log.open("rb") as written:
                written.seek(before)
                tail = written.read().decode(errors="replace")[-_LOG_TAIL:].strip()
            raise Unreachable(f"the SuperLink {problem}\n{tail}", remedy=f"see {log}")

    def _await_health(self, process: subprocess.Popen[bytes], timeout: float) -> str:
        end = time.monotonic() + timeout
        context = tls.trusting(self._certificates)
        with httpx.Client(verify=context, trust_env=False, timeout=2.0) as client:
            while time.monotonic() < end:
                if process.poll() is not None:
                    return f"ended at once with exit status {process.returncode}"
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"https://{self._address}/health").status_code == 200:
                        return ""
                time.sleep(0.1)
        return f"did not answer within {timeout:.0f} s"

    def stop(self) -> None:
        """End it and everything it started; does nothing the second time."""
        process, self._process = self._process, None
        self.close()
        if process is None:
            return
        # it has started ServerApps
        started = list(_descendants(process.pid))
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        end = time.monotonic() + 3.0  # they watch for their parent
        while time.monotonic() < end and any(_start_time(pid) == at for pid, at in started):
            time.sleep(0.05)
        for pid, at in started:
            if _start_time(pid) == at:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port))
        except OSError as error:
            raise InputError(
                f"port {port} on {_LOOPBACK} is in use", remedy="choose another, or 0 for any"
            ) from error


def _stat(pid: int) -> list[str]:
    # after the name, which may hold anything: state, parent, ..., and 20th the start time (proc(5))
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _start_time(pid: int) -> str | None:
    try:
        fields = _stat(pid)
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Processes below `pid` with their start times; none where there is no ``/proc``."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            fields = _stat(int(entry.name))
            parents.setdefault(int(fields[1]), []).append((int(entry.name), fields[19]))
    below = list(parents.get(pid, []))
    while below:
        child, at = below.pop()
        yield child, at
        below += parents.get(child, [])
