"""Starting, watching and stopping runs: what the control plane asks of Flower, and what it notes.

The SuperLink is behind a protocol of three calls; the real one is `control.ControlLink`, tests have
one that only remembers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..compliance.auditlog.log import AuditLog
from ..errors import FoedusError, InputError, Refused, Unreachable
from . import checkpoint
from .lineage import note_end
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


RETRIES = 5
"""Attempts in a row that may get no further than the one before, until a run is given up."""
_LONGEST_PAUSE = 30.0


@dataclass
class _Tries:
    """Attempts this process has made at a run since it last got further; `after` is when the next may start."""

    rounds: int
    count: int = 0
    after: float = 0.0


class Runs:
    """The runs of one server. One process has it (the API's): only there a run is started.

    A run whose coordinator died is resumed: Flower starts another ServerApp, which goes on from the run's
    checkpoint. So is a run that was active when the whole server was killed. A run that somebody stopped,
    or that the coordinator itself gave up, is not.

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
        self._tries: dict[str, _Tries] = {}
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="foedus-runs", daemon=True)

    def open(self) -> None:
        """Begin to watch; what runs that have ended left behind is cleared away."""
        for row in self._store.runs():
            if row.status != "running":
                checkpoint.remove(self._home, row.id)
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
                self._superlink.stop_run(int(self._store.attempts(run)[-1]))
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
            self._note_end(row, "stopped", "RUN_STOPPED: somebody stopped the run")
            checkpoint.remove(self._home, run)
        return self.find(run)

    def check(self) -> None:
        """Look once at the active runs: resume those whose coordinator has died, end those that Flower stopped.

        A coordinator that ends a run notes how before it leaves; a run that is over without such an event
        was killed or crashed, whatever Flower calls it.
        """
        self.stop_rejected()
        with self._ending:
            for row in self._store.runs(status="running"):
                self._look_at(row)

    def stop_rejected(self) -> None:
        """Stop active runs of studies that an approver has taken back meanwhile.

        Raises:
            Unreachable: Flower can't be asked; the next look tries again, and the coordinator begins no further round.
        """
        for row in self._store.runs(status="running"):
            reason = self._registry.rejected(row.study)
            if reason is not None:
                _log.warning("run %s is stopped: %s", row.id, reason)
                with suppress(Refused):  # it has ended by itself, between our two looks
                    self.stop(row.id, actor="coordinator")

    def _look_at(self, row: RunRow) -> None:
        attempt = self._store.attempts(row.id)[-1]
        try:
            if checkpoint.died(self._home, row.id, attempt):  # sooner than Flower misses its heartbeats
                self._resume(row, "its process has ended")
                return
            try:
                found = self._superlink.run_status(int(attempt))
            except InputError as error:  # Flower knows no such run (any more)
                self._resume(row, error.message)
                return
            if found.status != "finished":
                return
            reason = f"Flower: {found.status}:{found.sub_status} {found.details}".rstrip()[:500]
            if found.sub_status == "stopped":
                self._end(row, "stopped", {"reason": reason})
            else:
                self._resume(row, reason)
        except Refused as error:
            _log.info("%s", error.message)  # its last event came between our two looks

    def _resume(self, row: RunRow, reason: str) -> None:
        """Start another attempt at a run, unless it is too early, or there were too many to no avail.

        Flower first, as at a start: its id of the attempt is noted, and the ServerApp waits for the note.
        """
        rounds, now = len(self._store.rounds_told(row.id)), time.monotonic()
        tries = self._tries.get(row.id)
        if tries is None or tries.rounds < rounds:
            tries = self._tries[row.id] = _Tries(rounds)
        if now < tries.after:
            return
        if tries.count >= RETRIES:
            self._end(row, "failed", {"reason": f"{tries.count} attempts got no further; the last: {reason}"})
            return
        config = {"study": row.study, "home": str(self._home), "resume": row.id}
        number = self._superlink.start_run(config)
        tries.count, tries.after = tries.count + 1, now + min(_LONGEST_PAUSE, self._every * 2**tries.count)
        told = {"run": row.id, "attempt": len(self._store.attempts(row.id)) + 1}
        try:
            self._store.open_attempt(
                row.id,
                str(number),
                {"attempt": told["attempt"], "reason": reason},
                record=lambda: self._audit.append("server", "run.resumed", row.study, told),
            )
        except BaseException:
            self._superlink.stop_run(number)
            raise
        _log.warning("run %s: resumed: %s", row.id, reason)

    def _end(self, row: RunRow, kind: str, data: dict[str, str]) -> None:
        self._store.add_event(
            row.id,
            kind,
            data,
            record=lambda: self._audit.append("server", f"run.{kind}", row.study, {"run": row.id}),
        )
        self._note_end(row, kind, f"RUN_{kind.upper()}: {data.get('reason', '')}")
        checkpoint.remove(self._home, row.id)

    def _note_end(self, row: RunRow, kind: str, reason: str) -> None:
        """In the lineage too; the audit log has it, so a lineage that can't be written stops nothing."""
        try:
            note_end(self._home, self._audit, row.study, row.id, kind, reason)
        except FoedusError as error:
            _log.warning("run %s: its end is not in the lineage: %s", row.id, error.message)

    def _watch(self) -> None:
        while not self._closing.wait(self._every):
            try:
                self.check()
            except Unreachable as error:
                _log.warning("runs are not being watched: %s", error.message)
            except Exception:  # noqa: BLE001
                # A watch that has died silently is worse than one that complains every time.
                _log.exception("runs are not being watched")
