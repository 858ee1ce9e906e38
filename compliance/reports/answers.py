"""What people say in a report: the answers to its questions, from a YAML file.

::

    report: pipia
    by: {name: Dora Lin, role: data protection officer}
    answers:
      pipl_necessary: Fewer columns were tried …
      art55.automated: {answer: yes, reason: …}
      risk.breach: {likelihood: low, severity: high, residual: low, reason: …}
      gdpr_advice: {text: …, by: {name: …, role: …}}

An empty answer is a missing one: the report shows it as open, and stays a draft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...documents import read_text
from ...errors import InputError
from .wording import Language, catalogue, plain

RATINGS = ("likelihood", "severity", "residual")
_MAX = 4000
_REMEDY = "foedus report questions KIND writes a file with every question"


def kind_of(question: str) -> str:
    """text, choice or risk.

    Raises:
        InputError: there is no such question.
    """
    found = catalogue("questions").get(question)
    if found is None:
        raise InputError(f"there is no question {question!r}")
    return str(found.get("kind", "text"))


def load(path: Path, report: str, questions: Sequence[str]) -> dict[str, Any]:
    """The answers in a file, checked (`checked`).

    Raises:
        InputError: unreadable, not YAML, or not answers to this report's questions.
    """
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {error}") from error
    try:
        return checked(content, report, questions)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", remedy=error.remedy) from error


def checked(content: Any, report: str, questions: Sequence[str]) -> dict[str, Any]:
    """Question -> its answer, as ``{"by": {"name", "role"}, "text" | "answer", "reason" | ratings, "reason"}``.

    Missing answers are left out.

    Raises:
        InputError: another report's, an unknown question, an answer of the wrong kind, or nobody answers.
    """
    if not isinstance(content, dict) or set(content) != {"report", "by", "answers"}:
        raise InputError("answers have exactly report, by and answers", remedy=_REMEDY)
    if content["report"] != report:
        raise InputError(f"these are answers for {content['report']!r}, not for {report!r}", remedy=_REMEDY)
    answers = content["answers"] or {}
    if not isinstance(answers, dict):
        raise InputError("answers is a mapping of question to answer", remedy=_REMEDY)
    if unknown := sorted(str(k) for k in answers if k not in questions):
        raise InputError(f"no questions of a {report}: {', '.join(unknown)}", remedy=_REMEDY)
    found = {}
    for question in questions:
        said = _answer(question, answers.get(question))
        if said is None:
            continue
        by = said.pop("by", None) or content["by"]
        if not isinstance(by, dict) or set(by) != {"name", "role"}:
            raise InputError(f"{question}: by is a name and a role", remedy=_REMEDY)
        name, role = (_text(f"{question}: by.{key}", by[key]) for key in ("name", "role"))
        if not name or not role:
            raise InputError(
                f"{question} is answered, but nobody says so", remedy="fill in by: name and role"
            )
        found[question] = said | {"by": {"name": name, "role": role}}
    return found


def _answer(question: str, said: Any) -> dict[str, Any] | None:
    """One answer in its full form; None if it is empty."""
    kind = kind_of(question)
    fields = {"text": ("text",), "choice": ("answer", "reason"), "risk": (*RATINGS, "reason")}[kind]
    if kind == "text" and not isinstance(said, dict):
        said = {"text": said}
    if said is None:
        return None
    if not isinstance(said, dict) or not set(fields) <= set(said) <= {*fields, "by"}:
        raise InputError(f"{question}: its answer has {', '.join(fields)}, and perhaps by", remedy=_REMEDY)
    values = {field: _text(f"{question}.{field}", said[field]) for field in fields}
    for field in set(fields) & {"answer", *RATINGS}:
        allowed = ("yes", "no") if field == "answer" else ("low", "medium", "high")
        if values[field] and values[field] not in allowed:
            raise InputError(f"{question}.{field}: {values[field]!r} is none of {', '.join(allowed)}")
    if not all(values.values()):  # a choice without its reason is no answer yet
        return None
    return {**values, "by": said.get("by")}


def _text(what: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):  # YAML's own reading of yes and no
        return "yes" if value else "no"
    if not isinstance(value, str):
        raise InputError(f"{what}: not text")
    if len(value) > _MAX:
        raise InputError(f"{what}: longer than {_MAX} characters")
    return "\n".join(line for line in (plain(part).strip() for part in value.splitlines()) if line)


def form(report: str, questions: Sequence[str], language: Language) -> str:
    """An empty file of answers, with every question as a comment."""
    lines = [
        f"# Answers for: foedus report {report} … --answers THIS FILE --language {language}",
        "# choices: yes or no, with a reason; ratings: low, medium or high. An empty answer stays open, and the",
        "# report a draft. An answer by somebody else: {text: …, by: {name: …, role: …}}",
        f"report: {report}",
        'by: {name: "", role: ""}',
        "answers:",
    ]
    for question in questions:
        lines.append(f"  # {catalogue('questions')[question][language]}")
        kind = kind_of(question)
        if kind == "choice":
            lines.append(f'  {question}: {{answer: "", reason: ""}}')
        elif kind == "risk":
            lines.append(f'  {question}: {{likelihood: "", severity: "", residual: "", reason: ""}}')
        else:
            lines.append(f'  {question}: ""')
    return "\n".join(lines) + "\n"


def judgement(question: str, answers: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a question as a sentence of a report; without one it is open."""
    return {"kind": "judgement", "id": question, "said": answers.get(question)}
