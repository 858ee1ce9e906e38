"""The SuperLink's process: Flower's own app behind `server.gate`, with TLS 1.3.

`server.superlink` starts this module in place of ``flower-superlink``. It is also what Flower's SuperExec is:
it takes the tasks that runs make and starts a ServerApp for each. Flower does that over the Runtime API, which
is open to everybody unless a secret is set. Here the secret is set and nobody has it, for the tasks are taken
inside this process; and their tokens are in no command line, where other users could read them.

    python -m foedus.server.superlink_process --port 8000 --certificates DIR --database FILE --secret FILE
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import certificates, secret, tls
from .certificates import Certificates
from .gate import Gate

_HOST = "127.0.0.1"
_LOOK = 2.0  # seconds between two looks for tasks where no run was started in between


@dataclass(frozen=True)
class _Options:
    port: int
    files: Certificates
    database: str
    secret: Path


def _flower(options: _Options) -> Any:
    """Flower's app, as ``flower-superlink --isolation process --enable-supernode-auth`` builds it."""
    from flwr.common.constant import TRANSPORT_TYPE_GRPC_RERE
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app

    files = options.files
    pem = (files.ca_cert.read_bytes(), files.server_cert.read_bytes(), files.server_key.read_bytes())
    config = SuperLinkLifespanConfig(
        control_address="",  # gRPC, not started
        health_server_address=None,
        host=_HOST,
        port=options.port,
        insecure=False,
        certificates=pem,
        superexec_auth_secret=os.urandom(32),  # nobody is told: see `_Tasks`
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=str(files.ca_cert),
        ssl_certfile=str(files.server_cert),
        ssl_keyfile=str(files.server_key),
        database=options.database,
        isolation="process",
        runtime_dependency_install=False,
    )
    return create_app(config, SuperLinkLifespan)


class _Tasks(threading.Thread):
    """Takes the tasks that runs make, and starts a ServerApp for each: what Flower's SuperExec does by polling."""

    def __init__(self, app: Any, options: _Options) -> None:
        super().__init__(name="tasks", daemon=True)
        self.started, self._over = threading.Event(), False
        self._state = app.state.linkstate_factory
        self._options = options
        self._running: list[subprocess.Popen[bytes]] = []

    def end(self) -> None:
        self._over = True
        self.started.set()

    def run(self) -> None:
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore import log
        from flwr.supercore.constant import TaskType
        from flwr.superlink.servicer.runtime import runtime_handlers

        request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
        while not self._over:
            self.started.clear()
            try:
                while (taken := runtime_handlers.acquire_task(request, self._state.state())).token:
                    self._running.append(self._launch(taken.token))
            except Exception:  # noqa: BLE001 - a full disk, a locked database: the next look may find it well
                log(logging.ERROR, "no task could be taken", exc_info=True)
            self._running = [process for process in self._running if process.poll() is None]
            self.started.wait(_LOOK)

    def _launch(self, token: str) -> subprocess.Popen[bytes]:
        with tempfile.TemporaryFile() as file:  # a file without a name: the token is in no command line
            file.write(token.encode())
            file.seek(0)
            descriptor = file.fileno()
            command = [str(Path(sys.executable).parent / "flwr-serverapp")]
            command += ["--runtime-api-address", f"{_HOST}:{self._options.port}"]
            command += ["--token-file", f"/dev/fd/{descriptor}"]
            command += ["--root-certificates", str(self._options.files.ca_cert)]
            command += ["--parent-pid", str(os.getpid())]
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(descriptor,))


def serve(options: _Options) -> None:
    """Run it until SIGINT or SIGTERM."""
    from flwr.supercore.http_logging import get_uvicorn_log_config
    from flwr.supercore.logger import console_handler

    logging.getLogger("flwr").setLevel(logging.WARNING)  # a line for each request would fill the disk in time
    app = _flower(options)
    tasks = _Tasks(app, options)
    gate = Gate(
        app, secret.key(options.secret, "control"), secret.key(options.secret, "fleet"), tasks.started
    )
    server = tls.server(
        gate,
        options.files,
        _HOST,
        options.port,
        log_config=get_uvicorn_log_config(console_handler.level),
        access_log=False,
        date_header=True,
        timeout_graceful_shutdown=2,
    )
    tasks.start()
    try:
        server.run()
    finally:
        tasks.end()
        tasks.join(5.0)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m foedus.server.superlink_process``."""
    parser = argparse.ArgumentParser(prog="python -m foedus.server.superlink_process")
    parser.add_argument("--port", required=True, type=int, help=f"on {_HOST}, and nowhere else")
    parser.add_argument("--certificates", required=True, type=Path, metavar="DIR")
    parser.add_argument("--database", required=True, metavar="FILE")
    parser.add_argument("--secret", required=True, type=Path, metavar="FILE", help="of server.secret")
    given = parser.parse_args(arguments)
    try:
        serve(_Options(given.port, certificates.load(given.certificates), given.database, given.secret))
    except InputError as error:
        parser.exit(error.exit_code, error.diagnostics() + "\n")


if __name__ == "__main__":
    main()
