"""Starting, watching and stopping runs: what the control plane asks of Flower, and what it notes.

The SuperLink is behind a protocol of three calls; the real one is `superlink.ControlLink`, tests have
one that only remembers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ..compliance.auditlog.log import AuditLog
from ..errors import FoedusError, InputError, Refused, Unreachable
from .problems import NotFound, code_of
from .registry import Registry
from .store import RunRow, Store

_log = logging.getLogger(__name__)


class RunStatus(Protocol):
    """Flower's word on a run: ``finished`` with ``completed``, ``failed`` or ``stopped``, or not yet."""

    @property
    def status(self) -> str: ...
    @property
    def sub_status(self) -> str: ...
    @property
    def details(self) -> str: ...


class SuperLink(Protocol):
    """The three things asked of Flower. Calls raise `Unreachable` if it can't be reached."""

    def start_run(self, config: Mapping[str, str | int | float | bool]) -> int:
        """Start the coordinator's ServerApp; returns the run's id (unsigned, 64 bits)."""

    def run_status(self, run_id: int) -> RunStatus: ...

    def stop_run(self, run_id: int) -> None: ...


class Runs:
    """The runs of one server. One process has it (the API's): only there a run is started.

    Args:
        home: the server's directory, told to the ServerApp.
        every: seconds between two looks at the active runs.
    """

    def __init__(
        self,
        registry: Registry,
        store: Store,
        log: AuditLog,
        superlink: SuperLink,
        home: Path,
        *,
        every: float,
    ) -> None:
        self._registry, self._store, self._audit, self._superlink = registry, store, log, superlink
        self._home, self._every = home, every
        self._starting = threading.Lock()
        self._ending = threading.Lock()  # who stops a run notes it before the watch sees that it is over
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="foedus-runs", daemon=True)

    def open(self) -> None:
        """Begin to watch."""
        self._watcher.start()

    def close(self) -> None:
        """Stop watching; active runs go on, and are found again at the next start."""
        self._closing.set()
        if self._watcher.is_alive():
            self._watcher.join()

    def find(self, run: str) -> RunRow:
        """The run of this id; NotFound if there is none."""
        row = self._store.run(run)
        if row is None:
            raise NotFound(f"no run {run[:20]}", remedy="`foedus study show` lists the runs of a study")
        return row

    def start(self, study: str, *, actor: str) -> RunRow:
        """Run an approved study.

        1. Every seat of the approval chain is filled, and the study has not been run to its end.
        2. No other run is active.
        3. Flower starts it.
        4. It is noted, in the audit log first; if that fails it is stopped again.

        Raises:
            Refused: by 1 or 2; the refusal is in the audit log.
            Unreachable: by 3.
        """
        with self._starting:
            try:
                self._registry.require_runnable(study)  # 1.
                self._store.refuse_if_active()  # 2.
            except FoedusError as error:
                self._audit.append(actor, "run.refused", study, {"code": code_of(error)})
                raise
            number = self._superlink.start_run({"study": study, "home": str(self._home)})  # 3.
            run = str(number)
            try:  # 4.
                self._store.open_run(
                    run, study, record=lambda: self._audit.append(actor, "run.started", study, {"run": run})
                )
            except BaseException:
                self._superlink.stop_run(number)
                raise
        return self.find(run)

    def stop(self, run: str, *, actor: str) -> RunRow:
        """Stop an active run.

        Raises:
            NotFound: no such run. Refused: it has ended. Unreachable: Flower can't be asked.
        """
        with self._ending:
            row = self.find(run)
            if row.status != "running":
                raise Refused("RUN_ENDED", f"run {run} has ended: {row.status}")
            try:
                self._superlink.stop_run(int(run))
            except Unreachable:
                raise
            except FoedusError as error:
                # Flower lost the run or has ended it: ours must not stay active for ever.
                _log.warning("run %s: %s", run, error.message)
            self._store.add_event(
                run,
                "stopped",
                {"by": actor},
                record=lambda: self._audit.append(actor, "run.stopped", row.study, {"run": run}),
            )
        return self.find(run)

    def check(self) -> None:
        """Look once at the active runs, and end those that Flower says are over.

        A ServerApp that ends well has noted `finished` before it leaves; a run that is over without
        such an event was killed or crashed, whatever Flower calls it.
        """
        with self._ending:
            self._check()

    def _check(self) -> None:
        for row in self._store.runs(status="running"):
            try:
                found = self._superlink.run_status(int(row.id))
                if found.status != "finished":
                    continue
                kind = "stopped" if found.sub_status == "stopped" else "failed"
                reason = f"Flower: {found.status}:{found.sub_status} {found.details}".rstrip()[:500]
            except InputError as error:  # Flower knows no such run (any more)
                kind, reason = "failed", error.message
            try:
                self._end(row, kind, {"reason": reason})
            except Refused as error:
                _log.info("%s", error.message)  # its last event came between our two looks

    def _end(self, row: RunRow, kind: str, data: dict[str, str]) -> None:
        self._store.add_event(
            row.id,
            kind,
            data,
            record=lambda: self._audit.append("server", f"run.{kind}", row.study, {"run": row.id}),
        )

    def _watch(self) -> None:
        while not self._closing.wait(self._every):
            try:
                self.check()
            except Unreachable as error:
                _log.warning("runs are not being watched: %s", error.message)
            except Exception:  # noqa: BLE001
                # A watch that has died silently is worse than one that complains every time.
                _log.exception("runs are not being watched")
