"""What identifies a person, recognised by its own rules: numbers with check digits, phones, e-mail, dates.

Every function takes one value of any type and returns a `Finding`, or None. A finding is evidence, not a
verdict: `chance` says which share of other strings *of the same shape* passes as well, so that whoever
counts findings over a column knows what the count is worth. It is computed where a checksum decides,
measured where a list or metadata decides (100,000 random strings; the tests measure again), and 1 where
there is nothing but the shape. Names and addresses: `names`.

Nothing is looked up anywhere: a number that passes need not have been issued.

Sources: GB 11643-1999 (resident identity numbers), GB/T 2260 (regions), GB 32100-2015 (credit codes) with
GB 11714 inside, ISO/IEC 7812-1 (cards: Luhn), ISO 13616 (IBAN), E.164 by Google's libphonenumber.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any

import pandas as pd
import phonenumbers

from .values import clean

OLDEST = 130  # years; the oldest age on record is 122


class Kind(StrEnum):
    """What a value is."""

    RESIDENT_ID = "resident_id"
    PHONE = "phone"
    EMAIL = "email"
    CARD = "card"
    IBAN = "iban"
    CREDIT_CODE = "credit_code"
    NAME = "name"
    ADDRESS = "address"
    BIRTH_DATE = "birth_date"
    POSTCODE = "postcode"


@dataclass(frozen=True)
class Finding:
    """One value recognised.

    Args:
        kind: as what.
        form: in which of its forms ("18 digits", "mobile, CN", "Visa").
        chance: the share of strings of the same shape, but of another meaning, that pass too, in [0, 1].
        canonical: the value in the one form in which equals are equal. Personal data: not in `repr`.
    """

    kind: Kind
    form: str
    chance: float
    canonical: str = field(repr=False)


# ── resident identity numbers ────────────────────────────────────────────────────────────────────

_PROVINCES = (
    "11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65 71 81 82 83"
)
PROVINCES = frozenset(_PROVINCES.split())
_ID_WEIGHTS = tuple(2**i % 11 for i in range(17, 0, -1))
_ID_CHECKS = "10X98765432"
_ID_SHAPE = re.compile(r"[0-9]{17}[0-9X]|[0-9]{15}")
# 35 of 100 provinces, and again behind a 9; the days of 130 years among 10^8; one check character of 11.
_CHANCE_18 = 1.1 * len(PROVINCES) / 100 * OLDEST * 365.2425 / 1e8 / 11
_CHANCE_15 = len(PROVINCES) / 100 * 365.2425 * 100 / 1e6


def id_check(first17: str) -> str:
    """The check character of a resident identity number's first 17 digits (GB 11643, ISO 7064 MOD 11-2)."""
    return _ID_CHECKS[sum(w * int(d) for w, d in zip(_ID_WEIGHTS, first17, strict=True)) % 11]


def id_shape(value: Any) -> str:
    """A value as 18 characters if it has a resident number's shape, 15 digits made 18; else "". Nothing is checked."""
    text = clean(value).upper().replace(" ", "").replace("-", "")
    if not text.isascii() or not _ID_SHAPE.fullmatch(text):
        return ""
    if len(text) == 18:
        return text
    body = text[:6] + "19" + text[6:]
    return body + id_check(body)


def resident_id(value: Any, *, today: date | None = None) -> Finding | None:
    """A mainland resident identity number of 18 characters or, as until 1999, 15 digits.

    Province, birth date (at most 130 years before `today`) and check character are checked; counties are
    not, since their codes change yearly. The 15 digits have no check. Also the number of a foreigner's permanent
    residence card of 2023: 9, province, country, and the rest alike. Canonical: 18 characters.
    """
    text = id_shape(value)
    if not text:
        return None
    long = sum(c.isalnum() for c in clean(value)) == 18
    foreigner = long and text[0] == "9"
    if (text[1:3] if foreigner else text[:2]) not in PROVINCES:
        return None
    if id_check(text[:17]) != text[17] or not _plausible(_day(text[6:14]), today):
        return None
    if not long:
        return Finding(Kind.RESIDENT_ID, "15 digits, the form until 1999", _CHANCE_15, text)
    form = "18 characters, foreign permanent resident" if foreigner else "18 characters"
    return Finding(Kind.RESIDENT_ID, form, _CHANCE_18, text)


# ── phones ───────────────────────────────────────────────────────────────────────────────────────

_CN_MOBILE = re.compile(r"1[3-9][0-9]{9}")
_PHONE_SHAPE = re.compile(r"(?:\+|00)?[0-9(][0-9 ().\-/]{5,22}[0-9]")
_KINDS = {
    phonenumbers.PhoneNumberType.MOBILE: "mobile",
    phonenumbers.PhoneNumberType.FIXED_LINE: "fixed line",
    phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE: "fixed line or mobile",
}
# Of 100,000 random strings each: 1 and ten digits; + and eleven digits; 0 and ten digits.
_CHANCE_MOBILE, _CHANCE_PLUS, _CHANCE_FIXED = 0.53, 0.20, 0.38


def e164(value: Any, *, region: str = "CN") -> str:
    """A phone number in E.164 (``+8613800138000``); "" if it is none by its length and form.

    Whether it lies in a range that is in use is not asked: ranges are opened every year.

    Args:
        region: the country of numbers that begin with neither ``+`` nor ``00``, ISO 3166-1 alpha-2.
    """
    text = clean(value)
    if region == "CN" and len(text) == 11 and _CN_MOBILE.fullmatch(text):
        return "+86" + text
    number = _parsed(text, region)
    if number is None:
        return ""
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def _parsed(text: str, region: str) -> phonenumbers.PhoneNumber | None:
    if not text.isascii() or not _PHONE_SHAPE.fullmatch(text):
        return None
    if text.startswith("00"):
        text = "+" + text[2:]
    bare = re.sub(r"[^0-9+]", "", text)
    if region == "CN":
        if re.fullmatch(r"86" + _CN_MOBILE.pattern, bare):
            bare = "+" + bare
        # Beijing's 10 without its 0 would make a phone of every order number that begins so.
        if not re.match(r"\+|0|1[3-9]|[48]00", bare):
            return None
    try:
        number = phonenumbers.parse(bare, region)
    except phonenumbers.NumberParseException:
        return None
    return number if phonenumbers.is_possible_number(number) else None


def phone(value: Any, *, region: str = "CN") -> Finding | None:
    """A phone number in a range in use, by libphonenumber's metadata; canonical: E.164.

    Args:
        region: as in `e164`.
    """
    text = clean(value)
    number = _parsed(text, region)
    if number is None or not phonenumbers.is_valid_number(number):
        return None
    canonical = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    kind = _KINDS.get(phonenumbers.number_type(number), "other")
    where = phonenumbers.region_code_for_number(number) or "international"
    if text.startswith(("+", "00")):
        chance = _CHANCE_PLUS
    else:
        chance = _CHANCE_MOBILE if kind == "mobile" else _CHANCE_FIXED
    return Finding(Kind.PHONE, f"{kind}, {where}", chance, canonical)


# ── e-mail ───────────────────────────────────────────────────────────────────────────────────────

_EMAIL = re.compile(
    r"([\w!#$%&'*+/=?^`{|}~-]+(?:\.[\w!#$%&'*+/=?^`{|}~-]+)*)@((?:[^\W_](?:(?:[^\W_]|-){0,61}[^\W_])?\.)+[^\W\d_](?:[^\W_]|-){0,61}[^\W_])"
)


def email(value: Any) -> Finding | None:
    """An e-mail address: dot-atom, a domain of two labels and more (RFC 5321 lengths); no quotes, no comments.

    Canonical: NFKC and case folded, both sides. The standard lets case matter before the @, no provider does. Dots and
    ``+tags`` stay: who ignores them differs from provider to provider.
    """
    canonical = email_form(value)
    return Finding(Kind.EMAIL, "address", 0.0, canonical) if canonical else None


def email_form(value: Any) -> str:
    """An e-mail address as `email` makes it canonical; "" if it is none."""
    text = clean(value)
    if "@" not in text or len(text) > 254:
        return ""
    found = _EMAIL.fullmatch(text)
    if not found or len(found[1]) > 64:
        return ""
    if text.isascii():
        return text.lower()
    try:
        return f"{found[1].casefold()}@{found[2].encode('idna').decode().lower()}"
    except UnicodeError:
        return ""


# ── cards, accounts, organisations ───────────────────────────────────────────────────────────────

_ISSUERS = (  # name, prefixes as a pattern, lengths
    ("UnionPay", re.compile(r"62|81"), range(16, 20)),
    ("Visa", re.compile(r"4"), (13, 16, 19)),
    ("Mastercard", re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    ("American Express", re.compile(r"3[47]"), (15,)),
    ("JCB", re.compile(r"35(2[89]|[3-8])"), range(16, 20)),
    ("Diners Club", re.compile(r"30[0-5]|36|3[89]"), range(14, 20)),
    ("Discover", re.compile(r"6011|64[4-9]|65"), range(16, 20)),
    ("Maestro", re.compile(r"5018|5020|5038|5893|6304|6759|676[1-3]"), range(12, 20)),
    ("Mir", re.compile(r"220[0-4]"), range(16, 20)),
)
_CHANCE_CARD = 0.03  # one of ten by Luhn, and at 16 digits 29 % of prefixes


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others (ISO/IEC 7812-1, annex B)."""
    doubled = (sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def card(value: Any) -> Finding | None:
    """A payment card's number: an issuer's range and length, and Luhn; canonical: its digits.

    Chinese debit cards outside 62 and 81 (older, of one bank each) are not known here.
    """
    text = clean(value)
    if not text.isascii():
        return None
    digits = re.sub(r"(?<=[0-9])[ -](?=[0-9])", "", text)
    if not 12 <= len(digits) <= 19 or not digits.isdigit() or not luhn(digits):
        return None
    for issuer, prefix, lengths in _ISSUERS:
        if len(digits) in lengths and prefix.match(digits):
            return Finding(Kind.CARD, issuer, _CHANCE_CARD, digits)
    return None


# ISO 13616 registry: country and length.
_IBANS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18"
    " FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20"
    " LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SD18"
    " SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20"
)
_IBAN_LENGTHS = {pair[:2]: int(pair[2:]) for pair in _IBANS.split()}


def iban(value: Any) -> Finding | None:
    """An international bank account number: country, its length, MOD 97; canonical: upper case without spaces."""
    text = re.sub(r"[ -]", "", clean(value)).upper()
    if not re.fullmatch(r"[A-Z]{2}[0-9]{2}[0-9A-Z]{11,30}", text) or len(text) != _IBAN_LENGTHS.get(text[:2]):
        return None
    if int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 != 1:
        return None
    return Finding(Kind.IBAN, text[:2], 1 / 97, text)


_CODE_ALPHABET = "0123456789ABCDEFGHJKLMNPQRTUWXY"
_CODE_WEIGHTS = tuple(pow(3, i, 31) for i in range(17))
_ORGANISATION_WEIGHTS = (3, 7, 9, 10, 5, 8, 4, 2)


def credit_code(value: Any) -> Finding | None:
    """A unified social credit code: both check characters (of GB 32100 and of the GB 11714 code within), province.

    It names an organisation; with 92 at its head a sole trader, who is a person. Canonical: upper case.
    """
    text = clean(value).upper()
    if not re.fullmatch(rf"[1-9ANY][1-9][0-9]{{6}}[{_CODE_ALPHABET}]{{10}}", text):
        return None
    if text[2:4] not in PROVINCES and text[2:4] != "10":  # 100000: registered with the ministries
        return None
    inner = sum(w * int(c, 36) for w, c in zip(_ORGANISATION_WEIGHTS, text[8:16], strict=True))
    if "0123456789X"[-inner % 11] != text[16]:
        return None
    outer = sum(w * _CODE_ALPHABET.index(c) for w, c in zip(_CODE_WEIGHTS, text[:17], strict=True))
    if _CODE_ALPHABET[-outer % 31] != text[17]:
        return None
    form = "sole trader" if text.startswith("92") else "organisation"
    return Finding(Kind.CREDIT_CODE, form, len(PROVINCES) / 100 / 11 / 31, text)


# ── dates of birth, postcodes: only shapes ───────────────────────────────────────────────────────

_DATE = re.compile(r"([0-9]{4})([-/.年]?)([0-9]{1,2})(?:[-/.月]?)([0-9]{1,2})日?(?:[T ][0-9:.+Z-]*)?")
# The first two digits of China's postcodes, by province.
_POSTAL = frozenset(
    f"{n:02}" for low, high in ((1, 7), (10, 16), (20, 35), (40, 57), (61, 86)) for n in range(low, high + 1)
)


def day(value: Any) -> date | None:
    """A calendar date written year first (ISO 8601, 20240131, 2024/1/31, 2024年1月31日), or of a date's type."""
    if isinstance(value, datetime):
        return None if value is pd.NaT else value.date()
    if isinstance(value, date):
        return value
    return _day(clean(value))


def birth_date(value: Any, *, today: date | None = None) -> Finding | None:
    """A date in the last 130 years: whether it is anybody's birth, only its column can tell. Canonical: ISO 8601."""
    found = day(value)
    if not _plausible(found, today) or found is None:
        return None
    return Finding(Kind.BIRTH_DATE, "date", 1.0, found.isoformat())


def postcode(value: Any) -> Finding | None:
    """A postcode: six digits (China), or the letters and digits of the United Kingdom or Canada, or a US ZIP+4.

    A bare US ZIP, five digits, is any number: not recognised.
    """
    text = clean(value).upper()
    if re.fullmatch(r"[0-9]{6}", text):
        return Finding(Kind.POSTCODE, "CN", len(_POSTAL) / 100, text) if text[:2] in _POSTAL else None
    for country, shape in (
        ("GB", r"[A-Z]{1,2}[0-9][0-9A-Z]? ?[0-9][A-Z]{2}"),
        ("CA", r"[A-Z][0-9][A-Z] ?[0-9][A-Z][0-9]"),
        ("US", r"[0-9]{5}-[0-9]{4}"),
    ):
        if re.fullmatch(shape, text):
            return Finding(Kind.POSTCODE, country, 1.0, text.replace(" ", ""))
    return None


def _day(text: str) -> date | None:
    found = _DATE.fullmatch(text)
    if not found or (not found[2] and not re.match(r"[0-9]{8}(?![0-9])", text)):
        return None
    try:
        return date(int(found[1]), int(found[3]), int(found[4]))
    except ValueError:
        return None


def _plausible(born: date | None, today: date | None) -> bool:
    now = today or datetime.now(UTC).date()
    return born is not None and born <= now and now.year - born.year <= OLDEST
