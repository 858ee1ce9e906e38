"""A node that is shown a sum checks it, works out the model from it, and refuses anything else."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.nodes import Rehearsal, Said, assert_refused, floats

from foedus.federation import messages as m
from foedus.federation.secure_sum import Sum
from foedus.federation.tasks import train
from foedus.privacy.secagg import check

NODE = "aster-music"


@pytest.fixture
def opened(play: Rehearsal) -> tuple[Rehearsal, Sum]:
    """Round 1 is summed and opened; no node has been shown its sum."""
    play.set_up()
    return play, play.play_round(1, play.weights)


def model_after(play: Rehearsal, *sums: Sum) -> bytes:
    study = play.case.study
    state = train.State.start(study)
    for result in sums:
        state = train.advance(state, result.round, result.total, study, len(result.survivors))
    return state.sent.astype("<f8").tobytes()


def show(
    play: Rehearsal, result: Sum | None, number: int = 2, model: bytes | None = None, **said: Any
) -> Said:
    """Ask NODE for a round's vector, showing it a sum."""
    notice, data = (None, b"") if result is None else result.notice()
    if notice is not None:
        notice = notice.model_copy(update=said)
    request = play.vector_request(NODE, number, boxes=False, previous=notice)
    return play.ask(NODE, request, (play.weights if model is None else model) + data)


def test_the_true_sum_is_taken_and_the_next_round_entered(opened: tuple[Rehearsal, Sum]) -> None:
    play, first = opened
    assert show(play, first).refusal is None


def test_no_sum_no_next_vector(opened: tuple[Rehearsal, Sum]) -> None:
    play, first = opened
    before = play.spent(NODE)
    refusal = assert_refused(play, NODE, show(play, None), "PROTOCOL", before=before)
    assert "has not been shown" in refusal.message
    assert show(play, first).refusal is None


def test_a_sum_the_server_altered_is_refused_by_every_silo(opened: tuple[Rehearsal, Sum]) -> None:
    play, first = opened
    moved = first.total.copy()
    moved[3] += 1
    others = tuple(s for s in play.silos if s != NODE)
    for lie, said in (
        (replace(first, total=moved), {}),
        (replace(first, total=-first.total), {}),
        (replace(first, total=np.zeros_like(first.total)), {}),
        (first, {"check": str((first.check + 1) % check.P)}),
        (first, {"check": "0"}),
        (first, {"survivors": [*others]}),
        (first, {"survivors": [NODE, *others[:2]]}),
    ):
        before = play.spent(NODE)
        assert_refused(play, NODE, show(play, lie, **said), "SUM_ALTERED", before=before)
    notice, data = replace(first, total=moved).notice()
    for silo in play.silos:
        request = play.vector_request(silo, 2, boxes=False, previous=notice)
        assert_refused(
            play, silo, play.ask(silo, request, play.weights + data), "SUM_ALTERED", before=play.spent(silo)
        )


def test_a_packed_sum_of_another_length_is_refused(opened: tuple[Rehearsal, Sum]) -> None:
    play, first = opened
    notice, data = first.notice()
    for wrong in (data[:-1], data + b"\0", b""):
        request = play.vector_request(NODE, 2, boxes=False, previous=notice)
        said = play.ask(NODE, request, play.weights + wrong)
        assert_refused(play, NODE, said, "PROTOCOL", before=play.spent(NODE))


def test_a_model_that_the_sums_do_not_give_is_refused(opened: tuple[Rehearsal, Sum]) -> None:
    play, first = opened
    for wrong in (np.ones(12), np.frombuffer(play.weights, "<f8") + 1e-3):
        before = play.spent(NODE)
        assert_refused(play, NODE, show(play, first, model=floats(wrong)), "MODEL_ALTERED", before=before)
    notice, data = first.notice()
    second = play.play_round(2, play.weights + data, boxes=False, previous=notice)
    model = model_after(play, first, second)
    assert model != play.weights
    before = play.spent(NODE)
    assert_refused(play, NODE, show(play, second, 3), "MODEL_ALTERED", before=before)  # the old one
    assert show(play, second, 3, model=model).refusal is None


def test_checked_sums_stand_in_the_receipt_also_after_a_restart(opened: tuple[Rehearsal, Sum]) -> None:
    play, first = opened
    notice, data = first.notice()
    said = play.ask(NODE, m.ReceiptRequest(run="1", previous=notice, log=play.case.head(NODE)), data)
    told = m.ReceiptReply.read(said.message)[0].receipt["payload"]
    digest = hashlib.sha256(first.total.astype("<i8").tobytes()).hexdigest()
    assert told["sums"] == {"1": digest}
    app = play.restart(NODE)
    study = play.case.study_envelope.digest
    assert app.journal.steps(study, "1", "checked") == {1: digest}
