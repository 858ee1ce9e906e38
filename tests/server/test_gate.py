"""The SuperLink's gate, before an app in memory: who gets through, and who waits for what."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from foedus.errors import InputError
from foedus.server import secret
from foedus.server.gate import CONTROL, FLEET, RUNTIME, WAIT, Bell, Gate

CONTROL_KEY, FLEET_KEY = b"c" * 64, b"f" * 64
PULL, ANSWER, ASK = "/v1/fleet/pull-messages", "/v1/fleet/push-messages", "/v1/runtime/push-messages"


class Flower:
    """Remembers what reaches it, and answers what it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.answers: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        self.asked.append((scope["path"], body))
        said = self.answers.pop(0) if self.answers else b""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": said})


def run(scenario: Callable[[Flower, Gate, httpx.AsyncClient], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        flower = Flower()
        gate = Gate(flower, CONTROL_KEY, FLEET_KEY, threading.Event())
        transport = httpx.ASGITransport(app=gate)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="https://superlink") as client:
            await scenario(flower, gate, client)

    asyncio.run(whole())


def key(value: bytes) -> dict[str, str]:
    return {"foedus-key": value.decode()}


def test_each_key_opens_its_own_routes_only() -> None:
    async def scenario(flower: Flower, _: Gate, client: httpx.AsyncClient) -> None:
        for paths, right, wrong in ((CONTROL, CONTROL_KEY, FLEET_KEY), (FLEET, FLEET_KEY, CONTROL_KEY)):
            for path in sorted(paths):
                assert (await client.post(path, headers=key(right))).status_code == 200
                for headers in ({}, key(wrong), key(right[:-1]), key(right + b"c"), key(b"")):
                    answer = await client.post(path, headers=headers)
                    assert (answer.status_code, answer.content) == (401, b"")
                twice = [("foedus-key", right.decode())] * 2
                assert (await client.post(path, headers=twice)).status_code == 401
        assert (await client.get(WAIT, headers=key(FLEET_KEY))).status_code == 401
        assert {path for path, _ in flower.asked} == CONTROL | FLEET

    run(scenario)


def test_everything_else_is_404_with_nothing_said() -> None:
    async def scenario(flower: Flower, _: Gate, client: httpx.AsyncClient) -> None:
        others = {path for _, path in PROTOBUF_REQUEST_TYPES} - CONTROL - FLEET - RUNTIME
        assert "/v1/runtime/acquire-task" in others
        for path in (
            *sorted(others),
            "/v1/runtime/responses",
            "/v1/control/../runtime/acquire-task",
            "//health",
        ):
            for value in (CONTROL_KEY, FLEET_KEY):
                answer = await client.post(path, headers=key(value))
                assert (answer.status_code, answer.content) == (404, b"")
        for path in ("/docs", "/openapi.json", "/redoc", "/", "/health/", *sorted(CONTROL | RUNTIME | FLEET)):
            assert (await client.get(path, headers=key(CONTROL_KEY))).status_code == 404
        assert flower.asked == []
        assert (await client.get("/health")).status_code == 200

    run(scenario)


def test_a_pull_is_held_until_somebody_asks() -> None:
    async def scenario(flower: Flower, _: Gate, client: httpx.AsyncClient) -> None:
        start = time.monotonic()
        held = {**key(FLEET_KEY), "foedus-wait": "0.2"}
        assert (await client.post(PULL, content=b"me", headers=held)).content == b""
        assert time.monotonic() - start >= 0.2 and flower.asked == [(PULL, b"me")]  # nothing came

        start = time.monotonic()
        held = {**key(FLEET_KEY), "foedus-wait": "5"}
        question = asyncio.ensure_future(client.post(PULL, content=b"me", headers=held))
        await asyncio.sleep(0.05)
        flower.answers = [b"pushed", b"a message"]
        await client.post(ASK)
        assert (await question).content == b"a message" and time.monotonic() - start < 2
        assert flower.asked[-1] == (PULL, b"me")  # the same question once more

        for wait in ("nan", "-1", "x"):
            assert (await client.post(PULL, headers={**key(FLEET_KEY), "foedus-wait": wait})).content == b""
        assert time.monotonic() - start < 2
        assert (await client.post(PULL, content=b"x" * 70000, headers=held)).status_code == 413

    run(scenario)


def test_a_node_that_goes_gets_its_held_pull_back() -> None:
    async def scenario(_: Flower, __: Gate, client: httpx.AsyncClient) -> None:
        start = time.monotonic()
        held = {**key(FLEET_KEY), "foedus-wait": "9"}
        questions = [asyncio.ensure_future(client.post(PULL, headers=held)) for _ in range(2)]
        await asyncio.sleep(0.05)
        await client.post("/v1/fleet/deactivate-node", headers=key(FLEET_KEY))
        await asyncio.gather(*questions)
        assert time.monotonic() - start < 2

    run(scenario)


def test_a_serverapp_waits_for_answers_and_misses_none() -> None:
    async def scenario(_: Flower, __: Gate, client: httpx.AsyncClient) -> None:
        async def wait(seen: int, owed: int, seconds: float) -> int:
            params = {"seen": seen, "owed": owed, "seconds": seconds}
            return int((await client.get(WAIT, params=params, headers=key(CONTROL_KEY))).text)

        assert await wait(0, 3, 0.05) == 0
        await client.post(ANSWER, headers=key(FLEET_KEY))
        start = time.monotonic()
        assert await wait(0, 1, 5) == 1  # it came before we asked
        waiting = asyncio.ensure_future(wait(1, 2, 5))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        for _ in range(2):
            await client.post(ANSWER, headers=key(FLEET_KEY))
        assert await waiting == 3
        waiting = asyncio.ensure_future(wait(3, 9, 5))  # one of nine answers, then none for a moment
        await client.post(ANSWER, headers=key(FLEET_KEY))
        assert await waiting == 4
        assert time.monotonic() - start < 2

    run(scenario)


def test_the_nodes_requests_reach_flower_two_at_a_time() -> None:
    async def whole() -> None:
        now, most = 0, 0

        async def flower(scope: Any, receive: Any, send: Any) -> None:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.02)
            now -= 1
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        gate = Gate(flower, CONTROL_KEY, FLEET_KEY, threading.Event())
        transport = httpx.ASGITransport(app=gate)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="https://superlink") as client:
            for path, limit in ((ANSWER, 2), (ASK, 6)):  # who has no key can't keep the nodes out
                most = 0
                await asyncio.gather(*(client.post(path, headers=key(FLEET_KEY)) for _ in range(6)))
                assert most == limit

    asyncio.run(whole())


def test_a_bell_keeps_nobody_who_has_gone() -> None:
    async def scenario() -> None:
        bell = Bell()
        bell.next_ring().cancel()
        kept = bell.next_ring()
        await asyncio.sleep(0)
        assert bell._waiting == {kept}
        bell.ring()
        assert kept.done() and not bell._waiting

    asyncio.run(scenario())


def test_the_secret(tmp_path: Path) -> None:
    path = secret.ensure(tmp_path / "deep" / "secret")
    assert path.stat().st_mode & 0o777 == 0o600 and len(path.read_bytes()) == 32
    before = secret.key(path, "control"), secret.key(path, "fleet")
    assert before[0] != before[1] and all(len(one) == 64 for one in before)
    secret.ensure(path)
    assert (secret.key(path, "control"), secret.key(path, "fleet")) == before
    assert secret.key(secret.ensure(tmp_path / "other"), "control") != before[0]
    path.chmod(0o644)
    with pytest.raises(InputError, match="readable by others"):
        secret.ensure(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(InputError, match="not a secret"):
        secret.key(path, "fleet")
