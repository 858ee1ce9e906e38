"""The gateway's routing, on an upstream in memory."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from foedus.errors import InputError
from foedus.server import certificates, gateway, secret
from foedus.server.gateway import FLEET, Answer, Gateway, Headers

PULL = "/v1/fleet/pull-messages"


class Upstream:
    """Remembers what it is asked, and answers what it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Headers, bytes]] = []
        self.answers: list[Answer | Exception] = []

    async def request(self, method: str, path: str, headers: Headers, body: bytes) -> Answer:
        self.asked.append((method, path, headers, body))
        answer = self.answers.pop(0) if self.answers else Answer(200, [(b"content-type", b"x/y")], b"")
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        pass


Client = Callable[..., Awaitable[httpx.Response]]


def ask(app: Gateway, method: str, path: str, **options: object) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="https://gateway") as client:
            return await client.request(method, path, **options)  # type: ignore[arg-type]

    return asyncio.run(once())


@pytest.mark.parametrize("path", sorted(FLEET))
def test_fleet_routes_pass(path: str) -> None:
    upstream = Upstream()
    upstream.answers = [
        Answer(200, [(b"content-type", b"application/protobuf"), (b"server", b"uvicorn")], b"yes")
    ]
    headers = {"flwr-signature": "s+/=", "flwr-timestamp": "2026-01-01T00:00:00+00:00"}
    answer = ask(Gateway(upstream), "POST", path, content=b"body", headers=headers)
    assert (answer.status_code, answer.content) == (200, b"yes")
    assert answer.headers["content-type"] == "application/protobuf"
    assert "server" not in answer.headers
    [(method, asked, passed, body)] = upstream.asked
    assert (method, asked, body) == ("POST", path, b"body")
    assert {name.decode(): value.decode() for name, value in passed}.items() >= headers.items()
    assert not {b"host", b"connection", b"content-length"} & {name for name, _ in passed}


def test_health_passes() -> None:
    assert ask(Gateway(Upstream()), "GET", "/health").status_code == 200


OTHERS = sorted({path for _, path in PROTOBUF_REQUEST_TYPES} - FLEET)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", path) for path in OTHERS),
        *(("GET", path) for path in sorted(FLEET)),
        *(("GET", path) for path in ("/", "/docs", "/openapi.json", "/redoc", "/health/", "/healthz")),
        ("POST", "/health"),
        ("HEAD", "/health"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/v1/fleet/pull-messages/../../control/start-run"),
        ("POST", "//v1/fleet/pull-messages"),
        ("POST", "/v1/fleet/pull-messages/"),
        ("POST", "/V1/FLEET/PULL-MESSAGES"),
    ],
)
def test_everything_else_is_404_with_nothing_said(method: str, path: str) -> None:
    upstream = Upstream()
    answer = ask(Gateway(upstream), method, path)
    assert (answer.status_code, answer.content) == (404, b"")
    assert upstream.asked == []


def test_every_route_of_flower_is_decided_on() -> None:
    fleet = {path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/")}
    refused = {f"/v1/fleet/{name}" for name in ("register-node", "unregister-node", "get-run", "get-fab")}
    assert fleet == FLEET | refused


def test_a_query_is_dropped() -> None:
    upstream = Upstream()
    ask(Gateway(upstream), "POST", PULL + "?a=b")
    assert upstream.asked[0][1] == PULL


def test_a_body_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x" * 30

    monkeypatch.setattr(gateway, "MAX_BODY", 100)
    upstream = Upstream()
    app = Gateway(upstream)
    assert ask(app, "POST", PULL, content=b"x" * 101).status_code == 413
    assert ask(app, "POST", PULL, content=stream()).status_code == 413  # nothing announced
    assert ask(app, "POST", PULL, content=b"x" * 100).status_code == 200
    monkeypatch.setattr(gateway, "MAX_HELD", 50)
    assert ask(app, "POST", PULL, content=b"x" * 60).status_code == 503
    assert len(upstream.asked) == 1


@pytest.mark.parametrize(("error", "status"), [(ConnectionError(), 503), (TimeoutError(), 504)])
def test_a_lost_superlink(error: Exception, status: int) -> None:
    upstream = Upstream()
    upstream.answers = [error]
    answer = ask(Gateway(upstream), "POST", PULL)
    assert (answer.status_code, answer.content) == (status, b"")


def test_a_node_that_hangs_up_ends_its_question() -> None:
    class Slow(Upstream):
        ended = ""

        async def request(self, method: str, path: str, headers: Headers, body: bytes) -> Answer:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.ended = "cancelled"
                raise
            return Answer(200, [], b"")

    async def scenario() -> None:
        upstream, said = Slow(), []
        events = [{"type": "http.request", "body": b"x"}, {"type": "http.disconnect"}]

        async def receive() -> dict[str, Any]:
            return events.pop(0)

        async def send(event: Any) -> None:
            said.append(event)

        scope = {"type": "http", "method": "POST", "path": PULL, "headers": []}
        await asyncio.wait_for(Gateway(upstream)(scope, receive, send), 5)
        await asyncio.sleep(0)
        assert (said, upstream.ended) == ([], "cancelled")

    asyncio.run(scenario())


def test_bad_addresses_and_files(tmp_path: Path) -> None:
    files = certificates.create(tmp_path / "tls")
    known = secret.ensure(tmp_path / "secret")
    for listen, upstream in (("nowhere", "127.0.0.1:1"), ("127.0.0.1:0", ":x")):
        with pytest.raises(InputError):
            gateway.server(listen, upstream, files, known)
    with pytest.raises(InputError, match="No such file"):
        gateway.create_app("127.0.0.1:1", files, tmp_path / "none")
    files.ca_cert.write_text("nothing")
    with pytest.raises(InputError, match="not a readable PEM certificate"):
        gateway.create_app("127.0.0.1:1", files, known)
    with pytest.raises(SystemExit) as ended:
        gateway.main(
            ["--listen", "x", "--upstream", "y", "--certificates", str(tmp_path), "--secret", str(known)]
        )
    assert ended.value.code == 2
