"""The node's process: load its directory, then answer the server until told to stop."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path

from . import sources
from .app import SiloApp
from .fleet import serve
from .home import Home

_log = logging.getLogger("foedus.node")


def run(path: Path) -> None:
    """Serve the node in `path` until SIGTERM or SIGINT.

    Raises:
        InputError, VerificationError: the directory is not fit to run (keys, treaty, ledger).
        Unreachable: the server refuses this node.
    """
    home = Home.load(path)
    app = SiloApp(home)
    check(app)
    with sources.table(
        home.table, "orders"
    ) as orders:  # a table that can't be read is found now, not in a round
        _log.info("table %s: %s", home.table, ", ".join(orders.columns))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    _log.info(
        "node of %s: treaty %s, serving %s", home.party, app.guard.treaty_digest[:12], home.settings.server
    )
    serve(home.link, app, stop=stop, on_event=lambda name, detail: _log.info("%s %s", name, detail))


def check(app: SiloApp) -> None:
    """What must hold before the node connects: an unbroken ledger and an unbroken audit log of its own."""
    _ = app.guard.ledger.head
    app.audit.check()
