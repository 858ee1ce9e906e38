"""``foedus consent``: notices, consents, receipts and proofs of a silo's customers."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from ..compliance.consent import ConsentRegister
    from ..documents import Envelope
    from .consent_log import ConsentLog
    from .home import Home

consent_app = typer.Typer(no_args_is_help=True, help="Keep the consents of a silo's customers.")

Directory = Annotated[Path, typer.Argument(help="The node's directory.", show_default=False)]
Purpose = Annotated[
    str, typer.Option(help="A purpose, e.g. dpv:CustomerRelationshipManagement.", show_default=False)
]
Subject = Annotated[str, typer.Argument(help="The customer, as in the table.", show_default=False)]
Out = Annotated[Path, typer.Option(help="A new file.", show_default=False)]


@consent_app.command()
def notice(
    directory: Directory,
    file: Annotated[Path, typer.Argument(help="The notice, YAML.", show_default=False)],
) -> None:
    """Publish a version of the notice that customers are shown; consents refer to it. It never changes.

    Example: foedus consent notice node notice.yaml
    """
    from ..compliance.consent import Notice

    found = Notice.load(file)
    _register(directory).publish(found)
    typer.echo(f"published {found.version}, sha256 {found.digest}")


@consent_app.command()
def grant(
    directory: Directory,
    subject: Subject,
    purpose: Purpose,
    notice: Annotated[
        str,
        typer.Option(
            help="Version and language of the notice they read, e.g. 2026-01/zh.", show_default=False
        ),
    ],
    expires: Annotated[
        str | None, typer.Option(help="When it ends, RFC 3339 with zone.", show_default=False)
    ] = None,
    sensitive: Annotated[bool, typer.Option(help="They consented separately to sensitive data.")] = False,
    share: Annotated[
        list[str] | None,
        typer.Option(help="A recipient they consented to separately; repeat it.", show_default=False),
    ] = None,
    born: Annotated[
        str | None, typer.Option(help="Date of birth, YYYY-MM-DD, where it is needed.", show_default=False)
    ] = None,
    guardian: Annotated[
        str | None, typer.Option(help="Who consented for a child.", show_default=False)
    ] = None,
) -> None:
    """Record one customer's consent to all that the notice names for the purpose; sensitive data only if said.

    Example: foedus consent grant node C00042 --purpose dpv:CustomerRelationshipManagement --notice 2026-01/en
    """
    from ..compliance.consent import Grant

    register, log = _register(directory), _log(directory)
    given = Grant(
        subject,
        purpose,
        notice,
        expires_at=None if expires is None else _moment(expires),
        method="cli",
        sensitive=sensitive,
        sharing=tuple(share or ()),
        born=None if born is None else _day(born),
        guardian=guardian,
    )
    (record,) = register.grant_many([given], record=log.granted(given))
    typer.echo(f"recorded {record}")


@consent_app.command()
def withdraw(directory: Directory, subject: Subject, purpose: Purpose) -> None:
    """Withdraw one customer's consent; in force in the next round.

    Example: foedus consent withdraw node C00042 --purpose dpv:CustomerRelationshipManagement
    """
    from ..compliance.consent import Withdrawal

    register, log = _register(directory), _log(directory)
    register.withdraw(subject, purpose, record=log.withdrawn(Withdrawal(subject, purpose), "cli"))
    typer.echo(f"withdrawn; {subject} is in no cohort for {purpose} from the next round on")


@consent_app.command(name="import")
def import_(
    directory: Directory,
    file: Annotated[
        Path, typer.Argument(help="A .csv, .parquet, .duckdb, .sqlite or .db file.", show_default=False)
    ],
    query: Annotated[
        str | None,
        typer.Option(
            help="SQL that gives the columns; a .csv or .parquet is the table `source`.", show_default=False
        ),
    ] = None,
) -> None:
    """Take in consents from a file or a query, all of it or, if a row is not valid, none.

    Columns: subject, purpose, notice_version, granted_at; and if there are any: expires_at, withdrawn_at, method,
    categories, sensitive, sharing, born, guardian, evidence.

    Example: foedus consent import node consents.csv
    """
    from .consent_sql import read

    register, log = _register(directory), _log(directory)
    count = register.take_in(
        read(file, query), record=lambda rows: log.imported(rows, file.suffix.lstrip(".").lower())()
    )
    typer.echo(f"took in {count} records")


@consent_app.command()
def counts(directory: Directory, purpose: Purpose) -> None:
    """Count consents in force, withdrawn and expired for a purpose.

    Example: foedus consent counts node --purpose dpv:CustomerRelationshipManagement
    """
    for state, number in _register(directory).counts(purpose, datetime.now(UTC)).items():
        typer.echo(f"{state:12} {number}")


@consent_app.command()
def show(directory: Directory, subject: Subject) -> None:
    """Show all consents of one customer, oldest first: what they may ask to see.

    Example: foedus consent show node C00042
    """
    records, now = _register(directory).records(subject), datetime.now(UTC)
    out = Console(highlight=False, soft_wrap=True)
    for r in records:
        out.print(
            f"{r.granted_at.isoformat()}  {r.state(now):9} {r.purpose}, notice {r.notice_version}",
            markup=False,
        )
        for name, value in (
            ("record", r.record_id),
            (
                "data",
                ", ".join(sorted(r.terms.categories))
                + (" (sensitive: separately)" if r.terms.sensitive else ""),
            ),
            ("shared with", ", ".join(sorted(r.terms.sharing)) or "nobody"),
            ("until", r.expires_at.isoformat() if r.expires_at else "withdrawn"),
            ("withdrawn", r.withdrawn_at.isoformat() if r.withdrawn_at else "no"),
            ("by", f"guardian {r.guardian}" if r.guardian else "themselves"),
            ("how", r.method),
        ):
            out.print(f"    {name:12} {value}", markup=False)
    if not records:
        out.print(f"{subject}: no consent is recorded", markup=False)


@consent_app.command()
def receipt(directory: Directory, subject: Subject, out: Out) -> None:
    """Write a customer's receipt for their latest consent: JSON-LD (DPV, ISO/IEC TS 27560), signed by the node.

    Example: foedus consent receipt node C00042 --out receipt.json
    """
    from ..compliance.consent import receipts
    from ..compliance.consent.notices import split_version
    from ..errors import InputError

    home = _home(directory)
    register, now = _register(directory), datetime.now(UTC)
    records = register.records(subject)
    if not records:
        raise InputError(f"{subject}: no consent is recorded")
    told = register.notices()[split_version(records[-1].notice_version)[0]]
    content = receipts.receipt(records[-1], told, home.party, pseudonyms=home.cohort_key(), at=now)
    _write(out, receipts.sign(content, home.party, home.identity()))


@consent_app.command()
def proof(
    directory: Directory,
    subject: Subject,
    out: Out,
    since: Annotated[
        str | None,
        typer.Option(
            help="Cohorts from this time on, RFC 3339.", show_default="their last withdrawal, else all"
        ),
    ] = None,
) -> None:
    """Write a proof for one customer: in which cohorts of this node they were, and in which they were not.

    Example: foedus consent proof node C00042 --out proof.json
    """
    from ..compliance.auditlog.log import AuditLog
    from ..compliance.consent import proofs

    home, register = _home(directory), _register(directory)
    start = _moment(since) if since is not None else None
    if start is None:
        start = max((r.withdrawn_at for r in register.records(subject) if r.withdrawn_at), default=None)
    made = proofs.prove(
        subject,
        silo=home.party,
        log=AuditLog(home.path / "audit.db", f"foedus node {home.party}", create=False),
        register=register,
        silo_key=home.cohort_key(),
        identity=home.identity(),
        since=start,
    )
    _write(out, made)


@consent_app.command("check-proof")
def check_proof(
    file: Annotated[Path, typer.Argument(help="A proof or a receipt.", show_default=False)],
    key: Annotated[
        str | None, typer.Option(help="The silo's public key, base64.", show_default=False)
    ] = None,
    treaty: Annotated[
        Path | None, typer.Option(help="Or the treaty, which names it.", show_default=False)
    ] = None,
) -> None:
    """Check a customer's proof or receipt, offline; nothing of the silo is needed but its public key.

    Example: foedus consent check-proof proof.json --treaty treaty.json
    """
    from ..compliance import treaty as treaties
    from ..compliance.consent import proofs, receipts
    from ..documents import Envelope
    from ..errors import InputError

    envelope = Envelope.load(file)
    silo = str(envelope.payload.get("silo") or envelope.payload.get("dct:publisher"))
    if (key is None) == (treaty is None):
        raise InputError("whose key is to be believed?", remedy="give either --key or --treaty")
    public = key if key is not None else ""
    if treaty is not None:
        public = treaties.load(treaty)[1].party(silo).signing_key
    out = Console(highlight=False, soft_wrap=True)
    if envelope.kind == receipts.KIND:
        receipts.verify(envelope, silo, public)
        out.print(f"a receipt that {silo} signed on {envelope.payload['dct:created']}", markup=False)
        return
    found = proofs.check(envelope, silo, public)
    for f in found:
        out.print(
            f"{f.at.isoformat()}  {'IN    ' if f.member else 'not in'}  round {f.round} of run {f.run}, study {f.study[:12]}",
            markup=False,
        )
    inside = sum(f.member for f in found)
    out.print(
        f"{envelope.payload['subject']}: in {inside} and not in {len(found) - inside} cohorts of {silo}",
        markup=False,
    )


@consent_app.command()
def serve(
    directory: Directory,
    port: Annotated[int, typer.Option(help="The port.", min=1, max=65535)] = 8475,
    host: Annotated[str, typer.Option(help="The address; TLS is up to a proxy in front.")] = "127.0.0.1",
) -> None:
    """Take in consents as they happen, by signed webhook, until interrupted.

    The secret is the node's webhook.key, made if there is none. POST /events, Standard Webhooks signatures.

    Example: foedus consent serve node
    """
    from .consent_hook import load_secret
    from .consent_hook import serve as run

    register, file = _register(directory), _home(directory).path / "webhook.key"
    secret = load_secret(file)
    typer.echo(f"http://{host}:{port}/events, signed with the secret in {file}")
    run(register, secret, host, port, _log(directory))


def _home(directory: Path) -> Home:
    from .home import Home

    return Home.load(directory)


def _log(directory: Path) -> ConsentLog:
    from .consent_log import ConsentLog

    return ConsentLog(_home(directory))


def _register(directory: Path) -> ConsentRegister:
    """The register in a node's directory: not a new empty one in a directory that was mistyped.

    Raises:
        InputError: not a node's directory.
    """
    from ..compliance.consent import ConsentRegister

    return ConsentRegister(_home(directory).path / "consent.db")


def _write(path: Path, document: Envelope) -> None:
    from ..documents import write_private_file

    write_private_file(path, document.dumps())
    typer.echo(f"wrote {path}")


def _moment(text: str) -> datetime:
    from ..errors import InputError

    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{text!r} is not an RFC 3339 time, e.g. 2027-01-31T00:00:00+00:00") from error
    if moment.utcoffset() is None:
        raise InputError(f"{text!r} has no timezone")
    return moment


def _day(text: str) -> date:
    from ..errors import InputError

    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{text!r} is not a day, e.g. 2015-01-31") from error
