"""The control plane from outside: who may ask, what is refused and why, what is logged."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.orders import make_count
from support.treaties import ORIGIN, PURPOSE, all_approvals, make_draft, sign_study

from foedus.compliance.auditlog import merkle
from foedus.compliance.auditlog.checkpoint import open_checkpoint
from foedus.documents import Envelope, SigningKey
from foedus.errors import InputError, Refused, Unreachable, VerificationError
from foedus.federation.fitting import resolve
from foedus.federation.study import DraftPrivacy, parse
from foedus.server import checkpoint
from foedus.server.app import Settings, create_app
from foedus.server.auth import Role, authenticate, issue
from foedus.server.client import ApiClient
from foedus.server.desk import Desk
from foedus.server.problems import Unauthenticated

from .conftest import FIRST_RUN, FakeSuperLink, World, error_of

ANY = {"scientist", "officer", "partner", "admin"}
READERS = {"scientist", "officer", "partner"}
D = "0" * 64

ROUTES: list[tuple[str, str, set[str]]] = [
    ("POST", "/v1/studies", {"scientist"}),
    ("GET", "/v1/studies", ANY),
    ("GET", f"/v1/studies/{D}", ANY),
    ("POST", f"/v1/studies/{D}/approvals", {"officer", "partner"}),
    ("POST", f"/v1/studies/{D}/run", {"scientist"}),
    ("GET", f"/v1/studies/{D}/results", READERS),
    ("GET", f"/v1/studies/{D}/results/model.json", READERS),
    ("GET", "/v1/runs/1", ANY),
    ("GET", "/v1/runs/1/events", ANY),
    ("POST", "/v1/runs/1/stop", {"scientist", "admin", "officer"}),
    ("GET", "/v1/log/checkpoint", READERS),
    ("GET", "/v1/log/checkpoint/cosigned", READERS),
    ("GET", "/v1/log/entries", READERS),
    ("GET", "/v1/log/payload?index=0", READERS),
    ("GET", "/v1/log/proof/consistency?old=0&new=0", READERS),
    ("GET", "/v1/log/proof/inclusion?index=0&size=1", READERS),
    ("GET", "/v1/treaty", ANY),
    ("POST", "/v1/tokens", {"admin"}),
    ("GET", "/v1/tokens", {"admin"}),
    ("DELETE", "/v1/tokens/00000000", {"admin"}),
]

# ── who may ask ──────────────────────────────────────────────────────────────────────────────────


def test_every_route_knows_its_roles(world: World) -> None:
    for method, path, allowed in ROUTES:
        assert error_of(world.request(None, method, path)) == (401, "NO_TOKEN"), path
        for role in sorted(ANY):
            answer = world.request(role, method, path)
            if role in allowed:
                assert answer.status_code not in (401, 403, 500), (method, path, role)
            else:
                assert error_of(answer) == (403, "ROLE_NOT_ALLOWED"), (method, path, role)


def test_the_table_of_routes_is_complete(serve: Callable[..., World]) -> None:
    # From what the application says of itself, so that a new route can't be forgotten above.
    world = serve(docs=True)
    described = world.request(None, "GET", "/openapi.json").json()["paths"]
    real = {(method.upper(), path) for path, methods in described.items() for method in methods}
    listed = {
        (method, next(p for _, p in sorted(real, reverse=True) if re.fullmatch(re.sub(r"{\w+}", "[^/]+", p), path.split("?")[0])))
        for method, path, _ in ROUTES
    }  # fmt: skip
    assert len(listed) == len(ROUTES)
    assert real - listed == {("GET", "/health")}


def test_health_needs_no_token_and_says_nothing(world: World) -> None:
    answer = world.request(None, "GET", "/health")
    assert answer.json() == {"status": "ok"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/redoc", "/v1", "/v1/studies/"])
def test_what_is_not_there(world: World, path: str) -> None:
    assert error_of(world.request("admin", "GET", path)) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "NO_TOKEN"),
        ("Bearer", "NO_TOKEN"),
        ("Basic YTpi", "NO_TOKEN"),
        ("Bearer x", "UNKNOWN_TOKEN"),
        (f"Bearer foedus_00000000_{'0' * 64}", "UNKNOWN_TOKEN"),
        ("Bearer \xff", "UNKNOWN_TOKEN"),
    ],
)
def test_tokens_that_are_none(world: World, header: str, code: str) -> None:
    with pytest.raises(Unauthenticated) as refusal:
        authenticate(world.desk.store, header)
    assert refusal.value.code == code
    assert (
        world.request(
            None, "GET", "/v1/treaty", headers={"authorization": header.encode("latin-1")}
        ).status_code
        == 401
    )


def test_a_right_prefix_with_a_wrong_secret(world: World) -> None:
    good = world.tokens["admin"]
    wrong = good[:-1] + ("0" if good[-1] != "0" else "1")
    with pytest.raises(Unauthenticated, match="no such token"):
        authenticate(world.desk.store, f"Bearer {wrong}")


def test_expired_and_revoked_tokens(world: World) -> None:
    text, row = issue("late", Role.ADMIN, 1, now=datetime.now(UTC) - timedelta(days=1, seconds=1))
    world.desk.store.add_token(row)
    answer = world.request(None, "GET", "/v1/treaty", headers={"authorization": f"Bearer {text}"})
    assert error_of(answer) == (401, "TOKEN_EXPIRED")
    with world.client("admin") as admin:
        made = admin.create_token("carol", "partner", 5)
        with ApiClient(world.url, made["token"]) as carol:
            assert carol.treaty().digest == world.document.digest
            admin.revoke_token(made["prefix"])
            with pytest.raises(Refused) as refusal:
                carol.treaty()
            assert refusal.value.code == "TOKEN_REVOKED"
        with pytest.raises(InputError):
            admin.revoke_token(made["prefix"])
        assert all("sha256" not in line and "token" not in line for line in admin.tokens())
    assert world.actions() == ["token.created", "token.revoked"]
    assert made["token"].rpartition("_")[2] not in (world.desk.home / "server.db").read_bytes().decode(
        "latin-1"
    )


@pytest.mark.parametrize(
    "change", [{"days": 0}, {"days": 367}, {"role": "root"}, {"name": "A b"}, {"more": 1}]
)
def test_tokens_out_of_bounds(world: World, change: dict[str, Any]) -> None:
    wanted = {"name": "carol", "role": "partner", "days": 5} | change
    assert error_of(world.request("admin", "POST", "/v1/tokens", json=wanted)) == (422, "INPUT")
    assert world.actions() == []


# ── a study's way ────────────────────────────────────────────────────────────────────────────────


def test_from_submission_to_a_finished_run(world: World) -> None:
    study = world.study()
    with (
        world.client("scientist") as alice,
        world.client("officer") as officer,
        world.client("partner") as partner,
    ):
        assert alice.submit(study)["status"] == "submitted"
        shown = officer.study(study.digest[:8])
        assert Envelope.from_json(shown["envelope"]) == study
        assert shown["missing"] == ["business", "dpo", *(f"partner shop-{i}" for i in range(1, 5))]
        assert 0 < shown["price"] <= 4.0
        for approver in ("bianca", "dora", "officer-1", "officer-2"):
            officer.approve(study.digest, world.decision(study, approver))
        partner.approve(study.digest, world.decision(study, "officer-3"))
        signed = world.decision(study, "officer-4")
        last = partner.approve(study.digest[:12], signed)
        assert (last["status"], last["missing"]) == ("approved", [])

        run = alice.start(study.digest[:10])
        assert run["id"] == str(FIRST_RUN) and run["status"] == "running"
        assert world.superlink.configs == [{"study": study.digest, "home": str(world.desk.home)}]
        assert alice.studies()[0]["status"] == "running"

        store = world.desk.store
        store.add_event(run["id"], "round", {"round": 1, "ε": 0.5})
        store.add_event(run["id"], "finished", {})
        assert [(e.kind, e.data) for e in alice.follow(run["id"])] == [
            ("round", {"round": 1, "ε": 0.5}),
            ("finished", {}),
        ]
        assert alice.run(run["id"])["finished"]
        assert alice.study(study.digest)["status"] == "finished"
        with pytest.raises(Refused) as refusal:
            alice.start(study.digest)
        assert refusal.value.code == "STUDY_FINISHED"
    assert world.actions() == ["study.submitted", *["study.approved"] * 6, "run.started", "run.refused"]
    actor, _, subject, details = world.audit()[0]
    assert (actor, subject) == ("a-scientist", study.digest)
    assert len(details.pop("sealed")) == 44  # the title, as a commitment
    assert details == {
        "author": "alice",
        "purpose": PURPOSE,
        "epsilon": 4.0,
        "delta": 1e-5,
    }
    assert world.audit()[6][3] == {
        "approval": signed.digest,  # by which reports cite it
        "approver": "officer-4",
        "level": "partner",
        "party": "shop-4",
        "epsilon": 4.0,
    }
    assert world.audit()[7][3] == {"run": str(FIRST_RUN)}


def test_the_same_study_twice(world: World) -> None:
    study = world.submitted()
    with world.client("scientist") as alice, pytest.raises(Refused, match="submitted before") as refusal:
        alice.submit(study)
    assert refusal.value.code == "ALREADY_SUBMITTED"
    assert world.audit()[-1][1:] == ("study.refused", study.digest, {"code": "ALREADY_SUBMITTED"})


def test_the_same_study_twenty_times_at_once(world: World) -> None:
    study, statuses = world.study().dumps(), []

    def submit() -> None:
        statuses.append(world.request("scientist", "POST", "/v1/studies", content=study).status_code)

    threads = [threading.Thread(target=submit) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] + [409] * 19
    assert sorted(world.actions()) == ["study.refused"] * 19 + ["study.submitted"]


def _changed(study: Envelope, keys: Any, **payload: Any) -> Envelope:
    return Envelope("study", study.payload | payload).signed("alice", keys.scientists["alice"])


@pytest.mark.parametrize(
    ("make", "status", "code"),
    [
        (lambda w, s: _changed(s, w.keys, purpose="dpv:Marketing"), 409, "PURPOSE_NOT_PERMITTED"),
        (lambda w, s: _changed(s, w.keys, treaty="0" * 64), 409, "OTHER_TREATY"),
        (lambda w, s: _changed(s, w.keys, author="mallory"), 409, "UNKNOWN_AUTHOR"),
        (lambda w, s: _changed(s, w.keys, privacy=s.payload["privacy"] | {"epsilon": 9.0}), 409, "EPSILON_OVER_CAP"),
        (lambda w, s: _changed(s, w.keys, privacy=s.payload["privacy"] | {"epsilon": 1.0}), 409, "NOISE_TOO_SMALL"),
        (lambda w, s: _changed(s, w.keys, privacy=s.payload["privacy"] | {"delta": 1e-4}), 409, "DELTA_OVER_CAP"),
        (lambda w, s: _changed(s, w.keys, privacy=s.payload["privacy"] | {"mode": "central"}), 409, "MODE_NOT_PERMITTED"),
        (lambda w, s: _changed(s, w.keys, code="import os"), 422, "INPUT"),
        (lambda w, s: Envelope("approval", s.payload, s.signatures), 422, "INPUT"),
        (lambda w, s: Envelope("study", s.payload), 400, "VERIFICATION"),
        (lambda w, s: Envelope("study", s.payload).signed("alice", SigningKey.generate()), 400, "VERIFICATION"),
        (lambda w, s: Envelope("study", s.payload | {"title": "x"}, s.signatures), 400, "VERIFICATION"),
    ],
)  # fmt: skip
def test_studies_that_are_refused(
    world: World, make: Callable[..., Envelope], status: int, code: str
) -> None:
    study = make(world, world.study())
    assert error_of(world.request("scientist", "POST", "/v1/studies", content=study.dumps())) == (
        status,
        code,
    )
    assert world.audit() == [("a-scientist", "study.refused", study.digest, {"code": code})]
    assert world.desk.store.studies() == []


def test_a_draft_over_the_cap_is_refused_with_its_remedy(world: World) -> None:
    draft = make_draft(privacy=DraftPrivacy(epsilon=9.0))
    with pytest.raises(Refused) as refusal:
        resolve(draft, world.treaty, world.document.digest)
    assert refusal.value.code == "EPSILON_OVER_CAP" and refusal.value.remedy


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"kind":"study","kind":"study"}', b"[" * 100_000,
        b'{"kind":"study","payload":{"x":NaN},"signatures":{}}',
        b'{"kind":"study","payload":{"x":1e999},"signatures":{}}',
        b'{"kind":"study","payload":{"x":9007199254740993},"signatures":{}}',
        b'{"kind":"study","payload":{"x":"\\ud800"},"signatures":{}}',
        b'{"kind":"study","payload":{},"signatures":{"\\ud800":"x"}}',
        b'{"kind":"\\ud800","payload":{},"signatures":{}}',
        b'{"kind":"study","payload":{},"signatures":{}}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_study(world: World, body: bytes) -> None:
    assert error_of(world.request("scientist", "POST", "/v1/studies", content=body)) == (422, "INPUT")
    assert world.actions() == ["study.refused"]


def test_bodies_beyond_a_mebibyte(world: World) -> None:
    def chunks() -> Any:
        for _ in range(32):
            yield b" " * 65536

    big = b" " * (2**20 + 1)
    assert error_of(world.request("scientist", "POST", "/v1/studies", content=big)) == (413, "TOO_LARGE")
    assert error_of(world.request("scientist", "POST", "/v1/studies", content=chunks())) == (413, "TOO_LARGE")
    assert error_of(world.request("scientist", "POST", "/v1/studies", content=big[1:])) == (422, "INPUT")
    # Without a token nothing of it is read.
    assert error_of(world.request(None, "POST", "/v1/studies", content=big)) == (401, "NO_TOKEN")


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("0" * 64, 404),
        ("0" * 8, 404),
        ("0" * 7, 422),
        ("F" * 8, 422),
        ("0" * 65, 422),
        ("%25%25%25%25%25%25%25%25", 422),
    ],
)
def test_studies_that_are_not_there(world: World, name: str, status: int) -> None:
    world.submitted()
    assert world.request("officer", "GET", f"/v1/studies/{name}").status_code == status


# ── approvals ────────────────────────────────────────────────────────────────────────────────────


def _refused(world: World, study: Envelope, decision: Envelope, status: int, code: str) -> None:
    before = world.desk.store.approvals(study.digest)
    answer = world.request(
        "officer", "POST", f"/v1/studies/{study.digest}/approvals", content=decision.dumps()
    )
    assert error_of(answer) == (status, code)
    assert world.audit()[-1] == ("a-officer", "approval.refused", study.digest, {"code": code})
    assert world.desk.store.approvals(study.digest) == before


def test_approvals_that_are_refused(world: World) -> None:
    study, other = world.submitted(), world.study()
    good = world.decision(study, "dora")
    forged = Envelope("approval", good.payload).signed("dora", world.keys.approvers["bianca"])
    promoted = Envelope("approval", good.payload | {"level": "business"}).signed(
        "dora", world.keys.approvers["dora"]
    )
    _refused(world, study, forged, 400, "VERIFICATION")
    _refused(world, study, promoted, 400, "VERIFICATION")
    _refused(world, study, world.decision(other, "dora"), 400, "VERIFICATION")
    _refused(world, study, world.decision(study, "dora", treaty="0" * 64), 400, "VERIFICATION")
    _refused(world, study, world.decision(study, "dora", days=-1), 409, "APPROVAL_VOID")
    _refused(world, study, world.decision(study, "dora", epsilon=3.9), 409, "APPROVAL_VOID")
    _refused(world, study, world.decision(study, "dora", purpose="dpv:Marketing"), 409, "APPROVAL_VOID")
    _refused(world, study, study, 422, "INPUT")
    naive = Envelope("approval", good.payload | {"expires": "2099-01-01T00:00:00"})
    _refused(world, study, naive.signed("dora", world.keys.approvers["dora"]), 422, "INPUT")


def test_nobody_approves_their_own_study(
    serve: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    from support import treaties

    # dora is given alice's key: two names, one pair of eyes.
    made: list[SigningKey] = []
    real = SigningKey.generate

    def generate() -> SigningKey:
        made.append(real())
        # order of make_treaty: 4 parties, the coordinator, alice, bob, bianca, dora
        return made[5] if len(made) == 9 else made[-1]

    monkeypatch.setattr(treaties.SigningKey, "generate", generate)
    world = serve()
    monkeypatch.undo()
    assert world.keys.approvers["dora"].public == world.keys.scientists["alice"].public
    study = world.submitted()
    _refused(world, study, world.decision(study, "dora"), 409, "SELF_APPROVAL")
    _refused(world, study, world.decision(study, "dora", decision="reject"), 409, "SELF_APPROVAL")


def test_a_run_needs_every_approval(world: World) -> None:
    study = world.submitted()
    with world.client("officer") as officer, world.client("scientist") as alice:
        for approver in ("bianca", "dora", "officer-1", "officer-2", "officer-3"):
            officer.approve(study.digest, world.decision(study, approver))
        with pytest.raises(Refused, match="partner shop-4") as refusal:
            alice.start(study.digest)
    assert refusal.value.code == "APPROVAL_MISSING" and "foedus study approve" in refusal.value.remedy
    assert world.superlink.configs == []
    assert world.audit()[-1] == ("a-scientist", "run.refused", study.digest, {"code": "APPROVAL_MISSING"})


def test_one_decision_of_each_approver(world: World) -> None:
    study = world.approved()
    _refused(world, study, world.decision(study, "dora"), 409, "ALREADY_DECIDED")
    with world.client("officer") as officer, world.client("scientist") as alice:
        # what was approved can be withdrawn, and that is final
        withdrawn = officer.approve(study.digest, world.decision(study, "dora", decision="reject"))
        assert withdrawn["status"] == "rejected" and "dora" in withdrawn["reason"]
        with pytest.raises(Refused) as refusal:
            alice.start(study.digest)
        assert refusal.value.code == "STUDY_REJECTED"
    assert world.audit()[-2][1] == "study.rejected"
    _refused(world, study, world.decision(study, "dora"), 409, "ALREADY_DECIDED")


def test_an_approver_who_takes_back_stops_the_run(world: World) -> None:
    study, run = world.started()
    with world.client("officer") as officer:
        after = officer.approve(study.digest, world.decision(study, "dora", decision="reject"))
    assert after["status"] == "rejected" and world.superlink.stopped
    assert world.desk.runs.find(run).status == "stopped"
    assert world.actions()[-2:] == ["study.rejected", "run.stopped"]
    with world.client("scientist") as scientist, pytest.raises(Refused, match="rejected"):
        scientist.start(study.digest)


def test_what_an_approver_takes_back_is_filed_though_flower_does_not_answer(world: World) -> None:
    study, run = world.started()
    world.superlink.reachable = False
    with world.client("officer") as officer:
        assert officer.approve(study.digest, world.decision(study, "dora", decision="reject"))["status"]
    assert world.actions()[-1] == "study.rejected" and world.desk.runs.find(run).status == "running"
    world.superlink.reachable = True
    deadline = time.monotonic() + 10
    while world.desk.runs.find(run).status == "running":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert world.actions()[-2:] == ["study.rejected", "run.stopped"]


def test_a_server_killed_after_a_rejection_stops_the_run_when_it_looks(world: World) -> None:
    study, run = world.started()
    world.desk.registry.decide(
        study.digest, world.decision(study, "dora", decision="reject").dumps(), actor="x"
    )
    deadline = time.monotonic() + 10
    while world.desk.runs.find(run).status == "running":  # the watcher looks by itself
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert world.actions()[-2:] == ["study.rejected", "run.stopped"]


def test_an_expired_approval_can_be_renewed(world: World) -> None:
    study = world.submitted()
    with world.client("officer") as officer:
        officer.approve(
            study.digest, world.decision(study, "dora", expires=datetime.now(UTC) + timedelta(seconds=1.5))
        )
        assert "dpo" not in officer.study(study.digest)["missing"]
        time.sleep(1.6)
        assert "dpo" in officer.study(study.digest)["missing"]
        assert "dpo" not in officer.approve(study.digest, world.decision(study, "dora"))["missing"]


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────


def test_one_run_at_a_time(world: World) -> None:
    first, second = world.approved(), world.approved()
    with world.client("scientist") as alice:
        run = alice.start(first.digest)["id"]
        with pytest.raises(Refused) as refusal:
            alice.start(second.digest)
        assert refusal.value.code == "RUN_ACTIVE" and run in refusal.value.remedy
        assert alice.stop(run)["status"] == "stopped"
        assert world.superlink.stopped == [FIRST_RUN]
        with pytest.raises(Refused) as refusal:
            alice.stop(run)
        assert refusal.value.code == "RUN_ENDED"
        assert alice.study(first.digest)["status"] == "failed"
        assert alice.start(second.digest)["id"] == str(FIRST_RUN + 1)
    assert [a for a in world.actions() if a.startswith("run.")] == [
        "run.started", "run.refused", "run.stopped", "run.started",
    ]  # fmt: skip


def test_ten_starts_at_once_start_one_run(world: World) -> None:
    study, statuses = world.approved(), []

    def start() -> None:
        statuses.append(world.request("scientist", "POST", f"/v1/studies/{study.digest}/run").status_code)

    threads = [threading.Thread(target=start) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] + [409] * 9
    assert len(world.superlink.configs) == 1


def test_no_run_without_flower(world: World) -> None:
    study = world.approved()
    world.superlink.reachable = False
    with world.client("scientist") as alice, pytest.raises(Unreachable):
        alice.start(study.digest)
    assert world.desk.store.runs() == []


def test_a_run_that_cannot_be_recorded_is_stopped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    study = world.approved()

    def broken(*_: object) -> int:
        raise VerificationError("the log is damaged")

    monkeypatch.setattr(type(world.desk.log), "append", broken)
    assert error_of(world.request("scientist", "POST", f"/v1/studies/{study.digest}/run")) == (
        400,
        "VERIFICATION",
    )
    assert world.superlink.stopped == [FIRST_RUN]
    assert world.desk.store.runs() == []


DIED: list[tuple[str, str, str] | None] = [
    ("finished", "failed", "No heartbeat"),
    ("finished", "completed", ""),  # it left without saying that it had finished
    None,  # Flower has forgotten it
]


@pytest.mark.parametrize("flower", DIED)
def test_a_run_that_died_is_resumed(world: World, flower: tuple[str, str, str] | None) -> None:
    study, run = world.started()
    die(world, FIRST_RUN, flower)
    with world.client("scientist") as alice:
        resumed = next(iter(alice.follow(run)))
        assert resumed.kind == "resumed" and resumed.data["attempt"] == 2 and resumed.data["reason"]
        assert alice.run(run)["status"] == "running"
        assert world.superlink.configs[1] == {**world.superlink.configs[0], "resume": run}
        assert world.desk.store.attempts(run) == [run, str(FIRST_RUN + 1)]
        assert alice.stop(run)["status"] == "stopped"  # what is stopped is the attempt that goes on
        assert world.superlink.stopped == [FIRST_RUN + 1]
    time.sleep(0.3)
    assert len(world.superlink.configs) == 2  # and never is a stopped run resumed
    assert world.audit()[-2:] == [
        ("server", "run.resumed", study.digest, {"run": run, "attempt": 2}),
        ("a-scientist", "run.stopped", study.digest, {"run": run}),
    ]


def die(world: World, number: int, flower: tuple[str, str, str] | None) -> None:
    if flower is None:
        del world.superlink.status[number]
    else:
        world.superlink.status[number] = flower


def test_a_run_that_flower_stopped_is_not_resumed(world: World) -> None:
    _, run = world.started()
    world.superlink.status[FIRST_RUN] = ("finished", "stopped", "")
    with world.client("scientist") as alice:
        assert [e.kind for e in alice.follow(run)] == ["stopped"]
    assert world.actions()[-1] == "run.stopped" and len(world.superlink.configs) == 1
    with pytest.raises(Refused):
        world.desk.store.add_event(run, "finished", {})


def test_attempts_that_get_no_further_end_the_run_and_progress_gives_new_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = world.superlink.start_run

    def dead_at_once(config: dict[str, Any]) -> int:
        number = start(config)
        world.superlink.status[number] = ("finished", "failed", "crashed")
        if len(world.superlink.configs) == 4:
            world.desk.store.add_event(config["resume"], "round", {"round": 1})
        return number

    _, run = world.started()
    monkeypatch.setattr(world.superlink, "start_run", dead_at_once)
    world.superlink.status[FIRST_RUN] = ("finished", "failed", "crashed")
    with world.client("scientist") as alice:
        events = list(alice.follow(run))
    kinds = [e.kind for e in events]
    assert kinds == ["resumed"] * 2 + ["round"] + ["resumed"] * 6 + ["failed"]
    assert (
        events[-1].data["reason"].startswith("5 attempts got no further; the last: Flower: finished:failed")
    )
    assert world.actions()[-1] == "run.failed"


def test_a_run_whose_process_has_ended_is_resumed_before_flower_knows(world: World) -> None:
    _, run = world.started()
    with checkpoint.alone(world.desk.home, run, run):
        time.sleep(0.3)
        assert world.desk.store.attempts(run) == [run]  # it lives
    with world.client("scientist") as alice:
        assert next(iter(alice.follow(run))).kind == "resumed"
    time.sleep(0.3)
    assert len(world.desk.store.attempts(run)) == 2  # the second has not begun yet: Flower says it runs


def test_a_server_that_restarts_resumes_its_run_once_flower_is_there(world: World) -> None:
    _, run = world.started()
    world.superlink.reachable = False
    world.superlink.status[FIRST_RUN] = ("finished", "failed", "No heartbeat")
    time.sleep(0.3)
    assert world.desk.store.attempts(run) == [run]
    world.superlink.reachable = True
    with world.client("scientist") as alice:
        assert next(iter(alice.follow(run))).kind == "resumed"
    world.desk.close()  # the whole server is gone, and comes again over the same directory
    again = FakeSuperLink()
    desk = Desk.open(Settings(home=world.desk.home, superlink=again, watch_seconds=0.05))
    desk.runs.check()
    assert again.configs[0]["resume"] == run  # this Flower knows nothing of the attempt before
    assert desk.store.attempts(run)[1:] == [str(FIRST_RUN + 1), str(FIRST_RUN)]
    desk.close()


def test_following_resumes_after_the_last_event_seen(world: World) -> None:
    _, run = world.started()
    store = world.desk.store
    ids = [store.add_event(run, "round", {"round": r}) for r in (1, 2, 3)]

    def later() -> None:
        time.sleep(0.5)
        store.add_event(run, "round", {"round": 4})
        store.add_event(run, "finished", {"text": "two\nlines"})

    thread = threading.Thread(target=later)
    thread.start()
    answer = world.request("partner", "GET", f"/v1/runs/{run}/events", headers={"last-event-id": str(ids[1])})
    thread.join()
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [dict(line.split(": ", 1) for line in e.split("\n")) for e in answer.text.strip().split("\n\n")]
    assert [e["event"] for e in events] == ["round", "round", "finished"]
    assert [json.loads(e["data"])["data"] for e in events] == [
        {"round": 3},
        {"round": 4},
        {"text": "two\nlines"},
    ]
    # one who has seen the end is told not to come back
    last = events[-1]["id"]
    again = world.request("partner", "GET", f"/v1/runs/{run}/events", headers={"last-event-id": last})
    assert again.status_code == 204
    with world.client("officer") as officer:
        assert [e.kind for e in officer.follow(run, after=int(events[1]["id"]))] == ["finished"]


def test_events_arrive_as_they_happen(world: World) -> None:
    _, run = world.started()
    with world.client("scientist") as alice:
        follower = alice.follow(run)
        world.desk.store.add_event(run, "round", {"round": 1})
        sent = time.monotonic()
        assert next(follower).data == {"round": 1}
        assert time.monotonic() - sent < 2
        world.desk.store.add_event(run, "failed", {})
        assert next(follower).last


def test_heartbeats(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foedus.server.routes.runs.HEARTBEAT_SECONDS", 0.3)
    _, run = world.started()
    threading.Timer(1.0, world.desk.store.add_event, (run, "finished", {})).start()
    text = world.request("officer", "GET", f"/v1/runs/{run}/events").text
    assert text.count(": still running\n\n") >= 1 and text.count("event: ") == 1


@pytest.mark.parametrize("value", ["-1", "x", "9" * 20, "²", "1.5"])
def test_a_last_event_id_that_is_none(world: World, value: str) -> None:
    _, run = world.started()
    answer = world.request(
        "officer", "GET", f"/v1/runs/{run}/events", headers={"last-event-id": value.encode("latin-1")}
    )
    assert error_of(answer) == (422, "INPUT")


def test_runs_that_are_not_there(world: World) -> None:
    for path in ("/v1/runs/12", "/v1/runs/12/events"):
        assert error_of(world.request("officer", "GET", path)) == (404, "NOT_FOUND")
    assert error_of(world.request("officer", "POST", "/v1/runs/12/stop")) == (404, "NOT_FOUND")


# ── results ──────────────────────────────────────────────────────────────────────────────────────


def _released(world: World) -> tuple[Envelope, str]:
    study, run = world.started()
    folder = world.desk.home / "evidence" / study.digest
    folder.mkdir(parents=True)
    (folder / "model.json").write_bytes(b'{"weights": []}')
    world.desk.store.add_release(
        world.desk.home / "evidence", folder / "model.json", study=study.digest, run=run, kind="model"
    )
    return study, run


def test_results_are_listed_and_read(world: World) -> None:
    study, run = _released(world)
    with world.client("partner") as partner:
        (result,) = partner.results(study.digest)
        assert (result["name"], result["kind"], result["run"], result["size"]) == (
            "model.json",
            "model",
            run,
            15,
        )
        assert partner.download(study.digest, "model.json") == b'{"weights": []}'
    assert world.audit()[-1] == (
        "a-partner", "result.read", study.digest, {"name": "model.json", "sha256": result["sha256"]},
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "..%2F..%2Fserver.key", "%2e%2e%2fserver.key", "....//server.key", "%2Fetc%2Fpasswd", "..", "%00",
        "..%5C..%5Cserver.key", "model.json%00", "server.key", "MODEL.JSON",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_results(world: World, name: str) -> None:
    study, _ = _released(world)
    # http.client sends the path as it is; httpx would tidy it up.
    import http.client

    connection = http.client.HTTPConnection(world.url.removeprefix("http://"), timeout=10)
    try:
        connection.request(
            "GET",
            f"/v1/studies/{study.digest}/results/{name}",
            headers={"Authorization": f"Bearer {world.tokens['partner']}"},
        )
        answer = connection.getresponse()
        assert answer.status == 404
        assert b"PRIVATE KEY" not in answer.read()
    finally:
        connection.close()


def test_a_result_that_was_changed_or_replaced_by_a_link_is_not_served(world: World) -> None:
    study, _ = _released(world)
    path = world.desk.home / "evidence" / study.digest / "model.json"
    path.write_bytes(b"{}")
    url = f"/v1/studies/{study.digest}/results/model.json"
    assert error_of(world.request("partner", "GET", url)) == (400, "VERIFICATION")
    path.unlink()
    path.symlink_to(world.desk.home / "server.key")
    assert error_of(world.request("partner", "GET", url)) == (404, "NOT_FOUND")


def test_a_scientist_gets_the_table_of_a_count_and_not_the_sums_of_suppressed_cells(world: World) -> None:
    draft = make_count(author="alice")
    study = resolve(draft, world.treaty, world.document.digest)
    envelope = study.envelope().signed("alice", world.keys.scientists["alice"])
    with world.client("scientist") as scientist:
        scientist.submit(envelope)
        with world.client("officer") as officer:
            for approval in all_approvals(world.document, world.treaty, world.keys, envelope):
                officer.approve(envelope.digest, approval)
        run = str(scientist.start(envelope.digest)["id"])
    folder = world.desk.home / "evidence" / envelope.digest
    folder.mkdir(parents=True)
    for kind, name in (("table", "table.json"), ("evidence", "evidence.zip")):
        (folder / name).write_bytes(b"{}")
        path, releases = folder / name, world.desk.home / "evidence"
        world.desk.store.add_release(releases, path, study=envelope.digest, run=run, kind=kind)
    url = f"/v1/studies/{envelope.digest}/results"
    for role, listed in (("scientist", 1), ("officer", 2), ("partner", 2)):
        assert len(world.request(role, "GET", url).json()["results"]) == listed
        assert world.request(role, "GET", f"{url}/table.json").status_code == 200
    assert error_of(world.request("scientist", "GET", f"{url}/evidence.zip")) == (403, "EVIDENCE_OF_A_COUNT")
    assert world.request("officer", "GET", f"{url}/evidence.zip").status_code == 200


def test_a_count_under_the_treatys_k_is_not_submitted(world: World) -> None:
    study = resolve(make_count(author="alice"), world.treaty, world.document.digest)
    low = study.model_copy(update={"k": 5}).envelope().signed("alice", world.keys.scientists["alice"])
    with (
        world.client("scientist") as scientist,
        pytest.raises(Refused, match="under the treaty's 10") as refused,
    ):
        scientist.submit(low)
    assert refused.value.code == "K_UNDER_FLOOR"


def test_only_files_of_the_evidence_are_released(world: World) -> None:
    study, run = _released(world)
    evidence = world.desk.home / "evidence"
    (evidence / "-x").write_bytes(b"")
    for path in (world.desk.home / "server.key", evidence / ".." / "server.key", evidence, evidence / "-x"):
        with pytest.raises(InputError):
            world.desk.store.add_release(evidence, path, study=study.digest, run=run, kind="model")
    (evidence / study.digest / "model.json").write_bytes(b"another")
    with pytest.raises(InputError):  # a name is taken once
        world.desk.store.add_release(
            evidence, evidence / study.digest / "model.json", study=study.digest, run=run, kind="model"
        )


# ── the audit log, the treaty ────────────────────────────────────────────────────────────────────


def test_the_log_can_be_checked_from_outside(world: World) -> None:
    world.submitted()
    with world.client("officer") as officer:
        old = open_checkpoint(officer.checkpoint(), ORIGIN, world.keys.coordinator.public)
        world.approved()
        new = open_checkpoint(officer.checkpoint(), ORIGIN, world.keys.coordinator.public)
        proof = officer.consistency_proof(old.size, new.size)
        merkle.verify_consistency(old.size, old.root, new.size, new.root, proof)
        entries = list(officer.log_entries())
        assert [entry.index for entry in entries] == list(range(new.size))
        for entry in entries:
            path = officer.inclusion_proof(entry.index, new.size)
            merkle.verify_inclusion(entry.leaf, entry.index, new.size, path, new.root)
        assert entries[0].record["action"] == "study.submitted"
        assert list(officer.log_entries(2, 4)) == entries[2:4]


@pytest.mark.parametrize(
    "path",
    [
        "entries?start=-1", "entries?start=5", "entries?start=2&end=1", "entries?end=9", "entries?start=x",
        "proof/consistency?old=2&new=1", "proof/consistency?old=0&new=99", "proof/inclusion?index=1&size=1",
        "proof/inclusion", f"entries?start={2**70}",
    ],
)  # fmt: skip
def test_what_the_log_does_not_have(world: World, path: str) -> None:
    world.submitted()
    assert error_of(world.request("officer", "GET", f"/v1/log/{path}")) == (422, "INPUT")


def test_the_log_is_read_in_pages(world: World) -> None:
    world.desk.log.append_many([("a", "b", str(i), {}) for i in range(2500)])
    assert error_of(world.request("officer", "GET", "/v1/log/entries?start=0&end=1001")) == (422, "INPUT")
    with world.client("officer") as officer:
        assert [entry.index for entry in officer.log_entries()] == list(range(2500))


def test_the_treaty_is_the_one_that_was_signed(world: World) -> None:
    with world.client("partner") as partner:
        assert partner.treaty() == world.document


def test_a_study_is_kept_word_for_word(world: World) -> None:
    study = world.submitted(title="Käufer & Kündiger: 流失")
    with world.client("officer") as officer:
        shown = Envelope.from_json(officer.study(study.digest)["envelope"])
    assert shown == study and parse(shown).title == "Käufer & Kündiger: 流失"
    assert sign_study(parse(study), world.keys) == study


def test_a_lost_audit_log_does_not_come_back_empty(world: World) -> None:
    world.submitted()
    (world.desk.home / "audit.db").rename(world.desk.home / "elsewhere.db")
    with pytest.raises(InputError, match="no such audit log"):
        create_app(Settings(home=world.desk.home, superlink=world.superlink))
    (world.desk.home / "elsewhere.db").rename(world.desk.home / "audit.db")


def test_a_server_does_not_open_with_a_key_that_is_not_the_treatys(world: World) -> None:
    path = world.desk.home / "server.key"
    path.unlink()
    SigningKey.generate().save(path)
    with pytest.raises(VerificationError, match="coordinator"):
        create_app(Settings(home=world.desk.home, superlink=world.superlink))
