"""``foedus ledger``: what a silo's customers have paid, and what an officer does when the record was lost."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..compliance.treaty import Treaty
    from ..privacy.ledger import Ledger
    from .guard import Guard

ledger_app = typer.Typer(no_args_is_help=True, help="See what a silo's customers have paid.")

Directory = Annotated[Path, typer.Argument(help="The node's directory.", show_default=False)]


@ledger_app.command()
def show(
    directory: Directory,
    picture: Annotated[
        Path | None, typer.Option(help="Draw ε over time into this .svg or .png file.", show_default=False)
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Print every line, too.")] = False,
) -> None:
    """Show what is spent and left of every purpose, by period and study, and what is reserved still.

    Example: foedus ledger show node --picture budget.svg
    """
    guard = _guard(directory)
    treaty, ledger = guard.treaty, guard.ledger
    out = Console()
    out.print(_purposes(guard))
    out.print(treaty.basis, highlight=False, markup=False)
    if len(treaty.purposes) > 1:
        out.print("A customer in several purposes has paid for each; no cap joins them.", highlight=False)
    out.print(_studies(ledger, treaty))
    if lines:
        out.print(_lines(ledger))
    waiting = [line for line in ledger.standing() if line.kind == "reserve"]
    if waiting:
        out.print(
            f"{len(waiting)} reservations that nobody closed count in full: lines"
            f" {', '.join(str(line.number) for line in waiting[:20])}{' …' if len(waiting) > 20 else ''}",
            highlight=False,
        )
    for line in ledger.lines():
        if line.note is not None:
            out.print(f"line {line.number}, {line.time[:19]}: {line.kind}: {line.label}", markup=False)
    if picture is not None:
        from .ledger_plot import picture as draw

        draw(ledger, treaty, picture)
        out.print(f"drawn: {picture}", highlight=False, markup=False, soft_wrap=True)


def _purposes(guard: Guard) -> Table:
    now = datetime.now(UTC)
    table = Table(title=f"ε spent by the customers of {escape(guard.home.party)}")
    for column in ("purpose", "δ", "budget", "spent", "left", "for life"):
        table.add_column(column, justify="left" if column in ("purpose", "budget") else "right")
    for terms in guard.treaty.purposes:
        cap = guard.budget.cap(terms.purpose)
        spent = guard.ledger.spent(terms.purpose, cap)
        since = terms.since(now)
        budget = f"{terms.epsilon:g} " + (
            "for life" if since is None else f"a {terms.period}, now since {since:%Y-%m-%d}"
        )
        table.add_row(
            escape(terms.purpose),
            f"{terms.delta:g}",
            budget,
            _figure(spent),
            _figure(max(0.0, cap.epsilon - spent)),
            _figure(guard.ledger.epsilon(terms.delta, purpose=terms.purpose)),
        )
    return table


def _studies(ledger: Ledger, treaty: Treaty) -> Table:
    table = Table(title="by study")
    for column in ("study", "purpose", "first", "last", "events", "open", "ε"):
        table.add_column(column, justify="left" if column in ("study", "purpose") else "right")
    standing = ledger.standing()
    deltas = {terms.purpose: terms.delta for terms in treaty.purposes}
    for study, purpose in dict.fromkeys((line.study, line.purpose) for line in standing):
        own = [line for line in standing if (line.study, line.purpose) == (study, purpose)]
        delta = deltas.get(purpose, min(deltas.values()))
        table.add_row(
            study[:12],
            escape(purpose),
            own[0].time[:16],
            own[-1].time[:16],
            str(len(own)),
            str(sum(line.kind == "reserve" for line in own)),
            _figure(ledger.epsilon(delta, study=study)),
        )
    return table


def _lines(ledger: Ledger) -> Table:
    table = Table(title=f"Ledger {ledger.path}")
    for column in ("line", "time", "what", "of line", "purpose", "study", "label", "ρ"):
        table.add_column(column)
    for line in ledger.lines():
        rho = getattr(line.event, "rho", None)
        table.add_row(
            str(line.number),
            line.time[:19],
            line.kind,
            str(line.ref),
            escape(line.purpose),
            line.study[:12],
            escape(line.label),
            "" if rho is None else f"{rho:.3g}",
        )
    return table


@ledger_app.command()
def verify(directory: Directory) -> None:
    """Check that no line was altered, removed or put in, and that the ledger agrees with the node's audit log.

    Example: foedus ledger verify node
    """
    from ..errors import Refused, VerificationError
    from .recovery import officer_lines

    guard = _guard(directory)
    guard.audit.check()
    try:
        head = guard.budget.verify()
    except Refused as error:
        raise VerificationError(error.message, remedy=error.remedy) from error
    officers = officer_lines(guard.ledger, guard.treaty, guard.home.party)
    anchor = guard.budget.anchor
    typer.echo(f"{head.size} lines, unbroken; head {head.hash}")
    typer.echo(f"it continues the head of {anchor.size} lines in the node's own audit log")
    for kind, document in officers:
        typer.echo(f"{kind} on {document['time']} by {document['officer']}: {document['reason']}")


@ledger_app.command()
def export(
    directory: Directory,
    out: Annotated[Path, typer.Option(help="A new file, JSON lines.", show_default=False)],
) -> None:
    """Copy every line with its hash into a file: keep it elsewhere, a lost ledger can be restored from it.

    Example: foedus ledger export node --out ledger.jsonl
    """
    from . import recovery

    head = recovery.export(_guard(directory).ledger, out)
    typer.echo(f"{out}: {head.size} lines; head {head.hash}")


@ledger_app.command()
def recover(
    directory: Directory,
    officer: Annotated[
        str,
        typer.Option(help="Your name in the treaty: a dpo, or your party's approver.", show_default=False),
    ],
    key: Annotated[Path, typer.Option(help="Your signing key.", show_default=False)],
    reason: Annotated[str, typer.Option(help="What happened; it is kept for good.", show_default=False)],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="An export whose head is the one anchored.", show_default=False),
    ] = None,
    write_off: Annotated[
        bool, typer.Option("--write-off", help="Count every purpose's budget as spent.")
    ] = False,
) -> None:
    """Go on after LEDGER_ROLLED_BACK: restore the ledger from an export, or write it off. Stop the node first.

    Example: foedus ledger recover node --officer dora --key dora.key --reason disk-failed --from ledger.jsonl
    """
    from ..documents import SigningKey
    from ..errors import InputError
    from . import recovery
    from .home import Home

    if (source is None) != write_off:
        raise InputError("say either --from EXPORT or --write-off")
    head = recovery.recover(
        Home.load(directory), name=officer, key=SigningKey.load(key), reason=reason, source=source
    )
    done = "restored" if source else "written off: only an amended treaty or a new period gives a new budget"
    typer.echo(f"{done}; {head.size} lines, head {head.hash}")


def _guard(directory: Path) -> Guard:
    """The guard of a node that has run: a ledger is looked at, never made.

    Raises:
        InputError: not a node's directory, or it has no ledger.
    """
    from ..errors import InputError
    from .guard import Guard
    from .home import Home

    home = Home.load(directory)
    for name in ("ledger.db", "audit.db"):
        if not (home.path / name).exists():
            raise InputError(
                f"{home.path / name}: no such file: this node has not run yet, or its {name} was removed"
            )
    return Guard(home)


def _figure(epsilon: float) -> str:
    return "unknown" if math.isinf(epsilon) else f"{epsilon:.4f}"
