"""Lineage: which tables, consents, studies, releases and models came from which.

Events of OpenLineage 2-0-2 (openlineage.io/spec), built by the classes of openlineage-python and kept
as JSON lines in a file of our own; nothing is ever sent. (Its file transport opens the file per event
and does not sync it.) Any OpenLineage consumer can be fed from the file. Many drop the facets they
don't know without a word, so this file, not the consumer, is the record.

A run is one START and one of COMPLETE, FAIL, ABORT under the same run id.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import UUID

from openlineage.client import event_v2 as openlineage
from openlineage.client.generated.parent_run import Job as ParentJob
from openlineage.client.generated.parent_run import ParentRunFacet
from openlineage.client.generated.parent_run import Run as ParentRun
from openlineage.client.serde import Serde

from ..documents import parse_json
from ..errors import InputError

EventType = Literal["START", "COMPLETE", "FAIL", "ABORT"]
Facet = Mapping[str, Any]
Node = tuple[Literal["dataset", "job"], str]

PRIVACY_FACET = "foedus_privacy"
PRIVACY_SCHEMA = Path(__file__).with_name("schemas") / "foedus_privacy.json"
_PRIVACY_URL = "urn:foedus:schema:lineage:foedus_privacy:1-0-0#/$defs/FoedusPrivacyRunFacet"
_SPEC = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|\\^`]+")


@dataclass(frozen=True)
class Dataset:
    """A table, consent snapshot, study, release or model: its name, and facets by name."""

    name: str
    facets: Mapping[str, Facet] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """What happened to a run. `at` None means now; `parent` is the run that started this one."""

    run_id: UUID
    job: str
    event: EventType
    inputs: Sequence[Dataset] = ()
    outputs: Sequence[Dataset] = ()
    facets: Mapping[str, Facet] = field(default_factory=dict)
    parent: tuple[UUID, str] | None = None
    at: datetime | None = None


def privacy_facet(
    *,
    purpose: str,
    study: str,
    mode: Literal["local", "distributed", "central"],
    epsilon: float,
    delta: float,
    **more: Any,
) -> dict[str, Any]:
    """The facet `foedus_privacy` of a run (`schemas/foedus_privacy.json`).

    Args:
        study: SHA-256 (hex) of the signed study.
        epsilon: of this run, for one customer; infinity (not private) is written as "infinite".
        more: partners, noise_multiplier, parties, survivors, rounds, consent_snapshot, audit_log_size.

    Raises:
        InputError: a value out of its range.
    """
    if math.isnan(epsilon) or epsilon < 0 or not 0 <= delta < 1:
        raise InputError(f"{PRIVACY_FACET}: no privacy loss (ε {epsilon}, δ {delta})")
    if not re.fullmatch("[0-9a-f]{64}", study):
        raise InputError(f"{PRIVACY_FACET}: the study is not a SHA-256 in hex")
    loss: float | str = "infinite" if math.isinf(epsilon) else epsilon
    return {"purpose": purpose, "study": study, "mode": mode, "epsilon": loss, "delta": delta, **more}


class Lineage:
    """An append-only file of lineage events; threads and processes may share it.

    Args:
        path: the file (JSON lines); made if needed.
        namespace: of the jobs and datasets named here ("foedus://treaty").
        producer: URI of the software that writes, with its version.

    Raises:
        InputError: an empty namespace, or a producer that is no URI.
    """

    def __init__(self, path: Path, namespace: str, producer: str) -> None:
        if not namespace or not _URI.fullmatch(producer):
            raise InputError("lineage needs a namespace, and a producer that is a URI")
        self._path, self._namespace, self._producer = path, namespace, producer

    def emit(
        self,
        run_id: UUID,
        job: str,
        event: EventType,
        inputs: Sequence[Dataset] = (),
        outputs: Sequence[Dataset] = (),
        facets: Mapping[str, Facet] | None = None,
        parent: tuple[UUID, str] | None = None,
    ) -> None:
        """Record one event of now; it is on disk when the call returns. Errors as `emit_many`."""
        self.emit_many([Event(run_id, job, event, inputs, outputs, facets or {}, parent)])

    def emit_many(self, events: Sequence[Event]) -> None:
        """Record a batch of events under one sync to disk.

        Facets get ``_producer`` and, where they don't bring their own, a ``_schemaURL``.

        Raises:
            InputError: an empty name, an unknown event type, a naive time, or a facet JSON can't hold.
        """
        lines = [self._line(event) for event in events]
        if lines:
            _append(self._path, "".join(lines).encode())

    def _line(self, event: Event) -> str:
        if event.event not in get_args(EventType):
            raise InputError(f"{event.event!r} is no event of a run: {', '.join(get_args(EventType))}")
        if not event.job or not all(dataset.name for dataset in (*event.inputs, *event.outputs)):
            raise InputError("a job or dataset has no name")
        facets: dict[str, Any] = self._facets(event.facets, "RunFacet")
        if event.parent is not None:
            run, job = event.parent
            facets["parent"] = ParentRunFacet(
                run=ParentRun(runId=str(run)), job=ParentJob(self._namespace, job), producer=self._producer
            )
        built = openlineage.RunEvent(
            eventTime=_rfc3339(datetime.now(UTC) if event.at is None else event.at),
            producer=self._producer,
            eventType=openlineage.RunState[event.event],
            run=openlineage.Run(runId=str(event.run_id), facets=facets),
            job=openlineage.Job(self._namespace, event.job),
            inputs=[
                openlineage.InputDataset(
                    self._namespace, d.name, facets=self._facets(d.facets, "DatasetFacet")
                )
                for d in event.inputs
            ],
            outputs=[
                openlineage.OutputDataset(
                    self._namespace, d.name, facets=self._facets(d.facets, "DatasetFacet")
                )
                for d in event.outputs
            ],
        )
        try:
            return (
                json.dumps(Serde.to_dict(built), sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"job {event.job}: a facet is not JSON ({error})") from error

    def _facets(self, facets: Mapping[str, Facet], kind: str) -> dict[str, Any]:
        return {
            name: {
                "_schemaURL": _PRIVACY_URL if name == PRIVACY_FACET else f"{_SPEC}/{kind}",
                **facet,
                "_producer": self._producer,
            }
            for name, facet in facets.items()
        }


def _append(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # A last line without its end was cut off by a crash, before its batch was acknowledged.
            end = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - 65_536)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
            file.truncate(end)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def _rfc3339(moment: datetime) -> str:
    if moment.utcoffset() is None:
        raise InputError(f"{moment} has no timezone")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a file, oldest first.

    Raises:
        InputError: unreadable, or a line that is no OpenLineage run event; the line is named.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    events = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            event = parse_json(line)
            _check(event)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error.message}") from error
        events.append(event)
    if lines[-1]:
        raise InputError(f"{path}, line {len(lines)}: cut off")
    return events


def _check(event: Any) -> None:
    """Raise unless `event` has what the specification requires of a RunEvent."""
    _need(isinstance(event, dict), "not an object")
    for name in ("eventTime", "producer", "schemaURL"):
        _need(isinstance(event.get(name), str), f"no {name}")
    _need(_is_time(event["eventTime"]), f"eventTime {event['eventTime']!r} is not an RFC 3339 time")
    types = [state.value for state in openlineage.RunState]
    _need(event.get("eventType") in types, f"eventType {event.get('eventType')!r} is unknown")
    run = event.get("run")
    _need(isinstance(run, dict) and _is_uuid(run.get("runId")), "run has no runId that is a UUID")
    _check_named(event.get("job"), "job")
    _check_facets(run.get("facets", {}), "run")
    for name in ("inputs", "outputs"):
        datasets = event.get(name, [])
        _need(isinstance(datasets, list), f"{name} is not a list")
        for dataset in datasets:
            _check_named(dataset, name)


def _check_named(value: Any, what: str) -> None:
    named = isinstance(value, dict) and all(isinstance(value.get(k), str) for k in ("namespace", "name"))
    _need(named, f"{what} without namespace and name")
    _check_facets(value.get("facets", {}), what)


def _check_facets(facets: Any, what: str) -> None:
    _need(isinstance(facets, dict), f"the facets of {what} are not an object")
    for name, facet in facets.items():
        complete = isinstance(facet, dict) and all(
            isinstance(facet.get(k), str) for k in ("_producer", "_schemaURL")
        )
        _need(complete, f"facet {name} of {what} lacks _producer or _schemaURL")


def _need(condition: bool, problem: str) -> None:
    if not condition:
        raise InputError(problem)


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return _TIME.fullmatch(text) is not None


def _is_uuid(value: Any) -> bool:
    try:
        return isinstance(value, str) and str(UUID(value)) == value.lower()
    except ValueError:
        return False


def graph(events: Sequence[Mapping[str, Any]]) -> tuple[list[Node], list[tuple[Node, Node]]]:
    """What flows where, for drawing: nodes and edges, each once, sorted.

    A node is ``("dataset" | "job", name)``; an edge goes from an input to its job, from a job to its
    output. Where the events come from several namespaces, a name is written ``namespace/name``.
    """
    named = [x for e in events for x in (e["job"], *e.get("inputs", ()), *e.get("outputs", ()))]
    qualified = len({x["namespace"] for x in named}) > 1

    def node(kind: Literal["dataset", "job"], x: Mapping[str, Any]) -> Node:
        return kind, f"{x['namespace']}/{x['name']}" if qualified else x["name"]

    nodes: set[Node] = set()
    edges: set[tuple[Node, Node]] = set()
    for event in events:
        job = node("job", event["job"])
        inputs = {node("dataset", x) for x in event.get("inputs", ())}
        outputs = {node("dataset", x) for x in event.get("outputs", ())}
        nodes |= {job} | inputs | outputs
        edges |= {(x, job) for x in inputs} | {(job, x) for x in outputs}
    return sorted(nodes), sorted(edges)
