"""The Control API of a SuperLink, also of one that somebody else started: its nodes and its runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab

from ..errors import FoedusError, InputError, Unreachable
from . import secret
from .gate import KEY_HEADER

BUNDLE = Path(__file__).parent.parent / "federation" / "bundle"  # the fixed stub that starts our coordinator


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
