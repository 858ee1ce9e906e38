"""Check 12: a malicious server against whole nodes, which alters the sums and models it gives out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import Context, Message
from redteam.checks import Check, Outcome, tally
from redteam.crypt import ALL, TARGET, Stage, alter, code_of, unbound, unchecked
from redteam.node_support import TRAIN, VICTIM, other_weights, play, word, world
from redteam.spy import D, Reading
from support.nodes import Rehearsal
from support.orders import make_draft
from support.sums import BOUND, RING, vectors

from foedus.demo.simulate import prepare
from foedus.errors import FoedusError
from foedus.federation import messages as m
from foedus.federation.tasks import train
from foedus.federation.verification import verify
from foedus.privacy.secagg.check import P
from foedus.privacy.secagg.codec import Whole
from foedus.server.coordinator import conduct

# ── 12: a corrupted sum, or another model for one silo ───────────────────────────────────────────


def _shown_lies(rehearsal: Rehearsal, silos: int = 4) -> dict[str, str]:
    """Round 1 is opened, and every node is shown another sum of it, in many ways, or none; what it says."""
    rehearsal.set_up()
    opened = rehearsal.play_round(1, rehearsal.weights)
    total, everybody = opened.total, opened.survivors
    one = np.zeros_like(total)
    one[-1] = 1
    lies = {
        "a number by one": replace(opened, total=total + one),
        "a vector added": replace(opened, total=total + 12_345),
        "one number taken for another": replace(opened, total=np.roll(total, 1)),
        "nothing": replace(opened, total=0 * total),
        "its negative, check value and all": replace(opened, total=-total, check=P - opened.check),
        "twice, check value and all": replace(opened, total=2 * total, check=2 * opened.check % P),
        "a check value by one": replace(opened, check=(opened.check + 1) % P),
        "a check value that adds what was added": replace(
            opened, total=total + one, check=(opened.check + 1) % P
        ),
        "as a sum over three": replace(opened, survivors=everybody[:-1]),
        "as a sum over three, one twice": replace(opened, survivors=(*everybody[:-1], everybody[0])),
    }
    seen = {}
    for silo in rehearsal.silos[:silos]:
        for what, lie in lies.items():
            notice, shown = lie.notice()
            request = rehearsal.vector_request(silo, TRAIN, boxes=False, previous=notice)
            seen[f"{silo}: {what}"] = word(rehearsal.ask(silo, request, rehearsal.weights + shown))
        true, shown = opened.notice()
        for what, notice in {
            "not shown": None,
            "shown as of another batch": true.model_copy(update={"batch": 1}),
            "shown as of another round": true.model_copy(update={"round": 4}),
        }.items():
            hidden = rehearsal.vector_request(silo, TRAIN, boxes=False, previous=notice)
            data = rehearsal.weights + (shown if notice else b"")
            seen[f"{silo}: {what}"] = word(rehearsal.ask(silo, hidden, data))
    return seen


def _corrupt_run(number: int, *, shown: bool = True) -> tuple[str, dict[str, str]]:
    """A study whose server adds 12,345 to every number of a round's sum; why it ends, and which node says what.

    Args:
        shown: the nodes are shown that sum; else the true one, and all others the altered.
    """
    outs: dict[str, str] = {}

    def note(kind: str, data: Any) -> None:
        if kind == "silo-out":
            outs[data["silo"]] = data["code"]

    with world() as copy, alter(number, 12_345, shown=shown):
        grid, case = prepare(copy, make_draft(), note=note)
        try:
            verify(conduct(grid, case))
        except FoedusError as error:
            return f"{code_of(error)}: {error.message[:120]}", outs
    return "", outs


def corrupted_sum() -> Outcome:
    with play() as rehearsal:
        seen = _shown_lies(rehearsal)
        last = rehearsal.case.study.rounds
    told = {what: code for what, code in seen.items() if " shown" not in what}
    why, outs = _corrupt_run(TRAIN)
    secret, secret_outs = _corrupt_run(last, shown=False)
    with unchecked():
        with play() as rehearsal:
            weak_seen = _shown_lies(rehearsal, 1)
        weak, weak_outs = _corrupt_run(TRAIN)
        weak_last, _ = _corrupt_run(last)
    return Outcome(
        set(told.values()) == {"SUM_ALTERED"}
        and "(answered)" not in seen.values()
        and list(outs.values()).count("SUM_ALTERED") == 4
        and why != ""
        and "check 10" in secret
        and not secret_outs,
        f"{len(told)} altered sums shown to four nodes: {tally(told)}; not shown as what it is: "
        f"{tally({k: v for k, v in seen.items() if k not in told})}. 12,345 added to a training sum of a study: "
        f"{tally(outs)}, {why or 'and it finished'}. Added to the last sum for everybody but the nodes: "
        f"{secret or 'its evidence verified'}",
        "(answered)" in weak_seen.values() and weak == "" and not weak_outs and weak_last == "",
        "silos that do not verify sums: a training sum "
        f"{weak or 'altered unnoticed, study finished, evidence verified'}; the last {weak_last or 'too'}",
    )


@dataclass
class _Swapped:
    """A node that gets another model in one training round; what it said then."""

    app: Any
    parameters: int
    said: list[str] = field(default_factory=list)

    def __call__(self, message: Message, context: Context) -> Message:
        record = message.content.config_records[m.RECORD]
        wanted = message.metadata.message_type == "query.vector"
        if not wanted or json.loads(bytes(record["body"]))["round"] != TRAIN + 1:
            return self.app(message, context)
        data = bytes(record["data"])
        weights = np.frombuffer(data[: 8 * self.parameters], "<f8") + 3.0
        record["data"] = weights.astype("<f8").tobytes() + data[8 * self.parameters :]
        reply = self.app(message, context)
        refusal = m.refusal_in(reply)
        self.said.append("trained on it and uploaded" if refusal is None else refusal.code)
        return reply


def _other_weights() -> tuple[list[str], str]:
    """In one training round a single node gets another model than the rest; what it says, and what the study comes to."""
    with world() as copy:
        grid, case = prepare(copy, make_draft())
        swapped = _Swapped(grid._apps[100], case.study.parameters)
        grid._apps[100] = swapped
        try:
            verify(conduct(grid, case))
            return swapped.said, "the others finish, evidence verified"
        except FoedusError as error:
            return swapped.said, f"{code_of(error)}: {error.message[:100]}"


def _old_models() -> dict[str, str]:
    """Models a node is sent after it has seen round 1's sum; none is what that sum gives."""
    seen = {}
    with play() as rehearsal:
        rehearsal.set_up()
        opened = rehearsal.play_round(1, rehearsal.weights)
        play_on = {"boxes": False, "previous": opened.notice()[0]}
        shown = opened.notice()[1]
        first = train.State.start(rehearsal.case.study)
        state = train.advance(first, 1, opened.total, rehearsal.case.study, len(opened.survivors))
        true = state.sent.astype("<f8").tobytes()
        silo = VICTIM
        for what, model in {
            "moved": other_weights(rehearsal),
            "a little": other_weights(rehearsal, 1e-4),
            "negative zeros and ones": np.copysign(1.0, -np.arange(len(true) // 8)).astype("<f8").tobytes(),
        }.items():
            request = rehearsal.vector_request(silo, TRAIN, **play_on)
            seen[what] = word(rehearsal.ask(silo, request, model + shown))
        second = rehearsal.play_round(TRAIN, true + shown, **play_on)
        last = {"boxes": False, "previous": second.notice()[0]}
        request = rehearsal.vector_request(silo, TRAIN + 1, **last)
        seen["that of the round before"] = word(rehearsal.ask(silo, request, true + second.notice()[1]))
    return seen


def _isolated() -> Reading:
    """The victim's peers get a model on which nothing is left to learn: in a sum that opened, its vector would stand alone.

    (Pasquini, Francati and Ateniese 2022, CCS.) Silos by themselves, which can't tell one model from another.
    """
    stage = Stage()
    stage.set_up()
    made = vectors(ALL, D)
    made["s2"], made["s3"] = 0 * made["s2"], 0 * made["s3"]
    spy = stage.spy(["s1"], made)
    spy.own |= {(1, name): made[name] for name in ("s2", "s3")}  # what they send is known beforehand
    for name in ALL:
        model = ("a" if name in ("s2", "s3") else "b") * 64
        source = Whole(made[name], BOUND)
        spy.hear_vector(1, name, *stage.silos[name].mask(1, source, RING, task="train", model=model))
    for name in ALL[1:]:
        stage.ask(spy, 1, name, ALL)
    return spy.read(1, TARGET, made[TARGET])


def model_for_one() -> Outcome:
    said, end = _other_weights()
    alone = _isolated()
    with unbound():
        weak_alone = _isolated()
    seen = _old_models()
    with unchecked():
        weak, weak_end = _other_weights()
    return Outcome(
        said == ["MODEL_ALTERED"] and set(seen.values()) == {"MODEL_ALTERED"} and not alone.broken,
        f"one node got weights that no sum gives: {', '.join(said) or 'nothing was sent'}; {end}. {len(seen)} other models "
        f"at the real node: {tally(seen)}. Silos that did take another model than the victim, one without gradients: {alone} "
        "of the victim's vector",
        weak == ["trained on it and uploaded"] and weak_alone.exact == D,
        f"a node that does not recompute the model: {', '.join(weak)}; {weak_end}; masks not bound "
        f"to the model: {weak_alone}",
    )


CHECKS = [
    Check("12", "corrupts the sum", "server", corrupted_sum),
    Check("12b", "gives one silo another model", "server", model_for_one),
]
