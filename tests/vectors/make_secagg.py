"""Makes the known-answer vectors of the secure sum again: ``python tests/vectors/make_secagg.py``.

They are worked out here from RFC 5869, FIPS 197, Shamir's and Lagrange's formulas and docs/protocols/secure-sum.md
alone, by other code than foedus' own, so that agreeing with them means something. Each file states all that goes in
and all that comes out; numbers that JSON can't hold are decimal text, bytes are hex. Files named ``*_bad_*`` hold
what must be refused, or must not fit.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

HERE = Path(__file__).parent / "secagg"
PRIME = 2**255 - 19  # of shares
P = 2**61 - 1  # of check values
CONTEXT: dict[str, Any] = {"treaty": "7" * 64, "study": "5" * 64, "run": "1", "batch": 0, "rounds": [1, 2]}
SILOS = ("s1", "s2", "s3")
POINTS = {"s1": 1, "s2": 2, "s3": 3}
THRESHOLD = 3


# ── primitives ───────────────────────────────────────────────────────────────────────────────────


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt, 32 bytes."""
    key = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(key, info + b"\x01", hashlib.sha256).digest()


def derive(secret: bytes, *fields: str) -> bytes:
    return hkdf(secret, b"foedus/v1\x00" + b"\x00".join(f.encode() for f in fields))


def aes_ctr(key: bytes, count: int) -> bytes:
    """AES-256 of the counters 0, 1, … block by block (ECB, so that no CTR code is trusted)."""
    block = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305 - a building block of CTR
    return b"".join(block.update(n.to_bytes(16, "big")) for n in range(-(-count // 16)))[:count]


def signed_digest(kind: str, payload: dict[str, Any]) -> str:
    return hashlib.sha256(to_sign(kind, payload)).hexdigest()


def to_sign(kind: str, payload: dict[str, Any]) -> bytes:
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()
    return b"foedus/v1/" + kind.encode() + b"\n" + canonical


DIGEST = signed_digest("secure-sum-context", CONTEXT)


def number(label: str) -> int:
    """A fixed element of GF(2^255 − 19)."""
    return int.from_bytes(hashlib.sha256(label.encode()).digest(), "big") % PRIME


def private(secret: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(secret)


def public(secret: int) -> bytes:
    """Of a mask secret: 32 bytes, little-endian, are the private key."""
    return private(secret.to_bytes(32, "little")).public_key().public_bytes_raw()


def x25519(secret: bytes, peer: bytes) -> bytes:
    return private(secret).exchange(X25519PublicKey.from_public_bytes(peer))


def polynomial(coefficients: Sequence[int], x: int) -> int:
    return sum(c * x**k for k, c in enumerate(coefficients)) % PRIME


def weight(point: int, base: Collection[int]) -> int:
    """Lagrange's weight at 0, by exact fractions."""
    exact = Fraction(1)
    for other in base:
        if other != point:
            exact *= Fraction(-other, point - other)
    return exact.numerator * pow(exact.denominator, -1, PRIME) % PRIME


def lagrange(points: Mapping[int, int]) -> int:
    return sum(weight(x, points) * y for x, y in points.items()) % PRIME


def names_digest(names: Collection[str]) -> str:
    return hashlib.sha256("".join("\0" + name for name in sorted(names)).encode()).hexdigest()


# ── rings and masks ──────────────────────────────────────────────────────────────────────────────


def packed(values: Sequence[int], bits: int) -> bytes:
    """Lower 16 bits of all, then the upper parts of all, each plane as one long number, least significant first."""
    planes = [(0, bits)] if bits in (16, 32) else [(0, 16), (16, bits - 16)]
    data = b""
    for shift, width in planes:
        parts = [(value % (1 << bits)) >> shift & ((1 << width) - 1) for value in values]
        whole = sum(part << (place * width) for place, part in enumerate(parts))
        data += whole.to_bytes(-(-len(values) * width // 8), "little")
    return data


def signed(value: int, bits: int) -> int:
    value %= 1 << bits
    return value - (1 << bits) if value >> (bits - 1) else value


def mask(seed: bytes, count: int, bits: int) -> tuple[int, list[int]]:
    """The mask of the check value, and that of `count` elements."""
    width = 2 if bits == 16 else 4
    stream = aes_ctr(seed, 16 + width * count)
    words = [
        int.from_bytes(stream[at : at + width], "little") % (1 << bits)
        for at in range(16, len(stream), width)
    ]
    return int.from_bytes(stream[:16], "little") % P, words


# ── the check value ──────────────────────────────────────────────────────────────────────────────


def elements(seed: bytes, count: int) -> list[int]:
    stream = aes_ctr(seed, 16 * count)
    return [int.from_bytes(stream[at : at + 16], "little") % P for at in range(0, 16 * count, 16)]


def check_key(parts: Mapping[str, bytes]) -> bytes:
    dealers = sorted(parts)
    return derive(b"".join(parts[name] for name in dealers), "check-key", DIGEST, *dealers)


def hashed(key: bytes, round_: int, values: Sequence[int]) -> int:
    alpha = elements(derive(key, "columns", DIGEST, str(round_)), 512)
    beta = elements(derive(key, "rows", DIGEST, str(round_)), -(-len(values) // 512))
    return sum(beta[i // 512] * alpha[i % 512] * value for i, value in enumerate(values)) % P


def pad(key: bytes, round_: int, silo: str) -> int:
    return int.from_bytes(derive(key, "pad", DIGEST, str(round_), silo), "little") % P


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def blinds(
    secrets: Mapping[str, bytes],
    silo: str,
    round_: int,
    participants: Collection[str],
    survivors: Collection[str],
    answering: Collection[str],
) -> list[int]:
    """One for each participant, in the order of names; `secrets` are the X25519 share keys' private halves."""
    total = [0] * len(participants)
    for peer in sorted(set(answering) - {silo}):
        low, high = sorted((silo, peer))
        agreed = x25519(secrets[silo], private(secrets[peer]).public_key().public_bytes_raw())
        told = [names_digest(names) for names in (participants, survivors, answering)]
        stream = aes_ctr(derive(agreed, "answer", DIGEST, str(round_), low, high, *told), 32 * len(total))
        for place in range(len(total)):
            element = int.from_bytes(stream[32 * place : 32 * place + 32], "little")
            total[place] += element if silo == low else -element
    return [element % PRIME for element in total]


def shares_digest(seeds: Mapping[str, bytes], mask_keys: Mapping[str, bytes]) -> str:
    content = b"".join(
        label + b"\0" + silo.encode() + b"\0" + given[silo]
        for label, given in ((b"seed", seeds), (b"mask", mask_keys))
        for silo in sorted(given)
    )
    return hashlib.sha256(content).hexdigest()


# ── the files ────────────────────────────────────────────────────────────────────────────────────


def basics() -> dict[str, Any]:
    one, two = number("one"), number("two")
    agreed = x25519(one.to_bytes(32, "little"), public(two))
    coefficients = [one, two, 12345]
    dealt = {x: polynomial(coefficients, x) for x in (1, 2, 3, 4, 5)}
    if lagrange({x: dealt[x] for x in (2, 3, 5)}) != one:
        raise RuntimeError("the reference itself is wrong")
    part = hashlib.sha256(b"part").digest()
    about = {"task": "train", "dimension": 5, "bits": 20, "model": "9" * 64}
    plain = part + b"".join(v.to_bytes(32, "big") for v in (one, two, dealt[1], dealt[2]))
    box_key = derive(agreed, "shares", DIGEST, "s1", "s2")
    box = AESGCM(box_key).encrypt(bytes(12), plain, None)
    text = {str(x): str(y) for x, y in dealt.items()}
    good_share = {"threshold": 3, "shares": {k: text[k] for k in ("1", "3", "5")}, "secret": str(one)}
    return {
        "context": {"context": CONTEXT, "digest": DIGEST},
        "derive": [
            {"secret": bytes(32).hex(), "fields": ["pair"], "key": derive(bytes(32), "pair").hex()},
            {"secret": b"x".hex(), "fields": ["a", "7"], "key": derive(b"x", "a", "7").hex()},
            {"secret": b"x".hex(), "fields": ["a7"], "key": derive(b"x", "a7").hex()},
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
            "subject": about,
            "subject_digest": signed_digest("secure-sum-subject", about),
            "pair_round_2": derive(
                agreed, "pair", DIGEST, "2", "s1", "s2", signed_digest("secure-sum-subject", about)
            ).hex(),
            "self_round_2_of_s1": derive(one.to_bytes(32, "big"), "self", DIGEST, "2", "s1").hex(),
            "commitment_one": commitment(one).hex(),
        },
        "box": {
            "key": box_key.hex(),
            "agreed": agreed.hex(),
            "check_part": part.hex(),
            "shares": {"1": [str(one), str(two)], "2": [str(dealt[1]), str(dealt[2])]},
            "plain": plain.hex(),
            "box": box.hex(),
        },
        "box_bad_bit": {"key": box_key.hex(), "box": (bytes([box[0] ^ 1]) + box[1:]).hex()},
        "box_bad_direction": {"key": derive(agreed, "shares", DIGEST, "s2", "s1").hex(), "box": box.hex()},
        "box_bad_truncated": {"key": box_key.hex(), "box": box[:-1].hex()},
        "point_bad_low_order": [bytes(32).hex(), (b"\1" + bytes(31)).hex(), ("ec" + "ff" * 30 + "7f")],
    }


def commitment(seed: int) -> bytes:
    return hashlib.sha256(b"foedus/v1/seed-commitment\0" + seed.to_bytes(32, "big")).digest()


def rings() -> dict[str, Any]:
    def case(bits: int, values: list[int]) -> dict[str, Any]:
        return {"bits": bits, "values": values, "wire": packed(values, bits).hex()}

    ends = {bits: [(1 << (bits - 1)) - 1, -(1 << (bits - 1)), -1, 0, 1] for bits in (16, 20, 24, 32)}
    odd = packed([1, 2, 3], 20)
    masks = []
    for bits in (16, 20, 24, 32):
        for seed in (bytes(32), bytes(range(32))):
            element, words = mask(seed, 10_000, bits)
            wire = hashlib.sha256(packed(words, bits)).hexdigest()
            masks.append(
                {
                    "seed": seed.hex(),
                    "bits": bits,
                    "check": str(element),
                    "words": words[:9],
                    "sha256_of_10000": wire,
                }
            )
    return {
        "rings": [
            case(bits, values[:size]) for bits, values in ends.items() for size in range(len(values) + 1)
        ],
        "rings_bad_short": {"bits": 20, "dimension": 3, "wire": odd[:-1].hex()},
        "rings_bad_long": {"bits": 20, "dimension": 3, "wire": (odd + b"\0").hex()},
        "rings_bad_padding": {"bits": 20, "dimension": 3, "wire": (odd[:-1] + bytes([odd[-1] | 16])).hex()},
        "rings_bad_width": {"bits": 24, "dimension": 3, "wire": packed([1, 2, 3], 32).hex()},
        "mask": masks,
    }


def checks() -> dict[str, Any]:
    parts = {name: hashlib.sha256(f"part of {name}".encode()).digest() for name in SILOS}
    key = check_key(parts)
    small = {"s1": [1, -2, 3], "s2": [2**30, -(2**30), 0], "s3": [-7, 7, 2**29]}
    long = [((i * i * 7919) % (2**31)) - 2**30 for i in range(1100)]
    total = [sum(column) for column in zip(*small.values(), strict=True)]
    tags = {name: (pad(key, 1, name) + hashed(key, 1, small[name])) % P for name in SILOS}
    opened = sum(tags.values()) % P
    if opened != (sum(pad(key, 1, name) for name in SILOS) + hashed(key, 1, total)) % P:
        raise RuntimeError("the reference itself is wrong")
    columns, rows = (derive(key, name, DIGEST, "1") for name in ("columns", "rows"))
    good = {
        "key": key.hex(),
        "round": 1,
        "survivors": list(SILOS),
        "total": total,
        "opened": str(opened),
    }
    return {
        "check": {
            **good,
            "parts": {name: part.hex() for name, part in parts.items()},
            "columns_seed": columns.hex(),
            "rows_seed": rows.hex(),
            "alpha": [str(x) for x in elements(columns, 3)],
            "beta": [str(x) for x in elements(rows, 3)],
            "pads": {name: str(pad(key, 1, name)) for name in SILOS},
            "vectors": small,
            "hashed": {name: str(hashed(key, 1, small[name])) for name in SILOS},
            "tags": {name: str(tag) for name, tag in tags.items()},
            "long": long,
            "hashed_long": str(hashed(key, 1, long)),
        },
        "check_bad_total": {**good, "total": [total[0] + 1, *total[1:]]},
        "check_bad_swapped": {**good, "total": [total[1], total[0], *total[2:]]},
        "check_bad_opened": {**good, "opened": str((opened + 1) % P)},
        "check_bad_survivors": {**good, "survivors": ["s1", "s2"]},
        "check_bad_round": {**good, "round": 2},
        "check_bad_doubled": {
            **good,
            "survivors": [*SILOS, *SILOS],
            "total": [2 * x for x in total],
            "opened": str(2 * opened % P),
        },
    }


def answers() -> dict[str, Any]:
    """A secret of s3 that s1, s2, s3 help to open."""
    keys = {name: hashlib.sha256(f"share key of {name}".encode()).digest() for name in SILOS}
    coefficients = [number("secret"), number("first"), number("second")]
    held = {name: polynomial(coefficients, POINTS[name]) for name in SILOS}

    def given(silo: str, survivors: Collection[str]) -> int:
        blind = blinds(keys, silo, 1, SILOS, survivors, SILOS)[2]  # s3 is the third participant
        return (weight(POINTS[silo], list(POINTS.values())) * held[silo] + blind) % PRIME

    told = {name: given(name, SILOS) for name in SILOS}
    if sum(told.values()) % PRIME != coefficients[0]:
        raise RuntimeError("the reference itself is wrong")
    good = {
        "round": 1,
        "participants": list(SILOS),
        "survivors": list(SILOS),
        "answering": list(SILOS),
        "owner": "s3",
        "share_keys": {name: key.hex() for name, key in keys.items()},
        "points": POINTS,
        "held": {name: str(share) for name, share in held.items()},
        "weights": {name: str(weight(x, list(POINTS.values()))) for name, x in POINTS.items()},
        "blinds": {name: [str(b) for b in blinds(keys, name, 1, SILOS, SILOS, SILOS)] for name in SILOS},
        "given": {name: str(value) for name, value in told.items()},
        "secret": str(coefficients[0]),
    }
    # s2 was told that s1 dropped: a fourth silo would have to be there; for the formula it need not.
    other = {**told, "s2": given("s2", ("s2", "s3"))}
    return {
        "answer": good,
        "answer_bad_other_survivors": {
            **{name: good[name] for name in ("owner", "held", "points", "secret")},
            "told": {"s1": list(SILOS), "s2": ["s2", "s3"], "s3": list(SILOS)},
            "given": {name: str(value) for name, value in other.items()},
        },
    }


# ── a whole batch ────────────────────────────────────────────────────────────────────────────────

BITS = 20
VECTORS = {
    "s1": [1, -1, 100_000, 0, -5],
    "s2": [2, -2, 100_000, 0, 5],
    "s3": [3, -3, -300_000, 0, 524_287],
    "s4": [4, -4, 4, -4, 4],
}


def transcript(silos: Sequence[str], survivors: Sequence[str]) -> dict[str, Any]:
    """Set-up and round 1 (c = 1, t = 3), signatures and all; rounds 1 and 2 are dealt. All survivors answer."""
    points = {n: place for place, n in enumerate(silos, 1)}
    base = [points[n] for n in survivors]
    rounds = CONTEXT["rounds"]
    identity = {n: hashlib.sha256(f"identity of {n}".encode()).digest() for n in silos}
    share_key = {n: hashlib.sha256(f"share key of {n}".encode()).digest() for n in silos}
    part = {n: hashlib.sha256(f"part of {n}".encode()).digest() for n in silos}
    mask_secret = {n: {r: number(f"mask {n} {r}") for r in rounds} for n in silos}
    seed = {n: {r: number(f"seed {n} {r}") for r in rounds} for n in silos}
    drawn = {  # coefficients above the constant one: of the mask key, then of the seed, round by round
        n: {r: [number(f"{n} {r} {k}") for k in range(2 * (THRESHOLD - 1))] for r in rounds} for n in silos
    }

    def sign(silo: str, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
        key = Ed25519PrivateKey.from_private_bytes(identity[silo])
        text = base64.b64encode(key.sign(to_sign(kind, payload))).decode()
        return {"kind": kind, "payload": payload, "signatures": {silo: text}}

    def b64(data: bytes) -> str:
        return base64.b64encode(data).decode()

    share_public = {n: private(share_key[n]).public_key().public_bytes_raw() for n in silos}
    advertised = {
        n: sign(
            n,
            "secure-sum-keys",
            {
                "context": CONTEXT,
                "silo": n,
                "share_key": b64(share_public[n]),
                "mask_keys": [b64(public(mask_secret[n][r])) for r in rounds],
                "seed_commitments": [b64(commitment(seed[n][r])) for r in rounds],
            },
        )
        for n in silos
    }

    def share(owner: str, holder: str, r: int) -> tuple[int, int]:
        coefficients, x = drawn[owner][r], points[holder]
        return (
            polynomial([mask_secret[owner][r], *coefficients[: THRESHOLD - 1]], x),
            polynomial([seed[owner][r], *coefficients[THRESHOLD - 1 :]], x),
        )

    def box(sender: str, receiver: str) -> str:
        plain = part[sender] + b"".join(
            value.to_bytes(32, "big") for r in rounds for value in share(sender, receiver, r)
        )
        agreed = x25519(share_key[sender], share_public[receiver])
        key = derive(agreed, "shares", DIGEST, sender, receiver)
        return AESGCM(key).encrypt(bytes(12), plain, None).hex()

    key, r, d = check_key(part), rounds[0], len(VECTORS["s1"])
    about = signed_digest(
        "secure-sum-subject", {"task": "train", "dimension": d, "bits": BITS, "model": "9" * 64}
    )
    masks: dict[
        str, list[tuple[int, tuple[int, list[int]]]]
    ] = {}  # sign, (of the check value, of the vector)
    for n in silos:
        own = derive(seed[n][r].to_bytes(32, "big"), "self", DIGEST, str(r), n)
        masks[n] = [(1, mask(own, d, BITS))]
        for peer in silos:
            if peer != n:
                agreed = x25519(mask_secret[n][r].to_bytes(32, "little"), public(mask_secret[peer][r]))
                both = derive(agreed, "pair", DIGEST, str(r), *sorted((n, peer)), about)
                masks[n].append((1 if n < peer else -1, mask(both, d, BITS)))
    uploads = {}
    for n in survivors:
        words = [x + sum(s * m[1][i] for s, m in masks[n]) for i, x in enumerate(VECTORS[n])]
        element = pad(key, r, n) + hashed(key, r, VECTORS[n]) + sum(s * m[0] for s, m in masks[n])
        wire = packed(words, BITS)
        header = {
            "context": DIGEST,
            "round": r,
            "silo": n,
            "task": "train",
            "topology": DIGEST,
            "participants": names_digest(silos),
            "dimension": d,
            "bits": BITS,
            "model": "9" * 64,
            "vector": hashlib.sha256(wire).hexdigest(),
            "check": str(element % P),
        }
        uploads[n] = {"vector": wire.hex(), "header": sign(n, "secure-sum-upload", header)}
    answered = {}
    for n in survivors:
        own = blinds(share_key, n, r, silos, survivors, survivors)
        given = {}
        for place, owner in enumerate(silos):
            of_mask, of_seed = share(owner, n, r)
            value = weight(points[n], base) * (of_seed if owner in survivors else of_mask) + own[place]
            given[owner] = (value % PRIME).to_bytes(32, "big")
        seeds = {owner: value for owner, value in given.items() if owner in survivors}
        mask_keys = {owner: value for owner, value in given.items() if owner not in survivors}
        statement = {
            "context": DIGEST,
            "round": r,
            "silo": n,
            "survivors": names_digest(survivors),
            "answering": names_digest(survivors),
            "shares": shares_digest(seeds, mask_keys),
        }
        answered[n] = {
            "seeds": {owner: value.hex() for owner, value in seeds.items()},
            "mask_keys": {owner: value.hex() for owner, value in mask_keys.items()},
            "statement": sign(n, "secure-sum-answer", statement),
        }
    total = [sum(column) for column in zip(*(VECTORS[n] for n in survivors), strict=True)]
    opened = (sum(pad(key, r, n) for n in survivors) + hashed(key, r, total)) % P
    return {
        "context": CONTEXT,
        "colluders": 1,
        "threshold": THRESHOLD,
        "identities": {
            n: {
                "private": identity[n].hex(),
                "public": b64(
                    Ed25519PrivateKey.from_private_bytes(identity[n]).public_key().public_bytes_raw()
                ),
            }
            for n in silos
        },
        "share_keys": {n: share_key[n].hex() for n in silos},
        "check_parts": {n: part[n].hex() for n in silos},
        "mask_secrets": {n: {str(k): str(v) for k, v in mask_secret[n].items()} for n in silos},
        "seeds": {n: {str(k): str(v) for k, v in seed[n].items()} for n in silos},
        "coefficients": {n: {str(k): [str(c) for c in v] for k, v in drawn[n].items()} for n in silos},
        "advertisements": advertised,
        "boxes": {n: {peer: box(n, peer) for peer in silos if peer != n} for n in silos},
        "check_key": key.hex(),
        "round": r,
        "bits": BITS,
        "task": "train",
        "model": "9" * 64,
        "vectors": {n: VECTORS[n] for n in silos},
        "uploads": uploads,
        "survivors": list(survivors),
        "answering": list(survivors),
        "answers": answered,
        "total": [signed(x, BITS) for x in total],
        "opened": str(opened),
    }


def batches() -> dict[str, Any]:
    four = (*SILOS, "s4")
    return {
        "transcript": transcript(SILOS, SILOS),
        "transcript_dropped": transcript(four, ("s1", "s3", "s4")),  # s2 dealt shares and sent no vector
    }


def statements() -> dict[str, Any]:
    """Digests that names, graphs and statements go by."""
    advertised = {name: hashlib.sha256(name.encode()).hexdigest() for name in SILOS}
    graph = "foedus/v1/graph\0" + DIGEST + "".join(f"\0{n}\0{advertised[n]}" for n in sorted(advertised))
    topology = hashlib.sha256(graph.encode()).hexdigest()
    ready = {"context": DIGEST, "silo": "s1", "topology": topology, "participants": names_digest(SILOS)}
    confirm = {
        "context": DIGEST,
        "round": 1,
        "silo": "s1",
        "topology": topology,
        "survivors": names_digest(SILOS),
    }
    seeds = {"s1": bytes(32), "s2": b"\1" * 32}
    return {
        "statements": {
            "names": [
                {"names": names, "digest": names_digest(names)}
                for names in ([], ["s1"], ["s2", "s1"], ["s1", "s2", "s10"], ["s1s2"])
            ],
            "advertised": advertised,
            "graph_seed": topology,
            "ready": {"payload": ready, "digest": signed_digest("secure-sum-ready", ready)},
            "confirm": {"payload": confirm, "digest": signed_digest("secure-sum-confirm", confirm)},
            "shares": {
                "seeds": {name: value.hex() for name, value in seeds.items()},
                "mask_keys": {"s3": (b"\2" * 32).hex()},
                "digest": shares_digest(seeds, {"s3": b"\2" * 32}),
            },
        }
    }


def vectors() -> dict[str, Any]:
    """File name -> content."""
    return {**basics(), **rings(), **checks(), **answers(), **batches(), **statements()}


def files() -> dict[str, str]:
    """Path -> text, as they are kept."""
    return {f"{name}.json": json.dumps(content, indent=1) + "\n" for name, content in vectors().items()}


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for name, content in files().items():
        (HERE / name).write_text(content)
