"""Events are what OpenLineage 2-0-2 asks for, our facets what their schemas say, and nothing else is read."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema.exceptions import ValidationError
from support.openlineage import RUN_EVENT, SPEC, official, own_schema, transcribed, validate

from foedus.compliance.lineage import Dataset, Event, new_run_id, read_events, run_id
from foedus.compliance.lineage import events as e
from foedus.compliance.lineage import facets as f
from foedus.errors import InputError

PRODUCER = "https://example.com/foedus/0.1.0"
DIGEST, OTHER = "ab" * 32, "cd" * 32
PARENT = (UUID("0198c0de-0000-7000-8000-000000000002"), "foedus://server", "study")
TIME = "2026-11-22T13:48:57.000005Z"

GOOD: dict[str, dict[str, Any]] = {
    "foedus_purpose": {"purpose": "dpv:A", "basis": "consent", "study": DIGEST, "run": "17", "treaty": OTHER},
    "foedus_consent": {
        "purpose": "dpv:A",
        "entry": DIGEST,
        "categories": ["user.behavior"],
        "at": TIME,
        "root": OTHER,
        "log_size": 7,
    },
    "foedus_dp_cost": {
        "epsilon": 1.25,
        "delta": 1e-6,
        "mode": "distributed",
        "accountant": "PLD",
        "unit": "one customer",
        "partners": 2,
        "covers": "study",
    },
    "foedus_masking": {"method": "local", "k": 10, "policy": DIGEST, "columns": {"年龄": "quasi-identifier"}},
    "foedus_secure_sum": {
        "round": 3,
        "task": "train",
        "survivors": ["a", "b"],
        "threshold": 3,
        "witness": "checked",
        "sum": DIGEST,
    },
    "foedus_approval": {
        "study": DIGEST,
        "approvals": [
            {
                "digest": OTHER,
                "level": "partner",
                "party": "a",
                "decision": "approve",
                "time": TIME,
                "expires": TIME,
            }
        ],
    },
}


def made(**changes: Any) -> e.f.Json:
    """An event with every facet there is."""
    own = {name: f.OWN[name].made(**fields) for name, fields in GOOD.items()}
    column = f.Origin(
        namespace="foedus://a", dataset="orders", column="金额", kind="AGGREGATION", masked=True
    )
    facets = {n: own[n] for n in ("foedus_purpose", "foedus_dp_cost", "foedus_secure_sum", "foedus_approval")}
    table = Dataset("table", "orders", "foedus://a", tags={"personal-data": "true"})
    model = Dataset(
        "model",
        "model/1",
        version=DIGEST,
        facets={
            "foedus_consent": own["foedus_consent"],
            "foedus_masking": own["foedus_masking"],
            "columnLineage": f.column_lineage(
                {"总额": [column]}, [column.model_copy(update={"kind": "JOIN"})]
            ),
        },
    )
    fields: dict[str, Any] = {"inputs": [table], "outputs": [model], "tags": {"purpose": "dpv:A"}}
    facets["errorMessage"] = f.error("CODE: a sentence")
    event = Event(new_run_id(), "study/churn", "COMPLETE", PARENT, facets=facets, **(fields | changes))
    return e.to_json(event, "foedus://server", PRODUCER)


def test_an_event_with_every_facet_is_what_the_specification_asks_for() -> None:
    event = made()
    transcribed(event)
    e.check(json.loads(e.dumps(event)))
    assert event["eventTime"].endswith("Z") and event["schemaURL"].endswith(
        "/2-0-2/OpenLineage.json#/$defs/RunEvent"
    )
    assert event["run"]["facets"]["parent"]["run"]["runId"] == str(PARENT[0])
    assert event["run"]["facets"]["tags"]["tags"] == [
        {"key": "purpose", "value": "dpv:A", "source": "FOEDUS"}
    ]
    assert {t["key"]: t["value"] for t in event["inputs"][0]["facets"]["tags"]["tags"]} == {
        "foedus.kind": "table",
        "personal-data": "true",
    }
    (transformation,) = event["outputs"][0]["facets"]["columnLineage"]["fields"]["总额"]["inputFields"][0][
        "transformations"
    ]
    assert transformation == {"type": "DIRECT", "subtype": "AGGREGATION", "masking": True}


@pytest.mark.skipif(not SPEC, reason="FOEDUS_OPENLINEAGE_SPEC names no directory with OpenLineage's schemas")
def test_the_same_by_the_specifications_own_files() -> None:
    check = official()
    event = made()
    check(event)
    for name in ("eventTime", "producer", "run", "job"):
        with pytest.raises(ValidationError):
            check({k: v for k, v in event.items() if k != name})
    for bad in ("2026-01-01T00:00:00Z[Europe/London]", "2026-01-01"):
        with pytest.raises(ValidationError):
            check({**event, "eventTime": bad})
    del event["run"]["facets"]["parent"]["job"]
    with pytest.raises(ValidationError):
        check(event)


def test_formats_are_checked_here() -> None:
    event = made()
    for change in (
        {"eventTime": "2026-01-01T00:00:00Z[Europe/London]"},
        {"run": {"runId": "7"}},
        {"eventType": "DONE"},
        {"producer": "no uri"},
    ):
        with pytest.raises(ValidationError):
            validate({**event, **change}, RUN_EVENT)


def test_tags_by_hand_are_those_of_openlineage_python() -> None:
    from openlineage.client.generated.tags_dataset import TagsDatasetFacet, TagsDatasetFacetFields
    from openlineage.client.generated.tags_run import TagsRunFacet, TagsRunFacetFields
    from openlineage.client.serde import Serde

    given = {"purpose": "dpv:A", "key": "值"}
    run = TagsRunFacet(tags=[TagsRunFacetFields(k, v, "FOEDUS") for k, v in given.items()])
    dataset = TagsDatasetFacet(tags=[TagsDatasetFacetFields(k, v, "FOEDUS") for k, v in given.items()])
    for theirs, ours in ((run, f.run_tags(given)), (dataset, f.dataset_tags(given))):
        said = Serde.to_dict(theirs)
        assert {k: v for k, v in said.items() if k not in ("_producer", "_deleted")} == ours


# ── our facets ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", GOOD)
def test_a_facet_is_what_its_schema_says_and_may_lack_nothing_it_requires(name: str) -> None:
    schema = own_schema(name)
    facet = {**f.OWN[name].made(**GOOD[name]), "_producer": PRODUCER}
    validate(facet, schema)
    f.check_own(name, facet)
    required = schema["$defs"][f.OWN[name].definition]["required"]
    for field in required:
        lacking = {k: v for k, v in facet.items() if k != field}
        with pytest.raises(ValidationError):
            validate(lacking, schema)
        if field not in ("_producer", "basis"):  # which the event's own check asks for; which has a default
            with pytest.raises(InputError):
                f.check_own(name, lacking)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        [
            "",
            "infinite",
            "study",
            "paid here",
            "a",
            "A b",
            "local",
            "checked",
            "partner",
            "consent",
            "approve",
        ]
    ),
    st.sampled_from(
        [
            "x" * 501,
            DIGEST,
            DIGEST.upper(),
            DIGEST + "\n",
            TIME,
            "2026-13-01T00:00:00Z",
            "2026-01-01T00:00:00",
        ]
    ),
    st.lists(st.sampled_from(["a", "", DIGEST, "A b"]), max_size=2),
    st.dictionaries(st.sampled_from(["a", ""]), st.sampled_from(["b", ""]), max_size=1),
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_code_and_schema_take_and_refuse_the_same(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(GOOD)))
    fields = json.loads(json.dumps(GOOD[name]))
    place = fields
    if name == "foedus_approval" and data.draw(st.booleans()):
        place = fields["approvals"][0]
    key = data.draw(st.sampled_from([*sorted(place), "colour"]))
    if data.draw(st.integers(0, 4)):
        place[key] = data.draw(VALUES)
    else:
        place.pop(key, None)
    facet = {**fields, "_producer": PRODUCER, "_schemaURL": f.OWN[name].schema_url()}
    try:
        validate(facet, own_schema(name))
        expected = True
    except ValidationError:
        expected = False
    # an integer may be written 1.0 in JSON Schema, and null is no text there; ours is as strict or stricter
    whole = any(
        isinstance(v, float) and v == int(v) for v in place.values() if not isinstance(v, bool) and v != ""
    )
    if "basis" not in fields and name == "foedus_purpose":
        return
    try:
        f.check_own(name, facet)
        found = True
    except InputError:
        found = False
    assert found == expected or (expected and whole), (facet, expected)


def test_not_private_is_said_and_not_null() -> None:
    cost = f.dp_cost(**(GOOD["foedus_dp_cost"] | {"epsilon": math.inf}))
    assert cost["epsilon"] == "infinite"
    for change in (
        {"epsilon": -1.0},
        {"epsilon": math.nan},
        {"delta": 1.0},
        {"mode": "none"},
        {"partners": 0},
    ):
        with pytest.raises(InputError):
            f.dp_cost(**(GOOD["foedus_dp_cost"] | change))


def test_a_facet_that_only_looks_like_ours_is_refused() -> None:
    good = {**f.OWN["foedus_purpose"].made(**GOOD["foedus_purpose"]), "_producer": PRODUCER}
    f.check_own("somebody_elses", {"anything": 1})
    for name, facet in (
        ("foedus_privacy", good),
        ("foedus_consent", good),
        ("foedus_purpose", {**good, "_schemaURL": "https://example.com/x"}),
        ("foedus_purpose", {**good, "customer": "K0001"}),
    ):
        with pytest.raises(InputError):
            f.check_own(name, facet)


# ── ids, making, reading ─────────────────────────────────────────────────────────────────────────


def test_run_ids_are_uuids_of_version_7() -> None:
    moment = datetime(2026, 11, 22, 13, 48, 57, 5000, tzinfo=UTC)
    ident = run_id(moment, "study", DIGEST, "17")
    assert ident == run_id(moment, "study", DIGEST, "17") != run_id(moment, "study", DIGEST, "18")
    for found in (ident, new_run_id()):
        assert found.version == 7 and found.variant == "specified in RFC 4122"
    assert ident.int >> 80 == int(moment.timestamp() * 1000)
    assert len({new_run_id() for _ in range(1000)}) == 1000
    with pytest.raises(InputError):
        run_id(datetime(2026, 1, 1), "x")


@pytest.mark.parametrize(
    "changes",
    [
        {"at": datetime(2026, 1, 1)},
        {"outputs": [Dataset("model", "x", facets={"x": {"a": math.nan}})]},
        {"outputs": [Dataset("model", "x", facets={"x": {"a": object()}})]},
        {"outputs": [Dataset("model", "\udc80")]},
        {"outputs": [Dataset("model", "x", facets={"x": {"a": "y" * e.MAX_EVENT}})]},
    ],
)
def test_what_is_no_event_is_not_made(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        e.dumps(made(**changes))


def _bad() -> list[tuple[str, Any]]:
    event = json.loads(e.dumps(made()))
    found: list[tuple[str, Any]] = [(f"no {key}", {k: v for k, v in event.items() if k != key}) for key in
             ("eventTime", "producer", "schemaURL", "run", "job", "eventType")]  # fmt: skip
    found += [("no object", x) for x in ([], "x", 7, None)]
    found += [
        ("time", {**event, "eventTime": t})
        for t in ("2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z", 3)
    ]
    found += [("type", {**event, "eventType": "DONE"}), ("run id", {**event, "run": {"runId": "7"}})]
    found += [("inputs", {**event, "inputs": {}}), ("outputs", {**event, "outputs": ["x"]})]
    found += [("no name", {**event, "job": {"namespace": "n", "name": ""}})]
    found += [("facets", {**event, "run": {**event["run"], "facets": []}})]
    for facet in ({"a": 1}, [], {"_producer": "x", "_schemaURL": "y"}):
        found.append(("facet", {**event, "run": {"runId": event["run"]["runId"], "facets": {"x": facet}}}))
    torn = json.loads(json.dumps(event))
    torn["run"]["facets"]["foedus_purpose"]["study"] = "not a digest"
    found.append(("own facet", torn))
    return found


@pytest.mark.parametrize(("what", "value"), _bad())
def test_what_is_no_event_is_not_read(what: str, value: Any, tmp_path: Path) -> None:
    file, good = tmp_path / "events.jsonl", e.dumps(made()) + b"\n"
    file.write_bytes(good + json.dumps(value).encode() + b"\n" + good)
    with pytest.raises(InputError, match=r"events\.jsonl, line 2: "):
        read_events(file)


@pytest.mark.parametrize("line", [b"", b"\xff", b'{"a":1,"a":2}', b"{", b"NaN", b"[" * 100_000])
def test_what_is_no_json_is_not_read(line: bytes, tmp_path: Path) -> None:
    file, good = tmp_path / "events.jsonl", e.dumps(made()) + b"\n"
    file.write_bytes(good + line + b"\n")
    with pytest.raises(InputError, match=r"events\.jsonl, line 2: "):
        read_events(file)
    file.write_bytes(good + good[:-20])
    with pytest.raises(InputError, match="line 2: cut off"):
        read_events(file)
    with pytest.raises(InputError, match="none"):
        read_events(tmp_path / "none")
    file.write_bytes(good + good)
    assert len(read_events(file)) == 2


def test_a_foreign_event_is_read_as_it_is() -> None:
    bare = {
        "eventTime": TIME,
        "producer": "urn:x",
        "schemaURL": "urn:y",
        "eventType": "OTHER",
        "run": {"runId": str(uuid4())},
        "job": {"namespace": "airflow", "name": "etl"},
    }
    e.check(bare)
    assert e.kind_of({"namespace": "n", "name": "x"}) == "dataset"
    assert e.version_of({"namespace": "n", "name": "x"}) is None
    odd = {"facets": {"tags": {"tags": [{"key": "foedus.kind", "value": "king"}, 7]}, "version": []}}
    assert e.kind_of(odd) == "dataset" and e.version_of(odd) is None
