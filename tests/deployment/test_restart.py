"""``foedus server start`` killed outright in the middle of a run, twice: started again, it finishes the same run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.orders import make_draft, order_log

from foedus.compliance.auditlog.log import AuditLog
from foedus.demo import world
from foedus.demo.deploy import free_ports
from foedus.demo.world import World
from foedus.errors import Unreachable
from foedus.federation.verification import verify
from foedus.privacy.ledger import Ledger
from foedus.server.auth import Role, issue
from foedus.server.client import ApiClient
from foedus.server.store import Store

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(400)]
ROUNDS = 10


@dataclass
class Server:
    """The command as a process, which a test kills and starts again; and the nodes, which nobody touches."""

    world: World
    gateway: int
    api: int
    process: subprocess.Popen[str] | None = None
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        command = [sys.executable, "-m", "foedus", "server", "start", str(self.world.server)]
        command += ["--gateway-port", str(self.gateway), "--port", str(self.api)]
        with (self.world.root / "start.log").open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        assert self.process.stdout is not None
        said = [self.process.stdout.readline() for _ in range(3)]  # it prints when everything answers
        assert said[0].startswith("nodes"), (self.world.root / "start.log").read_text()[-2000:]

    def start_nodes(self) -> None:
        for home in self.world.homes.values():
            shutil.copyfile(self.world.server / "certs" / "ca.crt", home / "ca.crt")
            with (home / "node.log").open("ab") as log:
                self.nodes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "foedus", "node", "run", str(home)],
                        env={**os.environ, "OMP_NUM_THREADS": "1"},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def kill(self, *, tree: bool) -> list[int]:
        """SIGKILL for the command, and with `tree` for all below it; its own children."""
        assert self.process is not None
        below = _below(self.process.pid)
        assert len(below) >= 3  # gateway, SuperLink, and below that the ServerApp
        children = [pid for pid in below if _parent(pid) == self.process.pid]
        for pid in [self.process.pid, *(below if tree else [])]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.communicate()
        return children

    def client(self, name: str, role: Role) -> ApiClient:
        token, row = issue(name, role, days=1)
        with Store(self.world.server / "server.db") as store:
            store.add_token(row)
        return ApiClient(f"https://127.0.0.1:{self.api}", token, self.world.server / "certs" / "ca.crt")

    def stop(self) -> None:
        for process in (self.process, *self.nodes):
            if process is not None and process.poll() is None:
                process.terminate()
        for process in (self.process, *self.nodes):
            if process is not None:
                try:
                    process.communicate(timeout=40)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()


def _below(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.name))
        except OSError:
            continue
    found, todo = [], [root]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _parent(pid: int) -> int:
    try:
        return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _runs(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def until(seconds: float) -> Iterator[Callable[[bool], bool]]:
    end = time.monotonic() + seconds

    def waiting(done: bool) -> bool:
        assert done or time.monotonic() < end, "waited in vain"
        time.sleep(0 if done else 0.1)
        return not done

    yield waiting


def test_killed_twice_and_started_again_it_finishes_the_same_run(tmp_path: Path) -> None:
    gateway, api = free_ports(2)
    draft = make_draft(rounds=ROUNDS, epsilon=4.0, trip_seconds=8.0)
    built = world.build(tmp_path / "w", order_log(), draft, silos=4, gateway=f"127.0.0.1:{gateway}")
    server = Server(built, gateway, api)
    try:
        server.start()
        server.start_nodes()
        study, envelope = built.sign_study(draft)
        with server.client("dana", Role.SCIENTIST) as scientist:
            scientist.submit(envelope)
        for approver in built.treaty.approvers:
            role = Role.PARTNER if approver.level == "partner" else Role.OFFICER
            with server.client(approver.name, role) as person:
                person.approve(envelope.digest, built.approve(study, envelope.digest, approver))
        with until(60) as waiting:
            while waiting(len(nodes_online(server)) == 4):
                pass
        with server.client("dana", Role.SCIENTIST) as scientist:
            run = str(scientist.start(envelope.digest)["id"])
        events: list[Any] = []
        for last, tree in ((3, False), (6, True)):
            follow(server, run, events, upto=last)
            children = server.kill(tree=tree)
            with until(5) as waiting:  # nobody told them to end
                while waiting(not any(map(_runs, children))):
                    pass
            server.start()  # over the same directory and ports, at once
        follow(server, run, events)
        check(server, run, envelope.digest, events, tmp_path)
    finally:
        server.stop()


def nodes_online(server: Server) -> list[str]:
    """The nodes that say they are attached."""
    return [
        name for name, home in server.world.homes.items() if "attached" in (home / "node.log").read_text()
    ]


def follow(server: Server, run: str, events: list[Any], *, upto: int = 0) -> None:
    """Collect events until that round is summed, or to the end; a server that is not there yet is waited for."""
    with server.client("dana", Role.SCIENTIST) as scientist:
        for attempt in range(4):
            try:
                for event in scientist.follow(run, after=events[-1].id if events else 0):
                    events.append(event)
                    if upto and event.kind == "round" and event.data["round"] >= upto:
                        return
                return
            except Unreachable:
                assert attempt < 3


def check(server: Server, run: str, digest: str, events: list[Any], tmp_path: Path) -> None:
    kinds = [e.kind for e in events]
    assert kinds[-1] == "finished", events[-1]
    assert kinds.count("resumed") >= 2
    assert [e.data["round"] for e in events if e.kind == "round"] == list(range(1, ROUNDS + 3))
    built = server.world
    with server.client("delia", Role.OFFICER) as officer:
        listed = {r["name"]: r for r in officer.results(digest)}
        report = verify(officer.save_result(digest, listed["evidence.zip"], tmp_path / "out"))
    assert len(report.checks) == 10
    for name, home in built.homes.items():
        ledger = Ledger(home / "ledger.db")
        kept = [line.kind for line in ledger.lines()]
        was_in = sum(name in who for who in report.survivors.values())
        assert kept.count("commit") == was_in and kept.count("abort") == 0
        if was_in == ROUNDS + 2:
            assert ledger.epsilon(1e-5) == pytest.approx(report.epsilon, abs=1e-12)
    log = AuditLog(built.server / "audit.db", built.treaty.coordinator.origin)
    log.check()
    said = [e.record for e in log.entries() if e.record["details"].get("run") == run]
    actions = [e["action"] for e in said]
    assert actions.count("round.summed") == ROUNDS + 2 and actions.count("run.finished") == 1
    assert actions.count("run.set-up") == len(
        {e["details"]["batch"] for e in said if e["action"] == "run.set-up"}
    )
    assert not list((built.server / "runs").iterdir())  # nothing is left of the checkpoint
