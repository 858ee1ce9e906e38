"""The command line: ``foedus --help``. Commands import what they need when they run, so help comes at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from .clients.cli import node_app
from .clients.consent_cli import consent_app
from .clients.ledger_cli import ledger_app
from .clients.lineage_cli import lineage_app
from .clients.mask_cli import mask, mask_union
from .clients.masking_cli import columns, pseudonyms_app
from .clients.policy_cli import policy_app
from .clients.portal_cli import portal_app
from .clients.report_cli import report_app
from .clients.rights_cli import retention_app, rights_app
from .clients.watch_cli import watch_app
from .errors import FoedusError
from .server.cli import server_app, study_app
from .server.log_cli import log_app

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Federated customer analytics whose claims a partner's officer can re-check offline.

Companies train churn and propensity models together while every customer's data stays home. The nodes
refuse whatever the treaty, a customer's consent or the privacy budget forbids.

**Start here:** `foedus demo` runs everything on this machine, with real servers, keys and a verified result.

**Exit codes:** 0 done · 1 a fault of foedus · 2 a file, table or option is not what it must be ·
3 refused by a rule · 4 a check does not hold · 5 too few silos answered · 6 a server can't be reached
""",
)
treaty_app = typer.Typer(no_args_is_help=True, help="Sign and check treaties.")
app.add_typer(study_app, name="study")
app.add_typer(log_app, name="log")
app.add_typer(server_app, name="server")
app.add_typer(node_app, name="node")
app.add_typer(consent_app, name="consent")
app.add_typer(rights_app, name="rights")
app.add_typer(retention_app, name="retention")
app.add_typer(ledger_app, name="ledger")
app.add_typer(lineage_app, name="lineage")
app.add_typer(watch_app, name="watch")
app.add_typer(report_app, name="report")
app.add_typer(policy_app, name="policy")
app.add_typer(portal_app, name="portal")
app.add_typer(treaty_app, name="treaty")
app.add_typer(pseudonyms_app, name="pseudonyms")
app.command()(columns)
app.command()(mask)
app.command("mask-union")(mask_union)

Orders = Annotated[
    Path | None,
    typer.Option(help="Your own order log, .csv or .parquet: customer, date, amount.", show_default="CDNOW"),
]


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="lr (logistic regression) or mlp.")] = "lr",
    orders: Orders = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where to put everything.", show_default="./foedus-demo")
    ] = None,
    kill: Annotated[bool, typer.Option(help="Kill one node in the middle of the run.")] = True,
) -> None:
    """Run a whole federation on this machine: servers, four nodes, a study, one node killed, a verified result.

    Real processes with TLS and keys on 127.0.0.1; real purchase records (CDNOW, or your own with --orders).

    Example: foedus demo --model mlp
    """
    from .demo.run import run_demo

    run_demo(model=model, orders=orders, directory=directory, kill=kill)


@app.command()
def simulate(
    study: Annotated[Path, typer.Argument(help="The study's draft, YAML.", show_default=False)],
    orders: Orders = None,
    silos: Annotated[int, typer.Option(help="How many partners to deal the orders to.", min=3, max=8)] = 4,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir", help="Keep the silos and the evidence here.", show_default="removed afterwards"
        ),
    ] = None,
) -> None:
    """Try a study on simulated silos in this process: the same code as a deployment, no servers.

    Example: foedus simulate examples/churn.yaml
    """
    from .demo.run import run_simulation

    run_simulation(study, orders=orders, silos=silos, directory=directory)


@app.command("audit-privacy")
def audit_privacy(
    study: Annotated[
        Path,
        typer.Argument(help="The study's draft, YAML; with --dir also a signed one.", show_default=False),
    ],
    orders: Orders = None,
    trial: Annotated[
        Path | None,
        typer.Option("--dir", help="The silos that `foedus simulate --dir` kept here.", show_default=False),
    ] = None,
    silos: Annotated[int, typer.Option(help="How many partners to deal the orders to.", min=3, max=8)] = 4,
    canaries: Annotated[int, typer.Option(help="Made-up customers to guess about; more see more.")] = 5000,
    delta: Annotated[
        float | None, typer.Option(help="The δ at which ε is claimed.", show_default="the study's")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the report here, JSON.", show_default=False)] = None,
) -> None:
    """Attack a study's privacy in simulation: plant canaries, guess who was in, check noise and clipping.

    Exits 0 if every claim holds, 4 if one is refuted. Takes a minute or two; all randomness is fresh.

    Example: foedus audit-privacy examples/churn.yaml --out audit.json
    """
    from .demo.audit import run_audit

    run_audit(study, orders=orders, trial=trial, silos=silos, canaries=canaries, delta=delta, out=out)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="The evidence, evidence.zip.", show_default=False)],
    treaty: Annotated[
        Path | None, typer.Option(help="Your own copy of the treaty: then nothing in the bundle is trusted.")
    ] = None,
) -> None:
    """Re-check a study's evidence offline: signatures, log, rounds, ε, and the model from its sums.

    Exits 0 if everything holds, 4 at the first thing that does not. Don't trust this program? verify_foedus.py,
    one file of standard library, checks the same: read it and keep your own copy (docs/for-officers.md).

    Example: foedus verify evidence.zip --treaty treaty.json
    """
    from .federation.verification import verify as check

    report = check(bundle, own_treaty=treaty)
    out = Console(highlight=False)
    for item in report.checks:
        out.print(f"[green]✓[/] {item.number:2} {item.name:10} {escape(item.detail)}")
    out.print(f"study  {report.study_digest}  {escape(report.study.title)!r}")
    out.print(f"treaty {report.treaty_digest}  {escape(report.treaty.name)!r}")
    out.print(
        f"[bold]Everything holds:[/] ε = {report.epsilon:.4f} at δ = {report.study.privacy.delta:g} per customer,"
        f" {report.study.privacy.mode.name} noise"
    )
    budget = report.treaty.terms(report.study.purpose).budget
    out.print(f"{escape(report.treaty.basis)} The treaty's cap for {escape(report.study.purpose)}: {budget}")
    if treaty is None:
        out.print(
            "[yellow]The treaty was taken from the bundle: compare its digest with yours, or give --treaty[/]"
        )


@app.command()
def keygen(
    file: Annotated[
        Path, typer.Argument(help="Where to write the private key (mode 0600).", show_default=False)
    ],
) -> None:
    """Make an Ed25519 signing key for a scientist or an approver, and print its public half.

    Example: foedus keygen alice.key
    """
    from .documents import SigningKey

    key = SigningKey.generate()
    key.save(file)
    typer.echo(key.public)


@treaty_app.command()
def sign(
    file: Annotated[
        Path, typer.Argument(help="A treaty: YAML or JSON content, or one already signed by others.")
    ],
    party: Annotated[str, typer.Option(help="Your party's name.", show_default=False)],
    key: Annotated[
        Path, typer.Option(help="Your party's identity key (identity.key of the node).", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option(help="Where to write the treaty with your signature.", show_default=False)
    ],
    former: Annotated[
        Path | None,
        typer.Option(help="The treaty it amends, if your party is in that one only.", show_default=False),
    ] = None,
) -> None:
    """Add your party's signature to a treaty; to an amendment also as a party that leaves.

    Example: foedus treaty sign treaty.yaml --party shop-a --key node/identity.key --out treaty.json
    """
    import yaml

    from .compliance import amendments
    from .compliance import treaty as treaties
    from .documents import Envelope, SigningKey, read_text
    from .errors import InputError
    from .federation.modes import cautions

    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise InputError(f"{file}: neither YAML nor JSON: {error}") from error
    signed = isinstance(content, dict) and set(content) == {"kind", "payload", "signatures"}
    envelope = Envelope.from_json(content) if signed else treaties.draft(content).envelope()
    treaty = treaties.parse(envelope)
    identity = SigningKey.load(key)
    if former is not None and party not in {p.name for p in treaty.parties}:
        amendments.sign_as_leaving(envelope, Envelope.load(former), party, identity.public)
    elif treaty.party(party).signing_key != identity.public:
        raise InputError(f"{key}: not the key the treaty names for {party}")
    for caution in cautions(treaty):
        Console(stderr=True, highlight=False).print(f"[bold red]UNSAFE:[/] {escape(caution)}")
    envelope = envelope.signed(party, identity)
    out.write_bytes(envelope.dumps())
    missing = [p.name for p in treaty.parties if p.name not in envelope.signatures]
    typer.echo(
        f"{out}: treaty {envelope.digest[:12]}; "
        + (f"still to sign: {', '.join(missing)}" if missing else "signed by all")
    )


@treaty_app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A signed treaty.", show_default=False)],
) -> None:
    """Verify a treaty's signatures and print what it says.

    Example: foedus treaty show treaty.json
    """
    from .compliance import treaty as treaties
    from .federation.modes import cautions

    envelope, treaty = treaties.load(file)
    out = Console(highlight=False)
    out.print(f"[bold]{escape(treaty.name)}[/], version {treaty.version}, digest {envelope.digest}")
    out.print(f"parties    {', '.join(p.name for p in treaty.parties)} (all have signed)")
    out.print(f"sums       over {treaty.threshold} silos or more; {treaty.colluders} may collude")
    out.print(
        f"cohort     {treaty.min_cohort} to {treaty.max_cohort} customers a silo; orders at most {treaty.retention_days} days old"
    )
    out.print(f"groups     of {treaty.min_group} people or more (k), over all silos, may be shown")
    out.print(f"approvals  {', '.join(treaty.approval_chain)}: {', '.join(a.name for a in treaty.approvers)}")
    for terms in treaty.purposes:
        out.print(f"purpose    {escape(terms.purpose)}: {terms.budget}")
    out.print(f"overlap    {escape(treaty.basis)}")
    for caution in cautions(treaty):
        out.print(f"[bold red]UNSAFE[/]     {escape(caution)}")


@treaty_app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="The treaty in force.", show_default=False)],
    new: Annotated[
        Path, typer.Argument(help="The amendment: YAML, JSON, signed or not.", show_default=False)
    ],
) -> None:
    """Show what an amendment changes, and which terms it makes looser or stricter for customers' data.

    Example: foedus treaty diff treaty.json treaty-2.yaml
    """
    import yaml
    from rich.table import Table

    from .compliance import amendments
    from .compliance import treaty as treaties
    from .documents import Envelope, read_text
    from .errors import InputError

    envelope, former = treaties.load(old)
    try:
        content = yaml.safe_load(read_text(new))
    except yaml.YAMLError as error:
        raise InputError(f"{new}: neither YAML nor JSON: {error}") from error
    signed = isinstance(content, dict) and set(content) == {"kind", "payload", "signatures"}
    amended = treaties.parse(Envelope.from_json(content)) if signed else treaties.draft(content)
    out = Console(highlight=False)
    out.print(f"version {former.version} → {amended.version}", markup=False)
    if amended.amends != envelope.digest:
        out.print(f"[bold red]it does not amend this treaty[/]: `amends: {envelope.digest}` would")
    changes = amendments.diff(former, amended)
    if not changes:
        out.print("no term differs")
        return
    table = Table(show_header=True)
    for column in ("term", "was", "now", "for customers"):
        table.add_column(column)
    colours = {"looser": "[red]looser[/]", "stricter": "[green]stricter[/]", "other": "–"}
    for change in changes:
        table.add_row(escape(change.term), escape(change.was), escape(change.now), colours[change.effect])
    out.print(table)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; foedus' own errors become one clear message and their exit code."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    try:
        app(arguments)
    except FoedusError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"[bold red]{'refused' if error.exit_code == 3 else 'error'}:[/] {escape(error.diagnostics())}"
        )
        sys.exit(error.exit_code)
