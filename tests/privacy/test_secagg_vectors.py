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
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from foedus.errors import ProtocolError
from foedus.privacy.secagg import masks, shares
from foedus.privacy.secagg.client import pair_seed, self_seed
from foedus.privacy.secagg.keys import Context, mask_agree, mask_public

FOLDER = Path(__file__).parents[1] / "vectors" / "secagg"
CONTEXT = Context("7" * 64, "5" * 64, "1", 0, (1, 2))


def load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def test_the_scripts_make_just_these_files_again() -> None:
    made: dict[str, str] = {}
    for script in ("make_secagg.py", "make_secagg_graph.py"):
        made |= runpy.run_path(str(FOLDER.parent / script))["files"]()
    assert {p.name: p.read_text() for p in FOLDER.glob("*.json")} == made


def test_context() -> None:
    assert load("context") == {"context": CONTEXT.to_json(), "digest": CONTEXT.digest}


def test_derive() -> None:
    keys = []
    for case in load("derive"):
        keys.append(masks.derive(bytes.fromhex(case["secret"]), *case["fields"]).hex())
        assert keys[-1] == case["key"]
    assert len(set(keys)) == 3  # ("a", "7") is not "a7"


def test_mask() -> None:
    for case in load("mask"):
        vector = np.zeros(100_000, np.uint32)
        masks.apply(vector, bytes.fromhex(case["seed"]))
        assert vector[:9].tolist() == case["words"]
        assert hashlib.sha256(masks.to_wire(vector)).hexdigest() == case["sha256_of_100000"]


def points(case: Any) -> dict[int, int]:
    return {int(x): int(y) for x, y in case["shares"].items()}


def test_shamir() -> None:
    for case in load("shamir"):
        assert shares.combine(points(case), case["threshold"]) == int(case["secret"])


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("shamir_bad_*.json")))
def test_shamir_bad(name: str) -> None:
    case = load(name)
    with pytest.raises(ProtocolError):
        shares.combine(points(case), case["threshold"])


def test_seeds() -> None:
    case = load("seeds")
    one, two = int(case["secret_one"]), int(case["secret_two"])
    assert (mask_public(one).hex(), mask_public(two).hex()) == (case["public_one"], case["public_two"])
    for secret, peer in ((one, two), (two, one)):
        agreed = mask_agree(secret, mask_public(peer))
        for names in (("s1", "s2"), ("s2", "s1")):
            assert pair_seed(agreed, CONTEXT, 2, *names).hex() == case["pair_round_2"]
    assert self_seed(one, CONTEXT, 2, "s1").hex() == case["self_round_2_of_s1"]


def test_box() -> None:
    case = load("box")
    key = masks.derive(bytes.fromhex(case["agreed"]), "shares", CONTEXT.digest, "s1", "s2")
    assert key.hex() == case["key"]
    assert AESGCM(key).decrypt(bytes(12), bytes.fromhex(case["box"]), None).hex() == case["plain"]


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("box_bad_*.json")))
def test_box_bad(name: str) -> None:
    case = load(name)
    with pytest.raises(InvalidTag):
        AESGCM(bytes.fromhex(case["key"])).decrypt(bytes(12), bytes.fromhex(case["box"]), None)


def test_point_bad_low_order() -> None:
    for point in load("point_bad_low_order"):
        with pytest.raises(ProtocolError, match="low order"):
            mask_agree(12345, bytes.fromhex(point))
