"""``foedus portal``: the rights centre of a node, for its customers' browsers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

portal_app = typer.Typer(no_args_is_help=True, help="Serve a node's customers their rights centre.")


@portal_app.callback()
def group() -> None:
    """Keeps `start` a command of its own."""


@portal_app.command()
def start(
    directory: Annotated[Path, typer.Argument(help="The node's directory.", show_default=False)],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.", min=0, max=65535)] = 8600,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM certificate, with its chain.", show_default=False)
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key of it.", show_default=False)] = None,
) -> None:
    """Serve know, choose, access, correct, delete and withdraw to customers, who sign in by a one-time code.

    portal.yaml in the node's directory says the company's name, the origin as browsers see it, and how codes reach customers. Without
    TLS of its own it listens on this machine only: put it behind the company's web server.

    Example: foedus portal start node --port 8600
    """
    import ipaddress

    import uvicorn

    from ..errors import InputError
    from .home import Home
    from .portal.app import create_app
    from .portal.delivery import PortalSettings

    if (tls_cert is None) != (tls_key is None):
        raise InputError("--tls-cert and --tls-key go together")
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if tls_cert is None and not local:
        raise InputError(
            f"{host}: without TLS the portal listens on this machine only", remedy="--tls-cert, --tls-key"
        )
    home = Home.load(directory)
    settings = PortalSettings.load(directory)
    app = create_app(home, settings)
    typer.echo(f"rights centre of {home.party}: {settings.origin}")
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        ssl_certfile=None if tls_cert is None else str(tls_cert),
        ssl_keyfile=None if tls_key is None else str(tls_key),
    )
