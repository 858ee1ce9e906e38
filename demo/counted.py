"""A released table of counts on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import InputError
from ..federation.counting import CountStudy
from ..federation.verification import Report

MOST = 60
"""Cells printed; the release has all."""


def print_table(console: Console, report: Report) -> None:
    """The cells in order; those that did not pass the gate say so."""
    study, found = report.study, report.metrics["table"]
    if not isinstance(study, CountStudy):
        raise InputError("no table was released")
    grid = Table(*(escape(name) for name in found["by"]), "customers", "±", box=None, header_style="bold")
    if found["of"] is not None:
        grid.add_column(f"mean {escape(found['of'])}")
        grid.add_column("±")
    for cell in found["cells"][:MOST]:
        if cell["count"] is None:
            row = ["suppressed"]
        else:
            row = [f"{cell['count']:.0f}", f"{found['noise']:.0f}"]
            if found["of"] is not None:
                row += [f"{cell['mean']:.2f}", f"{cell['mean_noise']:.2f}"]
        grid.add_row(*(escape(label) for label in cell["cell"]), *row)
    console.print(grid)
    if len(found["cells"]) > MOST:
        console.print(f"… and {len(found['cells']) - MOST} cells more, in the release")
    console.print(
        f"{found['shown']} of {len(found['cells'])} cells shown, from a noisy count of {found['least']:.1f} on: that any of"
        f" them holds fewer than k = {found['k']} people has a probability of at most {found['under_k']:g}."
        " ± is one standard deviation of the privacy noise."
    )
    console.print(
        f"ε = {report.epsilon:.4f} at δ = {study.privacy.delta:g} for {report.treaty.unit}, of the treaty's"
        f" {report.treaty.terms(study.purpose).budget}; {len(report.checks)} checks hold"
    )
