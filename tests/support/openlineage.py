"""OpenLineage 2-0-2 for tests: its constraints, said again in our own words, and its own files where they are at hand.

No schema of the specification is in the wheel or in this repository. What follows was written from reading spec/OpenLineage.json and
spec/facets/*.json of the project's repository. With FOEDUS_OPENLINEAGE_SPEC=DIR the files in DIR are taken instead (a
checkout's ``spec`` directory): `official` is then a validator by them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.exceptions import NoSuchResource
from referencing.jsonschema import DRAFT202012

from foedus.compliance.lineage.facets import OWN, SCHEMAS

Json = dict[str, Any]
Validate = Callable[[Json], None]
CORE = "https://openlineage.io/spec/2-0-2/OpenLineage.json"
SPEC = os.environ.get("FOEDUS_OPENLINEAGE_SPEC")

_text, _uri = {"type": "string"}, {"type": "string", "format": "uri"}
_facet = {
    "type": "object",
    "properties": {"_producer": _uri, "_schemaURL": _uri},
    "required": ["_producer", "_schemaURL"],
}
_uuid = {"type": "string", "format": "uuid"}


def _all(schema: Json) -> Json:
    return {"type": "object", "additionalProperties": schema}


def _of(**properties: Any) -> Json:
    """An object that must have these; names that end in _ may be left out."""
    return {
        "type": "object",
        "properties": {name.rstrip("_"): schema for name, schema in properties.items()},
        "required": [name for name in properties if not name.endswith("_")],
    }


_field = _of(
    namespace=_text,
    name=_text,
    field=_text,
    transformations_={
        "type": "array",
        "items": _of(type={"enum": ["DIRECT", "INDIRECT"]}, subtype_=_text, masking_={"type": "boolean"}),
    },
)
_fields = {"type": "array", "items": _field}
_tags = {"type": "array", "items": _of(key=_text, value=_text, source_=_text, field_=_text)}
STANDARD: dict[str, Json] = {
    "ParentRunFacet": _of(run=_of(runId=_uuid), job=_of(namespace=_text, name=_text)),
    "TagsRunFacet": _of(tags_=_tags),
    "TagsDatasetFacet": _of(tags_=_tags),
    "ErrorMessageRunFacet": _of(message=_text, programmingLanguage=_text, stackTrace_=_text),
    "JobTypeJobFacet": _of(processingType=_text, integration=_text, jobType_=_text),
    "DatasetVersionDatasetFacet": _of(datasetVersion=_text),
    "ColumnLineageDatasetFacet": _of(fields=_all(_of(inputFields=_fields)), dataset_=_fields),
}
_dataset = _of(
    namespace=_text, name=_text, facets_=_all(_facet), inputFacets_=_all(_facet), outputFacets_=_all(_facet)
)
RUN_EVENT = _of(
    eventTime={"type": "string", "format": "date-time"},
    producer=_uri,
    schemaURL={**_uri, "const": f"{CORE}#/$defs/RunEvent"},
    eventType_={"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
    run=_of(runId=_uuid, facets_=_all(_facet)),
    job=_of(namespace=_text, name=_text, facets_=_all(_facet)),
    inputs_={"type": "array", "items": _dataset},
    outputs_={"type": "array", "items": _dataset},
)


def validate(value: Any, schema: Json, registry: Registry[Any] | None = None) -> None:
    """With formats checked, for which rfc3339-validator must be installed."""
    more = {} if registry is None else {"registry": registry}
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER, **more).validate(value)


def own_schema(name: str) -> Json:
    """The file of one of our facets, as what one facet must be."""
    schema: Json = json.loads((SCHEMAS / f"{name}.json").read_bytes())
    Draft202012Validator.check_schema(schema)
    return {**schema, "$ref": f"#/$defs/{OWN[name].definition}"}


def facets_of(event: Json) -> list[tuple[str, Json]]:
    """All facets of an event: their names, and themselves."""
    bags = [event["run"], event["job"], *event.get("inputs", ()), *event.get("outputs", ())]
    return [(name, facet) for bag in bags for name, facet in bag.get("facets", {}).items()]


def transcribed(event: Json) -> None:
    """Raise unless the event and each of its facets are what the specification, or our schema, asks for."""
    validate(event, RUN_EVENT)
    for name, facet in facets_of(event):
        if name in OWN:
            validate(facet, own_schema(name))
        else:
            what = facet["_schemaURL"].rpartition("/")[2]
            assert facet["_schemaURL"].startswith("https://openlineage.io/spec/facets/"), facet["_schemaURL"]
            validate(facet, {"allOf": [_facet, STANDARD[what]]})


def official() -> Validate:
    """The same by the specification's own files. A version that is not among them is stood in for by the one that is."""
    files = [json.loads(path.read_bytes()) for path in sorted(Path(str(SPEC)).rglob("*.json"))]
    named = {
        Path(found["$id"]).name: found for found in files if isinstance(found, dict) and "$defs" in found
    }
    own = {f"urn:foedus:schema:lineage:{name}:1-0-0": own_schema(name) for name in OWN}

    def retrieve(uri: str) -> Resource[Any]:
        found = own.get(uri) or named.get(uri.rpartition("/")[2])
        if found is None:
            raise NoSuchResource(ref=uri)
        return Resource.from_contents({**found, "$id": uri}, default_specification=DRAFT202012)

    registry: Registry[Any] = Registry(retrieve=retrieve)

    def check(event: Json) -> None:
        validate(event, {"$ref": event["schemaURL"]}, registry)
        for _, facet in facets_of(event):
            validate(facet, {"$ref": facet["_schemaURL"]}, registry)

    return check
