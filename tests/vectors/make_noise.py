"""Makes the known answers of the discrete Gaussian again: ``python tests/vectors/make_noise.py``.

Sample by sample, in decimals of 110 digits, by other code than foedus' own; the order in which bits are read is that
of `foedus.privacy.noise.discrete_gaussian`. Every comparison must be clear by 10^-85.
"""

from __future__ import annotations

import hashlib
import json
import struct
from bisect import bisect_right
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

HERE = Path(__file__).parent
KEY = bytes(range(32))
DIGITS = 110
CLEAR = Decimal(10) ** -85
Take = Callable[[int], int]  # bytes -> the next number, little-endian


def decimal(x: Fraction | int) -> Decimal:
    return Decimal(x.numerator) / x.denominator


@cache
def cumulative(variance: Fraction, folded: bool) -> list[Decimal]:
    """P(magnitude ≤ k) for all k that 95 digits can tell from 1."""
    weights = [Decimal(1)]
    while weights[-1] > Decimal(10) ** -95:
        k = len(weights)
        weights.append((2 if folded else 1) * (-decimal(Fraction(k * k) / (2 * variance))).exp())
    total, sums = sum(weights), [Decimal(0)]
    for weight in weights:
        sums.append(sums[-1] + weight)
    return [s / total for s in sums[1:]]


def below(u: Decimal, width: Decimal, bound: Decimal) -> bool | None:
    """Whether a real of [u, u + width) is below the bound; None if these bits don't tell."""
    if u + width <= bound - CLEAR:
        return True
    if u >= bound + CLEAR:
        return False
    if width > CLEAR:
        return None
    raise ArithmeticError("110 digits are too few")


def magnitudes(starts: list[int], table: list[Decimal], take: Take) -> list[int]:
    """Inverse CDF at reals that begin with these 15 bits; further bits are read for all, then for all, then one by one."""

    def told(u: Decimal, bits: int) -> int | None:
        k = bisect_right(table, u)
        while k < len(table):
            match below(u, Decimal(2) ** -bits, table[k]):
                case True:
                    return k
                case False:
                    k += 1
                case None:
                    return None
        return None

    prefixes = dict(enumerate(starts))
    answers = [told(decimal(Fraction(u, 2**15)), 15) for u in starts]
    for i in [i for i, k in enumerate(answers) if k is None]:
        prefixes[i] = prefixes[i] << 48 | take(8) >> 16
    for i in [i for i, k in enumerate(answers) if k is None]:
        bits = 63
        while (k := told(decimal(Fraction(prefixes[i], 2**bits)), bits)) is None:
            prefixes[i], bits = prefixes[i] << 64 | take(8), bits + 64
        answers[i] = k
    return [k for k in answers if k is not None]


def taken(product: int, variance: Fraction, w: int, take: Take) -> bool:
    bound = (-decimal(Fraction(product) / (2 * variance))).exp()
    bits = 16
    while (answer := below(decimal(Fraction(w, 2**bits)), Decimal(2) ** -bits, bound)) is None:
        w, bits = w << 64 | take(8), bits + 64
    return answer


def low_bytes(shift: int) -> int:
    """How many are read for the lowest `shift` bits."""
    return next(count for count in (2, 4, 8) if shift <= 8 * count)


def block(sigma: Fraction, missing: int, take: Take) -> list[int | None]:
    """What one block's next try gives; None where nothing was taken."""
    shift = 0
    while sigma > 1024 and sigma / 2**shift >= 128:
        shift += 1
    table = cumulative((sigma / 2**shift) ** 2, shift == 0)
    words = [take(2) for _ in range(missing)]
    highs = magnitudes([word % 2**15 for word in words], table, take)
    signs = [-1 if word >> 15 else 1 for word in words]
    if not shift:
        return [sign * high for sign, high in zip(signs, highs, strict=True)]
    lows = [take(low_bytes(shift)) % 2**shift for _ in words]
    ws = [take(2) for _ in words]
    found: list[int | None] = []
    for sign, high, low, w in zip(signs, highs, lows, ws, strict=True):
        z = (high << shift) + low
        fine = taken(low * (low + (2 * high << shift)), sigma**2, w, take) and (z or sign > 0)
        found.append(sign * z if fine else None)
    return found


def samples(sigma: Fraction, size: int, data: bytes) -> tuple[list[int], int]:
    """The samples, and how many bytes they took."""
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        if at > len(data):
            raise EOFError
        return int.from_bytes(data[at - count : at], "little")

    result: list[int] = []
    while len(result) < size:
        found = block(sigma, min(size - len(result), 2**15), take)
        while missing := [i for i, z in enumerate(found) if z is None]:
            for i, z in zip(missing, block(sigma, len(missing), take), strict=True):
                found[i] = z
        result += [z for z in found if z is not None]
    return result, at


def keystream(size: int) -> bytes:
    return Cipher(algorithms.AES256(KEY), modes.CTR(bytes(16))).encryptor().update(bytes(size))


def drawn() -> list[dict[str, Any]]:
    """From AES-256-CTR under the key 00 01 … 1f, counter from 0."""
    cases = []
    for sigma in ("1", "5/2", "4", "64", "1024", "1025", "5000", str(2**20), str(2**30 + 7), str(2**40 - 1)):
        found, at = samples(Fraction(sigma), 100, keystream(4000))
        cases.append({"sigma": sigma, "bytes": at, "samples": found})
    return cases


def blocks() -> dict[str, Any]:
    """More than one block."""
    found, at = samples(Fraction(4), 33_000, keystream(80_000))
    digest = hashlib.sha256(struct.pack("<33000q", *found)).hexdigest()
    return {"sigma": "4", "size": 33_000, "bytes": at, "sha256_of_int64": digest}


def tie(bound: Decimal, bits: int, more: int, last: int) -> list[int]:
    """A real that equals the bound in its first bits and `more` × 64 others, then goes on with `last` (64 bits)."""
    digits = int(bound * Decimal(2) ** (bits + 64 * more))
    words = [digits >> 64 * i & 2**64 - 1 for i in reversed(range(more))] + [last]
    return [digits >> 64 * more, *words]


def long(numbers: list[int]) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in numbers)


def crafted() -> list[dict[str, Any]]:
    """Bytes chosen so that 15, 16, 63 bits and more do not tell."""
    cases = []
    for sigma, k in ((1, 0), (4, 5), (1024, 700), (1024, 6000)):
        bound = cumulative(Fraction(sigma) ** 2, True)[k]
        for more in (0, 1, 2):
            for last in (0, 2**64 - 1):
                u, *rest = tie(bound, 63, more, last)
                for sign in (0, 1 << 15):
                    head = (sign | u >> 48).to_bytes(2, "little") + (u % 2**48 << 16).to_bytes(8, "little")
                    cases.append((f"ties with C_{k} in {63 + 64 * more} bits", sigma, head + long(rest)))
    for more in (0, 1, 2, 3):
        ones = b"\xff\x7f" + b"\xff" * 8 * (1 + more) + bytes(8)
        cases += [(f"{63 + 64 * more} ones: the far tail", sigma, ones) for sigma in (1, 4, 1024)]
    sigma, word, low = 2**20, 9000, 12_345
    (high,) = magnitudes([word], cumulative(Fraction(64) ** 2, False), lambda _: 0)
    bound = (-decimal(Fraction(low * (low + (2 * high << 14)), 2 * sigma**2))).exp()
    zero = bytes(2 + 2 + 2)  # the next try: +0
    for more in (0, 1, 2):
        for last in (0, 2**64 - 1):
            w, *rest = tie(bound, 16, more, last)
            data = struct.pack("<HHH", word, low, w) + long(rest)
            cases.append((f"w ties with exp(−t) in {16 + 64 * more} bits", sigma, data + zero))
    cases.append(("−0 is drawn again, +0 is not", 2**20, b"\x00\x80" + bytes(4) + zero))
    result = []
    for name, sigma, data in cases:
        found, at = samples(Fraction(sigma), 1, data)
        result.append({"name": name, "sigma": str(sigma), "stream": data[:at].hex(), "samples": found})
    return result


def files() -> dict[str, str]:
    """Path -> text, as it is kept."""
    with localcontext() as context:
        context.prec = DIGITS
        made = {"drawn": drawn(), "blocks": blocks(), "crafted": crafted()}
    lines = [
        f' "{kind}": [\n  ' + ",\n  ".join(map(json.dumps, made[kind])) + "\n ]"
        for kind in ("drawn", "crafted")
    ]
    lines.append(' "blocks": ' + json.dumps(made["blocks"]))
    return {"noise.json": f'{{\n "key": "{KEY.hex()}",\n' + ",\n".join(lines) + "\n}\n"}


if __name__ == "__main__":
    for name, content in files().items():
        (HERE / name).write_text(content)
