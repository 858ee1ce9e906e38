"""``foedus mask`` and ``foedus mask-union``: a table made fit to be exported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    import pandas as pd

    from ..compliance.masking.policy import Policy

OLDER = "{} other versions of this data were released from before: the same people in two of them can be intersected"


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
            help="The node whose data it is: its treaty's k, its log and its lineage.",
            show_default="the one the table lies in",
        ),
    ] = None,
) -> None:
    """Generalise a table's quasi-identifiers until k rows and more look alike, and say what that leaves open.

    A node's data goes through its gate: the treaty's least k, one release of each version of the data, in its audit log.
    Exits 3, and writes nothing, if the gate says no or the policy can't be held within its suppression limit.
    The lineage of the node notes it either way: which columns became what, by which method, and no value.

    Example: foedus mask customers.parquet --policy policy.yaml --out masked.parquet
    """
    from ..compliance.masking.files import mask_file
    from .home import Home
    from .lineage import noting_masked
    from .release_gate import ReleaseGate, node_of

    say = Console(highlight=False, soft_wrap=True)
    of = node_of(table) if node is None else node
    versions = 0

    def admit(frame: pd.DataFrame, released: pd.DataFrame, rules: Policy) -> None:
        nonlocal versions
        if of is not None:
            gate = ReleaseGate(Home.load(of))
            versions = gate.admit_masked(frame, released, rules, table.name)

    with noting_masked(table, out, "mask", of) as masked:
        found = mask_file(table, policy, out, report, admit=admit)
        masked.tell(found, policy)
    for line in found.lines():
        say.print(line, markup=False)
    if of is None:
        say.print("of no node: no treaty's k was asked for, and no log has it (--node DIR)", markup=False)
    else:
        say.print(f"through the gate of {of}: in its audit log", markup=False)
    if versions:
        say.print(OLDER.format(versions), markup=False)


def mask_union(
    directory: Annotated[Path, typer.Argument(help="The node's directory.", show_default=False)],
    evidence: Annotated[
        Path, typer.Argument(help="evidence.zip of a counting study over all silos.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="A new .csv or .parquet file.", show_default=False)],
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="A further column, as it is; as often as needed. None that names people.", show_default=False
        ),
    ] = None,
) -> None:
    """Export the rows of your consenting customers whose cells passed k on the union of all silos.

    Rows of a cell in which you have fewer than k yourself may leave, because the count over all silos had k. The
    evidence is verified here first, under your own treaty.

    Example: foedus mask-union node evidence.zip --keep plan --out rows.parquet
    """
    from .home import Home
    from .union_export import export

    found = export(Home.load(directory), evidence, out, keep=keep or ())
    say = Console(highlight=False, soft_wrap=True)
    say.print(
        f"{out}: {found.rows} rows, {found.left_out} left out; k = {found.k} on the union", markup=False
    )
    say.print(
        f"{found.alone} of them are of cells in which you have fewer than {found.k}: who knows that somebody is your customer"
        f" sees classes of as few as {found.smallest}. Give them away only together with the other silos' rows.",
        markup=False,
    )
    if found.versions:
        say.print(OLDER.format(found.versions), markup=False)
