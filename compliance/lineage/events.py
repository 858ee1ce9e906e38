"""Events of OpenLineage 2-0-2 (openlineage.io/spec): made here, and read from anybody.

A run is one START and one of COMPLETE, FAIL, ABORT under the same id, a UUID of version 7 (RFC 9562). Every
run has a parent, as some consumers want one. Times are RFC 3339 in UTC.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import UUID

from ...documents import canonical, parse_json
from ...errors import InputError
from . import facets as f

EventType = Literal["START", "COMPLETE", "FAIL", "ABORT"]
ENDS = ("COMPLETE", "FAIL", "ABORT")
Kind = Literal[
    "table", "register", "cohort", "features", "update", "sum", "study", "approval", "model", "metrics",
    "scores", "masked table", "dataset",
]  # fmt: skip
"""What a dataset is to us; anybody else's is just a ``dataset``."""
KIND_TAG = "foedus.kind"
_TYPES = frozenset({"START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"})
_SPEC = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs"
SCHEMA_URL = f"{_SPEC}/RunEvent"
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|\\^`]+")
MAX_EVENT = 4 << 20
"""Bytes of one event: larger ones are refused, whoever made them."""
MAX_FILE = 256 << 20


@dataclass(frozen=True)
class Dataset:
    """A table, cohort, sum, model …

    Args:
        namespace: whose it is (``foedus://shop-a``); the writer's own by default.
        version: digest of the document, where it is one.
        tags: more than its kind, for consumers that know no facet of ours.
        facets: by name; ``_producer`` is added, and ``_schemaURL`` where a facet brings none.
    """

    kind: Kind
    name: str
    namespace: str | None = None
    version: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    facets: Mapping[str, f.Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """What happened to a run. `at` None means now; `parent` is (run, namespace, job) of the run it belongs to."""

    run_id: UUID
    job: str
    event: EventType
    parent: tuple[UUID, str, str]
    inputs: Sequence[Dataset] = ()
    outputs: Sequence[Dataset] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    facets: Mapping[str, f.Json] = field(default_factory=dict)
    at: datetime | None = None


def new_run_id() -> UUID:
    """A fresh UUID of version 7."""
    return _uuid7(time.time_ns() // 1_000_000, secrets.token_bytes(10))


def run_id(at: datetime, *names: str) -> UUID:
    """The run id that everybody works out alike: of what began at `at` under these names (aware time)."""
    if at.utcoffset() is None:
        raise InputError(f"{at} has no timezone")
    digest = hashlib.sha256(b"foedus lineage run\0" + canonical(list(names))).digest()
    return _uuid7(int(at.timestamp() * 1000), digest)


def _uuid7(milliseconds: int, rest: bytes) -> UUID:
    value = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(rest[:10])
    value &= ~(0xF000 << 64) & ~(0xC000 << 48)
    return UUID(int=value | 0x7000 << 64 | 0x8000 << 48)


def check_writer(namespace: str, producer: str) -> None:
    """Raise InputError unless events can be written under these names."""
    if not namespace or not _URI.fullmatch(producer):
        raise InputError("lineage needs a namespace, and a producer that is a URI")


def to_json(event: Event, namespace: str, producer: str) -> f.Json:
    """The event as OpenLineage has it.

    Raises:
        InputError: an empty name, an unknown type, a naive time, or a facet that JSON can't hold or its schema refuses.
    """
    if event.event not in get_args(EventType):
        raise InputError(f"{event.event!r} is no event of a run: {', '.join(get_args(EventType))}")
    of_run = {**event.facets, "parent": _parent(*event.parent)}
    if event.tags:
        of_run["tags"] = _run_tags(tuple(event.tags.items()))
    return {
        "eventTime": rfc3339(datetime.now(UTC) if event.at is None else event.at),
        "eventType": event.event,
        "producer": producer,
        "schemaURL": SCHEMA_URL,
        "run": {"runId": str(event.run_id), "facets": _stamped(of_run, "RunFacet", producer)},
        "job": {
            "namespace": namespace,
            "name": event.job,
            "facets": _stamped({"jobType": f.JOB_TYPE}, "JobFacet", producer),
        },
        "inputs": [_dataset(d, namespace, producer) for d in event.inputs],
        "outputs": [_dataset(d, namespace, producer) for d in event.outputs],
    }


@lru_cache(maxsize=256)
def _parent(run: UUID, namespace: str, job: str) -> f.Json:
    return f.parent(run, namespace, job)


@lru_cache(maxsize=1024)
def _run_tags(tags: tuple[tuple[str, str], ...]) -> f.Json:
    return f.run_tags(dict(tags))


@lru_cache(maxsize=1024)
def _tags(tags: tuple[tuple[str, str], ...]) -> f.Json:
    return f.dataset_tags(dict(tags))


def _dataset(dataset: Dataset, namespace: str, producer: str) -> f.Json:
    said = {**dataset.facets, "tags": _tags(((KIND_TAG, dataset.kind), *dataset.tags.items()))}
    if dataset.version is not None:
        said["version"] = f.version(dataset.version)
    return {
        "namespace": namespace if dataset.namespace is None else dataset.namespace,
        "name": dataset.name,
        "facets": _stamped(said, "DatasetFacet", producer),
    }


def _stamped(facets: Mapping[str, f.Json], kind: str, producer: str) -> f.Json:
    return {
        name: {"_schemaURL": f"{_SPEC}/{kind}", **facet, "_producer": producer}
        for name, facet in facets.items()
    }


def rfc3339(moment: datetime) -> str:
    """A time as OpenLineage wants it; InputError if it is naive."""
    if moment.utcoffset() is None:
        raise InputError(f"{moment} has no timezone")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def dumps(event: f.Json) -> bytes:
    """An event on one line: keys sorted, UTF-8.

    Raises:
        InputError: not JSON, or too large.
    """
    try:
        line = json.dumps(
            event, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"a facet is not JSON ({error})") from error
    if len(line) > MAX_EVENT:
        raise InputError(f"an event of {len(line)} bytes: at most {MAX_EVENT} are taken")
    return line


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def read_events(path: Path) -> list[f.Json]:
    """The events of a file of JSON lines, oldest first.

    Raises:
        InputError: unreadable, too large, or a line that is no OpenLineage run event; the line is named.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise InputError(f"{path}: larger than {MAX_FILE >> 20} MiB", remedy="cut it into several files")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    return parse_lines(data, str(path))


def parse_lines(data: bytes, name: str) -> list[f.Json]:
    """The events of JSON lines; errors as `read_events`."""
    lines = data.split(b"\n")
    events = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            events.append(parse(line))
        except InputError as error:
            raise InputError(f"{name}, line {number}: {error.message}") from error
    if lines[-1]:
        raise InputError(f"{name}, line {len(lines)}: cut off", remedy="ask for the whole file")
    return events


def parse(line: bytes) -> f.Json:
    """One event from anybody: what the specification requires of it, and of facets of ours what their schema says.

    Raises:
        InputError: something else.
    """
    if len(line) > MAX_EVENT:
        raise InputError(f"an event of {len(line)} bytes: at most {MAX_EVENT} are taken")
    event = parse_json(line)
    check(event)
    return event  # type: ignore[no-any-return]


def check(event: Any) -> None:
    """Raise InputError unless `event` is a run event of OpenLineage 2-0-2, and facets of ours are what they must be."""
    _need(isinstance(event, dict), "not an object")
    for name in ("eventTime", "producer", "schemaURL"):
        _need(isinstance(event.get(name), str), f"no {name}")
    _need(f.is_time(event["eventTime"]), f"eventTime {event['eventTime']!r} is not an RFC 3339 time")
    for name in ("producer", "schemaURL"):
        _need(_URI.fullmatch(event[name]) is not None, f"{name} is not a URI")
    _need(event.get("eventType") in _TYPES, f"eventType {event.get('eventType')!r} is unknown")
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
    named = isinstance(value, dict) and all(
        isinstance(value.get(k), str) and value[k] for k in ("namespace", "name")
    )
    _need(named, f"{what} without namespace and name")
    for name in ("facets", "inputFacets", "outputFacets"):
        _check_facets(value.get(name, {}), what)


def _check_facets(facets: Any, what: str) -> None:
    _need(isinstance(facets, dict), f"the facets of {what} are not an object")
    for name, facet in facets.items():
        complete = isinstance(facet, dict) and all(
            isinstance(facet.get(k), str) and _URI.fullmatch(facet[k]) for k in ("_producer", "_schemaURL")
        )
        _need(complete, f"facet {name} of {what} lacks _producer or _schemaURL")
        f.check_own(name, facet)


def _need(condition: bool, problem: str) -> None:
    if not condition:
        raise InputError(problem)


def _is_uuid(value: Any) -> bool:
    try:
        return isinstance(value, str) and str(UUID(value)) == value.lower()
    except ValueError:
        return False


# ── looking into one ─────────────────────────────────────────────────────────────────────────────


def facet_of(thing: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A facet of a run, job or dataset; empty where there is none."""
    found = thing.get("facets", {}).get(name, {})
    return found if isinstance(found, Mapping) else {}


def kind_of(dataset: Mapping[str, Any]) -> Kind:
    """What a dataset is, by its tag."""
    tags = facet_of(dataset, "tags").get("tags")
    for tag in tags if isinstance(tags, list) else []:
        if isinstance(tag, dict) and tag.get("key") == KIND_TAG and tag.get("value") in get_args(Kind):
            return tag["value"]  # type: ignore[no-any-return]
    return "dataset"


def version_of(dataset: Mapping[str, Any]) -> str | None:
    """The digest of a dataset's document."""
    found = facet_of(dataset, "version").get("datasetVersion")
    return found if isinstance(found, str) else None
