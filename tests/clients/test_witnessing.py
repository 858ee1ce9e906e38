"""The node as a witness: nothing leaves without a quorum on one log, and a contradiction stops it until an officer looked."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest
from support.nodes import Rehearsal, assert_refused
from support.split import TIME, TwoFaced, other_history

from foedus import cli
from foedus.clients.home import Home
from foedus.compliance.auditlog.checkpoint import Checkpoint, open_checkpoint
from foedus.compliance.auditlog.cosignature import cosign, cosigners, with_lines
from foedus.compliance.consent.proofs import ACTION
from foedus.documents import Envelope, SigningKey, b64
from foedus.errors import Refused
from foedus.federation import messages as m

NODE = "aster-music"


def lines(play: Rehearsal, head: Checkpoint, *names: str) -> str:
    keys = {name: Home.load(play.world.homes[name]).identity() for name in names}
    return with_lines(
        head.sign(play.case.origin, play.case.key),
        {name: cosign(head, name, key, TIME) for name, key in keys.items()},
    )


def head_of(play: Rehearsal) -> Checkpoint:
    log = play.case.log
    return Checkpoint(play.case.origin, log.size, log.root())


# ── what it gives only to a quorum ───────────────────────────────────────────────────────────────


def test_replies_bear_the_cosignature_of_the_head_that_is_on_disk(play: Rehearsal) -> None:
    reply, _ = m.KeysReply.read(play.ask(NODE, play.keys_request(NODE)).message)
    kept = (play.home(NODE) / "log-head").read_text()
    head = open_checkpoint(kept, play.case.origin, play.case.key.public)
    assert head == head_of(play) and reply.log_size == head.size
    assert set(cosigners(with_lines(kept, {NODE: reply.cosignature}), play.world.treaty.witnesses)) == {NODE}
    assert reply.cosignature.startswith(f"— {NODE} ")


def test_no_share_no_vector_and_no_answer_without_a_quorum(play: Rehearsal) -> None:
    for silo in play.silos:
        reply, _ = m.KeysReply.read(play.ask(silo, play.keys_request(silo)).message)
        play.case.seen(silo, reply.log_size)
        play.aggregator.add_advertisement(silo, Envelope.from_json(reply.keys))
    first = head_of(play)
    short = lines(play, first, NODE, play.silos[1])
    shares = play.shares_request()
    for note in (None, first.sign(play.case.origin, play.case.key), short):
        said = play.ask(NODE, shares.model_copy(update={"cosigned": note}))
        refusal = assert_refused(play, NODE, said, "NO_QUORUM")
        assert refusal.log_size == first.size  # and with the no its own word on that head
        assert set(cosigners(with_lines(short, {"x": refusal.cosignature}), play.world.treaty.witnesses)) == {
            NODE,
            play.silos[1],
        }
    for silo in play.silos:
        answer, _ = m.SharesReply.read(play.ask(silo, play.shares_request()).message)
        play.aggregator.add_boxes(silo, m.boxes_from_json(answer.boxes))
    # The head before, or the one that comes with the message; an older one is none of them.
    for _ in range(2):
        play.case.log.append("coordinator", "note", "x", {})
        said = play.ask(NODE, play.vector_request(NODE, cosigned=None), play.weights)
        refusal = assert_refused(play, NODE, said, "NO_QUORUM")
        play.case.seen(NODE, refusal.log_size)
    said = play.ask(NODE, play.vector_request(NODE, cosigned=lines(play, first, *play.silos)), play.weights)
    assert_refused(play, NODE, said, "NO_QUORUM")
    before = head_of(play)
    play.case.log.append("coordinator", "note", "x", {})
    request = play.vector_request(NODE, cosigned=lines(play, before, *play.silos[:3]))
    assert play.ask(NODE, request, play.weights).refusal is None
    # Its sum is opened only over a log that the quorum has seen up to the head that came with the vector.
    said = play.ask(NODE, play.answer_request().model_copy(update={"cosigned": request.cosigned}))
    assert said.refusal is not None and said.refusal.code == "NO_QUORUM"
    assert play.ask(NODE, play.answer_request()).refusal is None


def test_a_forged_or_foreign_cosignature_is_none(play: Rehearsal) -> None:
    play.ask(NODE, play.keys_request(NODE))
    head, witnesses = head_of(play), play.silos[:3]
    good = lines(play, head, *witnesses)
    stranger = with_lines(
        lines(play, head, *witnesses[:2]), {"mallory": cosign(head, "mallory", SigningKey.generate(), TIME)}
    )
    twice = lines(play, head, *witnesses[:2]) + cosign(
        head, NODE, Home.load(play.home(NODE)).identity(), TIME + 1
    )
    for note, code in (
        (stranger, "NO_QUORUM"),
        (twice, "NO_QUORUM"),
        (good.replace(f"\n{head.size}\n", f"\n{head.size + 1}\n"), "VERIFICATION"),
        (head.sign(play.case.origin, SigningKey.generate()) + good.split("\n", 5)[5], "VERIFICATION"),
        (good[:-8] + "\n", "VERIFICATION"),
        ("nonsense", "VERIFICATION"),
    ):
        said = play.ask(NODE, play.shares_request().model_copy(update={"cosigned": note}))
        assert_refused(play, NODE, said, code)


# ── a contradiction ──────────────────────────────────────────────────────────────────────────────


def test_another_head_of_the_same_size_under_others_cosignatures_is_kept_as_evidence(play: Rehearsal) -> None:
    play.ask(NODE, play.keys_request(NODE))
    play.case.seen(NODE, play.case.log.size)
    other = other_history(play)
    head = Checkpoint(play.case.origin, other.size, other.root())
    note = lines(play, head, *play.silos[1:])
    said = play.ask(NODE, play.shares_request().model_copy(update={"cosigned": note}))
    assert "split view" in assert_refused(play, NODE, said, "VERIFICATION").message
    (file,) = play.home(NODE).glob("log-head.refused-*.json")
    kept = json.loads(file.read_bytes())
    both = [
        open_checkpoint(kept[which], play.case.origin, play.case.key.public) for which in ("kept", "refused")
    ]
    assert both == [head_of(play), head]
    # From now on it takes part in nothing, however good: not after a restart either.
    for restarted in (False, True):
        if restarted:
            play.restart(NODE)
        for request in (play.keys_request(NODE, batch=1), m.WitnessRequest(log=play.case.head(NODE))):
            assert_refused(play, NODE, play.ask(NODE, request), "LOG_CONTRADICTED")


def test_an_officer_settles_it_and_the_node_goes_on(
    play: Rehearsal, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(play.home(NODE))
    play.ask(NODE, play.keys_request(NODE))
    play.case.seen(NODE, play.case.log.size)
    other = other_history(play)
    forged = m.LogHead(note=other.checkpoint(play.case.origin, play.case.key), since=other.size, proof=[])
    assert_refused(play, NODE, play.ask(NODE, m.WitnessRequest(log=forged)), "VERIFICATION")
    for arguments, code, said in (
        (["node", "witness", home], 4, "contradicts itself"),
        (["node", "witness", home, "--settle", " "], 2, "needs a reason"),
        (["node", "witness", home, "--settle", "we compared heads"], 0, "settled: "),
        (["node", "witness", home, "--settle", "again"], 2, "no contradiction"),
        (["node", "witness", home], 0, f"kept      {other.size} entries"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        out = capsys.readouterr()
        assert (int(str(end.value.code or 0)), said in out.out + out.err) == (code, True), (arguments, out)
    (settled,) = play.home(NODE).glob("log-head.settled-*.json")
    action, details = play.journal(NODE)[-1]
    assert (action, details["reason"], list(details["files"])) == (
        "log.settled",
        "we compared heads",
        [settled.name.replace("settled", "refused")],
    )
    assert play.ask(NODE, m.WitnessRequest(log=play.case.head(NODE))).refusal is None
    # The head kept is what it was: the same lie is refused again.
    assert_refused(play, NODE, play.ask(NODE, m.WitnessRequest(log=forged)), "VERIFICATION")


# ── two histories at once ────────────────────────────────────────────────────────────────────────


def test_two_halves_that_see_two_logs_give_nothing(play: Rehearsal) -> None:
    server = TwoFaced(play, play.silos[:2])
    server.attack()
    assert server.refused == dict.fromkeys(play.silos, "NO_QUORUM") and server.vectors == []
    for silo in play.silos:
        assert play.spent(silo) == 0.0
        assert not [
            a for a, _ in play.journal(silo) if a == ACTION
        ]  # no cohort was even looked at for a round


@pytest.mark.parametrize("alone", [0, 1])
def test_with_a_colluder_one_history_at_most_gets_vectors(play: Rehearsal, alone: int) -> None:
    """c = 1: the colluder cosigns both; the honest ones of one side are too few with it."""
    server = TwoFaced(play, [play.silos[alone]], colluders=[play.silos[3]])
    server.attack()
    assert server.refused == {play.silos[alone]: "NO_QUORUM"}
    assert sorted(server.vectors) == [s for s in play.silos if s != play.silos[alone]]
    assert play.spent(play.silos[alone]) == 0.0


# ── kill -9 ──────────────────────────────────────────────────────────────────────────────────────

WITNESS = """
import sys
from pathlib import Path
from foedus.clients.witnessing import Witness
from foedus.compliance import treaty
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.auditlog.witness import HeadKeeper
from foedus.documents import SigningKey
node, server = Path(sys.argv[1]), Path(sys.argv[2])
agreed = treaty.load(node / "treaty.json")[1]
key = SigningKey.load(server / "server.key")
log = AuditLog(server / "audit.db", agreed.coordinator.origin)
heads = HeadKeeper(node / "log-head", log.origin, key.public)
witness = Witness(agreed, sys.argv[3], SigningKey.load(node / "identity.key"), node / "log-head.cosigned")
print("ready", flush=True)
while True:
    log.append("a", "b", "c", {})
    kept = heads.head
    heads.advance(log.checkpoint(log.origin, key), log.consistency_proof(kept.size if kept else 0))
    print(*witness.cosign(heads), end="", flush=True)
"""


def test_a_killed_node_has_what_it_cosigned_and_cosigns_no_other_history(play: Rehearsal) -> None:
    world, said = play.world, {}
    for kill in range(4):
        command = [sys.executable, "-c", WITNESS, str(play.home(NODE)), str(world.server), NODE]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.05 * kill)
        process.send_signal(signal.SIGKILL)
        said |= {
            int(size): line
            for size, line in re.findall(r"^(\d+) (— \S+ \S+\n)", process.stdout.read(), re.MULTILINE)
        }
        process.stdout.close()
        process.wait()
        app = play.restart(NODE)
        assert app.guard.log_size >= max(said, default=0)
    assert len(said) > 4
    for size, line in said.items():
        note = Checkpoint(play.case.origin, size, play.case.log.root(size)).sign(
            play.case.origin, play.case.key
        )
        assert NODE in cosigners(with_lines(note, {NODE: line}), world.treaty.witnesses)
    kept = app.guard.log_size
    other = other_history(play)
    other.append_many([("a", "b", "c", {}) for _ in range(3)])
    proof = [b64(h) for h in other.consistency_proof(kept)]
    lie = m.LogHead(note=other.checkpoint(play.case.origin, play.case.key), since=kept, proof=proof)
    assert_refused(play, NODE, play.ask(NODE, m.WitnessRequest(log=lie)), "VERIFICATION")
    with pytest.raises(Refused, match="contradict"):
        play.restart(NODE).guard.cosign()
