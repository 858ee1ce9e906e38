"""Makes the known-answer vectors of the secure sum again: ``python tests/vectors/make_secagg.py``.

They are worked out here from RFC 5869, FIPS 197 and Shamir's paper alone, by other code than foedus' own,
so that agreeing with them means something. Files named ``*_bad_*`` hold what must be refused.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

HERE = Path(__file__).parent / "secagg"
PRIME = 2**255 - 19
CONTEXT: dict[str, Any] = {"treaty": "7" * 64, "study": "5" * 64, "run": "1", "batch": 0, "rounds": [1, 2]}


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt, 32 bytes."""
    key = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(key, info + b"\x01", hashlib.sha256).digest()


def derive(secret: bytes, *fields: str) -> bytes:
    return hkdf(secret, b"foedus/v1\x00" + b"\x00".join(f.encode() for f in fields))


def context_digest() -> str:
    canonical = json.dumps(CONTEXT, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(b"foedus/v1/secure-sum-context\n" + canonical).hexdigest()


def keystream(seed: bytes, words: int) -> list[int]:
    """AES-256 of the counters 0, 1, … block by block (ECB, so that no CTR code is trusted)."""
    block = Cipher(algorithms.AES256(seed), modes.ECB()).encryptor()  # noqa: S305 - a building block of CTR
    stream = b"".join(block.update(n.to_bytes(16, "big")) for n in range(-(-words // 4)))
    return [int.from_bytes(stream[4 * i : 4 * i + 4], "little") for i in range(words)]


def polynomial(coefficients: list[int], x: int) -> int:
    return sum(c * x**k for k, c in enumerate(coefficients)) % PRIME


def lagrange(points: dict[int, int]) -> int:
    """The value at 0, by exact fractions."""
    total = 0
    for i, y in points.items():
        weight = Fraction(1)
        for j in points:
            if j != i:
                weight *= Fraction(-j, i - j)
        total += y * weight.numerator * pow(weight.denominator, -1, PRIME)
    return total % PRIME


def x25519(secret: int, peer: bytes) -> bytes:
    private = X25519PrivateKey.from_private_bytes(secret.to_bytes(32, "little"))
    return private.exchange(X25519PublicKey.from_public_bytes(peer))


def public(secret: int) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret.to_bytes(32, "little")).public_key().public_bytes_raw()


def vectors() -> dict[str, Any]:
    """File name -> content."""
    digest = context_digest()
    one = int.from_bytes(hashlib.sha256(b"one").digest(), "big") % PRIME
    two = int.from_bytes(hashlib.sha256(b"two").digest(), "big") % PRIME
    agreed = x25519(one, public(two))
    coefficients = [one, two, 12345]
    dealt = {x: polynomial(coefficients, x) for x in (1, 2, 3, 4, 5)}
    if lagrange({x: dealt[x] for x in (2, 3, 5)}) != one:
        raise RuntimeError("the reference itself is wrong")
    plain = b"".join(v.to_bytes(32, "big") for v in (one, two, dealt[1], dealt[2]))
    box_key = derive(agreed, "shares", digest, "s1", "s2")
    box = AESGCM(box_key).encrypt(bytes(12), plain, None)
    text = {str(x): str(y) for x, y in dealt.items()}
    good_share = {"threshold": 3, "shares": {k: text[k] for k in ("1", "3", "5")}, "secret": str(one)}
    return {
        "context": {"context": CONTEXT, "digest": digest},
        "derive": [
            {"secret": bytes(32).hex(), "fields": ["pair"], "key": derive(bytes(32), "pair").hex()},
            {"secret": b"x".hex(), "fields": ["a", "7"], "key": derive(b"x", "a", "7").hex()},
            {"secret": b"x".hex(), "fields": ["a7"], "key": derive(b"x", "a7").hex()},
        ],
        "mask": [
            {"seed": seed.hex(), "words": keystream(seed, 9), "sha256_of_100000": _long(seed)}
            for seed in (bytes(32), bytes(range(32)))
        ],
        "shamir": [
            good_share,
            {**good_share, "shares": text},
            {"threshold": 1, "shares": {"9": "5"}, "secret": "5"},
        ],
        "shamir_bad_too_few": {"threshold": 3, "shares": {k: text[k] for k in ("1", "2")}},
        "shamir_bad_surplus_disagrees": {
            "threshold": 3,
            "shares": {**text, "4": str((dealt[4] + 1) % PRIME)},
        },
        "shamir_bad_outside_field": {"threshold": 2, "shares": {"1": "5", "2": str(PRIME)}},
        "shamir_bad_zero_point": {"threshold": 2, "shares": {"0": "5", "2": "7"}},
        "seeds": {
            "secret_one": str(one),
            "secret_two": str(two),
            "public_one": public(one).hex(),
            "public_two": public(two).hex(),
            "pair_round_2": derive(agreed, "pair", digest, "2", "s1", "s2").hex(),
            "self_round_2_of_s1": derive(one.to_bytes(32, "big"), "self", digest, "2", "s1").hex(),
        },
        "box": {"key": box_key.hex(), "agreed": agreed.hex(), "plain": plain.hex(), "box": box.hex()},
        "box_bad_bit": {"key": box_key.hex(), "box": (bytes([box[0] ^ 1]) + box[1:]).hex()},
        "box_bad_direction": {"key": derive(agreed, "shares", digest, "s2", "s1").hex(), "box": box.hex()},
        "box_bad_truncated": {"key": box_key.hex(), "box": box[:-1].hex()},
        "point_bad_low_order": [bytes(32).hex(), (b"\1" + bytes(31)).hex(), ("ec" + "ff" * 30 + "7f")],
    }


def _long(seed: bytes) -> str:
    return hashlib.sha256(b"".join(w.to_bytes(4, "little") for w in keystream(seed, 100_000))).hexdigest()


def files() -> dict[str, str]:
    """Path -> text, as they are kept."""
    return {f"{name}.json": json.dumps(content, indent=1) + "\n" for name, content in vectors().items()}


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for name, content in files().items():
        (HERE / name).write_text(content)
