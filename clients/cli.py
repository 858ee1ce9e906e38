"""``foedus node``: what a partner's engineer does at home (consents: `consent_cli`; the ledger: `ledger_cli`)."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .witness_cli import witness

if TYPE_CHECKING:
    from .home import Home

node_app = typer.Typer(no_args_is_help=True, help="Run a silo's node beside its data.")

Directory = Annotated[Path, typer.Argument(help="The node's directory.", show_default=False)]


@node_app.command()
def init(
    directory: Directory,
    party: Annotated[str, typer.Option(help="Your name in the treaty.", show_default=False)],
    server: Annotated[str, typer.Option(help="host:port of the server's gateway.", show_default=False)],
    table: Annotated[
        Path, typer.Option(help="Your orders: a .duckdb, .parquet or .csv file.", show_default=False)
    ],
) -> None:
    """Make a node's directory with fresh keys, and print your block of the treaty.

    Example: foedus node init node --party shop-a --server coordinator.example:9443 --table orders.parquet
    """
    from .home import Home, Settings

    home = Home.create(directory, Settings.checked(party=party, server=server, table=str(table.resolve())))
    typer.echo(_block(home), nl=False)
    hints = Console(stderr=True, highlight=False, soft_wrap=True)
    hints.print(f"made {directory}; the block above is for the treaty's author", markup=False)
    hints.print(
        "then put treaty.json (signed by all) and ca.crt into it, and run `foedus node check`", markup=False
    )


@node_app.command()
def log(
    directory: Directory,
    since: Annotated[int, typer.Option(help="Only entries from this index on.", min=0)] = 0,
) -> None:
    """Show the node's own audit log, once all of it is recomputed: what it accepted, refused and sent, and consents.

    What entries have sealed about customers and studies is opened and shown: it is for this node's people. After a
    customer's erasure it says: shredded. Exits 4 if entries, tree, payloads or keys are not what they were.

    Example: foedus node log node
    """
    from ..compliance.auditlog.log import AuditLog, commitment_in
    from ..federation.log_table import table, with_sealed
    from .home import Home

    home = Home.load(directory)
    audit = AuditLog(home.path / "audit.db", f"foedus node {home.party}", create=False)
    audit.check()
    shown = []
    for entry in audit.entries(min(since, audit.size)):
        record = entry.record
        if commitment_in(record) is not None:
            opening = audit.open_payload(entry.index)
            record = with_sealed(record, None if opening is None else opening.payload)
        shown.append((entry.index, record))
    for line in table(shown):
        typer.echo(line)
    typer.echo(f"{audit.size} entries, recomputed:")
    typer.echo(audit.root().hex())


@node_app.command()
def clock(
    directory: Directory,
    officer: Annotated[str, typer.Option(help="Your name.", show_default=False)],
    reason: Annotated[str, typer.Option(help="Why the log's time goes back.", show_default=False)],
) -> None:
    """Let the node's log go on where its last entries were made under a clock that was ahead.

    A log takes no entry of a time before its last one's: a clock that is set back would bring withdrawn consents back. Set
    the machine's clock right first; your name and reason stand in the log for good.

    Example: foedus node clock node --officer dora --reason "the year had been mistyped"
    """
    from ..compliance.auditlog.log import AuditLog
    from .home import Home

    home = Home.load(directory)
    audit = AuditLog(home.path / "audit.db", f"foedus node {home.party}", create=False)
    audit.set_clock(officer, reason)
    typer.echo("the log goes on at the time of now")


@node_app.command("party")
def party_block(directory: Directory) -> None:
    """Print your block of the treaty: name and two public keys, to paste under `parties:`.

    Example: foedus node party node
    """
    from .home import Home

    typer.echo(_block(Home.load(directory)), nl=False)


@node_app.command()
def check(directory: Directory) -> None:
    """Look whether a node could serve: keys, treaty, ledger, logs, table. Nothing leaves the machine.

    Example: foedus node check node
    """
    from ..federation.modes import cautions
    from . import node
    from .app import SiloApp
    from .home import Home

    home = Home.load(directory)
    app = SiloApp(home)
    treaty, tables = app.guard.treaty, node.check(app)
    out = Console(highlight=False)
    out.print(
        f"party      {home.party}, of the treaty {escape(treaty.name)!r} {app.guard.treaty_digest[:12]}"
    )
    for name, columns in tables.items():
        out.print(f"table      {name} of {home.table} ({', '.join(columns)})")
    for terms in treaty.purposes:
        people = len(app.guard.consent.in_force(terms.purpose, datetime.now(UTC)))
        spent = app.guard.ledger.spent(terms.purpose, app.guard.budget.cap(terms.purpose))
        out.print(
            f"purpose    {terms.purpose}: {people} consents in force, ε {spent:.4f} spent of {terms.budget}"
        )
    out.print(f"overlap    {escape(treaty.basis)}")
    for caution in cautions(treaty):
        out.print(f"[bold red]UNSAFE[/]     {escape(caution)}")
    out.print(f"log head   {app.guard.log_size} entries seen")
    for path in app.guard.heads.evidence:
        out.print(
            f"[bold red]CONTRADICTION[/] in the server's log: {escape(str(path))}; see foedus node witness"
        )


@node_app.command()
def amend(
    directory: Directory,
    file: Annotated[Path, typer.Argument(help="The amendment, signed by all.", show_default=False)],
) -> None:
    """Put an amendment of the treaty in force: every party of it and of the former must have signed.

    The former is kept beside it. A node that runs refuses from its next message on, until it is started again. What was spent
    stays spent. `foedus treaty diff` shows first what changes.

    Example: foedus node amend node treaty-2.json
    """
    from ..compliance import amendments
    from ..compliance import treaty as treaties
    from ..compliance.auditlog.log import AuditLog
    from ..documents import Envelope
    from ..errors import InputError
    from .home import Home

    home, document = Home.load(directory), Envelope.load(file)
    staying = {p.name: p.signing_key for p in treaties.parse(document).parties}
    if staying.get(home.party) != home.identity().public:
        raise InputError(
            f"{file}: {home.party} is no party of it under its own key",
            remedy="a party that leaves stops its node",
        )
    log = AuditLog(directory / "audit.db", f"foedus node {home.party}")
    new = amendments.install(directory, document, log, home.party)
    typer.echo(
        f"version {new.version} of {new.name!r} is in force: {document.digest[:12]}; start the node again"
    )


@node_app.command()
def revoke(
    directory: Directory,
    file: Annotated[
        Path, typer.Argument(help="A signed rejection (foedus study revoke --out FILE).", show_default=False)
    ],
) -> None:
    """Hand the node an approver's signed rejection: it gives nothing more to that study, whatever the server says.

    Example: foedus node revoke node rejection.json
    """
    from ..compliance import treaty as treaties
    from ..compliance.auditlog.log import AuditLog
    from ..documents import Envelope
    from .home import Home
    from .revocations import Revocations

    home = Home.load(directory)
    document, treaty = treaties.load(directory / "treaty.json")
    audit = AuditLog(directory / "audit.db", f"foedus node {home.party}")
    kept = Revocations(directory / "revoked.db", audit, home.party)
    study = kept.take(Envelope.load(file), treaty, document.digest)
    typer.echo(f"study {study[:12]} is refused from its next message on")


@node_app.command()
def run(directory: Directory) -> None:
    """Serve the node until interrupted: it answers studies its treaty permits, and refuses the rest.

    Example: foedus node run node
    """
    import logging

    from .node import run as serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    serve(directory)


@node_app.command()
def score(
    directory: Directory,
    model: Annotated[Path, typer.Argument(help="The released model.json.", show_default=False)],
    as_of: Annotated[
        str, typer.Option(help="The day to look back from, YYYY-MM-DD: today, as a rule.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="A new .csv or .parquet file.", show_default=False)],
) -> None:
    """Score your own consenting customers with a released model, here; nothing leaves the machine.

    The file has the columns customer and score, the probability that the model was trained for.

    Example: foedus node score node model.json --as-of 2026-11-22 --out scores.csv
    """
    from .home import Home
    from .scoring import score_to

    scored = score_to(Home.load(directory), model, _day(as_of), out)
    say = Console(highlight=False, soft_wrap=True)
    say.print(
        f"{out}: {len(scored.frame)} customers who consent to {scored.purpose}, as of {scored.as_of}",
        markup=False,
    )
    say.print(
        f"score: the probability of {scored.meaning}"
        + (f"; the last order read is of {scored.latest}" if scored.latest else ""),
        markup=False,
    )


node_app.command()(witness)


def _block(home: Home) -> str:
    """An item of a treaty's `parties` in YAML, its node key as a literal block."""
    from .fleet import node_public_key

    key = node_public_key(home.link.node_key).decode().strip().replace("\n", "\n      ")
    return (
        f"  - name: {json.dumps(home.party)}\n"  # a name such as 1e5 is a text, and stays one
        f"    signing_key: {home.identity().public}\n"
        f"    node_key: |\n      {key}\n"
    )


def _day(text: str) -> date:
    from ..errors import InputError

    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{text!r} is not a day, e.g. 2027-01-31") from error
