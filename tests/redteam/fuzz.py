"""Check 13: malformed, oversized, non-finite and truncated messages, to a real node and to the server.

A node is brought into each state of a run and sent thousands of bad messages in it. To each it must answer
with a well-formed refusal (or, where a mutation happened to be valid, with a reply); never with Flower's
error or an exception; with nothing of the silo's in it; nothing may be spent; and a round must work after.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from redteam.crypt import secrets_of
from redteam.mutations import KINDS, Mutator, contents, example
from redteam.node_support import VICTIM, node, original, quiet
from support.nodes import Rehearsal, numbers_in
from support.orders import copy_of, make_draft
from support.sums import scratch

from foedus.clients.follower import digest
from foedus.compliance.auditlog.checkpoint import open_checkpoint
from foedus.compliance.auditlog.cosignature import require_quorum
from foedus.documents import Envelope
from foedus.errors import FoedusError
from foedus.federation import messages as m
from foedus.federation.rounds import RoundPlan
from foedus.federation.secure_sum import Sum
from foedus.federation.tasks import train
from foedus.privacy.ledger import Ledger

SEED = 20_260_101
CASES = 10_000
STATES = ("fresh", "keys", "shares", "uploaded", "answered")
_CODE = re.compile(r"[A-Z_]{3,64}")
_FOREIGN = (b"Traceback", b".py", b"site-packages", b"/dev/shm", b"/tmp/", b".db", b"sqlite", b"pydantic")


@dataclass
class Stand:
    """A real node in one state of a run, and what may never be heard of it."""

    state: str
    folder: Path
    play: Rehearsal
    needles: list[tuple[str, bytes]] = field(default_factory=list)
    numbers: frozenset[str] = frozenset()
    valid: dict[str, tuple[Any, bytes, bytes]] = field(
        default_factory=dict
    )  # action -> JSON, its bytes, data
    before: Any = None
    model: train.State | None = None
    last: Sum | None = None  # the sum opened last

    @classmethod
    def build(cls, state: str) -> Stand:
        folder = scratch()
        stand = cls("fresh", folder, Rehearsal(copy_of(original(), folder / "world"), make_draft()))
        stand.model = train.State.start(stand.play.case.study)
        while stand.state != state:
            stand.advance()
        stand.look()
        return stand

    def advance(self) -> None:
        """What an honest run does next; after the last state, the whole of round 2."""
        play, at = self.play, STATES.index(self.state)
        play.case.seen(VICTIM, node(play, VICTIM).guard.log_size)
        if at == 0:
            for silo in play.silos:
                reply, _ = m.KeysReply.read(play.ask(silo, play.keys_request(silo)).message)
                play.case.seen(silo, reply.log_size)
                play.aggregator.add_advertisement(silo, Envelope.from_json(reply.keys))
        elif at == 1:
            for silo in play.silos:
                answer, _ = m.SharesReply.read(play.ask(silo, play.shares_request()).message)
                play.aggregator.add_boxes(silo, m.boxes_from_json(answer.boxes))
        elif at == 2:
            self.upload(1)
        elif at == 3:
            self.answer(1)
        else:
            self.upload(2)
            self.answer(2)
        self.state = STATES[min(at + 1, len(STATES) - 1)]

    @property
    def data(self) -> bytes:
        """The model as it is now, and behind it the sum opened last."""
        assert self.model is not None
        shown = b"" if self.last is None else self.last.notice()[1]
        return self.model.sent.astype("<f8").tobytes() + shown

    def vector_request(self, silo: str, number: int, *, boxes: bool) -> m.VectorRequest:
        previous = None if self.last is None else self.last.notice()[0]
        return self.play.vector_request(silo, number, boxes=boxes, previous=previous)

    def upload(self, number: int) -> None:
        """Every node uploads round `number`; the aggregator takes all vectors."""
        play, plan = self.play, self.plan(number)
        play.aggregator.open_round(
            number, plan.dimension, plan.task, plan.ring, model=digest(self.data[: len(play.weights)])
        )
        for silo in play.silos:
            said = None
            for boxes in (
                (True, False) if number == 1 else (False,)
            ):  # a refused message may have used the boxes up
                said = play.ask(silo, self.vector_request(silo, number, boxes=boxes), self.data)
                if said.refusal is None:
                    break
            assert said is not None and said.refusal is None, (silo, said)
            reply, words = m.VectorReply.read(said.message)
            play.case.seen(silo, reply.log_size)
            play.aggregator.add_vector(number, silo, words, Envelope.from_json(reply.header))

    def answer(self, number: int) -> None:
        """Every node answers, and the sum is opened."""
        play = self.play
        survivors = play.aggregator.survivors(number)
        for silo in play.aggregator.ask(number):
            asked = play.answer_request(number, list(survivors))
            reply, _ = m.AnswerReply.read(play.ask(silo, asked).message)
            shares = [m.boxes_from_json(b) for b in (reply.seeds, reply.mask_keys)]
            play.aggregator.add_answer(number, silo, Envelope.from_json(reply.statement), *shares)
        opened = play.aggregator.total(number)
        self.last = Sum(self.plan(number), 0, opened.total, opened.check, survivors, {}, b"")
        play.log_sum(self.last)
        assert self.model is not None
        self.model = train.advance(self.model, number, opened.total, play.case.study, len(survivors))

    def plan(self, number: int) -> RoundPlan:
        return self.play.case.study.round(number, self.play.world.treaty)

    def spent(self) -> Any:
        ledger = Ledger(self.play.home(VICTIM) / "ledger.db")
        return ledger.epsilon(1e-5), len(ledger.events())

    def refresh(self) -> None:
        """The messages that are valid now, as JSON."""
        play = self.play
        number = 2 if self.state == "answered" else 1
        requests: list[tuple[m.Content, bytes]] = [
            (play.keys_request(VICTIM), b""),
            (self.vector_request(VICTIM, number, boxes=self.state == "shares"), self.data),
            (play.answer_request(number), b""),
            (m.ConfirmRequest(run="1", batch=0, round=number, survivors=play.silos), b""),
            self._receipt_request(),
            (m.WitnessRequest(log=play.case.head(VICTIM)), b""),
        ]
        if self.state != "fresh":
            requests.append((play.shares_request(), b""))
        if self.state == "shares":  # these nodes' graph is complete: such a message is never asked of them
            boxes = m.boxes_to_json(play.aggregator.boxes_for(VICTIM))
            ready = m.ReadyRequest(run="1", batch=0, boxes=boxes, participants=play.silos)
            requests.append((ready, b""))
        trees = {c.action: (c.model_dump(mode="json"), data) for c, data in requests}
        self.valid = {action: (tree, m.canonical(tree), data) for action, (tree, data) in trees.items()}

    def _receipt_request(self) -> tuple[m.Content, bytes]:
        previous, shown = (None, b"") if self.last is None else self.last.notice()
        return m.ReceiptRequest(run="1", previous=previous, log=self.play.case.head(VICTIM)), shown

    def look(self) -> None:
        """Note what may not be heard of the node from here on, and what may not change."""
        play, home = self.play, self.play.home(VICTIM)
        app = node(play, VICTIM)
        secret = [app.guard.identity._key.private_bytes_raw()]
        for run in app._runs.values():
            secret += secrets_of(run.silo)
        found = {form for s in secret for form in (s, base64.b64encode(s), s.hex().encode())}
        lines = (home / "fleet.key").read_bytes().splitlines()[1:-1]
        self.needles = [("key material", n) for n in (*found, *(n for n in lines if len(n) > 40))]
        self.needles += [("a path", str(home).encode()), *(("an inside", n) for n in _FOREIGN)]
        self.numbers = frozenset(n for n in play.numbers(VICTIM) if len(n) > 1)
        self.before = self.spent()
        play.case.seen(VICTIM, app.guard.log_size)
        self.refresh()

    def close(self) -> None:
        shutil.rmtree(self.folder)


@dataclass
class Findings:
    """What thousands of bad messages came to."""

    cases: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    rebuilt: int = 0
    by_state: Counter[str] = field(default_factory=Counter)

    def fault(self, what: str, case: str) -> None:
        self.faults.append(f"{what} (case {self.cases}: {case})")


def _cases(stand: Stand, mutator: Mutator) -> tuple[str, str, RecordDict]:
    """One bad message: what was done to it, its Flower type, and its record."""
    rng = mutator.rng
    names = list(stand.valid)
    likely = {
        "fresh": "keys",
        "keys": "shares",
        "shares": "vector",
        "uploaded": "answer",
        "answered": "vector",
    }
    action = likely[stand.state] if rng.random() < 0.4 else rng.choice(names)
    tree, good, data = stand.valid[action]
    roll = rng.random()
    kind = f"query.{action}"

    def record(action: str, body: bytes, data: bytes) -> RecordDict:
        return RecordDict({m.RECORD: ConfigRecord({"action": action, "body": body, "data": data})})

    if roll < 0.50:
        body = mutator.body(tree)
        while _is_good(stand, action, body):
            body = mutator.body(tree)
        return "fields", kind, record(action, body, data)
    if roll < 0.64:
        return "bytes", kind, record(action, mutator.bytes(good), data)
    if roll < 0.74:
        _, good, data = stand.valid["vector"]
        return "data", "query.vector", record("vector", good, _bad_data(mutator, stand, data))
    if roll < 0.82:
        return "shape", kind, mutator.record(action, good, data)
    if roll < 0.87:
        return "noise", kind, record(action, mutator.noise(), mutator.noise())
    if roll < 0.91:
        return (
            "type",
            rng.choice((*KINDS, *(f"query.{n}" for n in names if n != action))),
            record(action, good, data),
        )
    if roll < 0.94:
        return "action", kind, record(rng.choice((*_others(action), "", "x" * 500)), good, data)
    other = rng.choice(contents())
    kind = f"query.{other.action}".replace(
        "-", "_"
    )  # other types Flower refuses to parse: see fuzz_transport
    return other.__name__, kind, record(other.action, m.canonical(example(other, rng)), data)


def _others(action: str) -> list[str]:
    return [c.action for c in contents() if c.action != action]


def _bad_data(mutator: Mutator, stand: Stand, data: bytes) -> bytes:
    """Numbers that are none, too few, too many. (Finite weights of the right size are no bad message.)"""
    rng = mutator.rng
    weights = np.zeros(stand.play.case.study.parameters)
    weights[rng.randrange(weights.size)] = rng.choice((np.nan, -np.nan, np.inf, -np.inf))
    return rng.choice(
        [
            lambda: weights.astype("<f8").tobytes() + data[8 * weights.size :],
            lambda: weights.astype("<f8").tobytes() + data[8 * weights.size :],
            lambda: weights.astype("<f8").tobytes(),
            lambda: data[: 8 * weights.size] + rng.randbytes(len(data) - 8 * weights.size or 8),
            lambda: data[: rng.randrange(len(data))],
            lambda: data + rng.randbytes(rng.randrange(1, 99)),
            lambda: rng.randbytes(rng.randrange(len(data))),
            lambda: bytes(1000 * len(data)),
        ]
    )()


def _oversized(stand: Stand) -> Iterator[tuple[str, str, RecordDict]]:
    """Messages of tens of megabytes."""
    for action, (_, good, data) in stand.valid.items():
        many = b'{"survivors":[' + b"0," * 2_000_000 + b"0]," + good[1:]
        for body, rest in (
            (b" " * (m.MAX_BODY + 1) + good, data),
            (many, data),
            (good[:-1], bytes(48 << 20)),
        ):
            record = ConfigRecord({"action": action, "body": body, "data": rest})
            yield "size", f"query.{action}", RecordDict({m.RECORD: record})


def _is_good(stand: Stand, action: str, body: bytes) -> bool:
    """Whether a mutation says nothing but what a server may choose to say: another round, batch, set of silos."""
    tree = stand.valid[action][0]
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return False
    silos, total = stand.play.silos, len(stand.play.rounds)
    if not isinstance(told, dict):
        return False
    told = {name: None for name, value in tree.items() if value is None} | told  # may be left out
    if set(told) | {"boxes"} != set(tree) | {"boxes"}:
        return False
    changed = {
        name for name in told if told[name] != tree.get(name) or type(told[name]) is not type(tree.get(name))
    }
    free = {
        "batch": lambda v: isinstance(v, int) and v >= 0,
        "round": lambda v: v in range(1, total + 1),
        "rounds": lambda v: isinstance(v, list) and all(r in range(1, total + 1) for r in v),
        "survivors": lambda v: isinstance(v, list) and all(s in silos for s in v) and len(v) > 2,
        "answering": lambda v: isinstance(v, list) and all(s in silos for s in v) and len(v) > 2,
        "participants": lambda v: isinstance(v, list) and all(s in silos for s in v) and len(v) > 2,
        "digests": lambda v: v is None,
        "ready": lambda v: v is None,
        "confirmed": lambda v: v is None,
        "previous": lambda v: v is None or _shows_the_same(v, tree["previous"]),
        "boxes": lambda v: v is None or isinstance(v, dict),
        "keys": lambda v: isinstance(v, list) and len(v) > 2 and all(k in tree["keys"] for k in v),
        "approvals": lambda v: isinstance(v, list) and all(a in tree["approvals"] for a in v),
        "cosigned": lambda v: _still_cosigned(stand, v, tree["cosigned"]),
    }
    return all(name in free and free[name](told[name]) for name in changed)


def _still_cosigned(stand: Stand, note: Any, good: str) -> bool:
    """Whether a note is the good one, but for lines that nobody needs."""
    treaty = stand.play.world.treaty
    try:
        require_quorum(note, treaty.witnesses, treaty.quorum)
        head = open_checkpoint(note, treaty.coordinator.origin, treaty.coordinator.signing_key)
    except (FoedusError, AttributeError, TypeError):
        return False
    return head == open_checkpoint(good, treaty.coordinator.origin, treaty.coordinator.signing_key)


def _shows_the_same(one: Any, other: Any) -> bool:
    """Whether two notices say the same of a sum, in whatever order."""
    forms = [
        {**n, "survivors": sorted(map(str, n["survivors"]))}
        if isinstance(n, dict) and isinstance(n.get("survivors"), list)
        else n
        for n in (one, other)
    ]
    return bool(forms[0] == forms[1])


def _said(sent: RecordDict) -> bytes:
    """What a message held: a refusal may repeat it."""
    return b"".join(
        v if isinstance(v, bytes) else str(v).encode(errors="replace")
        for r in sent.config_records.values()
        for v in r.values()
    )


def _judge(stand: Stand, found: Findings, what: str, sent: RecordDict, reply: Message) -> bool:
    """Look at a reply with everything a node must not say in mind; whether the run is where it was."""
    record = reply.content.config_records.get(m.RECORD) if reply.has_content() else None
    if record is None or len(reply.content) != 1 or set(record) != {"action", "body", "data"}:
        found.fault("no reply of ours", what)
        return True
    body, data = bytes(record["body"]), bytes(record["data"])
    if record["action"] != m.Refusal.action:
        found.accepted[f"{what}: {record['action']}"] += 1
        expected = {c.action for c in contents()} & {str(record["action"])}
        if not expected:
            found.fault(f"a reply of an unknown action {record['action']!r}", what)
        if record["action"] not in (m.ReceiptReply.action, m.WitnessReply.action):
            return False
        stand.play.case.seen(VICTIM, int(json.loads(body)["log_size"]))  # these move nothing on
        stand.refresh()
        return True
    try:
        refusal = m.Refusal.read(reply)[0]
    except FoedusError as error:
        found.fault(f"a malformed refusal: {error.message}", what)
        return True
    found.codes[refusal.code] += 1
    node(
        stand.play, VICTIM
    ).guard.heads.settle()  # as an officer might; else the node would look at nothing more
    if data or not _CODE.fullmatch(refusal.code):
        found.fault(f"a refusal with data or without a code: {refusal.code!r}", what)
    for kind, needle in stand.needles:
        if needle in body and needle not in _said(sent):
            found.fault(f"{kind} in a refusal: {body[:200]!r}", what)
    # where in the message a parser stopped is about the message
    about = re.sub(
        r"line \d+ column \d+ \(char \d+\)|position \d+(-\d+)?|at most \d+ |of \d+ bytes|^\d+ bytes where",
        "",
        refusal.message,
    )
    told = numbers_in(about) & stand.numbers
    if told and told - set(re.findall(r"\d+", _said(sent).decode(errors="replace"))):
        found.fault(f"a number of the silo's data in {refusal.message!r}", what)
    if refusal.log_size != stand.play.case.heads.get(VICTIM, 0):
        stand.play.case.seen(VICTIM, refusal.log_size)
        stand.refresh()
    return True


def bombard(stand: Stand, cases: Any, found: Findings) -> Stand:
    """Send bad messages; a stand whose state a valid one has moved on is built anew."""
    app, context = node(stand.play, VICTIM), stand.play.grid._contexts[100 + stand.play.silos.index(VICTIM)]
    for place in range(10**9):
        case = cases(stand, place)
        if case is None:
            return stand
        what, kind, sent = case
        found.cases += 1
        message = Message(sent, dst_node_id=100, message_type="query")
        message.metadata.__dict__["_message_type"] = (
            kind  # Flower checks it where it is made: a liar does not
        )
        message.metadata.__dict__["_message_id"] = f"{found.cases:x}"
        try:
            reply = app(message, context)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            found.fault(f"the node raised {type(error).__name__}: {str(error)[:150]}", f"{what} {kind}")
            continue
        if not _judge(stand, found, f"{what} {kind}", sent, reply):
            stand = _renewed(stand, found)
            app, context = node(stand.play, VICTIM), stand.play.grid._contexts[100]
    return stand


def _renewed(stand: Stand, found: Findings) -> Stand:
    found.rebuilt += 1
    stand.close()
    return Stand.build(stand.state)


def fuzz_node(cases: int = CASES, seed: int = SEED, states: Sequence[str] = STATES) -> Findings:
    """`cases` bad messages over the states of a real node; after each state the run goes on as if nothing was."""
    found, mutator = Findings(), Mutator(seed)
    with quiet():
        stand = Stand.build(states[0])
        for state in states:
            count, start = -(-cases // len(states)), found.cases
            stand = bombard(stand, lambda s, i, n=count: _cases(s, mutator) if i < n else None, found)
            large = list(_oversized(stand)) if state == "shares" else []
            stand = bombard(stand, lambda s, i, big=large: big[i] if i < len(big) else None, found)
            found.by_state[state] = found.cases - start
            if stand.spent() != stand.before:
                found.fault(f"the ledger went from {stand.before} to {stand.spent()}", state)
            try:
                stand.advance()
            except (AssertionError, FoedusError) as error:
                found.fault(f"the run can't go on: {error}", state)
                break
            stand.look()
        stand.close()
    return found
