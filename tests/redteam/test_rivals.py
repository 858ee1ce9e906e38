"""The attacks on rivals work as told: on the released packages, and only there where they should.

What is installed here is attacked (Flower always is); `make redteam-rivals` installs the others.
"""

from __future__ import annotations

import importlib
import shutil

import numpy as np
import pytest

COMPILER = shutil.which("gcc") or shutil.which("cc")
FLOWER = [
    "both", "split", "keys", "threshold", "again", "clear", "altered", "share", "overflow", "weights",
]  # fmt: skip
OPENFL = ["seed", "both", "again", "clear", "weights"]
APPFL = ["seed", "both", "again", "clear", "altered", "share", "weights"]


@pytest.mark.parametrize(
    ("rival", "key"),
    [
        (rival, key)
        for rival, keys in (("flower", FLOWER), ("openfl", OPENFL), ("appfl", APPFL))
        for key in keys
    ],
)
def test_a_rival_falls(rival: str, key: str) -> None:
    package = {"flower": "flwr"}.get(rival, rival)
    pytest.importorskip(package, exc_type=ImportError)
    module = importlib.import_module(f"secagg_rivals.attacks.{rival}")
    outcome = module.ATTACKS[key]()
    assert outcome.falls is True, outcome.told


def test_nothing_is_recovered_from_an_upload_with_wrong_seeds() -> None:
    """The attacks' own arithmetic gives noise unless the seeds are the victim's."""
    from secagg_rivals.attacks import flower, outcome

    wire = flower.Listener()
    _, fine = flower._run(wire)
    assert fine
    masked = wire.masked[flower._VICTIM]
    guess = flower._unmasked(masked, bytes(32), dict.fromkeys(wire.keys, bytes(32)))
    assert not outcome.recovered(flower._floats(guess), flower._victim(), within=1.0, what="").falls


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("sign", [1, -1])
def test_the_search_finds_the_seed_and_no_other(sign: int) -> None:
    from secagg_rivals.attacks.flower import search

    assert COMPILER is not None
    seed, plain = 0x2A_11_7F_05, np.arange(6) * 1000
    mask = np.random.RandomState(seed).randint(0, 2**32 - 1, 6, dtype=np.int64)
    words = ((plain + sign * mask) % 2**32).tolist()
    found = search(COMPILER, int(mask[0]), words[1:], sign, (0x2A, 0x2B))
    assert found == ([seed], 2**21)
    assert search(COMPILER, int(mask[0]), words[1:], sign, (0x2B, 0x2C)) == ([], 2**21)
