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
) -> None:
    """Generalise a table's quasi-identifiers until k rows and more look alike, and say what that leaves open.

    Exits 3, and writes nothing, if the policy can't be held within its suppression limit.

    Example: foedus mask customers.parquet --policy policy.yaml --out masked.parquet
    """
    from ..compliance.masking.files import mask_file

    found = mask_file(table, policy, out, report)
    say = Console(highlight=False, soft_wrap=True)
    for line in found.lines():
        say.print(line, markup=False)
