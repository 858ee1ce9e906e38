"""A whole server by one command: SuperLink, gateway and API, which live and end together.

::

    HOME/certs/        ca.crt, ca.key, server.crt, server.key: made if the operator names no others
    HOME/flower/       the SuperLink's directory, with superlink.log
    HOME/gateway.log   what the gateway says

The SuperLink and the gateway are processes of their own, the API runs in this one. Whatever ends first
(a signal counts) ends the other two, each by its process id; if this process is killed outright, the
kernel ends them. Runs that were active then are resumed by the next start over the same directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
import uvicorn
from cryptography import x509
from starlette.types import ASGIApp

from ..compliance import treaty as treaties
from ..compliance.treaty import Treaty
from ..documents import SigningKey
from ..errors import FoedusError, InputError, Unreachable
from . import certificates, tls
from .certificates import Certificates
from .desk import Settings, check_key
from .superlink import SuperLink
from .tether import tethered

NEEDED_HOSTS = ("localhost", "127.0.0.1", "::1")  # gateway and API reach the SuperLink on loopback, over TLS

_LOOPBACK = "127.0.0.1"
_READY = 60.0  # seconds for the gateway to answer
_GRACE = 10.0  # seconds for the gateway to end by itself
_LOOK = 0.2  # seconds between two looks at the parts
_LOG_TAIL = 2000  # characters
_ANY = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on


@dataclass(frozen=True)
class Addresses:
    """Where a stack that is up is found: ``host:port`` for nodes, a URL for people, and whom to trust."""

    nodes: str
    people: str
    ca: Path


def start(
    home: Path,
    *,
    host: str,
    gateway_port: int,
    port: int,
    certificates_in: Path | None = None,
    on_ready: Callable[[Addresses], None] = lambda _: None,
) -> None:
    """Run a server over `home` until SIGTERM, SIGINT, or the end of one of its parts.

    Call it from the main thread, where signals arrive and which the parts are tethered to. When it returns or raises, nothing that it started
    is running.

    Args:
        host: where gateway and API listen; the SuperLink listens on loopback.
        certificates_in: a directory of ``ca.crt``, ``server.crt``, ``server.key``; by default ``home/certs``,
            made if there is none.
        on_ready: called once, from another thread, when everything answers.

    Raises:
        InputError: no treaty or key, a port in use, certificates that are expired or don't fit, another
            start over this directory.
        VerificationError: the treaty is not signed by all, or names another key.
        Unreachable: a part did not come up, or ended; the message ends with its log.
    """
    treaty = _treaty(home)
    if gateway_port == port:
        raise InputError(f"port {port} for both nodes and people", remedy="give --port and --gateway-port")
    with ExitStack() as stack:
        stack.callback(os.umask, os.umask(0o077))  # what the server writes is its own
        stack.enter_context(_alone(home))
        door = stack.enter_context(_bound(host, port))
        _bound(host, gateway_port).close()  # the gateway binds it itself, and would only say so in its log
        files = _certificates(home, certificates_in, host)
        stop = stack.enter_context(_signals())
        gateway_address = f"{_bracketed(host)}:{gateway_port}"
        superlink = stack.enter_context(SuperLink(home / "flower", files, tether=True))
        superlink.admit(party.node_key.encode() for party in treaty.parties)
        if stop.is_set():
            return
        directory = files.server_cert.parent
        gateway = stack.enter_context(_Gateway(home, gateway_address, superlink, directory))
        gateway.await_ready(files, stop)
        name = _names(files)[0] if host in _ANY else host
        addresses = Addresses(
            f"{_bracketed(name)}:{gateway_port}",
            f"https://{_bracketed(name)}:{port}",
            files.ca_cert,
        )
        _serve(home, superlink, gateway, files, door, stop, lambda: on_ready(addresses))


def api_server(app: ASGIApp, files: Certificates, host: str, port: int) -> uvicorn.Server:
    """The API with TLS 1.3, not running yet."""
    return tls.server(
        app,
        files,
        host,
        port,
        log_level="warning",
        # Followers hold their connections open; they come back with Last-Event-ID.
        timeout_graceful_shutdown=5,
        limit_concurrency=512,
    )


def run_api(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
    """Serve until it is told to end.

    Raises:
        FoedusError: it never came up; why stands in its own output.
    """
    server.run(sockets=sockets)
    if not server.started:
        raise FoedusError("the API server did not come up", remedy="see what it wrote above")


# ── before anything is started ───────────────────────────────────────────────────────────────────


def _treaty(home: Path) -> Treaty:
    for name, remedy in (
        ("server.key", f"foedus server init {home}"),
        ("treaty.json", f"foedus server init {home} --treaty FILE, once every party has signed"),
    ):
        if not (home / name).exists():
            raise InputError(f"{home / name}: no such file", remedy=remedy)
    _, treaty = treaties.load(home / "treaty.json")
    check_key(treaty, SigningKey.load(home / "server.key"), home / "server.key")
    return treaty


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Two SuperLinks over one database would take each other's runs."""
    path = home / "start.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{home}: another `foedus server start` serves this directory", remedy="stop it first"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that holds `port`, so that nobody takes it before the API listens."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"{host}:{port} can't be listened on: {getattr(error, 'strerror', None) or error}",
            remedy="choose another --host, --port or --gateway-port, or end what listens there",
        ) from error


def _certificates(home: Path, directory: Path | None, host: str) -> Certificates:
    own = home / "certs"
    if directory is None and not own.exists():
        hosts = (socket.gethostname() if host in _ANY else host, *NEEDED_HOSTS)
        return certificates.create(own, tuple(dict.fromkeys(hosts)))
    remedy = "foedus server certificates DIR --host NAME makes new ones; give them with --certificates DIR"
    try:
        files = certificates.load(directory or own)
    except InputError as error:
        raise InputError(error.message, remedy=error.remedy or remedy) from error
    if _LOOPBACK not in _names(files):
        raise InputError(
            f"{files.server_cert}: it names {', '.join(_names(files)) or 'nobody'}, and not {_LOOPBACK}, where "
            "gateway and API reach the SuperLink",
            remedy=remedy,
        )
    return files


def _names(files: Certificates) -> list[str]:
    """Host names and addresses that the server's certificate is for."""
    try:
        certificate = x509.load_pem_x509_certificate(files.server_cert.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    ]


def _bracketed(host: str) -> str:
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host


# ── the parts ────────────────────────────────────────────────────────────────────────────────────


class _Gateway:
    """The gateway's process."""

    def __init__(self, home: Path, listen: str, upstream: SuperLink, directory: Path) -> None:
        self._log, self._listen = home / "gateway.log", listen
        command = [sys.executable, "-m", "foedus.server.gateway"]
        command += ["--listen", listen, "--upstream", upstream.address]
        command += ["--certificates", str(directory.absolute()), "--secret", str(upstream.secret_file)]
        with self._log.open("ab") as output:
            self._before = output.tell()
            self._process = subprocess.Popen(
                tethered(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal is ours to pass on
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def alive(self) -> bool:
        return self._process.poll() is None

    def await_ready(self, files: Certificates, stop: threading.Event) -> None:
        """Wait until it answers, ends, or `stop` is set; raises `Unreachable` if it does not come up."""
        context = tls.trusting(files)
        context.check_hostname = False  # asked by address, whatever its certificate is for
        host, _, port = self._listen.rpartition(":")
        asked = {"0.0.0.0": _LOOPBACK, "[::]": "[::1]"}.get(host, host)  # noqa: S104
        end = time.monotonic() + _READY
        with httpx.Client(verify=context, trust_env=False, timeout=2.0) as client:
            while not stop.is_set():
                if not self.alive():
                    raise self.ended()
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"https://{asked}:{port}/health").status_code == 200:
                        return
                if time.monotonic() >= end:
                    raise Unreachable(
                        f"the gateway does not answer within {_READY:.0f} s", remedy=f"see {self._log}"
                    )
                time.sleep(_LOOK / 2)

    def ended(self) -> Unreachable:
        """What to raise when it ended though nobody asked it to."""
        with self._log.open("rb") as written:
            written.seek(self._before)
            tail = written.read().decode(errors="replace")[-_LOG_TAIL:].strip()
        return Unreachable(
            f"the gateway ended with exit status {self._process.returncode}\n{tail}".strip(),
            remedy=f"see {self._log}",
        )


def _serve(
    home: Path,
    superlink: SuperLink,
    gateway: _Gateway,
    files: Certificates,
    door: socket.socket,
    stop: threading.Event,
    on_ready: Callable[[], None],
) -> None:
    """The API in this thread, and another that looks after the parts."""
    from .app import create_app

    host, port = door.getsockname()[:2]
    server = api_server(create_app(Settings(home=home, superlink=superlink)), files, host, port)
    over = threading.Event()
    died: list[FoedusError] = []

    def look_after() -> None:
        told = False
        while not over.wait(_LOOK):
            if server.started and not told:
                told = True
                on_ready()
            if not gateway.alive():
                died.append(gateway.ended())
            elif not superlink.alive():
                log = home / "flower" / "superlink.log"
                died.append(Unreachable("the SuperLink has ended", remedy=f"see {log}"))
            if died or stop.is_set():
                server.should_exit = True
                return

    watch = threading.Thread(target=look_after, name="foedus-parts", daemon=True)
    watch.start()
    try:
        run_api(server, [door])
    finally:
        over.set()
        watch.join()
    if died:
        raise died[0]


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Set by SIGTERM or SIGINT, which do nothing else: what runs here is ended in order, not in the middle."""
    stop = threading.Event()
    numbers: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
