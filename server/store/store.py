"""The coordinator's rows, by small methods: each is one transaction, and checks what it depends on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ...documents import Envelope, canonical
from ...errors import InputError, Refused
from .database import Database
from .tables import (
    TERMINAL,
    ApprovalRow,
    AttemptRow,
    NodeHead,
    ReleaseRow,
    RunEvent,
    RunRow,
    StudyRow,
    TokenRow,
    now,
)

Record = Callable[[], object]
"""Called inside a write, before it commits: what can't be recorded (in the audit log) isn't written."""
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


def _unrecorded() -> None:
    """The record of a write that needs none."""


class Store(Database):
    """``server.db``. Rows that it returns are detached values; close it, or use it in a `with`."""

    # ── tokens ───────────────────────────────────────────────────────────────────────────────────

    def add_token(self, row: TokenRow, *, record: Record = _unrecorded) -> None:
        """Keep a new token."""
        with self._write() as session:
            session.add(row)
            session.flush()
            record()

    def token(self, prefix: str) -> TokenRow | None:
        with self._read() as session:
            return session.get(TokenRow, prefix)

    def tokens(self) -> list[TokenRow]:
        with self._read() as session:
            return list(session.scalars(select(TokenRow).order_by(TokenRow.created)))

    def revoke_token(self, prefix: str, *, record: Record = _unrecorded) -> bool:
        """Revoke a token, for good. False if there is none of that prefix still in force."""
        with self._write() as session:
            row = session.get(TokenRow, prefix)
            if row is None or row.revoked is not None:
                return False
            row.revoked = now()
            record()
            return True

    # ── studies and approvals ────────────────────────────────────────────────────────────────────

    def add_study(
        self, envelope: Envelope, *, author: str, title: str, submitted_by: str, record: Record = _unrecorded
    ) -> None:
        """Keep a study that has been verified.

        Raises:
            Refused: ``ALREADY_SUBMITTED``.
        """
        with self._write() as session:
            if session.get(StudyRow, envelope.digest) is not None:
                raise Refused(
                    "ALREADY_SUBMITTED",
                    f"study {envelope.digest[:12]} has been submitted before",
                    remedy=f"see it with `foedus study show {envelope.digest[:12]}`; to ask again, sign the draft anew",
                )
            text = envelope.dumps().decode()
            session.add(
                StudyRow(envelope.digest, text, author=author, title=title, submitted_by=submitted_by)
            )
            session.flush()
            record()

    def study(self, digest: str) -> StudyRow | None:
        with self._read() as session:
            return session.get(StudyRow, digest)

    def studies(self, prefix: str = "") -> list[StudyRow]:
        """The studies whose digest starts with `prefix`, newest first."""
        with self._read() as session:
            query = select(StudyRow).where(StudyRow.digest.startswith(prefix, autoescape=True))
            return list(session.scalars(query.order_by(StudyRow.submitted_at.desc(), StudyRow.digest)))

    def add_approval(
        self,
        envelope: Envelope,
        *,
        study: str,
        approver: str,
        level: str,
        party: str | None,
        decision: str,
        expires: datetime,
        moment: datetime,
        record: Record = _unrecorded,
    ) -> None:
        """Keep a decision that has been verified.

        An approver has one decision in force: an approval may be renewed once it has expired, or be
        withdrawn by a rejection; a rejection is final.

        Raises:
            Refused: ``ALREADY_DECIDED``.
        """
        with self._write() as session:
            last = session.scalars(
                select(ApprovalRow).where(ApprovalRow.study == study, ApprovalRow.approver == approver)
                .order_by(ApprovalRow.id.desc()).limit(1)
            ).first()  # fmt: skip
            if last is not None and (
                last.decision == "reject"
                or (decision == last.decision and datetime.fromisoformat(last.expires) > moment)
            ):
                raise Refused(
                    "ALREADY_DECIDED", f"{approver} has already decided on {study[:12]}: {last.decision}"
                )
            session.add(
                ApprovalRow(
                    study=study, approver=approver, level=level, party=party, decision=decision,
                    expires=expires.isoformat(), envelope=envelope.dumps().decode(),
                )
            )  # fmt: skip
            session.flush()
            record()

    def approvals(self, study: str) -> list[Envelope]:
        """The decisions in force on a study: of every approver the latest, as signed."""
        with self._read() as session:
            rows = session.scalars(
                select(ApprovalRow).where(ApprovalRow.study == study).order_by(ApprovalRow.id)
            )
            latest = {row.approver: row.envelope for row in rows}
        return [Envelope.loads(text) for text in latest.values()]

    # ── runs ─────────────────────────────────────────────────────────────────────────────────────

    def open_run(self, run: str, study: str, *, record: Record = _unrecorded) -> None:
        """Make the row of an active run, unless it is there already.

        Both the API (which started it) and the ServerApp (which may be faster) call this first.

        Raises:
            Refused: ``RUN_ACTIVE``, another run is active.
        """
        with self._write() as session:
            row = session.get(RunRow, run)
            if row is not None and row.study != study:
                raise InputError(f"run {run} is of study {row.study[:12]}, not of {study[:12]}")
            if row is None:
                self._refuse_second(session)
                session.add(RunRow(run, study))
                session.flush()
            record()

    def refuse_if_active(self) -> None:
        """Raise Refused ``RUN_ACTIVE`` if any run is active."""
        with self._read() as session:
            self._refuse_second(session)

    @staticmethod
    def _refuse_second(session: Session) -> None:
        active = session.scalars(select(RunRow).where(RunRow.status == "running")).first()
        if active is not None:
            raise Refused(
                "RUN_ACTIVE",
                f"run {active.id} of study {active.study[:12]} is still active; one runs at a time",
                remedy=f"wait for it (`foedus study follow {active.id}`) or stop it",
            )

    def run(self, run: str) -> RunRow | None:
        with self._read() as session:
            return session.get(RunRow, run)

    def runs(self, study: str | None = None, *, status: str | None = None) -> list[RunRow]:
        """Runs, oldest first; of one study or in one status if given."""
        query = select(RunRow).order_by(RunRow.started)
        query = query if study is None else query.where(RunRow.study == study)
        query = query if status is None else query.where(RunRow.status == status)
        with self._read() as session:
            return list(session.scalars(query))

    def open_attempt(
        self, run: str, flower: str, data: Mapping[str, Any], *, record: Record = _unrecorded
    ) -> None:
        """Note another attempt at an active run, under Flower's id of it, with an event ``resumed``.

        Raises:
            InputError: no such run. Refused: ``RUN_ENDED``.
        """
        text = canonical(dict(data)).decode()
        with self._write() as session:
            self._active(session, run)
            session.add(AttemptRow(run, flower))
            session.add(RunEvent(run, "resumed", text))
            session.flush()
            record()

    def attempts(self, run: str) -> list[str]:
        """Flower's ids of the attempts at a run, in order; the first is the run's. Empty: no such run."""
        with self._read() as session:
            if session.get(RunRow, run) is None:
                return []
            query = select(AttemptRow.flower).where(AttemptRow.run == run).order_by(AttemptRow.id)
            return [run, *session.scalars(query)]

    def rounds_told(self, run: str) -> frozenset[int]:
        """The rounds that followers of a run have heard of."""
        query = select(RunEvent.data).where(RunEvent.run == run, RunEvent.kind == "round")
        with self._read() as session:
            return frozenset(int(json.loads(data)["round"]) for data in session.scalars(query))

    @staticmethod
    def _active(session: Session, run: str) -> RunRow:
        row = session.get(RunRow, run)
        if row is None:
            raise InputError(f"no run {run}")
        if row.status in TERMINAL:
            raise Refused("RUN_ENDED", f"run {run} has ended: {row.status}")
        return row

    def add_event(self, run: str, kind: str, data: Mapping[str, Any], *, record: Record = _unrecorded) -> int:
        """Note what happened in an active run; `finished`, `failed` and `stopped` end it.

        Returns:
            the event's id.

        Raises:
            InputError: no such run, or data that is not canonical JSON.
            Refused: ``RUN_ENDED``.
        """
        text = canonical(dict(data)).decode()
        with self._write() as session:
            row = self._active(session, run)
            happened = RunEvent(run, kind, text)
            session.add(happened)
            if kind in TERMINAL:
                row.status, row.finished = kind, happened.time
            session.flush()
            record()
            return happened.id

    def events(self, run: str, *, after: int = 0, limit: int = 500) -> list[RunEvent]:
        """Up to `limit` events of a run whose id is greater than `after`, in order."""
        query = (
            select(RunEvent)
            .where(RunEvent.run == run, RunEvent.id > after)
            .order_by(RunEvent.id)
            .limit(limit)
        )
        with self._read() as session:
            return list(session.scalars(query))

    # ── releases and heads ───────────────────────────────────────────────────────────────────────

    def add_release(self, evidence: Path, path: Path, *, study: str, run: str, kind: str) -> ReleaseRow:
        """Register a file under the directory `evidence` as released by a run, with its SHA-256.

        The same file again changes nothing: a coordinator that was killed does its last steps twice.

        Raises:
            InputError: not a file in there, a name that is no plain file name, or one that is taken.
        """
        inside, found = evidence.resolve(), path.resolve()
        if not found.is_relative_to(inside) or not found.is_file() or not _FILE_NAME.fullmatch(found.name):
            raise InputError(f"{path}: not a file with a plain name in {evidence}")
        content = found.read_bytes()
        row = ReleaseRow(
            run, found.name, study, kind, path=found.relative_to(inside).as_posix(),
            sha256=hashlib.sha256(content).hexdigest(), size=len(content),
        )  # fmt: skip
        with self._write() as session:
            taken = session.get(ReleaseRow, (run, row.name))
            if taken is not None and (taken.path, taken.sha256) == (row.path, row.sha256):
                return taken
            if taken is not None:
                raise InputError(f"run {run} has released another {row.name}")
            session.add(row)
        return row

    def releases(self, study: str) -> list[ReleaseRow]:
        """What a study released, oldest first; of several runs' files of one name the newest."""
        query = (
            select(ReleaseRow).where(ReleaseRow.study == study).order_by(ReleaseRow.released, ReleaseRow.name)
        )
        with self._read() as session:
            # A run that died between its release and its last event may have left one of each name.
            newest = {row.name: row for row in session.scalars(query)}
        return list(newest.values())

    def acknowledge(self, party: str, size: int) -> None:
        """Note the size of the audit log that a party's node has checked; it never goes back."""
        with self._write() as session:
            row = session.get(NodeHead, party)
            if row is None:
                session.add(NodeHead(party, size, now()))
            elif size >= row.size:
                row.size, row.time = size, now()

    def heads(self) -> dict[str, int]:
        """Party → the audit-log size its node last acknowledged."""
        with self._read() as session:
            return {row.party: row.size for row in session.scalars(select(NodeHead).order_by(NodeHead.party))}
