"""SuperLink, gateway and nodes with TLS on 127.0.0.1: they work together, and outsiders get nothing."""

import contextlib
import json
import os
import re
import shutil
import signal
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, RegisterNodeFleetRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from support.rooms import ECHO, House, Node, free_port, until

from foedus.clients import connection, fleet
from foedus.errors import FoedusError, InputError, Unreachable
from foedus.server import certificates
from foedus.server.control import ControlLink
from foedus.server.superlink import SuperLink

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


def control(house: House) -> Any:
    return ControlHttpClient.from_server_address(
        server_address=house.address,
        insecure=False,
        root_certificates=house.files.ca_cert.read_bytes(),
        interceptors=[],
    )


def test_certificates(tmp_path: Path) -> None:
    made = certificates.create(tmp_path / "tls", hosts=("localhost", "127.0.0.1"))
    assert certificates.load(tmp_path / "tls") == made
    for name in ("ca.key", "server.key"):
        assert (tmp_path / "tls" / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="exists already"):
        certificates.create(tmp_path / "tls")
    with pytest.raises(InputError):
        certificates.create(tmp_path / "other", hosts=())
    names, old = certificates.load(tmp_path / "tls"), made.server_cert.read_bytes()
    end = certificates.renew(tmp_path / "tls", days=20)
    assert names == made and certificates.ends(made) == end and made.server_cert.read_bytes() != old
    certificates.create(tmp_path / "second")
    shutil.copyfile(tmp_path / "second" / "ca.key", tmp_path / "tls" / "ca.key")
    with pytest.raises(InputError, match=r"ca\.key: not the key of"):
        certificates.renew(tmp_path / "tls")
    shutil.copyfile(tmp_path / "second" / "server.crt", made.server_cert)
    with pytest.raises(InputError, match=r"server\.key: not the key of"):
        certificates.load(tmp_path / "tls")
    made.server_key.chmod(0o644)
    with pytest.raises(InputError, match="readable by others"):
        certificates.load(tmp_path / "tls")
    with pytest.raises(InputError):
        certificates.load(tmp_path / "none")


def test_a_node_key_others_may_read_is_refused(tmp_path: Path) -> None:
    public = fleet.generate_node_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert (
        public.startswith(b"-----BEGIN PUBLIC KEY-----") and fleet.node_public_key(tmp_path / "key") == public
    )
    with pytest.raises(InputError, match="exists already"):
        fleet.generate_node_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    link = fleet.FleetLink("127.0.0.1:1", tmp_path / "ca", tmp_path / "key")
    with pytest.raises(InputError, match="readable by others"):
        fleet.serve(link, lambda message, _: message, stop=threading.Event())
    (tmp_path / "text").write_text("no key")
    (tmp_path / "text").chmod(0o600)
    with pytest.raises(InputError, match="not an OpenSSH private key"):
        fleet.node_public_key(tmp_path / "text")


def test_trips_through_the_gateway_and_over_a_restart(house: House) -> None:
    links = [house.link(f"node{i}") for i in range(2)]
    assert house.superlink.register_node(fleet.node_public_key(links[0].node_key)) > 0  # again: the same node
    nodes = [Node(link, "raise" if i else "ok") for i, link in enumerate(links)]
    try:
        until(lambda: all(node.events == ["attached"] for node in nodes))
        with pytest.raises(InputError, match="another process"):
            fleet.serve(links[0], lambda message, _: message, stop=threading.Event())

        trips = house.trips(2, 3)  # content inside the messages
        assert [trip["answers"] for trip in trips] == [["ok-1"], ["ok-2"], ["ok-3"]]
        for trip in trips:
            assert trip["echoed"] == 1
            assert trip["errors"] == [[2, fleet.FAILED]]  # and nothing of the exception
        large = house.trips(2, 1, size=3 * 2**20)  # too large for that, so as objects
        assert (large[0]["echoed"], large[0]["errors"]) == (1, [[2, fleet.FAILED]])
        stock = house.trips(2, 1, quick=False)  # Flower's own grid
        assert (stock[0]["echoed"], stock[0]["errors"]) == (1, [[2, fleet.FAILED]])

        pid = house.superlink.pid
        assert pid is not None
        os.killpg(pid, signal.SIGKILL)
        until(lambda: not house.superlink.alive())
        assert house.get("/health").status_code == 503
        until(lambda: all("lost" in node.events for node in nodes))
        house.superlink.stop()
        house.superlink.start()
        until(lambda: all(node.events[-1] == "attached" for node in nodes))
        again = house.trips(2, 1)
        assert (again[0]["answers"], again[0]["echoed"]) == (["ok-1"], 1)
        assert {node.status for node in house.superlink.nodes() if node.public_key_pem} >= {"online"}
    finally:
        for node in nodes:
            node.end()
    assert [node.error for node in nodes] == [None, None]
    mine = {fleet.node_public_key(link.node_key) for link in links}
    assert {n.status for n in house.superlink.nodes() if n.public_key_pem in mine} == {"offline"}


def test_a_reply_outlives_a_gateway_that_goes_down(house: House) -> None:
    node = Node(house.link("patient"), "slow")

    def break_down() -> None:
        until(lambda: "asked" in node.events)
        house.gateway.kill()
        house.gateway.wait()
        until(lambda: "lost" in node.events)
        house.start_gateway()

    breaking = threading.Thread(target=break_down)
    breaking.start()
    try:
        assert house.trips(1, 1)[0]["answers"] == ["slow-1"]
    finally:
        breaking.join()
        node.end()
    told = dict.fromkeys(node.events)  # each once: it may be lost several times
    assert list(told) == ["attached", "asked", "lost", "answered"] and node.events.count("asked") == 1


def test_an_unregistered_node_is_told_so(house: House) -> None:
    link = house.link("stranger", registered=False)
    with pytest.raises(Unreachable, match="does not know this node's key") as refused:
        fleet.serve(link, lambda message, _: message, stop=threading.Event())
    assert "register" in refused.value.remedy


def test_a_server_with_another_ca_is_not_trusted(house: House, tmp_path: Path) -> None:
    other = certificates.create(tmp_path / "other")
    link = fleet.FleetLink(house.address, other.ca_cert, house.link("careful").node_key)
    with pytest.raises(Unreachable, match="not to be trusted"):
        fleet.serve(link, lambda message, _: message, stop=threading.Event())


def test_an_outsider_with_the_ca_certificate_gets_nothing(house: House, tmp_path: Path) -> None:
    for path in (
        "/docs",
        "/openapi.json",
        "/redoc",
        "/",
        "/v1/control/list-nodes",
        "/v1/fleet/pull-messages",
    ):
        answer = house.get(path)
        assert (answer.status_code, answer.content) == (404, b"")
    assert house.get("/health").status_code == 200

    public = fleet.generate_node_key(tmp_path / "outsider")
    house.link("known")
    before = house.superlink.nodes()
    with control(house) as client, pytest.raises(httpx.HTTPStatusError, match="404"):
        client.RegisterNode(RegisterNodeRequest(public_key=public))
    with (
        ControlLink(house.address, house.files.ca_cert, house.superlink.secret_file) as through,
        pytest.raises(FoedusError, match="404"),  # even with the secret, the gateway has no such route
    ):
        through.start_run({}, ECHO)
    anonymous = FleetHttpClient.from_server_address(
        house.address, False, house.files.ca_cert.read_bytes(), interceptors=[]
    )
    with anonymous:
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            anonymous.RegisterNode(RegisterNodeFleetRequest(public_key=public))
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            anonymous.ActivateNode(
                ActivateNodeRequest(public_key=before[0].public_key_pem, heartbeat_interval=30)
            )
    for route in ("runtime/acquire-task", "runtime/pull-messages", "fleet/get-fab", "fleet/get-run"):
        answer = httpx.post(
            f"https://{house.address}/v1/{route}",
            headers={"content-type": "application/protobuf"},
            verify=house.tls,
            trust_env=False,
        )
        assert (answer.status_code, answer.content) == (404, b"")
    assert house.superlink.nodes() == before


def test_an_outsider_on_the_servers_own_machine_gets_nothing(house: House, tmp_path: Path) -> None:
    """With the CA certificate, at the SuperLink's port itself, while a run is going on."""
    node = Node(house.link("busy"), "slow")
    out = tmp_path / "trips.json"
    run_id = house.superlink.start_run({"out": str(out), "nodes": 1, "trips": 1}, ECHO)
    try:
        until(lambda: "asked" in node.events)
        base, before = f"https://{house.superlink.address}", house.superlink.nodes()
        protobuf = {"content-type": "application/protobuf", "accept": "application/protobuf"}
        with httpx.Client(base_url=base, verify=house.tls, trust_env=False, headers=protobuf) as client:
            assert client.get("/health").status_code == 200
            for path in ("/docs", "/openapi.json", "/redoc", "/", "/v1/control/list-nodes"):
                assert_nothing(client.get(path))
            for _, path in PROTOBUF_REQUEST_TYPES:
                assert_nothing(client.post(path))
                assert_nothing(
                    client.post(path, headers={"foedus-key": "0" * 64, "flwr-task-token": "0" * 64})
                )
        public = fleet.generate_node_key(tmp_path / "outsider")
        (tmp_path / "guess").write_bytes(os.urandom(32))
        (tmp_path / "guess").chmod(0o600)
        guessing = ControlLink(house.superlink.address, house.files.ca_cert, tmp_path / "guess")
        with guessing, pytest.raises(FoedusError, match="401"):
            guessing.register_node(public)
        # the node's own key does not help either: the gateway is the only way to the fleet's routes
        strangers = fleet.FleetLink(house.superlink.address, house.files.ca_cert, tmp_path / "outsider")
        key = connection.load_key(tmp_path / "outsider")
        with connection.Connection(strangers, key) as direct, pytest.raises(connection.Denied, match="401"):
            direct.call(
                "activate-node",
                ActivateNodeRequest(public_key=public, heartbeat_interval=10),
                ActivateNodeResponse,
            )
        runtime = RuntimeHttpClient.from_server_address(
            server_address=house.superlink.address,
            insecure=False,
            root_certificates=house.files.ca_cert.read_bytes(),
            interceptors=[],
        )
        with runtime, pytest.raises(httpx.HTTPStatusError, match="404"):
            runtime.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
        assert house.superlink.nodes() == before

        # what the other users of this machine see of our processes holds no secret and no token
        secret = house.superlink.secret_file
        assert secret.stat().st_mode & 0o777 == 0o600
        commands = [path.read_bytes() for path in below(house.superlink.pid)]
        assert any(b"flwr-serverapp" in words for words in commands)
        assert not any(re.search(rb"[0-9a-f]{32}", words) for words in commands)
    finally:
        until(lambda: house.superlink.run_status(run_id).finished)
        node.end()
    assert json.loads(out.read_text())[0]["answers"] == ["slow-1"]


def assert_nothing(answer: httpx.Response) -> None:
    """A refusal that says nothing of what there is, or Flower's own of a token that it does not know."""
    assert answer.status_code in (401, 404), answer.request.url
    if not answer.request.url.path.startswith("/v1/runtime/"):
        assert answer.content == b""


def below(pid: int | None) -> list[Path]:
    """Command lines of a process and those it started."""
    found = [Path(f"/proc/{pid}/cmdline")]
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if (entry / "stat").read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(entry / "cmdline")
    return found


@pytest.mark.parametrize("port", ["the gateway's", "the SuperLink's"])
def test_tls_1_2_is_refused(house: House, port: str) -> None:
    address = house.address if port == "the gateway's" else house.superlink.address
    old = ssl.create_default_context(cafile=str(house.files.ca_cert))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(httpx.ConnectError, match="SSL"):
        httpx.get(f"https://{address}/health", verify=old, trust_env=False)
    assert httpx.get(f"https://{address}/health", verify=house.tls, trust_env=False).status_code == 200


def test_exactly_the_admitted_nodes_are_let_in(house: House) -> None:
    kept = [node.public_key_pem for node in house.superlink.nodes()]
    leaving = house.link("leaving")
    gone = fleet.node_public_key(leaving.node_key)
    house.superlink.admit(kept)
    assert {node.public_key_pem for node in house.superlink.nodes()} == set(kept)
    with pytest.raises(Unreachable, match="does not know this node's key"):
        fleet.serve(leaving, lambda message, _: message, stop=threading.Event())
    with pytest.raises(InputError, match="not usable") as refused:
        house.superlink.admit([*kept, gone])
    assert "new node key" in refused.value.remedy


def test_errors_of_the_superlink(house: House, tmp_path: Path) -> None:
    taken = SuperLink(tmp_path, house.files, port=house.superlink.port)
    with pytest.raises(InputError, match="in use"):
        taken.start()
    taken.stop()
    with pytest.raises(InputError, match="not found"):
        house.superlink.run_status(1)
    with pytest.raises(InputError):
        house.superlink.register_node(b"no key")
    with pytest.raises(FoedusError):
        house.superlink.start_run({"unknown": 1}, ECHO)
    secret = house.superlink.secret_file
    with (
        ControlLink(f"127.0.0.1:{free_port()}", house.files.ca_cert, secret) as nobody,
        pytest.raises(Unreachable),
    ):
        nobody.nodes()
    (tmp_path / "superlink.db").write_text("not a database")
    broken = SuperLink(tmp_path, house.files)
    with pytest.raises(Unreachable, match="not a database"):
        broken.start()
    assert not broken.alive()
