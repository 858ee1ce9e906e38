"""Flower's SuperLink: started, asked and stopped; the one server-side file that knows Flower's internals.

`SuperLink` runs `server.superlink_process` on loopback; `ControlLink` speaks its Control API, also to one
that somebody else started; `quicken` shortens trips, inside the ServerApp's process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
from flwr.app import Error
from flwr.app.message import make_message
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import ErrorCode
from flwr.common.serde import fab_to_proto, message_from_proto, message_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.superlink.grid import HttpGrid

from ..errors import FoedusError, InputError, Unreachable
from . import secret, tls
from .certificates import Certificates
from .gate import KEY_HEADER, WAIT
from .tether import tethered

BUNDLE = Path(__file__).parent.parent / "federation" / "bundle"  # the fixed stub that starts our coordinator

SECRET = "FOEDUS_SUPERLINK_SECRET"  # environment variable of a ServerApp: the file of the secret

INLINE_INSTRUCTION = (
    2**20
)  # bytes; larger content goes as objects, for the SuperLink re-reads it at every poll

_LOOPBACK = "127.0.0.1"
_LOG_TAIL = 2000  # characters of the SuperLink's log shown when it does not start
_GRACE = 15.0  # seconds for the SuperLink to end by itself


@dataclass(frozen=True)
class NodeStatus:
    """A registered node: ``registered`` (never seen), ``online`` or ``offline``."""

    node_id: int
    public_key_pem: bytes
    status: str


@dataclass(frozen=True)
class RunStatus:
    """A run: ``pending``, ``starting``, ``running`` or ``finished``.

    Finished, its `sub_status` is ``completed``, ``failed`` or ``stopped``.
    """

    status: str
    sub_status: str
    details: str

    @property
    def finished(self) -> bool:
        return self.status == "finished"


class ControlLink:
    """The Control API of a running SuperLink.

    Args:
        address: ``host:port`` of the SuperLink itself, not of the gateway.
        root_certificates: PEM file of the CA that signed its certificate.
        secret_file: the secret it was started with; see `server.secret`.
    """

    def __init__(self, address: str, root_certificates: Path, secret_file: Path) -> None:
        self._address = address
        self._root_certificates = root_certificates
        self._secret_file = secret_file
        self._client: Any = None

    @property
    def address(self) -> str:
        return self._address

    def close(self) -> None:
        """Forget the connections; the next call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def register_node(self, public_key_pem: bytes) -> int:
        """Let the node with this public key in; returns its id, also where it is registered already.

        Raises:
            InputError: not a key that Flower takes.
            Unreachable: the SuperLink does not answer.
        """
        try:
            return int(self._call("RegisterNode", RegisterNodeRequest(public_key=public_key_pem)).node_id)
        except _ApiRefusal as error:
            for node in self.nodes():
                if node.public_key_pem == public_key_pem:
                    return node.node_id
            raise InputError(
                f"the node's public key is not usable: {error.message}",
                remedy="one that was unregistered before is gone for good: the party makes a new node key",
            ) from error

    def nodes(self) -> list[NodeStatus]:
        """All registered nodes; those that were unregistered are none.

        Raises:
            Unreachable: the SuperLink does not answer.
        """
        found = self._call("ListNodes", ListNodesRequest()).nodes_info
        nodes = [NodeStatus(node.node_id, bytes(node.public_key), node.status) for node in found]
        return [node for node in nodes if node.status != "unregistered"]

    def admit(self, public_keys_pem: Iterable[bytes]) -> None:
        """Let exactly these nodes in: register those that are missing, unregister every other.

        Raises:
            InputError: not a key that Flower takes, or one that was unregistered before.
            Unreachable: the SuperLink does not answer.
        """
        wanted = {key.strip() for key in public_keys_pem}
        for node in self.nodes():
            if node.public_key_pem.strip() not in wanted:
                self._call("UnregisterNode", UnregisterNodeRequest(node_id=node.node_id))
        for key in sorted(wanted):
            self.register_node(key + b"\n")  # as a node sends it: Flower compares the bytes

    def start_run(self, config: Mapping[str, str | int | float | bool], bundle: Path | None = None) -> int:
        """Submit the stub, its configuration overridden by `config`; returns the run's id.

        Args:
            config: only keys that the bundle's ``[tool.flwr.app.config]`` lists.
            bundle: another Flower app's directory, for tests.

        Raises:
            FoedusError: the SuperLink refuses the run.
            Unreachable: the SuperLink does not answer.
        """
        content = build_fab_from_disk(bundle or BUNDLE)
        fab = fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {}))
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(config)), federation="")
        return int(self._call("StartRun", request).run_id)

    def run_status(self, run_id: int) -> RunStatus:
        """How a run stands.

        Raises:
            InputError: no such run.
            Unreachable: the SuperLink does not answer.
        """
        try:
            runs = self._call("ListRuns", ListRunsRequest(run_id=run_id)).run_dict
        except _ApiRefusal as error:
            raise InputError(f"run {run_id}: {error.message}") from error
        if run_id not in runs:
            raise InputError(f"run {run_id}: there is no such run")
        found = runs[run_id].status
        return RunStatus(found.status, found.sub_status, found.details)

    def stop_run(self, run_id: int) -> None:
        """End a run now; one that has finished stays as it is.

        Raises:
            InputError: no such run.
            Unreachable: the SuperLink does not answer.
        """
        try:
            self._call("StopRun", StopRunRequest(run_id=run_id))
        except _ApiRefusal:
            if not self.run_status(run_id).finished:
                raise

    def _call(self, name: str, request: Any) -> Any:
        try:
            if self._client is None:
                self._client = ControlHttpClient.from_server_address(
                    server_address=self._address,
                    insecure=False,
                    root_certificates=self._root_certificates.read_bytes(),
                    interceptors=[_Keyed(secret.key(self._secret_file, "control"))],
                )
            return getattr(self._client, name)(request)
        except httpx.HTTPStatusError as error:
            refusal = FlowerError.from_json(error.response.text)
            text = f"HTTP status {error.response.status_code}"
            if refusal is not None:
                text = " ".join(filter(None, (refusal.message, refusal.public_details)))
            raise _ApiRefusal(f"the SuperLink refuses {name}: {text}") from error
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: another thread closed the client
            raise Unreachable(
                f"{self._address}: the SuperLink does not answer ({error})",
                remedy="is it running? see superlink.log",
            ) from error
        except OSError as error:
            raise InputError(f"{self._root_certificates}: {error.strerror or error}") from error


class _ApiRefusal(FoedusError):
    """The Control API answered with an error of its own."""


class _Keyed:
    """Brings the key with every request."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        context.request.headers[KEY_HEADER.decode()] = self._key.decode()
        return call_next(context)


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
            SECRET: str(self.secret_file),
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


# --- inside the ServerApp's process

_POLL = 0.05  # seconds between pulls where the gate does not know us
_NO_CONTENT = Error(code=ErrorCode.UNKNOWN)
_push_as_objects = HttpGrid.push_messages


class _Patience:
    """Waits for the nodes' answers at the SuperLink's gate (`server.gate.Bell.replies`)."""

    def __init__(self) -> None:
        self.owed = 0  # replies not pulled yet
        self._seen = 0
        self._client: httpx.Client | None = None
        self._key = b""

    def connect(self, grid: Any) -> None:
        """Before anything is pushed, so that no answer is missed."""
        if self._client is None and (path := os.environ.get(SECRET)):
            self._key = secret.key(Path(path), "control")
            context = ssl.create_default_context(cadata=grid._cert.decode("ascii"))
            self._client = httpx.Client(
                base_url=f"https://{grid._addr}", verify=context, trust_env=False, timeout=30.0
            )
            self.pause(0.0)

    def pause(self, seconds: float) -> None:
        """Return as soon as nodes have answered, or after `seconds`."""
        if self._client is None:
            time.sleep(min(seconds, _POLL))
            return
        wanted = {"seconds": seconds, "seen": self._seen, "owed": self.owed}
        try:
            answer = self._client.get(WAIT, params=wanted, headers={KEY_HEADER.decode(): self._key.decode()})
            self._seen = int(answer.raise_for_status().text)
        except (httpx.HTTPError, ValueError):  # the SuperLink is away: the next pull says so
            time.sleep(min(seconds, _POLL))


_patience = _Patience()


def quicken() -> Callable[[float], None]:
    """Shorten this process' trips; returns the pause to make between two pulls of replies.

    Flower stores every record, the record dictionary and the message as objects of their own, pulled
    and pushed one HTTP request each, with a one-second back-off where an object is not there yet: some
    seventeen requests per node and trip. Its message table has a column for content, though, that
    Flower 1.41 leaves empty. Used for contents up to `INLINE_INSTRUCTION`, a trip takes two requests
    per node and three in all. Our nodes answer the way they were asked.

    ``pause(seconds)`` returns as soon as nodes have answered.
    """
    HttpGrid.push_messages = _push_messages
    HttpGrid.pull_messages = _pull_messages
    return _patience.pause


def _push_messages(grid: Any, messages: Iterable[Any]) -> list[str]:
    """`HttpGrid.push_messages`, with content inside."""
    batch = list(messages)
    _patience.connect(grid)
    sent, trees = [], []
    for message in batch:
        proto = message_to_proto(message)
        if proto.ByteSize() > INLINE_INSTRUCTION:
            pushed = list(_push_as_objects(grid, batch))
            _patience.owed += len(pushed)
            return pushed
        # Flower knows a message by the digest of its own object; this one names no content, and
        # nobody will pull it, so it is announced and never uploaded
        tree = get_object_tree(make_message(metadata=message.metadata, error=_NO_CONTENT))
        proto.metadata.message_id = message.metadata.__dict__["_message_id"] = tree.object_id
        sent.append(proto)
        trees.append(tree)
    if not sent:
        return []
    request = PushAppMessagesRequest(messages_list=sent, message_object_trees=trees)
    pushed = list(grid._runtime_client.PushMessages(request).message_ids)
    _patience.owed += len(pushed)
    return pushed


def _pull_messages(grid: Any, message_ids: Iterable[str]) -> list[Any]:
    """`HttpGrid.pull_messages`, for content inside as well as for objects."""
    answer = grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=list(message_ids)))
    pulled = []
    for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
        message = message_from_proto(proto)
        message.metadata.__dict__["_message_id"] = proto.metadata.message_id
        if tree.children and not message.has_error():
            message.content = _pull_content(grid, message, tree.children[0])
        pulled.append(message)
    _patience.owed = max(0, _patience.owed - len(pulled))
    return pulled


def _pull_content(grid: Any, message: Any, tree: ObjectTree) -> Any:
    run_id = message.metadata.run_id
    pull = make_pull_object_fn_protobuf(
        pull_object_protobuf=grid._runtime_client.PullObject, node=grid.node, run_id=run_id
    )
    wanted = list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))
    objects = pull_objects(wanted, pull, initial_backoff=0.02, backoff_cap=0.5)
    grid._runtime_client.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(
            node=grid.node, run_id=run_id, message_object_id=message.metadata.message_id
        )
    )
    return inflate_object_from_contents(tree.object_id, objects)
