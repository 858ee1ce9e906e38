"""The coordinator: carries an approved study through its secure sums to a release with evidence.

`app` is the Flower ServerApp that the fixed bundle names; `conduct` is the same for a simulation. Either may
be killed at any moment and called again over the same checkpoint: it goes on from there.
"""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..compliance import treaty as treaties
from ..documents import Envelope, SigningKey
from ..errors import Abandoned, FoedusError, InputError, Unreachable
from ..federation import course, limits
from ..federation.counting import CountStudy
from ..federation.pricing import price
from ..federation.secure_sum import Sum
from ..federation.study import Study
from ..federation.tasks import count, evaluate, train
from ..privacy.accountant import PLD
from . import checkpoint, cosigned
from .batches import Batches, connected
from .case import Case
from .checkpoint import Checkpoint
from .lineage import FILE, RunLineage
from .log_place import open_log
from .release import release, sum_digest
from .store import TERMINAL, Store

_ROLL_CALL_SECONDS = 15.0
_RETURN_SECONDS = 300.0  # after a restart nodes find the server again by themselves, each in its own time

app = ServerApp()


def conduct(grid: Grid, case: Case) -> Path:
    """Run a study from roll call to evidence; returns the bundle's path.

    1. Roll call: which silos of the treaty are there, by the keys their nodes authenticate with.
    2. Set-up of the secure sum for a batch of rounds; again when a lost silo is back.
    3. Training: one secure sum a round (the first perhaps of curvature), one step of the model from it.
    4. Evaluation: one secure sum.
    5. Receipts of every node still there; the log anchors the heads of their ledgers.
    6. Release: model and metrics, or the counted table as far as it passes the union gate, signed, logged, the log's head
       cosigned by the nodes, and all of it bundled.

    What the case's checkpoint holds of an earlier attempt is not done again: sums are replayed, the round in
    flight goes on in its batch, log entries that are there are not made twice.

    Raises:
        Refused: ``STUDY_REJECTED``, an approver has taken it back before a round, or before the release.
        Abandoned: fewer than t silos at some point, or no quorum of witnesses at the end; nothing but the rounds
            finished was revealed.
    """
    study, treaty = case.study, case.treaty
    ended = case.ended()
    if ended is not None:
        raise Abandoned(f"run {case.run}: the audit log says {ended!r}")
    lineage = RunLineage(case)
    lineage.begin()
    nodes = roll_call(grid, case)  # 1
    absent = sorted({p.name for p in treaty.parties} - set(nodes))
    case.note("roll-call", {"present": sorted(nodes), "absent": absent})
    batches, known = Batches(grid, case, nodes), case.kept.sums()
    state = course.start(study)
    upcoming = course.following(state, 0, study)
    metrics: evaluate.Metrics | None = None
    while upcoming is not None:
        number = upcoming
        case.require_not_rejected()
        plan, started = study.round(number, treaty), time.monotonic()
        result = known.get(number) or _sum(case, batches, number, state)  # 2
        case.sums.append(result)
        survivors = list(result.survivors)
        told = {"round": number, "task": plan.task, "survivors": survivors, "sum": sum_digest(result)}
        case.record("round.summed", told, once=("round",))
        lineage.summed(result, str(told["sum"]))
        event: dict[str, Any] = {"round": number, "of": study.rounds, "task": plan.task}
        state = course.advance(state, number, result.total, study, len(survivors))  # 3
        if (
            plan.task == "train"
            and isinstance(study, Study)
            and isinstance(state, train.State)
            and study.release.model
        ):
            event["weights"] = state.weights.tolist()
        if isinstance(study, CountStudy):
            event["shown"] = int(count.passing(result.total, study, treaty, len(survivors)).sum())
        elif plan.task == "evaluate":  # 4
            metrics = evaluate.metrics(result.total, study, len(survivors))
            event["auc"], event["auc_error"] = metrics.auc, metrics.auc_error
        event |= {"epsilon": spent(case), "survivors": survivors, "seconds": time.monotonic() - started}
        if number not in case.told:
            case.note("round", event)
        upcoming = course.following(state, number, study)
    if metrics is None and isinstance(study, Study):
        raise InputError("a study has at least one round of each kind")
    receipts = _receipts(case, batches)  # 5
    if not case.logged("released"):  # else it is out, and its evidence is all there is left to finish
        case.require_not_rejected()
    counts = {s.round: len(s.survivors) for s in case.sums}
    epsilon = price(study, treaty, survivors=counts)
    return release(case, state, metrics, receipts, epsilon, cosigned=batches.cosigned)  # 6


def _sum(case: Case, batches: Batches, number: int, state: course.State) -> Sum:
    """One round that is not in the checkpoint yet: begun here, or taken up where it was left."""
    plan = case.study.round(number, case.treaty)
    batch = batches.for_round(number)
    data = case.kept.asked(number)
    if data is None:
        data = state.sent.astype("<f8").tobytes()
        case.kept.ask_round(number, data)
    batch.last = case.sums[-1] if case.sums else None
    result = batch.round(plan, data)
    case.kept.keep_sum(result)
    return result


def _receipts(case: Case, batches: Batches) -> dict[str, Envelope]:
    """What the nodes sign at the end; kept before it is logged, as a node asked again signs a newer head."""
    kept = case.kept.kept("receipts")
    if kept is None:
        batches.current.last = case.sums[-1]
        found = batches.current.receipts()
        kept = {silo: receipt.to_json() for silo, receipt in found.items()}
        case.kept.keep("receipts", kept)
        case.note("receipts", {"from": sorted(found)})
    receipts = {silo: Envelope.from_json(document) for silo, document in kept.items()}
    for silo, receipt in sorted(receipts.items()):
        told = {"silo": silo, "digest": receipt.digest, "ledger": receipt.payload["ledger"]}
        case.record("receipt", told, once=("silo",))
    return receipts


def spent(case: Case) -> float:
    """ε of the rounds summed so far, by the survivors there were."""
    study, treaty = case.study, case.treaty
    events = [study.round(s.round, treaty).cost(len(s.survivors), treaty) for s in case.sums]
    return PLD(events).epsilon(study.privacy.delta)


def roll_call(grid: Grid, case: Case, *, seconds: float = _ROLL_CALL_SECONDS) -> dict[str, int]:
    """The silos whose nodes are connected: party name -> Flower node id.

    Waits up to `seconds` for all, and up to the case's patience for as many as a sum needs.

    Raises:
        Abandoned: fewer than the treaty's threshold or minimum of silos.
    """
    treaty, started = case.treaty, time.monotonic()
    needed = treaty.threshold
    while True:
        found = connected(grid, case)
        waited = time.monotonic() - started
        if len(found) == len(treaty.parties) or waited >= (
            seconds if len(found) >= needed else max(seconds, case.patience)
        ):
            break
        time.sleep(0.2)
    if len(found) < needed:
        raise Abandoned(
            f"roll call: {len(found)} of {len(treaty.parties)} silos are connected, {needed} are needed"
        )
    return found


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Flower's entry: the run's configuration names the study and the server's directory.

    A resumed run is another run to Flower, and the same to everybody else: its configuration names the
    first one's id.
    """
    from .trips import quicken

    pause = quicken()
    home, digest = Path(str(context.run_config["home"])), str(context.run_config["study"])
    attempt = str(context.run_id)
    run = str(context.run_config.get("resume") or attempt)
    with Store(home / "server.db") as store:
        if store.study(digest) is None:
            raise InputError(f"run {run}: there is no study {digest[:12]}")
        _await_run(store, run, attempt)
        with checkpoint.alone(home, run, attempt):
            if not _is_current(store, run, attempt):
                return  # while this process waited another took over, or the run was ended
            case = _case(home, store, digest, run, resumed=run != attempt)
            case.pause = pause
            _carry(grid, case, store, home)


def _case(home: Path, store: Store, digest: str, run: str, *, resumed: bool) -> Case:
    treaty_envelope, treaty = treaties.load(home / "treaty.json")
    row = store.study(digest)
    if row is None:
        raise InputError(f"run {run}: there is no study {digest[:12]}")
    envelope = Envelope.loads(row.envelope)
    return Case(
        treaty_envelope=treaty_envelope,
        treaty=treaty,
        study_envelope=envelope,
        study=limits.verify(envelope, treaty, treaty_envelope.digest),
        approvals=store.approvals(digest),
        run=run,
        key=SigningKey.load(home / "server.key"),
        log=open_log(home, treaty.coordinator.origin),
        out=home / "evidence" / digest[:16] / run,
        lineage=home / FILE,
        kept=Checkpoint(checkpoint.place(home, run), study=digest, run=run),
        heads=store.heads(),
        acknowledge=store.acknowledge,
        note=lambda kind, data: (store.add_event(run, kind, data), None)[1],
        told=store.rounds_told(run) if resumed else frozenset(),
        patience=_RETURN_SECONDS if resumed else _ROLL_CALL_SECONDS,
        log_cosigned=home / cosigned.FILE,
    )


def _carry(grid: Grid, case: Case, store: Store, home: Path) -> None:
    """Conduct the case and note how it ended; what is no verdict of ours (a kill, a crash) notes nothing."""
    run, digest = case.run, case.study_envelope.digest
    try:
        path = conduct(grid, case)
    except Unreachable:
        raise  # not of the study's making: the run may be resumed
    except FoedusError as error:
        kind = (case.ended() or "run.failed").removeprefix("run.")
        reason = {"reason": error.message, "remedy": error.remedy}
        store.add_event(run, kind, reason, record=partial(_log_failure, case, error.message))
        checkpoint.remove(home, run)
        raise
    for kind, file in (
        ("model", "model.json"),
        ("metrics", "metrics.json"),
        ("table", "table.json"),
        ("evidence", path.name),
    ):
        if (case.out / file).exists():
            store.add_release(home / "evidence", case.out / file, study=digest, run=run, kind=kind)
    store.add_event(run, "finished", {"epsilon": spent(case)})
    checkpoint.remove(home, run)


def _log_failure(case: Case, reason: str) -> None:
    if case.ended() is None:
        case.record("run.failed", {}, sealed={"reason": reason})
        # The audit log has it: a lineage that can't be written must not hide why the run failed.
        with suppress(FoedusError):
            RunLineage(case).failed(reason)


def _await_run(store: Store, run: str, attempt: str, *, seconds: float = 30.0) -> None:
    """Wait until the API that started this attempt has noted it: in the audit log first, then its row."""
    deadline = time.monotonic() + seconds
    while attempt not in store.attempts(run):
        if time.monotonic() >= deadline:
            raise InputError(
                f"run {attempt} was not started through this server", remedy="foedus study run STUDY"
            )
        time.sleep(0.05)


def _is_current(store: Store, run: str, attempt: str) -> bool:
    row = store.run(run)
    return row is not None and row.status not in TERMINAL and store.attempts(run)[-1] == attempt
