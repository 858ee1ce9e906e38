"""Pseudonyms: linkable within a purpose, nowhere else; nothing without the key, and nothing once it is deleted."""

from __future__ import annotations

import hashlib
import hmac
import json
import pickle
import stat
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from foedus.compliance.masking import pseudonyms
from foedus.compliance.masking.pseudonyms import Keyring, Subject, normal_form, pseudonymise
from foedus.documents import b64
from foedus.errors import InputError

PURPOSE = "dpv:CustomerRelationshipManagement"
PHONE = "13800138000"  # China Mobile's recharge line
STANDARD = "11010519491231002X"  # GB 11643's example


@pytest.fixture
def keys(tmp_path: Path) -> Keyring:
    return Keyring.create(tmp_path / "p.key")


def made(values: list[Any], kind: Subject, keys: Keyring, purpose: str = PURPOSE, **more: Any) -> list[Any]:
    return list(
        pseudonymise(pd.Series(values, dtype=object, name="c"), kind, keys=keys, purpose=purpose, **more)
    )


# ── what they are ────────────────────────────────────────────────────────────────────────────────


def test_a_known_answer_by_the_formula(tmp_path: Path) -> None:
    """The page's formula, spelt out with other tools: HKDF's two steps by hand."""
    master = bytes(range(32))
    file = tmp_path / "k"
    content = {"format": "foedus pseudonym keys 1", "latest": 3, "keys": {"3": b64(master)}}
    file.write_text(json.dumps(content))
    file.chmod(0o600)
    labels = (b"foedus/1", b"pseudonym", PURPOSE.encode(), b"phone")
    info = b"".join(len(x).to_bytes(4, "big") + x for x in labels)
    extracted = hmac.new(bytes(32), master, hashlib.sha256).digest()
    key = HKDFExpand(hashes.SHA256(), 32, info).derive(extracted)
    expected = "p3." + hmac.new(key, b"+8613800138000", hashlib.sha256).hexdigest()[:32]
    assert made([PHONE], Subject.PHONE, Keyring.load(file)) == [expected]
    assert expected == "p3.b5efac1d31caf6347b556df0239db174"


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (
            Subject.PHONE,
            [
                PHONE,
                "+86 138 0013 8000",
                "0086-13800138000",
                "１３８００１３８０００",
                13800138000,
                13800138000.0,
                "\u200f13800138000 ",
            ],
        ),
        (Subject.RESIDENT_ID, [STANDARD, STANDARD.lower(), "110105491231002", " 110105 19491231 002x "]),
        (Subject.EMAIL, ["alice@example.com", "Alice@EXAMPLE.com ", "ａlice@example.com"]),
        (Subject.CARD, ["4111111111111111", "4111 1111 1111 1111"]),
        (Subject.IBAN, ["GB82WEST12345698765432", "gb82 west 1234 5698 7654 32"]),
        (Subject.NAME, ["王小明", "王 小明", "王\u3000小明", "王\u200b小明"]),
        (Subject.NAME, ["Ada Lovelace", "ADA  LOVELACE", "Ａda Lovelace"]),
        (Subject.TEXT, ["K1", " K1", "Ｋ1", "K1\ufeff"]),
    ],
)
def test_one_person_in_every_dress_is_one_pseudonym(
    kind: Subject, values: list[object], keys: Keyring
) -> None:
    (one,) = set(made(values, kind, keys))
    assert one.startswith("p1.") and len(one) == 35
    assert set(one[3:]) <= set("0123456789abcdef")


def test_a_phone_by_the_short_way_and_by_the_long_one() -> None:
    for first in range(30, 100):
        number = f"1{first}0000{first:04}"
        assert normal_form(number, Subject.PHONE) == normal_form(f"+86-{number}", Subject.PHONE), number


def test_case_counts_in_texts_only(keys: Keyring) -> None:
    assert len(set(made(["k1", "K1"], Subject.TEXT, keys))) == 2
    assert normal_form("a", Subject.TEXT) == "a"


def test_nothing_links_over_purposes_kinds_and_versions(keys: Keyring) -> None:
    newer = keys.rotate()
    all_ = [
        made([STANDARD], kind, ring, purpose, version=version)[0][3:]
        for kind in (Subject.RESIDENT_ID, Subject.TEXT, Subject.NAME)
        for purpose in (PURPOSE, PURPOSE + "x")
        for ring, version in ((keys, 1), (newer, 2))
    ]
    assert len(set(all_)) == 12
    assert keys.derived("pseudonym", "ab", "c") != keys.derived("pseudonym", "a", "bc")
    uses = [keys.derived(label, PURPOSE, "phone") for label in ("pseudonym", "ff1")]
    assert all(a != b for a, b in combinations(uses, 2))


def test_two_key_files_make_different_pseudonyms(tmp_path: Path) -> None:
    rings = [Keyring.create(tmp_path / name) for name in "ab"]
    assert len({made([PHONE], Subject.PHONE, ring)[0] for ring in rings}) == 2


@given(st.lists(st.text(), max_size=8))
def test_a_column_is_what_its_values_are_one_by_one(values: list[str]) -> None:
    keys = Keyring(Path("none"), 1, {1: bytes(32)})
    whole = made(values, Subject.TEXT, keys, missing="keep", invalid="keep")
    for value, pseudonym in zip(values, whole, strict=True):
        (alone,) = made([value], Subject.TEXT, keys, missing="keep")
        assert alone == pseudonym or (pd.isna(alone) and pd.isna(pseudonym))
        assert pd.isna(alone) == (normal_form(value, Subject.TEXT) == "")


def test_the_index_and_the_name_stay(keys: Keyring) -> None:
    column = pd.Series(["a", "b", "a"], index=[9, 7, 9], name="who")
    got = pseudonymise(column, Subject.TEXT, keys=keys, purpose=PURPOSE)
    assert list(got.index) == [9, 7, 9] and got.name == "who" and got.iloc[0] == got.iloc[2] != got.iloc[1]


# ── gaps ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("gap", [None, float("nan"), pd.NA, "", "  ", "\u200b"])
def test_missing_values_are_refused_or_kept(gap: object, keys: Keyring) -> None:
    with pytest.raises(InputError, match=r"1 of 2 values are missing \(rows 1, from 0\)"):
        made([PHONE, gap], Subject.PHONE, keys)
    kept = made([PHONE, gap], Subject.PHONE, keys, missing="keep")
    assert kept[0].startswith("p1.") and pd.isna(kept[1])


def test_values_of_another_kind_are_refused_and_never_shown(keys: Keyring) -> None:
    with pytest.raises(InputError, match=r"'c'.*2 of 3 values are not of kind phone") as caught:
        made(["my-secret", PHONE, "other-secret"], Subject.PHONE, keys, missing="keep")
    assert "secret" not in caught.value.diagnostics()
    kept = made(["my-secret", PHONE], Subject.PHONE, keys, invalid="keep")
    assert pd.isna(kept[0]) and kept[1].startswith("p1.")


def test_a_misprinted_resident_number_is_a_person_too(keys: Keyring) -> None:
    assert len(set(made([STANDARD, STANDARD[:-1] + "1"], Subject.RESIDENT_ID, keys))) == 2


def test_an_id_that_lost_its_digits_is_refused(keys: Keyring) -> None:
    with pytest.raises(InputError, match="not of kind"):
        made([float("110105194912310021")], Subject.RESIDENT_ID, keys)


@pytest.mark.parametrize("purpose", ["", "  "])
def test_without_a_purpose_there_is_none(purpose: str, keys: Keyring) -> None:
    with pytest.raises(InputError, match="purpose"):
        made([PHONE], Subject.PHONE, keys, purpose)


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_file_is_its_owners_alone_and_never_overwritten(keys: Keyring) -> None:
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="exists already"):
        Keyring.create(keys.path)
    assert stat.S_IMODE(keys.rotate().path.stat().st_mode) == 0o600
    keys.path.chmod(0o640)
    with pytest.raises(InputError, match="readable by others"):
        Keyring.load(keys.path)


def test_rotation_keeps_the_old_until_it_is_deleted(keys: Keyring) -> None:
    old = made([PHONE], Subject.PHONE, keys)
    ring = Keyring.load(keys.rotate().path)
    assert ring.versions == [1, 2] and made([PHONE], Subject.PHONE, ring)[0].startswith("p2.")
    assert made([PHONE], Subject.PHONE, ring, version=1) == old
    secret = b64(keys._keys[1])
    assert secret in ring.path.read_text()
    ring.delete(1)
    assert secret not in ring.path.read_text() and Keyring.load(ring.path).versions == [2]
    with pytest.raises(InputError, match="no key of version 1"):
        made([PHONE], Subject.PHONE, Keyring.load(ring.path), version=1)


def test_a_version_is_not_given_twice(keys: Keyring) -> None:
    keys.delete(1)
    empty = Keyring.load(keys.path)
    assert empty.versions == []
    with pytest.raises(InputError, match="none"):
        made([PHONE], Subject.PHONE, empty)
    with pytest.raises(InputError, match="no key of version 1"):
        empty.delete(1)
    assert empty.rotate().versions == [2]


def test_of_two_who_change_a_file_at_once_one_fails(keys: Keyring) -> None:
    other = Keyring.load(keys.path)
    keys.rotate()
    with pytest.raises(InputError, match="changed meanwhile"):
        other.rotate()
    assert list(keys.path.parent.iterdir()) == [keys.path]


def test_a_failed_write_leaves_the_file_as_it_was(keys: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys.path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pseudonyms.os, "fsync", full)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        keys.rotate()
    assert keys.path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": "x", "latest": 1, "keys": {}}',
        '{"format": "foedus pseudonym keys 1", "latest": 0, "keys": {}}',
        '{"format": "foedus pseudonym keys 1", "latest": true, "keys": {}}',
        '{"format": "foedus pseudonym keys 1", "latest": 1, "keys": {"1": "c2VjcmV0"}}',
        '{"format": "foedus pseudonym keys 1", "latest": 1, "keys": {"01": "c2VjcmV0"}}',
        '{"format": "foedus pseudonym keys 1", "latest": 1, "keys": 1}',
        "\xff",
    ],
)
def test_what_is_no_key_file(tmp_path: Path, content: str) -> None:
    file = tmp_path / "k"
    file.write_bytes(content.encode("latin-1"))
    file.chmod(0o600)
    with pytest.raises(InputError, match="not a file of pseudonym keys") as caught:
        Keyring.load(file)
    assert "c2VjcmV0" not in str(caught.value)


def test_keys_do_not_print_and_are_not_pickled(keys: Keyring) -> None:
    assert b64(keys._keys[1]) not in repr(keys) and repr(keys._keys[1]) not in repr(keys)
    with pytest.raises(TypeError):
        pickle.dumps(keys)
