"""The watch on duty: a turn over a live audit log every so often, in a thread of the process that writes it.

A turn hashes the whole log again (`book`), so on a long one the pause grows: at most a twentieth of one processor.
If rules that block are set and a turn fails, nobody is let in until one succeeds: a broken watch must not be
the way around it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from ...errors import FoedusError, Refused
from ..auditlog.log import AuditLog
from .book import Book, Sink
from .settings import WatchSettings
from .sinks import AuditSink, ConsoleSink

_SHARE = 20  # a pause is at least so many times as long as the turn before
_log = logging.getLogger("foedus.watch")


class Patrol:
    """The watch of one log.

    Args:
        directory: where ``watch.yaml`` and ``watch.db`` are (the book is made where there is none).
        silo: whose log it is, for the alerts.
        caps: ε of each purpose, from the treaty.

    Raises:
        InputError: a bad watch.yaml or webhook. VerificationError: a damaged book.
    """

    def __init__(self, directory: Path, silo: str, log: AuditLog, caps: Mapping[str, float]) -> None:
        file = directory / "watch.yaml"
        settings = WatchSettings.load(file) if file.exists() else WatchSettings()
        self._policy = settings.policy(dict(caps))
        self._sinks: list[Sink] = [AuditSink(log), ConsoleSink(), *settings.webhooks(directory)]
        self._every, self._silo, self._audit = settings.every_seconds, silo, log
        self._book = Book(directory / "watch.db")
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: str | None = None

    def turn(self) -> None:
        """One turn, and what is due is sent. What fails is said once in the audit log, and kept for `require`."""
        try:
            names = [sink.name for sink in self._sinks]
            self._book.turn(self._policy, self._silo, self._audit.entries, names)
            for line in self._book.deliver(self._sinks, datetime.now(UTC)):
                _log.warning("not sent yet: %s", line)
        except Exception as error:  # noqa: BLE001 - whatever it is, the watch is down, and says so
            told = error.message if isinstance(error, FoedusError) else type(error).__name__
            if self._failure is None:
                _log.error("the watch fails: %s", told)
                self._note("watch.failed", {"reason": told})
            self._failure = told
            return
        if self._failure is not None:
            self._note("watch.works", {})
        self._failure = None

    def require(self) -> None:
        """Raises: Refused: rules that block are set, and the last turn failed."""
        if self._policy.blocks and self._failure is not None:
            raise Refused(
                "WATCH_FAILED",
                f"the watch, which may block, has failed: {self._failure}",
                remedy="mend that, or take `blocks` out of watch.yaml and start again",
            )

    def admit(self, actor: str) -> None:
        """Raises: Refused: by `require`, or an alert has blocked the actor."""
        self.require()
        reason = self._book.blocked(actor)
        if reason is not None:
            raise reason.refusal()

    def start(self) -> None:
        """A turn at once, then every `every_seconds` until `stop`."""
        self.turn()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the turn it is in; what was done since the last turn is looked at."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self.turn()

    def _run(self) -> None:
        pause: float = self._every
        while not self._stop.wait(pause):
            start = time.monotonic()
            self.turn()
            pause = max(self._every, _SHARE * (time.monotonic() - start))

    def _note(self, action: str, details: dict[str, str]) -> None:
        try:
            self._audit.append("watch", action, self._silo, details)
        except Exception as error:  # noqa: BLE001 - the log itself may be what fails
            _log.error("not logged: %s: %s", action, type(error).__name__)
