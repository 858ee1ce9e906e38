"""Offline verification of an evidence bundle: what an officer runs, trusting only the treaty.

1. The bundle is whole: every file matches the manifest, which the treaty's coordinator signed.
2. The treaty is signed by every party (and equals the officer's own copy, if given).
3. The study is signed by its author and permitted by the treaty: purpose, ε, δ, noise.
4. Every seat of the approval chain had approved when the run started; nobody approved their own.
5. The audit log re-hashes to its signed head, which the treaty's quorum of parties' nodes has cosigned;
   submission, approvals and start stand in it, in this order.
6. Every silo's keys are signed for this study and run.
7. Every round: uploads and answers signed by the survivors, at least threshold and minimum many, over one
   and the same set, for the model that is shown; the sum is the one the log names.
8. ε, recomputed from noise and survivors, is what is claimed, and within study and treaty.
9. Each round's model, recomputed from the sums, is the one that was sent; the released model and metrics
   are the released ones, and signed and logged.
10. The receipts, of threshold or more nodes, are signed and in the log, which so anchors the heads of their
    ledgers, none of which went back; they agree on what each round cost, and saw a prefix of this very log;
    every sum is one that more nodes than may collude had checked (in the central mode: had been shown, on the
    server's word). For every round they state they name the entry of their own logs with its cohort.

`verify` returns a report or raises at the first thing that does not hold.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..compliance import approvals, evidence, treaty
from ..compliance.auditlog.checkpoint import open_checkpoint
from ..compliance.auditlog.cosignature import require_quorum
from ..compliance.auditlog.merkle import leaf_hash, root_from_leaves
from ..compliance.treaty import Treaty
from ..documents import Envelope, canonical, parse_json, unb64
from ..errors import FoedusError, VerificationError
from ..privacy.accountant import PLD
from ..privacy.events import from_json, to_json
from ..privacy.secagg.keys import Advertisement, Context, Roster
from ..privacy.secagg.statements import ANSWER, CONFIRM, UPLOAD
from ..privacy.secagg.topology import names_digest
from . import course, ledger_heads, limits
from .counting import CountStudy
from .pricing import price
from .study import AnyStudy
from .tasks import count, evaluate, train

_COPIED = ("purpose", "table", "model", "features", "scaling", "label")
_RELEASED = {"study", "run", "epsilon", "delta", "mode", "per", "what"}
_MODEL = {*_COPIED, "learned", "weights"}
_SAID = {
    UPLOAD: {
        *("context", "round", "silo", "task", "topology", "participants", "dimension", "bits"),
        *("model", "vector", "check"),
    },
    CONFIRM: {"context", "round", "silo", "topology", "survivors"},
    ANSWER: {"context", "round", "silo", "survivors", "answering", "shares"},
}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RECEIPT = {
    "silo",
    "treaty",
    "study",
    "run",
    "rounds",
    "epsilon",
    "delta",
    "sums",
    "cohorts",
    "ledger",
    "log",
}


def _only(value: Mapping[str, Any], names: set[str], what: str) -> None:
    """Raise unless these are the fields: what nobody re-checks would pass for checked."""
    if set(value) != names:
        raise VerificationError(f"{what}: fields missing or unknown: {', '.join(sorted(set(value) ^ names))}")


def _sole(envelope: Envelope) -> Envelope:
    """The document, if one signature is on it: a second one, which nobody checks, would pass for checked."""
    if len(envelope.signatures) != 1:
        raise VerificationError(f"a {envelope.kind} bears {len(envelope.signatures)} signatures, not one")
    return envelope


@dataclass(frozen=True)
class Check:
    """One point of the list above, and what was looked at."""

    number: int
    name: str
    detail: str


@dataclass(frozen=True)
class Report:
    """What held. `survivors` maps each round to its silos; `started` is when, by the log."""

    checks: tuple[Check, ...]
    study: AnyStudy
    study_digest: str
    treaty: Treaty
    treaty_digest: str
    run: str
    started: datetime
    epsilon: float
    survivors: Mapping[int, tuple[str, ...]]
    metrics: Mapping[str, Any]


def verify(path: Path, *, own_treaty: Path | None = None) -> Report:
    """Re-check a bundle.

    Args:
        own_treaty: the officer's own copy of the treaty; without it the bundle's is taken, and its
            digest is for the reader to compare.

    Raises:
        InputError: not a bundle. VerificationError, Refused: the first check that fails, with its number.
    """
    case = _Bundle(path, own_treaty)
    checks = []
    for number, (name, step) in enumerate(case.steps(), 1):
        try:
            checks.append(Check(number, name, step()))
        except FoedusError as error:
            raise VerificationError(
                f"check {number} ({name}) fails: {error.message}", remedy=error.remedy
            ) from error
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise VerificationError(
                f"check {number} ({name}) fails: malformed content ({error!r})"
            ) from error
    return Report(
        checks=tuple(checks),
        study=case.study,
        study_digest=case.study_envelope.digest,
        treaty=case.treaty,
        treaty_digest=case.treaty_envelope.digest,
        run=case.run,
        started=datetime.fromisoformat(case.started_at),
        epsilon=case.epsilon,
        survivors=case.survivors,
        metrics=case.metrics,
    )


class _Bundle:
    """The bundle as the checks go through it; each fills in what the next ones need."""

    treaty: Treaty
    treaty_envelope: Envelope
    study: AnyStudy
    study_envelope: Envelope
    run: str
    _started: int
    started_at: str
    epsilon: float
    metrics: Mapping[str, Any]

    def __init__(self, path: Path, own_treaty: Path | None) -> None:
        self._own_treaty = own_treaty
        self._manifest, self._files = evidence.read(path)
        self.survivors: dict[int, tuple[str, ...]] = {}
        self._contexts: dict[str, Context] = {}
        self._batch_silos: dict[str, tuple[str, ...]] = {}
        self._totals: dict[int, Any] = {}
        self._models: dict[int, Any] = {}
        self._roots: dict[int, bytes] = {}

    def steps(self) -> list[tuple[str, Any]]:
        return [
            ("bundle", self._check_manifest),
            ("treaty", self._check_treaty),
            ("study", self._check_study),
            ("approvals", self._check_approvals),
            ("audit log", self._check_log),
            ("keys", self._check_keys),
            ("rounds", self._check_rounds),
            ("epsilon", self._check_epsilon),
            ("release", self._check_release),
            ("receipts", self._check_receipts),
        ]

    def _file(self, name: str) -> bytes:
        if name not in self._files:
            raise VerificationError(f"the bundle has no {name}")
        return self._files[name]

    def _check_manifest(self) -> str:  # 1
        self.treaty_envelope = Envelope.loads(self._file("treaty.json"))
        self.treaty = treaty.parse(self.treaty_envelope)
        coordinator = self.treaty.coordinator
        _sole(self._manifest).check(evidence.KIND, coordinator.origin, coordinator.signing_key)
        return f"{len(self._files)} files match the manifest signed by {coordinator.origin}"

    def _check_treaty(self) -> str:  # 2
        treaty.verify(self.treaty_envelope)
        digest = self.treaty_envelope.digest
        if self._own_treaty is None:
            return (
                f"signed by {len(self.treaty.parties)} parties; compare its digest with yours: {digest[:16]}…"
            )
        if treaty.load(self._own_treaty)[0].digest != digest:
            raise VerificationError("the bundle's treaty is not the one you hold")
        return f"signed by {len(self.treaty.parties)} parties, and it is your own copy"

    def _check_study(self) -> str:  # 3
        self.study_envelope = _sole(Envelope.loads(self._file("study.json")))
        self.study = limits.verify(self.study_envelope, self.treaty, self.treaty_envelope.digest)
        return f"signed by {self.study.author}; {self.study.purpose}, ε ≤ {self.study.privacy.epsilon:g}"

    @cached_property
    def _lines(self) -> list[bytes]:
        return self._file("log/entries.jsonl").splitlines()

    @cached_property
    def _entries(self) -> list[dict[str, Any]]:
        return [parse_json(line) for line in self._lines]

    @cached_property
    def _about(self) -> list[tuple[int, dict[str, Any]]]:
        digest = self.study_envelope.digest
        return [(i, e) for i, e in enumerate(self._entries) if e["subject"] == digest]

    def _root(self, size: int) -> bytes:
        """The root of the log's first `size` entries; receipts ask for a few sizes only."""
        if size not in self._roots:
            self._roots[size] = root_from_leaves(self._leaves[:size])
        return self._roots[size]

    @cached_property
    def _leaves(self) -> list[bytes]:
        return [leaf_hash(line) for line in self._lines]

    def _mine(self, action: str) -> list[tuple[int, dict[str, Any]]]:
        return [(i, e) for i, e in self._about if e["action"] == action]

    def _check_approvals(self) -> str:  # 4
        given = [_sole(Envelope.from_json(a)) for a in parse_json(self._file("approvals.json"))]
        self.run = str(parse_json(self._file("keys.json"))[0]["context"]["run"])
        started = [(i, e) for i, e in self._mine("run.started") if e["details"]["run"] == self.run]
        if len(started) != 1:  # with two, one could have its order and the other its time looked at
            raise VerificationError(f"the log holds {len(started)} starts of this run")
        self._started, self.started_at = started[0][0], str(started[0][1]["time"])
        approvals.require(
            given,
            self.treaty,
            treaty_digest=self.treaty_envelope.digest,
            study=self.study_envelope.digest,
            author=self.study.author,
            purpose=self.study.purpose,
            epsilon=self.study.privacy.epsilon,
            now=datetime.fromisoformat(str(started[0][1]["time"])),
        )
        return f"{len(given)} signatures, levels {', '.join(self.treaty.approval_chain)}; none by the author"

    def _check_log(self) -> str:  # 5
        lines, coordinator = self._lines, self.treaty.coordinator
        note = self._file("log/checkpoint.txt").decode()
        head = open_checkpoint(note, coordinator.origin, coordinator.signing_key)
        if head.origin != coordinator.origin or head.size != len(lines):
            raise VerificationError(f"the head is of {head.size} entries, the bundle has {len(lines)}")
        if self._root(len(lines)) != head.root:
            raise VerificationError("the entries do not hash to the signed head: one was changed")
        submitted, approved = self._mine("study.submitted"), self._mine("study.approved")
        chain = self.treaty.approval_chain
        seats = len(chain) + ("partner" in chain) * (len(self.treaty.parties) - 1)
        if not submitted or len(approved) < seats:
            raise VerificationError("the log lacks the submission, or an approval")
        before = [i for i, _ in approved if i < self._started]  # a second approver of a seat may come later
        if len(before) < seats or not submitted[0][0] < before[0]:
            raise VerificationError("submission, approvals and start do not stand in the log in this order")
        done = [
            i
            for a in ("round.summed", "released")
            for i, e in self._mine(a)
            if e["details"]["run"] == self.run
        ]
        if any(i < max(done, default=0) for i, _ in self._mine("study.rejected")):
            raise VerificationError(
                "an approver has taken back their approval of this study, and yet it went on or was released"
            )
        by = require_quorum(note, self.treaty.witnesses, self.treaty.quorum)
        return (
            f"{head.size} entries hash to the signed head, cosigned by {len(by)} of {len(self.treaty.parties)} parties; "
            "submitted, approved, then started"
        )

    def _check_keys(self) -> str:  # 6
        roster, count = self._roster, 0
        for batch in parse_json(self._file("keys.json")):
            told = batch["context"]
            _only(batch, {"context", "keys"}, "a batch")
            _only(told, {"treaty", "study", "run", "batch", "rounds"}, "the context of a batch")
            context = Context(
                told["treaty"], told["study"], told["run"], told["batch"], tuple(told["rounds"])
            )
            if (context.treaty, context.study, context.run) != (
                self.treaty_envelope.digest,
                self.study_envelope.digest,
                self.run,
            ):
                raise VerificationError("keys of another study or run")
            silos = []
            for document in batch["keys"]:
                envelope = _sole(Envelope.from_json(document))
                silo = str(envelope.payload["silo"])
                Advertisement.verify(envelope, context, silo, roster.key(silo))
                if silo in silos:
                    raise VerificationError(f"{silo} signed two sets of keys for one batch")
                silos.append(silo)
                count += 1
            if context.digest in self._contexts:
                raise VerificationError(f"batch {context.batch} occurs twice")
            self._contexts[context.digest] = context
            self._batch_silos[context.digest] = tuple(silos)
        return f"{count} key advertisements, each signed by its silo for this run"

    @property
    def _roster(self) -> Roster:
        return Roster({p.name: p.signing_key for p in self.treaty.parties}, self.treaty.colluders)

    def _check_rounds(self) -> str:  # 7
        logged = {
            e["details"]["round"]: e["details"]
            for _, e in self._mine("round.summed")
            if e["details"]["run"] == self.run
        }
        least = self.treaty.threshold
        for line in self._file("rounds.jsonl").splitlines():
            record = parse_json(line)
            _only(record, {"round", "survivors", "total", "model", "transcript"}, "a round")
            _only(record["transcript"], {"uploads", "confirmations", "answers"}, "a transcript")
            number, survivors = record["round"], tuple(record["survivors"])
            if number in self.survivors:
                raise VerificationError(f"round {number} occurs twice")
            if len(survivors) < least or len(set(survivors)) != len(survivors):
                raise VerificationError(f"round {number}: {len(survivors)} silos, {least} are needed")
            uploads = self._statements(record["transcript"]["uploads"], UPLOAD, number)
            answers = self._statements(record["transcript"]["answers"], ANSWER, number)
            if set(uploads) != set(survivors):
                raise VerificationError(f"round {number}: the uploads are not those of the survivors")
            if len(answers) < self.treaty.threshold or not set(answers) <= set(survivors):
                raise VerificationError(
                    f"round {number}: {len(answers)} answers, {self.treaty.threshold} are needed"
                )
            confirmed = self._statements(record["transcript"]["confirmations"], CONFIRM, number)
            told = [*answers.values(), *confirmed.values()]
            if any(a["survivors"] != names_digest(survivors) for a in told):
                raise VerificationError(f"round {number}: the silos were told different survivors")
            answering = names_digest(() if confirmed else answers)  # on a sparse graph, nobody in particular
            if any(a["answering"] != answering for a in answers.values()):
                raise VerificationError(f"round {number}: the silos were told that others answer")
            if len({(u["context"], u["topology"], u["participants"]) for u in uploads.values()}) != 1:
                raise VerificationError(f"round {number}: the silos masked with different participants")
            plan = self.study.round(number, self.treaty)
            shape = (plan.dimension, plan.bits, plan.task)
            if any((u["dimension"], u["bits"], u["task"]) != shape for u in uploads.values()):
                raise VerificationError(f"round {number}: a vector of another shape than the study's")
            model = unb64(record["model"], what=f"round {number}: model")
            if any(u["model"] != hashlib.sha256(model).hexdigest() for u in uploads.values()):
                raise VerificationError(
                    f"round {number}: the silos were sent another model than the one shown"
                )
            self._models[number] = np.frombuffer(model, "<f8")
            if any(type(value) is not int for value in record["total"]):  # numpy would cut 1.5 down to 1
                raise VerificationError(f"round {number}: a sum is of whole numbers")
            total = np.array(record["total"], dtype=np.int64)
            digest = hashlib.sha256(total.astype("<i8").tobytes()).hexdigest()
            if total.shape != (plan.dimension,) or logged.get(number, {}).get("sum") != digest:
                raise VerificationError(f"round {number}: the sum is not the one in the log")
            self.survivors[number], self._totals[number] = survivors, total
        # Which of the study's rounds there must be depends on the sums, where training may stop early: check 9.
        if not self.survivors or max(self.survivors) != self.study.rounds:
            raise VerificationError(
                f"rounds {sorted(self.survivors)}: the study ends with {self.study.rounds}"
            )
        smallest = min(len(s) for s in self.survivors.values())
        return f"{len(self.survivors)} sums over {smallest} or more silos, every upload and answer signed"

    def _statements(self, documents: list[Any], kind: str, number: int) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for document in documents:
            envelope = _sole(Envelope.from_json(document))
            silo = str(envelope.payload["silo"])
            envelope.check(kind, silo, self._roster.key(silo))
            _only(envelope.payload, _SAID[kind], f"round {number}: a statement of {silo}")
            opaque = [envelope.payload[name] for name in ("vector", "shares") if name in envelope.payload]
            if not all(isinstance(value, str) and _DIGEST.fullmatch(value) for value in opaque):
                raise VerificationError(f"round {number}: a statement of {silo} with a digest that is none")
            if not isinstance(envelope.payload.get("check", ""), str):
                raise VerificationError(
                    f"round {number}: a statement of {silo} with a check value that is none"
                )
            context = self._contexts.get(str(envelope.payload["context"]))
            if context is None or envelope.payload["round"] != number or number not in context.rounds:
                raise VerificationError(
                    f"round {number}: a statement of {silo} is about another round or run"
                )
            if silo in found or silo not in self._batch_silos[context.digest]:
                raise VerificationError(f"round {number}: {silo} occurs twice, or never advertised keys")
            found[silo] = envelope.payload
        return found

    def _check_epsilon(self) -> str:  # 8
        counts = {number: len(silos) for number, silos in self.survivors.items()}
        self.epsilon = price(self.study, self.treaty, survivors=counts)
        cap = self.treaty.terms(self.study.purpose).epsilon
        if not self.epsilon <= self.study.privacy.epsilon <= cap:
            raise VerificationError(
                f"ε = {self.epsilon:.4f} is over the study's {self.study.privacy.epsilon:g} or {cap:g}"
            )
        return (
            f"ε = {self.epsilon:.4f} at δ = {self.study.privacy.delta:g} for {self.treaty.unit}, recomputed;"
            f" allowed {self.study.privacy.epsilon:g}"
        )

    def _check_release(self) -> str:  # 9
        state = course.start(self.study)
        number, due = course.following(state, 0, self.study), set()
        while number is not None:
            due.add(number)
            if number not in self._models:
                raise VerificationError(f"round {number} is due by the sums before it, and is not there")
            self._compare(f"the model of round {number}", self._models[number], state.sent)
            state = course.advance(
                state, number, self._totals[number], self.study, len(self.survivors[number])
            )
            number = course.following(state, number, self.study)
        if due != set(self._models):
            raise VerificationError(
                f"rounds {sorted(set(self._models) - due)} were run after training was over"
            )
        study = self.study
        if isinstance(study, CountStudy):
            return self._check_table(study)
        if not isinstance(state, train.State):
            raise VerificationError("a study that trains, without a model")
        last = study.rounds
        metrics = evaluate.metrics(self._totals[last], study, len(self.survivors[last]))
        self.metrics = {
            "auc": metrics.auc,
            "auc_error": metrics.auc_error,
            "pr_auc": metrics.pr_auc,
            "customers": metrics.customers,
        }
        logged = {
            e["details"]["file"]: e["details"]
            for _, e in self._mine("released")
            if e["details"]["run"] == self.run
        }
        allowed = {
            "model.json": study.release.model,
            "metrics.json": study.release.metrics,
            "table.json": False,
        }
        for name, permitted in allowed.items():
            if not permitted:
                if f"release/{name}" in self._files or name in logged:
                    raise VerificationError(f"{name} was released against the study's release rule")
                continue
            what = name.removesuffix(".json")
            told = self._released(name, _MODEL if what == "model" else {"metrics"}, logged)
            if name == "model.json":
                self._compare("the model's weights", told["weights"], state.weights)
                self._compare("the model's scales", told["learned"], state.statistics)
                plan = self.study.model_dump(mode="json")
                # As they are signed: 1 and true, equal to Python, are not.
                if any(canonical(told[n]) != canonical(plan[n]) for n in _COPIED):
                    raise VerificationError("the model's purpose, inputs or shape are not the study's")
            else:
                _only(told["metrics"], set(asdict(metrics)), "the metrics")
                for metric, value in asdict(metrics).items():
                    self._compare(f"the metric {metric!r}", told["metrics"][metric], value)
        return "model and metrics recomputed from the sums: equal"

    def _released(self, name: str, more: set[str], logged: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The payload of a release: signed, logged, of this run, and with the ε recomputed here."""
        coordinator, what = self.treaty.coordinator, name.removesuffix(".json")
        envelope = _sole(Envelope.loads(self._file(f"release/{name}")))
        envelope.check("release", coordinator.origin, coordinator.signing_key)
        if name not in logged or logged[name]["digest"] != envelope.digest:
            raise VerificationError(f"{name} is not the release in the log")
        told = envelope.payload
        _only(told, _RELEASED | more, name)
        if (told["study"], told["run"], told["what"]) != (self.study_envelope.digest, self.run, what):
            raise VerificationError(f"{name} is of another study or run")
        if told["delta"] != self.study.privacy.delta:
            raise VerificationError(f"{name} claims δ = {told['delta']}, the study says otherwise")
        if told["mode"] != self.study.privacy.mode.name:
            raise VerificationError(f"{name} claims {told['mode']} noise, the study says otherwise")
        if told["per"] != self.treaty.per(self.study.purpose).model_dump(mode="json"):
            raise VerificationError(f"{name} claims its ε for another unit or budget than the treaty's")
        for claimed in (told["epsilon"], logged[name]["epsilon"]):
            if not abs(claimed - self.epsilon) <= 1e-6:
                raise VerificationError(f"{name} claims ε = {claimed}, it is {self.epsilon}")
        return told

    def _check_table(self, study: CountStudy) -> str:
        """The table, recomputed: which cells pass the union gate, and what is shown of them."""
        logged = {
            e["details"]["file"]: e["details"]
            for _, e in self._mine("released")
            if e["details"]["run"] == self.run
        }
        for name in ("model.json", "metrics.json"):
            if f"release/{name}" in self._files or name in logged:
                raise VerificationError(f"{name} was released by a study that counts")
        told = self._released("table.json", {"purpose", "count", "table"}, logged)
        if told["purpose"] != study.purpose:
            raise VerificationError("the table's purpose is not the study's")
        if canonical(told["count"]) != canonical(study.count.model_dump(mode="json")):
            raise VerificationError("the table counts something else than the study")
        expected = count.table(self._totals[1], study, self.treaty, len(self.survivors[1]))
        count.require_equal(told["table"], expected, self._compare)
        self.metrics = {"cells": len(expected["cells"]), "shown": expected["shown"], "table": expected}
        return (
            f"{expected['shown']} of {len(expected['cells'])} cells pass the gate of k = {study.k} on the union,"
            " recomputed from the sum: equal"
        )

    @staticmethod
    def _compare(what: str, claimed: Any, recomputed: Any) -> None:
        given = np.asarray(claimed, dtype=object)
        if any(type(value) not in (int, float) for value in given.ravel()):
            raise VerificationError(f"{what}: not numbers")
        ours, theirs = np.asarray(recomputed, dtype=np.float64), given.astype(np.float64)
        # Another processor's linear algebra may differ in the last digits.
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-7, atol=1e-7):
            raise VerificationError(f"{what} can't be recomputed from the sums")

    def _check_cohorts(self, silo: str, named: Mapping[str, str]) -> None:
        """Entries stay in the silo's log: their hashes here bind it to them, for its customers' proofs."""
        rounds = {str(number) for number in range(1, self.study.rounds + 1)}
        for number, entry in named.items():
            if number not in rounds or not _DIGEST.fullmatch(entry):
                raise VerificationError(f"{silo}: the cohorts in its receipt are malformed")

    def _check_receipts(self) -> str:  # 10
        logged = {
            e["details"]["silo"]: e["details"]
            for _, e in self._mine("receipt")
            if e["details"]["run"] == self.run
        }
        mode = self.study.privacy.mode
        witness, seen = mode.witness, set[str]()
        checked: dict[int, set[str]] = {}
        for document in parse_json(self._file("receipts.json")):
            envelope = _sole(Envelope.from_json(document))
            told = envelope.payload
            silo = str(told["silo"])
            envelope.check("receipt", silo, self._roster.key(silo))
            _only(told, _RECEIPT, f"the receipt of {silo}")
            about = (self.treaty_envelope.digest, self.study_envelope.digest, self.run)
            if silo in seen or (told["treaty"], told["study"], told["run"]) != about:
                raise VerificationError(f"the receipt of {silo} occurs twice or is of another run")
            seen.add(silo)
            if told["silo"] not in logged or logged[told["silo"]]["digest"] != envelope.digest:
                raise VerificationError(f"the receipt of {silo} is not the one in the log")
            size = told["log"]["size"]
            if not 0 < size <= len(self._lines) or self._root(size).hex() != told["log"]["root"]:
                raise VerificationError(
                    f"{silo} saw another log than this one: the server showed two histories"
                )
            self._check_cohorts(silo, told["cohorts"])
            for entry in told["rounds"]:
                number = entry["round"]
                if str(number) not in told["cohorts"]:
                    raise VerificationError(f"{silo} states round {number}, and not its cohort")
                event = from_json({k: v for k, v in entry.items() if k not in ("round", "task")})
                expected = self.study.round(number, self.treaty).cost(
                    len(self.survivors[number]), self.treaty
                )
                stated = (to_json(event), entry["task"])
                if (
                    stated != (to_json(expected), self.study.tasks[number - 1])
                    or silo not in self.survivors[number]
                ):
                    raise VerificationError(f"{silo} and the transcript disagree on round {number}")
            # A node that was restarted has forgotten its earlier rounds, not what they cost: its ledger has it.
            own = PLD(
                self.study.round(n, self.treaty).cost(len(s), self.treaty)
                for n, s in self.survivors.items()
                if silo in s
            )
            for number, sha in told["sums"].items():
                if sha != hashlib.sha256(self._totals[int(number)].astype("<i8").tobytes()).hexdigest():
                    raise VerificationError(
                        f"{silo} {witness} another sum of round {number}: the server altered it afterwards"
                    )
                checked.setdefault(int(number), set()).add(silo)
            if logged[silo].get("ledger") != told["ledger"]:
                raise VerificationError(f"the log has another head of {silo}'s ledger than its receipt")
            if told["delta"] != self.study.privacy.delta:
                raise VerificationError(f"{silo} states what it paid at another δ than the study's")
            if told["epsilon"] + 1e-9 < own.epsilon(told["delta"]):
                raise VerificationError(f"{silo}'s ledger says less than its rounds cost")
        # All heads in the log, of other studies too: a budget that came back came back for this study as well.
        ledger_heads.check_log(self._entries, self._roster.key)
        # Fewer could be just those that were shown this log, and the others another one.
        if len(seen) < self.treaty.threshold:
            raise VerificationError(f"{len(seen)} receipts, {self.treaty.threshold} are needed")
        # In the central mode they were only shown the sums: that all were shown the same ones is what is checked.
        # More than the colluders, so that one of them at least tells the truth.
        least = min((len(checked.get(number, ())) for number in self.survivors), default=0)
        if least <= self.treaty.colluders:
            raise VerificationError(
                f"{least} of those who signed receipts {witness} a sum, more than {self.treaty.colluders} must"
            )
        silent = sorted({p.name for p in self.treaty.parties} - seen)
        return (
            f"{len(seen)} nodes signed what they paid, and saw this log; every sum {mode.witnessed.format(least)}"
            + (f"; none from {', '.join(silent)}" if silent else "")
            + (f". {mode.caution}" if mode.caution else "")
        )
