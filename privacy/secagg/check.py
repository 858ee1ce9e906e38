"""The linear check value: how silos notice that the server altered a sum before it showed it to them.

The silos of a batch share a check key that the server never learns. From it follow, for each round, a
random linear function h over p = 2^61 − 1 and a one-time pad for each silo. A silo sends, masked like
its vector but modulo p, its *tag*

    tag_i = pad_i + h(x_i) mod p,        h(x) = Σ_row β_row · Σ_col α_col · x[row, col]

where x is the vector as signed integers, cut into rows of 512 (zeros at the end). What is opened is the
sum over the survivors U, and Σ tag_i = Σ pad_i + h(Σ x_i). Whoever knows the key can check a total.

A server that shows S + Δ, Δ ≠ 0, must find the tag of it. To the server, who does not know the pads, the
opened tag is uniform, and so says nothing of α and β. Some row of Δ is not zero, nor zero mod p, since
|Δ| < 2^33: its inner product with α is zero with probability 1/p; else β hits the wanted value with
probability 1/p. So one try succeeds with probability at most 2/p < 2^-59 (Wegman and Carter 1981; the
pad is used once). A sum that wrapped around differs by multiples of the modulus: it is noticed too.

A silo that helps the server gives it the key. That is no loss: with a silo of its own the server can
move the sum as it likes, by that silo's vector. To peers the opened tag tells nothing that the sum does not.

The arithmetic is exact: products with limbs of α are sums of integers below 2^53 in float64, so that
the work is one small matrix product.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

P = (1 << 61) - 1
ROW = 512
_LIMB = 13  # bits: 512 · 2^31 · 2^13 = 2^53
_LIMBS = 5
_TOGETHER = 2048  # rows combined at a time: numpy's cost per call is then nothing
_P = np.uint64(P)
Numbers = npt.NDArray[np.signedinteger[Any]] | npt.NDArray[np.float64]
_U64 = npt.NDArray[np.uint64]


class Tag:
    """h of one vector, taken chunk by chunk (each but the last a multiple of `ROW` elements).

    Args:
        columns, rows: seeds of α and β, 32 bytes each, for this round alone.
    """

    def __init__(self, columns: bytes, rows: bytes) -> None:
        alpha = _elements(_stream(columns), ROW)
        shifts = np.arange(_LIMBS, dtype=np.uint64) * np.uint64(_LIMB)
        limbs = (alpha[:, None] >> shifts) & np.uint64((1 << _LIMB) - 1)
        self._limbs = limbs.astype(np.float64)
        self._beta = _stream(rows)
        self._waiting: list[npt.NDArray[np.float64]] = []  # products of rows, not yet combined
        self._rows = 0
        self._sum = 0

    def __repr__(self) -> str:
        return "Tag(…)"

    def update(self, values: Numbers) -> None:
        """Take in the next values: whole numbers within ±2^31, signed integers or float64."""
        count = -(-values.size // ROW)
        if values.dtype == np.float64 and values.size == count * ROW:
            matrix = values
        else:
            matrix = np.zeros(count * ROW)
            matrix[: values.size] = values
        self._waiting.append(matrix.reshape(count, ROW) @ self._limbs)
        self._rows += count
        if self._rows >= _TOGETHER:
            self._combine()

    def _combine(self) -> None:
        products = np.concatenate(self._waiting).astype(np.int64)
        hashed = np.zeros(self._rows, np.uint64)
        for place in range(_LIMBS):
            part = np.mod(products[:, place], np.int64(P)).astype(np.uint64)
            hashed += _rotate(part, _LIMB * place)
        terms = _multiply(_reduce(hashed), _elements(self._beta, self._rows))
        # Halves apart, as a sum of many elements of 61 bits would overflow 64.
        low, high = terms & np.uint64(0xFFFFFFFF), terms >> np.uint64(32)
        self._sum = (self._sum + int(low.sum()) + (int(high.sum()) << 32)) % P
        self._waiting, self._rows = [], 0

    @property
    def value(self) -> int:
        if self._rows:
            self._combine()
        return self._sum


def pads(keys: Iterable[bytes]) -> int:
    """The sum of the one-time pads that these 32-byte keys stand for, mod p."""
    return sum(int.from_bytes(key, "little") for key in keys) % P


def _stream(seed: bytes) -> CipherContext:
    return Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()


def _elements(stream: CipherContext, count: int) -> _U64:
    """The next `count` elements mod p: 16 keystream bytes each, little-endian (bias below 2^-66)."""
    raw = np.frombuffer(stream.update(bytes(16 * count)), "<u8").reshape(count, 2)
    low, high = _reduce(raw[:, 0]), _reduce(raw[:, 1])
    return _reduce(low + _rotate(high, 3))  # 2^64 = 2^3 mod p


def _reduce(x: _U64) -> _U64:
    folded: _U64 = (x & _P) + (x >> np.uint64(61))
    reduced: _U64 = np.minimum(folded, folded - _P)  # below p the difference wraps around, and is the greater
    return reduced


def _rotate(x: _U64, places: int) -> _U64:
    """x · 2^places mod p, for x < 2^61."""
    if not places:
        return x
    turned: _U64 = ((x << np.uint64(places)) & _P) | (x >> np.uint64(61 - places))
    return turned


def _multiply(a: _U64, b: _U64) -> _U64:
    """a · b mod p, for a and b below p: four products of halves."""
    mask = np.uint64((1 << 31) - 1)
    a0, a1, b0, b1 = a & mask, a >> np.uint64(31), b & mask, b >> np.uint64(31)
    middle = _rotate(_reduce(a1 * b0 + a0 * b1), 31)
    top = a1 * b1 * np.uint64(2)  # 2^62 = 2 mod p
    return _reduce(top + middle + _reduce(a0 * b0))
