"""What identifies a person is recognised in every dress it comes in, and by chance no more often than is said.

No number here is a living person's: resident numbers are GB 11643's own example or of region 99…, which is none; phones
are China Mobile's message centres, US 555-01xx and Ofcom's numbers for drama; cards are the issuers' test numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foedus.compliance.masking import identifiers as ids
from foedus.compliance.masking.identifiers import Finding, Kind, id_check
from foedus.compliance.masking.names import address, person_name
from foedus.compliance.masking.values import clean, distinct
from foedus.errors import InputError

TODAY = date(2026, 11, 22)
STANDARD = "11010519491231002X"  # GB 11643-1999, its example
TESTS: list[Callable[[Any], Finding | None]] = [
    ids.resident_id,
    ids.phone,
    ids.email,
    ids.card,
    ids.iban,
    ids.credit_code,
    ids.birth_date,
    ids.postcode,
    person_name,
    address,
]


def canonical(found: Finding | None) -> str | None:
    return None if found is None else found.canonical


# ── values as text ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("１３８００１３８０００", "13800138000"),
        ("\u200f13800138000\u202c", "13800138000"),
        ("\ufeff a\u200bb ", "ab"),
        ("\u3000王\u3000", "王"),
        (13800138000.0, "13800138000"),
        (np.int64(7), "7"),
        (1.5, "1.5"),
        (None, ""),
        (float("nan"), ""),
        (np.float32("nan"), ""),
        (pd.NA, ""),
        (pd.NaT, ""),
        (b"13800138000", ""),
    ],
)
def test_a_value_is_text_without_its_dress(value: object, text: str) -> None:
    assert clean(value) == text


def test_an_id_that_became_a_float_is_not_one_any_more() -> None:
    assert ids.resident_id(float("110105194912310021")) is None
    assert ids.id_shape(float("110105194912310021")) == ""


def test_a_list_is_not_a_value() -> None:
    with pytest.raises(InputError, match="is a list"):
        distinct(pd.Series([[1], [2]], name="x"))


@given(st.one_of(st.text(), st.floats(), st.integers(), st.binary(), st.none(), st.datetimes()))
def test_nothing_makes_a_recogniser_fail(value: object) -> None:
    for test in TESTS:
        found = test(value)
        assert found is None or (0 <= found.chance <= 1 and found.canonical)


def test_a_finding_does_not_print_the_value() -> None:
    assert STANDARD not in repr(ids.resident_id(STANDARD))


# ── resident identity numbers ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text", [STANDARD, STANDARD.lower(), " 110105 19491231 002x ", "１１０１０５１９４９１２３１００２Ｘ"]
)
def test_the_standards_example_is_a_resident_number(text: str) -> None:
    found = ids.resident_id(text, today=TODAY)
    assert found is not None and (found.kind, found.canonical) == (Kind.RESIDENT_ID, STANDARD)
    assert found.chance < 1e-4


def test_an_implausible_birth_is_no_resident_number() -> None:
    other_example = "440524188001010014"  # GB 11643's other one: born 1880
    assert ids.resident_id(other_example, today=TODAY) is None
    assert canonical(ids.resident_id(other_example, today=date(1999, 1, 1))) == other_example
    assert ids.resident_id(STANDARD, today=date(1949, 12, 30)) is None


def test_fifteen_digits_are_the_old_form_of_eighteen() -> None:
    found = ids.resident_id("110105491231002", today=TODAY)
    assert found is not None and found.canonical == STANDARD and found.chance > 0.01


def with_check(first17: str) -> str:
    return first17 + id_check(first17)


def test_region_date_and_check_each_count() -> None:
    assert ids.resident_id(with_check("99000019491231002"), today=TODAY) is None  # no such province
    assert ids.resident_id(with_check("11010519490231002"), today=TODAY) is None  # 31 February
    for wrong in "0123456789":
        assert ids.resident_id(STANDARD[:17] + wrong, today=TODAY) is None


def test_a_foreigners_card_is_known_by_its_nine() -> None:
    found = ids.resident_id(with_check("91100019491231000"), today=TODAY)  # 000 is no country
    assert found is not None and "foreign" in found.form
    assert ids.resident_id("911000491231000", today=TODAY) is None


@given(st.text("0123456789", min_size=17, max_size=17), st.integers(0, 16), st.integers(1, 9))
def test_the_check_finds_any_single_wrong_digit(digits: str, place: int, by: int) -> None:
    wrong = digits[:place] + str((int(digits[place]) + by) % 10) + digits[place + 1 :]
    assert id_check(wrong) != id_check(digits)


# ── phones ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "value",
    [
        "13800100500",
        "+86 138 0010 0500",
        "0086-138-0010-0500",
        "8613800100500",
        "(+86)13800100500".replace("(+86)", "+86"),
        "１３８００１００５００",
        "\u202a+8613800100500\u202c",
        13800100500,
        13800100500.0,
    ],
)
def test_a_mobile_in_every_dress_is_one_number(value: object) -> None:
    found = ids.phone(value)
    assert found is not None and (found.form, found.canonical) == ("mobile, CN", "+8613800100500")
    assert ids.e164(value) == found.canonical


@pytest.mark.parametrize(
    ("value", "region", "expected"),
    [
        ("+1 202-555-0143", "CN", "+12025550143"),
        ("(202) 555-0143", "US", "+12025550143"),
        ("+44 20 7946 0123", "CN", "+442079460123"),
        ("020 7946 0123", "GB", "+442079460123"),
    ],
)
def test_phones_of_elsewhere(value: str, region: str, expected: str) -> None:
    assert canonical(ids.phone(value, region=region)) == expected


@pytest.mark.parametrize(
    "value", ["12345678901", "1380010050", "20240131", "10012345678", "+", "", "0", "phone", "1" * 40, "١٣٨"]
)
def test_what_is_no_phone(value: str) -> None:
    assert ids.phone(value) is None


# ── e-mail, cards, accounts, organisations ───────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Alice.Example+news@Example.COM", "alice.example+news@example.com"),
        ("ａｌｉｃｅ@example.com", "alice@example.com"),
        ("用户@例子.example", "用户@xn--fsqu00a.example"),
        (" alice@example.com\n", "alice@example.com"),
    ],
)
def test_an_email_has_one_form(value: str, expected: str) -> None:
    assert canonical(ids.email(value)) == expected == ids.email_form(value)


@pytest.mark.parametrize(
    "value",
    [
        "a@b",
        "@example.com",
        "a..b@example.com",
        ".a@example.com",
        "a@-x.com",
        "a b@example.com",
        "a@1.2.3.4",
        "a" * 65 + "@x.org",
    ],
)
def test_what_is_no_email(value: str) -> None:
    assert ids.email(value) is None


@pytest.mark.parametrize(
    ("value", "issuer"),
    [
        ("4111 1111 1111 1111", "Visa"),
        ("5555-5555-5555-4444", "Mastercard"),
        ("2223003122003222", "Mastercard"),
        ("378282246310005", "American Express"),
        ("6200000000000005", "UnionPay"),
        ("3530111333300000", "JCB"),
        ("6011111111111117", "Discover"),
        ("30569309025904", "Diners Club"),
    ],
)
def test_issuers_test_cards(value: str, issuer: str) -> None:
    found = ids.card(value)
    assert found is not None and found.form == issuer
    assert ids.card(value[:-1] + str((int(value[-1]) + 1) % 10)) is None
    assert ids.card("9" + value[1:]) is None


@pytest.mark.parametrize("value", ["GB82 WEST 1234 5698 7654 32", "de89370400440532013000"])
def test_ibans_of_the_registry(value: str) -> None:
    found = ids.iban(value)
    assert found is not None and " " not in found.canonical
    assert ids.iban(value[:-1] + "9") is None and ids.iban(value + "0") is None


def test_the_standards_credit_code() -> None:
    example = "91350100M000100Y43"  # GB 32100-2015, its example
    found = ids.credit_code(example.lower())
    assert found is not None and (found.form, found.canonical) == ("organisation", example)
    assert not any(ids.credit_code(example[:-1] + c) for c in "0124567890ABCDXY")
    assert ids.credit_code(example.replace("Y4", "X4")) is None


# ── dates and postcodes ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "value",
    [
        "1990-02-08",
        "1990/2/8",
        "1990年2月8日",
        "19900208",
        "1990.02.08 10:00:00",
        datetime(1990, 2, 8, tzinfo=UTC),
        date(1990, 2, 8),
    ],
)
def test_a_date_has_one_form(value: object) -> None:
    assert canonical(ids.birth_date(value, today=TODAY)) == "1990-02-08"


@pytest.mark.parametrize(
    "value", ["1990-02-30", "199028", "1790-01-01", "2090-01-01", "8/2/1990", "1990", pd.NaT, ""]
)
def test_what_is_no_birth(value: object) -> None:
    assert ids.birth_date(value, today=TODAY) is None


def test_postcodes() -> None:
    assert [canonical(ids.postcode(v)) for v in ("100000", "SW1A 1AA", "k1a 0b1", "12345-6789")] == [
        *("100000", "SW1A1AA", "K1A0B1", "12345-6789"),
    ]
    assert not any(ids.postcode(v) for v in ("990000", "12345", "1000000", ""))


# ── names and addresses ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "value",
    [
        "王小明",
        "李 四",
        "欧阳明日",
        "诸葛亮",
        "阿依古丽·买买提",
        "Dr. Ada Lovelace",
        "VAN DER BERG, Jan",
        "O’Neil Mary-Ann",
        "J. Smith",
    ],
)
def test_names(value: str) -> None:
    found = person_name(value)
    assert found is not None and found.kind is Kind.NAME


@pytest.mark.parametrize(
    "value",
    [
        "有限公司",
        "苹果手机",
        "the quick fox",
        "A1 B2",
        "王",
        "a",
        "Apple",
        "王小明先生女士",
        "13800138000",
        "",
    ],
)
def test_what_is_no_name(value: str) -> None:
    assert person_name(value) is None


@pytest.mark.parametrize(
    "value",
    [
        "浙江省杭州市西湖区文三路 0 号",
        "北京市朝阳区无名街道某某小区9号楼9单元901室",
        "某某路88号3栋202室",
        "内蒙古自治区呼和浩特市新城区",
        "10 Nowhere Street, Springfield",
        "Musterstraße 99, 12345 Musterstadt",
        "99 rue de l'Exemple",
        "Calle Mayor 99",
        "P.O. Box 123",
    ],
)
def test_addresses(value: str) -> None:
    found = address(value)
    assert found is not None and found.kind is Kind.ADDRESS and found.chance <= 0.001


@pytest.mark.parametrize(
    "value",
    ["杭州市", "超市", "他在路上走了一会儿", "2 apples a day", "street", "12 months in the way of", ""],
)
def test_what_is_no_address(value: str) -> None:
    assert address(value) is None


# ── the shares that findings state ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("test", "head", "digits", "stated"),
    [
        (ids.phone, "1", 10, ids._CHANCE_MOBILE),
        (ids.phone, "+", 11, ids._CHANCE_PLUS),
        (ids.phone, "0", 10, ids._CHANCE_FIXED),
        (ids.card, "", 16, ids._CHANCE_CARD),
        (ids.resident_id, "", 15, ids._CHANCE_15),
    ],
)
def test_chance_is_what_is_stated(
    test: Callable[[str], Finding | None], head: str, digits: int, stated: float
) -> None:
    draw = random.Random(7)
    n = 8000
    passed = sum(test(f"{head}{draw.randrange(10**digits):0{digits}}") is not None for _ in range(n))
    assert abs(passed / n - stated) < 5 * (stated / n) ** 0.5 + 0.02


def test_chance_of_a_resident_number_is_that_of_its_parts() -> None:
    """Measured in two steps: 1.5e-5 in one would take millions of draws."""
    draw = random.Random(7)
    n = 20000
    dated = [f"{draw.randrange(19, 21)}{draw.randrange(100):02}{draw.randrange(10**4):04}" for _ in range(n)]
    passed = sum(ids.resident_id(with_check(f"110105{d}002"), today=TODAY) is not None for d in dated)
    provinces, eleven, centuries = 1.1 * len(ids.PROVINCES) / 100, 11, 50
    assert passed / n / centuries * provinces / eleven == pytest.approx(ids._CHANCE_18, rel=0.2)
