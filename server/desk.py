"""What every route works with, opened once from the server's directory.

::

    HOME/treaty.json   the treaty, signed by every party
    HOME/server.key    Ed25519; its public key is the treaty's coordinator
    HOME/server.db     tokens, studies, approvals, runs (store/)
    HOME/audit.db      the audit log
    HOME/watch.db      what the watch of the log has learned, its alerts and blocks; watch.yaml its settings
    HOME/evidence/     released files, a directory per study
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from ..compliance import treaty as treaties
from ..compliance.anomalies.patrol import Patrol
from ..compliance.auditlog.log import AuditLog
from ..compliance.treaty import Treaty
from ..documents import Envelope, SigningKey
from ..errors import FoedusError, InputError, VerificationError
from .problems import TooLarge
from .registry import Registry
from .runs import Runs, SuperLink
from .store import Store

MAX_BODY = 1 << 20  # bytes; the largest study is some 20 kB


@dataclass(frozen=True)
class Settings:
    """How a server is set up.

    Args:
        home: its directory, see above.
        superlink: what starts runs.
        docs: serve /docs and /openapi.json (they tell an outsider every route).
        watch_seconds: between two looks at the active runs.
    """

    home: Path
    superlink: SuperLink
    docs: bool = False
    watch_seconds: float = 2.0


@dataclass(frozen=True)
class Desk:
    """The open server: one per application."""

    home: Path
    document: Envelope
    treaty: Treaty
    key: SigningKey
    store: Store
    log: AuditLog
    registry: Registry
    runs: Runs
    patrol: Patrol

    @classmethod
    def open(cls, settings: Settings) -> Desk:
        """Open a directory made by `foedus server init`.

        Raises:
            InputError: a file is missing or is something else.
            VerificationError: the treaty isn't signed by all, or names another coordinator key.
        """
        home = settings.home.resolve()
        document, treaty = treaties.load(home / "treaty.json")
        key = SigningKey.load(home / "server.key")
        check_key(treaty, key, home / "server.key")
        (home / "evidence").mkdir(exist_ok=True)
        store = Store(home / "server.db")
        try:
            # A log that was lost must not come back empty: its studies were logged before they were kept.
            log = AuditLog(home / "audit.db", treaty.coordinator.origin, create=not store.studies())
        except FoedusError:
            store.close()
            raise
        caps = {terms.purpose: terms.epsilon for terms in treaty.purposes}
        try:
            patrol = Patrol(home, "coordinator", log, caps)
        except FoedusError:
            store.close()
            raise
        registry = Registry(store, log, treaty, document.digest, patrol)
        runs = Runs(registry, store, log, settings.superlink, home, every=settings.watch_seconds)
        return cls(home, document, treaty, key, store, log, registry, runs, patrol)

    def close(self) -> None:
        self.runs.close()
        self.store.close()


def check_key(treaty: Treaty, key: SigningKey, path: Path) -> None:
    """Raise VerificationError unless `key` is the treaty's coordinator."""
    if key.public != treaty.coordinator.signing_key:
        raise VerificationError(
            f"{path}: not the key of the treaty's coordinator",
            remedy="use the key whose public half the parties signed for, or have them sign an amended treaty",
        )


def desk(request: Request) -> Desk:
    """The desk of the application that serves `request`."""
    found = request.app.state.desk
    if not isinstance(found, Desk):
        raise InputError("the server has no desk")
    return found


async def body(request: Request) -> bytes:
    """The bytes of a request's body, at most 1 MiB. The only way a route reads a body.

    Raises:
        TooLarge: there is more; no more than the bound is read.
    """
    taken = bytearray()
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > MAX_BODY:
        raise TooLarge(f"a body is at most {MAX_BODY} bytes")
    async for chunk in request.stream():
        taken += chunk
        if len(taken) > MAX_BODY:
            raise TooLarge(f"a body is at most {MAX_BODY} bytes")
    return bytes(taken)


DeskOf = Annotated[Desk, Depends(desk)]
Body = Annotated[bytes, Depends(body)]
