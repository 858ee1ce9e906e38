"""The rules on made-up logs: what they find, what they leave alone, and what order and restarts change: nothing."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from functools import cache

import anomalies
import anomaly_log
import pytest
from anomaly_log import Log
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus.compliance.anomalies.alerts import Alert
from foedus.compliance.anomalies.baseline import Habit, poisson_tail, typical
from foedus.compliance.anomalies.events import Access
from foedus.compliance.anomalies.policy import Policy
from foedus.compliance.anomalies.questions import Question
from foedus.compliance.anomalies.watch import Watch
from foedus.errors import InputError

BERLIN = Policy(zone="Europe/Berlin")
T0 = datetime(2026, 3, 2, 9, tzinfo=UTC)  # a Monday


@cache
def small_log(seed: int = 0) -> Log:
    return anomaly_log.generate(seed, people=30, days=60, bulk=12, drips=6)


def at(**later: float) -> datetime:
    return T0 + timedelta(**later)


def reads(times: list[datetime], rows: int = 50, actor: str = "alice") -> list[Access]:
    return [Access(i, t, actor, "read", "shop-a", "staff", rows + i % 7) for i, t in enumerate(times)]


def office(days: int) -> list[datetime]:
    """Six reads on every working day."""
    return [at(days=d, hours=h) for d in range(days) if d % 7 < 5 for h in range(6)]


# ── bulk and drip ────────────────────────────────────────────────────────────────────────────────


def test_a_held_out_log_meets_the_bars_for_its_size() -> None:
    log = anomaly_log.generate(100)
    found = anomalies.run(anomalies.watch, log)
    assert found.bulk >= 0.9 and found.drip >= 0.7 and found.false <= 0.4


def test_the_judge_is_no_friend() -> None:
    log = small_log()
    nothing = anomalies.judge(log, [], 1.0)
    assert (nothing.bulk, nothing.drip, nothing.false) == (0, 0, 0)
    everything = anomalies.judge(log, [[e.id] for e in log.events], 1.0)
    assert (everything.bulk, everything.drip) == (1, 1) and everything.false > 100


def test_a_bulk_read_at_night_rests_on_the_actors_own_history() -> None:
    events = reads(office(40))
    night = Access(9_999, at(days=39, hours=17), "alice", "read", "shop-a", "staff", 2_000)
    (alert,) = Watch(Policy()).feed([*events, night])
    assert (alert.rule, alert.basis, alert.evidence) == ("bulk", "own", (9_999,))
    assert alert.figures["rows"] == 2_000 and alert.baseline["usual_rows"] == pytest.approx(53, abs=2)


def test_the_same_read_at_a_night_workers_hours_takes_more() -> None:
    nights = [t + timedelta(hours=13) for t in office(40)]
    events = reads(nights)
    usual = Access(9_999, nights[-1] + timedelta(minutes=5), "alice", "read", "shop-a", "staff", 1_000)
    assert Watch(Policy()).feed([*events, usual]) == []
    (alert,) = Watch(Policy()).feed([*events, Access(*(9_999, usual.time, "alice", "read", "a", "", 9_000))])
    assert alert.rule == "bulk" and alert.figures["unusual_hour"] == 0


def test_a_bulk_read_in_pieces() -> None:
    pieces = [at(days=39, hours=17, minutes=m) for m in range(40)]
    alerts = Watch(Policy()).feed(reads(office(40) + pieces))
    assert [a.rule for a in alerts] == ["bulk"] and alerts[0].figures["reads"] > 5


def test_a_drip_is_told_and_told_again_once_it_has_doubled() -> None:
    nights = [at(days=d, hours=17) for d in range(32, 42)]
    alerts = Watch(Policy()).feed(reads(sorted(office(42) + nights)))
    assert [(a.rule, a.basis, a.figures["days"]) for a in alerts] == [("drip", "own", 4), ("drip", "own", 8)]


def test_a_newcomer_is_compared_with_peers_and_the_alert_says_so() -> None:
    crowd = [
        Access(i, t, f"clerk-{n}", "read", "shop-a", "staff", 40 + (i * n) % 30)
        for i, (t, n) in enumerate((t, n) for t in office(40) for n in range(8))
    ]
    new = Access(99_999, at(days=39, hours=17), "newcomer", "read", "shop-a", "staff", 5_000)
    (alert,) = Watch(Policy()).feed([*crowd, new])
    assert (alert.actor, alert.basis) == ("newcomer", "peers") and "peers" in alert.sentence


def test_nobody_has_history_yet() -> None:
    (alert,) = Watch(Policy()).feed(
        [Access(0, at(hours=14), "alice", "read", "shop-a", "", 2_000_000), *reads([at(hours=15)])]
    )
    assert alert.basis == "policy"


@pytest.mark.parametrize(
    "zone", ["Europe/Berlin", "America/New_York", "Asia/Shanghai", "Australia/Lord_Howe"]
)
def test_summer_time_changes_nobodys_hours(zone: str) -> None:
    policy = Policy(zone=zone)
    first = datetime(2026, 2, 2, 9, tzinfo=policy.timezone)
    local = [first + timedelta(days=d, hours=h) for d in range(100) if d % 7 < 5 for h in range(6)]
    assert Watch(policy).feed(reads([t.astimezone(UTC) for t in local])) == []


def test_the_hours_are_a_circle() -> None:
    habit = Habit()
    for _ in range(20):
        habit.learn(0, {23}, odd=False)
    assert habit.share(0, 0) == habit.share(0, 22) == 1 > habit.share(0, 2)
    assert not habit.far(0, 2, 0.5, 3) and habit.far(0, 4, 0.5, 3)


def test_the_median_bears_what_is_foreign() -> None:
    clean, dirty = (
        typical([4.0 + i / 50 for i in range(50)]),
        typical([4.0 + i / 50 for i in range(50)] + [12.0] * 20),
    )
    assert abs(clean.centre - dirty.centre) < 0.3 and dirty.spread < 3 * clean.spread
    assert poisson_tail(0, 1.0) == 1 and poisson_tail(3, 1.0) == pytest.approx(0.0803, abs=1e-4)


def test_an_unknown_zone_and_rule() -> None:
    with pytest.raises(InputError, match="Europe/Berln"):
        Policy(zone="Europe/Berln")
    with pytest.raises(InputError, match="sloth"):
        Policy(blocks=frozenset({"sloth"}))  # type: ignore[arg-type]


# ── the clock ────────────────────────────────────────────────────────────────────────────────────


def test_a_clock_that_goes_back_is_an_alert_once_and_no_crash() -> None:
    times = [at(hours=1), at(hours=2), at(hours=-48), at(hours=-47), at(hours=3)]
    (alert,) = Watch(Policy()).feed(reads(times))
    assert (alert.rule, alert.evidence) == ("clock", (1, 2))
    assert alert.figures["seconds_back"] == 50 * 3600


@given(st.lists(st.integers(-(10**7), 10**7), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_clock_is_borne(offsets: list[int]) -> None:
    watch = Watch(BERLIN)
    watch.feed(reads([at(minutes=m) for m in offsets], rows=5_000))
    json.dumps(watch.state())


# ── ε, refusals, differences ─────────────────────────────────────────────────────────────────────


def spend(i: int, day: float, epsilon: float, run: str = "", actor: str = "bob") -> Access:
    return Access(
        i,
        at(days=day),
        actor,
        "spend",
        "shop-a",
        epsilon=epsilon,
        purpose="p",
        run=run or f"r{i}",
        study=f"{i:064x}",
    )


def test_a_burst_of_epsilon_against_ones_own_past() -> None:
    events = [spend(i, 7 * i, 0.5) for i in range(8)]
    burst = [spend(100 + i, 60 + i, 0.5) for i in range(4)]
    (alert,) = Watch(Policy()).feed(events + burst)
    assert (alert.rule, alert.basis, alert.actor) == ("budget", "own", "bob")
    assert alert.figures["epsilon"] == 1.5 and alert.baseline["usual_epsilon"] == 0.5


def test_half_of_the_cap_in_a_week_and_a_run_counts_once() -> None:
    watch = Watch(Policy(caps={"p": 4.0}))
    assert watch.feed([spend(0, 0, 1.0, "run"), spend(1, 1, 1.0, "run")]) == []
    (alert,) = watch.feed([spend(2, 2, 1.0, "other")])
    assert alert.rule == "budget" and alert.evidence == (0, 2) and alert.studies == (f"{2:064x}",)


def test_repeated_refusals() -> None:
    def knock(minutes: list[int]) -> list[Alert]:
        return Watch(Policy()).feed(
            [Access(i, at(minutes=m), "eve", "refusal", "shop-a") for i, m in enumerate(minutes)]
        )

    assert knock([0, 10, 20, 30]) == [] and knock([0, 30, 60, 90, 120, 150]) == []
    (alert,) = knock([0, 10, 20, 30, 40, 41])
    assert (alert.rule, alert.evidence, alert.figures["minutes"]) == ("refusals", (0, 1, 2, 3, 4), 40)


STATISTIC = {"task": "statistics", "what": "mean amount", "filters": ["region = north"], "title": "a"}


def asked(i: int, customers: int | None, root: str = "", **changes: object) -> Access:
    question = Question.of(STATISTIC | changes, customers=customers, root=root)
    return Access(i, at(days=i), "bob", "spend", "shop-a", run=f"r{i}", study=f"{i:064x}", question=question)


@pytest.mark.parametrize(
    ("second", "flagged"),
    [
        (asked(1, 1000, "a", title="b"), False),  # the very same cohort
        (asked(1, 1003, "b"), True),  # three customers more
        (asked(1, 1300, "b"), False),
        (asked(1, 990, "b", filters=["region = north", "age < 90"]), True),
        (asked(1, 600, "b", filters=["region = north", "age < 40"]), False),
        (asked(1, None, filters=["region = north", "age < 40"]), True),  # nobody says how many
        (asked(1, 990, "b", filters=["region = south", "age < 90", "age > 18"]), False),
        (asked(1, 1003, "b", what="mean age"), False),  # another measure
        (asked(1, 1003, "b", task="train"), False),
    ],
)
def test_differencing(second: Access, flagged: bool) -> None:
    alerts = Watch(Policy()).feed([asked(0, 1000, "a"), second])
    assert [a.rule for a in alerts] == ["differencing"] * flagged
    assert all(a.evidence == (0, 1) and len(a.studies) == 2 for a in alerts)


@pytest.mark.parametrize(
    ("customers", "cells", "flagged"), [(999, 3, True), (900, 3, False), (999, 4, False)]
)
def test_two_counts_between_which_few_withdrew(customers: int, cells: int, flagged: bool) -> None:
    def count(i: int, customers: int, root: str, cells: int) -> Access:
        by = [{"column": "age", "cuts": list(range(cells - 1))}]
        study = {
            "task": "count",
            "count": {"by": by},
            "table": {"name": "t"},
            "k": 10,
            "nonce": f"{i}",
            "title": f"{i}",
        }
        question = Question.of(study, customers=customers, root=root)
        return Access(i, at(days=i), "bob", "spend", "shop-a", run=f"r{i}", question=question)

    alerts = Watch(Policy()).feed([count(0, 1000, "a", 3), count(1, customers, "b", cells)])
    assert [a.rule for a in alerts] == ["differencing"] * flagged


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────


def coarse(log: Log) -> list[Access]:
    """A log whose clock ticks once in six hours: many events at each instant."""
    return [
        Access(e.id, e.time.replace(hour=e.time.hour // 6 * 6, minute=0, second=0, microsecond=0), e.actor, e.kind,
               e.silo, e.group, e.rows)
        for e in log.events
    ]  # fmt: skip


@given(st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_order_within_an_instant_does_not_matter(seed: int) -> None:
    events = coarse(small_log())
    shuffled = events.copy()
    random.Random(seed).shuffle(shuffled)
    shuffled.sort(key=lambda e: e.time)
    assert Watch(BERLIN).feed(shuffled) == Watch(BERLIN).feed(events) != []


@given(st.lists(st.integers(0, 13_000), min_size=1, max_size=4))
@settings(max_examples=8, deadline=None)
def test_a_state_restored_is_a_state_continued(cuts: list[int]) -> None:
    events = small_log().events
    whole = Watch(BERLIN)
    expected, found, watch = whole.feed(events), [], Watch(BERLIN)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(events)], strict=True):
        found += watch.feed(events[start:end])
        state = json.dumps(watch.state())
        watch = Watch(BERLIN)
        watch.restore(json.loads(state))
    assert found == expected
    assert json.dumps(watch.state()) == json.dumps(whole.state())


def test_a_state_of_another_version() -> None:
    with pytest.raises(InputError, match="version"):
        Watch(BERLIN).restore({"version": 0})


def test_alerts_survive_json_and_know_their_id() -> None:
    for alert in Watch(BERLIN).feed(small_log().events):
        told = json.loads(json.dumps(alert.to_json()))
        again = Alert.from_json(told)
        assert again.id == alert.id and again.to_json() == alert.to_json()
        with pytest.raises(InputError, match="another id"):
            Alert.from_json(told | {"actor": "someone"})
    with pytest.raises(InputError, match="not an alert"):
        Alert.from_json({})
