"""``foedus audit-privacy``: the audit of a study at a terminal, and its report as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..compliance import treaty as treaties
from ..compliance.treaty import Treaty
from ..documents import Envelope
from ..errors import InputError, VerificationError
from ..federation import fitting, limits
from ..federation.study import Study, load_draft, trained
from .home import Home
from .privacy_audit import Report, audit
from .rehearsal import Silo


def load_study(file: Path, treaty: Treaty, digest: str) -> Study:
    """A study to audit: a signed one (.json), or a draft (YAML) fitted to the treaty.

    Raises:
        InputError: neither. VerificationError, Refused: signed, but not so that a node would run it.
    """
    if file.suffix.lower() == ".json":
        return trained(limits.verify(Envelope.load(file), treaty, digest))
    return fitting.resolve(load_draft(file), treaty, digest)


def load_trial(directory: Path, file: Path) -> tuple[Study, Treaty, dict[str, Silo]]:
    """A study on the silos that `foedus simulate --dir` left in `directory`.

    Raises:
        InputError: there is no trial, or its nodes are not the treaty's parties.
    """
    if not (directory / "nodes").is_dir():
        raise InputError(
            f"{directory}: no trial lies here",
            remedy="foedus simulate STUDY --dir DIR keeps one; or give --orders",
        )
    envelope, treaty = treaties.load(directory / "server" / "treaty.json")
    study = load_study(file, treaty, envelope.digest)
    homes = [path for path in sorted((directory / "nodes").iterdir()) if (path / "node.yaml").exists()]
    return study, treaty, {Home.load(path).party: Silo.of_home(path, study, treaty) for path in homes}


def run(
    study: Study,
    treaty: Treaty,
    silos: Mapping[str, Silo],
    *,
    canaries: int,
    delta: float | None,
    out: Path | None,
    console: Console | None = None,
) -> Report:
    """Audit, show progress and the table, and write the report to `out`.

    Raises:
        InputError: `out` exists or can't be written.
        VerificationError: a claim was refuted; the table says which, and so does the report.
    """
    if out is not None and out.exists():
        raise InputError(f"{out}: exists already", remedy="choose another --out")
    screen = console or Console(highlight=False)
    with Progress(
        TextColumn("Rehearsing with canaries"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
    ) as progress:
        bar = progress.add_task("audit", total=None)
        report = audit(
            study,
            treaty,
            silos,
            canaries=canaries,
            delta=delta,
            note=lambda done, of: progress.update(bar, completed=done, total=of),
        )
    show(report, screen)
    budget = treaty.terms(study.purpose).budget
    screen.print(f"{escape(treaty.basis)} The treaty's cap for {escape(study.purpose)}: {budget}")
    if out is not None:
        try:
            out.write_text(
                json.dumps(
                    report.to_json() | {"per": treaty.per(study.purpose).model_dump(mode="json")},
                    indent=2,
                    ensure_ascii=False,
                )
                + "\n",
                encoding="utf-8",
            )
        except OSError as error:
            raise InputError(f"{out}: can't be written: {error.strerror or error}") from error
    if not report.holds:
        refuted = ", ".join(line.name for line in report.lines if line.verdict == "refuted")
        raise VerificationError(
            f"{report.study!r}: refuted: {refuted}",
            remedy="the study's ε can't be relied on with this code and this data: do not run it, report the fault",
        )
    return report


def show(report: Report, console: Console) -> None:
    """The table: a line for each claim."""
    table = Table(title=f"Privacy audit of {escape(repr(report.study))}", title_justify="left")
    for column in ("", "what", "claimed", "found"):
        table.add_column(column)
    for line in report.lines:
        mark = "[green]holds[/]" if line.verdict == "holds" else "[bold red]refuted[/]"
        table.add_row(mark, escape(line.name), escape(line.claim), escape(line.found))
    console.print(table)
    console.print(
        f"{report.canaries} canaries in {report.runs} runs, {report.seconds:.0f} s; the auditor knows the noise of"
        f" {report.colluders} of the silos"
    )
    console.print(
        f"claimed ε = {report.epsilon:.3f} at δ = {report.delta:g}; shown at 95 %: ε ≥ {report.steinke:.3f} by guessing,"
        f" ε ≥ {report.fitted:.3f} by the Gaussian fit"
    )
    console.print(
        f"with so many canaries a μ {report.detects:.2f} times too large would be refuted (19 times of 20);"
        " more --canaries see smaller faults"
    )
