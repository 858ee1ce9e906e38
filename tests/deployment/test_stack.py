"""``foedus server start``: a whole server by one command, which ends with everything that it started."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support.treaties import Keys, make_home, make_treaty

from foedus import cli
from foedus.clients import fleet
from foedus.demo.deploy import free_ports
from foedus.documents import SigningKey, write_private_file
from foedus.errors import InputError, Unreachable, VerificationError
from foedus.server import certificates, stack
from foedus.server.superlink import SuperLink

pytestmark = pytest.mark.deployment


@pytest.fixture
def home(tmp_path: Path) -> tuple[Path, Keys]:
    document, _, keys = make_treaty()
    return make_home(tmp_path / "coordinator", document, keys), keys


class Started:
    """The command as a process, and what it said."""

    def __init__(self, home: Path, gateway: int, api: int) -> None:
        self.gateway, self.api = f"127.0.0.1:{gateway}", f"127.0.0.1:{api}"
        command = [sys.executable, "-m", "foedus", "server", "start", str(home)]
        command += ["--gateway-port", str(gateway), "--port", str(api)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.seen: dict[int, str] = {}

    def lines(self, count: int) -> list[str]:
        assert self.process.stdout is not None
        return [self.process.stdout.readline().rstrip() for _ in range(count)]

    def below(self) -> dict[int, str]:
        """Every process below it: pid -> its command line. All that were ever seen are kept in `seen`."""
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
            except OSError:
                continue
        found, todo = {}, [self.process.pid]
        while todo:
            for pid in parents.get(todo.pop(), []):
                todo.append(pid)
                found[pid] = _words(pid)
        self.seen |= found
        return found

    def left(self) -> list[str]:
        """What is still running of all that was seen."""
        return [words for pid, words in self.seen.items() if words and _words(pid) == words]


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@contextmanager
def started(home: Path, gateway: int, api: int) -> Iterator[Started]:
    found = Started(home, gateway, api)
    try:
        yield found
    finally:
        found.below()
        if found.process.poll() is None:
            found.process.terminate()
        try:
            found.process.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            found.process.kill()
            found.process.communicate()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_everything_is_up_and_ends_by_sigterm(home: tuple[Path, Keys], tmp_path: Path) -> None:
    directory, keys = home
    gateway, api = free_ports(2)
    with started(directory, gateway, api) as server:
        assert server.lines(3) == [
            f"nodes   127.0.0.1:{gateway}",
            f"people  https://127.0.0.1:{api}",
            f"CA      {directory / 'certs' / 'ca.crt'}",
        ]
        tls = ssl.create_default_context(cafile=str(directory / "certs" / "ca.crt"))
        for address in (server.gateway, server.api):
            answer = httpx.get(f"https://{address}/health", verify=tls, trust_env=False)
            assert answer.status_code == 200
        assert (
            httpx.get(f"https://{server.gateway}/v1/log/entries", verify=tls, trust_env=False).status_code
            == 404
        )
        attach(tmp_path, directory, server.gateway, keys.nodes["shop-2"])

        old = ssl.create_default_context(cafile=str(directory / "certs" / "ca.crt"))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        for address in (server.gateway, server.api):
            with pytest.raises(httpx.ConnectError, match="SSL"):
                httpx.get(f"https://{address}/health", verify=old, trust_env=False)
            before = shown(address)
        certificates.renew(directory / "certs")
        until(lambda: shown(server.gateway) == shown(server.api) != before)  # with nothing restarted
        assert httpx.get(f"https://{server.api}/health", verify=tls, trust_env=False).status_code == 200

        listening = [line for line in server.below().values() if "superlink_process" in line]
        assert len(listening) == 1
        again = Started(directory, *free_ports(2))  # over the same directory
        _, complaint = again.process.communicate(timeout=30)
        assert again.process.returncode == 2 and "another `foedus server start`" in complaint

        assert len(server.below()) >= 2
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        until(lambda: not server.left(), 2.0)
    assert (directory / "certs" / "ca.key").stat().st_mode & 0o077 == 0


def shown(address: str) -> str:
    """The certificate that a server shows."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)))


def test_only_the_treatys_nodes_are_let_in(home: tuple[Path, Keys], tmp_path: Path) -> None:
    """A key that was registered at this SuperLink before, though the treaty does not name it, is thrown out."""
    directory, keys = home
    files = certificates.create(directory / "certs")
    stranger = fleet.generate_node_key(tmp_path / "stranger")
    with SuperLink(directory / "flower", files) as before:
        before.register_node(stranger)
        assert [node.public_key_pem for node in before.nodes()] == [stranger]
    with started(directory, *free_ports(2)) as server:
        server.lines(3)
        attach(tmp_path, directory, server.gateway, keys.nodes["shop-1"])
        link = fleet.FleetLink(server.gateway, files.ca_cert, tmp_path / "stranger")
        with pytest.raises(Unreachable, match="does not know this node's key"):
            fleet.serve(link, lambda message, _: message, stop=threading.Event())


def attach(folder: Path, directory: Path, gateway: str, pem: bytes) -> None:
    """A node with a key of the treaty is let in; nobody registered it by hand."""
    private = serialization.load_pem_private_key(pem, None)
    openssh = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_private_file(folder / "fleet.key", openssh)
    events: list[str] = []
    stop = threading.Event()
    link = fleet.FleetLink(gateway, directory / "certs" / "ca.crt", folder / "fleet.key")
    thread = threading.Thread(
        target=fleet.serve,
        args=(link, lambda message, _: message),
        kwargs={"stop": stop, "on_event": lambda name, _: events.append(name)},
    )
    thread.start()
    try:
        until(lambda: "attached" in events)
    finally:
        stop.set()
        thread.join(20)


def test_the_end_of_one_part_ends_the_others(home: tuple[Path, Keys]) -> None:
    with started(home[0], *free_ports(2)) as server:
        server.lines(3)
        (pid,) = [pid for pid, words in server.below().items() if "server.gateway" in words]
        os.kill(pid, signal.SIGKILL)
        _, said = server.process.communicate(timeout=30)
        assert server.process.returncode == 6
        assert "the gateway ended" in said and "gateway.log" in said and "Traceback" not in said
        until(lambda: not server.left(), 2.0)


# ── what is found before anything is started ─────────────────────────────────────────────────────


@pytest.mark.parametrize("taken", ["gateway", "api"])
def test_a_port_in_use(home: tuple[Path, Keys], taken: str) -> None:
    gateway, api = free_ports(2)
    port = gateway if taken == "gateway" else api
    with socket.create_server(("127.0.0.1", port)), started(home[0], gateway, api) as server:
        _, said = server.process.communicate(timeout=30)
    assert server.process.returncode == 2
    assert f"127.0.0.1:{port} can't be listened on" in said
    assert "Traceback" not in said and not (home[0] / "flower").exists()


def begin(home: Path, **changes: object) -> None:
    gateway, api = free_ports(2)
    arguments = {"host": "127.0.0.1", "gateway_port": gateway, "port": api} | changes
    stack.start(home, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["treaty.json", "server.key"])
def test_a_directory_that_is_not_a_servers(home: tuple[Path, Keys], missing: str) -> None:
    (home[0] / missing).unlink()
    with pytest.raises(InputError, match=missing) as found:
        begin(home[0])
    assert "foedus server init" in found.value.remedy
    assert not (home[0] / "certs").exists() and not (home[0] / "flower").exists()


def test_a_key_that_the_treaty_does_not_name(home: tuple[Path, Keys]) -> None:
    (home[0] / "server.key").unlink()
    SigningKey.generate().save(home[0] / "server.key")
    with pytest.raises(VerificationError, match="not the key of the treaty's coordinator"):
        begin(home[0])


def test_one_port_for_both(home: tuple[Path, Keys]) -> None:
    with pytest.raises(InputError, match="port 9443 for both"):
        begin(home[0], gateway_port=9443, port=9443)


def test_certificates_that_have_expired(home: tuple[Path, Keys], tmp_path: Path) -> None:
    files = certificates.create(tmp_path / "old")
    files.server_cert.write_bytes(expired())
    with pytest.raises(InputError, match="expired on") as found:
        begin(home[0], certificates_in=tmp_path / "old")
    assert "foedus server certificates" in found.value.remedy
    assert not (home[0] / "flower").exists()


def expired() -> bytes:
    """A certificate that ended a month ago."""
    key, end = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC) - timedelta(days=30)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(end - timedelta(days=30)).not_valid_after(end)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_certificates_that_do_not_name_loopback(home: tuple[Path, Keys], tmp_path: Path) -> None:
    certificates.create(tmp_path / "certs", ("coordinator.example",))
    with pytest.raises(InputError, match=r"names coordinator\.example, and not 127\.0\.0\.1"):
        begin(home[0], certificates_in=tmp_path / "certs")
    with pytest.raises(InputError, match="No such file"):
        begin(home[0], certificates_in=tmp_path / "none")


def test_the_command_makes_certificates_that_fit(
    home: tuple[Path, Keys], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "certs"
    with pytest.raises(SystemExit, match="0"):
        cli.main(
            ["server", "certificates", str(where), "--host", "coordinator.example", "--host", "10.0.0.7"]
        )
    assert f"give {where / 'ca.crt'} to every partner" in capsys.readouterr().out
    ssl.create_default_context(cafile=str(where / "ca.crt"))
    before = {path.name: path.read_bytes() for path in where.iterdir()}
    with pytest.raises(SystemExit, match="0"):
        cli.main(["server", "certificates", str(where), "--renew", "--days", "30"])
    end = datetime.now(UTC) + timedelta(days=30)
    assert f"renewed {where / 'server.crt'}, valid until {end:%Y-%m-%d}" in capsys.readouterr().out
    after = {path.name: path.read_bytes() for path in where.iterdir()}
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"server.crt"}
    with pytest.raises(InputError, match="can't be listened on"):  # the certificates are not why
        begin(home[0], certificates_in=where, host="192.0.2.1")
    assert "coordinator.example" in stack._names(certificates.load(where))
