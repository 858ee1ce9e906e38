"""Erasures, step by step on disk, so that one that was interrupted is finished; and the models they touch.

An erasure has a step for each place of the map, planned with the number of records found there, then set to what became
of it. It ends in one transaction that also puts a tombstone in the subject's place here: in its row, in the
subject's requests and holds. The models of an erasure are a list that outlives it:

============  ============================================================  ==========================
action        what is promised                                               state
============  ============================================================  ==========================
``bound``     what an attacker can learn of them from it is at most ε at δ   ``stated``
``retrain``   it is trained again without them, then retired                 ``queued``, ``retrained``
``retire``    this node scores nobody with it any more                       ``retired``
============  ============================================================  ==========================
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ...errors import InputError
from ..auditlog.database import connection, establish, transaction
from ..consent.records import maybe, micros, moment
from .places import Errand, Outcome
from .schema import SCHEMA

ACTIONS = ("bound", "retrain", "retire")
_FIRST = {"bound": "stated", "retrain": "queued", "retire": "retired"}


@dataclass(frozen=True)
class Step:
    """What became of one place: `count` records; `why` in one sentence where they were not simply erased."""

    place: str
    errand: Errand
    count: int
    why: str


@dataclass(frozen=True)
class ModelFate:
    """A model that a subject may have been trained into, and what happens to it.

    `epsilon` at `delta` is what the silo's ledger says its study cost a customer, at up to `partners` silos; None where
    the ledger can't say. `evidence` says why a queued one is retrained: which run, of which entry of the audit log.
    """

    erasure: str
    study: str
    run: str
    epsilon: float | None
    delta: float | None
    partners: int | None
    action: str
    state: str
    evidence: str = ""


@dataclass(frozen=True)
class Erasure:
    """One erasure; `subject` is a tombstone once it ended."""

    id: str
    subject: str
    began: datetime
    ended: datetime | None
    steps: tuple[Step, ...]
    models: tuple[ModelFate, ...]

    @property
    def complete(self) -> bool:
        """Whether it ended, and nothing is left for people to do but what its models say."""
        return self.ended is not None and all(
            step.errand not in (Errand.PLANNED, Errand.ORDERED) for step in self.steps
        )


class Erasures:
    """The erasures of one silo, in ``rights.db``; threads and processes may share it.

    Raises:
        InputError: another kind of file. VerificationError: damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        establish(path, SCHEMA)

    def begin(
        self,
        number: str,
        subject: str,
        found: Sequence[tuple[str, int]],
        models: Sequence[ModelFate],
        at: datetime,
    ) -> None:
        """Plan an erasure: what was found at each place, and every model.

        Raises:
            InputError: one of this subject is under way.
        """
        with transaction(self._path) as db:
            if db.execute("SELECT 1 FROM erasure WHERE subject = ? AND ended IS NULL", (subject,)).fetchone():
                raise InputError(
                    "an erasure of this subject is under way", remedy="call it again: it goes on"
                )
            db.execute("INSERT INTO erasure VALUES (?, ?, ?, NULL)", (number, subject, micros("at", at)))
            db.executemany(
                "INSERT INTO step VALUES (?, ?, ?, ?, ?, '')",
                [(number, n, place, Errand.PLANNED.value, count) for n, (place, count) in enumerate(found)],
            )
            db.executemany(
                "INSERT OR IGNORE INTO model VALUES (?, ?, ?, ?, ?, ?, ?, ?, '')",
                [
                    (number, m.study, m.run, m.epsilon, m.delta, m.partners, m.action, _FIRST[m.action])
                    for m in models
                ],
            )

    @staticmethod
    def number() -> str:
        """The id of a new erasure: 64 random bits."""
        return secrets.token_hex(8)

    def note(self, number: str, place: str, outcome: Outcome) -> None:
        """What became of a place. What was counted before it was erased stays the count."""
        with transaction(self._path) as db:
            found = db.execute(
                "SELECT count, errand FROM step WHERE erasure = ? AND place = ?", (number, place)
            ).fetchone()
            count = max(outcome.count, found[0] if found else 0)
            errand = outcome.errand
            if errand is Errand.EMPTY and count:  # erased before a crash, found empty after it
                errand = Errand.ERASED
            db.execute(
                "INSERT INTO step VALUES (?, (SELECT coalesce(max(number), 0) + 1 FROM step WHERE erasure = ?), ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET errand = excluded.errand, count = excluded.count, why = excluded.why",
                (number, number, place, errand.value, count, outcome.why),
            )

    def end(self, number: str, tombstone: str, at: datetime, reason: str, entry: int) -> None:
        """It is done: the subject's name leaves this file. Their waiting requests are over, with that reason.

        A request for the erasure itself stays in progress while a step is ordered.
        """
        with transaction(self._path) as db:
            db.execute("PRAGMA secure_delete = ON")
            (subject,) = db.execute("SELECT subject FROM erasure WHERE id = ?", (number,)).fetchone()
            (ordered,) = db.execute(
                "SELECT count(*) FROM step WHERE erasure = ? AND errand = 'ordered'", (number,)
            ).fetchone()
            now = micros("at", at)
            db.execute("UPDATE erasure SET subject = ?, ended = ? WHERE id = ?", (tombstone, now, number))
            db.execute(
                "UPDATE request SET state = CASE WHEN kind = 'delete' THEN 'done' ELSE 'refused' END, reason = ?, closed = ?, "
                "entry = ? WHERE subject = ? AND state IN ('open', 'in_progress') AND NOT (kind = 'delete' AND ?)",
                (reason, now, entry, subject, ordered),
            )
            db.execute(
                "UPDATE request SET state = 'in_progress', reason = ?, entry = ? "
                "WHERE subject = ? AND state IN ('open', 'in_progress')",
                (reason, entry, subject),
            )
            db.execute("UPDATE request SET subject = ?, note = '' WHERE subject = ?", (tombstone, subject))
            db.execute("UPDATE hold SET subject = ? WHERE subject = ?", (tombstone, subject))

    def settle(self, tombstone: str, place: str, at: datetime, reason: str) -> int:
        """What was ordered for an erased subject at a place was done. Returns in how many erasures."""
        with transaction(self._path) as db:
            done = db.execute(
                "UPDATE step SET errand = 'erased', why = '' WHERE place = ? AND errand = 'ordered' "
                "AND erasure IN (SELECT id FROM erasure WHERE subject = ?)",
                (place, tombstone),
            ).rowcount
            left = db.execute(
                "SELECT 1 FROM step JOIN erasure ON id = erasure WHERE subject = ? AND errand = 'ordered'",
                (tombstone,),
            ).fetchone()
            if left is None:
                db.execute(
                    "UPDATE request SET state = 'done', reason = ?, closed = ? "
                    "WHERE subject = ? AND kind = 'delete' AND state = 'in_progress'",
                    (reason, micros("at", at), tombstone),
                )
        return int(done)

    def under_way(self, subject: str | None = None) -> list[Erasure]:
        """Those that did not end, of one subject or of all."""
        who = () if subject is None else (subject,)
        return self._select(f"ended IS NULL {'' if subject is None else 'AND subject = ?'}", who)

    def get(self, number: str) -> Erasure:
        """One erasure.

        Raises:
            InputError: there is none.
        """
        found = self._select("id = ?", (number,))
        if not found:
            raise InputError(f"there is no erasure {number!r}")
        return found[0]

    def of(self, tombstone: str) -> list[Erasure]:
        """The erasures that ended of one subject."""
        return self._select("subject = ?", (tombstone,))

    def ended(self) -> list[Erasure]:
        """All that ended."""
        return self._select("ended IS NOT NULL", ())

    def ordered(self) -> list[Erasure]:
        """Those that ended with something left for people to do."""
        return [e for e in self.ended() if not e.complete]

    # ── models ───────────────────────────────────────────────────────────────────────────────────

    def models(self) -> list[ModelFate]:
        """The models of all erasures, the latest erasure first."""
        with connection(self._path) as db:
            rows = db.execute(
                "SELECT model.* FROM model JOIN erasure ON id = erasure ORDER BY began DESC, study, run"
            ).fetchall()
        return [ModelFate(*row) for row in rows]

    def retrained(self, study: str, run: str, evidence: str) -> int:
        """A model that was queued was trained again, as `evidence` says. Returns for how many erasures.

        Raises:
            InputError: it is not in the queue.
        """
        with transaction(self._path) as db:
            done = db.execute(
                "UPDATE model SET state = 'retrained', evidence = ? WHERE study = ? AND run = ? AND state = 'queued'",
                (evidence, study, run),
            ).rowcount
            if done == 0:
                raise InputError(f"run {run} of the study {study[:12]} does not wait to be trained again")
        return int(done)

    def retired(self, study: str, run: str) -> bool:
        """Whether this model may not be used any more: retired, or trained again without somebody."""
        with connection(self._path) as db:
            found = db.execute(
                "SELECT 1 FROM model WHERE study = ? AND run = ? AND state IN ('retired', 'retrained')",
                (study, run),
            ).fetchone()
        return found is not None

    def _select(self, where: str, parameters: tuple[str, ...]) -> list[Erasure]:
        with connection(self._path) as db:
            db.execute("BEGIN")
            found = db.execute(
                f"SELECT id, subject, began, ended FROM erasure WHERE {where} ORDER BY began",  # noqa: S608
                parameters,
            ).fetchall()
            erasures = []
            for number, subject, began, ended in found:
                steps = db.execute(
                    "SELECT place, errand, count, why FROM step WHERE erasure = ? ORDER BY number", (number,)
                )
                told = tuple(Step(p, Errand(e), c, w) for p, e, c, w in steps.fetchall())
                models = db.execute("SELECT * FROM model WHERE erasure = ? ORDER BY study, run", (number,))
                fates = tuple(ModelFate(*row) for row in models.fetchall())
                erasures.append(Erasure(number, subject, moment(began), maybe(ended), told, fates))
        return erasures
