"""Lineage events: what the OpenLineage specification requires, our facet, the file, the graph."""

from __future__ import annotations

import json
import math
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from foedus.compliance.lineage import (
    PRIVACY_FACET,
    PRIVACY_SCHEMA,
    Dataset,
    Event,
    Lineage,
    graph,
    privacy_facet,
    read_events,
)
from foedus.errors import InputError

PRODUCER = "https://example.com/foedus/0.1.0"
RUN = UUID("0198c0de-0000-7000-8000-000000000001")
PARENT = UUID("0198c0de-0000-7000-8000-000000000002")
DIGEST = "ab" * 32

# Written from the required fields of spec/OpenLineage.json 2-0-2 (the wheel ships no schema).
BASE_FACET = {
    "type": "object",
    "properties": {
        "_producer": {"type": "string", "format": "uri"},
        "_schemaURL": {"type": "string", "format": "uri"},
    },
    "required": ["_producer", "_schemaURL"],
}
FACETS = {"type": "object", "additionalProperties": BASE_FACET}
NAMED = {
    "type": "object",
    "properties": {"namespace": {"type": "string"}, "name": {"type": "string"}, "facets": FACETS},
    "required": ["namespace", "name"],
}
RUN_EVENT = {
    "type": "object",
    "properties": {
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "eventTime": {"type": "string", "format": "date-time"},
        "producer": {"type": "string", "format": "uri"},
        "schemaURL": {"const": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"},
        "run": {
            "type": "object",
            "properties": {"runId": {"type": "string", "format": "uuid"}, "facets": FACETS},
            "required": ["runId"],
        },
        "job": NAMED,
        "inputs": {"type": "array", "items": NAMED},
        "outputs": {"type": "array", "items": NAMED},
    },
    "required": ["run", "job", "eventTime", "producer", "schemaURL"],
}
PARENT_FACET = {
    "type": "object",
    "properties": {
        "run": {"type": "object", "properties": {"runId": {"format": "uuid"}}, "required": ["runId"]},
        "job": NAMED,
    },
    "required": ["run", "job", "_producer", "_schemaURL"],
}


def validate(value: Any, schema: dict[str, Any]) -> None:
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(value)


def our_schema() -> dict[str, Any]:
    schema = json.loads(PRIVACY_SCHEMA.read_bytes())
    Draft202012Validator.check_schema(schema)
    return {**schema, "$ref": "#/$defs/FoedusPrivacyRunFacet"}


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    return Lineage(tmp_path / "lineage.jsonl", "foedus://retail", PRODUCER)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lineage.jsonl"


def a_facet(**more: Any) -> dict[str, Any]:
    return privacy_facet(
        purpose="dpv:CustomerRelationshipManagement",
        study=DIGEST,
        mode="distributed",
        epsilon=1.25,
        delta=1e-6,
        **more,
    )


def a_study(lineage: Lineage) -> None:
    tables = [Dataset("bank/customers", {"dataSource": {"name": "客户"}}), Dataset("shop/customers")]
    lineage.emit(RUN, "study/churn", "START", inputs=tables, parent=(PARENT, "treaty/retail"))
    facet = a_facet(
        survivors=["bank", "shop"], consent_snapshot={"bank": DIGEST}, rounds=20, audit_log_size=7
    )
    lineage.emit(RUN, "study/churn", "COMPLETE", tables, [Dataset("model/churn")], {PRIVACY_FACET: facet})


def test_the_schema_of_this_test_checks_formats() -> None:
    good = {"eventTime": "2026-01-01T00:00:00Z", "producer": PRODUCER, "job": {"namespace": "n", "name": "j"}}
    good |= {"run": {"runId": str(RUN)}, "schemaURL": RUN_EVENT["properties"]["schemaURL"]["const"]}  # type: ignore[index]
    validate(good, RUN_EVENT)
    bad_time = {**good, "eventTime": "2026-01-01T00:00:00Z[Europe/London]"}
    for bad in (bad_time, {**good, "run": {"runId": "7"}}, {**good, "eventType": "DONE"}):
        with pytest.raises(ValidationError):
            validate(bad, RUN_EVENT)


def test_events_are_what_the_specification_requires(lineage: Lineage, path: Path) -> None:
    a_study(lineage)
    start, complete = read_events(path)
    for event in (start, complete):
        validate(event, RUN_EVENT)
        assert event["eventTime"].endswith("Z")
        assert event["producer"] == PRODUCER
        assert event["run"]["runId"] == str(RUN)
        assert event["job"] == {"namespace": "foedus://retail", "name": "study/churn", "facets": {}}
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert [d["name"] for d in start["inputs"]] == ["bank/customers", "shop/customers"]
    assert start["inputs"][0]["facets"]["dataSource"]["name"] == "客户"
    parent = start["run"]["facets"]["parent"]
    validate(parent, PARENT_FACET)
    assert parent["run"]["runId"] == str(PARENT)
    assert parent["job"]["name"] == "treaty/retail"
    assert parent["_producer"] == PRODUCER
    assert "parent" not in complete["run"]["facets"]


def test_our_facet_is_what_our_schema_says(lineage: Lineage, path: Path) -> None:
    a_study(lineage)
    facet = read_events(path)[1]["run"]["facets"][PRIVACY_FACET]
    validate(facet, our_schema())
    assert facet["_schemaURL"] == our_schema()["$id"] + "#/$defs/FoedusPrivacyRunFacet"
    assert facet["survivors"] == ["bank", "shop"]
    for change in ({"epsilon": -1}, {"epsilon": "much"}, {"mode": "none"}, {"study": "x"}, {"colour": "red"}):
        with pytest.raises(ValidationError):
            validate({**facet, **change}, our_schema())
    for name in ("purpose", "study", "mode", "epsilon", "delta", "_producer"):
        with pytest.raises(ValidationError):
            validate({k: v for k, v in facet.items() if k != name}, our_schema())


def test_not_private_is_said_and_not_null(lineage: Lineage, path: Path) -> None:
    facet = privacy_facet(purpose="dpv:A", study=DIGEST, mode="central", epsilon=math.inf, delta=0)
    lineage.emit(RUN, "study/x", "FAIL", facets={PRIVACY_FACET: facet})
    written = read_events(path)[0]["run"]["facets"][PRIVACY_FACET]
    assert written["epsilon"] == "infinite"
    validate(written, our_schema())
    for epsilon, delta, study in ((-1, 0, DIGEST), (math.nan, 0, DIGEST), (1, 1, DIGEST), (1, 0, "AB" * 32)):
        with pytest.raises(InputError):
            privacy_facet(purpose="dpv:A", study=study, mode="local", epsilon=epsilon, delta=delta)


def test_a_facet_may_bring_its_own_schema(lineage: Lineage, path: Path) -> None:
    url = "https://openlineage.io/spec/facets/1-0-0/TagsRunFacet.json#/$defs/TagsRunFacet"
    tags = {"tags": [{"key": "pii", "value": "none"}], "_schemaURL": url}
    lineage.emit(RUN, "j", "ABORT", facets={"tags": tags, "x_plain": {"a": 1}})
    facets = read_events(path)[0]["run"]["facets"]
    assert facets["tags"]["_schemaURL"] == url
    assert facets["x_plain"]["_schemaURL"].endswith("OpenLineage.json#/$defs/RunFacet")
    assert tags == {
        "tags": [{"key": "pii", "value": "none"}],
        "_schemaURL": url,
    }  # the caller's is left alone


def test_a_batch_is_one_append(lineage: Lineage, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(descriptor))
    moment = datetime(2026, 11, 22, 13, 48, 57, 5, tzinfo=UTC)
    lineage.emit_many([Event(uuid4(), f"job-{i}", "START", at=moment) for i in range(500)])
    lineage.emit_many([])
    assert len(synced) == 1
    events = read_events(path)
    assert [event["job"]["name"] for event in events] == [f"job-{i}" for i in range(500)]
    assert events[0]["eventTime"] == "2026-11-22T13:48:57.000005Z"


@pytest.mark.parametrize(
    "event",
    [
        Event(RUN, "", "START"),
        Event(RUN, "j", "DONE"),  # type: ignore[arg-type]
        Event(RUN, "j", "START", inputs=[Dataset("")]),
        Event(RUN, "j", "START", at=datetime(2026, 1, 1)),
        Event(RUN, "j", "START", facets={"x": {"a": math.nan}}),
        Event(RUN, "j", "START", facets={"x": {"a": object()}}),
        Event(RUN, "j", "START", facets={"x": {"a": b"bytes"}}),
    ],
)
def test_a_bad_event_leaves_nothing(lineage: Lineage, path: Path, event: Event) -> None:
    with pytest.raises(InputError):
        lineage.emit_many([Event(RUN, "good", "START"), event])
    assert not path.exists()


def test_a_lineage_needs_a_namespace_and_a_producer(path: Path) -> None:
    for namespace, producer in (("", PRODUCER), ("n", ""), ("n", "not a uri")):
        with pytest.raises(InputError):
            Lineage(path, namespace, producer)


def test_nothing_is_sent(lineage: Lineage, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")
    a_study(lineage)
    assert len(read_events(path)) == 2


def test_threads_share_a_file(lineage: Lineage, path: Path) -> None:
    def run(name: str) -> None:
        other = Lineage(path, "foedus://retail", PRODUCER)
        for i in range(20):
            other.emit_many([Event(uuid4(), f"{name}{i}", "START", [Dataset("x" * 5000)])] * 2)

    threads = [threading.Thread(target=run, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [event["job"]["name"] for event in read_events(path)]
    assert len(names) == 160
    assert names[::2] == names[1::2]  # batches stay whole


@pytest.mark.parametrize("tail", [b'{"event', b"x" * 200_000])
@pytest.mark.parametrize("before", [0, 1])
def test_a_torn_line_is_refused_and_then_overwritten(
    lineage: Lineage, path: Path, tail: bytes, before: int
) -> None:
    for _ in range(before):
        lineage.emit(RUN, "first", "START")
    with path.open("ab") as file:
        file.write(tail)
    with pytest.raises(InputError, match=f"line {before + 1}: cut off"):
        read_events(path)
    lineage.emit(RUN, "second", "START")
    assert [event["job"]["name"] for event in read_events(path)] == [*["first"][:before], "second"]


def _without(event: dict[str, Any], *keys: str) -> dict[str, Any]:
    out = json.loads(json.dumps(event))
    at = out
    for key in keys[:-1]:
        at = at[key]
    del at[keys[-1]]
    return dict(out)


def test_a_bad_line_is_named(lineage: Lineage, path: Path) -> None:
    a_study(lineage)
    good = path.read_bytes()
    event = read_events(path)[1]
    bad: list[Any] = [
        _without(event, key) for key in ("eventTime", "producer", "schemaURL", "run", "job", "eventType")
    ]
    bad += [_without(event, "run", "runId"), _without(event, "job", "name")]
    bad += [_without(event, "run", "facets", PRIVACY_FACET, "_producer"), [], "x", 7]
    bad += [
        {**event, "eventTime": text}
        for text in ("2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z", 3)
    ]
    bad += [{**event, "eventType": "DONE"}, {**event, "run": {"runId": "7"}}, {**event, "inputs": {}}]
    bad += [{**event, "outputs": ["x"]}, {**event, "run": {**event["run"], "facets": []}}]
    for line in (
        *(json.dumps(value).encode() for value in bad),
        b"",
        b"\xff",
        b'{"a":1,"a":2}',
        b"{",
        b"NaN",
    ):
        path.write_bytes(good + line + b"\n" + good)
        with pytest.raises(InputError, match=r"lineage\.jsonl, line 3: "):
            read_events(path)
    path.write_bytes(good + good)
    assert len(read_events(path)) == 4
    with pytest.raises(InputError, match="none"):
        read_events(path.with_name("none"))
    path.write_bytes(b"")
    assert read_events(path) == []


def test_the_graph_is_what_flows_where(lineage: Lineage, path: Path) -> None:
    a_study(lineage)
    lineage.emit(uuid4(), "score", "COMPLETE", [Dataset("model/churn")], [Dataset("bank/scores")])
    nodes, edges = graph(read_events(path))
    study, model = ("job", "study/churn"), ("dataset", "model/churn")
    assert nodes == [
        ("dataset", "bank/customers"), ("dataset", "bank/scores"), model, ("dataset", "shop/customers"),
        ("job", "score"), study,
    ]  # fmt: skip
    assert edges == [
        (("dataset", "bank/customers"), study), (model, ("job", "score")), (("dataset", "shop/customers"), study),
        (("job", "score"), ("dataset", "bank/scores")), (study, model),
    ]  # fmt: skip
    assert graph([]) == ([], [])


def test_two_namespaces_are_not_one_dataset(lineage: Lineage, path: Path) -> None:
    lineage.emit(RUN, "j", "COMPLETE", [Dataset("customers")])
    Lineage(path, "foedus://bank", PRODUCER).emit(RUN, "j", "COMPLETE", [Dataset("customers")])
    nodes, edges = graph(read_events(path))
    assert nodes[0] == ("dataset", "foedus://bank/customers")
    assert (len(nodes), len(edges)) == (4, 2)
