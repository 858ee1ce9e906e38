"""What a report is made of: sentences of three kinds, and the blocks that hold them.

- A **fact** is a sentence of the catalogue whose every value is read from an entry of an audit log, or from a
  document whose digest such an entry holds. It cites those entries; without one it can't be made.
- A **judgement** is what a named person answered to a question of the catalogue. Unanswered, it is shown as open.
- A **note** is a sentence of the catalogue on law or method, without any value: it says nothing about the study.

Everything is plain JSON, so that a checker needs nothing of this module but `derive`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InputError, VerificationError
from .sources import Entry, Json, Path, Sources, at

Sentence = dict[str, Any]
Block = dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """A place where a value stands: a path in an entry, or in a document that the entry binds."""

    entry: Entry
    path: Path
    document: str = ""


@dataclass(frozen=True)
class Value:
    """What is read at some places, and what is worked out from it (`derive`)."""

    by: str
    readings: tuple[Reading, ...]


def one(entry: Entry, *path: str | int, document: str = "") -> Value:
    """The value at one place, as it is."""
    return Value("is", (Reading(entry, path, document),))


def of(by: str, readings: Sequence[Reading]) -> Value:
    """A value worked out from several places."""
    return Value(by, tuple(readings))


def derive(by: str, read: Sequence[Json]) -> Json:
    """Work out a value from what was read.

    ``is`` the one value, or the one that all are · ``each`` all of them, once, in order · ``count`` how many ·
    ``sum``, ``most``, ``range`` (least and most) · ``length`` of the one list · ``fewest`` the shortest list's length ·
    ``names`` of the one list's items · ``missing`` the first list's names that are not among the others ·
    ``same`` how many of the others equal the first · ``odds`` e^x · ``threshold`` t of (parties, colluders,
    min_silos), as `treaty.Treaty.threshold`.

    Raises:
        VerificationError: what was read is not of that kind.
    """
    try:
        return _derive(by, read)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise VerificationError(f"the values of a fact do not give its {by!r}: {error!r}") from error


def _derive(by: str, read: Sequence[Json]) -> Json:
    if not read:
        raise ValueError("nothing was read")
    first, *others = read
    match by:
        case "is":
            if any(value != first or type(value) is not type(first) for value in others):
                raise ValueError("the values differ")
            return first
        case "each":
            return list(dict.fromkeys(read))
        case "count":
            return len(read)
        case "sum":
            return sum(read)
        case "range":
            return [min(read), max(read)]
        case "most":
            return max(read)
        case "length":
            return len(first)
        case "fewest":
            return min(len(value) for value in read)
        case "names":
            return [item["name"] for item in first]
        case "missing":
            return [item["name"] for item in first if item["name"] not in others]
        case "same":
            return sum(value == first for value in others)
        case "odds":
            return math.exp(first)
        case "threshold":
            parties, colluders, least = read
            return max((len(parties) + colluders) // 2 + 1, least)
    raise KeyError(by)


def fact(sources: Sources, name: str, /, *cited: Entry, **values: Value) -> Sentence:
    """The fact `name` of the catalogue. It cites the entries its values are read from, and those in `cited`.

    Raises:
        VerificationError: a document is not the one an entry has the digest of, or a value is not there.
        InputError: nothing is cited.
    """
    entries = {e.place: e for e in (*cited, *(r.entry for v in values.values() for r in v.readings))}
    if not entries:
        raise InputError(f"the fact {name!r} cites no log entry: it can't be stated")
    places = sorted(entries)
    told: dict[str, Any] = {}
    for key, value in values.items():
        read, origins = [], []
        for reading in value.readings:
            content = sources.bound(reading.entry, reading.document)
            read.append(at(content, reading.path))
            origin: dict[str, Any] = {"cite": places.index(reading.entry.place), "at": list(reading.path)}
            origins.append(origin | ({"in": reading.document} if reading.document else {}))
        told[key] = {"by": value.by, "from": origins, "is": derive(value.by, read)}
    cites = [{"log": log, "index": index, "leaf": entries[log, index].leaf} for log, index in places]
    return {"kind": "fact", "id": name, "values": told, "cites": cites}


def note(name: str) -> Sentence:
    """The note `name` of the catalogue."""
    return {"kind": "note", "id": name}


# ── blocks ───────────────────────────────────────────────────────────────────────────────────────


def heading(name: str, level: int = 1) -> Block:
    return {"block": "heading", "label": name, "level": level}


def cover(lines: Mapping[str, Sentence]) -> Block:
    """Lines of the table on the first page: mark -> fact."""
    return {"block": "cover", "lines": [{"mark": name, "sentences": [said]} for name, said in lines.items()]}


def paragraph(*sentences: Sentence) -> Block:
    return {"block": "paragraph", "sentences": list(sentences)}


def bullets(*sentences: Sentence) -> Block:
    return {"block": "bullets", "sentences": list(sentences)}


def rows(head: Sequence[str], facts: Sequence[Sentence]) -> Block:
    """A table with a fact in every line: its sentence is written in cells, parted by ``|``."""
    return {"block": "rows", "head": list(head), "facts": list(facts)}


def answers(*judgements: Sentence) -> Block:
    """Questions, and under each what was answered."""
    return {"block": "answers", "sentences": list(judgements)}


def choices(head: Sequence[str], lines: Sequence[tuple[Sentence, Sequence[Sentence]]]) -> Block:
    """A table of yes-or-no judgements, each beside what the logs show of it."""
    told = [{"judgement": judgement, "sentences": list(facts)} for judgement, facts in lines]
    return {"block": "choices", "head": list(head), "lines": told}


def risks(*judgements: Sentence) -> Block:
    """A table of rated risks."""
    return {"block": "risks", "sentences": list(judgements)}


def items(lines: Sequence[tuple[str, Sequence[Sentence]]]) -> Block:
    """A table of an article's points, each with its sentences."""
    return {"block": "items", "lines": [{"item": name, "sentences": list(said)} for name, said in lines]}


def sentences_of(blocks: Sequence[Mapping[str, Any]]) -> list[Sentence]:
    """Every sentence of some blocks, in the order of reading."""
    found: list[Sentence] = []
    for block in blocks:
        found += block.get("sentences", []) + block.get("facts", [])
        for line in block.get("lines", []):
            found += ([line["judgement"]] if "judgement" in line else []) + line["sentences"]
    return found
