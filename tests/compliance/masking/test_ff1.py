"""FF1 is NIST's, and what keeps a format keeps it."""

from __future__ import annotations

import pickle
from datetime import date, timedelta

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from foedus.compliance.masking.ff1 import DIGITS, FF1, MobileNumbers, ResidentIds
from foedus.compliance.masking.identifiers import id_check, resident_id
from foedus.errors import InputError

LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
KEY = "2B7E151628AED2A6ABF7158809CF4F3CEF4359D8D580AA4F7F036D6F04FC6A94"
TEN, ELEVEN = "39383736353433323130", "3737373770717273373737"

# NIST, "FF1 samples" to SP 800-38G: bytes of the key, alphabet, tweak, plaintext, ciphertext.
SAMPLES = [
    (16, DIGITS, "", "0123456789", "2433477484"),
    (16, DIGITS, TEN, "0123456789", "6124200773"),
    (16, LETTERS, ELEVEN, "0123456789abcdefghi", "a9tv40mll9kdu509eum"),
    (24, DIGITS, "", "0123456789", "2830668132"),
    (24, DIGITS, TEN, "0123456789", "2496655549"),
    (24, LETTERS, ELEVEN, "0123456789abcdefghi", "xbj3kv35jrawxv32ysr"),
    (32, DIGITS, "", "0123456789", "6657667009"),
    (32, DIGITS, TEN, "0123456789", "1001623463"),
    (32, LETTERS, ELEVEN, "0123456789abcdefghi", "xs8a0azh2avyalyzuwd"),
]


@pytest.mark.parametrize(("size", "alphabet", "tweak", "plain", "secret"), SAMPLES)
def test_nists_samples(size: int, alphabet: str, tweak: str, plain: str, secret: str) -> None:
    cipher = FF1(bytes.fromhex(KEY)[:size], len(alphabet))
    assert cipher.encrypt_text(plain, alphabet, bytes.fromhex(tweak)) == secret
    assert cipher.decrypt_text(secret, alphabet, bytes.fromhex(tweak)) == plain


@given(
    st.data(),
    st.one_of(st.integers(2, 40), st.sampled_from([255, 256, 257, 65535, 65536])),
    st.binary(max_size=40),
)
def test_decryption_undoes_encryption(data: st.DataObject, radix: int, tweak: bytes) -> None:
    length = data.draw(st.integers(2, 60))
    assume(radix**length >= 10**6)
    numerals = data.draw(st.lists(st.integers(0, radix - 1), min_size=length, max_size=length))
    cipher = FF1(bytes(32), radix)
    secret = cipher.encrypt(numerals, tweak)
    assert len(secret) == length and all(0 <= x < radix for x in secret)
    assert cipher.decrypt(secret, tweak) == numerals


def test_key_and_tweak_matter() -> None:
    made = {
        FF1(key, 10).encrypt_text("0123456789", tweak=t)
        for key in (bytes(16), b"k" * 16)
        for t in (b"", b"a", b"b")
    }
    assert len(made) == 6


@pytest.mark.parametrize(("radix", "length"), [(10, 5), (2, 19), (36, 3), (65536, 1), (10, 0), (10, 4097)])
def test_small_and_endless_domains_are_refused(radix: int, length: int) -> None:
    cipher = FF1(bytes(16), radix)
    for step in (cipher.encrypt, cipher.decrypt):
        with pytest.raises(InputError, match="10"):
            step([0] * length)


def test_the_smallest_domain_is_a_permutation() -> None:
    cipher = FF1(bytes(16), 1000)
    made = {tuple(cipher.encrypt([0, x])) for x in range(1000)}
    assert len(made) == 1000


@pytest.mark.parametrize(("key", "radix"), [(b"", 10), (bytes(15), 10), (bytes(16), 1), (bytes(16), 65537)])
def test_wrong_keys_and_radices(key: bytes, radix: int) -> None:
    with pytest.raises(InputError):
        FF1(key, radix)


def test_errors_do_not_show_the_value() -> None:
    cipher = FF1(bytes(16), 10)
    for text, alphabet in (("12345678x0", DIGITS), ("1234567890", "0123456788"), ("1234567890", LETTERS)):
        with pytest.raises(InputError) as caught:
            cipher.encrypt_text(text, alphabet)
        assert text not in caught.value.diagnostics()
    with pytest.raises(InputError):
        cipher.encrypt([0] * 9 + [10])


def test_keys_do_not_print_and_are_not_pickled() -> None:
    cipher = FF1(b"secret-key-bytes", 10)
    assert "secret" not in repr(cipher)
    with pytest.raises(TypeError):
        pickle.dumps(cipher)


# ── formats ──────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 10**8 - 1))
def test_a_mobile_stays_one(tail: int) -> None:
    numbers = MobileNumbers(bytes(32))
    plain = f"154{tail:08}"  # 154 has been given to no network
    secret = numbers.encrypt(f"+86 {plain}")
    assert len(secret) == 11 and secret[:3] == "154" and secret.isdigit()
    assert numbers.decrypt(secret) == plain


@pytest.mark.parametrize("value", ["", None, "+1 202-555-0143", "1380010050", "01012345678"])
def test_what_is_no_mainland_mobile_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="mainland mobile"):
        MobileNumbers(bytes(32)).encrypt(value)


DAYS = (date(2025, 12, 31) - date(1900, 1, 1)).days


@settings(max_examples=60)
@given(st.integers(0, DAYS), st.integers(0, 999))
def test_a_resident_number_stays_one(day: int, sequence: int) -> None:
    body = f"110000{date(1900, 1, 1) + timedelta(days=day):%Y%m%d}{sequence:03}"
    plain, numbers = body + id_check(body), ResidentIds(bytes(32))
    secret = numbers.encrypt(plain.lower())
    assert secret[:6] == "110000" and resident_id(secret, today=date(2026, 1, 1)) is not None
    assert numbers.decrypt(secret) == plain


def test_a_resident_number_of_fifteen_digits_comes_back_with_eighteen() -> None:
    numbers = ResidentIds(bytes(32))
    assert numbers.decrypt(numbers.encrypt("110105491231002")) == "11010519491231002X"


@pytest.mark.parametrize("value", ["110105194912310021", "11010518991231002X", "110105", "", None])
def test_what_could_not_be_brought_back_is_refused(value: object) -> None:
    with pytest.raises(InputError):
        ResidentIds(bytes(32)).encrypt(value)


def test_a_range_of_births_must_be_wide_enough_and_is_part_of_the_tweak() -> None:
    with pytest.raises(InputError, match="days"):
        ResidentIds(bytes(32), first=date(2000, 1, 1), last=date(2000, 12, 31))
    example = "11010519491231002X"
    other = ResidentIds(bytes(32), last=date(2025, 12, 30))
    assert ResidentIds(bytes(32)).encrypt(example) != other.encrypt(example)
