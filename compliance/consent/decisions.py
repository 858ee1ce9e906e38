"""The rule: may this customer's data be used for this, now?

A record permits a use at t if and only if

1. the record is for the purpose, and granted_at ≤ t;
2. it has not expired by t, and no withdrawal of the subject and purpose w has granted_at ≤ w ≤ t;
3. its notice is known, was in effect when it was granted, and names the purpose, every category of the
   record, and every recipient that the record shares with;
4. the record covers every category asked for; if one of them is sensitive, by separate consent (PIPL art. 29);
5. every recipient asked for was consented to separately (PIPL art. 23);
6. the person who consented was the one entitled to (PIPL art. 31; GDPR art. 8):
   a. under a notice for everybody the date of birth is stated;
   b. who was too young when it was granted has a guardian's consent, given separately as all data of
      such a child is sensitive (PIPL art. 28), and only until they are old enough: then their guardian
      no longer decides, and they are asked themselves (our reading of art. 31, the cautious one);
   c. for anyone else nobody but themselves consented.

One record must permit all of the use: two halves are no consent to the whole. A customer may be used if one
of their records permits it. Whatever is missing, unknown or malformed denies.

`covers` is 3 to 5, which depend on the terms alone: the SQL of `register` and of the node's cohort asks it once
for every terms there are, and does 1, 2 and 6 by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from ...errors import FoedusError
from . import vocabulary
from .notices import Notice, split_version
from .records import ConsentRecord, Terms, micros


@dataclass(frozen=True)
class Ask:
    """A use: for what, of which data, shared with whom (nobody, if empty).

    Raises:
        InputError: a word is not in the vocabulary, or no category is named.
    """

    purpose: str
    categories: frozenset[str]
    sharing: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        vocabulary.purpose(self.purpose)
        vocabulary.categories(self.categories)


@dataclass(frozen=True)
class Allowed:
    """Yes, by this record."""

    record_id: str


@dataclass(frozen=True)
class Denied:
    """No; of several records, why the last one granted does not permit it."""

    reason: str


@dataclass(frozen=True)
class Cover:
    """Terms that permit a use: since when (microseconds), and of whom.

    `ageless`: the notice does not ask for the date of birth. `separate`: may be a child's.
    """

    since: int
    ageless: bool
    separate: bool


def may_use(
    records: Iterable[ConsentRecord], notices: Mapping[str, Notice], ask: Ask, at: datetime
) -> Allowed | Denied:
    """Whether one customer's records permit a use at `at`.

    Args:
        records: of one customer, in any order. notices: by version.
    """
    denied = Denied("NEVER_ASKED")
    try:
        told = list(records)
        if len({record.subject for record in told}) > 1:
            return Denied("MALFORMED")
        for record in sorted(told, key=lambda r: (r.granted_at, r.record_id)):
            if record.purpose != ask.purpose:
                continue
            reason = _why_not(record, notices, ask, at)
            if reason is None:
                return Allowed(record.record_id)
            denied = Denied(reason)
    except (FoedusError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError):
        return Denied("MALFORMED")
    return denied


def _why_not(record: ConsentRecord, notices: Mapping[str, Notice], ask: Ask, at: datetime) -> str | None:
    now, granted = micros("at", at), micros("granted_at", record.granted_at)
    # 1 and 2
    if granted > now:
        return "NOT_YET"
    if record.withdrawn_at is not None and micros("withdrawn_at", record.withdrawn_at) <= now:
        return "WITHDRAWN"
    if record.expires_at is not None and micros("expires_at", record.expires_at) <= now:
        return "EXPIRED"
    # 3 to 5
    cover = covers(record.terms, notices, ask)
    if isinstance(cover, Denied):
        return cover.reason
    if granted < cover.since:
        return "NOTICE_NOT_IN_EFFECT"
    # 6
    if record.own_from is None:
        if record.guardian is not None or not cover.ageless:
            return "AGE_UNKNOWN"
        return None
    own = micros("own_from", record.own_from)
    if own <= granted:
        return "OWN_CONSENT_MISSING" if record.guardian is not None else None
    if record.guardian is None:
        return "GUARDIAN_MISSING"
    if not cover.separate:
        return "SEPARATE_CONSENT_MISSING"
    return "OWN_CONSENT_MISSING" if own <= now else None


def covers(terms: Terms, notices: Mapping[str, Notice], ask: Ask) -> Cover | Denied:
    """Points 3 to 5 of the rule."""
    notice = notices.get(split_version(terms.notice_version)[0])
    if notice is None:
        return Denied("NOTICE_UNKNOWN")
    told = notice.purposes.get(terms.purpose)
    if told is None or terms.purpose != ask.purpose:
        return Denied("PURPOSE_NOT_IN_NOTICE")
    if not terms.categories <= set(told) or not terms.sharing <= set(notice.recipients):
        return Denied("NOT_IN_NOTICE")
    if not ask.categories <= terms.categories:
        return Denied("CATEGORY_NOT_CONSENTED")
    if vocabulary.sensitive(ask.categories) and not terms.sensitive:
        return Denied("SEPARATE_CONSENT_MISSING")
    if not ask.sharing <= terms.sharing:
        return Denied("SHARING_NOT_CONSENTED")
    since = micros("effective_from", notice.effective_from)
    return Cover(since, notice.audience == "own_consent", terms.sensitive)
