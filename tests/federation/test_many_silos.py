"""The secure sum on a sparse graph, as it travels: over the Grid, and with real nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context as FlowerContext
from flwr.app import Message
from support.orders import make_draft, order_log
from support.sums import Cast, total, vectors

from foedus import verify_foedus
from foedus.demo import world
from foedus.demo.simulate import simulate
from foedus.documents import Envelope
from foedus.federation import messages as m
from foedus.federation.rounds import RoundPlan
from foedus.federation.secure_sum import SecureSum
from foedus.federation.simulation import LocalGrid
from foedus.federation.verification import verify
from foedus.privacy.secagg import aggregator, client
from foedus.privacy.secagg.client import Silo
from foedus.privacy.secagg.codec import Whole
from foedus.privacy.secagg.graph import Graph, Parameters
from foedus.privacy.secagg.keys import Context, Roster
from foedus.privacy.secagg.rings import Integers
from foedus.privacy.secagg.topology import Sparse, Topology

N, C, DIMENSION = 70, 3, 40
NOTHING = hashlib.sha256(b"").hexdigest()


def plan(number: int) -> RoundPlan:
    return RoundPlan(
        round=number,
        task="train",
        dimension=DIMENSION,
        scale_bits=8,
        sigma=4,
        sensitivity=1.0,
        bits=32,
        bound=2**24,
    )


class Bare:
    """A silo that only adds: a node's messages, without study, table or ledger."""

    def __init__(self, silo: Silo, vector: Integers) -> None:
        self.silo, self.vector = silo, vector

    def __call__(self, message: Message, context: FlowerContext) -> Message:
        action = message.metadata.message_type.removeprefix("query.")
        content, data = getattr(self, f"on_{action}")(message)
        return Message(content.record(data), reply_to=message)

    def on_keys(self, message: Message) -> tuple[m.Content, bytes]:
        return m.KeysReply(keys=self.silo.advertise().to_json(), log_size=0), b""

    def on_shares(self, message: Message) -> tuple[m.Content, bytes]:
        request, _ = m.SharesRequest.read(message)
        boxes = self.silo.share([Envelope.from_json(k) for k in request.keys], request.digests)
        return m.SharesReply(boxes=m.boxes_to_json(boxes)), b""

    def on_ready(self, message: Message) -> tuple[m.Content, bytes]:
        request, _ = m.ReadyRequest.read(message)
        self.silo.receive(m.boxes_from_json(request.boxes))
        return m.ReadyReply(statement=self.silo.ready(request.participants).to_json()), b""

    def on_vector(self, message: Message) -> tuple[m.Content, bytes]:
        request, data = m.VectorRequest.read(message)
        own = plan(request.round)
        if request.ready is not None:
            self.silo.take_ready(by_silo(request.ready))
        if request.previous is not None:
            shown, notice = own.ring.unwrap(own.ring.unpack(data, DIMENSION)), request.previous
            self.silo.verify_sum(notice.round, notice.survivors, shown, int(notice.check))
        words, header = self.silo.mask(
            request.round, Whole(self.vector, own.bound), own.ring, task="train", model=NOTHING
        )
        return m.VectorReply(header=header.to_json(), log_size=0), bytes(words)

    def on_confirm(self, message: Message) -> tuple[m.Content, bytes]:
        request, _ = m.ConfirmRequest.read(message)
        return m.ConfirmReply(statement=self.silo.confirm(request.round, request.survivors).to_json()), b""

    def on_answer(self, message: Message) -> tuple[m.Content, bytes]:
        request, _ = m.AnswerRequest.read(message)
        assert request.confirmed is not None and request.answering == []
        confirmed = by_silo(request.confirmed)
        said, seeds, keys = self.silo.answer(request.round, request.survivors, confirmed=confirmed)
        return (
            m.AnswerReply(
                statement=said.to_json(), seeds=m.boxes_to_json(seeds), mask_keys=m.boxes_to_json(keys)
            ),
            b"",
        )


def by_silo(documents: list[dict[str, Any]]) -> dict[str, Envelope]:
    return {str(d["payload"]["silo"]): Envelope.from_json(d) for d in documents}


def test_seventy_silos_any_few_of_whom_fall_silent() -> None:
    cast = Cast(N, C, [1, 2, 3])
    made = {name: vector % 2**20 for name, vector in vectors(cast.names, DIMENSION).items()}
    silent = {  # what each never hears
        "s5": "query.keys", "s12": "query.shares", "s20": "query.ready", "s31": "query.vector",
        "s44": "query.confirm", "s58": "query.answer",
    }  # fmt: skip
    nodes = {name: 100 + i for i, name in enumerate(cast.names)}
    names = {node: name for name, node in nodes.items()}
    grid = LocalGrid(
        {node: Bare(cast.silos[name], made[name]) for name, node in nodes.items()},
        {node: b"" for node in nodes.values()},
        drop=lambda node, kind, message: silent.get(names[node]) == kind,
    )
    trips: list[str] = []
    batch = SecureSum(
        grid=grid,
        nodes=nodes,
        roster=cast.roster,
        context=cast.context,
        seconds=0.2,
        head=lambda silo: m.LogHead(note="", since=0, proof=[]),
        acknowledge=lambda silo, size: None,
        observe=lambda kind, data: trips.append(data["action"]) if kind == "trip" else None,
    )

    def ask_for_keys(silo: str) -> m.KeysRequest:
        entry = m.LoggedEntry(index=0, body="", proof=[])
        return m.KeysRequest(
            study={}, approvals=[], run="1", batch=0, rounds=[1, 2, 3], log=batch.head(silo), started=entry
        )

    batch.set_up(ask_for_keys)
    assert batch.aggregator.topology.sparse
    neighbours = len(batch.aggregator.topology.holders("s1")) - 1
    assert neighbours < N // 2
    for number in (1, 2, 3):
        result = batch.round(plan(number), b"")
        assert result.total.tolist() == total(made, result.survivors)
    gone = {"s5", "s12", "s20", "s31", "s44", "s58"}
    assert set(batch.out) == gone
    assert set(result.survivors) == set(cast.names) - gone
    assert trips == ["keys", "shares", "ready"] + ["vector", "confirm", "answer"] * 3


@pytest.fixture
def forced_graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Eight silos on a graph of degree six, as if they were many: too few for its bounds, enough for its code."""

    def drawn(advertised: Mapping[str, str], roster: Roster, context: Context) -> Topology:
        seed = hashlib.sha256("".join(sorted(advertised.values())).encode()).digest()
        return Sparse(Graph.draw(advertised, seed, Parameters(half=3, window=1)), seed)

    for module in (client, aggregator):
        monkeypatch.setattr(module, "topology", drawn)
    yield


def test_a_whole_study_on_a_sparse_graph(forced_graph: None, tmp_path: Path) -> None:
    draft = make_draft(epsilon=8.0, trip_seconds=20.0)
    built = world.build(tmp_path / "world", order_log(2400), draft, silos=8)
    victim = list(built.homes)[3]

    def lost(node: int, kind: str, message: Message) -> bool:
        return node == 103 and kind == "query.vector" and m.VectorRequest.read(message)[0].round == 3

    played = simulate(built, draft.model_copy(update={"trip_seconds": 0.3}), drop=lost)
    # The lost one is back with a batch, and so a graph, of its own.
    assert [len(s.survivors) for s in played.case.sums] == [8, 8, 7, 8]
    assert [batch.context.batch for batch in played.case.batches] == [0, 2]  # 1 was the knock
    report = verify(played.evidence, own_treaty=built.homes[victim] / "treaty.json")
    assert len(report.checks) == 10
    assert np.isfinite(report.metrics["auc"])
    treaty = str(built.homes[victim] / "treaty.json")
    assert verify_foedus.main([str(played.evidence), "--treaty", treaty]) == 0
