"""The verifier of one file: alone with the standard library, its Ed25519 and its JSON against others', its manners."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from support.treaties import make_treaty

import foedus.verify_foedus as one_file
from foedus.compliance.auditlog.merkle import leaf_hash, root_from_leaves
from foedus.federation.models import initial
from foedus.federation.study import Model
from foedus.privacy.accountant import PLD
from foedus.privacy.events import DistributedDiscreteGaussian

FILE = Path(__file__).parent.parent / "verify_foedus.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The file as an officer runs it: no site-packages, no environment, from elsewhere."""
    return subprocess.run(
        [sys.executable, "-I", "-S", FILE, *arguments], cwd="/", capture_output=True, text=True, check=False
    )


# ── alone ────────────────────────────────────────────────────────────────────────────────────────


def test_it_imports_the_standard_library_only() -> None:
    tree = ast.parse(FILE.read_text(encoding="utf-8"))
    found = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(node.module or "")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("exec", "eval", "__import__", "compile")
    assert {name.partition(".")[0] for name in found} <= sys.stdlib_module_names
    assert not {"socket", "urllib", "http", "subprocess", "importlib", "ctypes"} & found, (
        "offline, and all in the file"
    )


def test_nothing_of_foedus_imports_it() -> None:
    for path in FILE.parent.rglob("*.py"):
        inside = path.relative_to(FILE.parent).parts[0]
        if inside not in ("tests", "benchmarks", "src", FILE.name) and not inside.startswith("."):
            assert "import verify_foedus" not in path.read_text(encoding="utf-8"), path


def test_every_check_says_what_it_proves_and_what_not() -> None:
    case = one_file.Case(Path("x"), Path("y"), [])
    assert len(case.checks()) == 11
    for check in case.checks():
        text = check.__doc__ or ""
        assert text.startswith("Proves: ") and "Doesn't: " in text, check.__name__


# ── Ed25519 ──────────────────────────────────────────────────────────────────────────────────────

RFC_8032 = [  # section 7.1: public key, message, signature
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        hashlib.sha512(b"abc").hexdigest(),
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
]


@pytest.mark.parametrize(("key", "message", "signature"), RFC_8032)
def test_the_vectors_of_rfc_8032(key: str, message: str, signature: str) -> None:
    public, said, signed = (bytes.fromhex(x) for x in (key, message, signature))
    assert one_file.verify(public, signed, said)
    assert not one_file.verify(public, signed, said + b"\0")


def openssl(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


SECRETS = [Ed25519PrivateKey.from_private_bytes(hashlib.sha256(bytes([i])).digest()) for i in range(3)]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SECRETS),
    st.binary(max_size=200),
    st.one_of(
        st.none(),
        st.tuples(st.sampled_from(["key", "signature", "message"]), st.integers(0, 511)),
        st.sampled_from(["S + L", "S random", "R random", "short", "other key"]),
    ),
    st.binary(min_size=32, max_size=32),
)
def test_it_agrees_with_openssl(secret: Ed25519PrivateKey, message: bytes, change: Any, noise: bytes) -> None:
    key, signature = secret.public_key().public_bytes_raw(), secret.sign(message)
    if change == "S + L":
        s = int.from_bytes(signature[32:], "little") + one_file.L
        signature = signature[:32] + s.to_bytes(32, "little")
    elif change == "S random":
        signature = signature[:32] + noise
    elif change == "R random":
        signature = noise + signature[32:]
    elif change == "short":
        signature = signature[:-1]
    elif change == "other key":
        key = SECRETS[0].public_key().public_bytes_raw()
    elif change:
        what, place = change
        given_ = {"key": key, "signature": signature, "message": message or b"\0"}
        data = bytearray(given_[what])
        data[place // 8 % len(data)] ^= 1 << place % 8
        given_[what] = bytes(data)
        key, signature, message = given_["key"], given_["signature"], given_["message"]
    assert one_file.verify(key, signature, message) == openssl(key, signature, message)


Y8 = 2707385501144840649318225287225658788936804267575313519463743609750303402022
SMALL = [
    y | sign << 255
    for y in (0, 1, Y8, one_file.P - Y8, one_file.P - 1, one_file.P, one_file.P + 1)
    for sign in (0, 1)
]


@pytest.mark.parametrize("spelt", SMALL)
def test_keys_under_which_anybody_signs_are_refused_though_openssl_takes_them(spelt: int) -> None:
    key = spelt.to_bytes(32, "little")
    forged = [(r.to_bytes(32, "little") + bytes(32), bytes([m])) for r in SMALL for m in range(40)]
    assert not any(one_file.verify(key, signature, message) for signature, message in forged)
    assert any(openssl(key, signature, message) for signature, message in forged)


# ── JSON, tree, arithmetic ───────────────────────────────────────────────────────────────────────

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_canonical_json_is_rfc_8785(value: Any) -> None:
    assert one_file.canonical(value) == rfc8785.dumps(value)


@settings(max_examples=500, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_spelt_as_in_javascript(value: float) -> None:
    assert one_file.shortest(value) == rfc8785.dumps(value).decode()
    assert float(one_file.shortest(value)) == value


@pytest.mark.parametrize(
    "text", ['{"a":1,"a":1}', "NaN", "[Infinity]", "-Infinity", "{", "\ufeff1", "01", "'a'"]
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(one_file.Failed):
        one_file.parse(text.encode(), "x")


@pytest.mark.parametrize(
    "value", [2**53, -(2**53), math.inf, math.nan, {1: 2}, "\ud800", {"\ud800": 1}, b"x", {1, 2}]
)
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises((one_file.Failed, *one_file.MALFORMED)):
        one_file.canonical(value)


@pytest.mark.parametrize("size", range(20))
def test_the_tree_is_that_of_rfc_6962(size: int) -> None:
    lines = [b"%d" % i for i in range(19)]
    assert one_file.Tree(lines).root(size) == root_from_leaves([leaf_hash(line) for line in lines[:size]])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(4, 10**6), st.integers(1, 50), st.integers(1, 10**5), st.floats(0.001, 1.0)),
        min_size=1,
        max_size=5,
    ),
    st.floats(1e-9, 9e-4),
)
def test_epsilon_is_that_of_the_accountant(rounds: list[tuple[int, int, int, float]], delta: float) -> None:
    events = [
        {
            "sensitivity": ratio * sigma * math.sqrt(shares),
            "sigma": sigma,
            "shares": shares,
            "dimension": dimension,
        }
        for sigma, shares, dimension, ratio in rounds
    ]
    accountant = PLD()
    for event in events:
        accountant.compose(DistributedDiscreteGaussian(**{**event, "sigma": float(event["sigma"])}))  # type: ignore[arg-type]
    assert one_file.epsilon_of(events, delta) == pytest.approx(accountant.epsilon(delta), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize(("hidden", "skip", "seed"), [(1, True, 0), (16, True, 7), (300, False, 2**31 - 1)])
def test_a_perceptron_starts_as_pytorch_starts_it(hidden: int, skip: bool, seed: int) -> None:
    model = Model(kind="mlp", hidden=hidden, skip=skip, seed=seed)
    features = [{"name": "x", "upper": 1.0}] * 11
    study = {"model": model.model_dump(), "features": features}
    # PyTorch may fuse the multiplication and the addition: a bit in the last place.
    assert one_file.first_weights(study) == pytest.approx(initial(model, 11).tolist(), rel=0, abs=3e-16)


# ── manners ──────────────────────────────────────────────────────────────────────────────────────


def files(folder: Path) -> dict[str, Path]:
    """Bundles and treaties that are none."""
    treaty = make_treaty(4)[0].dumps()
    made: dict[str, bytes] = {
        "treaty": treaty, "nothing": b"", "text": b"hello", "number": b"1", "list": b"[1]", "deep": b"[" * 10**5,
        "no treaty": json.dumps({"kind": "study", "payload": {}, "signatures": {}}).encode(), "latin": b'"\xff"',
        "null": treaty.replace(b'"parties":[', b'"parties":null,"x":['), "digits": b"1" * 5000,
    }  # fmt: skip
    for name, data in made.items():
        (folder / name).write_bytes(data)
    evil = {
        "no manifest": {"study.json": b"{}"}, "empty": {}, "manifest of text": {"manifest.json": b"hello"},
        "no envelope": {"manifest.json": b"[]"}, "climbs": {"../../etc/passwd": b"", "manifest.json": b"{}"},
        "absolute": {"/etc/passwd": b""}, "backslash": {"..\\x.json": b""}, "drive": {"c:x.json": b""},
        "many": {f"{chr(97 + i % 26) * (i // 26 + 1)}.json": b"" for i in range(300)}, "folder": {"release/": b""},
    }  # fmt: skip
    for name, content in evil.items():
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as bundle:
            for inner, data in content.items():
                bundle.writestr(inner, data)
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("rounds.jsonl", bytes(one_file.MAX_FILE + 1))
    with zipfile.ZipFile(folder / "twice.zip", "w") as bundle:
        bundle.writestr("study.json", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            bundle.writestr("study.json", b"2")
    with zipfile.ZipFile(folder / "link.zip", "w") as bundle:
        link = zipfile.ZipInfo("study.json")
        link.external_attr = 0o120777 << 16
        bundle.writestr(link, b"/etc/passwd")
    return {p.name: p for p in folder.iterdir()}


def test_what_is_no_bundle_fails_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = files(tmp_path)
    for name, path in {**found, "missing": tmp_path / "missing", "folder": tmp_path}.items():
        for bundle, treaty in ((path, found["treaty"]), (found["no manifest.zip"], path)):
            if name == "treaty" and treaty == path:
                continue
            assert one_file.main([str(bundle), "--treaty", str(treaty)]) == 1, name
            out = capsys.readouterr().out
            assert out.startswith("FAILS        1 bundle") and out.endswith("DOES NOT HOLD\n"), (name, out)


def test_it_is_run_as_it_is_documented(tmp_path: Path) -> None:
    found = files(tmp_path)
    done = run(found["bomb.zip"], "--treaty", found["treaty"])
    assert (done.returncode, done.stderr) == (1, ""), done.stderr
    assert "larger than" in done.stdout and "not reached 11 witnessed" in done.stdout
    assert run("--help").returncode == 0
    assert run(found["text"]).returncode == 2, "it wants your treaty"


def test_a_terminal_is_not_written_to_by_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as bundle:
        bundle.writestr("\x1b[2Jx.json", b"")
    (tmp_path / "treaty").write_bytes(make_treaty(4)[0].dumps())
    assert one_file.main([str(tmp_path / "b.zip"), "--treaty", str(tmp_path / "treaty")]) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_base64_is_strict() -> None:
    assert one_file.unb64(base64.b64encode(b"abc").decode()) == b"abc"
    for text in ("YWJj\n", "YW Jj", "YWJ", None, 1):
        with pytest.raises(one_file.Failed):
            one_file.unb64(text)  # type: ignore[arg-type]
