"""Entries of an audit log as lines for a terminal: the server's, and a node's own."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from ..compliance.auditlog.log import SEALED

WIDTH = 80
_LINE = "{:>6}  {:19}  {:13}  {:17}  {:12}"  # 75 columns
_SHORT = 12  # digits of a digest


def with_sealed(record: Mapping[str, Any], payload: Mapping[str, Any] | None) -> dict[str, Any]:
    """A record that shows what it has sealed (None: its key was shredded) in the place of the commitment to it."""
    shown = "shredded" if payload is None else dict(payload)
    return {**record, "details": {**record["details"], SEALED: shown}}


def table(records: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterable[str]:
    """Lines of at most 80 columns: an entry, and under it its details."""
    yield _LINE.format("#", "time (UTC)", "actor", "action", "subject").rstrip()
    for index, record in records:
        time = str(record["time"])[:19].replace("T", " ")
        cells = (
            _cut(record["actor"], 13),
            _cut(record["action"], 17),
            _cut(_shortened(record["subject"]), 12),
        )
        yield _LINE.format(index, _plain(time), *cells).rstrip()
        details = ", ".join(f"{name} {_compact(value)}" for name, value in record["details"].items())
        yield from textwrap.wrap(
            _plain(details), WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8, break_on_hyphens=False
        )


def _compact(value: object) -> str:
    if isinstance(value, list):
        return " ".join(_compact(v) for v in value) or "none"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} {_compact(v)}" for k, v in value.items()) + "}"
    return f"{value:.6g}" if isinstance(value, float) else _shortened(str(value))


def _shortened(text: str) -> str:
    """A digest by its first digits; anything else as it is."""
    return text[:_SHORT] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


def _cut(text: str, width: int) -> str:
    plain = _plain(text)
    return plain if len(plain) <= width else plain[: width - 1] + "…"


def _plain(text: str) -> str:
    """Without what would steer a terminal: the entries are somebody else's text."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
