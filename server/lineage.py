"""What the server writes into its lineage: a run of a study, each opened sum, each release, and how the run ended.

Ids are worked out from the run, so a coordinator that was killed and tells it all again adds nothing. Of the silos the server
knows what their receipts say: the table's name, and the entry of the silo's log with each round's cohort.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from ..compliance import approvals
from ..compliance.auditlog.log import AuditLog
from ..compliance.lineage import Dataset, Event, EventType, Lineage, names, pair, run_id
from ..compliance.lineage import facets as f
from ..documents import Envelope
from ..errors import VerificationError
from ..federation.secure_sum import Sum
from .case import Case

PRODUCER = "https://foedus.invalid/foedus-server"
FILE = "lineage.db"
_ROUNDS = 100  # in one event


def of_server(home: Path, origin: str) -> Lineage:
    """The lineage of a server's directory."""
    return Lineage(home / FILE, names.namespace(origin), PRODUCER)


class RunLineage:
    """The lineage of one run, in the coordinator's hands."""

    def __init__(self, case: Case) -> None:
        self._case, self._study = case, case.study_envelope.digest
        self.store = Lineage(case.lineage, names.namespace(case.origin), PRODUCER)
        self._started = case.started
        self._run = names.of_study(self._started, self._study, case.run, case.origin)
        told = names.purpose(case.study.purpose, self._study, case.run, case.treaty_envelope.digest)
        self._facets: Mapping[str, f.Json] = {f.Purpose.facet: told}
        self._given = [(a.digest, approvals.parse(a)) for a in case.approvals]

    def begin(self) -> None:
        """The coordinator takes the run."""
        case = self._case
        inputs = [
            names.document("study", case.origin, self._study),
            *(names.document("approval", case.origin, name) for name, _ in self._given),
        ]
        facets = {**self._facets, f.Approvals.facet: f.approvals(self._study, self._given)}
        self.store.emit(self._own("START", inputs, facets))

    def summed(self, result: Sum, digest: str) -> None:
        """A round's sum was opened."""
        case = self._case
        plan = case.study.round(result.round, case.treaty)
        told = names.secure_sum(
            result.round, plan.task, result.survivors, case.treaty.threshold, plan.mode.witness, digest
        )
        given = [names.update(silo, self._study, case.run, result.round) for silo in result.survivors]
        total = names.total(case.origin, self._study, case.run, result.round)
        self.store.emit(
            *pair(self._part("secure sum", [str(result.round)], given, [total], {f.SecureSum.facet: told}))
        )

    def released(
        self, released: Mapping[str, Envelope], receipts: Mapping[str, Envelope], epsilon: float
    ) -> str:
        """Model and metrics were released. Returns the run's events as JSON lines, as they are kept.

        Of each silo in a sum first what its receipt says; then each release; then the end.
        """
        case = self._case
        events: list[Event] = []
        for silo in sorted({silo for s in case.sums for silo in s.survivors}):
            for number, (given, made) in enumerate(self._by_receipt(silo, receipts.get(silo))):
                events += pair(self._part(f"silo {silo}", [str(number)], given, made, {}))
        origins = [
            names.document("study", case.origin, self._study),
            *(names.document("approval", case.origin, name) for name, _ in self._given),
            *(names.total(case.origin, self._study, case.run, s.round) for s in case.sums),
        ]
        cost = self._cost(epsilon)
        for file, envelope in sorted(released.items()):
            what = names.document(
                "model" if file == "model.json" else "metrics", case.origin, envelope.digest
            )
            events += pair(self._part("release", [file], origins, [what], {f.DpCost.facet: cost}))
        tags = {"epsilon": str(cost["epsilon"]), "delta": str(cost["delta"])}
        events.append(self._own("COMPLETE", (), {**self._facets, f.DpCost.facet: cost}, tags))
        self.store.emit(*events)
        return self.store.lines(study=self._study, run=case.run).decode()

    def failed(self, reason: str) -> None:
        """The coordinator ends the run without a release."""
        self.store.emit(self._own("FAIL", (), {**self._facets, "errorMessage": f.error(reason[:500])}))

    def _by_receipt(
        self, silo: str, receipt: Envelope | None
    ) -> Iterator[tuple[list[Dataset], list[Dataset]]]:
        """What a silo took and gave, a hundred rounds an event: of a thousand, one event would be too large.

        Of a silo that was lost on the way, and signed no receipt, the cohorts are not known here.
        """
        case = self._case
        entries = None if receipt is None else receipt.payload.get("cohorts")
        known = entries if isinstance(entries, dict) else {}
        rounds = [s.round for s in case.sums if silo in s.survivors]
        orders = names.table(silo, case.study.table.name)
        for start in range(0, len(rounds), _ROUNDS):
            part = rounds[start : start + _ROUNDS]
            told = [str(known[str(number)]) for number in part if str(number) in known]
            cohorts = [names.cohort(silo, case.study.purpose, entry) for entry in told]
            yield [orders, *cohorts], [names.update(silo, self._study, case.run, n) for n in part]

    def _own(
        self,
        kind: EventType,
        inputs: Sequence[Dataset],
        facets: Mapping[str, f.Json],
        tags: Mapping[str, str] | None = None,
    ) -> Event:
        parent = names.of_treaty(self._case.treaty_envelope.digest, self._case.origin)
        said = {"purpose": self._case.study.purpose, **(tags or {})}
        return Event(self._run[0], self._run[2], kind, parent, inputs, (), said, facets)

    def _part(
        self,
        what: str,
        which: Sequence[str],
        inputs: Sequence[Dataset],
        outputs: Sequence[Dataset],
        facets: Mapping[str, f.Json],
    ) -> Event:
        ident = run_id(self._started, what, *which, self._study, self._case.run)
        tags = {"purpose": self._case.study.purpose}
        job = names.job(self._study, what)
        return Event(ident, job, "COMPLETE", self._run, inputs, outputs, tags, {**self._facets, **facets})

    def _cost(self, epsilon: float) -> f.Json:
        case = self._case
        return f.dp_cost(
            epsilon=epsilon,
            delta=case.study.privacy.delta,
            mode=case.study.privacy.mode.name,
            accountant=names.ACCOUNTANT,
            unit=case.treaty.unit,
            partners=case.treaty.overlap.max_partners_per_customer,
            covers="study",
        )


def note_end(home: Path, log: AuditLog, study: str, run: str, kind: str, reason: str) -> None:
    """A run that somebody stopped, or that was given up: an ABORT or a FAIL, if the coordinator has begun it and not ended it.

    Args:
        kind: ``stopped`` or ``failed``.
    """
    path = home / FILE
    if not path.is_file():
        return
    store = of_server(home, log.origin)
    started = started_at(log, study, run)
    (ident, _, job) = names.of_study(started, study, run, log.origin)
    for found, event in store.open_runs():
        if found == str(ident) and event["job"]["name"] == job:
            store.end(event, "ABORT" if kind == "stopped" else "FAIL", reason)


def started_at(log: AuditLog, study: str, run: str) -> datetime:
    """The time of the log's entry run.started of a run.

    Raises:
        VerificationError: there is none.
    """
    for entry in log.entries():
        record = entry.record
        if (record["action"], record["subject"], record["details"].get("run")) == ("run.started", study, run):
            return datetime.fromisoformat(record["time"])
    raise VerificationError(f"run {run} is not in the audit log")
