"""The node's process: load its directory, then answer the server until told to stop."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path

from ..compliance.anomalies.patrol import Patrol
from ..errors import InputError, Refused
from . import sources
from .app import SiloApp
from .fleet import node_public_key, serve
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
    for name, found in check(app).items():
        _log.info("table %s of %s: %s", name, home.table, ", ".join(found))
    patrol = Patrol(home.path, home.party, app.audit, app.guard.caps)
    app.guard.patrol = patrol
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    _log.info(
        "node of %s: treaty %s, serving %s", home.party, app.guard.treaty_digest[:12], home.settings.server
    )
    app.lineage.begin()
    _finish_erasures(home)
    patrol.start()
    try:
        serve(home.link, app, stop=stop, on_event=lambda name, detail: _log.info("%s %s", name, detail))
    finally:
        patrol.stop()


def _finish_erasures(home: Home) -> None:
    """What an earlier process began is done before anybody is used; it costs nothing where there is none."""
    if not (home.path / "rights.db").exists():
        return
    from .rights import Rights

    try:
        for report in Rights(home).resume():
            _log.info("erasure %s, begun %s, was finished", report.id, report.began.isoformat())
    except Refused as error:  # a legal hold came in between
        _log.warning("an erasure waits: %s", error.message)


def check(app: SiloApp) -> dict[str, tuple[str, ...]]:
    """What must hold before the node connects; returns the tables it could be asked for, with their columns.

    An unbroken ledger, audit log and lineage of its own, the Flower key that the treaty names, the CA's
    certificate, a table that can be read: found out now, not in a round.

    Raises:
        InputError, VerificationError: one of them does not hold.
    """
    home, guard = app.home, app.guard
    app.audit.check()
    guard.budget.verify()
    app.lineage.store.check()
    named = guard.treaty.party(home.party).node_key
    if node_public_key(home.link.node_key).decode().strip() != named.strip():
        raise InputError(f"{home.link.node_key}: not the node key the treaty names for {home.party}")
    if not home.link.root_certificates.exists():
        raise InputError(
            f"{home.link.root_certificates}: no such file",
            remedy="ask the server's operator for its CA certificate",
        )
    return sources.columns(home.table)
