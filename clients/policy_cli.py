"""``foedus policy``: what the policy allows, as a table."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

policy_app = typer.Typer(no_args_is_help=True, help="See who may use which data for what.")


@policy_app.callback()
def _policy() -> None:
    """Keeps `show` a command of its own."""


@policy_app.command()
def show(
    as_json: Annotated[bool, typer.Option("--json", help="Print the rules as JSON.")] = False,
) -> None:
    """The rules that every use of customers' data is held against. What no rule allows is refused.

    Example: foedus policy show
    """
    import json

    from ..compliance.policy import rows

    names = (
        "action",
        "role",
        "purpose",
        "approvals",
        "consent",
        "internal data leaves as",
        "sensitive data leaves as",
    )
    if as_json:
        typer.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows()], indent=2))
        return
    table = Table(title="What is allowed; everything else is refused", title_justify="left")
    for name in names:
        table.add_column(name)
    for row in rows():
        table.add_row(*row)
    Console(highlight=False).print(table)
