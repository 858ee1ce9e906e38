"""One real deployment: TLS, gateway, API server, four node processes; a node killed, then the server."""

import json
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.orders import make_draft, order_log

from foedus.clients.home import Home
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.evidence import read as read_bundle
from foedus.compliance.lineage import Store, tracing
from foedus.demo import world
from foedus.demo.deploy import Deployment, client, deployed, free_ports
from foedus.demo.simulate import prepare
from foedus.demo.world import World
from foedus.documents import Envelope
from foedus.errors import FoedusError, Refused
from foedus.federation.study import Draft
from foedus.federation.verification import Report, verify
from foedus.privacy.ledger import Ledger
from foedus.server.auth import Role
from foedus.server.coordinator import conduct

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),  # in flwr.cli.build
    pytest.mark.timeout(400),
]
VICTIM = "dune-media"
DRAFT = make_draft(rounds=4, epsilon=4.0, trip_seconds=8.0)


@dataclass
class Stage:
    """The deployment and what the first study, in which a node was killed, left."""

    deployment: Deployment
    world: World
    untouched: Path
    events: list[Any] = field(default_factory=list)
    digest: str = ""
    run: str = ""
    bundle: Path = Path()
    report: Report | None = None


def submit(stage: Stage, draft: Draft) -> str:
    """Sign, submit and approve a study by everybody it needs."""
    study, envelope = stage.world.sign_study(draft)
    with client(stage.deployment, stage.world, "dana", Role.SCIENTIST) as scientist:
        scientist.submit(envelope)
        with pytest.raises(Refused, match="not approved by"):
            scientist.start(envelope.digest)
    for approver in stage.world.treaty.approvers:
        role = Role.PARTNER if approver.level == "partner" else Role.OFFICER
        with client(stage.deployment, stage.world, approver.name, role) as person:
            person.approve(envelope.digest, stage.world.approve(study, envelope.digest, approver))
    return envelope.digest


def follow(stage: Stage, digest: str, *, at_round: int = 0, then: Any = None) -> tuple[str, list[Any]]:
    """Run a study to its end; call `then` when round `at_round` is summed."""
    events = []
    with client(stage.deployment, stage.world, "dana", Role.SCIENTIST) as scientist:
        run = str(scientist.start(digest)["id"])
        for event in scientist.follow(run):
            events.append(event)
            if event.kind == "round" and event.data["round"] == at_round:
                then()
    return run, events


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    root = tmp_path_factory.mktemp("federation")
    gateway, api = free_ports(2)
    with ExitStack() as stack:
        deployment = stack.enter_context(deployed(root, gateway=gateway, api=api))
        built = world.build(root, order_log(), DRAFT, silos=4, gateway=deployment.gateway, may_exist=True)
        untouched = root / "untouched"  # the same silos before anything ran, for a simulation
        shutil.copytree(root / "nodes", untouched)
        deployment.superlink.start()
        deployment.start_servers(built)
        for name in built.homes:
            deployment.start_node(built, name)
        deployment.await_ready(4)
        result = Stage(deployment, built, untouched)
        result.digest = submit(result, DRAFT)
        result.run, result.events = follow(
            result, result.digest, at_round=2, then=lambda: deployment.kill_node(VICTIM)
        )
        yield result


def evidence(stage: Stage, tmp_path: Path) -> tuple[Path, Report]:
    """The first study's bundle, fetched as an officer does, and verified against a partner's own treaty."""
    with client(stage.deployment, stage.world, "delia", Role.OFFICER) as officer:
        listed = {r["name"]: r for r in officer.results(stage.digest)}
        path = officer.save_result(stage.digest, listed["evidence.zip"], tmp_path)
    return path, verify(path, own_treaty=stage.world.homes["aster-music"] / "treaty.json")


def test_a_study_survives_a_killed_node_and_its_evidence_verifies(stage: Stage, tmp_path: Path) -> None:
    assert [e.kind for e in stage.events][-1] == "finished"
    assert not stage.deployment.running(f"node-{VICTIM}")
    _, report = evidence(stage, tmp_path)
    assert len(report.checks) == 10
    # The kill falls into round 3, or, should the victim just have uploaded, into round 4.
    present = [VICTIM in report.survivors[n] for n in range(1, 7)]
    assert present[:2] == [True, True] and present[3:] == [False, False, False]
    assert all(len(report.survivors[n]) == 3 + present[n - 1] for n in range(1, 7))
    assert report.epsilon <= 4.0
    for name in ("aster-music", "birch-records", "cedar-sound"):
        ledger = Ledger(stage.world.homes[name] / "ledger.db")
        assert ledger.epsilon(1e-5, study=stage.digest) == pytest.approx(report.epsilon, abs=1e-9)


def test_a_model_is_traced_to_the_table_of_the_killed_node_too(stage: Stage, tmp_path: Path) -> None:
    path, report = evidence(stage, tmp_path)
    server, (_, files) = Store(stage.world.server / "lineage.db"), read_bundle(path)
    model = Envelope.loads(files["release/model.json"]).digest
    found = tracing.trace(server, model)
    assert found.tables == {(party, "orders") for party in stage.world.homes}
    assert {s.silo for s in found.snapshots} == set(stage.world.homes) - {VICTIM}  # it signed no receipt
    assert len(found.sums) == report.study.rounds and len(found.releases) == 2
    assert server.lines(study=stage.digest, run=stage.run) == files["lineage.jsonl"]
    for name in ("aster-music", "birch-records"):
        node = Store(stage.world.homes[name] / "lineage.db")
        told = [s.event for s in node.events(study=stage.digest, run=stage.run)]
        assert sum(e["job"]["name"].endswith("/round") for e in told) == 2 * report.study.rounds


def test_what_the_killed_node_uploaded_stays_spent(stage: Stage) -> None:
    ledger = Ledger(stage.world.homes[VICTIM] / "ledger.db")
    others = Ledger(stage.world.homes["aster-music"] / "ledger.db").epsilon(1e-5, study=stage.digest)
    assert 0 < ledger.epsilon(1e-5, study=stage.digest) < others
    AuditLog(stage.world.homes[VICTIM] / "audit.db", f"foedus node {VICTIM}").check()


def test_a_simulation_gives_the_same_sum_noise_aside(stage: Stage, tmp_path: Path) -> None:
    """The same study on an in-process Grid, without noise: the deployment's sum is that plus noise of its σ."""
    path, report = evidence(stage, tmp_path)
    with zipfile.ZipFile(path) as bundle:
        deployed_total = np.array(json.loads(bundle.read("rounds.jsonl").splitlines()[0])["total"])
    homes = {name: stage.untouched / name for name in stage.world.homes}
    server = tmp_path / "server"
    server.mkdir()
    shutil.copyfile(stage.world.server / "server.key", server / "server.key")
    (server / "server.key").chmod(0o600)
    shutil.copytree(stage.world.root / "people", tmp_path / "people")
    twin = World(tmp_path, stage.world.treaty_envelope, stage.world.treaty, homes)
    grid, case = prepare(twin, DRAFT, sampler=lambda sigma, size, stream: np.zeros(size, np.int64))
    conduct(grid, case)
    plan = report.study.round(1, report.treaty)
    assert case.study.round(1, case.treaty) == plan
    noise = deployed_total - case.sums[0].total
    sigma = plan.sigma * 2.0  # four shares
    assert np.abs(noise).max() < 7 * sigma
    assert 0.5 * sigma < noise.std() < 1.6 * sigma
    scale = 2.0**plan.scale_bits
    # The constant's square, at most 1 a customer and less where a row was clipped: sums of data, not of nothing.
    assert case.sums[0].total[-1] / scale > 200


def test_nothing_but_the_protocols_messages_left_a_silo(stage: Stage) -> None:
    for name, path in stage.world.homes.items():
        entries = [e.record for e in AuditLog(path / "audit.db", f"foedus node {name}").entries()]
        kinds = {e["subject"] for e in entries if e["action"] == "sent"}
        assert kinds <= {"keys-reply", "shares-reply", "vector-reply", "answer-reply", "receipt-reply"}
        assert "vector-reply" in kinds


def test_a_bundle_altered_on_the_way_is_refused(stage: Stage, tmp_path: Path) -> None:
    path, _ = evidence(stage, tmp_path)
    with zipfile.ZipFile(path) as bundle:  # in a file's content: zip ignores some of its own headers' fields
        member = bundle.getinfo("rounds.jsonl")
    data = bytearray(path.read_bytes())
    data[member.header_offset + 30 + len(member.filename) + member.compress_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FoedusError) as caught:
        verify(path)
    assert caught.value.exit_code in (2, 4)


def test_a_run_without_a_study_gets_nothing_from_the_nodes(stage: Stage) -> None:
    sent = {n: Ledger(p / "ledger.db").head for n, p in stage.world.homes.items()}
    superlink = stage.deployment.superlink
    run = superlink.start_run({"study": "0" * 64, "home": str(stage.world.server)})
    deadline = time.monotonic() + 60
    while not superlink.run_status(run).finished:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert superlink.run_status(run).sub_status == "failed"
    assert {n: Ledger(p / "ledger.db").head for n, p in stage.world.homes.items()} == sent


def test_a_killed_server_goes_on_with_its_run(stage: Stage) -> None:
    """Flower's own SuperLink is killed in the middle, and with it the coordinator; the same run finishes."""
    deployment, built = stage.deployment, stage.world
    deployment.start_node(built, VICTIM)  # the killed node comes back with its directory as it was
    deployment.await_ready(4)
    digest = submit(stage, make_draft(rounds=6, epsilon=1.0, trip_seconds=8.0))

    def kill() -> None:
        pid = deployment.superlink.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    run, events = follow(
        stage,
        digest,
        at_round=2,
        then=lambda: (kill(), deployment.superlink.stop(), deployment.superlink.start()),
    )
    kinds = [e.kind for e in events]
    assert kinds[-1] == "finished" and kinds.count("resumed") >= 1
    assert [e.data["round"] for e in events if e.kind == "round"] == list(range(1, 9))
    report = released(stage, digest)
    for name, path in built.homes.items():
        ledger = Ledger(path / "ledger.db")
        if all(name in who for who in report.survivors.values()):
            assert ledger.epsilon(1e-5, study=digest) == pytest.approx(report.epsilon, abs=1e-12)
        AuditLog(path / "audit.db", f"foedus node {name}").check()
        assert Home.load(path).party == name
    log = AuditLog(built.server / "audit.db", built.treaty.coordinator.origin)
    log.check()
    actions = [e.record["action"] for e in log.entries() if e.record["details"].get("run") == run]
    assert actions.count("round.summed") == 8 and actions.count("run.finished") == 1
    assert actions.count("run.resumed") == kinds.count("resumed")


def released(stage: Stage, digest: str) -> Report:
    """What the evidence of a finished study says, fetched by an officer."""
    with client(stage.deployment, stage.world, "delia", Role.OFFICER) as officer:
        listed = {r["name"]: r for r in officer.results(digest)}
        report = verify(officer.save_result(digest, listed["evidence.zip"], stage.world.root / digest[:8]))
    assert len(report.checks) == 10
    return report


def test_a_killed_coordinator_and_a_restarted_node_go_on(stage: Stage) -> None:
    """The ServerApp's process alone is killed; later a node is, and comes back with a later batch."""
    deployment, built = stage.deployment, stage.world
    deployment.await_ready(4)
    digest = submit(stage, make_draft(rounds=40, epsilon=1.0, trip_seconds=4.0))
    seen: dict[str, Any] = {}

    def at(event: Any) -> None:
        number = event.data["round"] if event.kind == "round" else 0
        if number == 3 and "killed" not in seen:
            seen["killed"] = [pid for pid in coordinators(deployment) if os.kill(pid, signal.SIGKILL) is None]
        if number >= 6 and "restarted" not in seen:
            seen["restarted"] = number
            deployment.kill_node(VICTIM)
            deployment.start_node(built, VICTIM)

    with client(deployment, built, "dana", Role.SCIENTIST) as scientist:
        run = str(scientist.start(digest)["id"])
        events = []
        for event in scientist.follow(run):
            events.append(event)
            at(event)
    kinds = [e.kind for e in events]
    assert seen["killed"] and kinds.count("resumed") >= 1
    assert kinds[-1] == "finished"
    (back,) = [e.data for e in events if e.kind == "rejoined"]
    assert back["silos"] == [VICTIM]
    report = released(stage, digest)
    was_in = [VICTIM in report.survivors[n] for n in sorted(report.survivors)]
    assert was_in[0] and was_in[-1] and not all(was_in)
    assert was_in[back["round"] - 1]
    for name in built.homes:
        if name != VICTIM:
            spent = Ledger(built.homes[name] / "ledger.db").epsilon(1e-5, study=digest)
            assert spent == pytest.approx(report.epsilon, abs=1e-12)


def coordinators(deployment: Deployment) -> list[int]:
    """The process ids of the ServerApps under our SuperLink."""
    found, todo = [], [deployment.superlink.pid]
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.name))
        except OSError:
            continue
    while todo:
        for pid in parents.get(todo.pop() or 0, []):
            todo.append(pid)
            if b"flwr-serverapp" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found
