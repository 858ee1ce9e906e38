"""A ledger that went back: noticed, refused, and gone on with only by an officer's word."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.nodes import SILENT, Rehearsal, assert_refused
from support.orders import PURPOSE

from foedus import cli
from foedus.clients import recovery
from foedus.clients.app import SiloApp
from foedus.clients.budget import MISSING, RECOVERED
from foedus.clients.home import Home
from foedus.compliance.treaty import Treaty, sign_all
from foedus.documents import Envelope, SigningKey
from foedus.errors import BudgetExceeded, InputError, Refused, VerificationError
from foedus.federation import ledger_heads
from foedus.federation import messages as m
from foedus.privacy.ledger import Head, Ledger

NODE = "aster-music"
CODE = "LEDGER_ROLLED_BACK"


def a_round(play: Rehearsal) -> None:
    """Set-up and the first round, as the coordinator does it: the heads stand in its log."""
    for silo in play.silos:
        reply, _ = m.KeysReply.read(play.ask(silo, play.keys_request(silo)).message)
        play.case.take_ledger(silo, reply.ledger)
        play.case.seen(silo, reply.log_size)
        play.aggregator.add_advertisement(silo, Envelope.from_json(reply.keys))
    for silo in play.silos:
        answer, _ = m.SharesReply.read(play.ask(silo, play.shares_request()).message)
        play.aggregator.add_boxes(silo, m.boxes_from_json(answer.boxes))
    anchor(play, {"batch": 0})
    play.play_round(1, play.weights)


def receipts(play: Rehearsal) -> None:
    """The end of the run: the heads in the receipts stand in the log."""
    for silo in play.silos:
        said = play.ask(silo, m.ReceiptRequest(run="1", log=play.case.head(silo)))
        reply, _ = m.ReceiptReply.read(said.message)
        play.case.seen(silo, reply.log_size)
        told = {"silo": silo, "digest": "0" * 64, "ledger": reply.receipt["payload"]["ledger"]}
        play.case.record("receipt", told, once=("silo",))


def anchor(play: Rehearsal, told: dict[str, Any]) -> None:
    play.case.record("run.set-up", {**told, "ledgers": dict(play.case.ledgers)}, once=("batch",))


def again(play: Rehearsal, **changes: Any) -> m.KeysRequest:
    """Set-up of another batch, as a coordinator would ask for it that has counted the node's log head right."""
    play.case.heads[NODE] = SiloApp(Home.load(play.home(NODE))).guard.log_size
    return play.case.keys_request(NODE, 1, [2]).model_copy(update=changes)


def refused(play: Rehearsal, *, paid: float | None = None, **changes: Any) -> str:
    """The node, started anew over its directory, refuses the next set-up; why, by its own audit log."""
    play.restart(NODE)
    said = play.ask(NODE, again(play, **changes))
    assert_refused(play, NODE, said, CODE, before=play.spent(NODE))
    assert said.refusal is not None and said.refusal.message == SILENT
    return str(play.last_refusal(NODE)["reason"])


def copy_in(source: Path, target: Path) -> None:
    """A restore: the directory is what it was."""
    shutil.rmtree(target)
    shutil.copytree(source, target)


@pytest.fixture
def old(play: Rehearsal, tmp_path: Path) -> Path:
    """A backup of the node's directory from before the round."""
    shutil.copytree(play.home(NODE), tmp_path / "old")
    return tmp_path / "old"


# ── what is noticed ──────────────────────────────────────────────────────────────────────────────


def test_a_ledger_that_only_grew_is_let_in(play: Rehearsal) -> None:
    a_round(play)
    receipts(play)
    play.restart(NODE)
    assert play.ask(NODE, again(play)).refusal is None


def test_a_deleted_or_restored_ledger_is_noticed_without_the_server(
    play: Rehearsal, old: Path, subtests: pytest.Subtests
) -> None:
    a_round(play)
    path = play.home(NODE) / "ledger.db"
    whole = path.read_bytes()
    damages: dict[str, Callable[[], object]] = {
        "deleted": path.unlink,
        "emptied": lambda: path.write_bytes(b""),
        "an old copy": lambda: shutil.copyfile(old / "ledger.db", path),
        "another node's": lambda: shutil.copyfile(play.home("dune-media") / "ledger.db", path),
    }
    for name, damage in damages.items():
        with subtests.test(name):
            path.write_bytes(whole)
            damage()
            if name == "another node's":
                with pytest.raises(InputError, match="not of aster-music"):
                    play.restart(NODE)
                continue
            reason = refused(play, anchor=None)
            assert "deleted" in reason and "2" in reason
            budget, event = (
                play.restart(NODE).guard.budget,
                play.case.study.round(2, play.world.treaty).event(2),
            )
            steps: list[Callable[[], object]] = [
                budget.verify,
                lambda budget=budget, event=event: budget.reserve("2" * 64, play.case.study, event, "x"),  # type: ignore[misc]
                lambda budget=budget, event=event: budget.commit(1, event),  # type: ignore[misc]
                lambda budget=budget: budget.abort(1),  # type: ignore[misc]
            ]
            for step in steps:
                with pytest.raises(Refused, match="deleted"):
                    step()
    path.write_bytes(whole)
    play.restart(NODE)
    assert play.ask(NODE, again(play)).refusal is None


def test_it_is_noticed_in_a_running_node_before_anything_is_reserved(play: Rehearsal, old: Path) -> None:
    a_round(play)
    (play.home(NODE) / "ledger.db").unlink()
    said = play.ask(NODE, play.vector_request(NODE, 2, boxes=False), play.weights)
    assert said.refusal is not None and said.refusal.code == CODE and said.data == b""
    shutil.copyfile(old / "ledger.db", play.home(NODE) / "ledger.db")
    request = play.vector_request(NODE, 2, boxes=False, log=play.case.head(NODE))
    said = play.ask(NODE, request, play.weights)
    assert said.refusal is not None and said.refusal.code in (CODE, m.LOG_SIZE_UNKNOWN) and said.data == b""
    assert Ledger(play.home(NODE) / "ledger.db").head.size == 0


def test_a_deleted_audit_log_disagrees_with_the_ledger(play: Rehearsal) -> None:
    ledger = Ledger(play.home(NODE) / "ledger.db")
    a_round(play)
    for _ in range(9):  # more than a crash leaves without an anchor
        ledger.note("restored", "x", {"version": 1, "treaty": "", "document": {}})
    assert "the audit log was restored" in refused(play)


def test_a_line_that_a_crash_left_without_an_anchor_is_no_rollback(play: Rehearsal) -> None:
    a_round(play)
    ledger = Ledger(play.home(NODE) / "ledger.db")
    event = ledger.events()[0]
    wide = play.restart(NODE).guard.budget.cap(PURPOSE)
    ledger.reserve(event, purpose=PURPOSE, study="2" * 64, label="died", cap=wide, study_cap=wide)
    app = play.restart(NODE)
    assert play.ask(NODE, again(play)).refusal is None
    ref = app.guard.budget.reserve("3" * 64, play.case.study, event, "next")
    assert app.guard.budget.anchor == app.guard.ledger.head == app.guard.budget.verify()
    assert ref == 4


@pytest.mark.parametrize("ended", [False, True], ids=["after set-up", "after the receipts"])
def test_a_restored_directory_is_noticed_at_the_next_study(play: Rehearsal, old: Path, ended: bool) -> None:
    a_round(play)
    if ended:
        receipts(play)
    else:  # a silo came back: another batch was set up, and its heads stand in the log
        reply, _ = m.KeysReply.read(play.ask(NODE, again(play)).message)
        play.case.take_ledger(NODE, reply.ledger)
        anchor(play, {"batch": 1})
    copy_in(old, play.home(NODE))
    reason = refused(play)
    assert "2 lines" in reason or "the 2 of which" in reason
    # Once shown, it is known: the node refuses even if the server then shows nothing of it.
    assert [a for a, _ in play.journal(NODE)].count(MISSING) == 1
    with pytest.raises(Refused) as found:
        play.restart(NODE).guard.budget.verify()
    assert found.value.code == CODE


def test_a_server_can_not_hold_an_anchor_back(play: Rehearsal, old: Path, subtests: pytest.Subtests) -> None:
    a_round(play)
    receipts(play)
    copy_in(old, play.home(NODE))
    play.restart(NODE)
    request = again(play)
    history = request.log.history
    assert history is not None
    mine = [i for i, entry in enumerate(history.entries) if NODE in entry and '"ledger' in entry]
    assert len(mine) == 2
    fewer = [entry for i, entry in enumerate(history.entries) if i not in mine]
    forged = [
        entry.replace('"size":2', '"size":0') if i in mine else entry
        for i, entry in enumerate(history.entries)
    ]

    def told(**changes: Any) -> dict[str, Any]:
        kept = history.model_copy(update=changes) if changes else None
        return {"log": request.log.model_copy(update={"history": kept})}

    lies: dict[str, tuple[dict[str, Any], str]] = {
        "no anchor": ({"anchor": None}, CODE),
        "no history": ({"anchor": None, **told()}, "PROTOCOL"),
        "entries left out": ({"anchor": None, **told(entries=fewer)}, "VERIFICATION"),
        "a shorter log": ({"anchor": None, **told(entries=history.entries[:3])}, "VERIFICATION"),
        "other entries": ({"anchor": None, **told(entries=forged)}, "VERIFICATION"),
        "an anchor that is not logged": ({"anchor": request.started.model_copy(update={"index": 0})}, "VERIFICATION"),
        "another's edge": (told(edge=["A" * 43 + "="]), "VERIFICATION"),
    }  # fmt: skip
    for name, (changes, code) in lies.items():
        with subtests.test(name):
            said = play.ask(NODE, again(play, **changes))
            assert said.refusal is not None and said.refusal.code == code, said.refusal
            assert Ledger(play.home(NODE) / "ledger.db").head.size == 0


def test_a_restored_ledger_and_audit_log_beside_a_newer_log_head(play: Rehearsal, old: Path) -> None:
    """The history begins after the anchors then: the entry that the server shows besides tells it."""
    a_round(play)
    receipts(play)
    # It sees a later head of the log yet, in which its receipt stands.
    assert play.ask(NODE, m.ReceiptRequest(run="1", log=play.case.head(NODE))).refusal is None
    for name in ("ledger.db", "audit.db"):
        shutil.copyfile(old / name, play.home(NODE) / name)
    assert "do not continue" in refused(play)
    assert [a for a, _ in play.journal(NODE)].count(MISSING) == 1


def test_a_silo_whose_ledger_went_back_is_out_and_not_logged(play: Rehearsal) -> None:
    a_round(play)
    receipts(play)
    app = play.restart(NODE)
    now = app.guard.ledger.head
    for head in (Head(1, "0" * 64), Head(now.size, "0" * 64), Head(0, "0" * 64)):
        stated = ledger_heads.state(head, NODE, app.guard.log_size + 5, app.guard.identity)
        with pytest.raises(VerificationError, match="went back"):
            play.case.take_ledger(NODE, stated)
        forged = {**ledger_heads.state(now, NODE, 9, app.guard.identity), "size": 7}
        with pytest.raises(VerificationError):
            play.case.take_ledger(NODE, forged)
    with pytest.raises(VerificationError, match="states no head"):
        play.case.take_ledger(NODE, None)


# ── recovery ─────────────────────────────────────────────────────────────────────────────────────


def recover(play: Rehearsal, *, name: str = "delia", source: Path | None = None, **changes: Any) -> Head:
    key = changes.pop("key", None) or play.world.key(name)
    reason = changes.pop("reason", "the disk failed")
    return recovery.recover(Home.load(play.home(NODE)), name=name, key=key, reason=reason, source=source)


def test_an_export_of_the_anchored_ledger_brings_every_line_back(
    play: Rehearsal, old: Path, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    a_round(play)
    receipts(play)
    home, out = play.home(NODE), tmp_path / "export.jsonl"
    before = Ledger(home / "ledger.db")
    rows, paid = before.rows(), play.spent(NODE)
    assert recovery.export(before, out) == before.head
    shutil.copytree(home, tmp_path / "whole")
    path = home / "ledger.db"
    damages: dict[str, Callable[[], object]] = {
        "deleted": path.unlink,
        "an old copy": lambda: shutil.copyfile(old / "ledger.db", path),
        "no database": lambda: path.write_bytes(b"scribble" * 999),
        "a changed byte": lambda: path.write_bytes(path.read_bytes().replace(b'"commit"', b'"cOmmit"')),
        "the directory": lambda: (copy_in(old, home), refused(play)),
    }
    for name, damage in damages.items():
        with subtests.test(name):
            copy_in(tmp_path / "whole", home)
            damage()
            head = recover(play, source=out)
            after = Ledger(path, NODE)
            assert after.rows()[: len(rows)] == rows and head.size == len(rows) + 1 and head.write_offs == 0
            assert play.spent(NODE) == paid > 0
            line = list(after.lines())[-1]
            assert (line.kind, line.label) == ("restored", "the disk failed")
            action, details = play.journal(NODE)[-1]
            assert action == RECOVERED and details["document"]["payload"]["officer"] == "delia"
            play.restart(NODE)
            play.case.heads[NODE] = 0
            assert play.ask(NODE, again(play, batch=7)).refusal is None


def test_an_export_that_is_not_the_anchored_one_is_refused(
    play: Rehearsal, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    early, late = tmp_path / "early.jsonl", tmp_path / "late.jsonl"
    recovery.export(Ledger(play.home(NODE) / "ledger.db"), early)
    a_round(play)
    recovery.export(Ledger(play.home(NODE) / "ledger.db"), late)
    other = tmp_path / "other.jsonl"
    recovery.export(Ledger(play.home("dune-media") / "ledger.db"), other)
    whole = late.read_text().splitlines(keepends=True)
    cheaper = [whole[0], whole[1].replace("reserve", "abort"), *whole[2:]]
    (play.home(NODE) / "ledger.db").unlink()
    cases: dict[str, tuple[str, type[Exception]]] = {
        "an old one": (early.read_text(), Refused),
        "another's": (other.read_text(), InputError),
        "cut": ("".join(whole[:-1]), VerificationError),
        "altered": ("".join(cheaper), VerificationError),
        "no export": ("{}\n", InputError),
        "empty": ("", InputError),
        "nonsense": (whole[0] + '{"number": 1}\n', InputError),
    }
    for name, (text, error) in cases.items():
        with subtests.test(name):
            file = tmp_path / "given.jsonl"
            file.write_text(text)
            with pytest.raises(error):
                recover(play, source=file)
            assert Ledger(play.home(NODE) / "ledger.db").head.size == 0


def test_only_an_officer_of_this_party_recovers(play: Rehearsal, subtests: pytest.Subtests) -> None:
    a_round(play)
    (play.home(NODE) / "ledger.db").unlink()
    people = play.world.key
    cases: dict[str, tuple[dict[str, Any], type[Exception]]] = {
        "business": ({"name": "bruno"}, Refused),
        "another partner's": ({"name": "officer.dune-media"}, Refused),
        "the scientist": ({"name": "dana"}, Refused),
        "nobody": ({"name": "mallory", "key": SigningKey.generate()}, Refused),
        "not their key": ({"name": "delia", "key": people("bruno")}, VerificationError),
        "no reason": ({"name": "delia", "reason": " "}, InputError),
    }
    for name, (changes, error) in cases.items():
        with subtests.test(name), pytest.raises(error):
            recover(play, **changes)
    assert Ledger(play.home(NODE) / "ledger.db").head.size == 0
    assert recover(play, name=f"officer.{NODE}").write_offs == 1


def amend(play: Rehearsal, version: int, **changes: Any) -> None:
    """The partners sign an amended treaty, and the node has it."""
    payload = play.world.treaty.model_dump(mode="json") | {"version": version} | changes
    treaty = Treaty.model_validate(payload)
    keys = [(name, Home.load(path).identity()) for name, path in play.world.homes.items()]
    (play.home(NODE) / "treaty.json").write_bytes(sign_all(treaty, keys).dumps())


def test_after_a_write_off_nothing_is_left_until_the_treaty_is_amended(play: Rehearsal, old: Path) -> None:
    a_round(play)
    receipts(play)
    copy_in(old, play.home(NODE))
    refused(play)
    head = recover(play)
    assert head == Head(1, head.hash, 1)
    play.restart(NODE)
    said = play.ask(NODE, again(play))
    assert said.refusal is not None and said.refusal.code == "BUDGET_EXCEEDED"
    budget = play.restart(NODE).guard.budget
    assert budget.ledger.spent(PURPOSE, budget.cap(PURPOSE)) == math.inf
    event = play.case.study.round(1, play.world.treaty).event(2)
    with pytest.raises(BudgetExceeded, match="unknown"):
        budget.reserve("2" * 64, play.case.study, event, "x")
    # the same version with another text is no new budget; a higher one is
    for version, allowed in ((1, False), (2, True)):
        amend(play, version, name="amended")
        budget = play.restart(NODE).guard.budget
        spent = budget.ledger.spent(PURPOSE, budget.cap(PURPOSE))
        assert (spent == 0.0) == allowed
    assert budget.ledger.epsilon(1e-5, purpose=PURPOSE) == math.inf  # for life it stays unknown
    # a study from before may have spent what is lost; one from after has not
    with pytest.raises(BudgetExceeded, match="not made after"):
        budget.admit("2" * 64, play.case.study, [event])
    later = datetime.now(UTC) + timedelta(seconds=2)
    fresh = play.case.study.model_copy(update={"created": later.isoformat(timespec="seconds")})
    budget.admit("2" * 64, fresh, [event])
    ahead = play.case.study.model_copy(update={"created": "2199-01-01T00:00:00+00:00"})
    with pytest.raises(BudgetExceeded):
        budget.admit("2" * 64, ahead, [event])


def test_what_is_well_is_not_written_off(play: Rehearsal) -> None:
    a_round(play)
    with pytest.raises(InputError, match="nothing to write off"):
        recover(play)


# ── the commands ─────────────────────────────────────────────────────────────────────────────────


def run(*words: object) -> int:
    try:
        cli.main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_commands_from_show_to_recover(
    play: Rehearsal, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    a_round(play)
    home = play.home(NODE)
    assert run("ledger", "show", home, "--lines", "--picture", tmp_path / "a.svg") == 0
    shown = capsys.readouterr().out
    assert PURPOSE in shown and "for life" in shown and play.case.study_envelope.digest[:12] in shown
    assert f"{play.spent(NODE):.4f}" in shown and "40" in shown
    assert play.world.treaty.basis in " ".join(shown.split())
    svg = (tmp_path / "a.svg").read_text()
    assert "<svg" in svg and PURPOSE in svg and "cap for life: 40" in svg
    assert run("ledger", "show", home, "--picture", tmp_path / "a.txt") == 2
    assert run("ledger", "verify", home) == 0
    assert "2 lines, unbroken" in capsys.readouterr().out
    assert run("ledger", "export", home, "--out", tmp_path / "a.jsonl") == 0
    assert run("ledger", "export", home, "--out", tmp_path / "a.jsonl") == 2  # never overwritten
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])["size"] == 2
    capsys.readouterr()
    Ledger(home / "ledger.db").path.write_bytes(b"")
    assert run("ledger", "verify", home) == 4
    assert "do not continue" in capsys.readouterr().err
    key = play.world.root / "people" / "delia.key"
    who = ("--officer", "delia", "--key", key, "--reason", "disk failed")
    assert run("ledger", "recover", home, *who) == 2
    assert run("ledger", "recover", home, *who, "--write-off", "--from", tmp_path / "a.jsonl") == 2
    assert run("ledger", "recover", home, *who, "--from", tmp_path / "a.jsonl") == 0
    capsys.readouterr()
    assert run("ledger", "verify", home) == 0
    assert "by delia: disk failed" in capsys.readouterr().out
    (home / "ledger.db").unlink()
    assert run("ledger", "verify", home) == 2
    assert run("ledger", "recover", home, *who, "--write-off") == 0
    capsys.readouterr()
    assert run("ledger", "show", home) == 0
    assert "unknown" in capsys.readouterr().out
