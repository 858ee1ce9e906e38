"""The secure sum's known answers: tests/vectors/secagg, made by other code from the standards."""

from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from support.sums import scratch

from foedus.documents import Envelope, SigningKey
from foedus.errors import ProtocolError, VerificationError
from foedus.privacy.secagg import check, client, masks, rings, seeds, shares, statements
from foedus.privacy.secagg.aggregator import Aggregator
from foedus.privacy.secagg.client import Silo
from foedus.privacy.secagg.codec import Whole
from foedus.privacy.secagg.graph import Graph, Parameters
from foedus.privacy.secagg.journal import Journal
from foedus.privacy.secagg.keys import Context, Roster, mask_agree, mask_public, seed_commitment
from foedus.privacy.secagg.rings import Ring
from foedus.privacy.secagg.seeds import pair_seed, self_seed
from foedus.privacy.secagg.statements import shares_digest, subject
from foedus.privacy.secagg.topology import Sparse, names_digest

FOLDER = Path(__file__).parents[1] / "vectors" / "secagg"
CONTEXT = Context("7" * 64, "5" * 64, "1", 0, (1, 2))


def load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def test_the_scripts_make_just_these_files_again() -> None:
    made: dict[str, str] = {}
    for script in ("make_secagg.py", "make_secagg_graph.py"):
        made |= runpy.run_path(str(FOLDER.parent / script))["files"]()
    assert {p.name: p.read_text() for p in FOLDER.glob("*.json")} == made


def bad(kind: str) -> list[str]:
    found = sorted(p.stem for p in FOLDER.glob(f"{kind}_bad_*.json"))
    assert found
    return found


def test_context() -> None:
    assert load("context") == {"context": CONTEXT.to_json(), "digest": CONTEXT.digest}


def test_derive() -> None:
    keys = []
    for case in load("derive"):
        keys.append(masks.derive(bytes.fromhex(case["secret"]), *case["fields"]).hex())
        assert keys[-1] == case["key"]
    assert len(set(keys)) == 3  # ("a", "7") is not "a7"


def test_mask() -> None:
    cases = load("mask")
    assert {case["bits"] for case in cases} == set(rings.WIDTHS)
    for case in cases:
        ring = Ring(case["bits"])
        on, vector = masks.Masks([(bytes.fromhex(case["seed"]), False)], ring), ring.zeros(10_000)
        on.put_on(vector)
        assert str(on.check) == case["check"]
        data = ring.pack(vector)
        assert ring.unpack(data, 10_000)[:9].tolist() == case["words"]
        assert hashlib.sha256(data).hexdigest() == case["sha256_of_10000"]


def test_rings() -> None:
    cases = load("rings")
    assert {case["bits"] for case in cases} == set(rings.WIDTHS)
    for case in cases:
        ring, values = Ring(case["bits"]), np.array(case["values"], np.int64)
        assert ring.pack(ring.wrap(values)).hex() == case["wire"]
        back = ring.unwrap(ring.unpack(bytes.fromhex(case["wire"]), values.size))
        assert back.tolist() == case["values"]


@pytest.mark.parametrize("name", bad("rings"))
def test_rings_bad(name: str) -> None:
    case = load(name)
    with pytest.raises(ProtocolError):
        Ring(case["bits"]).unpack(bytes.fromhex(case["wire"]), case["dimension"])


def points(case: Any) -> dict[int, int]:
    return {int(x): int(y) for x, y in case["shares"].items()}


def test_shamir() -> None:
    for case in load("shamir"):
        assert shares.combine(points(case), case["threshold"]) == int(case["secret"])


@pytest.mark.parametrize("name", bad("shamir"))
def test_shamir_bad(name: str) -> None:
    case = load(name)
    with pytest.raises(ProtocolError):
        shares.combine(points(case), case["threshold"])


def test_seeds() -> None:
    case = load("seeds")
    one, two, about = int(case["secret_one"]), int(case["secret_two"]), case["subject"]
    ring = Ring(about["bits"])
    assert subject(about["task"], about["dimension"], ring, about["model"]) == case["subject_digest"]
    assert (mask_public(one).hex(), mask_public(two).hex()) == (case["public_one"], case["public_two"])
    for secret, peer in ((one, two), (two, one)):
        agreed = mask_agree(secret, mask_public(peer))
        for names in (("s1", "s2"), ("s2", "s1")):
            assert pair_seed(agreed, CONTEXT, 2, *names, case["subject_digest"]).hex() == case["pair_round_2"]
    assert self_seed(one, CONTEXT, 2, "s1").hex() == case["self_round_2_of_s1"]
    assert seed_commitment(one).hex() == case["commitment_one"]


def test_box() -> None:
    case = load("box")
    key = masks.derive(bytes.fromhex(case["agreed"]), "shares", CONTEXT.digest, "s1", "s2")
    assert key.hex() == case["key"]
    plain = AESGCM(key).decrypt(bytes(12), bytes.fromhex(case["box"]), None)
    assert plain.hex() == case["plain"]
    assert plain[:32].hex() == case["check_part"]
    found = [str(shares.from_bytes(plain[at : at + 32])) for at in range(32, len(plain), 32)]
    assert found == [*case["shares"]["1"], *case["shares"]["2"]]


@pytest.mark.parametrize("name", bad("box"))
def test_box_bad(name: str) -> None:
    case = load(name)
    with pytest.raises(InvalidTag):
        AESGCM(bytes.fromhex(case["key"])).decrypt(bytes(12), bytes.fromhex(case["box"]), None)


def test_point_bad_low_order() -> None:
    for point in load("point_bad_low_order"):
        with pytest.raises(ProtocolError, match="low order"):
            mask_agree(12345, bytes.fromhex(point))


# ── the check value ──────────────────────────────────────────────────────────────────────────────


def hashed(key: bytes, number: int, values: list[int]) -> int:
    tag = seeds.tag_of(key, CONTEXT, number)
    tag.update(np.array(values, np.int64))
    return tag.value


def test_check() -> None:
    case = load("check")
    key, parts = bytes.fromhex(case["key"]), {n: bytes.fromhex(p) for n, p in case["parts"].items()}
    assert masks.derive(b"".join(parts.values()), "check-key", CONTEXT.digest, *parts) == key
    for name, label in (("columns", "alpha"), ("rows", "beta")):
        seed = masks.derive(key, name, CONTEXT.digest, 1)
        assert seed.hex() == case[f"{name}_seed"]
        assert [str(x) for x in check._elements(check._stream(seed), 3)] == case[label]
    for name, vector in case["vectors"].items():
        assert str(hashed(key, 1, vector)) == case["hashed"][name]
        pad = seeds.pad(key, CONTEXT, 1, name)
        assert str(pad) == case["pads"][name]
        assert str((pad + hashed(key, 1, vector)) % check.P) == case["tags"][name]
    assert len(case["long"]) > 2 * check.ROW
    assert str(hashed(key, 1, case["long"])) == case["hashed_long"]
    shown(case)


def shown(case: Any) -> None:
    """A silo that was in rounds 1 and 2 is shown the sum of one of them."""
    roster = Roster(dict.fromkeys(("s1", "s2", "s3"), "-"), 1)
    silo = Silo("s1", SigningKey.generate(), roster, CONTEXT, Journal(scratch() / "s1.db"))
    silo._check_key, silo._everyone = bytes.fromhex(case["key"]), ("s1", "s2", "s3")
    silo._entered = {number: client._Entered(Ring(32), 3) for number in (1, 2)}
    silo.verify_sum(case["round"], case["survivors"], np.array(case["total"], np.int64), int(case["opened"]))


@pytest.mark.parametrize("name", bad("check"))
def test_check_bad(name: str) -> None:
    with pytest.raises(VerificationError):
        shown(load(name))


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def answering(case: Any, name: str) -> Silo:
    """A silo that holds what the case says."""
    roster = Roster(dict.fromkeys(case["participants"], "-"), 1)
    silo = Silo(name, SigningKey.generate(), roster, CONTEXT, Journal(scratch() / f"{name}.db"))
    keys = {n: X25519PrivateKey.from_private_bytes(bytes.fromhex(k)) for n, k in case["share_keys"].items()}
    silo._keys._share_key = keys[name]
    for peer, key in keys.items():
        if peer != name:
            public = key.public_key().public_bytes_raw()
            silo._peers[peer] = client.Advertisement(peer, public, {}, {})
    silo._everyone = tuple(case["participants"])
    silo._held = {n: {1: (0, int(case["held"][name]))} for n in case["participants"]}
    return silo


def test_answer() -> None:
    case = load("answer")
    for name, given in case["given"].items():
        silo = answering(case, name)
        found = silo._blinds(1, case["survivors"], case["answering"])
        assert [str(blind % shares.PRIME) for blind in found] == case["blinds"][name]
        weight = silo._weight(case["answering"])
        assert str(weight) == case["weights"][name]
        place = case["participants"].index(case["owner"])
        assert str((weight * int(case["held"][name]) + found[place]) % shares.PRIME) == given
    for place in range(3):
        assert sum(int(b[place]) for b in case["blinds"].values()) % shares.PRIME == 0
    assert sum(map(int, case["given"].values())) % shares.PRIME == int(case["secret"])
    held = {case["points"][name]: int(share) for name, share in case["held"].items()}
    assert shares.combine(held, 3) == int(case["secret"])


def test_answer_bad_other_survivors() -> None:
    case, good = load("answer_bad_other_survivors"), load("answer")
    differ = {name for name, value in case["given"].items() if value != good["given"][name]}
    assert differ == {"s2"}
    given = {name: int(value) for name, value in case["given"].items()}
    assert sum(given.values()) % shares.PRIME != int(case["secret"])
    silo = answering(good, "s2")
    silo._roster = Roster(dict.fromkeys(("s1", "s2", "s3"), "-"), 1)
    with pytest.raises(ProtocolError):  # nor would a silo give it: s1 answers, and is no survivor
        silo._blinds(1, case["told"]["s2"], good["answering"])


# ── a whole batch ────────────────────────────────────────────────────────────────────────────────


def actors(case: Any) -> dict[str, Silo]:
    identities = case["identities"]
    roster = Roster({name: keys["public"] for name, keys in identities.items()}, case["colluders"])
    assert roster.threshold == case["threshold"]
    folder, made = scratch(), {}
    for name, keys in identities.items():
        identity = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(keys["private"])))
        assert identity.public == keys["public"]
        silo = Silo(name, identity, roster, CONTEXT, Journal(folder / f"{name}.db"))
        own = silo._keys
        own._share_key = X25519PrivateKey.from_private_bytes(bytes.fromhex(case["share_keys"][name]))
        own._mask_secrets = {int(r): int(x) for r, x in case["mask_secrets"][name].items()}
        own._seeds = {int(r): int(x) for r, x in case["seeds"][name].items()}
        own.check_part = bytes.fromhex(case["check_parts"][name])
        made[name] = silo
    return made


@pytest.mark.parametrize("file", ["transcript", "transcript_dropped"])
def test_transcript(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of set-up and a round, under fixed secrets: what silos say, and what the server opens."""
    case = load(file)
    silos = actors(case)
    aggregator = Aggregator(silos["s1"]._roster, CONTEXT)
    for name, silo in silos.items():
        envelope = silo.advertise()
        assert envelope.to_json() == case["advertisements"][name]
        aggregator.add_advertisement(name, envelope)
    for name, silo in silos.items():
        drawn = [int(c) for r in sorted(case["coefficients"][name]) for c in case["coefficients"][name][r]]
        with monkeypatch.context() as fixed:
            fixed.setattr(shares, "random_element", lambda queue=drawn: queue.pop(0))
            boxes = silo.share(aggregator.keys_for(name))
        assert not drawn
        assert {peer: box.hex() for peer, box in boxes.items()} == case["boxes"][name]
        aggregator.add_boxes(name, boxes)
    for name, silo in silos.items():
        silo.receive(aggregator.boxes_for(name))
        assert silo._check_key is not None and silo._check_key.hex() == case["check_key"]
    number, ring, survivors = case["round"], Ring(case["bits"]), case["survivors"]
    aggregator.open_round(number, len(case["total"]), case["task"], ring, model=case["model"])
    for name in survivors:
        silo = silos[name]
        source = Whole(np.array(case["vectors"][name], np.int64), ring.half)
        data, header = silo.mask(number, source, ring, task=case["task"], model=case["model"])
        assert data.hex() == case["uploads"][name]["vector"]
        assert header.to_json() == case["uploads"][name]["header"]
        aggregator.add_vector(number, name, data, header)
    assert list(aggregator.survivors(number)) == survivors
    asked = aggregator.ask(number)
    assert list(asked) == case["answering"]
    for name in survivors:
        silo = silos[name]
        statement, seeds, mask_keys = silo.answer(number, survivors, answering=asked)
        answer = case["answers"][name]
        assert statement.to_json() == answer["statement"]
        assert {owner: value.hex() for owner, value in seeds.items()} == answer["seeds"]
        assert {owner: value.hex() for owner, value in mask_keys.items()} == answer["mask_keys"]
        assert set(mask_keys) == set(silos) - set(survivors)
        aggregator.add_answer(number, name, statement, seeds, mask_keys)
    opened = aggregator.total(number)
    assert opened.total.tolist() == case["total"]
    assert str(opened.check) == case["opened"]
    for name in survivors:
        silos[name].verify_sum(number, survivors, opened.total, opened.check)


def test_statements() -> None:
    case = load("statements")
    for names in case["names"]:
        assert names_digest(names["names"]) == names["digest"]
    silos = sorted(case["advertised"])
    content = hashlib.sha256(f"foedus/v1/graph\0{CONTEXT.digest}".encode())
    for silo in silos:
        content.update(f"\0{silo}\0{case['advertised'][silo]}".encode())
    assert content.hexdigest() == case["graph_seed"]
    seed = bytes.fromhex(case["graph_seed"])
    many = [f"s{i}" for i in range(20)]
    shape = Sparse(Graph.draw(many, seed, Parameters(4, 1)), seed)
    assert shape.digest == case["graph_seed"]
    ready = statements.readiness(CONTEXT, "s1", shape, silos)
    confirm = statements.confirmation(CONTEXT, 1, "s1", shape, silos)
    for kind, payload, label in (
        (statements.READY, ready, "ready"),
        (statements.CONFIRM, confirm, "confirm"),
    ):
        assert payload == case[label]["payload"]
        assert Envelope(kind, payload).digest == case[label]["digest"]
    given = {
        kind: {name: bytes.fromhex(value) for name, value in case["shares"][kind].items()}
        for kind in ("seeds", "mask_keys")
    }
    assert shares_digest(**given) == case["shares"]["digest"]
