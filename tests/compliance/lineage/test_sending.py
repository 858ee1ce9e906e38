"""Sending: nothing is lost while an endpoint is down, nothing is sent that is not in the store, and only own events."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from support.disks import small_disk

from foedus.compliance.lineage import Event, Lineage, names, new_run_id, pair, read_events
from foedus.compliance.lineage.sending import FileEndpoint, HttpEndpoint, endpoints, send
from foedus.errors import InputError

PARENT = (UUID(int=7), "foedus://server", "study")


@pytest.fixture
def store(tmp_path: Path) -> Lineage:
    made = Lineage(tmp_path / "lineage.db", names.namespace("shop-a"), "urn:x")
    tell(made, 3)
    other = Lineage(tmp_path / "other.db", names.namespace("server"), "urn:x")
    tell(other, 1)
    made.take([s.event for s in other.events()], "server")
    return made


def tell(store: Lineage, runs: int) -> None:
    store.emit(*(x for i in range(runs) for x in pair(Event(new_run_id(), f"job {i}", "COMPLETE", PARENT))))


class Marquez:
    """An endpoint that answers what it is told to, and keeps what it took."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.answers: list[int] = []  # what comes next; then 201
        self.url = ""

    def answer(self, body: bytes, token: str | None) -> int:
        status = self.answers.pop(0) if self.answers else 201
        self.tokens.add(token)
        if status < 300:
            self.taken.append(json.loads(body))
        return status


@contextmanager
def serving(marquez: Marquez, port: int = 0) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(marquez.answer(body, self.headers["Authorization"]))
            self.send_header("Content-Length", "0")
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    marquez.url = f"http://127.0.0.1:{server.server_port}/api/v1/lineage"
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pauseless(_: float) -> None:
    pass


def test_own_events_arrive_in_order_and_once(store: Lineage) -> None:
    own = [s.event for s in store.events(own=True)]
    with serving(marquez := Marquez()), HttpEndpoint(marquez.url, token="abc") as endpoint:
        assert send(store, endpoint).sent == 6
        assert send(store, endpoint).sent == 0
        tell(store, 1)
        assert send(store, endpoint).sent == 2
    assert marquez.taken[:6] == own and len(marquez.taken) == 8
    assert marquez.tokens == {"Bearer abc"}
    assert endpoints(store) == [(marquez.url, 0, 0, "")]


def test_nothing_is_lost_while_the_endpoint_is_away(store: Lineage) -> None:
    marquez, waits = Marquez(), []
    with serving(marquez) as port:
        marquez.answers = [201, 503, 429, 503, 503]
        with HttpEndpoint(marquez.url) as endpoint:
            found = send(store, endpoint, retries=3, pause=waits.append)
    assert (found.sent, found.waiting) == (1, 5) and "503" in found.error
    assert waits == [0.5, 1.0, 2.0]
    with HttpEndpoint(marquez.url) as endpoint:  # nobody there at all
        found = send(store, endpoint, retries=1, pause=pauseless)
    assert (found.sent, found.waiting) == (0, 5) and found.error
    tell(store, 1)
    with serving(marquez, port), HttpEndpoint(marquez.url) as endpoint:
        assert send(store, endpoint).sent == 7
    assert marquez.taken == [s.event for s in store.events(own=True)]


def test_what_was_put_off_waits_its_time(store: Lineage) -> None:
    with serving(marquez := Marquez()), HttpEndpoint(marquez.url) as endpoint:
        marquez.answers = [503]
        send(store, endpoint, retries=0, now=lambda: 1000.0)
        assert send(store, endpoint, now=lambda: 1010.0, at_once=False).sent == 5  # all but the first
        assert send(store, endpoint, now=lambda: 1031.0, at_once=False).sent == 1


def test_an_event_that_is_refused_stays_and_stops_no_other(store: Lineage) -> None:
    with serving(marquez := Marquez()), HttpEndpoint(marquez.url) as endpoint:
        marquez.answers = [201, 400]
        found = send(store, endpoint)
    assert (found.sent, found.waiting, found.refused) == (5, 0, 1)
    assert "answered 400" in endpoints(store)[0][3]


@pytest.mark.parametrize("status", [401, 404, 302])
def test_an_address_that_is_wrong_is_said(store: Lineage, status: int) -> None:
    with serving(marquez := Marquez()), HttpEndpoint(marquez.url) as endpoint:
        marquez.answers = [status] * 9
        try:
            found = send(store, endpoint, retries=0)
        except InputError as error:
            assert str(status) in error.message
        else:
            assert found.sent == 0 and found.waiting == 6  # a redirect is not followed
        marquez.answers = []
        assert send(store, endpoint).sent == 6


def test_a_server_that_hangs_is_away(store: Lineage) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with HttpEndpoint(url, timeout=0.2) as endpoint:
            found = send(store, endpoint, retries=0)
    assert found.waiting == 6 and found.error


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x",
        "ftp://127.0.0.1/x",
        "https://",
        "https://u:p@example.com/",
        "http://[::1",
        "https://a:b/",
    ],
)
def test_an_address_that_would_leak_or_is_none_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        HttpEndpoint(url)


def test_a_file_is_appended_to_and_a_torn_line_taken_away(store: Lineage, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    assert send(store, FileEndpoint(file)).sent == 6
    with file.open("ab") as torn:
        torn.write(b'{"eventTi')
    tell(store, 1)
    assert send(store, FileEndpoint(file)).sent == 2
    assert read_events(file) == [s.event for s in store.events(own=True)]
    with pytest.raises(InputError):
        send(store, FileEndpoint(tmp_path))
    assert {n: w for n, w, _, _ in endpoints(store)}[f"file:{tmp_path}"] == 8


def test_a_full_disk_writes_no_half_of_a_batch(store: Lineage, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        file = disk.path / "out.jsonl"
        send(store, FileEndpoint(file))
        tell(store, 40)
        disk.fill()
        with pytest.raises(InputError, match=r"out\.jsonl"):
            send(store, FileEndpoint(file))
        assert len(read_events(file)) == 6
        disk.free()
        assert send(store, FileEndpoint(file)).sent == 80
        assert read_events(file) == [s.event for s in store.events(own=True)]


def test_two_do_not_send_at_once(store: Lineage, tmp_path: Path) -> None:
    class Nested:
        name, batch = "nested", 1

        def send(self, lines: object) -> None:
            with pytest.raises(InputError, match="another process is sending"):
                send(store, FileEndpoint(tmp_path / "other.jsonl"))

    assert send(store, Nested()).sent == 6
