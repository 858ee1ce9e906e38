"""The ledger's words: a line, a head, a cap; and the chain that joins the lines.

A line is canonical JSON (RFC 8785)::

    {"time": …, "kind": …, "ref": …, "purpose": …, "study": …, "label": …, "event": {…} or null}

and, of the two kinds that an officer writes, ``"note"``. Its hash is SHA-256(hash of the line before ‖ line);
before the first line stands a hash of the population's name, so no ledger passes for another's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from ..documents import canonical, parse_json
from ..errors import InputError, VerificationError
from .events import Event, from_json, to_json

Kind = Literal["reserve", "commit", "abort", "restored", "written-off"]
Row = tuple[int, str, str]
"""``(number, body, hash)``, as stored and as exported."""

_FIELDS = {"time": str, "kind": str, "ref": int, "purpose": str, "study": str, "label": str}
_BY_OFFICER = ("restored", "written-off")


@dataclass(frozen=True)
class Entry:
    """What a line says: a reservation, what became of one, or what an officer decided."""

    kind: Kind
    ref: int
    purpose: str
    study: str
    label: str
    event: Event | None
    note: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Line(Entry):
    """An entry as it was written: a reservation's `ref` is its own number.

    A `written-off` line says: what was lost before it is unknown, so every budget up to here counts as spent.
    Its `note` holds the treaty's ``version`` and digest (``treaty``): only a later treaty opens a new budget.
    """

    number: int
    time: str
    hash: str

    @property
    def moment(self) -> datetime:
        """When it was written, by the node's clock."""
        return datetime.fromisoformat(self.time)

    @property
    def cost(self) -> Event:
        """The event it states.

        Raises:
            VerificationError: it states none.
        """
        if self.event is None:
            raise VerificationError(f"ledger line {self.number}: a {self.kind} without an event")
        return self.event


@dataclass(frozen=True)
class Cap:
    """ε at δ that must not be passed.

    Args:
        since: count what was reserved from then on (the start of the treaty's period); None is for life.
        version, treaty: the treaty that gives this budget, by version and digest. A write-off under it, or
            under one of the same version or later, has used it up.
    """

    epsilon: float
    delta: float
    since: datetime | None = None
    version: int = 0
    treaty: str = ""


@dataclass(frozen=True)
class Head:
    """How many lines there are, the hash of the last, and how often an officer has written off what was lost."""

    size: int
    hash: str
    write_offs: int = 0


def genesis(population: str) -> str:
    """The hash before the first line."""
    return hashlib.sha256(b"foedus/ledger\n" + population.encode()).hexdigest()


def chain(previous: str, body: str) -> str:
    """The hash of a line, from that of the line before it."""
    return hashlib.sha256(bytes.fromhex(previous) + body.encode()).hexdigest()


def compose(time: datetime, entry: Entry) -> str:
    """The body of a line."""
    record: dict[str, Any] = {
        "time": time.astimezone(UTC).isoformat(timespec="milliseconds"),
        "kind": entry.kind,
        "ref": entry.ref,
        "purpose": entry.purpose,
        "study": entry.study,
        "label": entry.label,
        "event": None if entry.event is None else to_json(entry.event),
    }
    if entry.note is not None:
        record["note"] = dict(entry.note)
    return canonical(record).decode()


def parse(row: Row) -> Line:
    """A line from what was stored.

    Raises:
        VerificationError: it is none.
    """
    number, body, stored = row
    try:
        record = parse_json(body)
        if not isinstance(record, dict):
            raise InputError("not an object")
        officer = record.get("kind") in _BY_OFFICER
        note = record.pop("note", None)
        event = None if record.get("event") is None else from_json(record["event"])
        plain = {name: value for name, value in record.items() if name != "event"}
        if (
            "event" not in record
            or {name: type(value) for name, value in plain.items()} != _FIELDS
            or plain["kind"] not in get_args(Kind)
            or isinstance(note, dict) != officer
            or (event is not None) != (plain["kind"] in ("reserve", "commit"))
        ):
            raise InputError("its fields are not those of a line")
        line = Line(number=number, event=event, hash=stored, note=note, **plain)
        if line.moment.tzinfo is None:
            raise InputError("its time has no zone")
        if line.kind == "written-off" and (type(note["version"]), type(note["treaty"])) != (int, str):
            raise InputError("a write-off names a treaty")
    except (InputError, ValueError, KeyError) as error:
        raise VerificationError(
            f"ledger line {number} is no line of a ledger: {error}", remedy=_LOOK
        ) from error
    return line


def check_chain(rows: Iterable[Row], population: str, what: str) -> Iterator[Row]:
    """The rows as they come, each found to follow from the one before it.

    Raises:
        VerificationError: one was altered, removed or put in.
    """
    previous = genesis(population)
    for expected, (number, body, stored) in enumerate(rows, 1):
        if number != expected or chain(previous, body) != stored:
            raise VerificationError(
                f"{what}: line {expected} does not follow from the one before it", remedy=_LOOK
            )
        yield number, body, stored
        previous = stored


_LOOK = "the ledger was altered; nothing may run until an officer has looked at it"
