"""An approver takes back: the node refuses the next round, whether the server shows it or not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.nodes import Rehearsal, assert_refused

from foedus import cli
from foedus.compliance import approvals
from foedus.compliance.auditlog.log import AuditLog
from foedus.documents import Envelope, SigningKey
from foedus.errors import InputError, VerificationError

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
