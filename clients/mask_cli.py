"""``foedus mask``: a table made fit to be exported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def mask(
    table: Annotated[Path, typer.Argument(help="The table, .csv or .parquet.", show_default=False)],
    policy: Annotated[
        Path, typer.Option(help="Roles, hierarchies, k and other limits, YAML.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="A new .csv or .parquet file.", show_default=False)],
    report: Annotated[
        Path | None, typer.Option(help="Write the report here, too, as JSON.", show_default=False)
    ] = None,
    node: Annotated[
        Path | None,
        typer.Option(
            help="The node's directory whose lineage notes it.", show_default="the one that the table lies in"
        ),
    ] = None,
) -> None:
    """Generalise a table's quasi-identifiers until k rows and more look alike, and say what that leaves open.

    Exits 3, and writes nothing, if the policy can't be held within its suppression limit. The lineage of the
    node notes either: which columns became what, by which method, and no value.

    Example: foedus mask customers.parquet --policy policy.yaml --out masked.parquet
    """
    from ..compliance.masking.files import mask_file
    from .lineage import noting_masked

    say = Console(highlight=False, soft_wrap=True)
    with noting_masked(table, out, "mask", node) as masked:
        found = mask_file(table, policy, out, report)
        masked.tell(found, policy)
    if not masked.noted:
        say.print("in no node's lineage: --node says in whose", markup=False)
    for line in found.lines():
        say.print(line, markup=False)
