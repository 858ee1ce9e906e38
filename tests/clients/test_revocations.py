"""An approver takes back: the node refuses the next round, whether the server shows it or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from support.nodes import Rehearsal, assert_refused
from support.orders import copy_of, make_draft

from foedus import cli
from foedus.clients.app import SiloApp
from foedus.compliance import approvals
from foedus.compliance.auditlog.log import AuditLog
from foedus.demo.simulate import prepare
from foedus.demo.world import World
from foedus.documents import Envelope, SigningKey
from foedus.errors import Abandoned, InputError, Refused, VerificationError
from foedus.server.coordinator import conduct

NODE = "aster-music"


def rejection(
    play: Rehearsal, level: str = "dpo", key: SigningKey | None = None, say: str = "reject"
) -> Envelope:
    who = next(a for a in play.world.treaty.approvers if a.level == level)
    return approvals.decide(
        who,
        key or play.world.key(who.name),
        study=play.case.study_envelope.digest,
        treaty=play.world.treaty_envelope.digest,
        purpose=play.case.study.purpose,
        epsilon=play.case.study.privacy.epsilon,
        expires=datetime.now(UTC) + timedelta(days=1),
        decision=say,  # type: ignore[arg-type]
    )


def revoked(play: Rehearsal) -> list[dict[str, str]]:
    return [told for action, told in play.journal(NODE) if action == "study.revoked"]


def node(play: Rehearsal) -> SiloApp:
    return cast(SiloApp, play.grid._apps[100 + play.silos.index(NODE)])


def test_what_the_servers_log_says_stops_the_next_round(play: Rehearsal) -> None:
    play.set_up()
    play.play_round(1, play.weights)
    before = play.spent(NODE)
    play.case.log.append("api", "study.rejected", play.case.study_envelope.digest, {"approver": "dora"})
    said = play.ask(NODE, play.vector_request(NODE, 2), play.weights)
    # The entry comes with the message: the head goes on, and the round is refused.
    refusal = assert_refused(play, NODE, said, "REVOKED", before=before)
    assert "dora has taken back" in refusal.message
    assert revoked(play) == [{"approver": "dora", "source": "the server's log"}]
    play.case.seen(NODE, refusal.log_size)
    play.restart(NODE)
    assert_refused(play, NODE, play.ask(NODE, play.keys_request(NODE)), "REVOKED", before=before)
    assert len(revoked(play)) == 1


def test_another_studys_is_no_matter(play: Rehearsal) -> None:
    play.set_up()
    play.case.log.append("api", "study.rejected", "f" * 64, {"approver": "dora"})
    play.play_round(1, play.weights)
    assert play.case.study_envelope.digest != "f" * 64 and len(revoked(play)) == 1


@pytest.mark.parametrize("change", ["left out", "cut", "none"])
def test_a_server_can_not_hold_it_back(play: Rehearsal, change: str) -> None:
    play.set_up()
    play.case.log.append("api", "study.rejected", play.case.study_envelope.digest, {"approver": "dora"})
    play.case.log.append("coordinator", "note", "", {})
    request = play.vector_request(NODE)
    history = request.log.history
    assert history is not None
    kept = [e for e in history.entries if "study.rejected" not in e]
    told = {
        "left out": history.model_copy(update={"entries": kept}),
        "cut": history.model_copy(update={"entries": []}),
        "none": None,
    }[change]
    log = request.log.model_copy(update={"history": told})
    said = play.ask(NODE, request.model_copy(update={"log": log}), play.weights)
    assert_refused(play, NODE, said, "PROTOCOL" if told is None else "VERIFICATION")


def test_a_server_can_not_go_on_showing_the_log_as_it_was(play: Rehearsal) -> None:
    """The node is shown the head it has, again and again, while an approver takes back."""
    play.set_up()
    held, cosigned = {silo: play.case.head(silo) for silo in play.silos}, play.cosigned()
    first = play.play_round(1, play.weights)
    play.case.log.append("api", "study.rejected", play.case.study_envelope.digest, {"approver": "dora"})
    notice, total = first.notice()
    for silo in play.silos:
        before, data = play.spent(silo), play.weights + total
        stale = play.vector_request(silo, 2, boxes=False, previous=notice, log=held[silo], cosigned=cosigned)
        refusal = assert_refused(play, silo, play.ask(silo, stale, data), "VERIFICATION", before=before)
        assert "held back" in refusal.message
        now = play.vector_request(silo, 2, boxes=False, previous=notice)
        assert_refused(play, silo, play.ask(silo, now, data), "REVOKED", before=before)


@pytest.mark.parametrize("change", [{}, {"run": "2"}, {"round": 2}, {"sum": None}, {"round": "1"}])
def test_a_sum_that_was_logged_before_it_was_known_does_not_date_the_log(
    play: Rehearsal, change: dict[str, Any]
) -> None:
    told = {"run": play.case.run, "round": 1, "sum": "f" * 64} | change
    play.case.log.append("coordinator", "round.summed", play.case.study_envelope.digest, told)
    play.set_up()
    held, cosigned = play.case.head(NODE), play.cosigned()
    notice, total = play.play_round(1, play.weights).notice()
    stale = play.vector_request(NODE, 2, boxes=False, previous=notice, log=held, cosigned=cosigned)
    before = play.spent(NODE)
    said = play.ask(NODE, stale, play.weights + total)
    refusal = assert_refused(play, NODE, said, "VERIFICATION", before=before)
    assert ("another sum" if not change else "held back") in refusal.message
    if change:  # such an entry is about something else; the true one, once shown, is enough
        now = play.vector_request(NODE, 2, boxes=False, previous=notice)
        assert play.ask(NODE, now, play.weights + total).refusal is None


def test_what_was_taken_back_gets_no_answer_either(play: Rehearsal, tmp_path: Path) -> None:
    play.set_up()
    for silo in play.silos:
        assert play.ask(silo, play.vector_request(silo), play.weights).refusal is None
    guard = node(play).guard
    guard.revocations.take(rejection(play), guard.treaty, guard.treaty_digest)
    paid = play.spent(NODE)
    for request in (play.answer_request(), play.shares_request()):
        assert_refused(play, NODE, play.ask(NODE, request), "REVOKED", before=paid)
    assert play.ask(play.silos[1], play.answer_request()).refusal is None


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_a_list_that_is_lost_is_made_again_from_the_nodes_own_log(play: Rehearsal, how: str) -> None:
    guard = node(play).guard
    guard.revocations.take(rejection(play), guard.treaty, guard.treaty_digest)
    file = play.home(NODE) / "revoked.db"
    for found in play.home(NODE).glob("revoked.db*"):
        found.unlink()
    if how == "empty":
        file.touch()
    play.restart(NODE)
    assert_refused(play, NODE, play.ask(NODE, play.keys_request(NODE)), "REVOKED")
    assert len(revoked(play)) == 1


def test_handed_to_the_node_it_needs_no_server(
    play: Rehearsal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play.set_up()
    (file := tmp_path / "rejection.json").write_bytes(rejection(play).dumps())
    with pytest.raises(SystemExit) as end:
        cli.main(["node", "revoke", str(play.home(NODE)), str(file)])
    assert not end.value.code and "is refused from its next message on" in capsys.readouterr().out
    said = play.ask(NODE, play.vector_request(NODE), play.weights)
    assert_refused(play, NODE, said, "REVOKED")
    assert revoked(play)[0]["source"] == "handed in"


def test_only_an_approvers_own_no_counts(play: Rehearsal) -> None:
    guard = play.restart(NODE).guard
    take = lambda e: guard.revocations.take(e, guard.treaty, guard.treaty_digest)
    with pytest.raises(VerificationError):
        take(rejection(play, key=SigningKey.generate()))
    with pytest.raises(InputError, match="approves in it"):
        take(rejection(play, say="approve"))
    changed = json.loads(rejection(play).dumps())
    changed["payload"]["study"] = "0" * 64
    with pytest.raises(VerificationError):
        take(Envelope.from_json(changed))
    assert not revoked(play)


def test_the_log_comes_first(play: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = play.restart(NODE).guard

    def full(*_: object, **__: object) -> int:
        raise InputError("no space left on the disk")

    monkeypatch.setattr(AuditLog, "append", full)
    with pytest.raises(InputError):
        guard.revocations.take(rejection(play), guard.treaty, guard.treaty_digest)
    guard.revocations.require_none(play.case.study_envelope.digest)


@pytest.mark.parametrize("after", ["round", "receipts"])
def test_the_coordinator_itself_goes_no_further(guarded_world: World, tmp_path: Path, after: str) -> None:
    """With nobody to stop it from outside, and nodes that would not notice."""
    world = copy_of(guarded_world, tmp_path / "world")

    def note(kind: str, data: Mapping[str, Any]) -> None:
        if kind == after and data.get("round", 1) == 1:
            case.log.append("api", "study.rejected", case.study_envelope.digest, {"approver": "dora"})

    grid, case = prepare(world, make_draft(), note=note)
    for app in grid._apps.values():
        app.guard.revocations.read = lambda records: None  # type: ignore[attr-defined]
    with pytest.raises(Refused, match="dora has taken back") as refusal:
        conduct(grid, case)
    assert refusal.value.code == "STUDY_REJECTED"
    actions = [e.record["action"] for e in case.log.entries()]
    assert "released" not in actions and not (case.out / "evidence.zip").exists()
    assert actions.count("round.summed") == (1 if after == "round" else case.study.rounds)


def test_a_run_ends_by_the_nodes_own_no(guarded_world: World, tmp_path: Path) -> None:
    """A coordinator that does not heed it: no node gives another vector."""
    world = copy_of(guarded_world, tmp_path / "world")
    outs: dict[str, str] = {}

    def note(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "round":
            case.log.append("api", "study.rejected", case.study_envelope.digest, {"approver": "dora"})
        if kind == "silo-out":
            outs[data["silo"]] = data["code"]

    grid, case = prepare(world, make_draft(), note=note)
    case.require_not_rejected = lambda: None  # type: ignore[method-assign]
    with pytest.raises(Abandoned):
        conduct(grid, case)
    assert outs == dict.fromkeys(world.homes, "REVOKED") and len(case.sums) == 1
