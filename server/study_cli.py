"""``foedus study``: price, sign, submit, approve, run, follow; the same API that everybody else has.

`price` and `sign` need no server. `approve` believes nothing that the server says: it verifies the
study against the approver's own copy of the treaty, and signs the digest that *it* computed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..compliance import approvals
from ..compliance import treaty as treaties
from ..documents import Envelope, SigningKey
from ..errors import Abandoned, FoedusError, InputError, Refused, VerificationError
from ..federation import fitting, limits, pricing
from ..federation import study as studies
from ..federation.counting import CountStudy
from ..federation.tasks import count
from .client import ApiClient, Event
from .study_view import coloured, print_decision, print_study, print_whole_study

study_app = typer.Typer(no_args_is_help=True, help="Write, sign, approve and run studies.")

Server = Annotated[str, typer.Option(envvar="FOEDUS_SERVER", help="The server's address, https://host:port.")]
TokenFile = Annotated[
    Path | None, typer.Option(help="File with your token; else FOEDUS_TOKEN.", show_default=False)
]
Ca = Annotated[
    Path | None,
    typer.Option(envvar="FOEDUS_CA", help="The CA to trust (PEM); else the system's.", show_default=False),
]
TreatyFile = Annotated[Path, typer.Option(help="Your own copy of the treaty.", show_default=False)]
KeyFile = Annotated[Path, typer.Option(help="Your signing key (PEM, mode 0600).", show_default=False)]
Digest = Annotated[str, typer.Argument(help="The study's digest, 8 digits or more.", show_default=False)]
Draft = Annotated[Path, typer.Argument(help="The draft, YAML.", show_default=False)]
DEFAULT_SERVER = "https://127.0.0.1:8443"


def connect(server: str, token_file: Path | None, ca: Path | None) -> ApiClient:
    """A connection with the token of `token_file`, or of FOEDUS_TOKEN.

    Raises:
        InputError: no token, or no such file.
    """
    token = os.environ.get("FOEDUS_TOKEN", "")
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{token_file}: not a readable token file") from error
    if not token.strip():
        raise InputError("no token", remedy="give --token-file FILE, or set FOEDUS_TOKEN")
    return ApiClient(server, token.strip(), ca)


# ── without a server ─────────────────────────────────────────────────────────────────────────────


@study_app.command()
def price(draft: Draft, treaty: TreatyFile) -> None:
    """What a draft would cost each customer, in ε, with every outcome the treaty allows for, and what on.

    Nothing is read but the two files: whatever the study learns from data, scales and counts included, is a
    line here.

    Example: foedus study price churn.yaml --treaty treaty.json
    """
    document, content = treaties.load(treaty)
    study = fitting.resolve(studies.load_any(draft), content, document.digest)
    terms, n = content.terms(study.purpose), len(content.parties)
    out = Console()
    split = Table(title=f"{escape(study.title)}: what ε is spent on", box=None, header_style="bold")
    for column in ("task", "learned from data"):
        split.add_column(column)
    for column in ("sums", "numbers", "share of μ²", "ε alone", "noise ÷ most a customer adds"):
        split.add_column(column, justify="right")
    for line in pricing.lines(study, content):
        split.add_row(
            line.task, line.what, str(line.sums), str(line.numbers),
            f"{line.share:.0%}", f"{line.epsilon:.3f}", f"{line.noise:.1f}",
        )  # fmt: skip
    out.print(split)
    table = Table("silos that answer", "ε per customer", title=f"in all, at δ = {study.privacy.delta:g}")
    for survivors in range(n, content.threshold - 1, -1):
        rounds = dict.fromkeys(range(1, study.rounds + 1), survivors)
        table.add_row(f"{survivors} of {n}", f"{pricing.price(study, content, survivors=rounds):.3f}")
    out.print(table)
    if isinstance(study, CountStudy):
        _print_count(out, study, content)
        return
    public = [f.called for f in study.features if not getattr(f, "learned", False)]
    out.print(
        f"{study.rounds} sums, {study.parameters} weights, {study.privacy.mode.name} noise;"
        f" the treaty's cap for {escape(study.purpose)} is {terms.budget}. {escape(content.basis)}"
        + (
            f" Bounds and levels taken as public: {escape(', '.join(dict.fromkeys(public)))}."
            if public
            else ""
        )
    )
    if study.privacy.mode.caution:
        out.print(f"[bold red]{study.privacy.mode.caution}[/]")


def _print_count(out: Console, study: CountStudy, treaty: treaties.Treaty) -> None:
    """What a counting study would show."""
    scale, silos = 2.0**study.privacy.scale_bits_count, len(treaty.parties)
    noise = study.privacy.sigma_count * study.privacy.mode.spread(silos) / scale
    out.print(
        f"{study.count.cells} cells, {study.privacy.mode.name} noise; if all {silos} silos answer, a count's ± is {noise:.1f}"
        f" and a cell is shown from a noisy count of {count.least(study, treaty, silos) / scale:.1f} on (k = {study.k},"
        f" the treaty's floor is {treaty.min_group}). The treaty's cap for {escape(study.purpose)} is"
        f" {treaty.terms(study.purpose).budget}. {escape(treaty.basis)}"
    )
    if study.privacy.mode.caution:
        out.print(f"[bold red]{study.privacy.mode.caution}[/]")


@study_app.command()
def sign(
    draft: Draft,
    treaty: TreatyFile,
    author: Annotated[str, typer.Option(help="Your name in the treaty.", show_default=False)],
    key: KeyFile,
    out: Annotated[Path, typer.Option(help="Where to write the signed study.", show_default=False)],
) -> None:
    """Fit a draft to the treaty and sign it: the study that others approve.

    Example: foedus study sign churn.yaml --treaty treaty.json --author alice --key alice.key --out churn.json
    """
    document, content = treaties.load(treaty)
    written = studies.load_any(draft)
    if written.author != author:
        raise InputError(f"{draft}: its author is {written.author}, not {author}")
    study = fitting.resolve(written, content, document.digest)
    envelope = study.envelope().signed(author, SigningKey.load(key))
    # A wrong key is found here, and not by the server.
    limits.verify(envelope, content, document.digest)
    try:
        with out.open("xb") as file:
            file.write(envelope.dumps())
    except OSError as error:
        raise InputError(f"{out}: {error.strerror or error}") from error
    Console().print(f"study {envelope.digest} in {out}", highlight=False, soft_wrap=True)


# ── with one ─────────────────────────────────────────────────────────────────────────────────────


@study_app.command()
def submit(
    study: Annotated[Path, typer.Argument(help="The signed study.", show_default=False)],
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    ca: Ca = None,
) -> None:
    """Hand a signed study to the server, which verifies it and asks for approvals.

    Example: foedus study submit churn.json --token-file alice.token --ca ca.crt
    """
    with connect(server, token_file, ca) as client:
        print_study(client.submit(Envelope.load(study)))


@study_app.command("list")
def index(server: Server = DEFAULT_SERVER, token_file: TokenFile = None, ca: Ca = None) -> None:
    """Every study on the server, newest first.

    Example: foedus study list --token-file alice.token --ca ca.crt
    """
    table = Table("study", "title", "author", "purpose", "ε", "status", "still to approve")
    units: dict[str, None] = {}
    with connect(server, token_file, ca) as client:
        for found in client.studies():
            units[found["unit"]] = None
            table.add_row(
                found["digest"][:12],
                escape(found["title"]),
                escape(found["author"]),
                escape(found["purpose"]),
                f"{found['epsilon']:g}",
                coloured(found["status"]),
                escape(", ".join(found["missing"])),
            )
    Console().print(table)
    for unit in units:
        Console().print(f"Every ε is for {escape(unit)}.", highlight=False)


@study_app.command()
def show(
    study: Digest,
    full: Annotated[
        bool, typer.Option("--full", help="Print all that is signed, as YAML, and nothing else.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    ca: Ca = None,
) -> None:
    """One study: what it asks, what it costs, who has agreed, its runs; with --full, the whole plan.

    The digest that --full prints is computed here, from what is printed.

    Example: foedus study show 3f2a9c01 --full --token-file officer.token --ca ca.crt
    """
    with connect(server, token_file, ca) as client:
        found = client.study(study)
    if full:
        print_whole_study(_asked_for(found, study))
    else:
        print_study(found)


@study_app.command()
def approve(
    study: Annotated[list[str], typer.Argument(help="Digests, 8 digits or more.", show_default=False)],
    approver: Annotated[str, typer.Option(help="Your name in the treaty.", show_default=False)],
    key: KeyFile,
    treaty: TreatyFile,
    days: Annotated[int, typer.Option(help="For how long you agree.", min=1, max=366)] = 30,
    reject: Annotated[bool, typer.Option("--reject", help="Say no; that is final.")] = False,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    ca: Ca = None,
) -> None:
    """Sign studies as their approver: yes, or no with --reject.

    Each is first verified here, against your own copy of the treaty.

    Example: foedus study approve 3f2a9c01 --approver dora --key dora.key --treaty treaty.json --ca ca.crt
    """
    _decide(study, approver, key, treaty, days, server, token_file, ca, reject=reject)


@study_app.command()
def revoke(
    study: Annotated[list[str], typer.Argument(help="Digests, 8 digits or more.", show_default=False)],
    approver: Annotated[str, typer.Option(help="Your name in the treaty.", show_default=False)],
    key: KeyFile,
    treaty: TreatyFile,
    out: Annotated[
        Path | None,
        typer.Option(help="Also write what you signed here, to hand to your own node.", show_default=False),
    ] = None,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    ca: Ca = None,
) -> None:
    """Take back your approval of studies; that is final. A running study stops before its next round.

    The server stops it, and logs it; every node that is shown the log refuses the next round, whatever the server does. Should
    the server keep it back: `foedus node revoke NODE FILE` with the file of --out.

    Example: foedus study revoke 3f2a9c01 --approver dora --key dora.key --treaty treaty.json --ca ca.crt
    """
    if out is not None and len(study) != 1:
        raise InputError("--out is for one study", remedy="revoke them one by one")
    _decide(study, approver, key, treaty, 366, server, token_file, ca, reject=True, out=out)


def _decide(
    study: list[str],
    approver: str,
    key: Path,
    treaty: Path,
    days: int,
    server: str,
    token_file: Path | None,
    ca: Path | None,
    *,
    reject: bool,
    out: Path | None = None,
) -> None:
    document, content = treaties.load(treaty)
    who = next((a for a in content.approvers if a.name == approver), None)
    if who is None:
        raise Refused("UNKNOWN_APPROVER", f"{approver} is no approver of the treaty {content.name!r}")
    secret = SigningKey.load(key)
    if secret.public != who.signing_key:
        raise VerificationError(f"{key}: not the key of {approver} in the treaty")
    with connect(server, token_file, ca) as client:
        for digest in study:
            envelope = _asked_for(client.study(digest), digest)
            plan = limits.verify(envelope, content, document.digest)
            decision = approvals.decide(
                who,
                secret,
                study=envelope.digest,
                treaty=document.digest,
                purpose=plan.purpose,
                epsilon=plan.privacy.epsilon,
                expires=datetime.now(UTC) + timedelta(days=days),
                decision="reject" if reject else "approve",
            )
            if out is not None:
                out.write_bytes(decision.dumps())
            after = client.approve(envelope.digest, decision)
            print_decision(plan, content, after, rejected=reject)


@study_app.command()
def run(
    study: Digest,
    follow: Annotated[bool, typer.Option("--follow", help="Stay and watch it.")] = False,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    ca: Ca = None,
) -> None:
    """Run an approved study.

    Example: foedus study run 3f2a9c01 --follow --token-file alice.token --ca ca.crt
    """
    with connect(server, token_file, ca) as client:
        started = client.start(study)
        Console().print(f"run {started['id']} of study {started['study'][:12]}", highlight=False)
        if follow:
            _follow(client, started["id"])


@study_app.command("follow")
def follow_run(
    run: Annotated[str, typer.Argument(help="The run's id.", show_default=False)],
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    ca: Ca = None,
) -> None:
    """Watch a run to its end; fails if the run does.

    Example: foedus study follow 1234567890 --token-file alice.token --ca ca.crt
    """
    with connect(server, token_file, ca) as client:
        _follow(client, run)


@study_app.command()
def results(
    study: Digest,
    out: Annotated[
        Path | None, typer.Option(help="Directory to save the files in.", show_default=False)
    ] = None,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    ca: Ca = None,
) -> None:
    """What a study released; with --out, fetched and checked against the listed SHA-256.

    Example: foedus study results 3f2a9c01 --out results --token-file alice.token --ca ca.crt
    """
    table = Table("file", "kind", "bytes", "SHA-256")
    with connect(server, token_file, ca) as client:
        for found in client.results(study):
            table.add_row(
                *(escape(str(found[field])) for field in ("name", "kind", "size")), found["sha256"][:16]
            )
            if out is not None:
                client.save_result(study, found, out)
    Console().print(table)


def _asked_for(found: Mapping[str, Any], digest: str) -> Envelope:
    """The signed study in the server's answer, if it is the one that was asked for."""
    envelope = Envelope.from_json(found["envelope"])
    if not envelope.digest.startswith(digest):
        raise VerificationError(f"asked for study {digest}, the server shows {envelope.digest[:12]}")
    return envelope


def _follow(client: ApiClient, run: str) -> None:
    last: Event | None = None
    for last in client.follow(run):
        text = json.dumps(dict(last.data), ensure_ascii=False) if last.data else ""
        Console().print(
            f"{last.time[11:19]} {last.kind} {text}", markup=False, highlight=False, soft_wrap=True
        )
    kind = last.kind if last is not None else str(client.run(run)["status"])
    if kind == "failed":
        data = dict(last.data) if last is not None else {}
        reason = f"run {run} failed: {data.get('reason', 'see its last event')}"
        raise Refused(str(data["code"]), reason) if "code" in data else FoedusError(reason)
    if kind == "stopped":
        raise Abandoned(f"run {run} was stopped")
