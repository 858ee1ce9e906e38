"""A server in a test's hands: it asks single nodes anything, and looks at what they say, keep and write down."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from flwr.app import Message, RecordDict

from foedus.clients.app import SiloApp
from foedus.clients.home import Home
from foedus.compliance.auditlog.checkpoint import Checkpoint
from foedus.compliance.auditlog.cosignature import cosign, with_lines
from foedus.compliance.auditlog.log import AuditLog
from foedus.demo.simulate import prepare
from foedus.demo.world import World
from foedus.documents import Envelope, b64
from foedus.federation import messages as m
from foedus.federation.secure_sum import Sum
from foedus.federation.study import Draft
from foedus.federation.tasks import train
from foedus.privacy.ledger import Ledger
from foedus.privacy.secagg.aggregator import Aggregator
from foedus.privacy.secagg.keys import Context, Roster
from foedus.server.release import sum_digest

SILENT = "the node refuses; its own audit log holds the reason"


@dataclass(frozen=True)
class Said:
    """A node's reply: the action, the refusal if it is one, and the raw numbers beside it."""

    action: str
    refusal: m.Refusal | None
    data: bytes
    message: Message


class Rehearsal:
    """An approved and started study, and four nodes waiting for its first message."""

    def __init__(self, world: World, draft: Draft, **options: Any) -> None:
        self.world = world
        self.grid, self.case = prepare(world, draft, **options)
        self.silos = list(world.homes)
        self._cosigned: tuple[Checkpoint, str] | None = None
        study, treaty = self.case.study, world.treaty
        self.rounds = list(range(1, study.rounds + 1))
        roster = Roster({p.name: p.signing_key for p in treaty.parties}, treaty.colluders)
        context = Context(
            world.treaty_envelope.digest,
            self.case.study_envelope.digest,
            self.case.run,
            0,
            tuple(self.rounds),
        )
        self.aggregator = Aggregator(roster, context)

    # ── asking ───────────────────────────────────────────────────────────────────────────────────

    def send(self, silo: str, kind: str, record: RecordDict) -> Said:
        """Any record as a message of any kind."""
        message = Message(record, dst_node_id=100 + self.silos.index(silo), message_type=kind)
        (identifier,) = self.grid.push_messages([message])
        (reply,) = self.grid.pull_messages([identifier])
        assert not reply.has_error(), "the node crashed"
        fields = reply.content.config_records[m.RECORD]
        return Said(str(fields["action"]), m.refusal_in(reply), bytes(fields["data"]), reply)

    def ask(self, silo: str, content: m.Content, data: bytes = b"") -> Said:
        said = self.send(silo, f"query.{content.action}", content.record(data))
        if said.refusal is not None and said.refusal.log_size > self.case.heads.get(silo, 0):
            self.case.seen(silo, said.refusal.log_size)  # a no tells it, too
        return said

    def keys_request(self, silo: str, **changes: Any) -> m.KeysRequest:
        """A good first message; `changes` replace fields."""
        return self.case.keys_request(silo, 0, self.rounds).model_copy(update=changes)

    def shares_request(self, keys: list[m.Json] | None = None) -> m.SharesRequest:
        if keys is None:
            keys = [e.to_json() for e in self.aggregator.advertisements]
        return m.SharesRequest(run="1", batch=0, keys=keys, cosigned=self.cosigned())

    def cosigned(self) -> str:
        """The log's head of now, cosigned by everybody, seen or not: nobody here misses a quorum unless a test wants it."""
        log, origin = self.case.log, self.case.origin
        head = Checkpoint(origin, log.size, log.root())
        if self._cosigned is None or self._cosigned[0] != head:
            keys = {silo: Home.load(path).identity() for silo, path in self.world.homes.items()}
            lines = {silo: cosign(head, silo, key, 1_790_000_000) for silo, key in keys.items()}
            self._cosigned = head, with_lines(head.sign(origin, self.case.key), lines)
        return self._cosigned[1]

    def vector_request(
        self, silo: str, number: int = 1, *, boxes: bool = True, **changes: Any
    ) -> m.VectorRequest:
        dealt = m.boxes_to_json(self.aggregator.boxes_for(silo)) if boxes else None
        request = m.VectorRequest(
            run="1", batch=0, round=number, boxes=dealt, log=self.case.head(silo), cosigned=self.cosigned()
        )
        return request.model_copy(update=changes)

    def answer_request(self, number: int = 1, survivors: list[str] | None = None) -> m.AnswerRequest:
        told = survivors or self.silos
        return m.AnswerRequest(
            run="1", batch=0, round=number, survivors=told, answering=told, cosigned=self.cosigned()
        )

    @property
    def weights(self) -> bytes:
        """What a node is sent before the first round: the initial weights, and what stands in for statistics."""
        return train.State.start(self.case.study).sent.astype("<f8").tobytes()

    def set_up(self) -> None:
        """Both set-up trips, with every silo."""
        for silo in self.silos:
            reply, _ = m.KeysReply.read(self.ask(silo, self.keys_request(silo)).message)
            self.case.seen(silo, reply.log_size)
            self.aggregator.add_advertisement(silo, Envelope.from_json(reply.keys))
        for silo in self.silos:
            answer, _ = m.SharesReply.read(self.ask(silo, self.shares_request()).message)
            self.aggregator.add_boxes(silo, m.boxes_from_json(answer.boxes))

    def play_round(self, number: int, data: bytes, *, silos: list[str] | None = None, **request: Any) -> Sum:
        """A whole round, everybody answering; `request` goes into the vector requests."""
        plan = self.case.study.round(number, self.world.treaty)
        model = data[: len(self.weights)]
        self.aggregator.open_round(
            number, plan.dimension, plan.task, plan.ring, model=hashlib.sha256(model).hexdigest()
        )
        for silo in silos or self.silos:
            said = self.ask(silo, self.vector_request(silo, number, **request), data)
            reply, words = m.VectorReply.read(said.message)
            self.case.seen(silo, reply.log_size)
            self.aggregator.add_vector(number, silo, words, Envelope.from_json(reply.header))
        survivors = list(self.aggregator.survivors(number))
        for silo in self.aggregator.ask(number):
            answer, _ = m.AnswerReply.read(self.ask(silo, self.answer_request(number, survivors)).message)
            seeds, keys = (m.boxes_from_json(boxes, length=32) for boxes in (answer.seeds, answer.mask_keys))
            self.aggregator.add_answer(number, silo, Envelope.from_json(answer.statement), seeds, keys)
        opened = self.aggregator.total(number)
        result = Sum(plan, 0, opened.total, opened.check, tuple(survivors), {}, model)
        self.log_sum(result)
        return result

    def log_sum(self, result: Sum) -> None:
        """The entry that the coordinator makes of each sum."""
        told = {"round": result.round, "task": result.plan.task, "survivors": list(result.survivors)}
        self.case.record("round.summed", {**told, "sum": sum_digest(result)}, once=("round",))

    def restart(self, silo: str) -> SiloApp:
        """The node's process ends and another begins, over the same directory."""
        app = SiloApp(Home.load(self.world.homes[silo]))
        self.grid._apps[100 + self.silos.index(silo)] = app
        return app

    # ── looking ──────────────────────────────────────────────────────────────────────────────────

    def home(self, silo: str) -> Path:
        return self.world.homes[silo]

    def journal(self, silo: str) -> list[tuple[str, Any]]:
        """(action, details) of the node's own audit log."""
        log = AuditLog(self.home(silo) / "audit.db", f"foedus node {silo}", create=False)
        return [(e.record["action"], e.record["details"]) for e in log.entries()]

    def last_refusal(self, silo: str) -> dict[str, Any]:
        """What the node itself wrote down of the message it refused last; nothing but the refusal followed."""
        entries = [entry for entry in self.journal(silo) if entry[0] != "sent"]
        assert entries[-1][0] == "refused"
        return dict(entries[-1][1])

    def spent(self, silo: str) -> float:
        return Ledger(self.home(silo) / "ledger.db").epsilon(self.case.study.privacy.delta)

    def numbers(self, silo: str) -> set[str]:
        """What a server must never hear: counts of rows, customers, and of the node's cohorts."""
        frame = pd.read_parquet(self.home(silo) / "orders.parquet")
        counts = {len(frame), frame.iloc[:, 0].nunique()}
        app = self.grid._apps[100 + self.silos.index(silo)]
        for run in app._runs.values():  # type: ignore[attr-defined]
            counts |= {len(data.customers) for _, data in run.trainer._cached.values()}
        return {str(n) for n in counts}


def history_of(log: AuditLog, since: int) -> m.LogHistory:
    """What a server shows of a log's entries from `since` on."""
    edge = [b64(h) for h in log.edge(since)]
    return m.LogHistory(edge=edge, entries=[e.body.decode() for e in log.entries(since)])


def numbers_in(text: str) -> set[str]:
    """The whole numbers that a sentence states; digits within a digest (12 hex digits or more) state nothing."""
    return set(re.findall(r"\d+", re.sub(r"\b[0-9a-f]{12,}\b", "", text)))


def assert_refused(
    play: Rehearsal, silo: str, said: Said, code: str, *, before: float | None = None
) -> m.Refusal:
    """The node said no with `code` and nothing more: no vector, no budget, no number of its data; and noted why."""
    assert said.refusal is not None, f"the node answered with {said.action!r}"
    assert (said.action, said.refusal.code, said.data) == ("refusal", code, b"")
    assert (play.last_refusal(silo)["code"], bool(play.last_refusal(silo)["reason"])) == (code, True)
    assert play.spent(silo) == (0.0 if before is None else before)
    told = said.refusal.message
    assert not numbers_in(told) & play.numbers(silo)
    assert str(play.home(silo)) not in told
    return said.refusal


def floats(values: Any) -> bytes:
    return np.asarray(values, "<f8").tobytes()
