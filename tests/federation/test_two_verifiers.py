"""`foedus verify` and verify_foedus.py on the same bundles: both accept, or both refuse.

Where they differ, and why (nothing below meets these cases):

- The one file wants the officer's own treaty, always. Of a study and a treaty it checks the fields and what its
  arithmetic rests on, not every range foedus' schema has: whoever signed them, and every node, has checked those.
- It wants a document's every field said, where foedus fills in a default.
- Its Ed25519 refuses keys of small order and keys not spelt canonically; foedus refuses the former in the treaty.
- It checks plain signatures by parties under the log's head, too; foedus only cosignatures, as the note format allows.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bundles import Tampered
from support.orders import make_draft, order_log, small_world
from support.tampering import COORDINATOR, Tamper

import foedus.verify_foedus as one_file
from foedus.demo.simulate import simulate
from foedus.demo.world import World
from foedus.documents import Envelope, SigningKey
from foedus.errors import FoedusError
from foedus.federation.modes import MODES
from foedus.federation.schema import Feature, Split
from foedus.federation.study import DraftPrivacy, EarlyStopping, Model, Training
from foedus.federation.verification import verify

Place = tuple[Any, ...]


@pytest.fixture
def bundle(good: Any) -> Tampered:
    return Tampered(good.run.evidence, good.world)


def foedus_says(path: Path, treaty: Path) -> str:
    """Nothing if it holds, else why it doesn't."""
    try:
        verify(path, own_treaty=treaty)
    except FoedusError as error:
        return error.message
    return ""


def one_file_says(path: Path, treaty: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    code = one_file.main([str(path), "--treaty", str(treaty), *more])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12 and (code == 0) == lines[-1].startswith("EVERYTHING HOLDS")
    return next((line for line in lines if line.startswith("FAILS")), "")


# ── good bundles ─────────────────────────────────────────────────────────────────────────────────

FEATURES = (Feature(name="recency"), Feature(name="orders", log=True, upper=20), Feature(name="amount"))
STOPPING = EarlyStopping(every=2, patience=1, part=0.45)
DRAFTS: dict[str, dict[str, Any]] = {
    "perceptron, scales, labels, early stopping": {
        "features": FEATURES, "split": Split(train=0.7), "model": Model(kind="mlp", hidden=8, seed=5),
        "training": Training(optimiser="adam", rounds=6, class_weight="balanced", early_stopping=STOPPING),
    },
    "perceptron without a skip": {
        "features": FEATURES, "model": Model(kind="mlp", hidden=16, skip=False, seed=2**31 - 1),
        "training": Training(optimiser="adam", rounds=2),
    },
    "regression, scales, labels": {"features": FEATURES, "training": Training(rounds=3, class_weight="balanced")},
    "local noise": {"privacy": DraftPrivacy(epsilon=4.0, mode=MODES["local"])},
    "central noise": {"privacy": DraftPrivacy(epsilon=4.0, mode=MODES["central"])},
}  # fmt: skip


@pytest.mark.parametrize("kind", DRAFTS)
def test_both_accept_and_find_the_same(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draft = make_draft(**DRAFTS[kind])
    world = small_world(tmp_path / "world", draft, orders=order_log(3000))
    path, treaty = simulate(world, draft).evidence, world.server / "treaty.json"
    report = verify(path, own_treaty=treaty)
    heads = [word for home in world.homes.values() for word in ("--witnessed-head", str(home / "log-head"))]
    capsys.readouterr()
    assert one_file.main([str(path), "--treaty", str(treaty), *heads]) == 0
    out = capsys.readouterr().out
    assert f"ε = {report.epsilon:.6f} recomputed from {len(report.survivors)} sums" in out
    assert "every model sent is what the sums give; released and recomputed: model, metrics" in out
    assert "4 kept heads are continued by this log" in out


# ── tampering ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tamper", [t for _, t in COORDINATOR.values()], ids=COORDINATOR.keys())
def test_both_find_out_a_coordinator_who_lies(
    bundle: Tampered, tmp_path: Path, capsys: pytest.CaptureFixture[str], tamper: Tamper
) -> None:
    tamper(bundle)
    path, treaty = bundle.write(tmp_path / "b.zip"), bundle.world.server / "treaty.json"
    assert foedus_says(path, treaty) and one_file_says(path, treaty, capsys)


@pytest.mark.parametrize("action", ["study.rejected", "study.approved"])
def test_what_an_approver_says_after_the_release_undoes_nothing(
    bundle: Tampered, tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    def late(entries: list[Any]) -> None:
        entries.append(next(e for e in entries if e["action"] == "study.approved") | {"action": action})

    bundle.log(late)
    path, treaty = bundle.write(tmp_path / "b.zip"), bundle.world.server / "treaty.json"
    assert (foedus_says(path, treaty), one_file_says(path, treaty, capsys)) == ("", "")


def test_a_head_that_this_log_does_not_continue_is_refused(
    good: Any, bundle: Tampered, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    treaty = good.world.server / "treaty.json"
    kept = tmp_path / "head"
    for change, why in (
        (lambda e: e[0].update(actor="nobody"), "it was rewritten"),
        (lambda e: e.append(e[-1]), "take an older one"),
    ):
        other = Tampered(good.run.evidence, good.world)
        other.log(change)
        kept.write_bytes(other.files["log/checkpoint.txt"])
        assert why in one_file_says(good.run.evidence, treaty, capsys, "--witnessed-head", str(kept))
    bundle.log(lambda e: None, key=SigningKey.generate())
    kept.write_bytes(bundle.files["log/checkpoint.txt"])
    found = one_file_says(good.run.evidence, treaty, capsys, "--witnessed-head", str(kept))
    assert "11 witnessed head: the coordinator has not signed it" in found


def cosigned(
    bundle: Tampered, party: str, kind: bytes, *, time: int = 1_700_000_000, signs: str = ""
) -> bytes:
    """The log's head with one more line: a plain signature (kind 1), or a cosignature/v1 with its time (kind 4)."""
    note = bundle.files["log/checkpoint.txt"].decode()
    text, key = note.rpartition("\n\n")[0] + "\n", bundle.silo_key(signs or party)
    public = base64.b64decode(dict(key_lines(bundle))[party])
    name = hashlib.sha256(party.encode() + b"\n" + kind + public).digest()[:4]
    stamp = time.to_bytes(8, "big") if kind == b"\x04" else b""
    said = (f"cosignature/v1\ntime {time}\n" if stamp else "") + text
    line = base64.b64encode(name + stamp + key.sign(said.encode())).decode()
    return f"{note}— {party} {line}\n".encode()


def key_lines(bundle: Tampered) -> list[tuple[str, str]]:
    return [(p.name, p.signing_key) for p in bundle.world.treaty.parties]


@pytest.mark.parametrize("kind", [b"\x01", b"\x04"], ids=["plain", "cosignature/v1"])
def test_cosignatures_of_parties_must_hold(
    bundle: Tampered, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: bytes
) -> None:
    treaty = bundle.world.server / "treaty.json"
    own, other = list(bundle.world.homes)[:2]
    whole = bundle.files["log/checkpoint.txt"]
    bundle.files["log/checkpoint.txt"] = cosigned(bundle, own, kind)
    path = bundle.write(tmp_path / "b.zip")
    assert one_file.main([str(path), "--treaty", str(treaty)]) == 0
    assert f"cosigned by: {own}" in capsys.readouterr().out
    bundle.files["log/checkpoint.txt"] = whole
    bundle.files["log/checkpoint.txt"] = cosigned(bundle, own, kind, signs=other)
    path = bundle.write(tmp_path / "b.zip")
    assert f"the signature of {own} does not hold" in one_file_says(path, treaty, capsys)
    if kind == b"\x04":
        assert f"cosignature of {own}" in foedus_says(path, treaty)
    else:
        assert foedus_says(path, treaty) == "", "the note format lets it ignore keys it doesn't ask for"
    bundle.files["log/checkpoint.txt"] = whole + "— a.stranger/key AAAAAAAA\n".encode()
    path = bundle.write(tmp_path / "b.zip")
    assert one_file_says(path, treaty, capsys) == foedus_says(path, treaty) == ""


# ── anything, anywhere ───────────────────────────────────────────────────────────────────────────


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    yield place
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*place, key))


def mutated(value: Any, rng: random.Random) -> Any:
    """Another value in its place."""
    if isinstance(value, dict):
        if value and rng.random() < 0.5:
            lost = rng.choice(list(value))
            return {k: v for k, v in value.items() if k != lost}
        return {**value, rng.choice(["more", "note", "kind"]): rng.choice([1, "x", None])}
    if isinstance(value, list):
        new = list(value)
        if new and rng.random() < 0.4:
            new.pop(rng.randrange(len(new)))
        elif new and rng.random() < 0.6:
            new.append(copy.deepcopy(rng.choice(new)))
        else:
            new.append(rng.choice([0, "x", None]))
        return new
    if isinstance(value, bool):
        return rng.choice([not value, int(value), None, str(value)])
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, -value - 1, str(value), None, True, 2**52, value + 0.5])
    if isinstance(value, float):
        return rng.choice([value * 1.001, value + 1, -value, 0, str(value), None, 1e300])
    if isinstance(value, str):
        at = rng.randrange(len(value)) if value else 0
        flipped = value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :] if value else "x"
        return rng.choice(
            [flipped, value + "x", value[:-1], "", None, 0, value + " ", value + "\n", "é" + value]
        )
    return rng.choice([0, "x", [], {}])


def signed_anew(value: Any, key: Callable[[str], SigningKey]) -> Any:
    """Every document in it signed again by whoever had signed it: all of them collude."""
    if isinstance(value, list):
        return [signed_anew(item, key) for item in value]
    if not isinstance(value, dict):
        return value
    try:
        envelope = Envelope.from_json(value)
        made = Envelope(envelope.kind, envelope.payload)
        for signer in envelope.signatures:
            made = made.signed(signer, key(signer))
    except (FoedusError, AttributeError, TypeError):
        return {name: signed_anew(item, key) for name, item in value.items()}
    return made.to_json()


def keys_of(world: World, bundle: Tampered) -> Callable[[str], SigningKey]:
    def key(name: str) -> SigningKey:
        if name == bundle.origin:
            return bundle.key
        return bundle.silo_key(name) if name in world.homes else world.key(name)

    return key


def relogged(bundle: Tampered, name: str, value: Any) -> None:
    """The log's word on a release or on receipts, made to match."""
    digests: dict[tuple[str, str], tuple[str, Any]] = {}
    for document in [value] if name.startswith("release/") else value:
        envelope = Envelope.from_json(document)
        about = name[8:] if name.startswith("release/") else str(envelope.payload.get("silo"))
        digests[envelope.kind, about] = envelope.digest, envelope.payload.get("ledger")

    def edit(entries: list[Any]) -> None:
        for entry in entries:
            details = entry["details"]
            if entry["action"] == "released" and ("release", details["file"]) in digests:
                details["digest"] = digests["release", details["file"]][0]
            if entry["action"] == "receipt" and ("receipt", details["silo"]) in digests:
                details["digest"], details["ledger"] = digests["receipt", details["silo"]]

    bundle.log(edit)


CHANGES = 15
NAMES = [n for n in one_file.NAMED if n.endswith((".json", ".jsonl")) and n != "lineage.jsonl"]
NAMES += ["study.json of a count", "rounds.jsonl of a count", "treaty.json of a count"]


def run_of(name: str, good: Any, good_count: Any) -> tuple[str, Any]:
    """The file that is meant, and the run whose bundle has it."""
    counts = name.endswith(" of a count") or name == "release/table.json"
    return name.removesuffix(" of a count"), good_count if counts else good


@pytest.mark.parametrize("everybody", [False, True], ids=["the coordinator alone", "everybody colludes"])
@pytest.mark.parametrize("name", NAMES)
def test_both_say_the_same_of_any_change(
    good: Any, good_count: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, everybody: bool
) -> None:
    """A leaf, a list or an object anywhere in a file is changed; digests, the log's head and the manifest are made anew."""
    name, good = run_of(name, good, good_count)
    rng = random.Random(f"{name} {everybody}")
    treaty, refused = good.world.server / "treaty.json", 0
    for _ in range(CHANGES):
        bundle = Tampered(good.run.evidence, good.world)
        data = bundle.files[name]
        value = [json.loads(line) for line in data.splitlines()] if name.endswith("l") else json.loads(data)
        *above, last = rng.choice([p for p in places(value) if p])
        inner = value
        for key in above:
            inner = inner[key]
        old, inner[last] = inner[last], mutated(inner[last], rng)
        change = f"{name} {[*above, last]}: {old!r:.80} -> {inner[last]!r:.80}"
        if everybody:
            value = signed_anew(value, keys_of(good.world, bundle))
        spelt = [
            json.dumps(v, ensure_ascii=False).encode() for v in (value if name.endswith("l") else [value])
        ]
        bundle.files[name] = b"".join(s + b"\n" for s in spelt)
        try:
            if name == "log/entries.jsonl":
                bundle.log(lambda e: None)
            elif everybody and name.startswith(("release/", "receipts")):
                relogged(bundle, name, value)
        except (FoedusError, KeyError, TypeError, AttributeError):
            pass  # so malformed that no coordinator could log it: as it is, then
        path = bundle.write(tmp_path / "b.zip")
        theirs, mine = foedus_says(path, treaty), one_file_says(path, treaty, capsys)
        assert bool(theirs) == bool(mine), f"{change}\nfoedus: {theirs}\none file: {mine}"
        refused += bool(mine)
    assert refused >= CHANGES // (4 if everybody or name == "log/entries.jsonl" else 2)


@pytest.mark.parametrize("name", one_file.NAMED)
def test_both_refuse_any_flipped_byte(
    good: Any, good_count: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """The manifest not made anew: whoever has no key."""
    name, good = run_of(name, good, good_count)
    rng = random.Random(name)
    treaty = good.world.server / "treaty.json"
    bundle = Tampered(good.run.evidence, good.world)
    for _ in range(5):
        data = bytearray(bundle.files[name])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        with zipfile.ZipFile(good.run.evidence) as old, zipfile.ZipFile(tmp_path / "b.zip", "w") as new:
            for inner in old.namelist():
                new.writestr(inner, bytes(data) if inner == name else old.read(inner))
        assert foedus_says(tmp_path / "b.zip", treaty)
        assert "1 bundle" in one_file_says(tmp_path / "b.zip", treaty, capsys)
