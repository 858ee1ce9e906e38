"""The register of consents of one silo: who permitted which use, when, under which notice.

It keeps notices and *events*, grants and withdrawals, and never changes one. What is in force at a time is a
function of the set of events, whatever their order of arrival:

    a grant is in force at t   iff   granted_at ≤ t, and t < expires_at (if it expires),
                                     and no withdrawal w of the same subject and purpose has
                                     granted_at ≤ w ≤ t

So a nightly import of the same file revives nothing, a late-arriving old withdrawal still counts, a new
grant after a withdrawal is a new record, and a withdrawal at the very instant of a grant wins. What a grant in
force permits is decided by the rule of `decisions`.

A grant is taken only under a notice that is published here, was in effect, and names what is consented to.
Times are timezone-aware.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd

from ...documents import parse_json
from ...errors import InputError, VerificationError
from ..auditlog.database import connection, establish, transaction
from ..tombstones import PREFIX
from . import erasing, rows, store
from .decisions import Allowed, Ask, Cover, Denied, covers, may_use
from .notices import Notice
from .records import ConsentRecord, Grant, Terms, Withdrawal, located, maybe, micros, moment, now
from .store import IN_FORCE, Marks


@dataclass(frozen=True)
class Change:
    """What was told under one id: a grant or a withdrawal."""

    event: str
    digest: str
    what: Grant | Withdrawal


class ConsentRegister:
    """The consents of one silo, in one SQLite file that threads and processes may share.

    Args:
        path: the file; made (mode 0600) if there is none. It names customers: it stays at the silo.

    Raises:
        InputError: not a consent register.
        VerificationError: a damaged file, or changed tables or triggers.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.is_file() and path.stat().st_size:
            with connection(path) as db:
                early = store.is_early(db)
            if early:
                with transaction(path) as db:
                    store.complete(db)
        establish(path, store.SCHEMA)

    # ── telling it ───────────────────────────────────────────────────────────────────────────────

    def publish(self, notice: Notice) -> None:
        """Record a version of a notice. The same again is no error.

        Raises:
            InputError: that version says something else already.
        """
        with transaction(self._path) as db:
            known = db.execute("SELECT digest FROM notice WHERE version = ?", (notice.version,)).fetchone()
            if known == (notice.digest,):
                return
            if known is not None:
                raise InputError(
                    f"the notice {notice.version} is published, and says something else",
                    remedy="what people consented to can't change: publish a new version, and ask them again",
                )
            db.execute("INSERT INTO notice VALUES (?, ?, ?)", (notice.version, notice.digest, notice.dumps()))

    def grant(
        self,
        subject: str,
        purpose: str,
        *,
        notice_version: str,
        expires_at: datetime | None = None,
        method: str = "import",
        at: datetime | None = None,
    ) -> str:
        """Record a consent; it is in force from `at` (now, by default). Returns its record id.

        Raises:
            InputError: an empty field, a naive time, an expiry before the grant, another grant at that very
                instant that says something else; a notice that is not published, was not in effect, or
                does not name the purpose, a category or a recipient; sensitive data without separate
                consent; a missing date of birth or guardian.
        """
        return self.grant_many([Grant(subject, purpose, notice_version, at, expires_at, method)])[0]

    def grant_many(
        self, grants: Iterable[Grant], *, record: Callable[[], object] = lambda: None
    ) -> list[str]:
        """Record all grants or none. Returns their record ids, in order; errors as `grant`.

        An id is empty where the customer was erased after that consent: it is not taken (`erasing`).

        Args:
            record: called once all are found good, before they are kept; if it raises, none is.
        """
        time = now()
        with transaction(self._path) as db:
            notices = _notices(db)
            events = [store.granted(grant, notices, time) for grant in grants]
            ids = self._insert(db, events, [])
            record()
        return ids

    def withdraw(
        self,
        subject: str,
        purpose: str,
        *,
        at: datetime | None = None,
        record: Callable[[], object] = lambda: None,
    ) -> None:
        """Withdraw every consent of `subject` to `purpose` given until `at` (now, by default).

        Withdrawing what has expired or is withdrawn already is no error: asking twice is allowed.

        Raises:
            InputError: this subject had not consented to this purpose by then.
        """
        self.withdraw_many([Withdrawal(subject, purpose, at)], record=record)

    def withdraw_many(
        self, withdrawals: Iterable[Withdrawal], *, record: Callable[[], object] = lambda: None
    ) -> None:
        """Record all withdrawals or none; errors as `withdraw`, `record` as `grant_many`."""
        time = now()
        events = [store.withdrawn(row, time) for row in withdrawals]
        with transaction(self._path) as db:
            self._insert(db, [], events)
            record()

    def _insert(
        self,
        db: sqlite3.Connection,
        grants: list[store.Granted],
        withdrawals: list[store.Withdrawn],
        *,
        known: bool = True,
    ) -> list[str]:
        """New events, but for those of before their customer was erased, whose ids are empty."""
        granted, withdrawn = erasing.Gone(db, self._path).take(grants, withdrawals)
        ids = store.insert_grants(db, granted)
        store.insert_withdrawals(db, withdrawn, known=known)
        taken = dict(zip(map(id, granted), ids, strict=True))
        return [taken.get(id(grant), "") for grant in grants]

    def take_in(
        self, found: Iterable[rows.Row], *, record: Callable[[int], object] = lambda rows: None
    ) -> int:
        """Record the rows of a file, all or none. Returns how many.

        Args:
            found: where it stands (for the error), the grant, and its withdrawal.
            record: as `grant_many`; called with their number.

        Raises:
            InputError: as `grant`, naming where and the field.
        """
        told, grants, withdrawals = list(found), [], []  # read before anything is locked
        with transaction(self._path) as db:
            notices, time = _notices(db), now()
            for where, grant, withdrawal in told:
                with located(where):
                    grants.append(store.granted(grant, notices, time))
                    withdrawals += [] if withdrawal is None else [store.withdrawn(withdrawal, time)]
            self._insert(db, grants, withdrawals)
            record(len(told))
        return len(told)

    def import_csv(self, path: Path) -> int:
        """Record the consents of a CSV file (`rows`), all or none. Returns the number of its rows.

        Raises:
            InputError: naming the line and the column.
        """
        return self.take_in(rows.read_csv(path))

    def take_event(self, change: Change, *, record: Callable[[], object] = lambda: None) -> bool:
        """Record one event that has an id; on disk when this returns. False: it was here already.

        A withdrawal is taken even where no consent is known: the grant may be the one that comes late. `record` is
        called as by `grant_many`, if the event is new.

        Raises:
            InputError: as `grant`; or the id was used for something else.
        """
        time = now()
        with transaction(self._path) as db:
            known = db.execute("SELECT digest FROM told WHERE event = ?", (change.event,)).fetchone()
            if known is not None:
                if known != (change.digest,):
                    raise store.Conflict(
                        f"the event {change.event!r} was told before, and said something else"
                    )
                return False
            if isinstance(change.what, Grant):
                self._insert(db, [store.granted(change.what, _notices(db), time)], [])
            else:
                self._insert(db, [], [store.withdrawn(change.what, time)], known=False)
            db.execute("INSERT INTO told VALUES (?, ?, ?)", (change.event, change.digest, time))
            record()
        return True

    def erase(
        self,
        subject: str,
        labels: Mapping[str, bytes],
        *,
        cleared: bool,
        at: datetime | None = None,
    ) -> erasing.Erased:
        """Withdraw every consent of a subject, and keep the records of them under a tombstone (`erasing`).

        A running node takes its copy of the register anew for the next batch. Asking twice is allowed.

        Args:
            labels: the subject's label in every study whose cohorts are in the silo's audit log.
            cleared: whether the silo's table has no order of theirs any more.

        Raises:
            InputError: the key of tombstones is lost, or the disk is full; nothing was changed.
        """
        time = now() if at is None else micros("at", at)
        with transaction(self._path) as db:
            return erasing.erase(db, self._path, subject, time, labels, cleared=cleared)

    def clear(self, tombstone: str) -> None:
        """The silo's table has no order of this erased subject any more: what they consent to anew is in force."""
        with transaction(self._path) as db:
            db.execute("UPDATE erased SET cleared = 1 WHERE tombstone = ?", (tombstone,))

    # ── asking it ────────────────────────────────────────────────────────────────────────────────

    def erased(self) -> set[str]:
        """The tombstones of everybody who was erased from this register."""
        with connection(self._path) as db:
            return {name for (name,) in db.execute("SELECT DISTINCT tombstone FROM erased")}

    def subjects(self) -> list[str]:
        """Everybody this register names."""
        query = "SELECT subject FROM granted UNION SELECT subject FROM withdrawn"
        with connection(self._path) as db:
            return [name for (name,) in db.execute(query) if not name.startswith(PREFIX)]

    def closed(self, subject: str) -> bool:
        """Whether this subject was erased and the silo's table still has their old orders: no consent takes effect."""
        with connection(self._path) as db:
            return erasing.Gone(db, self._path).closed(subject)

    def labels(self, study: str) -> dict[str, bytes]:
        """The labels of the erased in the cohorts of one study, by tombstone."""
        with connection(self._path) as db:
            rows = db.execute("SELECT tombstone, label FROM erased_label WHERE study = ?", (study,))
            return dict(rows.fetchall())

    def ended_before(self, at: datetime) -> list[str]:
        """Subjects all of whose consents had expired or were withdrawn before `at`; not those erased already."""
        with connection(self._path) as db:
            rows = db.execute(store.ENDED, {"at": micros("at", at), "erased": f"{PREFIX}%"}).fetchall()
        return [subject for (subject,) in rows]

    def was_in(self, subject: str, ask: Ask, at: datetime, *, until: Marks | None = None) -> bool:
        """Whether `cohort` has this subject."""
        with connection(self._path) as db:
            covered = _covered(db, ask)
            if not covered:
                return False
            query = store.cohort_query(ask.purpose, covered, micros("at", at), until, subject)
            return db.execute(*query).fetchone() is not None

    def may_use(self, subject: str, ask: Ask, at: datetime) -> Allowed | Denied:
        """Whether this customer's data may be used so at `at`, by the rule of `decisions`."""
        return may_use(self.records(subject), self.notices(), ask, at)

    def cohort(self, ask: Ask, at: datetime, *, until: Marks | None = None) -> pd.DataFrame:
        """Who may be used so at `at`: one column ``subject`` (text), sorted, each once.

        Args:
            until: as the register was then, whatever was told later.
        """
        with connection(self._path) as db:
            covered = _covered(db, ask)
            if not covered:
                return _subjects([])
            rows = db.execute(*store.cohort_query(ask.purpose, covered, micros("at", at), until)).fetchall()
        return _subjects(rows)

    def in_force(self, purpose: str, at: datetime) -> pd.DataFrame:
        """Who has a consent to `purpose` in force at `at`, whatever it covers: column ``subject``, sorted.

        It says who was asked and did not withdraw, for a count or a chart. Whose data may be used is `cohort`.
        """
        query = f"SELECT DISTINCT g.subject {IN_FORCE} ORDER BY g.subject"
        with connection(self._path) as db:
            return _subjects(db.execute(query, _at(purpose, at)).fetchall())

    def counts(self, purpose: str, at: datetime) -> dict[str, int]:
        """How many subjects have a consent ``in_force``, ``withdrawn`` or ``expired`` at `at`.

        Each subject who consented by then counts once: in force if any record is; else withdrawn if the
        last word was theirs, expired if it was the calendar's.
        """
        with connection(self._path) as db:
            in_force, withdrawn, everyone = db.execute(store.COUNTS, _at(purpose, at)).fetchone()
        return {"in_force": in_force, "withdrawn": withdrawn, "expired": everyone - in_force - withdrawn}

    def records(self, subject: str) -> list[ConsentRecord]:
        """Every record of one subject, oldest first: what they may ask to see."""
        with connection(self._path) as db:
            terms = store.all_terms(db)
            rows = db.execute(store.RECORDS, (subject,)).fetchall()
        found: list[ConsentRecord] = []
        latest: dict[str, str] = {}
        for record, who, number, at, expires, withdrawn, method, own, guardian, evidence in rows:
            what = terms[number]
            found.append(
                ConsentRecord(
                    record,
                    who,
                    what,
                    moment(at),
                    maybe(expires),
                    maybe(withdrawn),
                    method,
                    maybe(own),
                    guardian,
                    evidence,
                    latest.get(what.purpose),
                )
            )
            latest[what.purpose] = record
        return found

    def notices(self) -> dict[str, Notice]:
        """Every published notice, by version."""
        with connection(self._path) as db:
            return _notices(db)

    def covered(self, ask: Ask) -> dict[int, Cover]:
        """The numbers of the terms that cover a use (`decisions.covers`), for a cohort query."""
        with connection(self._path) as db:
            return _covered(db, ask)

    def changes(self, purpose: str, since: Marks, last: store.Last | None) -> store.Changes:
        """What was told about `purpose` after `since`, for a copy of it; and the marks to ask from next.

        Args:
            last: of the changes that ended at `since`. If it is another register by now, all is told anew.
        """
        with connection(self._path) as db:
            db.execute("BEGIN")  # one state of the file
            return store.changes(db, purpose, since, last)

    def snapshot_digest(self, purpose: str, at: datetime, *, salt: bytes = b"") -> str:
        """SHA-256 (hex) over the sorted ids of the records in force: as one number.

        Record ids are 128 random bits, so the digest names nobody; but equal digests tell that nothing
        changed. What leaves the silo takes a `salt` that stays there.
        """
        with connection(self._path) as db:
            rows = db.execute(f"SELECT g.record_id {IN_FORCE}", _at(purpose, at)).fetchall()
        ids = sorted(record for (record,) in rows)
        return hashlib.sha256(salt + "".join(f"{record}\n" for record in ids).encode()).hexdigest()


def _notices(db: sqlite3.Connection) -> dict[str, Notice]:
    found = {}
    for version, digest, body in db.execute("SELECT version, digest, body FROM notice"):
        notice = Notice.checked(parse_json(body), f"the notice {version}")
        if notice.digest != digest or notice.version != version:
            raise VerificationError(f"the notice {version} is not what was published under this digest")
        found[version] = notice
    return found


def _covered(db: sqlite3.Connection, ask: Ask) -> dict[int, Cover]:
    notices, found = _notices(db), {}
    for number, terms in store.all_terms(db).items():
        if isinstance(cover := _cover(terms, notices, ask), Cover):
            found[number] = cover
    return found


def _cover(terms: Terms, notices: Mapping[str, Notice], ask: Ask) -> Cover | Denied:
    try:
        return covers(terms, notices, ask)
    except InputError:
        return Denied("MALFORMED")


def _at(purpose: str, at: datetime) -> dict[str, str | int]:
    return {"purpose": purpose, "at": micros("at", at)}


def _subjects(rows: Iterable[tuple[str]]) -> pd.DataFrame:
    return pd.DataFrame({"subject": pd.Series([subject for (subject,) in rows], dtype="str")})
