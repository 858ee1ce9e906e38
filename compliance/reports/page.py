"""A report as one HTML page. Everything on it follows from the report's JSON, which the page carries within.

It loads nothing and runs nothing. Equal reports give equal bytes, so a page is checked by drawing it again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, TemplateError
from markupsafe import Markup

from ...documents import canonical, parse_json
from ...errors import InputError, VerificationError
from . import wording
from .answers import RATINGS
from .build import FORMAT, Report, digest
from .sentences import Sentence, sentences_of
from .sources import NODE
from .wording import Language

_HOME = Path(__file__).parent
_DATA = re.compile(r'<script type="application/json" id="foedus-report">(.*?)</script>', re.DOTALL)
_MARKS = {"server": "S", "node": "N"}
_NAMED = 4  # so many marks a fact bears at most
_SIGNERS = {"pipia": 3, "dpia": 3, "ropa": 2, "model-card": 1, "epsilon": 1}


def html(report: Report) -> str:
    """The page of a report.

    Raises:
        InputError: a sentence is not in the catalogue or lacks a value, or the report lacks a part.
    """
    # SAFETY: the style is our own file; JSON in a script element ends it only by "<".
    try:
        return _template().render(
            report=report,
            words=_Words(report),
            digest=digest(report),
            numbered=_numbered(report["blocks"]),
            signers=_SIGNERS[report["kind"]],
            style=Markup((_HOME / "page.css").read_text(encoding="utf-8")),  # noqa: S704
            data=Markup(canonical(report).decode().replace("<", "\\u003c")),  # noqa: S704
        )
    except TemplateError as error:
        raise InputError(f"the report can't be drawn: {error}") from error


@cache
def _template() -> Template:
    return Environment(
        loader=FileSystemLoader(_HOME),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html.j2")


def read(page: str) -> Report:
    """The report that a page carries.

    Raises:
        InputError: not a report. VerificationError: it carries none, or several.
    """
    found = _DATA.findall(page)
    if len(found) != 1:
        raise VerificationError(f"the page carries {len(found)} reports in machine-readable form, not one")
    report = parse_json(found[0])
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise InputError("not a report that this foedus can read")
    return report


def node_log_size(page: str) -> int | None:
    """How many entries the node's log had when the report was made; None if it cites no node's log.

    Raises:
        InputError, VerificationError: as `read`, or it does not say so.
    """
    try:
        sizes = {log["log"]: log["size"] for log in read(page)["logs"]}
    except (KeyError, TypeError) as error:
        raise VerificationError("the report does not say which logs it is from") from error
    if type(size := sizes.get(NODE, 0)) is not int:
        raise VerificationError("the report does not say how long the node's log was")
    return size if NODE in sizes else None


def _numbered(blocks: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Every block, headings with their number."""
    first = second = 0
    found = []
    for block in blocks:
        number = ""
        if block["block"] == "heading" and block["level"] == 1:
            first, second = first + 1, 0
            number = f"{first}"
        elif block["block"] == "heading":
            second += 1
            number = f"{first}.{second}"
        found.append((number, block))
    return found


class _Words:
    """What the page says, in the report's language."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.language: Language = report["language"]

    def label(self, group: str, name: str = "") -> str:
        return wording.label(group, name, self.language)

    def day(self, value: str) -> str:
        return wording.day(value, self.language)

    def time(self, value: str) -> str:
        return wording.write("{t:time}", {"t": value}, self.language)

    def text(self, sentence: Sentence) -> str:
        """A fact or note, written out."""
        kind = {"fact": "facts", "note": "notes"}[sentence["kind"]]
        values = {name: value["is"] for name, value in sentence.get("values", {}).items()}
        return wording.write(wording.template(kind, sentence["id"], self.language), values, self.language)

    def cells(self, sentence: Sentence) -> list[str]:
        """A fact that is a line of a table."""
        kind = {"fact": "facts"}[sentence["kind"]]
        values = {name: value["is"] for name, value in sentence["values"].items()}
        parts = wording.template(kind, sentence["id"], self.language).split(" | ")
        return [wording.write(part, values, self.language) for part in parts]

    def question(self, sentence: Sentence) -> str:
        return wording.template("questions", sentence["id"], self.language)

    def rating(self, value: str) -> str:
        return self.label("ratings", value)

    def ratings(self) -> tuple[str, ...]:
        return RATINGS

    def marks(self, sentence: Sentence) -> list[tuple[str, str]]:
        """``(mark, anchor)`` of what a fact cites; neighbours are joined."""
        spans: list[list[tuple[str, int]]] = []
        for cite in sentence["cites"]:
            place = cite["log"], cite["index"]
            if spans and spans[-1][-1] == (place[0], place[1] - 1):
                spans[-1].append(place)
            else:
                spans.append([place])
        found = []
        for span in spans:
            first, last = (f"{_MARKS[log]}{index}" for log, index in (span[0], span[-1]))
            found.append((first if first == last else f"{first}–{last}", first))
        return found

    def abridged(self, sentence: Sentence) -> str:
        """How many entries are cited, if too many to name each mark; the appendix has them all."""
        if len(self.marks(sentence)) <= _NAMED:
            return ""
        return wording.write(self.label("marks", "entries"), {"n": len(sentence["cites"])}, self.language)

    def mark(self, entry: Mapping[str, Any]) -> str:
        return f"{_MARKS[entry['log']]}{entry['index']}"

    def record(self, entry: Mapping[str, Any]) -> Any:
        return parse_json(entry["body"])

    def plain(self, value: Any) -> str:
        return wording.plain(str(value))

    def used(self, name: str) -> list[str]:
        """``path = value`` of each value that facts read from a document, and the marks that bind it."""
        found = set()
        for sentence in sentences_of(self._report["blocks"]):
            for value in sentence.get("values", {}).values():
                for origin in value["from"]:
                    if origin.get("in") == name:
                        path = ".".join(
                            "*" if value["by"] != "is" and type(s) is int else str(s) for s in origin["at"]
                        )
                        told = json.dumps(value["is"], ensure_ascii=False)
                        by = "=" if value["by"] == "is" else f"→ {value['by']}"
                        found.add(wording.plain(f"{path} {by} {told}"))
        return sorted(found)

    def binding(self, name: str) -> list[str]:
        places = {
            (cite["log"], cite["index"])
            for sentence in sentences_of(self._report["blocks"])
            for value in sentence.get("values", {}).values()
            for origin in value["from"]
            if origin.get("in") == name
            for cite in [sentence["cites"][origin["cite"]]]
        }
        return [f"{_MARKS[log]}{index}" for log, index in sorted(places)]
