"""What foedus says beside OpenLineage's own words: facets of runs and datasets, each with a schema in `schemas/`.

Consumers drop facets that they do not know, without a word. So whatever matters to one of them is said a second time in the
standard facets `tags`, `columnLineage` and `errorMessage`; ours say it exactly.

No facet has room for a customer, a count of customers or a person's name: events may be sent elsewhere. A model
here and its file in `schemas/` accept and refuse the same; the tests compare them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from openlineage.client.generated.column_lineage_dataset import (
    ColumnLineageDatasetFacet,
    Fields,
    InputField,
    Transformation,
)
from openlineage.client.generated.dataset_version_dataset import DatasetVersionDatasetFacet
from openlineage.client.generated.error_message_run import ErrorMessageRunFacet
from openlineage.client.generated.job_type_job import JobTypeJobFacet
from openlineage.client.generated.parent_run import Job, ParentRunFacet, Run
from openlineage.client.generated.tags_dataset import TagsDatasetFacet
from openlineage.client.generated.tags_run import TagsRunFacet
from openlineage.client.serde import Serde
from pydantic import AfterValidator, Field, ValidationError

from ...errors import InputError
from ..approvals import Approval
from ..treaty import Document, Level, Name, explain

Json = dict[str, Any]
SCHEMAS = Path(__file__).parent / "schemas"
_VERSION = "1-0-0"
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def is_time(text: str) -> bool:
    """Whether a text is an RFC 3339 time: Marquez answers 400 to any other."""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return _TIME.fullmatch(text) is not None


def _time(text: str) -> str:
    if not is_time(text):
        raise ValueError("not an RFC 3339 time")
    return text


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, hex")]
Time = Annotated[str, AfterValidator(_time)]
Text = Annotated[str, Field(min_length=1, max_length=500)]
Count = Annotated[int, Field(ge=0)]
Epsilon = Annotated[float, Field(ge=0)] | Literal["infinite"]


class OwnFacet(Document):
    """One of our facets; its fields are those of the schema of the same name."""

    facet: ClassVar[str]
    definition: ClassVar[str]

    @classmethod
    def schema_url(cls) -> str:
        """Where `_schemaURL` points: a URN, as nothing is fetched from anywhere."""
        return f"urn:foedus:schema:lineage:{cls.facet}:{_VERSION}#/$defs/{cls.definition}"

    @classmethod
    def made(cls, **fields: Any) -> Json:
        """The facet as JSON, checked; fields that are None are left out.

        Raises:
            InputError: a field is not what the schema asks for.
        """
        given = {name: value for name, value in fields.items() if value is not None}
        return {**cls.checked(given), "_schemaURL": cls.schema_url()}

    @classmethod
    def checked(cls, fields: Mapping[str, Any]) -> Json:
        """The fields of a facet of this kind, or InputError. What is not known is left out, and never null."""
        if _has_null(fields):
            raise InputError(f"{cls.facet}: null is no value")
        try:
            return cls.model_validate(_tuples(fields)).model_dump(mode="json", exclude_none=True)
        except ValidationError as error:
            raise explain(error, cls.facet) from error


def _has_null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_null, value.values()))
    return any(map(_has_null, value)) if isinstance(value, list | tuple) else value is None


def _tuples(value: Any) -> Any:
    """Lists as tuples: our documents are frozen and strict."""
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


class Purpose(OwnFacet):
    """Run facet: what a run was for, and by which signed study."""

    facet = "foedus_purpose"
    definition = "FoedusPurposeRunFacet"

    purpose: Text
    basis: Literal["consent"] = "consent"
    study: Digest
    run: Text
    treaty: Digest | None = None


class Consent(OwnFacet):
    """Dataset facet of a cohort: which entry of the silo's audit log states it, and what that says."""

    facet = "foedus_consent"
    definition = "FoedusConsentDatasetFacet"

    purpose: Text
    entry: Digest
    categories: tuple[Text, ...] | None = None
    at: Time | None = None
    root: Digest | None = None
    log_size: Count | None = None


class DpCost(OwnFacet):
    """Run facet: ε for one customer, whom it is for, and who worked it out."""

    facet = "foedus_dp_cost"
    definition = "FoedusDpCostRunFacet"

    epsilon: Epsilon
    delta: Annotated[float, Field(ge=0, lt=1)]
    mode: Literal["distributed", "local", "central"]
    accountant: Text
    unit: Text
    partners: Annotated[int, Field(ge=1)]
    covers: Literal["study", "paid here"]


class Masking(OwnFacet):
    """Dataset facet of a masked table: the method, what was asked, and each column's role. It is no claim of anonymity."""

    facet = "foedus_masking"
    definition = "FoedusMaskingDatasetFacet"

    method: Text
    k: Annotated[int, Field(ge=1)] | None = None
    policy: Digest | None = None
    columns: dict[Text, Text]


class SecureSum(OwnFacet):
    """Run facet of one round: whose vectors are in the sum, and the digest of what was opened."""

    facet = "foedus_secure_sum"
    definition = "FoedusSecureSumRunFacet"

    round: Annotated[int, Field(ge=1)]
    task: Text
    survivors: tuple[Name, ...]
    threshold: Annotated[int, Field(ge=1)]
    witness: Literal["checked", "shown"]
    sum: Digest | None = None


class Approved(Document):
    """One signed approval, by the digest of its document. Who signed stands in that document."""

    digest: Digest
    level: Level
    party: Name | None = None
    decision: Literal["approve", "reject"]
    time: Time
    expires: Time


class Approvals(OwnFacet):
    """Run facet: the approvals that a run rests on."""

    facet = "foedus_approval"
    definition = "FoedusApprovalRunFacet"

    study: Digest
    approvals: tuple[Approved, ...]


OWN: Mapping[str, type[OwnFacet]] = {
    kind.facet: kind for kind in (Purpose, Consent, DpCost, Masking, SecureSum, Approvals)
}


def check_own(name: str, facet: Mapping[str, Any]) -> None:
    """Raise InputError unless a facet with a name of ours is what its schema says.

    A facet that only begins like one of ours is refused too: a reader would take it for ours.
    """
    kind = OWN.get(name)
    if kind is None:
        if name.startswith("foedus_"):
            raise InputError(f"{name} is no facet of foedus")
        return
    if facet.get("_schemaURL") != kind.schema_url():
        raise InputError(f"{name}: another _schemaURL than {kind.schema_url()}")
    kind.checked({k: v for k, v in facet.items() if k not in ("_producer", "_schemaURL")})


def dp_cost(*, epsilon: float, **fields: Any) -> Json:
    """The facet of a privacy loss; infinity, which is not private, is written as a word.

    Raises:
        InputError: no privacy loss (negative, NaN), or another field is not what it must be.
    """
    if math.isnan(epsilon) or epsilon < 0:
        raise InputError(f"{DpCost.facet}: ε {epsilon} is no privacy loss")
    return DpCost.made(epsilon="infinite" if math.isinf(epsilon) else float(epsilon), **fields)


def approvals(study: str, given: Iterable[tuple[str, Approval]]) -> Json:
    """The facet of (digest, approval) pairs."""
    return Approvals.made(
        study=study,
        approvals=[
            {"digest": digest, "level": a.level, "decision": a.decision, "time": a.time, "expires": a.expires}
            | ({} if a.party is None else {"party": a.party})
            for digest, a in given
        ],
    )


# ── OpenLineage's own ────────────────────────────────────────────────────────────────────────────


_RUN_TAGS, _DATASET_TAGS = TagsRunFacet._get_schema(), TagsDatasetFacet._get_schema()


def _standard(facet: Any) -> Json:
    found = Serde.to_dict(facet)
    return {k: v for k, v in found.items() if k != "_producer" and (k != "_deleted" or v)}


def parent(run: UUID, namespace: str, job: str) -> Json:
    """The run that started this one."""
    return _standard(ParentRunFacet(run=Run(runId=str(run)), job=Job(namespace, job)))


def run_tags(tags: Mapping[str, str]) -> Json:
    """Tags of a run, for consumers that know no facet of ours."""
    return {"_schemaURL": _RUN_TAGS, "tags": _tags(tags)}


def dataset_tags(tags: Mapping[str, str]) -> Json:
    """Tags of a dataset."""
    return {"_schemaURL": _DATASET_TAGS, "tags": _tags(tags)}


def _tags(tags: Mapping[str, str]) -> list[Json]:
    # By hand, not by openlineage-python's classes: every dataset of every event has some, and those take half the time.
    return [{"key": key, "value": value, "source": "FOEDUS"} for key, value in tags.items()]


def error(message: str) -> Json:
    """Why a run failed or was aborted: a code and a sentence that say nothing of data."""
    return _standard(ErrorMessageRunFacet(message=message, programmingLanguage="PYTHON"))


def version(digest: str) -> Json:
    """The digest of a released document."""
    return _standard(DatasetVersionDatasetFacet(datasetVersion=digest))


JOB_TYPE = _standard(JobTypeJobFacet(processingType="BATCH", integration="FOEDUS", jobType="JOB"))


class Origin(Document):
    """A column that goes into another.

    Attributes:
        kind: ``IDENTITY``, ``TRANSFORMATION`` or ``AGGREGATION`` (direct); ``JOIN``, ``FILTER``, ``GROUP_BY`` or
            ``SORT`` (indirect: it decides which rows, not what is in them).
        masked: the original can't be read back from the result.
    """

    namespace: str
    dataset: str
    column: str
    kind: Literal["IDENTITY", "TRANSFORMATION", "AGGREGATION", "JOIN", "FILTER", "GROUP_BY", "SORT"]
    masked: bool = False

    @property
    def direct(self) -> bool:
        return self.kind in ("IDENTITY", "TRANSFORMATION", "AGGREGATION")


def column_lineage(columns: Mapping[str, Iterable[Origin]], whole: Iterable[Origin] = ()) -> Json:
    """Which columns each column comes from; `whole` are those that decide on the rows of all of them."""

    def field(origin: Origin) -> InputField:
        kind = "DIRECT" if origin.direct else "INDIRECT"
        how = Transformation(kind, origin.kind, masking=origin.masked)
        return InputField(origin.namespace, origin.dataset, origin.column, [how])

    return _standard(
        ColumnLineageDatasetFacet(
            fields={name: Fields([field(o) for o in origins]) for name, origins in columns.items()},
            dataset=[field(o) for o in whole],
        )
    )
