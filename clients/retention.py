"""Retention at one node: what is due, and its purge, by the two clocks of `compliance.retention`.

Each rule is told to the audit log before it is carried out: which place, which rule, how many, of before when; never who.
A rule that fails leaves the others done, and is due again the next time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from ..compliance.auditlog.log import customer_key
from ..compliance.consent.membership import StudyKey
from ..compliance.consent.records import micros
from ..compliance.retention import Due, check_clock, limit
from ..compliance.rights import Outputs
from ..errors import InputError
from . import table_rewrite
from .home import Home
from .rights import Rights


@dataclass(frozen=True)
class _Rule:
    due: Due
    act: Callable[[], object]


class Retention:
    """The retention of one node.

    Raises:
        InputError, VerificationError: as `Rights`.
    """

    def __init__(self, home: Home, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._home, self._clock = home, clock
        self.rights = Rights(home)
        self._days = self.rights.treaty.retention_days
        self._outputs = Outputs(home.path / "rights.db")

    def show(self) -> list[Due]:
        """What is due now, by place; nothing is changed.

        Raises:
            InputError, VerificationError: a place can't be read.
        """
        return [rule.due for rule in self._rules()]

    def purge(self, *, clock_checked: bool = False) -> list[Due]:
        """Purge what is due. Returns what was done; `ordered` is for people to do.

        Raises:
            Refused: this computer's clock can't be believed (`check_clock`); nothing was purged.
            InputError, VerificationError: a place can't be read or written; the rules before it were carried out.
        """
        check_clock(self._clock(), self._last_entry(), checked=clock_checked)
        done = []
        for rule in self._rules():
            due = rule.due
            if due.count:
                told = {
                    "place": due.place,
                    "clock": due.clock,
                    "before": due.before.isoformat(),
                    "records": due.count,
                }
                action = "retention.ordered" if due.ordered else "retention.purged"
                self.rights.audit.append(self._home.party, action, "customers", told)
                rule.act()
                done.append(due)
        return done

    def hold(self, reason: str, by: str, subject: str | None = None) -> str:
        """Set a legal hold on one subject, or on everybody; its id. Logged first.

        Raises:
            InputError: no reason, or nobody sets it.
        """
        rights = self.rights
        sealed = {"customer": subject, "reason": reason} if subject is not None else None
        told = {"by": by, "everybody": subject is None, **({"reason": reason} if subject is None else {})}
        return rights.holds.set(
            reason,
            by,
            subject,
            record=lambda number: rights.log(
                "retention.hold", told | {"hold": number}, sealed, subject or ""
            ),
        )

    def lift(self, number: str, by: str) -> None:
        """Lift a legal hold. Logged first.

        Raises:
            InputError: there is none of this id in force, or nobody lifts it.
        """
        rights = self.rights
        rights.holds.lift(number, by, record=lambda: rights.log("retention.lift", {"hold": number, "by": by}))

    def _last_entry(self) -> datetime | None:
        audit = self.rights.audit
        size = audit.size
        for entry in audit.entries(max(0, size - 1)):
            return datetime.fromisoformat(str(entry.record["time"]))
        return None

    def _rules(self) -> Iterator[_Rule]:
        now = self._clock()
        holds = self.rights.holds.in_force()
        everybody = any(hold.subject is None for hold in holds)
        held = frozenset(hold.subject for hold in holds if hold.subject is not None)
        old = limit("personal", now, self._days)
        for rule in (
            self._orders(old, held),
            self._scores(old, held),
            self._uses(old, held),
            self._consents(old, held),
            self._records(limit("record", now, self._days), held),
        ):
            due = rule.due
            if everybody:
                due = Due(
                    due.place,
                    due.clock,
                    due.before,
                    0,
                    due.count + due.held,
                    "kept: a legal hold on everybody",
                )
            yield _Rule(due, rule.act)

    def _orders(self, old: datetime, held: frozenset[str]) -> _Rule:
        rights, table = self._home.rights, self._home.table
        if rights.date is None:
            why = "node.yaml names no column of days, so nobody knows how old a row is"
            return _Rule(Due("orders", "personal", old, 0, 0, why), lambda: None)
        table_rewrite.require(table, rights.customer)
        day, date = old.date().isoformat(), rights.date
        count = table_rewrite.old_rows(table, rights.customer, date, day, held)
        kept = table_rewrite.old_rows(table, rights.customer, date, day) - count if held else 0
        if rights.table == "read-only":
            why = "the company's own table is read only here: the company removes them; no study reads them"
            return _Rule(Due("orders", "personal", old, count, kept, why, ordered=True), lambda: None)
        return _Rule(
            Due("orders", "personal", old, count, kept, "removed from the table"),
            lambda: table_rewrite.remove_before(table, rights.customer, date, day, held),
        )

    def _scores(self, old: datetime, held: frozenset[str]) -> _Rule:
        aged = [output for output in self._outputs.all() if output.at < old]
        kept = [
            output
            for output in aged
            if output.path.exists()
            and any(table_rewrite.rows_of(output.path, output.column, subject) for subject in held)
        ]
        due = [output for output in aged if output not in kept]

        def act() -> None:
            for output in due:
                try:
                    output.path.unlink(missing_ok=True)
                    folder = os.open(output.path.parent, os.O_RDONLY) if output.path.parent.exists() else None
                    if folder is not None:
                        os.fsync(folder)
                        os.close(folder)
                except OSError as error:
                    raise InputError(f"{output.path}: {error.strerror or error}") from error
                self._outputs.forget(output.path)

        return _Rule(Due("scores", "personal", old, len(due), len(kept), "files of scores, deleted"), act)

    def _uses(self, old: datetime, held: frozenset[str]) -> _Rule:
        subjects = self.rights.places.subjects()
        aged = (
            [] if subjects is None else [t for t in subjects.uses() if datetime.fromisoformat(t.began) < old]
        )
        if subjects is None or not aged:
            return _Rule(Due("lineage", "personal", old, 0, 0, "who was in a use, forgotten"), lambda: None)
        names = {touch.use for subject in held for touch in subjects.touched(subject)}
        due = [touch.use for touch in aged if touch.use not in names]
        why = "who was in a use, forgotten; that it was stays"
        return _Rule(
            Due("lineage", "personal", old, len(due), len(aged) - len(due), why), lambda: subjects.empty(due)
        )

    def _consents(self, old: datetime, held: frozenset[str]) -> _Rule:
        places, rights = self.rights.places, self.rights
        register = places.register()
        ended = register.ended_before(old)
        due = [subject for subject in ended if subject not in held]

        def act() -> None:
            key, studies = self._home.cohort_key(), places.studies()
            for subject in due:
                labels = {study: StudyKey(key, study).label(subject) for study in studies}
                register.erase(subject, labels, cleared=True)
                rights.audit.shred(self._home.party, customer_key(subject))

        why = "consents that ended so long ago go on as proof under a tombstone"
        return _Rule(Due("consents", "personal", old, len(due), len(ended) - len(due), why), act)

    def _records(self, old: datetime, held: frozenset[str]) -> _Rule:
        closed = [r for r in self.rights.requests.all() if r.closed is not None and r.closed < old]
        due = [r.id for r in closed if r.subject not in held]
        why = "requests answered more than three years ago, deleted"
        return _Rule(
            Due("requests", "record", old, len(due), len(closed) - len(due), why),
            lambda: self.rights.requests.purge(due, before=micros("before", old)),
        )
