"""Signed documents: canonical bytes, envelopes, keys on disk."""

from __future__ import annotations

import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus.documents import (
    Envelope,
    SigningKey,
    b64,
    canonical,
    digest,
    parse_json,
    read_private_file,
    unb64,
)
from foedus.errors import InputError, VerificationError

# ── canonical JSON ───────────────────────────────────────────────────────────────────────────────


def test_the_example_of_rfc_8785() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    assert (
        canonical(value)
        == (
            '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
            '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
        ).encode()
    )


def test_keys_are_sorted_by_utf_16_code_units_as_rfc_8785_says() -> None:
    value = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7}
    order = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(parse_json(canonical(value))) == order  # by code point 😀 would come last


@pytest.mark.parametrize(
    "value",
    [
        float("nan"), float("inf"), -float("inf"), 2**53, -(2**53), {1: 2}, {"a": {1}}, b"bytes", object(), "\ud800",
        {"a": [{"b": float("nan")}]},
    ],
)  # fmt: skip
def test_what_json_can_not_hold_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="canonical JSON"):
        canonical(value)


def test_the_largest_exact_integers_are_taken() -> None:
    assert canonical([2**53 - 1, -(2**53) + 1]) == b"[9007199254740991,-9007199254740991]"


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 1}}', "NaN", "[Infinity]", "-Infinity", "1e999", "[-1e400]", "", "{",
        "{'a': 1}", "[1,]", "9" * 5000, "[" * 100_000, b"\xff", "{}".encode("utf-16"), "{}".encode("utf-32"),
        b"\xef\xbb\xbf{}",
    ],
)  # fmt: skip
def test_json_is_read_strictly(text: str | bytes) -> None:
    with pytest.raises(InputError, match="not JSON"):
        parse_json(text)


# ── envelopes ────────────────────────────────────────────────────────────────────────────────────

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
PAYLOAD = {"study": "s", "epsilon": 4.0}
SIGNED = Envelope("approval", PAYLOAD).signed("dora", KEY)


def test_a_signature_holds_for_what_was_signed() -> None:
    SIGNED.check("approval", "dora", KEY.public)
    Envelope.loads(SIGNED.dumps()).check("approval", "dora", KEY.public)


def test_a_signature_over_one_kind_passes_for_no_other() -> None:
    moved = Envelope("study", PAYLOAD, SIGNED.signatures)
    with pytest.raises(VerificationError, match="does not hold"):
        moved.check("study", "dora", KEY.public)
    with pytest.raises(VerificationError, match="'study' document was expected"):
        SIGNED.check("study", "dora", KEY.public)
    assert digest("study", PAYLOAD) != digest("approval", PAYLOAD)


@pytest.mark.parametrize(
    "payload",
    [
        {"study": "s", "epsilon": 8.0},
        {"study": "s"},
        {**PAYLOAD, "more": None},
        {"study": "S", "epsilon": 4.0},
    ],
)
def test_a_changed_payload_is_noticed(payload: dict[str, Any]) -> None:
    with pytest.raises(VerificationError, match="does not hold"):
        Envelope("approval", payload, SIGNED.signatures).check("approval", "dora", KEY.public)


def test_whole_floats_and_integers_are_one_number() -> None:
    Envelope("approval", {"study": "s", "epsilon": 4}, SIGNED.signatures).check(
        "approval", "dora", KEY.public
    )


def test_another_signer_or_key_is_noticed() -> None:
    with pytest.raises(VerificationError, match="bianca has not signed"):
        SIGNED.check("approval", "bianca", KEY.public)
    with pytest.raises(VerificationError, match="does not hold"):
        SIGNED.check("approval", "dora", OTHER.public)
    with pytest.raises(VerificationError, match="does not hold"):
        SIGNED.check("approval", "dora", "not a key")


GOOD = SIGNED.signatures["dora"]


@pytest.mark.parametrize(
    "text",
    ["", "AAAA", "*" * 88, GOOD[:-4], GOOD + "AAAA", GOOD + "\n", " " + GOOD, "é" * 88, GOOD.rstrip("=")],
    ids=["empty", "short", "stars", "cut", "longer", "newline", "space", "accents", "unpadded"],
)
def test_a_malformed_signature_is_a_verification_error(text: str) -> None:
    with pytest.raises(VerificationError, match="malformed"):
        Envelope("approval", PAYLOAD, {"dora": text}).check("approval", "dora", KEY.public)


def test_every_flipped_bit_of_a_signature_is_noticed() -> None:
    raw = bytearray(unb64(GOOD))
    for place in range(0, 64, 3):
        raw[place] ^= 1 << place % 8
        with pytest.raises(VerificationError):
            Envelope("approval", PAYLOAD, {"dora": b64(bytes(raw))}).check("approval", "dora", KEY.public)
        raw[place] ^= 1 << place % 8


@pytest.mark.parametrize(
    "value",
    [
        None, [], "x", {}, {"kind": "x", "payload": {}}, {"kind": "x", "payload": {}, "signatures": {}, "more": 1},
        {"kind": 1, "payload": {}, "signatures": {}}, {"kind": "x", "payload": [], "signatures": {}},
        {"kind": "x", "payload": {}, "signatures": []}, {"kind": "x", "payload": {}, "signatures": {"a": 1}},
        {"kind": "x", "payload": {"a": float("nan")}, "signatures": {}},
        {"kind": "\ud800", "payload": {}, "signatures": {}}, {"kind": "x", "payload": {}, "signatures": {"\ud800": ""}},
    ],
)  # fmt: skip
def test_any_other_shape_is_no_document(value: Any) -> None:
    with pytest.raises(InputError):
        Envelope.from_json(value)


def test_a_file_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    for name in ("t.json", "none.json"):
        with pytest.raises(InputError, match=name):
            Envelope.load(tmp_path / name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.characters(codec="utf-8"))
    | st.floats(-(2.0**53) + 1, 2.0**53 - 1),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(codec="utf-8")),
    st.dictionaries(st.text(st.characters(codec="utf-8")), JSON, max_size=4),
)
def test_an_envelope_survives_the_wire(kind: str, payload: dict[str, Any]) -> None:
    sent = Envelope(kind, payload).signed("dora", KEY)
    read = Envelope.loads(sent.dumps())
    read.check(kind, "dora", KEY.public)
    assert (read.digest, read.dumps()) == (sent.digest, sent.dumps())


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "identity.key"
    KEY.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(path).public == KEY.public
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        OTHER.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o601, 0o660, 0o777])
def test_a_key_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    KEY.save(path)
    path.chmod(mode)
    with pytest.raises(InputError, match="readable by others") as found:
        SigningKey.load(path)
    assert f"chmod 600 {path}" in found.value.remedy
    with pytest.raises(InputError):
        read_private_file(path)


def test_what_is_no_ed25519_key_is_refused(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for name, content in (("empty", b""), ("text", b"hello"), ("ec", other)):
        path = tmp_path / name
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(InputError, match=r"PEM private key|not an Ed25519 key"):
            SigningKey.load(path)
    with pytest.raises(InputError, match="No such file"):
        SigningKey.load(tmp_path / "missing")


def _traceback_with_locals(key: SigningKey) -> str:
    try:
        raise RuntimeError(key)
    except RuntimeError as error:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


def test_a_key_does_not_print_or_pickle(tmp_path: Path) -> None:
    path = tmp_path / "k"
    KEY.save(path)
    secret = b64(KEY._key.private_bytes_raw())
    hexed = KEY._key.private_bytes_raw().hex()
    pem = path.read_text().splitlines()[1]
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(KEY)
    shown = _traceback_with_locals(KEY)
    for text in (repr(KEY), str(KEY), f"{KEY}", repr([KEY]), repr({"key": KEY}), shown):
        assert "SigningKey(…)" in text
        assert secret not in text and hexed not in text.lower() and pem[:40] not in text
    assert not hasattr(KEY, "__dict__")
