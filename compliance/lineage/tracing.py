"""From a released model to what it comes from, in words: tables, consent snapshots, approvals, sums, releases, ε."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from . import events as e
from .facets import Json
from .store import Store, Stored


@dataclass(frozen=True)
class Snapshot:
    """A cohort: at which silo, and the entry of its audit log; the root where the silo's own lineage is here."""

    silo: str
    entry: str
    root: str | None
    at: str | None


@dataclass(frozen=True)
class Approval:
    """A signed approval by its digest: the level, and for whom a partner's approver speaks."""

    digest: str
    level: str
    party: str | None
    decision: str


@dataclass
class Trace:
    """What a released document comes from. `origins` are the sources of the events that say so."""

    version: str
    purposes: set[str] = field(default_factory=set)
    studies: set[tuple[str, str]] = field(default_factory=set)  # digest, run
    tables: set[tuple[str, str]] = field(default_factory=set)  # party, name
    snapshots: set[Snapshot] = field(default_factory=set)
    approvals: set[Approval] = field(default_factory=set)
    releases: set[tuple[str, str]] = field(default_factory=set)  # kind, digest
    updates: set[tuple[str, str]] = field(default_factory=set)  # party, name
    sums: set[str] = field(default_factory=set)
    costs: list[Mapping[str, object]] = field(default_factory=list)
    columns: dict[tuple[str, str], dict[str, list[str]]] = field(
        default_factory=dict
    )  # features -> column -> sources
    failures: list[tuple[str, str]] = field(default_factory=list)  # job, reason
    origins: set[str] = field(default_factory=set)
    events: list[Stored] = field(default_factory=list)

    def _take(self, stored: Stored) -> None:
        event = stored.event
        self.events.append(stored)
        self.origins.add(stored.origin)
        run = event["run"]
        purpose = e.facet_of(run, "foedus_purpose")
        if purpose:
            self.purposes.add(str(purpose["purpose"]))
            self.studies.add((str(purpose["study"]), str(purpose["run"])))
        for given in e.facet_of(run, "foedus_approval").get("approvals", ()):
            self.approvals.add(
                Approval(given["digest"], given["level"], given.get("party"), given["decision"])
            )
        cost = e.facet_of(run, "foedus_dp_cost")
        if cost.get("covers") == "study" and cost not in self.costs:
            self.costs.append(cost)
        if event["eventType"] in ("FAIL", "ABORT"):
            reason = str(e.facet_of(run, "errorMessage").get("message", "no reason told"))
            self.failures.append((str(event["job"]["name"]), reason))
        for dataset in event.get("inputs", ()):
            self._see(dataset)
        for dataset in event.get("outputs", ()):
            self._see(dataset)

    def _see(self, dataset: Json) -> None:
        party, name = str(dataset["namespace"]).removeprefix("foedus://"), str(dataset["name"])
        kind = e.kind_of(dataset)
        if kind == "table":
            self.tables.add((party, name))
        elif kind == "update":
            self.updates.add((party, name))
        elif kind == "sum":
            self.sums.add(name)
        elif kind in ("model", "metrics"):
            self.releases.add((kind, e.version_of(dataset) or name))
        elif kind == "features":
            self._columns(party, name, dataset)
        elif kind == "cohort":
            said = e.facet_of(dataset, "foedus_consent")
            if said:
                self.snapshots.add(Snapshot(party, said["entry"], said.get("root"), said.get("at")))

    def _columns(self, party: str, name: str, dataset: Json) -> None:
        fields = e.facet_of(dataset, "columnLineage").get("fields", {})
        told = {
            column: sorted(f"{s['name']}.{s['field']}" for s in said["inputFields"])
            for column, said in fields.items()
        }
        if told:
            self.columns[party, name] = told

    def merged(self) -> list[Snapshot]:
        """Snapshots, each entry once: as its silo tells it where it does."""
        best: dict[tuple[str, str], Snapshot] = {}
        for found in sorted(self.snapshots, key=lambda s: (s.silo, s.at or "", s.entry)):
            known = best.get((found.silo, found.entry))
            if known is None or known.root is None:
                best[found.silo, found.entry] = found
        return list(best.values())


def trace(store: Store, version: str) -> Trace:
    """All that a released document (its digest, or 8 digits or more) comes from, by one query of the store.

    Raises:
        InputError: no such document here, or several.
    """
    return of_events(version, store.trace(version))


def of_events(version: str, events: Iterable[Stored]) -> Trace:
    """The trace of events that are given."""
    found = Trace(version)
    for stored in events:
        found._take(stored)
    return found


def lines(found: Trace) -> Sequence[str]:
    """A trace for a person to read."""
    said: list[str] = []

    def add(title: str, items: Iterable[str]) -> None:
        for number, item in enumerate(items):
            said.append(f"{title if number == 0 else '':10} {item}")

    add("purpose", sorted(found.purposes))
    add("study", (f"{study}, run {run}" for study, run in sorted(found.studies)))
    add("released", (f"{kind} {digest}" for kind, digest in sorted(found.releases)))
    add(
        "ε",
        (
            f"{_number(c['epsilon'])} at δ {_number(c['delta'])} for {c['unit']}, {c['mode']} noise"
            for c in found.costs
        ),
    )
    add("approvals", (f"{a.level}{f' of {a.party}' if a.party else ''}: {a.decision} {a.digest}" for a in sorted(found.approvals, key=lambda a: (a.level, a.party or "", a.digest))))  # fmt: skip
    add("tables", (f"{party}: {name}" for party, name in sorted(found.tables)))
    known = {snapshot.silo for snapshot in found.snapshots}
    silent = sorted({party for party, _ in found.updates} - known)
    add(
        "consent",
        [*_snapshots(found.merged()), *(f"{p}: not known here: it signed no receipt" for p in silent)],
    )
    by_party: dict[str, int] = {}
    for party, _ in found.updates:
        by_party[party] = by_party.get(party, 0) + 1
    add(
        "sums",
        [f"{len(found.sums)}, over {', '.join(f'{n} of {p}' for p, n in sorted(by_party.items()))}"]
        if found.sums
        else [],
    )
    add("failed", (f"{job}: {reason}" for job, reason in sorted(set(found.failures))))
    add("told by", sorted({"this store's owner" if o == "own" else o for o in found.origins}))
    return said


def _snapshots(found: Sequence[Snapshot]) -> Iterable[str]:
    """One line for each silo and root: rounds that used the same cohort have an entry each."""
    groups: dict[tuple[str, str | None], list[Snapshot]] = {}
    for snapshot in found:
        groups.setdefault((snapshot.silo, snapshot.root), []).append(snapshot)
    for (silo, root), same in groups.items():
        which = f"root {root}" if root else "root known to the silo"
        first, last = same[0].entry[:16], same[-1].entry[:16]
        entries = f"entry {first}…" if len(same) == 1 else f"{len(same)} entries, {first}… to {last}…"
        yield f"{silo}: {which}; {entries}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
