"""The coordinator: carries an approved study through its secure sums to a release with evidence.

`app` is the Flower ServerApp that the fixed bundle names; `conduct` is the same for a simulation.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..compliance import evidence
from ..compliance import treaty as treaties
from ..compliance.auditlog.log import AuditLog
from ..compliance.lineage import Dataset, Event, Lineage, privacy_facet
from ..compliance.treaty import Treaty
from ..documents import Envelope, SigningKey, b64, canonical
from ..errors import Abandoned, FoedusError, InputError
from ..federation import messages as m
from ..federation import models
from ..federation import study as studies
from ..federation.secure_sum import SecureSum, Sum
from ..federation.study import Study, price
from ..federation.tasks import evaluate, train
from ..privacy.accountant import ZCDP
from ..privacy.secagg.keys import Context as BatchContext
from ..privacy.secagg.keys import Roster
from .store import Store

RELEASE = "release"
PRODUCER = "https://foedus.invalid/foedus-server"
BATCH_ROUNDS = 100
_ROLL_CALL_SECONDS = 15.0

app = ServerApp()
Note = Callable[[str, Mapping[str, Any]], None]


@dataclass
class Case:
    """A run in the hands of the coordinator: what was agreed, and where to record what happens.

    Args:
        out: directory for the release and the evidence.
        heads: silo -> entries of the audit log its node has acknowledged.
        acknowledge, note: record such an acknowledgement, or a step for whoever follows the run.
        pause: see `SecureSum`.
    """

    treaty_envelope: Envelope
    treaty: Treaty
    study_envelope: Envelope
    study: Study
    approvals: list[Envelope]
    run: str
    key: SigningKey
    log: AuditLog
    out: Path
    heads: dict[str, int]
    acknowledge: Callable[[str, int], None]
    note: Note
    pause: Callable[[float], None] = time.sleep
    batches: list[SecureSum] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)

    @property
    def origin(self) -> str:
        return self.treaty.coordinator.origin

    def record(self, action: str, subject: str, details: Mapping[str, Any]) -> int:
        """An entry in the audit log."""
        return self.log.append("coordinator", action, subject, {"run": self.run, **details})

    def head(self, silo: str) -> m.LogHead:
        """The log's signed head, and the proof from what this silo has seen."""
        return self._head(silo)[0]

    def _head(self, silo: str) -> tuple[m.LogHead, int]:
        note = self.log.checkpoint(self.origin, self.key)
        size = int(note.split("\n")[1])
        seen = min(self.heads.get(silo, 0), size)
        proof = self.log.consistency_proof(seen, size) if seen else []
        return m.LogHead(note=note, since=seen, proof=[b64(h) for h in proof]), size

    def seen(self, silo: str, size: int) -> None:
        """A silo acknowledged the log up to `size`."""
        self.heads[silo] = size
        self.acknowledge(silo, size)

    def keys_request(self, silo: str, batch: int, rounds: list[int]) -> m.KeysRequest:
        """Set-up's first message to a silo."""
        head, size = self._head(silo)
        index, body = self._started()
        entry = m.LoggedEntry(
            index=index, body=body, proof=[b64(h) for h in self.log.inclusion_proof(index, size)]
        )
        return m.KeysRequest(
            study=self.study_envelope.to_json(),
            approvals=[a.to_json() for a in self.approvals],
            run=self.run,
            batch=batch,
            rounds=rounds,
            log=head,
            started=entry,
        )

    def _started(self) -> tuple[int, str]:
        for entry in self.log.entries():
            record = entry.record
            if (record["action"], record["subject"]) == (
                "run.started",
                self.study_envelope.digest,
            ) and record["details"].get("run") == self.run:
                return entry.index, entry.body.decode()
        raise InputError(f"run {self.run} is not in the audit log")


def conduct(grid: Grid, case: Case) -> Path:
    """Run a study from roll call to evidence; returns the bundle's path.

    1. Roll call: which silos of the treaty are there, by the keys their nodes authenticate with.
    2. Set-up of the secure sum for a batch of rounds.
    3. Training: one secure sum a round (the first perhaps of curvature), one step of the model from it.
    4. Evaluation: one secure sum.
    5. Receipts of every node still there; the log anchors the heads of their ledgers.
    6. Release: model and metrics, signed, logged, and all of it bundled.

    Raises:
        Abandoned: fewer than t silos at some point; nothing but the rounds finished was revealed.
    """
    study, treaty = case.study, case.treaty
    nodes = roll_call(grid, treaty)  # 1
    case.note(
        "roll-call",
        {"present": sorted(nodes), "absent": sorted({p.name for p in treaty.parties} - set(nodes))},
    )
    state = train.State.start(models.initial(study.model, len(study.features)))
    metrics: evaluate.Metrics | None = None
    batch = None
    for number in range(1, study.rounds + 1):
        if batch is None or number not in batch.context.rounds:
            batch = _set_up(grid, case, nodes, number)  # 2
        plan = study.round(number, treaty)
        started = time.monotonic()
        result = batch.round(plan, state.weights.astype("<f8").tobytes())
        case.sums.append(result)
        case.record(
            "round.summed",
            case.study_envelope.digest,
            {
                "round": number,
                "task": plan.task,
                "survivors": list(result.survivors),
                "sum": sum_digest(result),
            },
        )
        event: dict[str, Any] = {"round": number, "of": study.rounds, "task": plan.task}
        state = train.advance(state, number, result.total, study, len(result.survivors))  # 3
        if plan.task == "train" and study.release.model:
            event["weights"] = state.weights.tolist()
        if plan.task == "evaluate":  # 4
            metrics = evaluate.metrics(result.total, study, len(result.survivors))
            event["auc"], event["auc_error"] = metrics.auc, metrics.auc_error
        event["epsilon"] = spent(case)
        event["survivors"] = list(result.survivors)
        event["seconds"] = time.monotonic() - started
        case.note("round", event)
    if batch is None or metrics is None:
        raise InputError("a study has at least one round of each kind")
    receipts = batch.receipts()  # 5
    for silo, receipt in sorted(receipts.items()):
        told = {"silo": silo, "digest": receipt.digest, "ledger": receipt.payload["ledger"]}
        case.record("receipt", case.study_envelope.digest, told)
    case.note("receipts", {"from": sorted(receipts)})
    survivors = {s.round: len(s.survivors) for s in case.sums}
    return _release(case, state, metrics, receipts, price(study, treaty, survivors=survivors))  # 6


def spent(case: Case) -> float:
    """ε of the rounds summed so far, by the survivors there were."""
    study, treaty = case.study, case.treaty
    events = [study.round(s.round, treaty).event(len(s.survivors) - treaty.colluders) for s in case.sums]
    return ZCDP(events).epsilon(study.privacy.delta)


def roll_call(grid: Grid, treaty: Treaty, *, seconds: float = _ROLL_CALL_SECONDS) -> dict[str, int]:
    """The silos whose nodes are connected: party name -> Flower node id.

    Waits for all, up to `seconds`; nodes whose key is not in the treaty are ignored.

    Raises:
        Abandoned: fewer than the treaty's threshold or minimum of silos.
    """
    by_key = {party.node_key.strip(): party.name for party in treaty.parties}
    deadline = time.monotonic() + seconds
    while True:
        found = {}
        for node in grid.get_nodes():
            name = by_key.get(bytes(node.public_key).decode(errors="replace").strip())
            if name is not None:
                found[name] = int(node.node_id)
        if len(found) == len(treaty.parties) or time.monotonic() >= deadline:
            break
        time.sleep(0.2)
    needed = max(treaty.threshold, treaty.min_silos)
    if len(found) < needed:
        raise Abandoned(
            f"roll call: {len(found)} of {len(treaty.parties)} silos are connected, {needed} are needed"
        )
    return found


def _set_up(grid: Grid, case: Case, nodes: Mapping[str, int], first: int) -> SecureSum:
    """A new batch, with every silo of the roll call: one that was lost may be back."""
    treaty, study = case.treaty, case.study
    rounds = list(range(first, min(first + BATCH_ROUNDS, study.rounds + 1)))
    number = len(case.batches)
    context = BatchContext(
        treaty=case.treaty_envelope.digest,
        study=case.study_envelope.digest,
        run=case.run,
        batch=number,
        rounds=tuple(rounds),
    )
    batch = SecureSum(
        grid=grid,
        nodes=nodes,
        roster=Roster({p.name: p.signing_key for p in treaty.parties}, treaty.colluders),
        context=context,
        seconds=study.trip_seconds,
        head=case.head,
        acknowledge=case.seen,
        observe=case.note,
        pause=case.pause,
        last=case.sums[-1] if case.sums else None,
    )
    case.batches.append(batch)
    try:
        batch.set_up(lambda silo: case.keys_request(silo, number, rounds))
    except Abandoned as error:
        said = "; ".join(f"{s.silo}: {s.code}: {s.message}" for s in batch.out.values())
        raise Abandoned(f"{error.message} ({said})", remedy=error.remedy) from error
    case.record(
        "run.set-up",
        case.study_envelope.digest,
        {"batch": number, "participants": list(batch.aggregator.participants)},
    )
    return batch


def sum_digest(result: Sum) -> str:
    """What the audit log says of a round's sum."""
    return hashlib.sha256(result.total.astype("<i8").tobytes()).hexdigest()


def _release(
    case: Case,
    state: train.State,
    metrics: evaluate.Metrics,
    receipts: Mapping[str, Envelope],
    epsilon: float,
) -> Path:
    study, digest, run = case.study, case.study_envelope.digest, case.run
    common = {"study": digest, "run": run, "epsilon": epsilon, "delta": study.privacy.delta}
    model = Envelope(
        RELEASE,
        {
            **common,
            "what": "model",
            "purpose": study.purpose,
            "table": study.table.model_dump(mode="json"),
            "model": study.model.model_dump(mode="json"),
            "features": [f.model_dump(mode="json") for f in study.features],
            "label": study.label.model_dump(mode="json"),
            "weights": state.weights.tolist(),
        },
    ).signed(case.origin, case.key)
    numbers = Envelope(RELEASE, {**common, "what": "metrics", "metrics": metrics_json(metrics)}).signed(
        case.origin, case.key
    )
    case.out.mkdir(parents=True, exist_ok=True)
    released = {"model.json": (study.release.model, model), "metrics.json": (study.release.metrics, numbers)}
    for name, (allowed, envelope) in released.items():
        if allowed:
            case.record("released", digest, {"file": name, "digest": envelope.digest, "epsilon": epsilon})
            (case.out / name).write_bytes(envelope.dumps())
    _draw_lineage(case, epsilon)
    note = case.log.checkpoint(case.origin, case.key)
    size = int(note.split("\n")[1])
    files = {
        "treaty.json": case.treaty_envelope.dumps(),
        "study.json": case.study_envelope.dumps(),
        "approvals.json": canonical([a.to_json() for a in case.approvals]),
        "log/entries.jsonl": b"".join(e.body + b"\n" for e in case.log.entries(0, size)),
        "log/checkpoint.txt": note.encode(),
        "keys.json": canonical(
            [
                {"context": b.context.to_json(), "keys": [k.to_json() for k in b.aggregator.advertisements]}
                for b in case.batches
            ]
        ),
        "rounds.jsonl": b"".join(_round_json(s) + b"\n" for s in case.sums),
        "receipts.json": canonical([receipts[s].to_json() for s in sorted(receipts)]),
        "lineage.jsonl": (case.out / "lineage.jsonl").read_bytes(),
    }
    files |= {
        f"release/{name}": envelope.dumps() for name, (allowed, envelope) in released.items() if allowed
    }
    path = case.out / "evidence.zip"
    sha256 = evidence.write(path, files, case.origin, case.key)
    case.record("run.finished", digest, {"epsilon": epsilon, "evidence": sha256})
    return path


def metrics_json(metrics: evaluate.Metrics) -> dict[str, Any]:
    """Metrics as JSON."""
    return json.loads(json.dumps(asdict(metrics)))  # type: ignore[no-any-return]


def _round_json(result: Sum) -> bytes:
    return canonical(
        {
            "round": result.round,
            "survivors": list(result.survivors),
            "total": result.total.tolist(),
            "model": b64(result.data),
            "transcript": {k: [e.to_json() for e in v] for k, v in result.transcript.items()},
        }
    )


def _draw_lineage(case: Case, epsilon: float) -> None:
    study, digest = case.study, case.study_envelope.digest
    short = digest[:12]
    lineage = Lineage(case.out / "lineage.jsonl", f"foedus://{case.origin}", PRODUCER)
    facet = privacy_facet(
        purpose=study.purpose, study=digest, mode="distributed", epsilon=epsilon, delta=study.privacy.delta
    )
    silos = sorted({s for r in case.sums for s in r.survivors})
    events = []
    for silo in silos:
        run_id = uuid4()
        inputs = [Dataset(f"{silo}/{study.table.name}"), Dataset(f"{silo}/consent {study.purpose}")]
        masked = [Dataset(f"{silo}/masked updates {short}")]
        events += [
            Event(run_id, f"{silo}/node", "START", inputs, masked),
            Event(run_id, f"{silo}/node", "COMPLETE", inputs, masked, {"foedus_privacy": facet}),
        ]
    run_id = uuid4()
    updates = [Dataset(f"{silo}/masked updates {short}") for silo in silos]
    outputs = [Dataset(f"model {short}"), Dataset(f"metrics {short}")]
    events += [
        Event(run_id, f"secure sum {short}", "START", [*updates, Dataset(f"study {short}")], outputs),
        Event(
            run_id,
            f"secure sum {short}",
            "COMPLETE",
            [*updates, Dataset(f"study {short}")],
            outputs,
            {"foedus_privacy": facet},
        ),
    ]
    lineage.emit_many(events)


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Flower's entry: the run's configuration names the study and the server's directory."""
    from .superlink import quicken

    pause = quicken()
    home, digest = Path(str(context.run_config["home"])), str(context.run_config["study"])
    run = str(context.run_id)
    treaty_envelope, treaty = treaties.load(home / "treaty.json")
    log = AuditLog(home / "audit.db", treaty.coordinator.origin)
    with Store(home / "server.db") as store:
        row = store.study(digest)
        if row is None:
            raise InputError(f"run {run}: there is no study {digest[:12]}")
        _await_run(store, run)
        envelope = Envelope.loads(row.envelope)
        case = Case(
            treaty_envelope=treaty_envelope,
            treaty=treaty,
            study_envelope=envelope,
            study=studies.verify(envelope, treaty, treaty_envelope.digest),
            approvals=store.approvals(digest),
            run=run,
            key=SigningKey.load(home / "server.key"),
            log=log,
            out=home / "evidence" / digest[:16] / run,
            heads=store.heads(),
            acknowledge=store.acknowledge,
            note=lambda kind, data: (store.add_event(run, kind, data), None)[1],
            pause=pause,
        )
        try:
            path = conduct(grid, case)
        except FoedusError as error:
            case.record("run.failed", digest, {"reason": error.message})
            store.add_event(run, "failed", {"reason": error.message, "remedy": error.remedy})
            raise
        for kind, file in (("model", "model.json"), ("metrics", "metrics.json"), ("evidence", path.name)):
            if (case.out / file).exists():
                store.add_release(home / "evidence", case.out / file, study=digest, run=run, kind=kind)
        store.add_event(run, "finished", {"epsilon": spent(case)})


def _await_run(store: Store, run: str, *, seconds: float = 30.0) -> None:
    """Wait until the API that started this run has noted it: in the audit log first, then its row."""
    deadline = time.monotonic() + seconds
    while store.run(run) is None:
        if time.monotonic() >= deadline:
            raise InputError(
                f"run {run} was not started through this server", remedy="foedus study run STUDY"
            )
        time.sleep(0.05)
