"""A report as one JSON value, from which its page is drawn and everything in it is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import date
from typing import Any

from ...documents import canonical, parse_json
from ...errors import InputError
from .outlines import outline
from .sentences import Sentence, sentences_of
from .sources import Sources
from .wording import LANGUAGES, Language, edition

Report = dict[str, Any]
FORMAT = "foedus report 1"


def build(kind: str, sources: Sources, answers: Mapping[str, Any], language: Language, made: date) -> Report:
    """The report of a kind.

    Args:
        sources: from a bundle that was verified.
        answers: as `answers.checked` gives them.
        made: the date the report bears.

    Raises:
        InputError: no such report or language, or it would be dated before what it is about ended.
        VerificationError: the logs don't hold what the report has to state.
    """
    plan = outline(kind)
    if language not in LANGUAGES:
        raise InputError(f"no reports in {language!r}", remedy=f"there are: {', '.join(LANGUAGES)}")
    if plan.public and sources.party:
        raise InputError(
            f"a {kind} goes out to others: a node's own counts have no place in it",
            remedy="leave out --node, and give --treaty",
        )
    if made < sources.ended.date():
        raise InputError(
            f"a report of {made} can't be about a run that was logged until {sources.ended.date()}",
            remedy="--date is the day on which the report is made",
        )
    blocks = plan.blocks(sources, answers)
    sentences = sentences_of(blocks)
    cited = sorted(
        {(c["log"] != "server", c["log"], c["index"]) for s in sentences for c in s.get("cites", [])}
    )
    entries = [sources.log(log).entries[index] for _, log, index in cited]
    report = {
        "format": FORMAT,
        "catalogue": edition(),
        "kind": kind,
        "language": language,
        "made": made.isoformat(),
        "keep_until": _years_later(made, plan.years).isoformat(),
        "study": sources.study,
        "run": sources.run,
        "party": sources.party,
        "logs": [
            {"log": log.name, "origin": log.origin, "size": len(log.entries), "root": log.root}
            for log in sources.logs
        ],
        "blocks": blocks,
        "entries": [{"log": e.log, "index": e.index, "leaf": e.leaf, "body": e.body} for e in entries],
        "documents": _documents(sentences, sources),
        "answers": dict(answers),
        "open": [q for q in plan.questions if q not in answers],
    }
    return dict(parse_json(canonical(report)))  # as a reader of its page gets it, to the order of keys


def _documents(sentences: list[Sentence], sources: Sources) -> list[dict[str, str]]:
    used = {o["in"] for s in sentences for v in s.get("values", {}).values() for o in v["from"] if "in" in o}
    return [{"name": name, "digest": sources.documents[name].digest} for name in sorted(used)]


def _years_later(day: date, years: int) -> date:
    """The same day of a later year; 1 March for 29 February, which is the later choice."""
    try:
        return day.replace(year=day.year + years)
    except ValueError:
        return date(day.year + years, 3, 1)


def digest(report: Report) -> str:
    """SHA-256 (hex) of the report's canonical JSON: what its pages bear at their foot."""
    return hashlib.sha256(canonical(report)).hexdigest()
