"""Requests and their deadlines, erasures and holds, as one silo keeps them."""

from __future__ import annotations

import sqlite3
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus.compliance.retention import RECORD_DAYS, check_clock, limit
from foedus.compliance.rights import Calendar, Holds, Kind, Request, Requests, State
from foedus.errors import InputError, Refused

# State Council, 2026: National Day 1 to 7 October, in exchange Saturday 10 October is worked.
OCTOBER = """
holidays: [2026-10-01, 2026-10-02, 2026-10-05, 2026-10-06, 2026-10-07]
workdays: [2026-10-10]
"""
CHINA = Calendar(frozenset(date(2026, 10, day) for day in (1, 2, 5, 6, 7)), frozenset([date(2026, 10, 10)]))
days = st.dates(date(2024, 1, 1), date(2030, 1, 1))


@pytest.fixture
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def requests(tmp_path: Path, told: list[tuple[str, str]]) -> Requests:
    def record(step: str, request: Request) -> int:
        told.append((step, request.id))
        return len(told)

    return Requests(tmp_path / "rights.db", CHINA, record)


@pytest.mark.parametrize(
    ("opened", "due"),
    [
        ("2026-09-01T09:00:00+08:00", "2026-09-22"),  # three weeks without a holiday
        ("2026-09-21T09:00:00+08:00", "2026-10-16"),  # five days off, one Saturday worked
        ("2026-09-04T23:30:00+00:00", "2026-09-25"),  # already Saturday in Shanghai
        ("2026-09-06T12:00:00+08:00", "2026-09-25"),  # a Sunday
    ],
)
def test_a_request_is_due_after_fifteen_working_days(opened: str, due: str) -> None:
    assert CHINA.due(datetime.fromisoformat(opened)).isoformat() == due


@settings(max_examples=50, deadline=None)
@given(days, st.sets(days, max_size=20), st.sets(days, max_size=5))
def test_fifteen_working_days_lie_between(opened: date, off: set[date], on: set[date]) -> None:
    calendar = Calendar(frozenset(off - on), frozenset(on), "UTC")
    due = calendar.due(datetime(opened.year, opened.month, opened.day, 12, tzinfo=UTC))
    between = [opened + timedelta(n) for n in range(1, (due - opened).days + 1)]
    assert calendar.works(due)
    assert sum(map(calendar.works, between)) == 15


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("holidays: [2026-13-01]", "no day"),
        ("holidays: 2026-10-01", "a list"),
        ("zone: Mars/Olympus", "no time zone"),
        ("zone: 8", "no time zone"),
        ("holidays: [2026-10-01]\nworkdays: [2026-10-01]", "both"),
        ("holiday: []", "nothing else"),
        ("holidays: [", "not YAML"),
    ],
)
def test_a_malformed_calendar_is_refused(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "days.yaml"
    file.write_text(OCTOBER)
    assert Calendar.load(file) == CHINA
    file.write_text(text)
    with pytest.raises(InputError, match=why):
        Calendar.load(file)


def test_a_request_takes_its_steps_and_no_other(requests: Requests, told: list[tuple[str, str]]) -> None:
    first = requests.open(Kind.ACCESS, "K1", "zh", note="所有订单\n谢谢")
    assert requests.open(Kind.ACCESS, "K1", "zh", note="所有订单\n谢谢") == first  # not a second
    assert requests.start(first.id).state is State.IN_PROGRESS
    with pytest.raises(InputError, match="can't become in_progress"):
        requests.start(first.id)
    with pytest.raises(InputError, match="states its reason"):
        requests.refuse(first.id, " ")
    refused = requests.refuse(first.id, "not your orders")
    assert (refused.state, refused.reason, refused.over) == (State.REFUSED, "not your orders", True)
    for step in (requests.done, requests.start):
        with pytest.raises(InputError, match="is refused"):
            step(first.id)
    assert [step for step, _ in told] == ["opened", "in_progress", "refused"]
    assert requests.get(first.id).entry == 3
    assert requests.open(Kind.ACCESS, "K1").id != first.id  # asked again, after a refusal


def test_nobody_sees_anothers_request(requests: Requests) -> None:
    mine = requests.open(Kind.DELETE, "K1")
    with pytest.raises(InputError) as other:
        requests.get(mine.id, subject="K2")
    with pytest.raises(InputError) as none:
        requests.get("0" * 16, subject="K2")
    assert other.value.message.replace(mine.id, "") == none.value.message.replace("0" * 16, "")
    assert requests.of("K2") == []


def test_what_is_late_is_listed(requests: Requests) -> None:
    at = datetime(2026, 9, 1, 1, tzinfo=UTC)
    late = requests.open(Kind.ACCESS, "K1", at=at)
    requests.open(Kind.ACCESS, "K2", at=at + timedelta(days=30))
    last = datetime(2026, 9, 22, 15, 59, tzinfo=UTC)  # a minute to midnight in Shanghai
    assert requests.overdue(last) == []
    assert [r.id for r in requests.overdue(last + timedelta(minutes=1))] == [late.id]
    requests.done(late.id)
    assert requests.overdue(last + timedelta(minutes=1)) == []


def test_a_step_that_cant_be_logged_is_not_taken(tmp_path: Path) -> None:
    def no(step: str, request: Request) -> int:
        raise InputError("the disk is full")

    requests = Requests(tmp_path / "rights.db", CHINA, no)
    with pytest.raises(InputError, match="full"):
        requests.open(Kind.ACCESS, "K1")
    assert requests.all() == []


@pytest.mark.parametrize(
    "bad",
    [
        {"subject": ""},
        {"subject": "K\n1"},
        {"language": "fr"},
        {"note": "x" * 2001},
        {"note": "\x1b[2J"},
        {"at": datetime(2026, 1, 1)},
    ],
)
def test_a_malformed_request_is_refused(requests: Requests, bad: dict[str, object]) -> None:
    fields = {"kind": Kind.ACCESS, "subject": "K1"} | bad
    with pytest.raises(InputError):
        requests.open(**fields)  # type: ignore[arg-type]
    assert requests.all() == []


def test_a_hold_is_set_and_lifted_by_name(tmp_path: Path) -> None:
    holds = Holds(tmp_path / "rights.db")
    one = holds.set("civil case", "dora", "K1")
    everybody = holds.set("an audit of the authority", "dora")
    assert [h.id for h in holds.on("K1")] == [one, everybody]
    assert [h.id for h in holds.on("K2")] == [everybody]
    holds.lift(everybody, "emil")
    with pytest.raises(InputError, match="no hold"):
        holds.lift(everybody, "emil")
    assert holds.on("K2") == []
    assert holds.all()[1].lifted_by == "emil"
    with pytest.raises(InputError):
        holds.set("", "dora")


def test_the_two_clocks_and_a_clock_that_is_wrong() -> None:
    now = datetime(2026, 12, 1, tzinfo=UTC)
    assert limit("personal", now, 365) == now - timedelta(days=365)
    assert limit("record", now, 365) == now - timedelta(days=RECORD_DAYS)  # whatever the treaty says
    for clock, kept in (("personal", RECORD_DAYS + 1), ("personal", 0), ("other", 365)):
        with pytest.raises(InputError):
            limit(clock, now, kept)
    check_clock(now, None)
    check_clock(now, now + timedelta(minutes=4))
    for last, checked, code in (
        (timedelta(hours=1), True, "CLOCK_BEHIND"),
        (-timedelta(days=32), False, "CLOCK_AHEAD"),
    ):
        with pytest.raises(Refused) as no:
            check_clock(now, now + last, checked=checked)
        assert no.value.code == code
    check_clock(now, now - timedelta(days=32), checked=True)


def test_another_kind_of_file_is_no_register_of_rights(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "rights.db") as db:
        db.execute("CREATE TABLE other (x)")
    with pytest.raises(InputError, match="not a register of rights"):
        Holds(tmp_path / "rights.db")
