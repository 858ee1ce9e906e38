"""The checker: nothing may stand in a finished report that the logs, a named person or the catalogue did not say.

1. The page carries one report, made with the catalogue that is here.
2. Every entry it lists is in the log, at that index, with that text and leaf hash.
3. Every sentence of fact is the catalogue's, cites an entry or more, and only ones that are listed; each of its
   values is read anew from what it cites, and no value of its template comes from elsewhere. Notes are the
   catalogue's and have no values. Statements are answers that the report carries, by a named person.
4. The page is, to the byte, what this report gives: no word on it stands outside a sentence, or was changed.
5. The report is, to the byte, what the logs and the answers give: no sentence was left out, added or moved.

Steps 1 to 3 use nothing that builds a report but `sentences.derive`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from itertools import zip_longest
from typing import Any

from ...documents import canonical
from ...errors import FoedusError, InputError, VerificationError
from . import page, wording
from .answers import checked
from .build import Report, build, digest
from .outlines import outline
from .sentences import derive, sentences_of
from .sources import Sources, at


@dataclass(frozen=True)
class Checked:
    """What was looked at, and held."""

    kind: str
    language: str
    digest: str
    facts: int
    cited: int
    statements: int
    missing: int


def check(text: str, sources: Sources) -> Checked:
    """Check a report's page.

    Args:
        sources: from a bundle that was verified, and the node's directory if the report cites its log.

    Raises:
        InputError: not a report. VerificationError: the first thing that does not hold.
    """
    report = page.read(text)  # 1.
    if report.get("catalogue") != wording.edition():
        raise VerificationError(
            f"the report was made with another catalogue of sentences ({str(report.get('catalogue'))[:12]}…)",
            remedy="check it with the version of foedus that made it",
        )
    try:
        return _check(report, text, sources)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise VerificationError(f"the report is malformed ({error!r})") from error


def _check(report: Report, text: str, sources: Sources) -> Checked:
    if (report["study"], report["run"]) != (sources.study, sources.run):
        raise VerificationError(
            f"the report is about study {report['study'][:12]}, the evidence about {sources.study[:12]}"
        )
    if report["party"] != sources.party:
        sources.log("node" if report["party"] else "server")  # says that the node is needed
        raise VerificationError(
            f"the report was made {'with' if report['party'] else 'without'} a node's log"
        )
    listed = _entries(report, sources)  # 2.
    kinds = {"fact": 0, "note": 0, "judgement": 0}
    for sentence in sentences_of(report["blocks"]):  # 3.
        kinds[sentence["kind"]] += 1
        what = f"the {sentence['kind']} {sentence['id']!r}"
        try:
            if sentence["kind"] == "fact":
                _fact(sentence, listed, sources, report["language"])
            elif sentence["kind"] == "note":
                _note(sentence, report["language"])
            else:
                _judgement(sentence, report)
        except FoedusError as error:
            raise VerificationError(f"{what}: {error.message}", remedy=error.remedy) from error
    _compare(text, page.html(report))  # 4.
    said = {"report": report["kind"], "by": None, "answers": report["answers"]}
    answers = checked(said, report["kind"], outline(report["kind"]).questions)  # 5.
    again = build(report["kind"], sources, answers, report["language"], date.fromisoformat(report["made"]))
    if canonical(again) != canonical(report):
        differing = [key for key in {**again, **report} if again.get(key) != report.get(key)]
        raise VerificationError(
            "the report is not the one that these logs and answers give: sentences were left out, added or moved"
            f" ({', '.join(differing)})"
        )
    return Checked(
        report["kind"],
        report["language"],
        digest(report),
        kinds["fact"],
        len(listed),
        sum(s["kind"] == "judgement" and s["said"] is not None for s in sentences_of(report["blocks"])),
        len(report["open"]),
    )


def _entries(report: Report, sources: Sources) -> set[tuple[str, int, str]]:
    """What is listed, as ``(log, index, leaf)``."""
    listed = set()
    for told in report["entries"]:
        name, index = told["log"], told["index"]
        entries = sources.log(name).entries
        if type(index) is not int or not 0 <= index < len(entries):
            raise VerificationError(f"entry {index} is cited, and not in the {name}'s log of {len(entries)}")
        if (told["leaf"], told["body"]) != (entries[index].leaf, entries[index].body):
            raise VerificationError(f"entry {index} of the {name}'s log is not as the report reproduces it")
        listed.add((name, index, told["leaf"]))
    return listed


def _fact(
    sentence: Mapping[str, Any], listed: set[tuple[str, int, str]], sources: Sources, language: Any
) -> None:
    if not sentence["cites"]:
        raise VerificationError("cites no log entry")
    for cite in sentence["cites"]:
        if (cite["log"], cite["index"], cite["leaf"]) not in listed:
            raise VerificationError(
                f"cites entry {cite['index']} of the {cite['log']}'s log, which is not there"
            )
    template = wording.template("facts", sentence["id"], language)
    if wording.placeholders(template) != set(sentence["values"]):
        raise VerificationError("its values are not those of its sentence")
    for name, value in sentence["values"].items():
        read = []
        for origin in value["from"]:
            place = origin["cite"]
            if type(place) is not int or not 0 <= place < len(sentence["cites"]):
                raise VerificationError(f"the value {name!r} is from an entry that it does not cite")
            cite = sentence["cites"][place]
            entry = sources.log(cite["log"]).entries[cite["index"]]
            read.append(at(sources.bound(entry, origin.get("in", "")), origin["at"]))
        if canonical(derive(value["by"], read)) != canonical(value["is"]):
            raise VerificationError(f"the value {name!r} is not what the cited entries give")


def _note(sentence: Mapping[str, Any], language: Any) -> None:
    if set(sentence) != {"kind", "id"} or wording.placeholders(
        wording.template("notes", sentence["id"], language)
    ):
        raise VerificationError("a note with a value: it would state a fact without citing one")


def _judgement(sentence: Mapping[str, Any], report: Report) -> None:
    wording.template("questions", sentence["id"], report["language"])
    if sentence["said"] != report["answers"].get(sentence["id"]):
        raise VerificationError("not what the answers say")
    if sentence["said"] is not None and not all(sentence["said"]["by"].get(k) for k in ("name", "role")):
        raise InputError("nobody answers for it")


def _compare(text: str, drawn: str) -> None:
    if text == drawn:
        return
    pairs = zip_longest(text.splitlines(), drawn.splitlines(), fillvalue="")
    for number, (shown, right) in enumerate(pairs, 1):
        if shown != right:
            first = next((i for i, (a, b) in enumerate(zip(shown, right, strict=False)) if a != b), 0)
            part = shown[max(0, first - 30) : first + 50].strip() or "(nothing)"
            raise VerificationError(
                f"line {number} of the page is not what its sentences give, near: {wording.plain(part)}"
            )
    raise VerificationError("the page is not what its sentences give: its line ends were changed")
