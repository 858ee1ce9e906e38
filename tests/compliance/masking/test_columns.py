"""Columns get suggestions with figures and a reason; sets of columns are ranked by whom they single out."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus.compliance.masking.columns import Level, Sort, Suggestion, suggest
from foedus.compliance.masking.identifiers import Kind, id_check
from foedus.compliance.masking.roles import Role
from foedus.compliance.masking.singling_out import quasi_identifiers
from foedus.compliance.masking.vocabulary import kind_named, public_named, trait_named
from foedus.errors import InputError

N = 300
rng = np.random.default_rng(5)


def resident(i: int) -> str:
    """Of 110000, which is a province and no county: nobody's number."""
    body = f"110000{date(1950, 1, 1) + timedelta(days=i):%Y%m%d}000"
    return body + id_check(body)


VALUES: dict[str, list[object]] = {
    "phone": [f"13800{i % 1000:03}500" for i in range(N)],
    "id": [resident(i) for i in range(N)],
    "email": [f"person{i}@example.com" for i in range(N)],
    "name": [f"{'王李张刘陈'[i % 5]}{('小明', '建国', '芳', '伟')[i % 4]}" for i in range(N)],
    "address": [f"浙江省某某市某某区无名路{i}号" for i in range(N)],
    "born": [date(1950, 1, 1) + timedelta(days=40 * i) for i in range(N)],
    "amount": [float(x) for x in rng.normal(100, 10, N).round(3)],
    "note": [f"客户说，过几天再联系他，第{i}次了，请不要忘记这件事情" for i in range(N)],
    "category": ["ABC"[i % 3] for i in range(N)],
    "order": [f"K{i:05}" for i in range(N)],
    "digits": [str(x) for x in rng.integers(10**10, 2 * 10**10, N)],
}


def only(name: str, values: list[object]) -> Suggestion:
    (found,) = suggest(pd.DataFrame({name: values}), today=date(2026, 11, 22))
    return found


# ── kinds ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "kind", "role", "level"),
    [
        ("phone", Kind.PHONE, Role.IDENTIFYING, Level.SENSITIVE),
        ("id", Kind.RESIDENT_ID, Role.IDENTIFYING, Level.SENSITIVE),
        ("email", Kind.EMAIL, Role.IDENTIFYING, Level.SENSITIVE),
        ("name", Kind.NAME, Role.IDENTIFYING, Level.SENSITIVE),
        ("address", Kind.ADDRESS, Role.IDENTIFYING, Level.SENSITIVE),
        ("born", Sort.DATE, Role.QUASI, Level.INTERNAL),
        ("amount", Sort.NUMBER, Role.INSENSITIVE, Level.INTERNAL),
        ("note", Sort.FREE_TEXT, Role.IDENTIFYING, Level.SENSITIVE),
        ("category", Sort.CATEGORY, Role.INSENSITIVE, Level.INTERNAL),
        ("order", Sort.KEY, Role.IDENTIFYING, Level.INTERNAL),
    ],
)
def test_values_alone_tell_the_kind(values: str, kind: Kind | Sort, role: Role, level: Level) -> None:
    found = only("x", VALUES[values])
    assert (found.kind, found.role, found.level) == (kind, role, level)
    assert found.share > 0.99 or kind in (Sort.NUMBER, Sort.FREE_TEXT)
    assert found.reason and found.looked == N and found.missing == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("手机号", Kind.PHONE),
        ("custMobile", Kind.PHONE),
        ("身份证号码", Kind.RESIDENT_ID),
        ("customer_name", Kind.NAME),
        ("收货人", Kind.NAME),
        ("E-Mail", Kind.EMAIL),
        ("dob", Kind.BIRTH_DATE),
        ("出生日期", Kind.BIRTH_DATE),
        ("zip_code", Kind.POSTCODE),
        ("邮编", Kind.POSTCODE),
        ("shippingAddress", Kind.ADDRESS),
        ("银行卡", Kind.CARD),
        ("product_name", None),
        ("page", None),
        ("panel", None),
        ("hotel", None),
        (7, None),
    ],
)
def test_what_a_name_says(name: object, kind: Kind | None) -> None:
    assert kind_named(name) is kind


def test_what_names_say_of_traits() -> None:
    assert trait_named("annual_salary") == (Role.SENSITIVE, "money")
    assert trait_named("民族") == (Role.SENSITIVE, "belief or origin")
    assert trait_named("Gender") == (Role.QUASI, "sex")
    assert trait_named("openId") == (Role.IDENTIFYING, "device or account")
    assert trait_named("average") is None and trait_named("traces") is None
    assert public_named("sku") and not public_named("customer")


def test_a_name_without_values_to_bear_it_out_is_still_suggested() -> None:
    found = only("手机", [f"n{i}" for i in range(N)])
    assert (found.kind, found.role, found.share) == (Kind.PHONE, Role.IDENTIFYING, 0)
    assert "0 of 300" in found.reason and "name" in found.reason


def test_a_yes_or_no_about_phones_is_no_phone() -> None:
    assert only("PhoneService", ["Yes", "No"] * 150).kind is Sort.CATEGORY
    assert only("PhoneService", [*["Yes", "No"] * 150, "13800100500"]).kind is Kind.PHONE


def test_a_customers_number_is_identifying_by_its_name() -> None:
    for name in ("customerID", "cust_id", "客户号", "会员编号"):
        assert only(name, ["a", "b"]).role is Role.IDENTIFYING


def test_values_outvote_a_name() -> None:
    found = only("email", VALUES["id"])
    assert found.kind is Kind.RESIDENT_ID and "though its name" in found.reason


def test_a_birth_date_is_one_by_its_name() -> None:
    assert only("生日", VALUES["born"]).kind is Kind.BIRTH_DATE
    assert only("signed", VALUES["born"]).kind is Sort.DATE


def test_random_digits_are_not_phones() -> None:
    """Half of the strings of eleven digits from 1 pass as phones: no more than by chance."""
    found = only("x", VALUES["digits"])
    assert found.kind is Sort.KEY


@pytest.mark.parametrize("kept", [3, 30])
def test_phones_among_notes_are_found(kept: int) -> None:
    values = list(VALUES["note"])
    values[:kept] = [f"请回电 13800{i:03}500，谢谢" for i in range(kept)]
    found = only("备注", values)
    assert found.kind is Sort.FREE_TEXT and found.level is Level.SENSITIVE
    assert found.share == kept / N and "hold a phone" in found.reason


def test_a_few_resident_numbers_in_a_column_of_something_else_are_found() -> None:
    found = only("x", [*VALUES["id"][:6], *VALUES["order"][6:]])
    assert found.kind is Kind.RESIDENT_ID and found.share == 6 / N and found.role is Role.IDENTIFYING


def test_a_few_phones_in_a_column_of_something_else_are_found() -> None:
    found = only("x", [*VALUES["phone"][:9], *VALUES["order"][9:]])
    assert found.kind is Kind.PHONE and found.share == 9 / N and "not clear" in found.reason
    assert only("x", [*VALUES["digits"][:99], *VALUES["order"][99:]]).kind is Sort.KEY


def test_public_is_only_what_a_name_says_of_goods() -> None:
    assert only("product", VALUES["category"]).level is Level.PUBLIC
    assert only("product", VALUES["phone"]).level is Level.SENSITIVE


# ── figures, sampling, hostile tables ────────────────────────────────────────────────────────────


def test_figures_of_a_column_with_gaps() -> None:
    found = only("x", ["a", "a", "b", None, "", float("nan"), "  ", "c"])
    assert (found.uniqueness, found.missing, found.looked) == (3 / 4, 1 / 2, 4)


def test_equal_seeds_look_at_equal_values() -> None:
    frame = pd.DataFrame({"x": [*VALUES["id"], *VALUES["order"]] * 5})
    first = suggest(frame, rows=50, seed=3)
    assert first == suggest(frame, rows=50, seed=3) and first[0].looked == 50
    assert len({suggest(frame, rows=50, seed=s)[0].share for s in range(8)}) > 1


def test_dressed_and_mixed_values_count() -> None:
    dressed = [
        "+86 13800100500",
        "１３８００１００５００",
        "\u200f13800100500",
        13800100500,
        13800100500.0,
        " 13800100500\t",
        None,
    ]
    found = only("x", dressed)
    assert found.kind is Kind.PHONE and found.share == 1 and found.uniqueness == pytest.approx(2 / 6)


def test_a_column_of_floats_that_were_phones() -> None:
    found = only("x", [13800100500.0, float("nan"), 13800200500.0, 13800210500.0])
    assert found.kind is Kind.PHONE and found.missing == 0.25


def test_empty_tables_and_columns() -> None:
    assert suggest(pd.DataFrame()) == []
    assert only("x", []).kind is Sort.EMPTY and only("x", [None, None]).missing == 1
    assert only("手机", [None]).kind is Kind.PHONE


def test_columns_of_one_name_and_of_no_text_each_get_a_suggestion() -> None:
    frame = pd.DataFrame([[1, 2, True, [1]], [3, 4, False, [2]]], columns=["a", "a", 7, ("b", 1)])
    assert [s.column for s in suggest(frame)] == ["a", "a", "7", "('b', 1)"]


def test_what_is_no_table() -> None:
    with pytest.raises(InputError, match="DataFrame"):
        suggest([1])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rows"):
        suggest(pd.DataFrame(), rows=0)


def test_no_reason_shows_a_value() -> None:
    frame = pd.DataFrame(VALUES)
    for found in suggest(frame):
        assert not any(str(v) in found.reason for v in frame[found.column] if len(str(v)) > 3)


# ── singling out ─────────────────────────────────────────────────────────────────────────────────


def brute(frame: pd.DataFrame, group: tuple[str, ...]) -> int:
    rows = [tuple(row) for row in frame[list(group)].itertuples(index=False)]
    return sum(rows.count(row) == 1 for row in rows)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from(["p", "q", "r", ""])] * 4), min_size=1, max_size=25))
def test_the_count_is_the_one_by_hand(rows: list[tuple[str, ...]]) -> None:
    frame = pd.DataFrame(rows, columns=list("abcd"))
    found = {s.columns: s.rows for s in quasi_identifiers(frame, list("abcd"), top=100)}
    for size in (1, 2, 3):
        for group in combinations("abcd", size):
            fewer = max((brute(frame, part) for part in combinations(group, size - 1) if part), default=0)
            assert found.get(group, fewer) == brute(frame, group)
            assert (group in found) == (brute(frame, group) > fewer)


def test_the_best_set_comes_first() -> None:
    n = 60
    frame = pd.DataFrame(
        {
            "sex": [i % 2 for i in range(n)],
            "age": [i // 2 % 6 for i in range(n)],
            "city": [i // 12 for i in range(n)],
        }
    )
    first, *_ = quasi_identifiers(frame)
    assert (first.columns, first.rows, first.share) == (("sex", "age", "city"), n, 1.0)


def test_what_singling_out_refuses() -> None:
    frame = pd.DataFrame([[1, 2, 3]], columns=["a", "b", "b"])
    for columns, said in ((["x"], "no such column"), (["b"], "two columns")):
        with pytest.raises(InputError, match=said):
            quasi_identifiers(frame, columns)
    with pytest.raises(InputError, match="1 to 3"):
        quasi_identifiers(frame, ["a"], most=4)
    wide = pd.DataFrame([range(21)], columns=[f"c{i}" for i in range(21)])
    with pytest.raises(InputError, match="21 columns"):
        quasi_identifiers(wide, list(wide.columns))
    assert quasi_identifiers(frame.iloc[:0], ["a"]) == []
