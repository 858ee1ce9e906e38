"""The catalogue: every sentence a report may say, in English and Chinese, and how values are written in them.

A template is text with ``{name:format}``. What a format does is in `_FORMATS`. The digest of the whole
catalogue stands in each report: with other wording, another foedus must check it.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from ...errors import InputError

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
_HOME = Path(__file__).parent / "wording"
_FILES = ("facts.yaml", "notes.yaml", "labels.yaml", "questions.yaml")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")


@cache
def catalogue(name: str) -> dict[str, Any]:
    """The content of ``NAME.yaml``: facts, notes, labels or questions."""
    return dict(yaml.safe_load((_HOME / f"{name}.yaml").read_text(encoding="utf-8")))


@cache
def edition() -> str:
    """SHA-256 (hex) of the catalogue's files, and of the page's template and style."""
    whole = hashlib.sha256()
    for file in (
        *(_HOME / name for name in _FILES),
        _HOME.parent / "page.css",
        _HOME.parent / "page.html.j2",
    ):
        whole.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def label(group: str, name: str, language: Language) -> str:
    """A label's text.

    Raises:
        InputError: the catalogue has none of this name.
    """
    found = catalogue("labels").get(group, {})
    found = found.get(name) if name else found
    if not isinstance(found, dict) or language not in found:
        raise InputError(f"the reports' catalogue has no label {group}.{name} in {language!r}")
    return str(found[language])


def template(kind: str, name: str, language: Language) -> str:
    """The template of a sentence; `kind` is facts, notes or questions.

    Raises:
        InputError: there is no such sentence.
    """
    found = catalogue(kind).get(name)
    if found is None or language not in found:
        raise InputError(f"the reports' catalogue of {kind} has no {name!r} in {language!r}")
    return str(found[language])


def placeholders(text: str) -> set[str]:
    """Names of the values in a template."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def write(text: str, values: Mapping[str, Any], language: Language) -> str:
    """A template with its values written in.

    Raises:
        InputError: a value is missing, or can't be written so.
    """
    parts = []
    for literal, name, spec, _ in string.Formatter().parse(text):
        parts.append(literal)
        if name is None:
            continue
        if name not in values:
            raise InputError(f"the value {name!r} of a sentence is missing")
        try:
            parts.append(plain(_FORMATS[spec or "text"](values[name], language)))
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise InputError(
                f"the value {name!r} of a sentence can't be written as {spec}: {error!r}"
            ) from error
    return "".join(parts)


def plain(text: str) -> str:
    """Text from elsewhere in one line, without control characters or marks that turn the direction of writing."""
    return _CONTROL.sub(" ", text)


# ── how values are written ───────────────────────────────────────────────────────────────────────


def _number(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    return Decimal(repr(value))


def _count(value: Any, language: Language) -> str:
    number = _number(value)
    return f"{int(number):,}" if number == int(number) else _num(value, language)


def _num(value: Any, language: Language) -> str:
    """Six significant figures, never as a power of ten: 0.00001."""
    return f"{Decimal(f'{_number(value):.6g}'):f}"


def _rounded(places: str, rounding: str) -> Callable[[Any, Language], str]:
    def written(value: Any, language: Language) -> str:
        if value is None:
            return label("unknown", "", language)
        return f"{_number(value).quantize(Decimal(places), rounding=rounding):,}"

    return written


def _percent(value: Any, language: Language) -> str:
    return f"{(_number(value) * 100).quantize(Decimal('0.1'), rounding=ROUND_HALF_EVEN).normalize():f} %"


def _time(value: Any, language: Language) -> str:
    moment = datetime.fromisoformat(str(value)).astimezone(UTC)
    if language == "zh":
        return f"{moment.year} 年 {moment.month} 月 {moment.day} 日 {moment:%H:%M:%S}（UTC）"
    return f"{moment.day} {moment:%B %Y, %H:%M:%S} UTC"


def day(value: Any, language: Language) -> str:
    """A date (ISO 8601), written out."""
    moment = date.fromisoformat(str(value))
    if language == "zh":
        return f"{moment.year} 年 {moment.month} 月 {moment.day} 日"
    return f"{moment.day} {moment:%B %Y}"


def _many(one: Callable[[Any, Language], str]) -> Callable[[Any, Language], str]:
    def written(value: Any, language: Language) -> str:
        items = [one(item, language) for item in value]
        return ("、" if language == "zh" else ", ").join(items) or label("none", "", language)

    return written


def _range(value: Any, language: Language) -> str:
    """The least and the most of something; a single number if they are one."""
    least, most = (_count(v, language) for v in value)
    return least if least == most else f"{least} {'至' if language == 'zh' else 'to'} {most}"


def _named(group: str) -> Callable[[Any, Language], str]:
    """The name of a code; a code without one stays as it is."""

    def written(value: Any, language: Language) -> str:
        known = catalogue("labels")[group].get(str(value))
        return str(known[language]) if known else str(value)

    return written


def _coded(group: str, prefix: str = "") -> Callable[[Any, Language], str]:
    """The name of a code, and the code itself in brackets."""

    def written(value: Any, language: Language) -> str:
        known = catalogue("labels")[group].get(str(value).removeprefix(prefix))
        if not known:
            return str(value)
        return f"{known[language]}（{value}）" if language == "zh" else f"{known[language]} ({value})"

    return written


_FORMATS: dict[str, Callable[[Any, Language], str]] = {
    "text": lambda value, language: str(value),
    "none": lambda value, language: label("none", "", language) if value in (None, "") else str(value),
    "n": _count,
    "range": _range,
    "num": _num,
    "up": _rounded("0.0001", ROUND_CEILING),  # an upper bound is never rounded down
    "four": _rounded("0.0001", ROUND_HALF_EVEN),
    "odds": _rounded("0.01", ROUND_CEILING),
    "round": _rounded("1", ROUND_HALF_EVEN),
    "pct": _percent,
    "time": _time,
    "day": day,
    "digest": lambda value, language: f"{str(value)[:16]}…",
    "list": _many(lambda value, language: str(value)),
    "levels": _many(_named("levels")),
    "level": _named("levels"),
    "features": _many(_named("features")),
    "categories": _many(_coded("categories")),
    "purpose": _coded("purposes", "dpv:"),
    "period": lambda value, language: label("periods", value or "life", language),
    "mode": _named("modes"),
    "task": _named("tasks"),
    "message": _named("messages"),
    "model": _named("models"),
    "optimiser": _named("optimisers"),
    "yes": lambda value, language: label("yes", {"True": "true", "False": "false"}[str(value)], language),
}
