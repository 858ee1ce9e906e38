"""Whole studies on the in-process Grid: the right sums, the right model, and what becomes of lost silos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Message
from support.orders import copy_of, make_draft, no_noise

from foedus.clients.guard import Guard
from foedus.clients.home import Home
from foedus.compliance.lineage import Store
from foedus.demo.reference import Benchmark, gather
from foedus.demo.simulate import Simulated, prepare, simulate
from foedus.demo.world import World
from foedus.errors import Abandoned
from foedus.federation import messages as m
from foedus.federation import models
from foedus.federation.pricing import price
from foedus.federation.study import Model, Study, Training
from foedus.federation.tasks.evaluate import exact_auc
from foedus.federation.verification import verify
from foedus.privacy.ledger import Ledger
from foedus.server.coordinator import conduct

Floats = npt.NDArray[np.float64]
LOST = 103  # the node of the fourth silo, dune-media


# ── the right numbers ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module", params=["fixed_hessian", "adam"])
def noiseless(
    request: pytest.FixtureRequest, fresh_world: World, tmp_path_factory: pytest.TempPathFactory
) -> tuple[World, Simulated, Benchmark]:
    """Three rounds of training by either optimiser, every noise share zero."""
    world = copy_of(fresh_world, tmp_path_factory.mktemp("noiseless") / "world")
    training = Training(optimiser=request.param, rounds=3, clip=0.25)
    run = simulate(world, make_draft(training=training), sampler=no_noise)
    return world, run, gather(world, run.study)


def clipped_rows(study: Study, benchmark: Benchmark, weights: Floats) -> dict[str, Floats]:
    """Every silo's per-customer clipped gradients of logistic regression, worked out by hand."""
    rows = {}
    for silo, data in benchmark.train.items():
        x = np.hstack([data.inputs, np.ones((len(data.labels), 1))])
        g = (1 / (1 + np.exp(-x @ weights)) - data.labels)[:, None] * x
        norms = np.linalg.norm(g, axis=1, keepdims=True)
        rows[silo] = g * np.minimum(1.0, study.clip / norms)
    return rows


def test_a_rounds_sum_is_the_sum_of_the_silos_contributions(
    noiseless: tuple[World, Simulated, Benchmark],
) -> None:
    _, run, benchmark = noiseless
    study = run.study
    first = run.case.sums[study.tasks.index("train")]
    weights = models.initial(study.model, study.inputs)
    rows = np.concatenate(list(clipped_rows(study, benchmark, weights).values()))
    scale = 2.0**study.privacy.scale_bits_train
    expected = np.append(rows.sum(axis=0), len(rows) * study.clip * 0.25) * scale
    off = np.abs(first.total - expected)
    assert first.survivors == tuple(sorted(benchmark.train))
    assert off.max() <= len(rows)  # rounding: less than 1 a customer, always
    assert off.max() <= 6 * np.sqrt(len(rows))  # and by chance far less
    assert np.abs(expected).max() > 1000 * off.max()


def newton_like(study: Study, benchmark: Benchmark) -> Callable[[Floats], Floats]:
    """The fixed-Hessian direction from everybody's inputs pooled."""
    x = np.concatenate([np.hstack([d.inputs, np.ones((len(d.labels), 1))]) for d in benchmark.train.values()])
    x *= np.minimum(1.0, study.curvature_clip / np.linalg.norm(x, axis=1, keepdims=True))
    n, p = float((x[:, -1] ** 2).sum()), x.shape[1]
    level = 2 * study.privacy.sigma_curvature / 2.0**study.privacy.scale_bits_curvature  # σ of four shares
    values, vectors = np.linalg.eigh(x.T @ x / n)
    hessian = vectors @ np.diag(np.maximum(values, 3 * level * np.sqrt(p) / n)) @ vectors.T / 4
    return lambda gradient: np.linalg.solve(hessian + study.training.l2 * np.eye(p), gradient)


def adam() -> Callable[[Floats], Floats]:
    """Adam's direction as its paper writes it, β₁ = 0.9, β₂ = 0.99."""
    seen: list[Floats] = []

    def direction(gradient: Floats) -> Floats:
        seen.append(gradient)
        t = len(seen)
        first = sum(0.1 * 0.9 ** (t - 1 - i) * g for i, g in enumerate(seen)) / (1 - 0.9**t)
        second = sum(0.01 * 0.99 ** (t - 1 - i) * g**2 for i, g in enumerate(seen)) / (1 - 0.99**t)
        return first / (np.sqrt(second) + 1e-8)

    return direction


def test_training_without_noise_is_pooled_training_on_clipped_gradients(
    noiseless: tuple[World, Simulated, Benchmark],
) -> None:
    _, run, benchmark = noiseless
    study, training = run.study, run.study.training
    direction = newton_like(study, benchmark) if training.optimiser == "fixed_hessian" else adam()
    w = np.zeros(study.parameters)
    for done in range(training.rounds):
        rows = np.concatenate(list(clipped_rows(study, benchmark, w).values()))
        falling = 0.55 + 0.45 * np.cos(np.pi * done / training.rounds)  # to a tenth, for Adam alone
        rate = training.rate * (falling if training.optimiser == "adam" else 1.0)
        w = w - rate * direction(rows.mean(axis=0) + training.l2 * w)
    released = np.array(verify_weights(run))
    assert np.abs(released - w).max() < 1e-3 < np.abs(w).max()


def verify_weights(run: Simulated) -> list[float]:
    return list(json.loads((run.case.out / "model.json").read_bytes())["payload"]["weights"])


def test_evaluation_counts_every_test_customer_once(noiseless: tuple[World, Simulated, Benchmark]) -> None:
    _, run, benchmark = noiseless
    study = run.study
    cells = run.case.sums[-1].total / 2**study.privacy.scale_bits_evaluate
    labels, scores = benchmark.test.labels, benchmark.scores(np.array(verify_weights(run)))
    assert cells.sum() == len(labels)
    assert cells[study.evaluation.bins :].sum() == labels.sum()
    low, high, bins = study.evaluation.lower, study.evaluation.upper, study.evaluation.bins
    edges = np.linspace(low, high, bins + 1)
    edges[0], edges[-1] = -np.inf, np.inf
    assert cells[:bins].tolist() == np.histogram(scores[labels == 0], edges)[0].tolist()
    metrics = verify(run.evidence).metrics
    assert metrics["auc"] == pytest.approx(exact_auc(scores, labels), abs=0.02)
    assert metrics["auc"] > 0.75  # there is a signal, and it is found


def test_the_same_draft_starts_from_the_same_weights_and_split(
    noiseless: tuple[World, Simulated, Benchmark], good: Any
) -> None:
    world, run, benchmark = noiseless
    again = gather(world, run.study)
    for silo in benchmark.train:
        assert (benchmark.train[silo].customers == again.train[silo].customers).all()
        assert not set(benchmark.train[silo].customers) & set(benchmark.test.customers)
    other = gather(good.world, good.run.study)  # another world with other keys, the same orders and draft
    assert {s: d.customers.tolist() for s, d in other.train.items()} == {
        s: d.customers.tolist() for s, d in benchmark.train.items()
    }
    mlp = Model(kind="mlp", hidden=4, seed=7)
    assert (models.initial(mlp, 11) == models.initial(Model(kind="mlp", hidden=4, seed=7), 11)).all()


def test_the_nodes_sent_sums_of_this_model(noiseless: tuple[World, Simulated, Benchmark]) -> None:
    _, run, _ = noiseless
    study = run.study
    p = study.inputs + 1
    length = {
        "curvature": p * (p + 1) // 2,
        "train": study.parameters + 1,
        "evaluate": 2 * study.evaluation.bins,
    }
    assert [len(s.total) for s in run.case.sums] == [length[task] for task in study.tasks]


# ── a run with its noise ─────────────────────────────────────────────────────────────────────────


def test_a_noisy_run_costs_what_it_says_and_its_evidence_holds(good: Any) -> None:
    report = verify(good.run.evidence)
    study, treaty = good.run.study, good.world.treaty
    everybody = tuple(sorted(good.world.homes))
    assert dict(report.survivors) == {n: everybody for n in range(1, study.rounds + 1)}
    assert report.epsilon == pytest.approx(
        price(study, treaty, survivors=dict.fromkeys(range(1, study.rounds + 1), 4))
    )
    assert report.epsilon < price(study, treaty) <= study.privacy.epsilon == 4.0
    for home in good.world.homes.values():
        assert Ledger(home / "ledger.db").epsilon(study.privacy.delta) == pytest.approx(report.epsilon)


def test_the_noise_of_a_run_is_that_of_all_shares(good: Any) -> None:
    """The sums differ from the exact ones by about σ√4, neither by nothing nor by much more."""
    study, benchmark = good.run.study, gather(good.world, good.run.study)
    labels = benchmark.test.labels
    scores = benchmark.scores(np.array(verify_weights(good.run)))
    bins = study.evaluation.bins
    edges = np.linspace(study.evaluation.lower, study.evaluation.upper, bins + 1)
    edges[0], edges[-1] = -np.inf, np.inf
    exact = np.concatenate([np.histogram(scores[labels == y], edges)[0] for y in (0, 1)])
    noise = good.run.case.sums[-1].total - exact * 2**study.privacy.scale_bits_evaluate
    spread = np.sqrt((noise**2).mean()) / (2 * study.privacy.sigma_evaluate)
    assert 0.5 < spread < 1.7  # 32 samples


def test_a_run_leaves_a_trace_with_every_party(good: Any) -> None:
    actions = [entry.record["action"] for entry in good.run.case.log.entries()]
    assert actions[0] == "study.submitted" and actions[-1] == "run.finished"
    assert actions.count("study.approved") == len(good.world.treaty.approvers)
    assert actions.count("round.summed") == good.run.study.rounds
    kinds = [kind for kind, _ in good.events]
    assert kinds.count("round") == good.run.study.rounds and "silo-out" not in kinds
    for home in good.world.homes.values():
        guard = Guard(Home.load(home))
        assert guard.log_size >= actions.index("receipt")  # up to when the receipts were asked for
        lineage = Store(home / "lineage.db")
        assert lineage.open_runs() == [] and lineage.check() > 2 * good.run.study.rounds


# ── losses ───────────────────────────────────────────────────────────────────────────────────────


class Losing:
    """From its `after`-th message of a kind on, a silo hears nothing more (or is not heard)."""

    def __init__(self, *kinds: str, nodes: tuple[int, ...] = (LOST,), after: int = 1) -> None:
        self.kinds, self.nodes, self.after, self.count = kinds, nodes, after, dict.fromkeys(nodes, 0)

    def __call__(self, node: int, kind: str, message: Message) -> bool:
        if node not in self.nodes:
            return False
        self.count[node] += kind in self.kinds
        return kind in self.kinds and self.count[node] >= self.after


def open_reservations(home: Path) -> int:
    lines = list(Ledger(home / "ledger.db").lines())
    closed = {line.ref for line in lines if line.kind != "reserve"}
    return sum(line.kind == "reserve" and line.number not in closed for line in lines)


@pytest.mark.parametrize(
    ("losing", "present", "reserved"),
    [
        ({"drop": Losing("query.keys")}, [3, 3, 3, 3], 0),
        ({"drop": Losing("query.shares")}, [3, 3, 3, 3], 0),
        ({"drop": Losing("query.vector", after=2)}, [4, 3, 3, 3], 0),
        # Back with the next batch, for the next round: and lost again, as the messages still go astray.
        ({"drop": Losing("query.answer", after=2)}, [4, 4, 4, 3], 2),
        ({"lose_reply": Losing("query.vector")}, [3, 3, 3, 3], 3),
        ({"lose_reply": Losing("query.answer", after=3)}, [4, 4, 4, 4], 0),
    ],
    ids=[
        "keys",
        "shares",
        "vector of round 2",
        "answer of round 2",
        "reply to vector 1",
        "reply to answer 3",
    ],
)
def test_one_silo_lost_at_any_trip_does_not_stop_the_run(
    world: World, losing: dict[str, Callable[[int, str, Message], bool]], present: list[int], reserved: int
) -> None:
    draft = make_draft(trip_seconds=0.3)
    run = simulate(world, draft, **losing)
    report = verify(run.evidence)
    assert [len(report.survivors[n]) for n in sorted(report.survivors)] == present
    lost = list(world.homes)[LOST - 100]
    assert all((lost in who) == (len(who) == 4) for who in report.survivors.values())
    survivors = {n: len(who) for n, who in report.survivors.items()}
    assert report.epsilon == pytest.approx(price(run.study, world.treaty, survivors=survivors))
    assert report.epsilon <= 4.0
    assert open_reservations(world.homes[lost]) == reserved  # what left, or may have, counts as spent
    for silo, home in world.homes.items():
        if silo != lost:
            spent = Ledger(home / "ledger.db").epsilon(run.study.privacy.delta)
            assert spent == pytest.approx(report.epsilon)


@pytest.mark.parametrize(
    ("kind", "after", "opened"),
    [("query.keys", 1, 0), ("query.shares", 1, 0), ("query.vector", 2, 1), ("query.answer", 1, 0)],
)
def test_two_silos_lost_end_the_run_with_nothing_revealed(
    world: World, kind: str, after: int, opened: int
) -> None:
    losing = Losing(kind, nodes=(102, LOST), after=after)
    grid, case = prepare(world, make_draft(trip_seconds=0.3), drop=losing)
    with pytest.raises(Abandoned, match="2 of 4 silos answered in time, 3 are needed") as found:
        conduct(grid, case)
    assert "nothing was revealed" in found.value.remedy
    assert len(case.sums) == opened
    assert not case.out.exists()  # no model, no metrics, no evidence
    assert "released" not in [e.record["action"] for e in case.log.entries()]
    one = case.study.round(1, world.treaty)
    for number, home in enumerate(world.homes.values()):
        ledger = Ledger(home / "ledger.db")
        list(ledger.lines())  # the chain holds
        uploaded = {"query.keys": 0, "query.shares": 0, "query.vector": 1 + (number < 2), "query.answer": 1}[
            kind
        ]
        assert len(ledger.events()) == uploaded
        if kind == "query.vector":
            assert ledger.events()[0] == one.event(3)  # settled: four survivors less one colluder


def test_a_silo_that_sends_nonsense_is_out_and_the_run_goes_on(world: World) -> None:
    class Garbage:
        """The node of the fourth silo answers a vector with other words than it signed, and a receipt of junk."""

        def __init__(self, app: Any) -> None:
            self.app = app

        def __call__(self, message: Message, context: Any) -> Message:
            reply = self.app(message, context)
            record = reply.content.config_records[m.RECORD]
            if message.metadata.message_type == "query.vector" and record["data"]:
                record["data"] = bytes(len(record["data"]))
            return reply

    grid, case = prepare(world, make_draft(rounds=1))
    grid._apps[LOST] = Garbage(grid._apps[LOST])
    report = verify(conduct(grid, case))
    assert [len(who) for who in report.survivors.values()] == [3, 3, 3]
    (batch,) = case.batches
    assert batch.out["dune-media"].code == "BAD_REPLY" and "header" in batch.out["dune-media"].message


def test_a_junk_receipt_costs_the_silo_its_place_and_not_everybody_the_run(world: World) -> None:
    grid, case = prepare(world, make_draft(rounds=1))
    honest = grid._apps[LOST]

    def junk(message: Message, context: Any) -> Message:
        if message.metadata.message_type != "query.receipt":
            return honest(message, context)
        return Message(m.ReceiptReply(receipt={"junk": 1}, log_size=1).record(), reply_to=message)

    grid._apps[LOST] = junk
    report = verify(conduct(grid, case))
    assert "3 nodes signed" in report.checks[-1].detail
