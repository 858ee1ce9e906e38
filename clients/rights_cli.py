"""``foedus rights`` and ``foedus retention``: requests of customers, their erasure, and what is kept how long."""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from ..compliance.rights import Erasure, Kind
    from .retention import Retention
    from .rights import Rights

rights_app = typer.Typer(
    no_args_is_help=True, help="Answer customers: access, correction, erasure, deadlines."
)
retention_app = typer.Typer(
    no_args_is_help=True, help="See and purge what is old, and hold what must be kept."
)

Directory = Annotated[Path, typer.Argument(help="The node's directory.", show_default=False)]
Subject = Annotated[str, typer.Argument(help="The customer, as in the table.", show_default=False)]
Number = Annotated[str, typer.Argument(help="The request, as the queue lists it.", show_default=False)]
By = Annotated[str, typer.Option(help="Who says so.", show_default=False)]


@rights_app.command()
def queue(
    directory: Directory,
    every: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
) -> None:
    """List the requests that wait, the most urgent first, and erasures that people must finish.

    Example: foedus rights queue node
    """
    rights, out = _rights(directory), _out()
    late = {request.id for request in rights.requests.overdue()}
    found = rights.requests.all() if every else rights.requests.waiting()
    for r in found:
        mark = "OVERDUE" if r.id in late else r.state.value
        out.print(f"{r.id}  due {r.due}  {mark:11} {r.kind.value:8} {r.subject}", markup=False)
        for text in filter(None, (r.note, r.reason)):
            out.print(f"    {text}", markup=False)
    for erasure in rights.erasures.under_way():
        out.print(f"erasure {erasure.id} was interrupted: foedus rights erase finishes it", markup=False)
    for erasure in rights.erasures.ordered():
        for step in erasure.steps:
            if step.errand == "ordered":
                out.print(f"erasure {erasure.id} waits at {step.place}: {step.why}", markup=False)
    if not found:
        out.print("no request waits", markup=False)


@rights_app.command("open")
def open_(
    directory: Directory,
    subject: Subject,
    kind: Annotated[
        str,
        typer.Option(help="know, choose, access, correct, delete, withdraw or explain.", show_default=False),
    ],
    language: Annotated[str, typer.Option(help="zh or en.")] = "zh",
    note: Annotated[str, typer.Option(help="What they said.")] = "",
) -> None:
    """Take in a request that came by letter or telephone. It is due after 15 working days.

    Example: foedus rights open node C00042 --kind access --language zh
    """
    request = _rights(directory).requests.open(_kind(kind), subject, language, note=note)  # type: ignore[arg-type]
    typer.echo(f"{request.id}, due {request.due}")


@rights_app.command()
def access(
    directory: Directory,
    subject: Subject,
    out: Annotated[
        Path, typer.Option(help="A new file: .json, or .zip of a .csv a place.", show_default=False)
    ],
) -> None:
    """Write all that this node keeps about one customer, by place, for them to have or take elsewhere.

    Example: foedus rights access node C00042 --out C00042.json
    """
    from ..errors import InputError

    if out.suffix.lower() not in (".json", ".zip"):
        raise InputError(f"{out}: not a .json or .zip file")
    found = _rights(directory).access(subject)
    data = (
        json.dumps(found, ensure_ascii=False, indent=1).encode()
        if out.suffix.lower() == ".json"
        else _zipped(found)
    )
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        raise InputError(f"{out}: {error.strerror or error}") from error
    typer.echo(f"{out}: " + ", ".join(f"{place} {len(rows)}" for place, rows in found.items()))


@rights_app.command()
def correct(
    directory: Directory,
    subject: Subject,
    field: Annotated[str, typer.Option(help="The column.", show_default=False)],
    value: Annotated[str, typer.Option(help="What is right.", show_default=False)],
    was: Annotated[
        str | None, typer.Option(help="What is wrong, if their rows differ.", show_default=False)
    ] = None,
    place: Annotated[str, typer.Option(help="The place of the map.")] = "orders",
) -> None:
    """Correct a field of one customer's rows in the table, if node.yaml permits foedus to write there.

    Example: foedus rights correct node C00042 --field amount --was 12.5 --value 1.25
    """
    count = _rights(directory).correct(subject, place, field, value, was=was)
    typer.echo(f"corrected {count} records")


@rights_app.command()
def withdraw(
    directory: Directory,
    subject: Subject,
    purpose: Annotated[
        str, typer.Option(help="A purpose, e.g. dpv:ServiceOptimisation.", show_default=False)
    ],
) -> None:
    """Withdraw one customer's consent to a purpose; in force in the next round.

    Example: foedus rights withdraw node C00042 --purpose dpv:CustomerRelationshipManagement
    """
    _rights(directory).withdraw(subject, purpose)
    typer.echo(f"withdrawn; {subject} is in no cohort for {purpose} from the next round on")


@rights_app.command()
def erase(
    directory: Directory,
    subject: Annotated[
        str | None, typer.Argument(help="The customer; without one, interrupted erasures are finished.")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            help="bound, retrain or retire the models they were in.", show_default="as node.yaml says"
        ),
    ] = None,
) -> None:
    """Erase one customer at every place of the map, and say what became of each place and model.

    It can't be undone. What must be kept as proof goes on under a tombstone; rows of a table that is read only here
    are ordered removed, and `foedus rights settle` looks whether they are. Under a legal hold it is refused.

    Example: foedus rights erase node C00042 --models retire
    """
    rights, out = _rights(directory), _out()
    for report in rights.resume() if subject is None else [rights.erase(subject, models=models)]:
        _show(out, report)


@rights_app.command()
def settle(
    directory: Directory,
    erasure: Annotated[
        str | None, typer.Option(help="You say yourself that this erasure's order was carried out.")
    ] = None,
    place: Annotated[str, typer.Option(help="Where, with --erasure: orders or elsewhere.")] = "orders",
    names: Annotated[bool, typer.Option("--names", help="Only list whom the table still has.")] = False,
) -> None:
    """Look whether rows that were ordered removed are gone from the table; only then can they consent anew.

    Example: foedus rights settle node
    """
    rights = _rights(directory)
    if names:
        for name in rights.still_in_table():
            typer.echo(name)
        return
    if erasure is not None:
        rights.settle_by_hand(erasure, place)
        typer.echo(f"erasure {erasure}: noted as carried out at {place}")
        return
    count, left = rights.settle(), len(rights.still_in_table())
    typer.echo(f"{count} orders were carried out; {left} erased customers are still in the table")


@rights_app.command()
def done(
    directory: Directory,
    number: Number,
    note: Annotated[str, typer.Option(help="What the customer is shown.")] = "",
) -> None:
    """Close a request as done.

    Example: foedus rights done node 5f0c2b9d11aa0c3e --note "sent by post on 3 March"
    """
    _rights(directory).requests.done(number, note)
    typer.echo(f"{number}: done")


@rights_app.command()
def refuse(
    directory: Directory,
    number: Number,
    reason: Annotated[str, typer.Option(help="Why; the customer is shown it.", show_default=False)],
) -> None:
    """Refuse a request, for a reason that the customer is shown.

    Example: foedus rights refuse node 5f0c2b9d11aa0c3e --reason "we could not verify who you are"
    """
    _rights(directory).requests.refuse(number, reason)
    typer.echo(f"{number}: refused")


@rights_app.command()
def models(
    directory: Directory,
    retrained: Annotated[
        tuple[str, str, str] | None,
        typer.Option(help="Study, run, and the later run that was trained without them.", show_default=False),
    ] = None,
) -> None:
    """List the models that erased customers were in, and what becomes of each: the queue of those to train again.

    With --retrained the node looks in its own log whether the later run's cohorts are without them.

    Example: foedus rights models node
    """
    rights, out = _rights(directory), _out()
    if retrained is not None:
        count = rights.retrained(*retrained)
        out.print(f"run {retrained[1]} was trained again for {count} erasures, and is retired", markup=False)
        return
    found = rights.erasures.models()
    for fate in found:
        out.print(f"{fate.state:9} study {fate.study[:12]} run {fate.run}  {_bound(fate)}", markup=False)
        out.print(
            f"    for erasure {fate.erasure}{f'; {fate.evidence}' if fate.evidence else ''}", markup=False
        )
    if not found:
        out.print("no model was trained on anybody who was erased", markup=False)


@retention_app.command("show")
def show_retention(directory: Directory) -> None:
    """Show what is older than it may be, by place, and the legal holds in force.

    Example: foedus retention show node
    """
    retention, out = _retention(directory), _out()
    for due in retention.show():
        held = f", {due.held} held" if due.held else ""
        out.print(
            f"{due.place:10} {due.clock:9} before {due.before.date()}: {due.count} due{held}; {due.why}",
            markup=False,
        )
    for hold in retention.rights.holds.in_force():
        whom = hold.subject or "everybody"
        out.print(
            f"hold {hold.id} on {whom}, by {hold.by} since {hold.at.date()}: {hold.reason}", markup=False
        )


@retention_app.command()
def purge(
    directory: Directory,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    clock_checked: Annotated[
        bool, typer.Option("--clock-checked", help="The clock is right, though the log was long silent.")
    ] = False,
) -> None:
    """Purge personal data that is too old, and records after their three years. The log keeps what and how many.

    Example: foedus retention purge node --dry-run
    """
    retention, out = _retention(directory), _out()
    found = retention.show() if dry_run else retention.purge(clock_checked=clock_checked)
    for due in found:
        if due.count:
            what = "would be purged" if dry_run else "ordered" if due.ordered else "purged"
            out.print(f"{due.place:10} {due.count} {what}: {due.why}", markup=False)
    if not any(due.count for due in found):
        out.print("nothing is due", markup=False)


@retention_app.command()
def hold(
    directory: Directory,
    reason: Annotated[str, typer.Option(help="Why; the customer is told.", show_default=False)],
    by: By,
    subject: Annotated[
        str | None, typer.Option(help="Whose data; everybody's if left out.", show_default=False)
    ] = None,
) -> None:
    """Keep data from purge and erasure, for a court, an authority or a dispute.

    Example: foedus retention hold node --subject C00042 --reason "civil case 2026-17" --by dora
    """
    number = _retention(directory).hold(reason, by, subject)
    typer.echo(f"hold {number}")


@retention_app.command()
def lift(
    directory: Directory,
    number: Annotated[str, typer.Argument(help="The hold.", show_default=False)],
    by: By,
) -> None:
    """Lift a legal hold.

    Example: foedus retention lift node 5f0c2b9d11aa0c3e --by dora
    """
    _retention(directory).lift(number, by)
    typer.echo(f"hold {number} is lifted")


def _show(out: Console, report: Erasure) -> None:
    state = "complete" if report.complete else "NOT complete: people must do what is ordered"
    out.print(
        f"erasure {report.id}, {report.began.astimezone(UTC).isoformat(timespec='seconds')}: {state}",
        markup=False,
    )
    for step in report.steps:
        why = f"; {step.why}" if step.why else ""
        out.print(f"    {step.place:10} {step.count:5} {step.errand.value}{why}", markup=False)
    for fate in report.models:
        out.print(
            f"    model of study {fate.study[:12]} run {fate.run}: {fate.state}; {_bound(fate)}", markup=False
        )


def _bound(fate: Any) -> str:
    if fate.epsilon is None:
        return "what it can tell of one customer is not known"
    return f"ε = {fate.epsilon:.4g} at δ = {fate.delta:g} for a customer of at most {fate.partners} partners"


def _zipped(found: dict[str, list[dict[str, Any]]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for place, rows in found.items():
            text = io.StringIO()
            writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
            bundle.writestr(f"{place}.csv", text.getvalue())
    return buffer.getvalue()


def _kind(word: str) -> Kind:
    from ..compliance.rights import Kind
    from ..errors import InputError

    try:
        return Kind(word)
    except ValueError as error:
        raise InputError(f"{word!r} is not one of {', '.join(k.value for k in Kind)}") from error


def _rights(directory: Path) -> Rights:
    from .home import Home
    from .rights import Rights

    return Rights(Home.load(directory))


def _retention(directory: Path) -> Retention:
    from .home import Home
    from .retention import Retention

    return Retention(Home.load(directory))


def _out() -> Console:
    return Console(highlight=False, soft_wrap=True)
