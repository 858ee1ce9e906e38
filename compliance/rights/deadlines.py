"""Working days: until when a request must be answered.

A request is due at the end of the 15th working day after the day it came in, counted on the silo's own clock. The day
itself does not count. Weekends are off, and so are the days under ``holidays`` of a calendar file; the days under
``workdays`` are worked though they fall on a weekend, as China moves them around its holidays every year
(State Council, General Office: 节假日安排的通知).

::

    zone: Asia/Shanghai
    holidays: [2026-10-01, 2026-10-02, 2026-10-05, 2026-10-06, 2026-10-07]
    workdays: [2026-10-10]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml

from ...documents import read_text
from ...errors import InputError

WORKING_DAYS = 15
_ZONE = "Asia/Shanghai"


@dataclass(frozen=True)
class Calendar:
    """Which days are worked, and on whose clock."""

    holidays: frozenset[date] = frozenset()
    workdays: frozenset[date] = frozenset()
    zone: str = _ZONE

    @classmethod
    def load(cls, path: Path) -> Calendar:
        """Read a calendar file.

        Raises:
            InputError: unreadable; an unknown field or zone; a day that is no date, or both a holiday and worked.
        """
        try:
            content = yaml.safe_load(read_text(path))
        except yaml.YAMLError as error:
            raise InputError(f"{path}: not YAML: {error}") from error
        except ValueError as error:  # what looks like a day, and is none
            raise InputError(f"{path}: no day: {error}") from error
        if not isinstance(content, dict) or not content.keys() <= {"zone", "holidays", "workdays"}:
            raise InputError(f"{path}: a calendar has zone, holidays and workdays, and nothing else")
        zone = content.get("zone", _ZONE)
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
            raise InputError(f"{path}: {zone!r} is no time zone, such as Asia/Shanghai") from error
        holidays, workdays = (
            frozenset(_days(path, name, content.get(name))) for name in ("holidays", "workdays")
        )
        if both := holidays & workdays:
            raise InputError(f"{path}: {min(both)} is both a holiday and a workday")
        return cls(holidays, workdays, zone)

    def works(self, day: date) -> bool:
        """Whether `day` is a working day."""
        if day in self.workdays:
            return True
        return day.weekday() < 5 and day not in self.holidays

    def today(self, at: datetime) -> date:
        """The silo's day at an aware time."""
        return at.astimezone(ZoneInfo(self.zone)).date()

    def due(self, opened: datetime, days: int = WORKING_DAYS) -> date:
        """The last day on which a request that came in at `opened` is answered in time."""
        day = self.today(opened)
        for _ in range(days):
            day += timedelta(days=1)
            while not self.works(day):
                day += timedelta(days=1)
        return day


def _days(path: Path, name: str, value: object) -> Iterable[date]:
    if value is None:
        return
    if not isinstance(value, list):
        raise InputError(f"{path}: {name} is a list of days")
    for day in value:
        if type(day) is not date:
            raise InputError(f"{path}: {day!r} under {name} is no day, such as 2026-10-01")
        yield day
