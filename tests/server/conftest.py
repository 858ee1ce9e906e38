"""A server on a real socket of 127.0.0.1, with a Flower that only remembers."""

from __future__ import annotations

import importlib
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from support.treaties import Keys, all_approvals, decision, make_home, make_study, make_treaty

from foedus.compliance.treaty import Treaty
from foedus.documents import Envelope
from foedus.errors import InputError, Unreachable
from foedus.server.app import Settings, create_app
from foedus.server.auth import Role, issue
from foedus.server.client import ApiClient
from foedus.server.desk import Desk

with warnings.catch_warnings():
    # typer 0.20 imports names that Click 8.3+ deprecates; imported here, it stays imported.
    warnings.simplefilter("ignore", DeprecationWarning)
    importlib.import_module("typer.testing")

FIRST_RUN = 2**63 + 11  # beyond SQLite's and JavaScript's integers, as Flower's ids are


@dataclass
class FakeSuperLink:
    """Remembers what it was asked; `status` is what it says of a run."""

    configs: list[dict[str, Any]] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    status: dict[int, tuple[str, str, str]] = field(default_factory=dict)
    reachable: bool = True

    def start_run(self, config: Mapping[str, str | int | float | bool]) -> int:
        if not self.reachable:
            raise Unreachable("the SuperLink does not answer")
        self.configs.append(dict(config))
        number = FIRST_RUN + len(self.configs) - 1
        self.status[number] = ("running", "", "")
        return number

    def run_status(self, run_id: int) -> SimpleNamespace:
        if run_id not in self.status:
            raise InputError(f"run {run_id}: there is no such run")
        status, sub_status, details = self.status[run_id]
        return SimpleNamespace(status=status, sub_status=sub_status, details=details)

    def stop_run(self, run_id: int) -> None:
        if not self.reachable:
            raise Unreachable("the SuperLink does not answer")
        self.stopped.append(run_id)
        self.status[run_id] = ("finished", "stopped", "")


@dataclass
class World:
    """A running server and everything around it."""

    url: str
    desk: Desk
    superlink: FakeSuperLink
    document: Envelope
    treaty: Treaty
    keys: Keys
    tokens: dict[str, str]
    http: httpx.Client

    def client(self, role: str) -> ApiClient:
        return ApiClient(self.url, self.tokens[role])

    def request(self, role: str | None, method: str, path: str, **arguments: Any) -> httpx.Response:
        headers = dict(arguments.pop("headers", {}))
        if role is not None:
            headers["authorization"] = f"Bearer {self.tokens[role]}"
        return self.http.request(method, self.url + path, headers=headers, **arguments)

    def study(self, **changes: Any) -> Envelope:
        return make_study(self.document, self.treaty, self.keys, **changes)

    def decision(self, study: Envelope, approver: str, **changes: Any) -> Envelope:
        return decision(self.document, self.treaty, self.keys, study, approver, **changes)

    def submitted(self, **changes: Any) -> Envelope:
        study = self.study(**changes)
        with self.client("scientist") as client:
            client.submit(study)
        return study

    def approved(self, **changes: Any) -> Envelope:
        study = self.submitted(**changes)
        with self.client("officer") as client:
            for envelope in all_approvals(self.document, self.treaty, self.keys, study):
                client.approve(study.digest, envelope)
        return study

    def started(self, **changes: Any) -> tuple[Envelope, str]:
        study = self.approved(**changes)
        with self.client("scientist") as client:
            return study, str(client.start(study.digest)["id"])

    def audit(self) -> list[tuple[str, str, str, dict[str, Any]]]:
        """``(actor, action, subject, details)`` of every entry."""
        records = [entry.record for entry in self.desk.log.entries()]
        return [(r["actor"], r["action"], r["subject"], r["details"]) for r in records]

    def actions(self) -> list[str]:
        return [action for _, action, _, _ in self.audit()]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Start a server; all that were started end with the test."""
    running: list[tuple[uvicorn.Server, threading.Thread, httpx.Client]] = []

    def start(home: Path = tmp_path / "server", **settings: Any) -> World:
        document, treaty, keys = make_treaty()
        superlink = FakeSuperLink()
        make_home(home, document, keys)
        app = create_app(Settings(home=home, superlink=superlink, watch_seconds=0.05, **settings))
        desk: Desk = app.state.desk
        tokens = {}
        for role in Role:
            tokens[role.value], row = issue(f"a-{role.value}", role, 1)
            desk.store.add_token(row)
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, ws="none", log_level="error", timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        http = httpx.Client(verify=False, trust_env=False, timeout=30)  # noqa: S501  # plain http
        running.append((server, thread, http))
        deadline = time.monotonic() + 10
        while not server.started:
            if time.monotonic() > deadline:
                raise TimeoutError("uvicorn did not start")
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        return World(f"http://127.0.0.1:{port}", desk, superlink, document, treaty, keys, tokens, http)

    yield start
    for server, thread, http in running:
        http.close()
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def world(serve: Callable[..., World]) -> World:
    return serve()


def error_of(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error; it must have a sentence."""
    problem = json.loads(answer.content)["error"]
    assert set(problem) == {"code", "message", "remedy"} and problem["message"]
    return answer.status_code, problem["code"]
