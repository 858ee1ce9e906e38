"""What a node writes into its lineage: runs of studies, their cohorts, features and rounds; scorings; masked tables.

It is written before the thing happens: cohort, features and a round's START before the vector is masked, so that
nothing leaves that the lineage does not know of. If it can't be written, the round is refused. No event names a
customer, counts them or quotes a value. Who was used is in `subjects.db` under keyed pseudonyms, and stays here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal
from uuid import UUID

import ibis

from ..compliance import approvals
from ..compliance.auditlog.log import Entry
from ..compliance.lineage import Dataset, Event, EventType, Lineage, Subjects, Use, names, new_run_id, pair
from ..compliance.lineage import facets as f
from ..compliance.masking.policy import Policy
from ..compliance.masking.report import Report
from ..compliance.treaty import Treaty
from ..documents import Envelope
from ..errors import FoedusError, InputError, Refused
from ..federation.rounds import RoundPlan
from ..federation.study import Study
from .column_lineage import Columns, Source, columns_of
from .features import LABEL, Raw, Side, expression
from .guard import Permit
from .home import Home

PRODUCER = "https://foedus.invalid/foedus-node"
STOPPED = "NODE_STOPPED: the node's process ended before the run did"
AS_IT_WAS = "as it was"
_AS_IT_IS = ("sensitive", "insensitive", AS_IT_WAS)
UNOPENED = "ROUND_NOT_OPENED: the run ended before this round's sum was opened"


def of_node(home: Home) -> Lineage:
    """The lineage of a node's directory."""
    return Lineage(home.path / "lineage.db", names.namespace(home.party), PRODUCER)


def subjects_of(home: Home) -> Subjects:
    """Who went into what, at this node."""
    return Subjects(home.path / "subjects.db", home.path / "lineage.key")


@dataclass
class _Notes:
    """A run of a study that this process takes part in: what its events have in common, and what is open."""

    permit: Permit
    id: UUID
    parent: names.Parent
    facets: Mapping[str, f.Json]
    features: dict[Side, Dataset] = field(default_factory=dict)
    rounds: dict[int, Event] = field(default_factory=dict)  # that have begun
    recorded: dict[Side, Raw] = field(default_factory=dict)  # whose customers are in the register
    columns: Columns | None = None
    ended: bool = False

    def event(
        self, what: str, kind: EventType, inputs: Sequence[Dataset], outputs: Sequence[Dataset]
    ) -> Event:
        """An event of a part of the run."""
        tags = {"purpose": self.permit.study.purpose}
        mine = (self.id, self.parent[1], names.job(self.permit.digest, "node"))
        job = names.job(self.permit.digest, what)
        return Event(new_run_id(), job, kind, mine, inputs, outputs, tags, self.facets)


class NodeLineage:
    """The lineage of one node's studies. What an earlier process left open is aborted when this one `begin`s."""

    def __init__(self, home: Home, treaty: Treaty, treaty_digest: str) -> None:
        self._home, self._treaty, self._treaty_digest = home, treaty, treaty_digest
        self.store, self.subjects = of_node(home), subjects_of(home)
        self._runs: dict[str, _Notes] = {}
        self._begun = False

    def begin(self) -> None:
        """This process is the node now; whoever only looks at the directory does not call it."""
        if not self._begun:
            self.store.abort_open(STOPPED)
            self._begun = True

    def accept(self, permit: Permit, started: datetime, epsilon: float) -> None:
        """The node takes part in a run, which began (so the server's log) at `started`.

        Args:
            epsilon: what this silo's customers have paid for the study so far.
        """
        self.begin()
        study, digest = permit.study, permit.digest
        origin, party = self._treaty.coordinator.origin, self._home.party
        notes = _Notes(
            permit,
            new_run_id(),
            names.of_study(started, digest, permit.run, origin),
            {f.Purpose.facet: names.purpose(study.purpose, digest, permit.run, self._treaty_digest)},
        )
        given = [(a.digest, approvals.parse(a)) for a in permit.approvals]
        inputs = [
            names.document("study", origin, digest),
            *(names.document("approval", origin, name) for name, _ in given),
            names.table(party, study.table.name),
        ]
        facets = {
            **notes.facets,
            f.Approvals.facet: f.approvals(digest, given),
            f.DpCost.facet: self._cost(study, epsilon),
        }
        self.store.emit(self._own(notes, "START", inputs, facets))
        self._runs[permit.run] = notes

    def refuse(self, study: str, run: str, purpose: str, started: datetime, reason: str) -> None:
        """The node takes no part in a run. `reason` says nothing of data."""
        parent = names.of_study(started, study, run, self._treaty.coordinator.origin)
        facets = {f.Purpose.facet: names.purpose(purpose, study, run, self._treaty_digest)}
        tags = {"purpose": purpose}
        begun = Event(new_run_id(), names.job(study, "node"), "START", parent, tags=tags, facets=facets)
        self.store.emit(begun, _ended(begun, "FAIL", reason))

    def prepare(self, permit: Permit, plan: RoundPlan, side: Side, entry: Entry | None, dataset: Raw) -> None:
        """A round is about to use a cohort, as `entry` of the node's audit log states it, and these customers' rows."""
        if entry is None:
            raise InputError(f"round {plan.round}: no cohort stands in the audit log")
        notes = self._runs[permit.run]
        before = notes.recorded.get(side)
        if before is not dataset:  # after a withdrawal nobody is new, and a million need not be hashed again
            known = set() if before is None else set(before.customers.tolist())
            new = set(dataset.customers.tolist()) - known
            self.subjects.record(Use(permit.digest, permit.run, side), new)
            notes.recorded[side] = dataset
        party, told = self._home.party, entry.record["details"]
        used = names.cohort(
            party,
            permit.study.purpose,
            entry.leaf.hex(),
            categories=told["categories"],
            at=told["at"],
            root=told["root"],
            log_size=entry.index + 1,
        )
        events = [*pair(notes.event("cohort", "COMPLETE", [names.register(party)], [used]))]
        made = notes.features.get(side)
        if made is None:
            if notes.columns is None:
                notes.columns = self._columns(permit.study)
            made = notes.features[side] = self._features(permit, side, used, notes.columns)
            orders = names.table(party, permit.study.table.name)
            events += pair(notes.event("features", "COMPLETE", [orders, used], [made]))
        begun = notes.event("round", "START", [replace(made, facets={}), used], ())
        self.store.emit(*events, begun)
        notes.rounds[plan.round] = begun

    def settle(self, permit: Permit, number: int, survivors: Sequence[str]) -> None:
        """The node helps to open a round's sum over these silos. Told again, nothing more is written."""
        notes = self._runs[permit.run]
        begun = notes.rounds.get(number)
        if begun is None:
            return
        plan = permit.study.round(number, self._treaty)
        features = begun.inputs[0]
        given = names.update(self._home.party, permit.digest, permit.run, plan.round)
        from_features = [self._column(features, name) for name in _columns(permit.study)]
        masked = f.column_lineage({"update": from_features})
        witness = permit.study.privacy.mode.witness
        told = names.secure_sum(plan.round, plan.task, survivors, self._treaty.threshold, witness)
        self.store.emit(
            replace(
                begun,
                event="COMPLETE",
                outputs=[replace(given, facets={"columnLineage": masked})],
                facets={**begun.facets, f.SecureSum.facet: told},
            )
        )
        del notes.rounds[number]

    def fail(self, run: str, number: int, reason: str) -> None:
        """A round is refused. `reason` says nothing of data."""
        notes = self._runs.get(run)
        if notes is None:
            return
        known = notes.rounds.get(number)
        begun = known or notes.event("round", "START", (), ())
        self.store.emit(*([] if known else [begun]), _ended(begun, "FAIL", reason))
        notes.rounds.pop(number, None)

    def end(self, run: str, epsilon: float) -> None:
        """The run is over for this node; rounds whose sum was never opened are aborted. Once is enough."""
        notes = self._runs.get(run)
        if notes is None or notes.ended:
            return
        left = [_ended(begun, "ABORT", UNOPENED) for begun in notes.rounds.values()]
        facets = {**notes.facets, f.DpCost.facet: self._cost(notes.permit.study, epsilon)}
        self.store.emit(*left, self._own(notes, "COMPLETE", (), facets))
        notes.rounds.clear()
        notes.ended = True

    def _own(
        self, notes: _Notes, kind: EventType, inputs: Sequence[Dataset], facets: Mapping[str, f.Json]
    ) -> Event:
        cost = facets[f.DpCost.facet]
        tags = {
            "purpose": notes.permit.study.purpose,
            "epsilon": str(cost["epsilon"]),
            "delta": str(cost["delta"]),
        }
        job = names.job(notes.permit.digest, "node")
        return Event(notes.id, job, kind, notes.parent, inputs, (), tags, facets)

    def _cost(self, study: Study, epsilon: float) -> f.Json:
        return f.dp_cost(
            epsilon=epsilon,
            delta=study.privacy.delta,
            mode=study.privacy.mode.name,
            accountant=names.ACCOUNTANT,
            unit=self._treaty.unit,
            partners=self._treaty.overlap.max_partners_per_customer,
            covers="paid here",
        )

    def _columns(self, study: Study) -> Columns:
        """Which columns the features come from, as read off the query itself."""
        with self._home.orders(study.table) as found:
            schema = found.schema()
        return _read_off(study, schema, self._treaty.retention_days)

    def _features(self, permit: Permit, side: Side, used: Dataset, columns: Columns) -> Dataset:
        """The features of a side."""
        study = permit.study
        name = f"features/{permit.digest[:16]}/{permit.run}/{side}"
        told = _told(columns, names.table(self._home.party, study.table.name), used)
        return Dataset(
            "features",
            name,
            names.namespace(self._home.party),
            tags={"personal-data": "true"},
            facets={"columnLineage": told},
        )

    def _column(self, dataset: Dataset, column: str) -> f.Origin:
        space = names.namespace(self._home.party)
        return f.Origin(namespace=space, dataset=dataset.name, column=column, kind="AGGREGATION", masked=True)


@lru_cache(maxsize=64)
def _read_off(study: Study, schema: ibis.Schema, retention_days: int) -> Columns:
    """The columns of a study's features over a table of this schema: the same on each side, but for a date."""
    return columns_of(expression(ibis.table(schema, study.table.name), study, "train", retention_days))


def _columns(study: Study) -> list[str]:
    return [*dict.fromkeys(feature.called for feature in study.features), "label"]


def _told(columns: Columns, orders: Dataset, used: Dataset) -> f.Json:
    """The facet columnLineage; rows that came with the query are the cohort's."""

    def origins(sources: frozenset[Source]) -> list[f.Origin]:
        found = []
        for source in sorted(sources, key=lambda s: (s.table or "", s.column, s.kind)):
            of = used if source.table is None else orders
            space = str(of.namespace)
            found.append(f.Origin(namespace=space, dataset=of.name, column=source.column, kind=source.kind))
        return found

    direct = {("label" if name == LABEL else name): origins(d) for name, d in columns.direct.items()}
    return f.column_lineage(direct, origins(columns.indirect))


def _ended(begun: Event, kind: EventType, reason: str) -> Event:
    return replace(
        begun, event=kind, outputs=(), facets={**begun.facets, "errorMessage": f.error(reason[:500])}
    )


# ── beside studies ───────────────────────────────────────────────────────────────────────────────


def note_scoring(home: Home, treaty: str, model: Envelope, customers: Sequence[str]) -> None:
    """A released model is about to score these customers: a START, a COMPLETE, and who they were.

    Raises:
        InputError: it can't be written; then nothing is to be scored.
    """
    said, (origin,) = model.payload, model.signatures
    study, run, purpose = str(said["study"]), str(said["run"]), str(said["purpose"])
    subjects_of(home).record(Use(study, run, f"scored/{model.digest[:16]}"), customers)
    event = Event(
        new_run_id(),
        names.job(study, "scoring"),
        "COMPLETE",
        names.of_treaty(treaty, origin),
        [
            names.document("model", origin, model.digest),
            names.table(home.party, str(said["table"]["name"])),
            names.register(home.party),
        ],
        [Dataset("scores", f"scores/{model.digest[:16]}", tags={"personal-data": "true"})],
        {"purpose": purpose},
        {f.Purpose.facet: names.purpose(purpose, study, run, treaty)},
    )
    of_node(home).emit(*pair(event))


@contextmanager
def noting_masked(table: Path, out: Path, what: str, directory: Path | None) -> Iterator[Masked]:
    """A run that masks a table: a START before it is read, a FAIL if it is refused, a COMPLETE once it is written.

    Args:
        directory: the node's; by default the one that the table, or this process, is in. Without any, nothing is noted.

    Raises:
        InputError: not a node's directory, or its lineage can't be written: then nothing is masked.
    """
    masked = Masked()
    found = directory or _node_of(table)
    if found is None:
        yield masked
        return
    home = Home.load(found)
    store, source = of_node(home), Dataset("table", _named(home, table), tags={"personal-data": "true"})
    begun = Event(new_run_id(), what, "START", names.of_node(home.party), [source])
    store.emit(begun)
    try:
        yield masked
    except BaseException as error:
        code = error.code if isinstance(error, Refused) else "NOT_WRITTEN"
        with suppress(FoedusError):  # the START stands; the error itself must come through
            kind: EventType = "FAIL" if isinstance(error, FoedusError) else "ABORT"
            store.emit(_ended(begun, kind, f"{code}: the masked table was not written"))
        raise
    facets = masked.facets(store.namespace, source.name)
    made = Dataset("masked table", _named(home, out), tags={"masking": "true"}, facets=facets)
    store.emit(replace(begun, event="COMPLETE", outputs=[made]))
    masked.noted = True


@dataclass
class Masked:
    """What is to be told of a masked table: the method, and what became of each column."""

    method: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    k: int | None = None
    policy: str | None = None
    noted: bool = False

    def tell(self, report: Report, policy: Path) -> None:
        """Of a table that foedus mask wrote."""
        self.method, self.k = report.method, report.k
        self.policy = hashlib.sha256(policy.read_bytes()).hexdigest()
        self.columns = {name: str(column.role) for name, column in Policy.load(policy).columns.items()}

    def facets(self, space: str, source: str) -> Mapping[str, f.Json]:
        """The dataset's facets. Identifying columns are left out of the table, so nothing comes from them."""
        told = f.Masking.made(
            method=self.method[:500], k=self.k, policy=self.policy, columns=dict(self.columns)
        )
        kept = {}
        for name, role in self.columns.items():
            if role != "identifying":
                whole = role in _AS_IT_IS
                kind: Literal["IDENTITY", "TRANSFORMATION"] = "IDENTITY" if whole else "TRANSFORMATION"
                kept[name] = [
                    f.Origin(namespace=space, dataset=source, column=name, kind=kind, masked=not whole)
                ]
        return {f.Masking.facet: told, "columnLineage": f.column_lineage(kept)}


def _node_of(table: Path) -> Path | None:
    """The node's directory that a file, or this process, is in."""
    for place in (*table.resolve().parents, Path.cwd()):
        if (place / "node.yaml").is_file():
            return place
    return None


def _named(home: Home, path: Path) -> str:
    """A file by its place in the node's directory, or by its name alone: other paths may say who somebody is."""
    whole, base = path.resolve(), home.path.resolve()
    return str(whole.relative_to(base)) if whole.is_relative_to(base) else whole.name
