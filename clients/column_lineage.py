"""Which source columns each column of an Ibis expression comes from, read off the expression itself.

Nothing is executed. A column comes *directly* from the columns whose values go into it: as they are (IDENTITY, a cast
included), through a reduction (AGGREGATION; a count of rows is of what they were grouped by), or otherwise (TRANSFORMATION). It comes *indirectly* from those that decide
which rows there are: join keys, filters, groups, sort keys. These are the words of OpenLineage's facet
columnLineage. Literals are not told: they may be values of somebody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ibis
import ibis.expr.operations as ops

from ..errors import InputError

Kind = Literal["IDENTITY", "TRANSFORMATION", "AGGREGATION", "JOIN", "FILTER", "GROUP_BY", "SORT"]
_STRENGTH: Mapping[Kind, int] = {"IDENTITY": 0, "TRANSFORMATION": 1, "AGGREGATION": 2}
_PASSING = (ops.Filter, ops.Sort, ops.Limit, ops.Distinct, ops.JoinReference, ops.SelfReference, ops.DropNull)


@dataclass(frozen=True, order=True)
class Source:
    """A column of a source table; `table` is None for rows that came with the expression (a memtable)."""

    table: str | None
    column: str
    kind: Kind


@dataclass(frozen=True)
class Columns:
    """`direct`: output column -> what its values come from; `indirect`: what decides on the rows."""

    direct: Mapping[str, frozenset[Source]]
    indirect: frozenset[Source]


def columns_of(table: ibis.Table) -> Columns:
    """The lineage of every column of an expression.

    Raises:
        InputError: the expression holds a relation that is not known here: rather nothing than a wrong answer.
    """
    return _relation(table.op(), {})


def _relation(op: Any, seen: dict[Any, Columns]) -> Columns:
    if op in seen:
        return seen[op]
    if isinstance(op, ops.InMemoryTable):
        found = _source(op, None)
    elif isinstance(op, ops.PhysicalTable):
        found = _source(op, op.name)
    elif isinstance(op, ops.Project):
        found = _made(op.values, _relation(op.parent, seen).indirect, seen)
    elif isinstance(op, ops.Aggregate):
        below = _relation(op.parent, seen).indirect
        groups = _indirect(op.groups.values(), "GROUP_BY", seen)
        found = _made({**op.groups, **op.metrics}, below | groups, seen)
    elif isinstance(op, ops.JoinChain):
        below = _relation(op.first, seen).indirect
        for link in op.rest:
            below |= _relation(link.table, seen).indirect | _indirect(link.predicates, "JOIN", seen)
        found = _made(op.values, below, seen)
    elif isinstance(op, _PASSING):
        parent = _relation(op.parent, seen)
        more: frozenset[Source] = frozenset()
        if isinstance(op, ops.Filter):
            more = _indirect(op.predicates, "FILTER", seen)
        elif isinstance(op, ops.Sort):
            more = _indirect(op.keys, "SORT", seen)
        elif isinstance(op, ops.Distinct):
            more = frozenset(Source(s.table, s.column, "GROUP_BY") for d in parent.direct.values() for s in d)
        found = Columns(parent.direct, parent.indirect | more)
    else:
        raise InputError(f"the lineage of a {type(op).__name__} is not known")
    seen[op] = found
    return found


def _source(op: Any, name: str | None) -> Columns:
    direct = {column: frozenset([Source(name, column, "IDENTITY")]) for column in op.schema}
    return Columns(direct, frozenset())


def _made(values: Mapping[str, Any], below: frozenset[Source], seen: dict[Any, Columns]) -> Columns:
    return Columns({name: frozenset(_value(value, seen)) for name, value in values.items()}, below)


def _indirect(values: Iterable[Any], kind: Kind, seen: dict[Any, Columns]) -> frozenset[Source]:
    return frozenset(Source(s.table, s.column, kind) for value in values for s in _value(value, seen))


def _value(value: Any, seen: dict[Any, Columns]) -> Iterator[Source]:
    """What a value is made of: each source once, by the strongest of what happened to it."""
    found: dict[tuple[str | None, str], Kind] = {}
    for field, kind in _fields(value, "IDENTITY"):
        for source in _relation(field.rel, seen).direct[field.name]:
            stronger = max(kind, source.kind, key=lambda k: _STRENGTH[k])
            place = (source.table, source.column)
            found[place] = max(found.get(place, stronger), stronger, key=lambda k: _STRENGTH[k])
    for (table, column), kind in found.items():
        yield Source(table, column, kind)
    for relation in _counted(value):  # how many rows there are: of what they were grouped by
        for source in _relation(relation, seen).indirect:
            if source.kind == "GROUP_BY":
                yield Source(source.table, source.column, "AGGREGATION")
    for relation in _subqueries(value):
        inner = _relation(relation, seen)
        for source in {s for d in inner.direct.values() for s in d} | inner.indirect:
            yield Source(source.table, source.column, "TRANSFORMATION")


def _fields(value: Any, kind: Kind) -> Iterator[tuple[Any, Kind]]:
    if isinstance(value, ops.Field):
        yield value, kind
        return
    if isinstance(value, ops.Reduction | ops.Analytic | ops.WindowFunction):
        kind = "AGGREGATION"
    elif not isinstance(value, ops.Alias | ops.Cast | ops.SortKey):
        kind = max(kind, "TRANSFORMATION", key=lambda k: _STRENGTH[k])
    for child in value.__children__:
        if isinstance(child, ops.Value):
            yield from _fields(child, kind)


def _counted(value: Any) -> Iterator[Any]:
    """The relations whose rows a value counts."""
    if isinstance(value, ops.CountStar | ops.CountDistinctStar):
        yield value.arg
    elif not isinstance(value, ops.Field):
        for child in value.__children__:
            if isinstance(child, ops.Value):
                yield from _counted(child)


def _subqueries(value: Any) -> Iterator[Any]:
    if isinstance(value, ops.Subquery):
        yield value.rel
    if not isinstance(value, ops.Field):
        for child in value.__children__:
            if isinstance(child, ops.Value):
                yield from _subqueries(child)
