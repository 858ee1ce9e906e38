"""Studies and decisions as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..compliance.treaty import Treaty
from ..documents import Envelope
from ..federation.counting import CountStudy
from ..federation.study import AnyStudy, Study

_COLOURS = {"finished": "green", "approved": "green", "running": "cyan", "failed": "red", "rejected": "red"}


def coloured(status: str) -> str:
    """A study's status, in rich markup."""
    colour = _COLOURS.get(status)
    return f"[{colour}]{status}[/]" if colour else escape(status)


def print_study(found: Mapping[str, Any]) -> None:
    """A study as the API shows it, summary or whole."""
    table = Table(show_header=False, title=escape(found["title"]))
    for label, text in (
        ("study", found["digest"]),
        ("author", found["author"]),
        ("purpose", found["purpose"]),
        ("ε, δ", f"{found['epsilon']:g}, {found['delta']:g}"),
        ("ε is for", found["unit"]),
        ("the cap", found["budget"]),
        ("worst price", f"{found['price']:.3f}" if "price" in found else ""),
        ("still to approve", ", ".join(found["missing"])),
        ("reason", found["reason"]),
        ("runs", "\n".join(f"{r['id']} {r['status']}" for r in found.get("runs", []))),
    ):
        if text:
            table.add_row(label, escape(text))
    table.add_row("status", coloured(found["status"]))
    Console().print(table)


def print_whole_study(study: Envelope) -> None:
    """Everything that its signatures cover, as YAML: a study's own order of fields first, then any others."""
    kind = CountStudy if study.payload.get("task") == "count" else Study
    order = [*kind.model_fields, *sorted(study.payload)]
    content = {name: study.payload[name] for name in order if name in study.payload}
    typer.echo(f"# study {study.digest}, signed by {', '.join(map(repr, study.signatures)) or 'nobody'}")
    typer.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=78), nl=False)


def print_decision(plan: AnyStudy, treaty: Treaty, after: Mapping[str, Any], *, rejected: bool) -> None:
    """What was just signed, and who is still to sign."""
    left = ", ".join(after["missing"]) or "nobody"
    Console().print(
        f"{'rejected' if rejected else 'approved'}: {plan.title!r} by {plan.author} for {plan.purpose}, "
        f"ε {plan.privacy.epsilon:g} for {treaty.unit}" + ("" if rejected else f"; still to approve: {left}"),
        markup=False,
        highlight=False,
    )
