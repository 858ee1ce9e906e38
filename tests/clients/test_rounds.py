"""After set-up: what a node refuses in the rounds, and that a withdrawn consent counts at once."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.nodes import SILENT, Rehearsal, Said, assert_refused, floats
from support.orders import PURPOSE, copy_of, make_draft, no_noise

from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.consent import ConsentRegister
from foedus.demo.simulate import prepare
from foedus.demo.world import World
from foedus.documents import b64
from foedus.federation import ledger_heads
from foedus.federation import messages as m
from foedus.federation.rounds import COUNT_SHARE
from foedus.federation.verification import verify
from foedus.privacy.ledger import Ledger
from foedus.server.coordinator import conduct

NODE = "aster-music"
TRAIN = 2  # the first training round; round 1 is of curvature


@pytest.fixture
def ready(play: Rehearsal) -> Rehearsal:
    """Set up with all four nodes; no vector has been asked for."""
    play.set_up()
    return play


def upload(play: Rehearsal, silo: str = NODE, number: int = TRAIN, **changes: Any) -> float:
    """A good vector request; what the ledger counts after it."""
    said = play.ask(silo, play.vector_request(silo, number, **changes), play.weights)
    assert said.refusal is None and said.action == "vector-reply"
    plan = play.case.study.round(number, play.world.treaty)
    assert len(said.data) == plan.ring.wire_bytes(plan.dimension)
    return play.spent(silo)


# ── without set-up ───────────────────────────────────────────────────────────────────────────────


def test_nothing_is_done_without_a_set_up(play: Rehearsal) -> None:
    head = play.case.head(NODE)
    requests: list[tuple[m.Content, bytes]] = [
        (m.SharesRequest(run="1", batch=0, keys=[]), b""),
        (m.VectorRequest(run="1", batch=0, round=1, log=head), play.weights),
        (play.answer_request(), b""),
        (m.ReceiptRequest(run="1", log=head), b""),
    ]
    for content, data in requests:
        refusal = assert_refused(play, NODE, play.ask(NODE, content, data), "NO_SET_UP")
        assert "run 1" in refusal.message
    assert play.ask(NODE, play.keys_request(NODE)).refusal is None
    for batch, run in ((1, "1"), (0, "2")):
        said = play.ask(NODE, m.VectorRequest(run=run, batch=batch, round=1, log=head), play.weights)
        assert_refused(play, NODE, said, "NO_SET_UP")


def test_a_vector_before_the_shares_is_refused(play: Rehearsal) -> None:
    assert play.ask(NODE, play.keys_request(NODE)).refusal is None
    play.case.seen(NODE, play.case.log.size)
    said = play.ask(NODE, play.vector_request(NODE, boxes=False), play.weights)
    assert_refused(play, NODE, said, "PROTOCOL")
    assert [line.kind for line in Ledger(play.home(NODE) / "ledger.db").lines()] == ["reserve", "abort"]


def test_a_vector_before_the_boxes_is_refused(ready: Rehearsal) -> None:
    said = ready.ask(NODE, ready.vector_request(NODE, boxes=False), ready.weights)
    assert_refused(ready, NODE, said, "PROTOCOL")


def test_boxes_that_do_not_open_are_refused(ready: Rehearsal) -> None:
    request = ready.vector_request(NODE)
    assert request.boxes is not None
    names = sorted(request.boxes)
    swapped = {**request.boxes, names[0]: request.boxes[names[1]], names[1]: request.boxes[names[0]]}
    for boxes in (swapped, {names[0]: "AAAA"}, {}, {**request.boxes, names[0]: "not base64"}):
        said = ready.ask(NODE, request.model_copy(update={"boxes": boxes}), ready.weights)
        assert_refused(ready, NODE, said, "PROTOCOL")
    upload(ready)


def test_a_second_set_up_of_a_batch_is_refused(ready: Rehearsal) -> None:
    refusal = assert_refused(ready, NODE, ready.ask(NODE, ready.keys_request(NODE)), "ALREADY_DONE")
    assert "once only" in refusal.message
    assert_refused(ready, NODE, ready.ask(NODE, ready.shares_request()), "PROTOCOL")
    upload(ready)  # the first set-up still stands


def test_after_a_restart_the_node_asks_for_a_new_set_up(ready: Rehearsal) -> None:
    before = upload(ready)
    ready.restart(NODE)
    said = ready.ask(NODE, ready.answer_request(TRAIN))
    assert_refused(ready, NODE, said, "NO_SET_UP", before=before)
    assert_refused(ready, NODE, ready.ask(NODE, ready.keys_request(NODE)), "ALREADY_DONE", before=before)
    assert ready.ask(NODE, ready.keys_request(NODE, batch=1)).refusal is None


# ── the model ────────────────────────────────────────────────────────────────────────────────────


def test_a_model_that_is_not_finite_is_refused(ready: Rehearsal) -> None:
    for place, bad in enumerate((np.nan, np.inf, -np.inf)):
        weights = np.zeros(ready.case.study.parameters)
        weights[3] = bad
        said = ready.ask(NODE, ready.vector_request(NODE, TRAIN, boxes=place == 0), floats(weights))
        assert assert_refused(ready, NODE, said, "INPUT").message == SILENT
    upload(ready, boxes=False)  # the boxes were taken before; the budget was given back


def test_a_model_that_overflows_is_refused(ready: Rehearsal) -> None:
    weights = np.full(ready.case.study.parameters, 1.7e308)
    weights[::2] *= -1
    said = ready.ask(NODE, ready.vector_request(NODE, TRAIN), floats(weights))
    if said.refusal is not None:  # if no sum came out as NaN, clipping has bounded whatever did
        assert assert_refused(ready, NODE, said, "INPUT").message == SILENT
    else:
        assert said.action == "vector-reply"


def test_a_model_of_another_size_or_a_round_of_another_study_is_refused(ready: Rehearsal) -> None:
    for data in (b"", floats(np.zeros(11)), floats(np.zeros(13)), floats(np.zeros(1000)), ready.weights[:-1]):
        said = ready.ask(NODE, ready.vector_request(NODE, TRAIN), data)
        assert "wrong size" in assert_refused(ready, NODE, said, "PROTOCOL").message
    for number in (0, 5, 99):
        said = ready.ask(NODE, ready.vector_request(NODE, number), ready.weights)
        assert_refused(ready, NODE, said, "UNKNOWN_ROUND")


# ── once ─────────────────────────────────────────────────────────────────────────────────────────


def test_one_round_is_uploaded_once_and_paid_once(ready: Rehearsal) -> None:
    first = ready.ask(NODE, ready.vector_request(NODE, TRAIN), ready.weights)
    before, lines = ready.spent(NODE), Ledger(ready.home(NODE) / "ledger.db").head
    for boxes in (
        True,
        False,
        True,
    ):  # a coordinator that was killed asks again: the same ciphertext, or nothing
        again = ready.ask(NODE, ready.vector_request(NODE, TRAIN, boxes=boxes), ready.weights)
        assert again.data == first.data
        assert header_of(again) == header_of(first)
    other = ready.weights[:-8] + floats([1.0])
    for _ in range(3):
        said = ready.ask(NODE, ready.vector_request(NODE, TRAIN, boxes=False), other)
        assert_refused(ready, NODE, said, "ALREADY_DONE", before=before)
    assert Ledger(ready.home(NODE) / "ledger.db").head == lines
    upload(ready, number=TRAIN + 1, boxes=False)
    said = ready.ask(NODE, ready.vector_request(NODE, TRAIN, boxes=False), ready.weights)
    assert said.refusal is not None and said.refusal.code == "ALREADY_DONE"  # only the last round is kept


def header_of(said: Said) -> dict[str, Any]:
    return m.VectorReply.read(said.message)[0].header


def test_the_same_vector_is_not_given_again_to_a_forked_log(ready: Rehearsal, tmp_path: Path) -> None:
    upload(ready)
    fork = AuditLog(tmp_path / "fork.db", ready.case.origin)
    size = ready.case.log.size
    for i in range(size + 3):
        fork.append("coordinator", "x", "y", {"i": i})
    proof = [b64(h) for h in fork.consistency_proof(size)]
    head = m.LogHead(note=fork.checkpoint(ready.case.origin, ready.case.key), since=size, proof=proof)
    said = ready.ask(NODE, ready.vector_request(NODE, TRAIN, boxes=False, log=head), ready.weights)
    assert said.refusal is not None and said.data == b""


def test_one_round_is_answered_once(ready: Rehearsal) -> None:
    for silo in ready.silos:
        upload(ready, silo)
    first = ready.ask(NODE, ready.answer_request(TRAIN))
    assert first.refusal is None
    paid, lines = ready.spent(NODE), Ledger(ready.home(NODE) / "ledger.db").head
    again = ready.ask(NODE, ready.answer_request(TRAIN, ready.silos[::-1]))
    assert m.AnswerReply.read(again.message) == m.AnswerReply.read(first.message)
    fewer = ready.answer_request(TRAIN).model_copy(update={"answering": ready.silos[:3]})
    assert ready.ask(NODE, fewer).refusal is None  # should one fall silent, the others are asked once more
    said = ready.ask(NODE, ready.answer_request(TRAIN, ready.silos[:3]))
    assert_refused(ready, NODE, said, "ALREADY_DONE", before=paid)
    said = ready.ask(NODE, ready.vector_request(NODE, TRAIN, boxes=False), floats(np.ones(12)))
    assert_refused(ready, NODE, said, "ALREADY_DONE", before=paid)
    assert Ledger(ready.home(NODE) / "ledger.db").head == lines


def test_sets_of_survivors_that_would_show_too_much_are_refused(ready: Rehearsal) -> None:
    before = upload(ready)
    a, b, c, d = ready.silos
    for survivors, code in (
        ([a, b], "TOO_FEW_SILOS"),
        ([a, a, a], "TOO_FEW_SILOS"),
        ([b, c, d], "PROTOCOL"),
        ([a, b, c, c], "PROTOCOL"),
        ([a, b, "mallory"], "PROTOCOL"),
    ):
        said = ready.ask(NODE, ready.answer_request(TRAIN, survivors))
        assert_refused(ready, NODE, said, code, before=before)
    for number in (1, 99):  # rounds it sent nothing for
        assert_refused(ready, NODE, ready.ask(NODE, ready.answer_request(number)), "PROTOCOL", before=before)
    assert ready.ask(NODE, ready.answer_request(TRAIN, [a, b, c])).refusal is None


def test_the_same_round_in_another_batch_is_refused(ready: Rehearsal) -> None:
    before = upload(ready)
    assert ready.ask(NODE, ready.keys_request(NODE, batch=1)).refusal is None
    said = ready.ask(NODE, ready.vector_request(NODE, TRAIN, boxes=False, batch=1), ready.weights)
    assert_refused(ready, NODE, said, "ALREADY_DONE", before=before)
    said = ready.ask(NODE, ready.answer_request(TRAIN).model_copy(update={"batch": 1}))
    assert_refused(ready, NODE, said, "PROTOCOL", before=before)


def test_an_answer_settles_the_round_at_what_it_cost(ready: Rehearsal) -> None:
    study, treaty = ready.case.study, ready.world.treaty
    worst = upload(ready)
    assert ready.ask(NODE, ready.answer_request(TRAIN)).refusal is None
    plan = study.round(TRAIN, treaty)
    assert Ledger(ready.home(NODE) / "ledger.db").events() == [plan.event(3)]  # four silos less a colluder
    assert ready.spent(NODE) < worst


# ── the log, in a round ──────────────────────────────────────────────────────────────────────────


def test_a_forked_log_in_a_round_is_refused(ready: Rehearsal, tmp_path: Path) -> None:
    fork = AuditLog(tmp_path / "fork.db", ready.case.origin)
    size = ready.case.log.size
    for i in range(size + 3):
        fork.append("coordinator", "x", "y", {"i": i})
    head = m.LogHead(
        note=fork.checkpoint(ready.case.origin, ready.case.key),
        since=size,
        proof=[b64(h) for h in fork.consistency_proof(size)],
    )
    said = ready.ask(NODE, ready.vector_request(NODE, TRAIN, log=head), ready.weights)
    assert "fork" in assert_refused(ready, NODE, said, "VERIFICATION").message


def test_approvals_that_expire_during_a_run_stop_it(
    ready: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = upload(ready)

    class InAMonth(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(days=31)

    monkeypatch.setattr("foedus.compliance.approvals.datetime", InAMonth)
    said = ready.ask(NODE, ready.vector_request(NODE, TRAIN + 1, boxes=False), ready.weights)
    assert_refused(ready, NODE, said, "APPROVAL_MISSING", before=before)


# ── consent, in force at once ────────────────────────────────────────────────────────────────────


def test_who_withdraws_between_two_rounds_is_out_of_the_next(guarded_world: World, tmp_path: Path) -> None:
    world = copy_of(guarded_world, tmp_path / "world")
    registers = {name: ConsentRegister(home / "consent.db") for name, home in world.homes.items()}
    left: list[str] = []

    def note(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "round" and data["round"] == TRAIN:
            for name, register in registers.items():
                trainer = grid._apps[100 + list(world.homes).index(name)]._runs["1", 0].trainer  # type: ignore[attr-defined]
                customer = str(trainer._cached["train"][1].customers[0])
                register.withdraw(customer, PURPOSE)
                left.append(customer)

    grid, case = prepare(world, make_draft(), note=note, sampler=no_noise)
    verify(conduct(grid, case))
    one = case.study.clip * COUNT_SHARE * 2**case.study.privacy.scale_bits_train
    before, after = (case.sums[n - 1].total[-1] / one for n in (TRAIN, TRAIN + 1))
    assert len(left) == 4
    assert before - after == pytest.approx(4, abs=0.1)
    for name in world.homes:
        trainer = grid._apps[100 + list(world.homes).index(name)]._runs["1", 0].trainer  # type: ignore[attr-defined]
        assert not set(trainer._cached["train"][1].customers) & set(left)


def test_a_cohort_that_shrinks_below_the_minimum_is_out_of_the_next_round(ready: Rehearsal) -> None:
    before = upload(ready, number=1)
    register = ConsentRegister(ready.home(NODE) / "consent.db")
    for subject in register.in_force(PURPOSE, datetime.now(UTC))["subject"][30:]:
        register.withdraw(subject, PURPOSE)
    said = ready.ask(NODE, ready.vector_request(NODE, TRAIN, boxes=False), ready.weights)
    assert assert_refused(ready, NODE, said, "COHORT_TOO_SMALL", before=before).message == SILENT


def test_a_receipt_states_what_the_ledger_says(ready: Rehearsal) -> None:
    for silo in ready.silos:
        upload(ready, silo)
    assert ready.ask(NODE, ready.answer_request(TRAIN)).refusal is None
    said = ready.ask(NODE, m.ReceiptRequest(run="1", log=ready.case.head(NODE)))
    told = m.ReceiptReply.read(said.message)[0].receipt["payload"]
    assert told["epsilon"] == ready.spent(NODE)
    assert [r["round"] for r in told["rounds"]] == [TRAIN]
    head = Ledger(ready.home(NODE) / "ledger.db").head
    stated = ledger_heads.read(told["ledger"], NODE, ready.world.treaty.party(NODE).signing_key)
    assert stated.head == head and head.size == 2
