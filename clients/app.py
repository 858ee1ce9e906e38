"""The node's Flower ClientApp: the node calls it, and so does a simulation.

It answers the messages of `federation.messages` and nothing else. Whatever fails becomes a `Refusal`:
the reason goes into the node's own audit log in full, and to the server only as far as it says nothing
about the silo's data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from ..compliance.auditlog.checkpoint import Checkpoint
from ..compliance.auditlog.cosignature import NO_QUORUM
from ..compliance.auditlog.log import study_key
from ..documents import Envelope, canonical, parse_json
from ..durable import disk_full
from ..errors import FoedusError, InputError, ProtocolError, Refused, VerificationError
from ..federation import messages as m
from ..federation.modes import Sampler
from ..federation.pricing import price
from ..federation.rounds import RoundPlan
from ..federation.schema import question
from ..federation.study import Study, parse
from ..privacy.events import to_json
from ..privacy.noise import discrete_gaussian
from ..privacy.secagg.client import Silo
from ..privacy.secagg.codec import Whole
from ..privacy.secagg.journal import Journal
from ..privacy.secagg.keys import Context as BatchContext
from .counter import Counter
from .features import SIDES, Raw, Side
from .follower import Follower, digest
from .guard import Guard, Permit
from .home import Home
from .lineage import NodeLineage
from .revocations import REVOKED
from .trainer import Trainer, side_of
from .witnessing import LOG_CONTRADICTED

RECEIPT = "receipt"
LABEL_ONE_SIDED = "label.one-sided"
_ACTIONS = ("keys", "shares", "ready", "vector", "confirm", "answer", "receipt", "witness")
_MESSAGES = frozenset(f"query.{action}" for action in _ACTIONS)
_log = logging.getLogger("foedus.node")
# Refusals whose sentence is about the treaty and the study alone, so the server may read it.
_TELLABLE = frozenset(
    {
        "ALREADY_DONE",
        "APPROVAL_MISSING",
        "DELTA_OVER_CAP",
        "EPSILON_OVER_CAP",
        "K_TOO_LARGE",
        "K_UNDER_FLOOR",
        "MODEL_ALTERED",
        "MODE_NOT_PERMITTED",
        LOG_CONTRADICTED,
        m.LOG_SIZE_UNKNOWN,
        "NOISE_TOO_SMALL",
        NO_QUORUM,
        "NO_SET_UP",
        "OTHER_TREATY",
        "PURPOSE_NOT_PERMITTED",
        REVOKED,
        "SELF_APPROVAL",
        "STUDY_REJECTED",
        "SUM_ALTERED",
        "SUM_COULD_WRAP",
        "TOO_FEW_SILOS",
        "UNKNOWN_MESSAGE",
        "UNKNOWN_AUTHOR",
        "UNKNOWN_ROUND",
    }
)


class _Contributor(Protocol):
    """Checks 5 to 7 for one kind of study."""

    def dataset(self, side: Side, cohort: pd.DataFrame) -> Any:
        """5. What it returns has a `size`, the number of customers."""

    def contribution(self, plan: RoundPlan, dataset: Any, sent: npt.NDArray[np.float64]) -> Whole:
        """6 and 7, of what `dataset` returned."""


@dataclass
class _Run:
    permit: Permit
    trainer: _Contributor
    silo: Silo
    follower: Follower
    head: Checkpoint  # of the server's log, as it came with set-up or the last vector
    reserved: dict[int, int] = field(default_factory=dict)  # round -> its line in the ledger
    settled: dict[int, dict[str, object]] = field(default_factory=dict)
    cohorts: dict[int, str] = field(default_factory=dict)  # round -> its entry in the audit log, hashed
    boxes: str | None = None  # digest of the boxes taken
    given: _Given | None = None  # the last vector


@dataclass(frozen=True)
class _Given:
    """A vector that was given, and what it answered (`question` digests what it depends on).

    A coordinator that was killed asks again what it may have asked before. The same question gets the very
    same reply: the same ciphertext, so nothing new is learned and nothing new is spent, reserved or
    journalled. Another question for the round is refused as ever, by the journal. Only the last round's
    vector is kept, and in memory only. (Answers need no such memory: `Silo.answer` repeats itself.)
    """

    round: int
    question: str
    content: m.VectorReply
    data: bytes


class SiloApp:
    """One silo's side of every study. Call it with a Flower message and context."""

    def __init__(self, home: Home, *, sampler: Sampler = discrete_gaussian) -> None:
        self.home = home
        self.guard = Guard(home)
        self.journal = Journal(home.path / "journal.db")
        self.audit = self.guard.audit
        self.lineage = NodeLineage(home, self.guard.treaty, self.guard.treaty_digest)
        self._sampler = sampler
        self._runs: dict[tuple[str, int], _Run] = {}
        self._app = ClientApp()
        for action, step in (
            ("keys", self._keys),
            ("shares", self._shares),
            ("ready", self._ready),
            ("vector", self._vector),
            ("confirm", self._confirm),
            ("answer", self._answer),
            ("receipt", self._receipt),
            ("witness", self._witness),
        ):
            self._app.query(action)(self._guarded(action, step))

    def __call__(self, message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        if kind not in _MESSAGES:
            refusal = self._refuse(kind, Refused("UNKNOWN_MESSAGE", f"{kind!r} is no message of foedus"))
            return Message(refusal.record(), reply_to=message)
        return self._app(message, context)

    def _guarded(
        self, action: str, step: Callable[[Message], tuple[m.Content, bytes]]
    ) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            try:
                content, data = step(message)
            except FoedusError as error:
                if disk_full(error):
                    raise  # no verdict on the study: a "no" would keep this node out of the run for good
                content, data = self._refuse(action, error), b""
                self._note_refusal(action, message, content)
            except Exception:
                # A fault of ours: no reply but Flower's error; the traceback stays in this process' log.
                _log.exception("the node failed while answering %r", action)
                self.audit.append(self.home.party, "node.failed", action, {})
                raise
            record = content.record(data)
            sizes = {k: len(v) for k, v in record.config_records[m.RECORD].items() if isinstance(v, bytes)}
            self.audit.append(self.home.party, "sent", content.action, {"bytes": sum(sizes.values())})
            return Message(record, reply_to=message)

        return answer

    def _refuse(self, action: str, error: FoedusError) -> m.Refusal:
        code = error.code if isinstance(error, Refused) else _code(error)
        # What a peer sent may be quoted in it, lone surrogates and all: no text that can be logged or sent.
        reason, remedy = (
            text.encode(errors="backslashreplace").decode() for text in (error.message, error.remedy)
        )
        # A message that names a file of this node is about the node, not about what the server sent.
        about_peer = isinstance(error, VerificationError) and str(self.home.path) not in error.message
        tellable = about_peer or code in _TELLABLE
        said = reason if tellable else "the node refuses; its own audit log holds the reason"
        _log.warning("refused %r: %s: %s%s", action, code, reason, f" → {remedy}" if remedy else "")
        noted = {"code": code, "reason": reason} | ({"remedy": remedy} if remedy else {})
        self.audit.append(self.home.party, "refused", action, noted)
        try:
            size = self.guard.log_size
        except FoedusError:
            size = 0
        line = ""
        if code == NO_QUORUM:
            with suppress(FoedusError):
                size, line = self.guard.cosign()
        return m.Refusal(code=code, message=said[:2000], log_size=size, cosignature=line)

    def _note_refusal(self, action: str, message: Message, refusal: m.Refusal) -> None:
        """A refused run or round stands in the lineage too, as failed; what can't be read is of none."""
        if refusal.code in ("ALREADY_DONE", m.LOG_SIZE_UNKNOWN):
            return
        reason = f"{refusal.code}: {refusal.message}"
        try:
            if action == "keys":
                asked, _ = m.KeysRequest.read(message)
                envelope = Envelope.from_json(asked.study)
                if not self._of(asked.run):
                    purpose, began = parse(envelope).purpose, _began(asked)
                    self.lineage.refuse(envelope.digest, asked.run, purpose, began, reason)
            elif action == "vector":
                request, _ = m.VectorRequest.read(message)
                if not any(
                    request.round in run.reserved for run in self._of(request.run)
                ):  # else it was given
                    self.lineage.fail(request.run, request.round, reason)
        except FoedusError as error:
            _log.warning("a refusal is not in the lineage: %s", error.message)

    def _keys(self, message: Message) -> tuple[m.Content, bytes]:
        request, _ = m.KeysRequest.read(message)
        permit = self.guard.admit(request)
        study, treaty = permit.study, self.guard.treaty
        context = BatchContext(
            treaty=self.guard.treaty_digest,
            study=permit.digest,
            run=request.run,
            batch=request.batch,
            rounds=tuple(request.rounds),
        )
        # Before the table is read, which takes a while: asking again must cost next to nothing.
        self.journal.require_new(context.study, context.run, "set-up", context.batch)
        silo = Silo(self.home.party, self.guard.identity, self.guard.roster, context, self.journal)
        # A later batch of a run (a silo came back) need not read the table anew: nobody waits long for it.
        earlier = next((r for r in self._of(request.run) if r.permit.digest == permit.digest), None)
        kind: Any = Trainer if isinstance(study, Study) else Counter
        trainer: _Contributor = (
            kind(self.home, study, treaty.retention_days, self._sampler)
            if earlier is None
            else earlier.trainer
        )
        # A first look at the cohort, so that a table that can't serve is refused before keys are made.
        customers = 0
        for side in sorted({SIDES[task] for task in study.tasks}):
            found = trainer.dataset(side, self.guard.cohort(permit).frame)
            self.guard.check_size(found.size)
            customers += found.size
            if earlier is None and isinstance(study, Study):
                self._look_at_labels(permit, side, found, question(study.label))
        keys = silo.advertise()
        follower = Follower(study) if earlier is None else earlier.follower
        if earlier is None:
            self.lineage.accept(permit, _began(request), self._paid(permit))
        self._runs[(request.run, request.batch)] = _Run(permit, trainer, silo, follower, self.guard.kept())
        self.audit.append(
            self.home.party,
            "study.accepted",
            permit.digest,
            {
                "run": request.run,
                "author": study.author,
                "purpose": study.purpose,
                "mode": study.privacy.mode.name,
                "epsilon": price(study, treaty),
                "question": self.guard.describe(permit, customers),
            },
            sealed={"title": study.title},
            key=study_key(permit.digest),
        )
        stated = self.guard.state_ledger()
        size, line = self.guard.cosign()
        return m.KeysReply(keys=keys.to_json(), ledger=stated, log_size=size, cosignature=line), b""

    def _look_at_labels(self, permit: Permit, side: Side, found: Raw, asked: str) -> None:
        """Tell this silo's own people, and nobody else, if the label says the same of every customer.

        It may be so. It may as well be a misspelt value, or a table that ends too early. Whether it is one or the
        other depends on data, so the study goes on as if nothing had been seen.
        """
        bearing = found.labels[found.first]
        if (several := int(bearing.sum())) not in (0, found.size):
            return
        who = "no customer" if several == 0 else "every customer"
        _log.warning("%s on the %s side bears the label (%s): is it spelt as in the table?", who, side, asked)
        details = {"run": permit.run, "side": side, "bears": who, "label": asked}
        self.audit.append(self.home.party, LABEL_ONE_SIDED, permit.digest, details)

    def _shares(self, message: Message) -> tuple[m.Content, bytes]:
        request, _ = m.SharesRequest.read(message)
        run = self._run_in_force(request.run, request.batch)
        self.guard.require_quorum(request.cosigned, run.head)
        boxes = run.silo.share([Envelope.from_json(k) for k in request.keys], request.digests)
        return m.SharesReply(boxes=m.boxes_to_json(boxes)), b""

    def _ready(self, message: Message) -> tuple[m.Content, bytes]:
        request, _ = m.ReadyRequest.read(message)
        silo = self._run_in_force(request.run, request.batch).silo
        silo.receive(m.boxes_from_json(request.boxes))
        return m.ReadyReply(statement=silo.ready(request.participants).to_json()), b""

    def _vector(self, message: Message) -> tuple[m.Content, bytes]:
        request, data = m.VectorRequest.read(message)
        run = self._run(request.run, request.batch)
        guard, permit = self.guard, run.permit
        plan = permit.study.round(request.round, guard.treaty)
        model, rest = data[: 8 * permit.study.sent], data[8 * permit.study.sent :]
        if len(model) != 8 * permit.study.sent or (rest and request.previous is None):
            raise ProtocolError(f"round {plan.round}: the model has the wrong size")
        sent = np.frombuffer(model, "<f8").astype(np.float64)
        context = run.silo.context
        question, given = digest(model), run.given
        if given is not None and (given.round, given.question) == (plan.round, question):
            run.head = guard.advance_log(request.log)
            size, line = guard.cosign()
            seen = {"log_size": size, "cosignature": line}
            return given.content.model_copy(update=seen), given.data
        # Before anything is reserved, so that asking again can't eat the budget.
        self.journal.require_new(context.study, context.run, "upload", plan.round)
        guard.check_approvals(permit)  # 1
        before = guard.kept()
        run.head = guard.advance_log(request.log)  # 2
        guard.revocations.require_none(permit.digest)  # 1 again, by what the log says now
        guard.require_quorum(request.cosigned, before, run.head)
        size, line = guard.cosign()
        if request.boxes is not None:
            boxes = digest(canonical(request.boxes))
            if boxes != run.boxes:  # a coordinator that was killed does not know whether they came
                run.silo.receive(m.boxes_from_json(request.boxes))
                run.boxes = boxes
        if request.ready is not None:
            run.silo.take_ready(_by_silo(request.ready))
        self._take_sum(request.run, request.previous, rest)
        self._require_logged(request.run, request.previous)  # 2, that it is the log of now
        if not np.isfinite(sent).all():  # also where the round does not look at them
            raise InputError(f"round {plan.round}: the model is not finite")
        run.follower.check(plan.round, sent)
        cohort = guard.cohort(permit)  # 3
        run.cohorts[plan.round] = guard.note_cohort(permit, plan.round, cohort)
        side = side_of(plan)
        ref = guard.reserve(permit, plan)  # 4
        try:
            dataset = run.trainer.dataset(side, cohort.frame)  # 5
            guard.check_size(dataset.size)
            self.lineage.prepare(permit, plan, side, guard.noted, dataset)
            vector = run.trainer.contribution(plan, dataset, sent)  # 6, 7
            masked, header = run.silo.mask(plan.round, vector, plan.ring, task=plan.task, model=digest(model))
        except BaseException:
            if self.journal.done(context.study, context.run, "upload", plan.round) is None:
                guard.budget.abort(ref)
            raise
        run.reserved[plan.round] = ref
        # From here on it counts as uploaded: the reservation stands whatever becomes of the reply.
        reply = m.VectorReply(header=header.to_json(), log_size=size, cosignature=line)
        run.given = _Given(plan.round, question, reply, bytes(masked))
        return reply, run.given.data

    def _take_sum(self, run: str, notice: m.SumNotice | None, data: bytes) -> None:
        """The sum opened last, as the server shows it: checked, and the model followed, before anything else is given.

        A silo that had no part in that round can't check it; what follows from that, see `Follower`.
        """
        if notice is None:
            if data:
                raise ProtocolError("more data than the message says")
            return
        found = self._runs.get((run, notice.batch))
        if found is None:
            return
        plan = found.permit.study.round(notice.round, self.guard.treaty)
        total = plan.ring.unwrap(plan.ring.unpack(data, plan.dimension))
        if notice.round not in found.reserved:
            return
        witness = plan.mode.witness
        try:
            if witness == "checked":
                found.silo.verify_sum(notice.round, notice.survivors, total, int(notice.check))
            else:
                found.silo.take_unchecked(notice.round, notice.survivors, total)
        except VerificationError as error:
            raise Refused("SUM_ALTERED", error.message) from error
        study, name = found.permit.digest, digest(total.astype("<i8").tobytes())
        if self.journal.done(study, run, witness, notice.round) is None:
            self.journal.once(study, run, witness, notice.round, name)
        found.follower.advance(notice.round, total, len(notice.survivors))

    def _require_logged(self, run: str, notice: m.SumNotice | None) -> None:
        """The log that was shown names the sum that was taken: it is no older than that (`LoggedSums`)."""
        found = None if notice is None else self._runs.get((run, notice.batch))
        if notice is None or found is None or notice.round not in found.reserved:
            return
        study, witness = found.permit.digest, found.permit.study.privacy.mode.witness
        name = self.journal.done(study, run, witness, notice.round)
        self.guard.sums.require(study, run, notice.round, name or "")

    def _check_survivors(self, run: _Run, number: int, survivors: list[str]) -> None:
        least = self.guard.treaty.min_silos
        if len(set(survivors)) < least:
            raise Refused(
                "TOO_FEW_SILOS", f"a sum over fewer than {least} silos is not opened under this treaty"
            )
        if number not in run.reserved:
            raise ProtocolError(f"round {number}: this silo uploaded nothing in this batch")

    def _confirm(self, message: Message) -> tuple[m.Content, bytes]:
        request, _ = m.ConfirmRequest.read(message)
        run = self._run_in_force(request.run, request.batch)
        self._check_survivors(run, request.round, request.survivors)
        return m.ConfirmReply(statement=run.silo.confirm(request.round, request.survivors).to_json()), b""

    def _answer(self, message: Message) -> tuple[m.Content, bytes]:
        request, _ = m.AnswerRequest.read(message)
        run = self._run_in_force(request.run, request.batch)
        self._check_survivors(run, request.round, request.survivors)
        self.guard.require_quorum(request.cosigned, run.head)
        statement, seeds, mask_keys = run.silo.answer(
            request.round,
            request.survivors,
            answering=request.answering,
            confirmed=None if request.confirmed is None else _by_silo(request.confirmed),
        )
        if request.round not in run.settled:  # asked again, with fewer to answer, it costs nothing more
            plan = run.permit.study.round(request.round, self.guard.treaty)
            self.guard.settle(run.reserved[request.round], plan, request.survivors)
            event = plan.cost(len(request.survivors), self.guard.treaty)
            run.settled[request.round] = {"round": request.round, "task": plan.task, **to_json(event)}
        self.lineage.settle(run.permit, request.round, request.survivors)
        reply = m.AnswerReply(
            statement=statement.to_json(),
            seeds=m.boxes_to_json(seeds),
            mask_keys=m.boxes_to_json(mask_keys),
        )
        return reply, b""

    def _receipt(self, message: Message) -> tuple[m.Content, bytes]:
        request, data = m.ReceiptRequest.read(message)
        found = self._of(request.run)
        if not found:
            raise Refused("NO_SET_UP", f"run {request.run} was never set up with this node")
        head = self.guard.advance_log(request.log)
        self._take_sum(request.run, request.previous, data)
        permit = found[-1].permit
        delta, witness = permit.study.privacy.delta, permit.study.privacy.mode.witness
        paid = self._paid(permit)
        receipt = Envelope(
            RECEIPT,
            {
                "silo": self.home.party,
                "treaty": self.guard.treaty_digest,
                "study": permit.digest,
                "run": request.run,
                "rounds": [settled for run in found for _, settled in sorted(run.settled.items())],
                "epsilon": paid,
                "delta": delta,
                "sums": {
                    str(number): sha
                    for number, sha in self.journal.steps(permit.digest, request.run, witness).items()
                },
                "cohorts": {
                    str(number): entry for run in found for number, entry in sorted(run.cohorts.items())
                },
                "ledger": self.guard.state_ledger(),
                "log": {"size": head.size, "root": head.root.hex()},
            },
        ).signed(self.home.party, self.guard.identity)
        self.lineage.end(request.run, paid)
        size, line = self.guard.cosign()
        return m.ReceiptReply(receipt=receipt.to_json(), log_size=size, cosignature=line), b""

    def _witness(self, message: Message) -> tuple[m.Content, bytes]:
        request, _ = m.WitnessRequest.read(message)
        self.guard.advance_log(request.log)
        size, line = self.guard.cosign()
        return m.WitnessReply(log_size=size, cosignature=line), b""

    def _of(self, run: str) -> list[_Run]:
        """The batches of a run, in order."""
        return [found for (name, _), found in sorted(self._runs.items()) if name == run]

    def _run(self, run: str, batch: int) -> _Run:
        found = self._runs.get((run, batch))
        if found is None:
            raise Refused(
                "NO_SET_UP", f"run {run}, batch {batch}: not set up with this node since it started"
            )
        return found

    def _run_in_force(self, run: str, batch: int) -> _Run:
        """As `_run`, for the messages that bring no log: what was taken back meanwhile gets no share and opens no sum."""
        found = self._run(run, batch)
        self.guard.revocations.require_none(found.permit.digest)
        return found

    def _paid(self, permit: Permit) -> float:
        return self.guard.ledger.epsilon(permit.study.privacy.delta, study=permit.digest)


def _began(request: m.KeysRequest) -> datetime:
    """When the run began, as the server's log says."""
    record = parse_json(request.started.body)
    try:
        moment = datetime.fromisoformat(record["time"])
        if moment.utcoffset() is not None:
            return moment
    except (KeyError, TypeError, ValueError):
        pass
    raise ProtocolError(f"run {request.run}: the log does not say when it started")


def _by_silo(documents: list[m.Json]) -> dict[str, Envelope]:
    """Signed statements by the silo they name; a name twice is one statement too few."""
    envelopes = [Envelope.from_json(document) for document in documents]
    return {str(envelope.payload.get("silo")): envelope for envelope in envelopes}


def _code(error: FoedusError) -> str:
    names = {"ProtocolError": "PROTOCOL", "VerificationError": "VERIFICATION", "InputError": "INPUT"}
    return names.get(type(error).__name__, "REFUSED")
