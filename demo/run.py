"""The demo from start to end, and `foedus simulate`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pandas as pd
import yaml
from rich.console import Console

from ..clients.home import Home
from ..compliance.auditlog.log import AuditLog
from ..compliance.consent import ConsentRegister
from ..compliance.lineage import read_events
from ..compliance.lineage.graph import graph
from ..compliance.treaty import Approver
from ..errors import Abandoned, InputError
from ..federation.study import Draft, Study, draft_from, load_draft
from ..federation.tasks.evaluate import exact_auc, exact_roc
from ..federation.verification import Report, verify
from ..privacy.ledger import Ledger
from ..server.auth import Role
from . import data
from .deploy import Deployment, client, deployed, free_ports
from .reference import Benchmark, gather, reference_rows
from .result import Partner, Result, Round
from .screen import Steps, show
from .simulate import prepare
from .world import NAMES, World, build

MODELS = {"lr": "logistic_regression", "mlp": "mlp"}
SILOS = 4


def demo_draft(orders: data.Orders, model: str) -> Draft:
    """The demo's study: `demo/churn.yaml`, fitted to other orders' dates and another model if asked.

    Raises:
        InputError: an unknown model, or orders that span less than a year.
    """
    if model not in MODELS:
        raise InputError(f"--model {model}: it is one of {', '.join(MODELS)}")
    content = yaml.safe_load((files(__package__) / "churn.yaml").read_text(encoding="utf-8"))
    if model == "mlp":
        content["model"] = {"kind": "mlp", "hidden": 8, "seed": 0}
        content["training"] = {"optimiser": "adam", "rounds": 24, "clip": 0.29}
    if not orders.split_column:
        content["split"] = {"by": "hash", "salt": "foedus demo", "train": 0.8}
        content["label"] |= _dates(orders.frame, int(content["label"]["horizon_days"]))
    return draft_from(content, "the demo's study")


def _dates(frame: pd.DataFrame, horizon: int) -> dict[str, str]:
    """The last day a label can be told for, and half a year before it."""
    first, last = min(frame["date"]), max(frame["date"])
    test: date = last - timedelta(days=horizon - 1)
    train = test - timedelta(days=180)
    if train - first < timedelta(days=60):
        raise InputError(f"the orders span {first} to {last}: a demo needs {horizon + 240} days or more")
    return {"train_as_of": train.isoformat(), "test_as_of": test.isoformat()}


def _orders(path: Path | None) -> data.Orders:
    return data.cdnow() if path is None else data.from_file(path)


def run_demo(
    *, model: str = "lr", orders: Path | None = None, directory: Path | None = None, kill: bool = True
) -> Result:
    """Everything: deal, deploy, approve, train, lose a node, release, verify, compare, report."""
    console = Console()
    steps = Steps(console)
    root = (directory or Path("foedus-demo")).absolute()
    if directory is None and (root / ".foedus-demo").exists():
        shutil.rmtree(root)  # our own of an earlier time, by the mark we left
    if root.exists() and any(root.iterdir()):
        raise InputError(f"{root}: not empty", remedy="choose another --dir, or remove it")
    root.mkdir(parents=True, exist_ok=True)
    (root / ".foedus-demo").touch()
    gateway, api = free_ports(2)
    with deployed(root, gateway=gateway, api=api) as deployment:
        with steps.step("Dealing the orders to four partners, making keys, signing the treaty"):
            starting = _Background(deployment.superlink.start)
            found = _orders(orders)
            draft = demo_draft(found, model)
            world = build(root, found, draft, silos=SILOS, gateway=deployment.gateway, may_exist=True)
        with steps.step("Starting SuperLink, gateway, API server and four nodes (TLS, node keys)"):
            starting.join()
            deployment.start_servers(world)
            for name in world.homes:
                deployment.start_node(world, name)
            deployment.await_ready(SILOS)
        with steps.step("Submitting the study and collecting six signatures"):
            study, digest = _submit(deployment, world, draft)
        victim = NAMES[SILOS - 1] if kill else None
        with steps.step("Training under secure sums with distributed differential privacy"):
            rounds, weights, lost = _follow(deployment, world, study, digest, victim, steps)
        with steps.step("Fetching the release; verifying the evidence offline"):
            out = _download(deployment, world, digest)
            report = verify(out / "evidence.zip", own_treaty=next(iter(world.homes.values())) / "treaty.json")
    with steps.step("Comparing with pooled data, each partner alone, recency alone"):
        benchmark = gather(world, study)
        result = _result(world, found, benchmark, report, rounds, weights, lost, out, steps)
    with steps.step("Writing report.html"):
        from .report import write

        write(result, root / "report.html")
    result = _with_phases(result, steps)
    show(result, console)
    return result


class _Background(Thread):
    """A call in another thread, whose exception comes out at `join`."""

    def __init__(self, call: Any) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 - raised again by join
            self._error = error

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if self._error is not None:
            raise self._error


def _submit(deployment: Deployment, world: World, draft: Draft) -> tuple[Study, str]:
    study, envelope = world.sign_study(draft)
    with client(deployment, world, draft.author, Role.SCIENTIST) as scientist:
        scientist.submit(envelope)
    for approver in world.treaty.approvers:
        with client(deployment, world, approver.name, _role(approver)) as person:
            person.approve(envelope.digest, world.approve(study, envelope.digest, approver))
    return study, envelope.digest


def _role(approver: Approver) -> Role:
    return Role.PARTNER if approver.level == "partner" else Role.OFFICER


def _follow(
    deployment: Deployment, world: World, study: Study, digest: str, victim: str | None, steps: Steps
) -> tuple[list[Mapping[str, Any]], list[list[float]], int | None]:
    """Start the run and follow it; kill `victim` once half the training rounds are done."""
    rounds: list[Mapping[str, Any]] = []
    weights: list[list[float]] = []
    killed = False
    with client(deployment, world, study.author, Role.SCIENTIST) as scientist:
        run = str(scientist.start(digest)["id"])
        for event in scientist.follow(run):
            if event.kind == "round":
                rounds.append(event.data)
                weights += [event.data["weights"]] if "weights" in event.data else []
                steps.line(
                    f"round {event.data['round']} of {event.data['of']} · {len(event.data['survivors'])} silos"
                    f" · ε {event.data['epsilon']:.3f}"
                )
                if victim is not None and not killed and len(rounds) >= study.rounds // 2:
                    deployment.kill_node(victim)
                    killed = True
                    steps.line(f"killed the node of {victim} in the middle; going on without it")
            elif event.kind in ("failed", "stopped"):
                raise Abandoned(
                    f"the run {event.kind}: {event.data.get('reason', '')}",
                    remedy=str(event.data.get("remedy") or f"see the logs in {deployment.root / 'logs'}"),
                )
    without = [int(r["round"]) for r in rounds if killed and victim not in r["survivors"]]
    return rounds, weights, min(without, default=None)


def _download(deployment: Deployment, world: World, digest: str) -> Path:
    out = world.root / "release"
    out.mkdir(exist_ok=True)
    officer = next(a for a in world.treaty.approvers if a.level == "dpo")
    with client(deployment, world, officer.name, Role.OFFICER) as person:
        for listed in person.results(digest):
            person.save_result(digest, listed, out)
    return out


def _result(
    world: World,
    orders: data.Orders,
    benchmark: Benchmark,
    report: Report,
    rounds: list[Mapping[str, Any]],
    weights: list[list[float]],
    lost: int | None,
    out: Path,
    steps: Steps,
) -> Result:
    study, test = report.study, benchmark.test
    final = np.array(json.loads((out / "model.json").read_bytes())["payload"]["weights"])
    federated = benchmark.model_row("federated, distributed DP", final, len(benchmark.pooled.labels))
    references, pooled = reference_rows(benchmark)
    curve = iter([exact_auc(benchmark.scores(np.array(w)), test.labels) for w in weights])
    roc = {
        "federated, distributed DP": exact_roc(benchmark.scores(final), test.labels),
        "pooled, no privacy": exact_roc(benchmark.scores(pooled), test.labels),
    }
    recency = [i for i, f in enumerate(study.features) if f.called == "recency"]
    if recency:
        roc["recency alone"] = exact_roc(test.inputs[:, recency[0]], test.labels)
    events = [e for path in (next(world.server.rglob("lineage.jsonl")),) for e in read_events(path)]
    return Result(
        source=orders.source,
        study=study,
        study_digest=report.study_digest,
        treaty=report.treaty,
        treaty_digest=report.treaty_digest,
        epsilon=report.epsilon,
        rows=[federated, *references],
        dp_auc=float(report.metrics["auc"]),
        dp_auc_error=float(report.metrics["auc_error"]),
        partners=[_partner(world, name, study, lost) for name in world.homes],
        rounds=[
            Round(
                number=int(r["round"]),
                task=str(r["task"]),
                survivors=tuple(r["survivors"]),
                epsilon=float(r["epsilon"]),
                seconds=float(r["seconds"]),
                auc=next(curve, None) if r["task"] == "train" else None,
            )
            for r in rounds
        ],
        roc={name: (x.tolist(), y.tolist()) for name, (x, y) in roc.items()},
        checks=report.checks,
        lineage=graph(events),
        phases=list(steps.phases),
        files={
            "report": world.root / "report.html",
            "evidence": out / "evidence.zip",
            "model": out / "model.json",
            "a partner's directory": next(iter(world.homes.values())),
            "logs": world.root / "logs",
        },
    )


def _with_phases(result: Result, steps: Steps) -> Result:
    from dataclasses import replace

    return replace(result, phases=list(steps.phases))


def _partner(world: World, name: str, study: Study, lost: int | None) -> Partner:
    """One partner's own view, from its own directory."""
    home = Home.load(world.homes[name])
    customers = set(pd.read_parquet(home.table, columns=["customer"])["customer"].unique())
    register = ConsentRegister(home.path / "consent.db")
    now = datetime.now(UTC)
    consenting = customers & set(register.in_force(study.purpose, now)["subject"])
    counts = register.counts(study.purpose, now)
    excluded: dict[str, int] = {"withdrawn": counts["withdrawn"], "expired": counts["expired"]}
    excluded["never asked"] = len(customers) - len(consenting) - sum(excluded.values())
    sent: dict[str, tuple[int, int]] = {}
    for entry in AuditLog(home.path / "audit.db", f"foedus node {name}").entries():
        record = entry.record
        if record["action"] == "sent":
            kind = str(record["subject"]).removesuffix("-reply")
            messages, size = sent.get(kind, (0, 0))
            sent[kind] = (messages + 1, size + int(record["details"]["bytes"]))
    terms = world.treaty.terms(study.purpose)
    return Partner(
        name=name,
        customers=len(customers),
        consenting=len(consenting),
        excluded=excluded,
        epsilon=Ledger(home.path / "ledger.db").epsilon(study.privacy.delta, purpose=study.purpose),
        cap=terms.epsilon,
        sent=sent,
        lost_in=lost if name == NAMES[SILOS - 1] else None,
    )


def run_simulation(study: Path, *, orders: Path | None, silos: int, directory: Path | None) -> None:
    """`foedus simulate`: the draft on simulated silos, and what came out."""
    from ..server.coordinator import conduct

    console = Console(highlight=False)
    steps = Steps(console)
    draft = load_draft(study)
    if draft.privacy.mode.caution:
        console.print(f"[bold red]{draft.privacy.mode.caution}[/]")
    with tempfile.TemporaryDirectory(prefix="foedus-simulate-") as scratch:
        root = directory.absolute() if directory is not None else Path(scratch) / "world"
        with steps.step(f"Dealing the orders to {silos} silos"):
            found = _orders(orders)
            if draft.split.by == "column" and draft.split.column not in found.frame.columns:
                raise InputError(
                    f"{study}: the study splits by the column {draft.split.column!r}, which {found.source} has not",
                    remedy="give the study `split: {by: hash}`",
                )
            world = build(root, found, draft, silos=silos)

        def note(kind: str, event: Mapping[str, Any]) -> None:
            if kind == "round":
                steps.line(f"round {event['round']} of {event['of']} · ε {event['epsilon']:.3f}")
            elif kind == "silo-out":
                console.print(f"[yellow]{event['silo']} is out: {event['code']}: {event['message']}[/]")

        with steps.step("Running the study in this process"):
            grid, case = prepare(world, draft, note=note)
            bundle = conduct(grid, case)
        with steps.step("Verifying the evidence"):
            report = verify(bundle)
        with steps.step("Comparing with pooled data"):
            benchmark = gather(world, report.study)
            weights = np.array(json.loads((case.out / "model.json").read_bytes())["payload"]["weights"])
            name = f"federated, {draft.privacy.mode.name} DP"
            rows = [benchmark.model_row(name, weights, len(benchmark.pooled.labels))]
            rows += reference_rows(benchmark)[0]
        for row in rows:
            console.print(f"{row.name:28} AUC {row.auc:.4f}   PR-AUC {row.pr_auc:.4f}")
        metrics = report.metrics
        console.print(
            f"as released: AUC {metrics['auc']:.4f} ± {metrics['auc_error']:.4f} (the noise's error)"
        )
        console.print(
            f"ε = {report.epsilon:.4f} at δ = {report.study.privacy.delta:g} for {report.treaty.unit}, of the treaty's"
            f" {report.treaty.terms(report.study.purpose).budget}; {len(report.checks)} checks hold"
        )
        if directory is not None:
            console.print(f"kept in {root}; the evidence is {bundle}")
