"""The cohort: who consents to a use now, by SQL in the silo's own engine.

The register of consents is what counts: SQLite, written by whoever tells it something, on disk before they are
answered. To ask it about a million customers takes a column store. So a node keeps a copy of its grants
and withdrawals in DuckDB, in memory, and before every cohort reads what was told since: a withdrawal is in
force in the next batch. The copy is one process's own and is never written to disk; if the register is not
the one it was taken from (restored, replaced), it is taken anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import ibis
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ..compliance.consent import Ask, ConsentRegister
from ..compliance.consent.decisions import Cover
from ..compliance.consent.records import micros
from ..compliance.consent.store import Changes, Last, Marks
from ..errors import Refused
from .home import Home

_NONE = Marks(0, 0)
_GRANTED = pa.schema(
    [
        ("subject", pa.string()),
        ("at", pa.int64()),
        ("terms", pa.int64()),
        ("expires_at", pa.int64()),
        ("own_from", pa.int64()),
        ("guarded", pa.int64()),
    ]
)
_WITHDRAWN = pa.schema([("subject", pa.string()), ("at", pa.int64())])
_COVER = pa.schema(
    [("number", pa.int64()), ("since", pa.int64()), ("ageless", pa.bool_()), ("separate", pa.bool_())]
)
# A grant's end, its first withdrawal at or after it, is looked up when either is told; not in every cohort.
_END = """
    UPDATE granted SET out_at = ended.first FROM (
        SELECT g.subject, g."at", min(w."at") AS first FROM granted AS g
        JOIN told AS w ON w.subject = g.subject AND w."at" >= g."at" GROUP BY ALL
    ) AS ended
    WHERE granted.subject = ended.subject AND granted."at" = ended."at"
      AND (granted.out_at IS NULL OR granted.out_at > ended.first)
"""
_BEGIN = """
    INSERT INTO granted
    SELECT g.*, ended.first FROM told AS g LEFT JOIN (
        SELECT g.subject, g."at", min(w."at") AS first FROM told AS g
        JOIN withdrawn AS w ON w.subject = g.subject AND w."at" >= g."at" GROUP BY ALL
    ) AS ended ON ended.subject = g.subject AND ended."at" = g."at"
"""


@dataclass(frozen=True)
class Cohort:
    """Who may be used: a column ``subject``, sorted, each once; by the register up to `marks`, at `at`."""

    ask: Ask
    at: datetime
    marks: Marks
    frame: pd.DataFrame


class Cohorts:
    """The cohorts of one register. For one thread at a time."""

    def __init__(self, register: ConsentRegister) -> None:
        self._register = register
        self._copies: dict[str, _Copy] = {}

    def of(self, ask: Ask, at: datetime) -> Cohort:
        """Who may be used so at `at`, as the register is now."""
        copy = self._copies.setdefault(ask.purpose, _Copy())
        copy.follow(self._register, ask.purpose)
        # After the rows: terms that came between are of no row here, and none of the rows lacks its terms.
        cover = self._register.covered(ask)
        return Cohort(ask, at, copy.marks, copy.cohort(cover, micros("at", at)))


class _Copy:
    """What the register says of one purpose, in columns."""

    def __init__(self) -> None:
        self._connection: Any = None
        self.marks = _NONE
        self._last: Last | None = None

    def follow(self, register: ConsentRegister, purpose: str) -> None:
        """Take in what was told since."""
        last = self._last
        new = register.changes(purpose, self.marks, last)
        self._last = None  # if what follows fails, all is taken anew
        if self._connection is None or new.fresh or last is None:
            self._start()
        self._add(new)
        self.marks, self._last = new.marks, new.last

    def _start(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
        self._connection = ibis.duckdb.connect()
        schema = _GRANTED.append(pa.field("out_at", pa.int64()))
        self._connection.create_table("granted", schema=ibis.Schema.from_pyarrow(schema))
        self._connection.create_table("withdrawn", schema=ibis.Schema.from_pyarrow(_WITHDRAWN))

    def _add(self, new: Changes) -> None:
        """Withdrawals first: they end what is here, and what comes with them."""
        run = self._connection.raw_sql
        if new.withdrawals:
            with self._told(_WITHDRAWN, new.withdrawals):
                run("INSERT INTO withdrawn SELECT * FROM told")
                run(_END)
        if new.grants:
            with self._told(_GRANTED, new.grants):
                run(_BEGIN)

    @contextmanager
    def _told(self, schema: pa.Schema, rows: list[tuple[Any, ...]]) -> Iterator[None]:
        columns = [
            pa.array(column, field.type)
            for column, field in zip(zip(*rows, strict=True), schema, strict=True)
        ]
        self._connection.con.register("told", pa.Table.from_arrays(columns, schema=schema))
        try:
            yield
        finally:
            self._connection.con.unregister("told")

    def cohort(self, cover: Mapping[int, Cover], now: int) -> pd.DataFrame:
        found = consenting(self._connection.table("granted"), cover, now).to_pyarrow()
        return pd.DataFrame({"subject": _each_once(found["subject"]).to_pandas().astype("str")})


def _each_once(ordered: pa.ChunkedArray) -> pa.ChunkedArray:
    """Sorted subjects without repetitions; DISTINCT in the engine costs more than the rest of the query."""
    if len(ordered) < 2:
        return ordered
    first = pa.chunked_array([pa.array([True])])
    differs = pc.not_equal(ordered.slice(1), ordered.slice(0, len(ordered) - 1))
    return ordered.filter(pa.chunked_array([*first.chunks, *differs.chunks]))


def consenting(granted: ibis.Table, cover: Mapping[int, Cover], now: int) -> ibis.Table:
    """The rule of `compliance.consent.decisions` over all subjects: one column ``subject``, sorted; again for
    each grant that is in force.

    Args:
        granted: the columns of `_GRANTED`, and ``out_at``, the first withdrawal at or after ``at``.
    """
    terms = ibis.memtable(
        pa.Table.from_pylist(
            [
                {"number": n, "since": c.since, "ageless": c.ageless, "separate": c.separate}
                for n, c in cover.items()
            ],
            schema=_COVER,
        )
    )
    at = ibis.literal(now, "int64")
    g = granted.filter(
        granted.at <= at,
        granted.out_at.isnull() | (granted.out_at > at),
        granted.expires_at.isnull() | (granted.expires_at > at),
    )
    g = g.join(terms, g.terms == terms.number)
    guarded = g.guarded == 1
    entitled = ibis.cases(
        (g.own_from.isnull(), ~guarded & g.ageless),
        (g.own_from <= g.at, ~guarded),
        else_=guarded & g.separate & (g.own_from > at),
    )
    g = g.filter(g.at >= g.since, entitled)
    return g.select("subject").order_by("subject")


PURCHASES = "user.behavior.purchase_history"


def ask_of(home: Home, purpose: str, *, order_log: bool) -> Ask:
    """What a study or a model wants of this silo's customers: its purpose, on the data that the table holds.

    Nothing of one customer is shared with anyone: what leaves is a sum under masks and noise.

    Args:
        order_log: the table is read as an order log, which is purchases unless node.yaml says more.

    Raises:
        InputError: the purpose or a category is not in the vocabulary.
        Refused: node.yaml does not say what a table of customers holds.
    """
    stated = home.settings.categories
    if stated is None and not order_log:
        raise Refused(
            "CATEGORIES_UNKNOWN",
            f"{home.path}: node.yaml does not say what personal data the table holds",
            remedy="state `categories`, e.g. [user.demographic.age_range, user.behavior.purchase_history]",
        )
    return Ask(purpose, frozenset([PURCHASES] if stated is None else stated))
