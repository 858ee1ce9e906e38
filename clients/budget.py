"""The node's budget: its ledger, and the anchors by which a ledger that went back is noticed.

A ledger in a file can be deleted, or put back as it was; the file itself can't tell. Its head (lines, hash
of the last, write-offs) is therefore kept in two other places:

1. in this node's own audit log, after every line. Against `ledger.db` alone deleted or restored, and against
   `audit.db` alone restored: before anything is reserved the two must agree.
2. in the *server's* audit log, signed by this node, at every set-up and in every receipt. Against the whole
   directory restored: at the next study the server shows each entry since the log head kept here (so that none
   can be held back, even by a server that wants to: it would have to fork the log, which the other nodes
   notice), and the last entry with a head of this ledger.

A line that is in the ledger and in no anchor is lost without a trace if the process dies in between; nothing
has left the silo for it then, as what it pays for is given out after the anchor is made.

Not caught: lines written since the last set-up or receipt, if the whole directory is put back to after that
one (up to a batch of rounds; a kill of the run and a restore within it); a restore of ledger and audit log
without the log head, if the server lies as well; a second node that runs with a copy of this one's keys.
The first two show in every later bundle: `federation.ledger_heads.check_log` finds a ledger that went back.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from ..compliance.auditlog.log import AuditLog, Entry
from ..compliance.treaty import Treaty
from ..errors import BudgetExceeded, InputError, Refused, VerificationError
from ..federation.study import AnyStudy
from ..privacy.events import Event
from ..privacy.ledger import Cap, Head, Ledger
from .home import Home

LEDGER_ROLLED_BACK = "LEDGER_ROLLED_BACK"
HEAD, MISSING, RECOVERED = "ledger.head", "ledger.missing", "ledger.recovered"
_AHEAD = 8  # lines that may be in no anchor yet: a process that died leaves one
_PAGE = 500
_SKEW = timedelta(minutes=5)
_REMEDY = "an officer of this partner recovers it: foedus ledger recover NODE (docs/for-officers.md)"


class Budget:
    """What may still be spent at one node, by its treaty and its ledger."""

    def __init__(
        self,
        home: Home,
        treaty: Treaty,
        treaty_digest: str,
        audit: AuditLog,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.ledger = Ledger(home.path / "ledger.db", home.party, clock=clock)
        self._party, self._treaty, self._digest = home.party, treaty, treaty_digest
        self._audit, self._clock = audit, clock
        self._turn = threading.Lock()
        self._scanned = 0  # entries of the audit log that were looked at for anchors
        self._anchor: Head | None = None

    def cap(self, purpose: str) -> Cap:
        """The budget of a purpose as it stands now: for life, or in the treaty's present period."""
        terms = self._treaty.terms(purpose)
        since = terms.since(self._clock())
        return Cap(terms.epsilon, terms.delta, since, self._treaty.version, self._digest)

    # ── anchors ──────────────────────────────────────────────────────────────────────────────────

    @property
    def anchor(self) -> Head:
        """The furthest head that this node's audit log knows of.

        Raises:
            VerificationError: the audit log is damaged.
        """
        size = self._audit.size
        if size < self._scanned:  # restored under a running node: all of it is looked at again
            self._scanned = 0
        low, high = self._scanned, size
        while high > low:  # the last is the furthest
            start = max(low, high - _PAGE)
            heads = [h for h in map(_anchor_in, self._audit.entries(start, high)) if h is not None]
            if heads:
                self._anchor = max([*heads, *([self._anchor] if self._anchor else [])], key=_place)
                break
            high = start
        self._scanned = size
        return self._anchor or Head(0, self.ledger.hash_at(0) or "")

    def verify(self) -> Head:
        """The whole ledger is read anew, and agrees with this node's audit log; its head.

        Raises:
            VerificationError: something was altered. Refused: it is behind an anchor (``LEDGER_ROLLED_BACK``).
        """
        head = self.ledger.verify()
        self._check()
        return head

    def _check(self) -> None:
        anchor, head = self.anchor, self.ledger.head
        if not self._continues(anchor):
            raise Refused(
                LEDGER_ROLLED_BACK,
                f"the ledger of {self._party} has {head.size} lines that do not continue the {anchor.size} of which"
                " this node's audit log, or the server's, has the head: an old copy was restored, or it was deleted",
                remedy=_REMEDY,
            )
        if anchor.write_offs == head.write_offs and head.size > anchor.size + _AHEAD:
            raise Refused(
                LEDGER_ROLLED_BACK,
                f"the ledger of {self._party} has {head.size} lines, and this node's audit log knows of {anchor.size}:"
                " the audit log was restored from an old copy, or deleted",
                remedy=_REMEDY,
            )

    def _continues(self, anchor: Head) -> bool:
        head = self.ledger.head
        if anchor.write_offs != head.write_offs:
            return anchor.write_offs < head.write_offs  # whatever was lost has been written off
        return self.ledger.hash_at(anchor.size) == anchor.hash

    def anchored(self, head: Head, index: int) -> None:
        """A head that this node stated stands in the server's log, as entry `index`.

        Raises:
            Refused: the ledger does not continue it; the audit log keeps it, so the node goes on refusing.
        """
        with self._turn:
            if self._continues(head):
                return
            if _place(head) > _place(self.anchor):
                found = {**_as_json(head), "entry": index}
                self._audit.append(self._party, MISSING, f"entry {index} of the server's log", found)
            self._check()
            # The same size with another hash, or an older head that is not ours: a history that is no longer here.
            raise Refused(
                LEDGER_ROLLED_BACK,
                f"entry {index} of the server's log has a head of {self._party}'s ledger ({head.size} lines) that"
                " the ledger does not continue",
                remedy=_REMEDY,
            )

    # ── spending ─────────────────────────────────────────────────────────────────────────────────

    def admit(self, digest: str, study: AnyStudy, planned: Sequence[Event]) -> None:
        """Could the purpose's budget pay for all of it? The whole ledger is verified first.

        Raises:
            BudgetExceeded: no. Refused, VerificationError: see `verify`.
        """
        with self._turn:
            self.verify()
            self._check_created(study)
            unlimited = Cap(math.inf, study.privacy.delta)  # its own budget is looked at round by round
            self.ledger.require(
                planned, purpose=study.purpose, study=digest, cap=self.cap(study.purpose), study_cap=unlimited
            )

    def _check_created(self, study: AnyStudy) -> None:
        """After a write-off nobody knows what earlier studies have spent, so they are over."""
        lost = [line.moment for line in self.ledger.lines() if line.kind == "written-off"]
        if not lost:
            return
        try:
            created = datetime.fromisoformat(study.created)
            early = not lost[-1] < created <= self._clock() + _SKEW
        except (ValueError, TypeError) as error:
            raise InputError(f"study: {study.created!r} is not a time with a zone") from error
        if early:
            raise BudgetExceeded(
                "the study was not made after this silo's ledger was written off, so what it has spent is unknown",
                remedy="its author signs it anew",
            )

    def reserve(self, digest: str, study: AnyStudy, event: Event, label: str) -> int:
        """Set one round's event aside; its number in the ledger.

        Raises:
            BudgetExceeded: over the purpose's cap or the study's. Refused, VerificationError: see `verify`.
        """
        own = study.privacy
        with self._writing():
            return self.ledger.reserve(
                event,
                purpose=study.purpose,
                study=digest,
                label=label,
                cap=self.cap(study.purpose),
                study_cap=Cap(own.epsilon, own.delta),
            )

    def commit(self, ref: int, event: Event) -> None:
        """What was reserved happened, at this cost."""
        with self._writing():
            self.ledger.commit(ref, event)

    def abort(self, ref: int) -> None:
        """Nothing left the silo: the reservation is given back."""
        with self._writing():
            self.ledger.abort(ref)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The ledger agrees with its anchor; something is written; the new head is anchored.

        In this order: an anchor ahead of its line would, after a crash, be a ledger that went back.
        """
        with self._turn:
            self._check()
            head = self.ledger.head
            if _place(head) > _place(self.anchor):  # a process died in between: never two lines without
                self._make_anchor(head)
            yield
            self._make_anchor(self.ledger.head)

    def _make_anchor(self, head: Head) -> None:
        self._audit.append(self._party, HEAD, "ledger.db", _as_json(head))


def _place(head: Head) -> tuple[int, int]:
    return head.write_offs, head.size


def _as_json(head: Head) -> dict[str, Any]:
    return {"size": head.size, "hash": head.hash, "write_offs": head.write_offs}


def _anchor_in(entry: Entry) -> Head | None:
    """The head of the ledger that an entry of the node's audit log has."""
    if not any(action.encode() in entry.body for action in (HEAD, MISSING, RECOVERED)):
        return None  # most entries are something else, and need not be parsed
    record = entry.record
    if record["action"] not in (HEAD, MISSING, RECOVERED):
        return None
    try:
        told = record["details"]
        return Head(int(told["size"]), str(told["hash"]), int(told["write_offs"]))
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError(
            f"entry {entry.index} of the node's audit log: no head of a ledger"
        ) from error
