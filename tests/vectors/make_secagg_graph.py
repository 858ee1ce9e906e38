"""Makes the known answers of the neighbour graph again: ``python tests/vectors/make_secagg_graph.py``.

Worked out from RFC 5869, FIPS 197 and whole sums of fractions, by other code than foedus' own.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

HERE = Path(__file__).parent / "secagg"


def stream_key(seed: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt, 32 bytes."""
    key = hmac.new(bytes(32), seed, hashlib.sha256).digest()
    return hmac.new(key, b"foedus/v1\x00secure-sum-graph\x01", hashlib.sha256).digest()


def words(key: bytes) -> Iterator[int]:
    """AES-256 of the counters 0, 1, … (ECB, so that no CTR code is trusted), as little-endian words."""
    block = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305 - a building block of CTR
    count = 0
    while True:
        many = b"".join(n.to_bytes(16, "big") for n in range(count, count + 1024))
        data = block.update(many)
        yield from (int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4))
        count += 1024


def shuffle(names: list[str], seed: bytes) -> tuple[list[str], int]:
    """The cyclic order, and how many words were passed over."""
    left = sorted(names, key=str.encode)
    source = words(stream_key(seed))
    backwards, refused = [], 0
    while len(left) > 1:
        word = next(source)
        if word // len(left) == 2**32 // len(left):  # in the last, incomplete run of remainders
            refused += 1
            continue
        chosen = word % len(left)
        left[chosen], left[-1] = left[-1], left[chosen]
        backwards.append(left.pop())
    return left + backwards[::-1], refused


def tail(population: int, marked: int, size: int, most: int) -> Fraction:
    """P[Hypergeometric > most], every term of it."""
    ways = sum(
        math.comb(marked, j) * math.comb(population - marked, size - j)
        for j in range(most + 1, min(size, marked) + 1)
    )
    return Fraction(ways, math.comb(population, size))


def sparsest(silos: int, colluders: int, tenths_of_a_percent: int) -> tuple[int, int] | None:
    """(h, w), each h tried with every w."""
    lost = -(-silos * tenths_of_a_percent // 1000)
    for half in range(1, (silos - 2) // 2 + 1):
        for window in range(half):
            if silos * tail(silos, lost, half, half - window - 1) > Fraction(1, 2**40):
                break  # a greater w asks for more survivors still
            if silos * tail(silos, colluders, half, window) <= Fraction(1, 2**100):
                return half, window
    return None


def graph_vectors() -> dict[str, Any]:
    """The content of graph.json."""
    draws = []
    for names, half, seed in (
        ([f"silo-{i}" for i in range(12)], 2, bytes(32)),
        ([f"silo-{i}" for i in range(12)], 2, bytes(range(32))),
        (["é", "z", "Z", "\uffff", "\U00010000", "a", "aa"], 1, b"\xff" * 32),
    ):
        order, _ = shuffle(names, seed)
        place = order.index(names[0])
        near = sorted(order[(place + s) % len(order)] for s in range(-half, half + 1) if s)
        key = stream_key(seed).hex()
        draws.append(
            {"seed": seed.hex(), "key": key, "half": half, "order": order, "neighbours_of": {names[0]: near}}
        )
    many = [str(i) for i in range(10_000)]
    tries = (n.to_bytes(32, "big") for n in range(10_000))
    passing = ((seed, *shuffle(many, seed)) for seed in tries)
    seed, order, refused = next((s, o, r) for s, o, r in passing if r)
    settings = [
        (65, 21, 100),
        (65, 6, 50),
        (100, 60, 50),
        (100, 90, 50),
        (150, 49, 100),
        (200, 20, 0),
        (300, 30, 50),
    ]
    return {
        "draws": draws,
        "draw_of_0_to_9999_that_passes_a_word_over": {
            "seed": seed.hex(),
            "refused": refused,
            "sha256_of_order_joined_by_commas": hashlib.sha256(",".join(order).encode()).hexdigest(),
        },
        "parameters": [
            {"silos": m, "colluders": c, "losses": x / 1000, "half_window": sparsest(m, c, x)}
            for m, c, x in settings
        ],
    }


def files() -> dict[str, str]:
    """Path -> text, as it is kept."""
    return {"graph.json": json.dumps(graph_vectors(), indent=1) + "\n"}


if __name__ == "__main__":
    for name, content in files().items():
        (HERE / name).write_text(content)
