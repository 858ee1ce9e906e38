"""Checks 8–10: a malicious server against whole nodes; it may lie about study and log.

In 8 the server listens to a whole study and looks for anything of a silo's in clear; in 9 its people
(author and every approver) are in league with it; in 10 it signs any log it likes.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from flwr.app import Context, Message
from redteam.checks import Check, Outcome, tally
from redteam.crypt import MASKLESS, Stage, code_of
from redteam.node_support import TRAIN, VICTIM, node, play, word, world
from redteam.spy import D, compare
from support.bundles import Tampered
from support.nodes import Rehearsal
from support.orders import make_draft, no_noise
from support.sums import BOUND

from foedus.clients import app as client_app
from foedus.clients.trainer import Trainer
from foedus.compliance.auditlog.checkpoint import Checkpoint, open_checkpoint
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.auditlog.witness import HeadKeeper
from foedus.demo.simulate import prepare
from foedus.documents import Envelope, SigningKey, b64
from foedus.errors import FoedusError, VerificationError
from foedus.federation import messages as m
from foedus.federation.rounds import RoundPlan
from foedus.federation.study import Training
from foedus.federation.verification import verify
from foedus.server.coordinator import conduct

# ── 8: anything in clear ─────────────────────────────────────────────────────────────────────────


@dataclass
class Ear:
    """Hears every reply of every node, and knows, to search for it, what no reply may hold."""

    replies: list[tuple[str, str, bytes, bytes]] = field(default_factory=list)  # silo, action, body, data
    vectors: dict[str, list[tuple[Any, RoundPlan]]] = field(default_factory=dict)
    counts: dict[str, set[int]] = field(default_factory=dict)
    public: set[int] = field(default_factory=set)

    def listen(self, silo: str, app: Any) -> Any:
        def answer(message: Message, context: Context) -> Message:
            reply = app(message, context)
            record = reply.content.config_records[m.RECORD]
            self.replies.append((silo, str(record["action"]), bytes(record["body"]), bytes(record["data"])))
            return reply

        return answer

    def found(self) -> list[str]:
        """What was heard in clear: contributions in any number format, counts, histogram cells."""
        hits = []
        for silo, action, body, data in self.replies:
            heard = body + data + b"".join(_decoded(body))
            for what, needle in self._needles(silo):
                if needle in heard:
                    hits.append(f"{silo}: {what} in {action}")
            told = {int(n) for n in re.findall(rb"(?<![\w.+/=-])\d{2,9}(?![\w.+/=])", body)}
            for count in sorted(told & self.counts[silo] - self.public):
                hits.append(f"{silo}: the count {count} in {action}")
        return hits

    def _needles(self, silo: str) -> Iterator[tuple[str, bytes]]:
        for vector, plan in self.vectors.get(silo, []):
            there = np.flatnonzero(vector)
            start = int(there[0]) if there.size else 0
            whole = vector[start : start + 8]
            for dtype in ("<i2", "<i4", "<i8", "<f4", "<f8", ">i2", ">i4", ">i8"):
                yield f"a contribution as {dtype}", whole.astype(dtype).tobytes()[:16]
            for dtype in ("<f4", "<f8"):
                scaled = (whole / 2.0**plan.scale_bits).astype(dtype)
                yield f"a contribution, unscaled, as {dtype}", scaled.tobytes()[:16]
            yield f"a contribution in {plan.bits} bits a number", plan.ring.pack(plan.ring.wrap(vector))


def _decoded(body: bytes) -> list[bytes]:
    """Whatever in a body is base64, decoded."""
    found = []
    for text in re.findall(rb"[A-Za-z0-9+/]{16,}={0,2}", body):
        with contextlib.suppress(ValueError):
            found.append(base64.b64decode(text, validate=True))
    return found


def _overhear(**weak: Any) -> tuple[Ear, dict[str, float], int]:
    """A whole study without noise, so that nothing but the masks hides a contribution; bytes of uploads seen."""
    ear = Ear()
    contribution = Trainer.contribution

    def spied(self: Trainer, plan: RoundPlan, dataset: Any, weights: Any) -> Any:
        source = contribution(self, plan, dataset, weights)
        vector = source.values
        ear.vectors.setdefault(self.source.party, []).append((vector, plan))
        counts = ear.counts.setdefault(self.source.party, set())
        counts |= {len(dataset.customers), int(np.sum(dataset.labels))}
        if plan.task == "evaluate":
            counts |= {int(n) for n in vector // 2**plan.scale_bits}
        # Small numbers are everywhere (the treaty's least cohort is 50), and the lengths of vectors are public.
        ear.public.add(int(plan.dimension))
        counts -= set(range(50))
        return source

    with world() as copy, patch.object(Trainer, "contribution", spied), contextlib.ExitStack() as stack:
        for target, name, value in weak.get("patches", ()):
            stack.enter_context(patch.object(target, name, value))
        grid, case = prepare(copy, make_draft(), sampler=no_noise)
        for place, silo in enumerate(copy.homes):
            ear.counts[silo] = set()
            grid._apps[100 + place] = ear.listen(silo, grid._apps[100 + place])
        with contextlib.suppress(FoedusError, ArithmeticError):
            conduct(grid, case)
    correlations = _correlations(ear)
    return ear, correlations, sum(len(data) for *_, data in ear.replies)


def _correlations(ear: Ear) -> dict[str, float]:
    """How the uploads of each silo correlate with its contributions, in standard errors."""
    found = {}
    for silo, vectors in ear.vectors.items():
        sent = [d for s, action, _, d in ear.replies if s == silo and action == "vector-reply"]
        pairs = [
            (v, plan.ring.unwrap(plan.ring.unpack(data, v.size)))
            for (v, plan), data in zip(vectors, sent, strict=False)
        ]
        if pairs:
            truth = np.concatenate([v / max(1.0, float(np.abs(v).max())) for v, _ in pairs])
            heard = np.concatenate([s / max(1.0, float(np.abs(s).max())) for _, s in pairs])
            found[silo] = float(np.corrcoef(truth, heard)[0, 1]) * np.sqrt(truth.size)
    return found


def _refused_with(told: frozenset[str]) -> list[str]:
    """A node whose cohort is too large says so; is the number in it?"""
    ear = Ear()
    with play() as rehearsal:
        guard = node(rehearsal, VICTIM).guard
        guard.treaty = guard.treaty.model_copy(update={"min_cohort": 9_999})
        with patch.object(client_app, "_TELLABLE", told):
            said = rehearsal.ask(VICTIM, rehearsal.keys_request(VICTIM))
        body = bytes(said.message.content.config_records[m.RECORD]["body"])
        trainer = Trainer(guard.home, rehearsal.case.study, guard.treaty.retention_days)
        from datetime import UTC, datetime

        cohort = guard.consent.in_force(rehearsal.case.study.purpose, datetime.now(UTC))
        ear.counts[VICTIM] = {len(trainer.dataset(side, cohort).customers) for side in ("train", "test")}
        ear.replies.append((VICTIM, said.action, body, b""))
    return ear.found()


def clear_text() -> Outcome:
    ear, correlations, size = _overhear()
    hits = ear.found() + _refused_with(client_app._TELLABLE)
    worst = max(abs(c) for c in correlations.values())
    needles = sum(len(list(ear._needles(s))) + len(ear.counts[s]) for s in ear.counts)
    weak, weak_correlations, _ = _overhear(patches=[MASKLESS])
    weak_hits = weak.found()
    weak_told = _refused_with(client_app._TELLABLE | {"COHORT_TOO_SMALL"})
    return Outcome(
        not hits and worst < 6 and len(ear.replies) > 40,
        f"a whole study without noise overheard: {len(ear.replies)} replies, {size:,} bytes of vectors, searched for "
        f"{needles:,} contributions, counts and histogram cells: {len(hits)} found{': ' + hits[0] if hits else ''}; "
        f"uploads correlate with contributions by {worst:.1f} standard errors at most",
        len(weak_hits) > 0 and max(abs(c) for c in weak_correlations.values()) > 6 and bool(weak_told),
        f"nodes that do not mask: {len(weak_hits)} found, e.g. {weak_hits[0] if weak_hits else '-'}; a refusal that may "
        f"name the cohort: {weak_told[0] if weak_told else '-'}",
    )


# ── 9: another study for one silo ────────────────────────────────────────────────────────────────


def _other_clip(*, bound: bool) -> tuple[str, Any]:
    """The victim clips at 2^16 times what the others clip at: of the sum, the top bits are its own."""
    stage = Stage()
    rng = np.random.default_rng(5)
    factor = 2**16
    secret = rng.integers(-BOUND // factor, BOUND // factor, D)
    made = {name: rng.integers(-256, 257, D) for name in ("s1", "s2", "s3")} | {"s4": secret * factor}
    if bound:  # as it is: every key and signature names the study it was made for
        stage.silos["s4"] = stage.silo("s4", study="6" * 64)
    try:
        advertised = [stage.silos[name].advertise() for name in stage.names]
        for name, envelope in zip(stage.names, advertised, strict=True):
            if not bound or name != "s4":
                stage.aggregator.add_advertisement(name, envelope)
        for name in stage.names:
            stage.aggregator.add_boxes(name, stage.silos[name].share(advertised))
        for name in stage.names:
            stage.silos[name].receive(stage.aggregator.boxes_for(name))
        total = stage.round(1, made)
    except FoedusError as error:
        return code_of(error), None
    return "", compare(np.rint(np.asarray(total) / factor).astype(np.int64), secret)


def other_study() -> Outcome:
    code, _ = _other_clip(bound=True)
    seen: dict[str, str] = {}
    with world() as copy:
        one, two = (
            Rehearsal(copy, make_draft()),
            Rehearsal(copy, make_draft(training=Training(rounds=2, clip=4.0))),
        )
        payload = one.case.study_envelope.payload

        def ask(what: str, study: Envelope) -> None:
            said = one.ask(VICTIM, one.keys_request(VICTIM, study=study.to_json()))
            seen[what] = word(said)

        signatures = one.case.study_envelope.signatures
        clipped = {**payload, "training": {**payload["training"], "clip": 4.0}}
        ask("clip changed on the way", Envelope("study", clipped, signatures))
        ask(
            "clip changed and signed by the author",
            Envelope("study", clipped).signed("dana", copy.key("dana")),
        )
        ask(
            "less noise",
            Envelope("study", {**payload, "privacy": {**payload["privacy"], "sigma_train": 4}}, signatures),
        )
        ask(
            "another treaty",
            Envelope("study", {**payload, "treaty": "0" * 64}).signed("dana", copy.key("dana")),
        )
        ask("the other study with these approvals", two.case.study_envelope)
        # author and all approvers are in league: either study is approved by everybody, one silo gets the other
        keys = {}
        for silo in one.silos:
            told = two if silo == VICTIM else one
            said = told.ask(silo, told.keys_request(silo))
            assert said.refusal is None, said.refusal
            keys[silo] = m.KeysReply.read(said.message)[0].keys
        everybody = two.shares_request(list(keys.values()))
        others = one.shares_request([k for s, k in keys.items() if s != VICTIM])
        seen["both approved: the victim with the others"] = word(two.ask(VICTIM, everybody))
        alone = two.shares_request([keys[VICTIM]])
        seen["both approved: the victim alone"] = word(two.ask(VICTIM, alone))
        seen["both approved: another with the victim"] = word(one.ask(one.silos[1], everybody))
        honest = word(one.ask(one.silos[1], others))
    weak_code, weak = _other_clip(bound=False)
    return Outcome(
        code != "" and "(answered)" not in seen.values() and honest == "(answered)",
        f"another study (clip × 4) for one node: {tally(seen)}, even where author and all approvers signed both; "
        f"silos of two studies: {code}",
        weak is not None and weak.exact > 0.99 * D,
        f"keys not bound to the study, the victim's clip × 2^16: {weak or weak_code} read from the sum",
    )


# ── 10: another log ──────────────────────────────────────────────────────────────────────────────


class Gullible(HeadKeeper):
    """A node's memory of the log that takes any head its key has signed."""

    def advance(self, note: str, proof: Any, *, accept: Any = None) -> Checkpoint:
        self._path.write_text(note)
        return open_checkpoint(note, self._name, self._public)


def _fork(rehearsal: Rehearsal, folder: Path, entries: int, *, key: SigningKey | None = None) -> m.LogHead:
    """The head of another history of so many entries, with the best proof there is."""
    log = AuditLog(folder / f"fork-{entries}.db", rehearsal.case.origin)
    for i in range(entries - log.size):
        log.append("coordinator", "run.started", rehearsal.case.study_envelope.digest, {"run": "1", "i": i})
    seen = rehearsal.case.heads.get(VICTIM, 0)
    proof = [b64(h) for h in log.consistency_proof(seen)] if entries > seen > 0 else []
    return m.LogHead(
        note=log.checkpoint(rehearsal.case.origin, key or rehearsal.case.key), since=seen, proof=proof
    )


def _lies(rehearsal: Rehearsal, *, gullible: bool) -> dict[str, str]:
    seen: dict[str, str] = {}
    if gullible:
        guard = node(rehearsal, VICTIM).guard
        guard.heads = Gullible(guard.heads._path, guard.heads._name, guard.heads._public)
        guard.require_quorum = lambda note, *wanted: None  # type: ignore[method-assign]
    early = rehearsal.case.head(VICTIM)
    rehearsal.set_up()
    folder = rehearsal.world.root
    size = rehearsal.case.heads[VICTIM]
    lies = {
        "a longer fork": _fork(rehearsal, folder, size + 5),
        "a fork of the same size": _fork(rehearsal, folder, size),
        "a truncated log": _fork(rehearsal, folder, 2),
        "an empty log": m.LogHead(note=AuditLog(folder / "none.db", rehearsal.case.origin).checkpoint(
            rehearsal.case.origin, rehearsal.case.key), since=size, proof=[]),
    }  # fmt: skip
    rehearsal.case.log.append("coordinator", "note", "x", {})
    honest = rehearsal.case.head(VICTIM)
    lies["a proof left out"] = honest.model_copy(update={"proof": []})
    lies["a proof altered"] = honest.model_copy(update={"proof": [b64(b"k" * 32), *honest.proof[1:]]})
    if not gullible:
        lies["signed by another key"] = _fork(rehearsal, folder, size + 6, key=SigningKey.generate())
        lies["the head seen, as if nothing had been"] = early
    for what, head in lies.items():
        request = rehearsal.vector_request(VICTIM, TRAIN, boxes=not seen, log=head)
        seen[what] = word(rehearsal.ask(VICTIM, request, rehearsal.weights))
        if not gullible:
            node(
                rehearsal, VICTIM
            ).guard.heads.settle()  # the officer, each time; else it would not even look
        if gullible:
            break  # it has answered the round: there is nothing left to try
    if not gullible:
        request = rehearsal.vector_request(VICTIM, TRAIN, boxes=True)
        assert word(rehearsal.ask(VICTIM, request, rehearsal.weights)) == "(answered)"
    return seen


def forged_log() -> Outcome:
    with play() as rehearsal:
        seen = _lies(rehearsal, gullible=False)
        kept = len(list(rehearsal.home(VICTIM).glob("log-head.settled-*.json")))
    with play() as rehearsal:
        start = rehearsal.keys_request(VICTIM)
        body = start.started.body.replace('"run":"1"', '"run":"7"')
        lie = start.started.model_copy(update={"body": body})
        seen["a start not in the log"] = word(
            rehearsal.ask(VICTIM, rehearsal.keys_request(VICTIM, run="7", started=lie))
        )
        seen["the start of another run"] = word(rehearsal.ask(VICTIM, start.model_copy(update={"run": "2"})))
    split, whole = _split_view()
    with play() as rehearsal:
        weak = _lies(rehearsal, gullible=True)
    return Outcome(
        "(answered)" not in seen.values() and kept > 0 and all("check 10" in why for why in split) and whole,
        f"{len(seen)} lies about the log: {tally(seen)}; {kept} contradicting heads kept as proof; another history "
        f"shown to the officers than to the nodes: found {len(split)} of {len(split)} times by the nodes' receipts",
        "(answered)" in weak.values(),
        f"a node without the log check: {next(iter(weak))} is taken, and a vector given",
    )


def _split_view() -> tuple[list[str], bool]:
    """Nodes saw one log; the bundle shows another, signed by the same coordinator. Why the verifier refuses."""
    edits = {
        "an entry edited": lambda e: e[0].update(actor="nobody"),
        "an entry slipped in": lambda e: e.insert(0, e[0]),
    }
    reasons = []
    with world() as copy:
        grid, case = prepare(copy, make_draft())
        good = conduct(grid, case)
        whole = len(verify(good).checks) > 0
        for place, edit in enumerate(edits.values()):
            bundle = Tampered(good, copy)
            bundle.log(edit)
            try:
                verify(bundle.write(copy.root / f"lie-{place}.zip"))
                reasons.append("nothing found")
            except VerificationError as error:
                reasons.append(error.message)
    return reasons, whole


CHECKS = [
    Check("8", "reads weights, counts or metrics in clear", "server", clear_text),
    Check("9", "changes study, treaty or clip between silos", "server + author + approvers", other_study),
    Check("10", "forges or truncates the log head", "server", forged_log),
]
