"""``foedus server``: make a coordinator's directory and certificates, give out tokens, serve.

`study_app` (``foedus study``) stands in ``study_cli``; both are put together by the top-level command line.
"""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..compliance import treaty as treaties
from ..documents import SigningKey
from ..errors import InputError
from .auth import Role, issue
from .log_place import choose, open_log
from .store import Store
from .study_cli import study_app

__all__ = ["server_app", "study_app"]

server_app = typer.Typer(no_args_is_help=True, help="Run the coordinator's server.")
Home = Annotated[Path, typer.Argument(help="The server's directory.", show_default=False)]
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@server_app.command()
def init(
    home: Home,
    treaty: Annotated[
        Path | None, typer.Option(help="The treaty, signed by every party.", show_default=False)
    ] = None,
    log_database: Annotated[
        str | None,
        typer.Option(
            help="Keep the audit log there, postgresql://ROLE@HOST/DATABASE; see log-sql. With --treaty.",
            show_default="HOME/audit.db",
        ),
    ] = None,
) -> None:
    """Make the server's directory: its key first, then its treaty.

    The treaty names the server's key, so the key comes first: without --treaty the command makes it and
    prints its public half for the treaty's coordinator; with --treaty it takes the signed treaty in.
    Both may be repeated; a key is never overwritten.

    Example: foedus server init coordinator --treaty treaty.json
    """
    from .desk import check_key

    out = Console()
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    path = home / "server.key"
    if not path.exists():
        SigningKey.generate().save(path)
        out.print(f"made the key [bold]{path}[/]")
    key = SigningKey.load(path)
    if treaty is None:
        if log_database is not None:
            raise InputError("--log-database needs --treaty: it names the log", remedy="give both")
        out.print(f"public key for the treaty's coordinator:\n{key.public}", highlight=False, soft_wrap=True)
        return
    document, content = treaties.load(treaty)
    check_key(content, key, path)
    kept = home / "treaty.json"
    if kept.exists() and treaties.load(kept)[0].digest != document.digest:
        raise InputError(
            f"{kept}: another treaty, {treaties.load(kept)[0].digest[:12]}",
            remedy="one directory serves one treaty; make another directory",
        )
    if kept.resolve() != treaty.resolve():
        shutil.copyfile(treaty, kept)
    (home / "evidence").mkdir(exist_ok=True)
    if log_database is not None:
        choose(home, log_database, content.coordinator.origin)
    open_log(home, content.coordinator.origin)
    Store(home / "server.db").close()
    (home / "server.db").chmod(0o600)
    out.print(f"{home} serves the treaty [bold]{content.name}[/] {document.digest[:12]}", highlight=False)


@server_app.command("log-sql")
def log_sql(
    role: Annotated[str, typer.Option(help="The role that the server will connect as.", show_default=False)],
    schema: Annotated[str, typer.Option(help="The schema to make; one log each.")] = "foedus_log",
) -> None:
    """Print the SQL that makes an empty audit log in PostgreSQL, for the database's owner to run.

    The role must exist, and must own nothing there: it may SELECT and INSERT, and triggers refuse the rest to everybody.

    Example: foedus server log-sql --role foedus_app > log.sql
    """
    from ..compliance.auditlog.postgres_schema import ddl

    typer.echo(ddl(role, schema), nl=False)


@server_app.command("shred-study")
def shred_study(
    home: Home,
    study: Annotated[str, typer.Argument(help="The study's digest, all of it.", show_default=False)],
) -> None:
    """Delete the key of the free text that a study has in the audit log: its title, why it failed. The log still verifies.

    Ask the backups of HOME/audit-keys to expire, too: who has one of them can still read the text. Evidence and the
    study's own document are not touched.

    Example: foedus server shred-study coordinator 3f2a9c01d4…
    """
    from ..compliance.auditlog.log import study_key

    if len(study) != 64 or not set(study) <= set("0123456789abcdef"):
        raise InputError(
            "a study whose text is shredded is named by all 64 digits of its digest",
            remedy="`foedus study list` shows it",
        )
    _, content = treaties.load(home / "treaty.json")
    count = open_log(home, content.coordinator.origin, create=False).shred("server", study_key(study))
    typer.echo(f"shredded {count} texts" if count else "no text of this study is sealed")


@server_app.command()
def amend(
    home: Home,
    file: Annotated[Path, typer.Argument(help="The amendment, signed by all.", show_default=False)],
) -> None:
    """Put an amendment of the treaty in force: every party of it and of the former must have signed.

    Refused while a run is active. Start the server again afterwards. Studies of the former treaty are void; what they released
    verifies under the former treaty, which is kept beside.

    Example: foedus server amend coordinator treaty-2.json
    """
    from ..compliance import amendments
    from ..compliance import treaty as treaties
    from ..documents import Envelope
    from .store import Store

    _, former = treaties.load(home / "treaty.json")
    store = Store(home / "server.db")
    try:
        store.refuse_if_active()
    finally:
        store.close()
    document = Envelope.load(file)
    new = amendments.install(home, document, open_log(home, former.coordinator.origin), "coordinator")
    typer.echo(
        f"version {new.version} of {new.name!r} is in force: {document.digest[:12]}; start the server again"
    )


@server_app.command()
def clock(
    home: Home,
    officer: Annotated[str, typer.Option(help="Your name.", show_default=False)],
    reason: Annotated[str, typer.Option(help="Why the log's time goes back.", show_default=False)],
) -> None:
    """Let the server's log go on where its last entries were made under a clock that was ahead.

    A log takes no entry of a time before its last one's. Set the machine's clock right first; your name and reason stand in
    the log for good, where every partner reads them.

    Example: foedus server clock coordinator --officer dora --reason "the year had been mistyped"
    """
    _, content = treaties.load(home / "treaty.json")
    open_log(home, content.coordinator.origin, create=False).set_clock(officer, reason)
    typer.echo("the log goes on at the time of now")


@server_app.command()
def token(
    home: Home,
    name: Annotated[str, typer.Option(help="Whose token it is.", show_default=False)],
    role: Annotated[Role, typer.Option(help="What they are to the server.", show_default=False)],
    days: Annotated[int, typer.Option(help="How long it lives.")] = 90,
) -> None:
    """Make a token on the server's own machine and print it; it can't be shown again.

    Example: foedus server token coordinator --name alice --role scientist > alice.token
    """
    _, content = treaties.load(home / "treaty.json")
    log = open_log(home, content.coordinator.origin, create=False)
    text, row = issue(name, role, days)
    details = {"name": row.name, "role": row.role, "expires": row.expires}
    with Store(home / "server.db") as store:
        store.add_token(row, record=lambda: log.append("server", "token.created", row.prefix, details))
    typer.echo(text)
    until = datetime.fromisoformat(row.expires)
    Console(stderr=True).print(f"{role.value} token of {name}, until {until:%Y-%m-%d}; shown this once")


@server_app.command()
def run(
    home: Home,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8443,
    certificates: Annotated[
        Path | None,
        typer.Option(help="Directory with ca.crt, server.crt and server.key.", show_default=False),
    ] = None,
    superlink: Annotated[
        str, typer.Option(help="host:port of Flower's SuperLink, on loopback.")
    ] = "127.0.0.1:9092",
    secret: Annotated[
        Path | None,
        typer.Option(help="The SuperLink's secret.", show_default="HOME/flower/superlink.secret"),
    ] = None,
    docs: Annotated[bool, typer.Option(help="Serve /docs and /openapi.json.")] = False,
) -> None:
    """Serve the control plane over TLS until interrupted.

    Example: foedus server run coordinator --certificates certs --superlink 127.0.0.1:9092
    """
    from .app import Settings, create_app
    from .certificates import load
    from .control import ControlLink
    from .stack import api_server, run_api

    if certificates is None:
        raise InputError(
            "the server needs --certificates: tokens and studies go over TLS only",
            remedy="a directory with ca.crt, server.crt and server.key",
        )
    if superlink.rpartition(":")[0].strip("[]") not in _LOOPBACK:
        raise InputError(
            f"{superlink}: it listens on loopback only, and its secret goes nowhere else",
            remedy="run the SuperLink beside the server, as 127.0.0.1:PORT",
        )
    files = load(certificates)
    link = ControlLink(superlink, files.ca_cert, secret or home / "flower" / "superlink.secret")
    os.umask(0o077)  # what the server writes is its own
    app = create_app(Settings(home=home, superlink=link, docs=docs))
    try:
        run_api(api_server(app, files, host, port))
    finally:
        link.close()


@server_app.command()
def certificates(
    directory: Annotated[Path, typer.Argument(help="Where to write them.", show_default=False)],
    host: Annotated[
        list[str] | None,
        typer.Option(help="A name or address of the server; may be repeated.", show_default=False),
    ] = None,
    days: Annotated[int, typer.Option(help="How long they are valid.", min=1, max=3650)] = 365,
    renew: Annotated[
        bool, typer.Option("--renew", help="Replace server.crt by a new one: same names, key and CA.")
    ] = False,
) -> None:
    """Make a CA of your own and the server's certificate, where your company has no CA.

    localhost, 127.0.0.1 and ::1 are always among the names: the parts of the server meet there.
    With --renew, only server.crt is replaced. A server that runs takes it up within seconds; nodes and
    people need nothing, for they trust the CA.

    Example: foedus server certificates certs --host coordinator.example
    """
    from . import certificates as made
    from .stack import NEEDED_HOSTS

    out = Console(highlight=False, soft_wrap=True)
    if renew:
        if host:
            raise InputError("--renew keeps the names", remedy="leave --host out")
        end = made.renew(directory, days)
        out.print(f"renewed {directory / 'server.crt'}, valid until {end:%Y-%m-%d}", markup=False)
        return
    if not host:
        raise InputError("a certificate is for a name", remedy="--host NAME, or --renew")
    hosts = tuple(dict.fromkeys((*host, *NEEDED_HOSTS)))
    files = made.create(directory, hosts, days)
    out.print(f"made {directory} for {', '.join(hosts)}, valid for {days} days", markup=False)
    out.print(f"give {files.ca_cert} to every partner and every person", markup=False)
    out.print(f"keep {directory / 'ca.key'} off this machine if you can", markup=False)


@server_app.command()
def start(
    home: Home,
    host: Annotated[str, typer.Option(help="Address that gateway and API listen on.")] = "127.0.0.1",
    gateway_port: Annotated[int, typer.Option(help="Port for nodes.", min=1, max=65535)] = 9443,
    port: Annotated[int, typer.Option(help="Port for people.", min=1, max=65535)] = 8443,
    certificates: Annotated[
        Path | None,
        typer.Option(
            help="Directory with ca.crt, server.crt and server.key.",
            show_default="HOME/certs, made if missing",
        ),
    ] = None,
) -> None:
    """Start the whole server: SuperLink, the treaty's nodes registered, gateway and API, until interrupted.

    SIGTERM, Ctrl-C or the end of one part ends all of them. The SuperLink listens on loopback only.

    Example: foedus server start coordinator --host 0.0.0.0
    """
    from .stack import Addresses
    from .stack import start as start_all

    out = Console(highlight=False, soft_wrap=True)

    def ready(addresses: Addresses) -> None:
        out.print(f"nodes   {addresses.nodes}", markup=False)
        out.print(f"people  {addresses.people}", markup=False)
        out.print(f"CA      {addresses.ca}", markup=False)

    start_all(
        home,
        host=host,
        gateway_port=gateway_port,
        port=port,
        certificates_in=certificates,
        on_ready=ready,
    )
