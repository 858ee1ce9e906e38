"""Coarser values: what is shown, which period, which band, which region, which square."""

from __future__ import annotations

import math
from datetime import date, datetime

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foedus.compliance.masking.coarsening import (
    age_bands,
    ages,
    grid,
    mask,
    periods,
    regions,
    shown,
    shown_email,
)
from foedus.errors import InputError


def column(*values: object) -> pd.Series:
    return pd.Series(list(values), dtype=object, name="c")


# ── for the screen ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("13800138000", "138****8000"),
        ("１３８００１３８０００", "138****8000"),
        (13800138000.0, "138****8000"),
        ("1234567", "*******"),
        ("12345678", "123*5678"),
        ("王", "*"),
        ("", ""),
        (None, ""),
    ],
)
def test_first_three_and_last_four(value: object, expected: str) -> None:
    assert shown(value) == expected


@given(st.text(), st.integers(0, 5), st.integers(0, 5))
def test_a_value_is_never_shown_whole(value: str, first: int, last: int) -> None:
    text = shown(value, first=first, last=last)
    assert text == "" or "*" in text
    assert text.replace("*", "") == "" or len(text.strip("*")) <= len(text)
    assert sum(a != "*" for a in text) <= first + last


def test_none_shown_is_none_shown() -> None:
    assert shown("secret", first=0, last=0) == "******" and shown("secret", first=0, last=1) == "*****t"
    for wrong in ({"first": -1}, {"last": -1}, {"mask": ""}, {"mask": "xx"}):
        with pytest.raises(InputError):
            shown("secret", **wrong)  # type: ignore[arg-type]


def test_emails_keep_their_domain() -> None:
    assert shown_email("alice@example.com") == "a****@example.com"
    assert shown_email("a@example.com") == "*@example.com" and shown_email("alice") == "*****"


def test_a_column_keeps_index_name_and_gaps() -> None:
    got = mask(pd.Series(["13800138000", None, "13800138000"], index=[5, 3, 5], name="tel"))
    assert list(got.index) == [5, 3, 5] and got.name == "tel"
    assert got.iloc[0] == got.iloc[2] == "138****8000" and pd.isna(got.iloc[1])
    with pytest.raises(InputError):
        mask(column(), first=-1)


# ── periods and ages ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "value",
    [
        "2024-05-31",
        "20240531",
        "2024年5月31日",
        date(2024, 5, 31),
        datetime(2024, 5, 31, 23, 59),
        pd.Timestamp("2024-05-31 12:00"),
    ],
)
def test_periods(value: object) -> None:
    got = [periods(column(value), to).iloc[0] for to in ("month", "quarter", "year", "decade")]
    assert got == ["2024-05", "2024-Q2", "2024", "2020s"]


def test_periods_of_a_column_of_timestamps() -> None:
    dates = pd.Series(pd.to_datetime(["2024-01-01", None, "1999-12-31"]))
    got = periods(dates, "quarter")
    assert got.iloc[0] == "2024-Q1" and pd.isna(got.iloc[1]) and got.iloc[2] == "1999-Q4"


def test_what_is_no_date_is_refused_and_not_shown() -> None:
    with pytest.raises(InputError, match="a value is no date") as caught:
        periods(column("2024-01-01", "my-secret"), "year")
    assert "secret" not in caught.value.diagnostics()
    with pytest.raises(InputError, match="'week' is not a period"):
        periods(column(), "week")  # type: ignore[arg-type]


def test_ages_turn_on_birthdays() -> None:
    got = ages(column("2000-03-01", "2000-02-29", "2000-02-28", None, "2026-02-28"), date(2026, 2, 28))
    assert str(got.dtype) == "Int64"
    assert [None if pd.isna(a) else int(a) for a in got] == [25, 25, 26, None, 0]
    with pytest.raises(InputError, match="after 2026-01-01"):
        ages(column("2026-01-02"), date(2026, 1, 1))


def test_bands() -> None:
    got = age_bands(pd.Series([0, 4, 5, 34.9, 89, 90, 117, None], name="age"))
    assert list(got[:7]) == ["0-4", "0-4", "5-9", "30-34", "85-89", "90+", "90+"] and pd.isna(got[7])
    assert list(age_bands(column("17", 18), width=1, top=18)) == ["17", "18+"]
    assert list(age_bands(ages(column("1990-01-01"), date(2026, 1, 1)), width=10)) == ["30-39"]


@pytest.mark.parametrize("age", [-1, 151, "old", float("inf")])
def test_what_is_no_age(age: object) -> None:
    with pytest.raises(InputError, match="0 to 150"):
        age_bands(column(age))


@pytest.mark.parametrize(("width", "top"), [(0, 90), (7, 90), (10, 5), (-5, 90)])
def test_bands_must_fit(width: int, top: int) -> None:
    with pytest.raises(InputError, match="multiple"):
        age_bands(column(), width=width, top=top)


@given(st.integers(0, 150), st.integers(1, 30), st.integers(1, 5))
def test_an_age_is_in_its_band(age: int, width: int, bands: int) -> None:
    (label,) = age_bands(pd.Series([age]), width=width, top=width * bands)
    if label.endswith("+"):
        assert age >= int(label[:-1]) == width * bands
    else:
        low, _, high = label.partition("-")
        assert int(low) <= age <= int(high or low) and int(high or low) - int(low) == width - 1


# ── places ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("digits", "expected"), [(2, "11"), (4, "1101"), (6, "110105")])
def test_regions(digits: int, expected: str) -> None:
    got = regions(column("11010519491231002X", "110105491231002", "１１０１０５", 110105.0, None), digits)  # type: ignore[arg-type]
    assert list(got[:4]) == [expected] * 4 and pd.isna(got[4])


@pytest.mark.parametrize("value", ["1101", "SW1A 1AA", "11010519491231"])
def test_what_has_no_region(value: str) -> None:
    with pytest.raises(InputError, match="no resident number"):
        regions(column(value), 2)


def test_other_digits() -> None:
    with pytest.raises(InputError, match="2, 4 or 6"):
        regions(column(), 3)  # type: ignore[arg-type]


def metres(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Along a sphere of the same degree (haversine)."""
    (y1, x1), (y2, x2) = (tuple(map(math.radians, p)) for p in (a, b))
    h = math.sin((y2 - y1) / 2) ** 2 + math.cos(y1) * math.cos(y2) * math.sin((x2 - x1) / 2) ** 2
    return 2 * 40_007_863 / (2 * math.pi) * math.asin(math.sqrt(min(1, h)))


@given(st.floats(-90, 90), st.floats(-180, 180), st.sampled_from([100.0, 500.0, 1000.0, 25_000.0]))
def test_a_point_is_within_its_square(lat: float, lon: float, side: float) -> None:
    (label,) = grid(pd.Series([lat]), pd.Series([lon]), metres=side)
    centre = tuple(map(float, label.split(",")))
    # Half a diagonal; near the poles rows narrow within a square, and labels have four digits.
    assert metres((lat, lon), centre) <= side * 1.1 + 20  # type: ignore[arg-type]
    again = grid(pd.Series([centre[0]]), pd.Series([centre[1]]), metres=side)
    assert list(again) == [label]


def test_neighbours_share_a_square_and_gaps_stay() -> None:
    lat, lon = pd.Series([31.2300, 31.2301, None, 31.5]), pd.Series([121.4700, 121.4701, 121.47, 121.47])
    got = grid(lat, lon, metres=1000)
    assert got[0] == got[1] != got[3] and pd.isna(got[2])
    assert list(grid(pd.Series(["31.23"]), pd.Series(["121.47"]), metres=1000)) == [got[0]]


def test_what_grid_refuses() -> None:
    one = pd.Series([0.0])
    for lat, lon, side, said in (
        (pd.Series([91.0]), one, 1000, "outside"),
        (one, pd.Series([181.0]), 1000, "outside"),
        (one, one, 9, "10 to"),
        (one, one, float("nan"), "10 to"),
        (one, pd.Series([0.0], index=[4]), 1000, "indexes"),
        (pd.Series(["secret"]), one, 1000, "not a number"),
    ):
        with pytest.raises(InputError, match=said):
            grid(lat, lon, metres=side)
