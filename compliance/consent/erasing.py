"""A customer erased from the register of consents: what must be kept stays, under a tombstone.

That consent was given, to what, and until when, is proof the silo owes for three years (PIPL art. 56, 69; GDPR art.
7(1)), so grants and withdrawals stay, and cohorts of the past can still be made again from them. Gone is who it was:

- their consents are withdrawn, so they are in no later cohort;
- `subject` and `guardian` become tombstones; events told under an id that names them are forgotten;
- a tree of an earlier cohort has a label for each customer, made from their name. The labels of the erased are kept,
  per study, so that everybody else's proofs still hold, and theirs, if they ask by name.

A consent or withdrawal of before the erasure that comes late (an old file, imported again) is not taken. One of
after it is that of a new customer. While the silo's own table still has the old orders (`cleared` is 0), such a
consent is withdrawn in the instant it is given: the gate through which nothing of the erased gets out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..tombstones import FILE, PREFIX, Tombstones
from . import store
from .records import FieldError
from .store import Granted, Withdrawn


@dataclass(frozen=True)
class Erased:
    """How many consents of a subject go on under `tombstone` since now, and how many do in all."""

    tombstone: str
    records: int
    kept: int


class Gone:
    """Who was erased, as one transaction sees it."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._tombstones = Tombstones(path.with_name(FILE))
        self._known = {
            tombstone: (at, bool(cleared))
            for tombstone, at, cleared in db.execute(
                "SELECT tombstone, max(at), min(cleared) FROM erased GROUP BY tombstone"
            )
        }

    def take(
        self, granted: Sequence[Granted], withdrawn: Sequence[Withdrawn]
    ) -> tuple[list[Granted], list[Withdrawn]]:
        """Those events that are not of before an erasure; and for a consent at a closed gate, its withdrawal.

        Raises:
            FieldError: a subject looks like a tombstone. InputError: the key of tombstones is lost.
        """
        for subject in (*(event[1] for event in granted), *(event[1] for event in withdrawn)):
            if subject.startswith(PREFIX):
                raise FieldError("subject", f"{PREFIX!r} begins the names of who was erased")
        if not self._known:
            return list(granted), list(withdrawn)
        taken = [event for event in granted if not self._before(event[1], event[2])]
        ended = [(event[0], event[1], event[2]) for event in taken if self.closed(event[1])]
        return taken, [event for event in withdrawn if not self._before(event[1], event[2])] + ended

    def closed(self, subject: str) -> bool:
        """Whether the old orders of an erased subject still lie in the silo's table."""
        found = self._find(subject)
        return found is not None and not found[1]

    def _before(self, subject: str, at: int) -> bool:
        found = self._find(subject)
        return found is not None and at <= found[0]

    def _find(self, subject: str) -> tuple[int, bool] | None:
        return self._known.get(self._tombstones.name(subject, make=False)) if self._known else None


def erase(
    db: sqlite3.Connection, path: Path, subject: str, now: int, labels: Mapping[str, bytes], *, cleared: bool
) -> Erased:
    """See `ConsentRegister.erase`."""
    tombstones = Tombstones(path.with_name(FILE))
    known = db.execute("SELECT 1 FROM erased LIMIT 1").fetchone() is not None
    tombstone = tombstones.name(subject, make=not known)
    db.execute("PRAGMA secure_delete = ON")
    purposes = db.execute(
        "SELECT DISTINCT purpose FROM granted WHERE subject = ? AND at <= ?", (subject, now)
    ).fetchall()
    store.insert_withdrawals(db, [(purpose, subject, now) for (purpose,) in purposes], known=False)
    with store.unlocked(db):
        for (guardian,) in db.execute(
            "SELECT DISTINCT guardian FROM granted WHERE subject = ? AND guardian IS NOT NULL", (subject,)
        ).fetchall():
            db.execute(
                "UPDATE granted SET guardian = ? WHERE subject = ? AND guardian = ?",
                (tombstones.name(guardian), subject, guardian),
            )
        moved = db.execute("UPDATE granted SET subject = ? WHERE subject = ?", (tombstone, subject)).rowcount
        db.execute("UPDATE withdrawn SET subject = ? WHERE subject = ?", (tombstone, subject))
        db.execute("UPDATE granted SET guardian = ? WHERE guardian = ?", (tombstone, subject))
        db.execute("DELETE FROM told WHERE instr(event, ?) > 0", (subject,))
    db.executemany(
        "INSERT OR IGNORE INTO erased_label VALUES (?, ?, ?)",
        [(tombstone, study, label) for study, label in labels.items()],
    )
    db.execute("INSERT INTO erased VALUES (NULL, ?, ?, ?)", (tombstone, now, int(cleared)))
    (kept,) = db.execute("SELECT count(*) FROM granted WHERE subject = ?", (tombstone,)).fetchone()
    return Erased(tombstone, moved, kept)
