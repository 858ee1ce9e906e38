"""Consents as they happen: signed, once, on disk before they are answered; and in force at once in another process."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from support.consents import CRM, PURCHASES, T0, day, notice

from foedus.clients.cohort import Cohorts
from foedus.clients.consent_hook import MAX_BYTES, create_app, load_secret, signature
from foedus.clients.consent_log import ConsentLog
from foedus.clients.home import Home, Settings
from foedus.compliance.auditlog.log import AuditLog, customer_key
from foedus.compliance.consent import Allowed, Ask, ConsentRegister, Denied
from foedus.errors import InputError

SECRET = bytes(range(32))
ASK = Ask(CRM, frozenset([PURCHASES]))


def granted(subject: str, **fields: str) -> dict[str, str]:
    return {
        "type": "consent.granted", "subject": subject, "purpose": CRM, "notice_version": "2026-01/zh",
        "granted_at": day(1).isoformat(),
    } | fields  # fmt: skip


def withdrawn(subject: str, at: datetime) -> dict[str, str]:
    return {"type": "consent.withdrawn", "subject": subject, "purpose": CRM, "at": at.isoformat()}


def headers(event: str, body: bytes, secret: bytes = SECRET, at: float | None = None) -> dict[str, str]:
    stamp = str(int(time.time() if at is None else at))
    return {
        "webhook-id": event,
        "webhook-timestamp": stamp,
        "webhook-signature": signature(secret, event, stamp, body),
    }


@pytest.fixture
def register(tmp_path: Path) -> ConsentRegister:
    register = ConsentRegister(tmp_path / "consent.db")
    register.publish(notice())
    return register


class InProcess:
    """The application, asked without a socket."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def ask(self, method: str, path: str, **what: Any) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
                return await client.request(method, path, **what)

        return asyncio.run(asked())

    def post(self, path: str, **what: Any) -> httpx.Response:
        return self.ask("POST", path, **what)

    def get(self, path: str) -> httpx.Response:
        return self.ask("GET", path)


@pytest.fixture
def client(register: ConsentRegister) -> InProcess:
    return InProcess(create_app(register, SECRET))


def tell(client: InProcess, event: str, content: object, **more: str) -> tuple[int, dict[str, Any]]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    said = client.post("/events", content=body, headers=headers(event, body) | more)
    return said.status_code, said.json()


def test_events_are_taken_once(client: InProcess, register: ConsentRegister) -> None:
    one = granted("c1", sharing="bank-b", evidence="ab" * 32)
    assert tell(client, "e1", one) == (200, {"event": "e1", "taken": True})
    assert tell(client, "e1", one) == (200, {"event": "e1", "taken": False})
    assert tell(client, "e2", one) == (200, {"event": "e2", "taken": True})  # the same grant, told anew
    (record,) = register.records("c1")
    assert (record.method, record.terms.sharing) == ("webhook", {"bank-b"})
    assert tell(client, "e3", withdrawn("c1", day(2)))[0] == 200
    assert register.may_use("c1", ASK, day(3)) == Denied("WITHDRAWN")
    assert tell(client, "e1", granted("c2"))[0] == 409
    assert tell(client, "e4", granted("c1", evidence="cd" * 32))[0] == 409  # another grant at that instant
    assert register.records("c2") == []


def test_a_withdrawal_may_come_before_its_grant(client: InProcess, register: ConsentRegister) -> None:
    assert tell(client, "e1", withdrawn("c1", day(2)))[0] == 200
    assert tell(client, "e2", granted("c1"))[0] == 200
    assert register.may_use("c1", ASK, day(1.5)) == Allowed(register.records("c1")[0].record_id)
    assert register.may_use("c1", ASK, day(3)) == Denied("WITHDRAWN")


def test_who_has_not_the_secret_is_refused(client: InProcess, register: ConsentRegister) -> None:
    body, now = json.dumps(granted("c1")).encode(), time.time()
    good = headers("e1", body)
    for change in (
        {"webhook-id": "e2"},
        {"webhook-id": ""},
        {"webhook-timestamp": str(int(now) + 1)},
        {"webhook-timestamp": "soon"},
        {"webhook-timestamp": "９"},
        {"webhook-signature": ""},
        {"webhook-signature": "v1," + base64.b64encode(bytes(32)).decode()},
        headers("e1", body, secret=bytes(32)),
        headers("e1", body, at=now - 301),
        headers("e1", body, at=now + 305),
        headers("e1", body + b" "),
    ):
        raw = {k: v.encode() for k, v in (good | change).items()}
        assert client.post("/events", content=body, headers=raw).status_code == 401
    assert register.records("c1") == []
    several = {"webhook-signature": f"v1a,x {good['webhook-signature']}"}
    assert client.post("/events", content=body, headers=good | several).status_code == 200
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (b'{"type": 1}', "body"),
        (b'{"type": "consent.granted", "type": "consent.withdrawn"}', "body"),
        (granted("c1") | {"type": "consent.changed"}, "type"),
        (granted("c1", colour="blue"), "colour"),
        (granted(""), "subject"),
        (granted("c1", purpose="dpv:Marketing"), "purpose"),
        (granted("c1", notice_version="2025/zh"), "notice_version"),
        (granted("c1", granted_at=""), "granted_at"),
        (granted("c1", granted_at="2026-01-02T00:00:00"), "granted_at"),
        (granted("c1", categories="user.health"), "categories"),
        (granted("c1", sharing="broker"), "sharing"),
        (granted("c1", guardian="g"), "born"),
        (withdrawn("c1", day(1)) | {"at": ""}, "at"),
        (withdrawn("", day(1)), "subject"),
        (withdrawn("c1", day(1)) | {"purpose": "dpv:Snooping"}, "purpose"),
    ],
)
def test_a_malformed_event_leaves_nothing(
    client: InProcess, register: ConsentRegister, content: object, field: str
) -> None:
    status, said = tell(client, "e1", content)
    assert (status, said.get("field")) == (422, field)
    assert register.records("c1") == []
    assert tell(client, "e1", granted("c1"))[0] == 200  # the id is still free


def test_too_large_and_not_writable(client: InProcess, tmp_path: Path) -> None:
    assert tell(client, "e1", granted("c" * MAX_BYTES))[0] == 413
    (tmp_path / "consent.db").unlink()
    assert tell(client, "e1", granted("c1"))[0] == 503


def test_the_secret_is_kept_in_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "webhook.key"
    assert load_secret(file) == load_secret(file)
    assert file.stat().st_mode & 0o777 == 0o600
    for text in (
        "",
        "whsec_",
        "whsec_%%%",
        base64.b64encode(SECRET).decode(),
        "whsec_" + base64.b64encode(bytes(9)).decode(),
    ):
        file.write_text(text)
        with pytest.raises(InputError):
            load_secret(file)


# ── real processes ───────────────────────────────────────────────────────────────────────────────


class Served:
    """``foedus consent serve`` on 127.0.0.1."""

    def __init__(self, node: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "foedus", "consent", "serve", str(node), "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.secret = b""
        for _ in range(600):
            try:
                httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5, trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        self.secret = load_secret(node / "webhook.key")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def tell(self, client: httpx.Client, event: str, content: object) -> int:
        body = json.dumps(content).encode()
        url = f"http://127.0.0.1:{self.port}/events"
        return client.post(url, content=body, headers=headers(event, body, self.secret)).status_code


@pytest.fixture
def node(tmp_path: Path) -> Path:
    home = Home.create(tmp_path / "node", Settings(party="s", server="127.0.0.1:1", table="orders.parquet"))
    ConsentRegister(home.path / "consent.db").publish(notice())
    return home.path


@pytest.mark.deployment
def test_killed_in_the_middle_it_loses_nothing_that_it_acknowledged(node: Path) -> None:
    answered: list[str] = []
    for turn in range(2):
        served = Served(node)

        def run(name: str, served: Served = served) -> None:
            with httpx.Client(timeout=10, trust_env=False) as client:
                for i in range(10_000):
                    subject = f"{name}-{i}"
                    try:
                        if served.tell(client, subject, granted(subject)) == 200:
                            answered.append(subject)
                    except httpx.TransportError:
                        return

        threads = [threading.Thread(target=run, args=(f"t{turn}{k}",)) for k in range(3)]
        for thread in threads:
            thread.start()
        before = len(answered)
        for _ in range(600):
            if len(answered) >= before + 20:
                break
            time.sleep(0.05)
        served.kill()
        for thread in threads:
            thread.join()
    register = ConsentRegister(node / "consent.db")
    kept = set(register.cohort(ASK, day(2))["subject"])
    assert len(answered) >= 40 and set(answered) <= kept
    assert len(kept) <= len(answered) + 6  # what was on its way when it was killed


@pytest.mark.deployment
def test_a_withdrawal_told_to_another_process_is_in_force_within_a_second(node: Path) -> None:
    register = ConsentRegister(node / "consent.db")
    for i in range(20):
        register.grant(f"c{i}", CRM, notice_version="2026-01/zh", at=T0)
    cohorts, served, waited = Cohorts(register), Served(node), []
    try:
        with httpx.Client(timeout=30, trust_env=False) as client:
            for i in range(10):
                subject, now = f"c{i}", datetime.now(UTC)
                assert subject in set(cohorts.of(ASK, now).frame["subject"])
                assert isinstance(register.may_use(subject, ASK, now), Allowed)
                at = now + timedelta(microseconds=1)
                assert served.tell(client, f"w{i}", withdrawn(subject, at)) == 200
                start = time.perf_counter()
                now = datetime.now(UTC)
                assert register.may_use(subject, ASK, now) == Denied("WITHDRAWN")  # the gate
                assert subject not in set(cohorts.of(ASK, now).frame["subject"])  # the next batch
                waited.append(time.perf_counter() - start)
    finally:
        served.kill()
    assert max(waited) < 1, waited
    assert os.getpid() != served.process.pid


def test_each_event_is_in_the_nodes_log_sealed(register: ConsentRegister, tmp_path: Path) -> None:
    home = Home.create(tmp_path / "node", Settings(party="s", server="127.0.0.1:1", table="orders.parquet"))
    client = InProcess(create_app(register, SECRET, log=ConsentLog(home)))
    assert tell(client, "e1", granted("C-7"))[0] == 200
    assert tell(client, "e2", withdrawn("C-7", day(2)))[0] == 200
    assert tell(client, "e2", withdrawn("C-7", day(2)))[1]["taken"] is False
    assert tell(client, "e3", granted("C-8", notice_version="1999/en"))[0] == 422
    log = AuditLog(home.path / "audit.db", "foedus node s", create=False)
    records = [entry.record for entry in log.entries()]
    assert [(r["action"], r["subject"]) for r in records] == [
        ("consent.granted", "customer"),
        ("consent.withdrawn", "customer"),
    ]
    assert all(b"C-7" not in entry.body for entry in log.entries())
    for index in range(2):
        opening = log.open_payload(index)
        assert opening is not None and opening.payload["customer"] == "C-7"
    assert log.shred("s", customer_key("C-7")) == 2
    assert log.open_payload(0) is None
    log.check()


def test_nothing_is_taken_that_cannot_be_logged(register: ConsentRegister, tmp_path: Path) -> None:
    home = Home.create(tmp_path / "node", Settings(party="s", server="127.0.0.1:1", table="orders.parquet"))
    client = InProcess(create_app(register, SECRET, log=ConsentLog(home)))
    (home.path / "audit.db").unlink()
    assert tell(client, "e1", granted("C-7"))[0] == 503
    assert register.records("C-7") == []
