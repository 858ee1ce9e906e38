"""What the watch counts as unusual. One frozen value; every number has its unit and its reason here."""

from __future__ import annotations

from dataclasses import dataclass, field
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ...errors import InputError
from .alerts import RULES, Rule


@dataclass(frozen=True)
class Policy:
    """The rules' constants, chosen on seeds 0–4 of `benchmarks/anomaly_log.py` and measured on ten others.

    Args:
        zone: IANA name of the silo's time zone; hours and days are local.
        weekend: days of the week that are one (Monday is 0).
        hours: the working day, [from, until), where nobody has history yet.
        bulk_off, bulk_any: how many robust deviations above the usual log of rows one read may be at the
            actor's unusual hours, and at any hour; there it must be `bulk_times` the usual rows, too.
        least_rows: reads below are never bulk, nor days below a drip.
        rare: an hour is unusual if the actor was active around it on less than this part of past days.
        peers_rare: … for who has little history: if less than this part of the peers is active then.
        established: active days from which an actor has a baseline of their own.
        delay: days until what was done counts as habit, and the longest window of a drip. A drip so can't
            teach the watch that it is normal.
        usual, far_hours: a drip is made of reads so many hours or more from every hour at which the actor was
            active on `usual` of past days or more.
        drip_chance: how improbable so many days with such reads must be under the actor's own rate.
        drip_days, drip_days_new: at least so many of them in the window; `new` is for who has little history.
        drip_volume: their rows, as a multiple of the actor's usual day.
        budget_days, budget_factor, budget_share: ε within so many days, as a multiple of the actor's usual
            such window, or as part of the purpose's cap.
        caps: ε of each purpose, from the treaty.
        refusals, refusal_minutes: so many in so many minutes.
        k: customers by which two cohorts must differ, if they differ.
        tasks: the tasks of studies whose results are compared for differences.
        clock_seconds: how far the clock may go back unnoticed.
        blocks: the rules whose alerts block the actor until an officer releases them.
    """

    zone: str = "UTC"
    weekend: tuple[int, ...] = (5, 6)
    hours: tuple[int, int] = (7, 20)
    bulk_off: float = 3.5
    bulk_any: float = 5.0
    bulk_times: float = 36.0
    least_rows: int = 100
    rare: float = 0.04
    peers_rare: float = 0.3
    established: int = 8
    delay: int = 14
    usual: float = 0.25
    far_hours: int = 3
    drip_chance: float = 1e-3
    drip_days: int = 4
    drip_days_new: int = 8
    drip_volume: float = 0.3
    budget_days: int = 7
    budget_factor: float = 3.0
    budget_share: float = 0.5
    caps: dict[str, float] = field(default_factory=dict)
    refusals: int = 5
    refusal_minutes: int = 60
    k: int = 20
    tasks: tuple[str, ...] = ("statistics", "count")
    clock_seconds: float = 1.0
    blocks: frozenset[Rule] = frozenset()

    def __post_init__(self) -> None:
        """Raises: InputError: no such time zone, or a rule that there is not."""
        try:
            ZoneInfo(self.zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise InputError(
                f"{self.zone!r} is not a time zone", remedy="give an IANA name such as Europe/Berlin"
            ) from error
        unknown = self.blocks - set(RULES)
        if unknown:
            raise InputError(f"{', '.join(sorted(unknown))}: no such rule; there are {', '.join(RULES)}")

    @property
    def timezone(self) -> ZoneInfo:
        """The silo's time zone."""
        return ZoneInfo(self.zone)
