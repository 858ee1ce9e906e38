"""The watch at a node: what the node tells it, that the guard heeds a block, and `foedus watch` at a terminal."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.nodes import Rehearsal, assert_refused

from foedus import cli
from foedus.clients.guard import Permit
from foedus.clients.home import Home, Settings
from foedus.compliance.anomalies.book import Book
from foedus.compliance.anomalies.events import Reader
from foedus.compliance.anomalies.patrol import Patrol
from foedus.compliance.anomalies.policy import Policy
from foedus.compliance.auditlog.log import AuditLog

NODE = "aster-music"
Call = Callable[..., tuple[int, str, str]]


def audit(path: Path, name: str) -> AuditLog:
    return AuditLog(path / "audit.db", f"foedus node {name}")


def knock(log: AuditLog, who: str, times: int = 5) -> None:
    log.append_many([(who, "study.refused", "", {"code": "INPUT"})] * times)


def test_a_study_let_in_tells_author_price_and_question(play: Rehearsal) -> None:
    assert play.ask(NODE, play.keys_request(NODE)).refusal is None
    log = audit(play.home(NODE), NODE)
    (spend,) = (e for e in Reader(NODE, b"k").read(log.entries()) if e.kind == "spend")
    assert (spend.actor, spend.run, spend.study) == ("dana", "1", play.case.study_envelope.digest)
    assert spend.epsilon > 0 and spend.question is not None and spend.question.task == "train"
    assert spend.question.customers and len(spend.question.root) == 64


def test_the_root_is_the_same_only_for_the_same_cohort(play: Rehearsal) -> None:
    assert play.ask(NODE, play.keys_request(NODE)).refusal is None
    guard = play.grid._apps[100 + play.silos.index(NODE)].guard  # type: ignore[attr-defined]
    log = audit(play.home(NODE), NODE)
    (spend,) = (e for e in Reader(NODE, b"k").read(log.entries()) if e.kind == "spend")
    study, digest = play.case.study, play.case.study_envelope.digest
    first, again, other = (Permit(study, d, "2", ()) for d in (digest, "5" * 64, "6" * 64))
    assert spend.question is not None
    assert guard.describe(first, 1)["root"] == guard.describe(again, 1)["root"] == spend.question.root
    guard.consent.withdraw(guard.cohort(first).frame["subject"][0], study.purpose)
    assert guard.describe(other, 1)["root"] != spend.question.root


def test_a_blocked_author_is_refused_until_released(play: Rehearsal) -> None:
    home, log = play.home(NODE), audit(play.home(NODE), NODE)
    knock(log, "dana")
    book = Book(home / "watch.db")
    book.turn(Policy(blocks=frozenset({"refusals"})), NODE, log.entries)
    refusal = assert_refused(play, NODE, play.ask(NODE, play.keys_request(NODE)), "ACTOR_BLOCKED")
    assert "dana" not in refusal.message  # who is watched is not the server's business
    book.release("dana", "dora", "spoke with her", record=lambda: None)
    play.case.seen(NODE, refusal.log_size)
    assert play.ask(NODE, play.keys_request(NODE)).refusal is None


def test_a_node_on_duty_watches_for_itself(play: Rehearsal) -> None:
    home, log = play.home(NODE), audit(play.home(NODE), NODE)
    (home / "watch.yaml").write_text("blocks: [refusals]\nevery_seconds: 1\n")
    guard = play.grid._apps[100 + play.silos.index(NODE)].guard  # type: ignore[attr-defined]
    guard.patrol = patrol = Patrol(home, NODE, guard.audit, guard.caps)
    patrol.start()
    try:
        knock(log, "dana")
        deadline = time.monotonic() + 20
        while "anomaly.alert" not in (actions := [e.record["action"] for e in log.entries()]):
            assert time.monotonic() < deadline, actions
            time.sleep(0.05)
        assert_refused(play, NODE, play.ask(NODE, play.keys_request(NODE)), "ACTOR_BLOCKED")
    finally:
        patrol.stop()
    assert not any(thread.name == "watch" for thread in threading.enumerate())


@pytest.mark.parametrize("blocks", [True, False])
def test_a_watch_that_fails_is_no_way_around_it(play: Rehearsal, blocks: bool) -> None:
    home, log = play.home(NODE), audit(play.home(NODE), NODE)
    (home / "watch.yaml").write_text("blocks: [bulk]\n" if blocks else "")
    guard = play.grid._apps[100 + play.silos.index(NODE)].guard  # type: ignore[attr-defined]
    guard.patrol = patrol = Patrol(home, NODE, guard.audit, guard.caps)
    patrol.turn()
    book, kept = home / "watch.db", (home / "watch.db").read_bytes()
    book.write_bytes(b"\0" * 4096)
    patrol.turn()
    patrol.turn()
    book.write_bytes(kept)  # the guard itself reads blocks from it
    failed = [e.record["details"] for e in log.entries() if e.record["action"] == "watch.failed"]
    assert len(failed) == 1 and "watch.db" in failed[0]["reason"]
    answer = play.ask(NODE, play.keys_request(NODE))
    if blocks:
        refusal = assert_refused(play, NODE, answer, "WATCH_FAILED")
        assert "watch.db" not in refusal.message
        play.case.seen(NODE, refusal.log_size)
        patrol.turn()
        answer = play.ask(NODE, play.keys_request(NODE))
    assert answer.refusal is None


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setenv("COLUMNS", "200")

    def foedus(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code: object = 0
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return int(str(code)), out, err

    return foedus


def test_watch_at_a_terminal(tmp_path: Path, call: Call) -> None:
    node = Home.create(
        tmp_path / "node", Settings.checked(party="shop-a", server="127.0.0.1:1", table="orders.parquet")
    ).path
    assert call("watch", "run", node) == (0, "nothing to look at\n", "")
    log = audit(node, "shop-a")
    knock(log, "eve")
    (node / "watch.yaml").write_text("blocks: [refusals]\n")
    code, out, err = call("watch", "run", node)
    assert code == 4 and "eve" in out and "blocked" in out and "1 alerts that nobody has acknowledged" in err
    code, out, _ = call("watch", "run", node, "--json")
    (alert,) = json.loads(out)
    assert code == 4 and alert["rule"] == "refusals" and alert["evidence"] == [0, 1, 2, 3, 4]
    decided = ("--officer", "dora", "--reason", "seen")
    assert call("watch", "acknowledge", node, "f" * 16, *decided)[0] == 2
    assert call("watch", "acknowledge", node, alert["id"], *decided)[0] == 0
    assert call("watch", "run", node)[0] == 0
    assert call("watch", "release", node, "mallory", *decided)[0] == 2
    assert call("watch", "release", node, "eve", *decided)[0] == 0
    actions = [e.record["action"] for e in log.entries()][5:]
    assert actions == ["anomaly.alert", "anomaly.acknowledged", "anomaly.released"]
    # The log alone, by a book of its own: the same alert
    code, out, _ = call("watch", "run", node / "audit.db", "--book", tmp_path / "other.db", "--json")
    assert code == 4 and [a["id"] for a in json.loads(out)] == [alert["id"]]
    assert call("watch", "run", tmp_path / "none.db")[0] == 2
    assert call("watch", "run", node / "node.yaml")[0] == 2
