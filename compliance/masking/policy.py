"""What is to be masked and how far: a policy, from YAML or code.

::

    method: local            # or global, mondrian
    k: 10
    suppression_limit: 0.01
    columns:
      name:   {role: identifying}
      age:    {role: quasi-identifier, hierarchy: {intervals: [5, 10, 20]}, loss: extent}
      city:   {role: quasi-identifier, hierarchy: city.csv}
      plan:   {role: sensitive, l: 2, t: 0.3}
      orders: {role: insensitive}

Files are looked for beside the policy's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    InstanceOf,
    Tag,
    ValidationError,
    model_validator,
)

from ...documents import read_text
from ...errors import InputError
from ..treaty import explain
from . import hierarchies
from .domains import MISSING, Loss
from .hierarchies import Hierarchy
from .models import (
    Closeness,
    DistinctDiversity,
    EntropyDiversity,
    KAnonymity,
    Metric,
    Model,
    Presence,
    RecursiveDiversity,
)
from .roles import Role
from .tables import Coded, Missing


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


class Method(StrEnum):
    """How labels are chosen."""

    LOCAL = "local"
    """Each class as little as it can: least loss."""
    GLOBAL = "global"
    """One level for each column, the best there is: silos can agree on it."""
    MONDRIAN = "mondrian"
    """Intervals or sets of ordered values; needs no hierarchy."""


class Builder(_Part):
    """A hierarchy made from the values: exactly one of the first four."""

    intervals: tuple[float, ...] | None = Field(
        None, description="widths of numbers' intervals", min_length=1
    )
    sizes: tuple[int, ...] | None = Field(
        None, description="how many ordered values to a label", min_length=1
    )
    redact: Literal["right", "left"] | None = Field(None, description="where characters become * first")
    dates: tuple[str, ...] | None = Field(None, description="day, month, quarter, year, decade", min_length=1)
    origin: float = Field(0.0, description="a border of the intervals")

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [x for x in (self.intervals, self.sizes, self.redact, self.dates) if x is not None]
        if len(given) != 1:
            raise ValueError("a hierarchy is a file or exactly one of intervals, sizes, redact, dates")
        return self

    def build(self, values: tuple[str, ...], name: str) -> Hierarchy:
        """The hierarchy of these values, in their order."""
        if self.intervals is not None:
            return hierarchies.intervals(values, self.intervals, self.origin, name)
        if self.sizes is not None:
            return hierarchies.ordered(values, self.sizes, name)
        if self.dates is not None:
            return hierarchies.dates(values, self.dates, name)
        return hierarchies.redaction(values, from_left=self.redact == "left", name=name)


def _kind(source: object) -> str:
    """Which kind of hierarchy is given: by its file, by how to build it, or itself."""
    if isinstance(source, Hierarchy):
        return "given"
    return "built" if isinstance(source, dict | Builder) else "file"


_KINDS = ("file", "built", "given")
Source = Annotated[
    Annotated[Path, Tag("file")]
    | Annotated[Builder, Tag("built")]
    | Annotated[InstanceOf[Hierarchy], Tag("given")],
    Discriminator(_kind),
]


class Column(_Part):
    """One column. `hierarchy`, `order`, `loss` and `weight` are of quasi-identifiers, `l` to `distance` of sensitive ones."""

    role: Role
    hierarchy: Source | None = None
    order: tuple[str, ...] | None = Field(None, description="the values in their order", min_length=1)
    loss: Loss = Loss.LEAVES
    weight: Annotated[float, Field(gt=0)] = 1.0
    l: Annotated[float, Field(ge=1)] | None = None
    diversity: Literal["distinct", "entropy", "recursive"] = "distinct"
    c: Annotated[float, Field(gt=0)] | None = None
    t: Annotated[float, Field(ge=0, le=1)] | None = None
    distance: Metric = Metric.EQUAL

    @model_validator(mode="after")
    def _fits_role(self) -> Self:
        of = {
            Role.QUASI: {"hierarchy", "order", "loss", "weight"},
            Role.SENSITIVE: {"hierarchy", "order", "l", "diversity", "c", "t", "distance"},
        }
        if strange := self.model_fields_set - of.get(self.role, set()) - {"role"}:
            raise ValueError(f"{', '.join(sorted(strange))}: not of a column that is {self.role}")
        if (self.diversity == "recursive") != (self.c is not None):
            raise ValueError("recursive diversity needs c, and no other takes one")
        if self.diversity == "recursive" and self.l is not None and self.l != int(self.l):
            raise ValueError("recursive diversity needs a whole l")
        if self.l is None and {"diversity", "c"} & self.model_fields_set:
            raise ValueError("diversity needs l")
        if self.t is None and "distance" in self.model_fields_set:
            raise ValueError("a distance needs t")
        if self.role is Role.SENSITIVE and (self.hierarchy is None) == (self.distance is Metric.HIERARCHICAL):
            raise ValueError("a hierarchical distance needs a hierarchy, and no other takes one")
        return self


class Population(_Part):
    """The people the table was drawn from, and the probability of being in it."""

    population: Path = Field(description="a .csv or .parquet file with the quasi-identifiers")
    low: Annotated[float, Field(ge=0, le=1)] = 0.0
    high: Annotated[float, Field(ge=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class Policy(_Part):
    """The whole policy. Sensitive columns are always measured; `l` and `t` make conditions of it."""

    k: Annotated[int, Field(ge=2, strict=True)]
    columns: Mapping[str, Column]
    method: Method = Method.LOCAL
    suppression_limit: Annotated[float, Field(ge=0, le=1)] = 0.02
    suppressed: Literal["drop", "star"] = Field(
        "drop", description="what becomes of rows no class can take: left out, or * in all quasi-identifiers"
    )
    missing: Missing = "refuse"
    labels: Literal["interval", "set"] = Field("interval", description="of mondrian")
    presence: Population | None = None
    risk_threshold: Annotated[float, Field(gt=0, le=1)] = 0.2

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.names(Role.QUASI):
            raise ValueError("no column is a quasi-identifier")
        if self.method is not Method.MONDRIAN and "labels" in self.model_fields_set:
            raise ValueError("labels are of mondrian: the other methods take those of the hierarchies")
        return self

    @classmethod
    def of(cls, content: object, what: str = "policy") -> Policy:
        """From parsed YAML.

        Raises:
            InputError: a field that is missing, unknown, out of range or of another role.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise explain(error, what, tags=_KINDS) from error

    @classmethod
    def load(cls, path: Path | str) -> Policy:
        """From a YAML file; the files it names are looked for beside it.

        Raises:
            InputError: unreadable, not YAML, or as `of`.
        """
        path = Path(path)
        try:
            content = yaml.safe_load(read_text(path))
        except yaml.YAMLError as error:
            raise InputError(f"{path}: not YAML: {error}") from error
        return cls.of(_beside(content, path.parent), str(path))

    def names(self, role: Role) -> list[str]:
        """The columns of a role, in order."""
        return [name for name, column in self.columns.items() if column.role is role]

    def hierarchy(self, name: str, coded: Coded) -> Hierarchy:
        """A column's hierarchy, of exactly the values that are there and in their order; value or ``*`` without one.

        Raises:
            InputError: it is no hierarchy, or lacks a value.
        """
        given, values = self.columns[name].hierarchy, coded.values
        if given is None:
            return hierarchies.flat(values, name)
        if isinstance(given, Builder):
            plain = tuple(v for v in values if v != MISSING)
            found = given.build(plain, name) if plain else hierarchies.flat(values, name)
        else:
            found = given if isinstance(given, Hierarchy) else hierarchies.read(given)
        if MISSING in values and MISSING not in found.values:
            found = found.with_own_value(MISSING)
        return found.of_values(values, name if not isinstance(given, Path) else str(given))

    def ordered(self, name: str, coded: Coded) -> Coded:
        """A column's values in the policy's order, if it gives one.

        Raises:
            InputError: the order lacks a value.
        """
        order = self.columns[name].order
        if order is None:
            return coded
        if lacking := [v for v in coded.values if v not in order and v != MISSING]:
            raise InputError(f"{name}: {lacking[0]!r} is not in its order")
        return reordered(coded, [v for v in (*order, MISSING) if v in coded.values])

    def models(self, sensitive: Mapping[str, Coded]) -> tuple[Model, ...]:
        """The conditions, for sensitive columns with these values."""
        found: list[Model] = [KAnonymity(self.k)]
        for name, coded in sensitive.items():
            column = self.columns[name]
            if column.l is not None:
                found.append(_diversity(name, column.l, column))
            if column.t is not None:
                found.append(self.closeness(name, coded))
        if self.presence is not None:
            found.append(Presence(self.presence.low, self.presence.high))
        return tuple(found)

    def closeness(self, name: str, coded: Coded) -> Closeness:
        """How a sensitive column's t is measured; at most 1 where the policy has no t."""
        column = self.columns[name]
        tree = self.hierarchy(name, coded) if column.distance is Metric.HIERARCHICAL else None
        return Closeness(name, 1.0 if column.t is None else column.t, column.distance, tree)


def _diversity(name: str, l: float, column: Column) -> Model:
    if column.c is not None:
        return RecursiveDiversity(name, int(l), column.c)
    return (EntropyDiversity if column.diversity == "entropy" else DistinctDiversity)(name, l)


def reordered(coded: Coded, order: list[str]) -> Coded:
    """The same column, its values in another order."""
    place = {value: at for at, value in enumerate(order)}
    return Coded(np.array([place[v] for v in coded.values], np.int64)[coded.codes], tuple(order))


def _beside(content: object, directory: Path) -> object:
    """Names of files as paths beside the policy."""
    if not isinstance(content, dict):
        return content
    found = dict(content)
    if isinstance(columns := found.get("columns"), dict):
        found["columns"] = {name: _located(c, "hierarchy", directory) for name, c in columns.items()}
    return _located(found, "presence", directory, "population")


def _located(value: object, key: str, directory: Path, inner: str | None = None) -> object:
    if not isinstance(value, dict) or key not in value:
        return value
    if inner is not None:
        return value | {key: _located(value[key], inner, directory)}
    return value | {key: directory / value[key]} if isinstance(value[key], str) else value
