"""What a node meets in a year: servers that go and come back, certificates that end, clocks, full disks."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from flwr.supercore.date import now
from support.disks import small_disk
from support.rooms import ECHO, House, Node, until

from foedus.clients import connection, fleet
from foedus.server import certificates

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),  # in flwr.cli.build
]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    built = House(tmp_path_factory.mktemp("house"))
    try:
        yield built
    finally:
        built.end()


def said(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in record.getMessage() for record in caplog.records)


def kill(house: House) -> None:
    """The SuperLink dies at once, with its ServerApps."""
    assert house.superlink.pid is not None
    os.killpg(house.superlink.pid, signal.SIGKILL)
    until(lambda: not house.superlink.alive())
    house.superlink.stop()


def test_the_superlink_dies_while_a_message_is_being_answered(house: House) -> None:
    node = Node(house.link("busy"), "slow")
    try:
        out = house.root / "lost.json"
        house.superlink.start_run({"out": str(out), "nodes": 1, "trips": 1}, ECHO)
        until(lambda: "asked" in node.events)
        kill(house)
        until(lambda: "lost" in node.events)  # one that is back sooner is not missed at all
        house.superlink.start()
        until(lambda: node.events.count("attached") == 2)
        until(lambda: "answered" in node.events)  # to the run that was, which nobody reads any more
        assert house.trips(1, 1)[0]["answers"] == ["slow-1"]  # and the next run is served
        assert (node.events.count("asked"), node.events.count("answered")) == (2, 2)  # each once
        assert not out.exists()
    finally:
        node.end()
    assert node.error is None


NODE = """
import sys, threading
from pathlib import Path
from flwr.app import Message
from foedus.clients.fleet import FleetLink, serve
link = FleetLink(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
say = lambda name, detail: print(name, detail.get("node_id", ""), flush=True)
serve(link, lambda message, _: Message(message.content, reply_to=message), stop=threading.Event(), on_event=say)
"""


def test_a_node_that_was_killed_is_back_at_once(house: House) -> None:
    link = house.link("killed")
    command = [sys.executable, "-c", NODE, link.address, str(link.root_certificates), str(link.node_key)]
    lines = []
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        start = time.monotonic()
        lines.append(process.stdout.readline())
        took = time.monotonic() - start
        process.kill()
        process.communicate()
    assert lines[0].startswith("attached ") and lines[1] == lines[0]  # the same node
    assert took < 15  # not the twenty seconds until Flower holds the first for dead


def expiring(folder: Path, seconds: float) -> None:
    """Put a server certificate into `folder` that ends in `seconds`."""
    ca = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    old = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    key = certificates._private_key(folder / "ca.key")
    names = list(old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    made = certificates._sign(ca, key, names, old.public_key(), seconds / 86400)  # type: ignore[arg-type]
    (folder / "server.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))


def test_a_certificate_that_has_expired_is_named_and_waited_for(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    folder, link = house.root / "tls", house.link("waiting")
    before = Node(link, "ok")
    until(lambda: before.events == ["attached"])
    before.end()
    nodes = {node.public_key_pem: node.node_id for node in house.superlink.nodes()}
    expiring(folder, 3.0)
    ended = certificates.ends(house.files)
    time.sleep(6.0)  # the servers have taken it up, and it has ended
    node = Node(link, "ok")
    try:
        until(lambda: "lost" in node.events)
        assert said(caplog, f"to {ended:%Y-%m-%d %H:%M} UTC") and said(caplog, f"it is {now():%Y-%m-%d}")
        assert said(caplog, "foedus server certificates DIR --renew")
        assert node.thread.is_alive() and "attached" not in node.events
        certificates.renew(folder)
        until(lambda: "attached" in node.events, 40)  # by itself, with nothing restarted
        assert house.trips(1, 1)[0]["answers"] == ["ok-1"]
    finally:
        certificates.renew(folder)
        node.end()
    assert node.error is None
    assert {node.public_key_pem: node.node_id for node in house.superlink.nodes()} == nodes


def test_another_ca_is_taken_up_when_its_file_is_put_into_place(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = tmp_path / "ca.crt"
    shutil.copyfile(house.files.ca_cert, mine)
    link = house.link("moving")
    node = Node(fleet.FleetLink(link.address, mine, link.node_key), "ok")
    try:
        until(lambda: node.events == ["attached"])
        both = house.files.ca_cert.read_bytes() + certificates.create(tmp_path / "next").ca_cert.read_bytes()
        mine.write_bytes(both)
        caplog.set_level(logging.INFO, "foedus.node")
        until(lambda: said(caplog, "another CA file, taken up"), 20)
        mine.write_text("not a certificate")
        time.sleep(0.1)
        assert house.trips(1, 1)[0]["answers"] == ["ok-1"]
        until(lambda: said(caplog, "trusting what it held before"), 20)
        mine.write_bytes(
            (tmp_path / "next" / "ca.crt").read_bytes()
        )  # the server's CA is no longer among them
        until(lambda: "lost" in node.events, 20)
        mine.write_bytes(both)
        until(lambda: node.events[-1] == "attached", 30)
        assert house.trips(1, 1)[0]["answers"] == ["ok-1"]
    finally:
        node.end()
    assert node.error is None


def test_a_clock_that_is_wrong_is_named_and_waited_for(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = timedelta(minutes=7)
    monkeypatch.setattr(connection, "now", lambda: datetime.now(UTC) + off)
    node = Node(house.link("late"), "ok")
    try:
        until(lambda: "lost" in node.events)
        assert said(
            caplog, "does not accept this node's signature; this machine's clock is 7 min ahead of it"
        )
        assert said(caplog, "set this machine's clock") and "attached" not in node.events
        off = timedelta(minutes=2)  # little enough
        until(lambda: "attached" in node.events, 30)
        assert house.trips(1, 1)[0]["answers"] == ["ok-1"]  # the reply is timed by the server's clock
        off = timedelta(minutes=-9)  # set wrongly while the node runs
        until(lambda: node.events[-1] == "lost", 40)
        until(lambda: said(caplog, "this machine's clock is 9 min behind it"))
        off = timedelta()
        until(lambda: node.events[-1] == "attached", 30)
        assert house.trips(1, 1)[0]["answers"] == ["ok-1"]
    finally:
        node.end()
    assert node.error is None


def test_a_full_disk_under_the_nodes_key_stops_nothing(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link = house.link("crowded")
    with small_disk(tmp_path / "disk", 1) as disk:
        key = disk.path / "key"
        key.write_bytes(link.node_key.read_bytes())
        key.chmod(0o600)
        (disk.path / "key.id").touch()
        disk.fill()
        node = Node(fleet.FleetLink(link.address, link.root_certificates, key), "ok")
        try:
            until(lambda: "attached" in node.events)
            assert said(caplog, "key.id: not written: No space left on device")
            assert house.trips(1, 1)[0]["answers"] == ["ok-1"]
        finally:
            node.end()
        assert node.error is None
        disk.free()
        again = Node(fleet.FleetLink(link.address, link.root_certificates, key), "ok")
        until(lambda: "attached" in again.events)
        again.end()
        assert int((disk.path / "key.id").read_text()) > 0


def test_a_handler_whose_disk_is_full_is_told_of_in_one_line(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        disk.fill()

        class Writing(Node):
            def _handle(self, message, context):  # type: ignore[no-untyped-def]
                (disk.path / "note").write_bytes(b"x" * 8192)
                return super()._handle(message, context)

        node = Writing(house.link("writing"), "ok")
        try:
            until(lambda: "attached" in node.events)
            assert house.trips(1, 1)[0]["errors"] == [[2, fleet.FAILED]]
            assert said(caplog, "the disk is full") and not said(caplog, "the handler failed")
            disk.free()
            assert house.trips(1, 1)[0]["answers"] == ["ok-1"]
        finally:
            node.end()
        assert threading.active_count() < 50
