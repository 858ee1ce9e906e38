"""How long things are kept: two clocks that run against each other, and what stops them.

==============  ====================================  ================================================
clock           what it is for                        rule
==============  ====================================  ================================================
``personal``    orders, scores, uses, consents' names  gone after the treaty's days, 1,096 at most
                                                      (PIPL art. 19; GDPR art. 5(1)(e))
``record``      requests, erasures, holds, consents   not before three years (PIPL art. 56: reports of impact
                as proof, impact assessments          assessments and records of processing)
==============  ====================================  ================================================

So one job with one age for everything would be unlawful whichever age it had. A legal hold stops both. A computer whose
clock is wrong must not purge: a clock behind the log's last entry is refused, and one far ahead of it unless somebody
says that it was checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ..errors import InputError, Refused

RECORD_DAYS = 1096
_SKEW = timedelta(minutes=5)
_SILENCE = timedelta(days=31)


@dataclass(frozen=True)
class Due:
    """What one rule would do now: `count` records of before `before`; `held` more stay by a legal hold.

    `why` says, in one sentence, what is done with them; `ordered`: people must do it, foedus may not.
    """

    place: str
    clock: str
    before: datetime
    count: int
    held: int
    why: str
    ordered: bool = False


def limit(clock: str, now: datetime, personal_days: int) -> datetime:
    """Before when records of a clock are old.

    Raises:
        InputError: no such clock, or personal data would be kept for longer than three years.
    """
    if not 0 < personal_days <= RECORD_DAYS:
        raise InputError(f"personal data is kept {RECORD_DAYS} days at most, not {personal_days}")
    if clock == "personal":
        return now - timedelta(days=personal_days)
    if clock == "record":
        return now - timedelta(days=RECORD_DAYS)
    raise InputError(f"{clock!r} is no clock of retention")


def check_clock(now: datetime, last: datetime | None, *, checked: bool = False) -> None:
    """Whether this computer's time can be believed, by the last entry of the silo's own log.

    Raises:
        Refused: ``CLOCK_BEHIND`` it; or ``CLOCK_AHEAD`` by more than a month, and nobody has checked.
    """
    if last is None:
        return
    if now < last - _SKEW:
        raise Refused(
            "CLOCK_BEHIND",
            f"this computer's clock says {now.isoformat(timespec='seconds')}, and the log has an entry of "
            f"{last.isoformat(timespec='seconds')}: nothing is purged",
            remedy="set the clock right",
        )
    if now > last + _SILENCE and not checked:
        raise Refused(
            "CLOCK_AHEAD",
            f"the log's last entry is of {last.isoformat(timespec='seconds')}, more than a month ago by this clock: "
            "what is purged by a wrong clock is gone",
            remedy="look at the clock; if it is right, add --clock-checked",
        )
