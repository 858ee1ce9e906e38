"""The rings a sum is taken in, Z/2^b for b = 16, 20, 24, 32, and how their elements travel.

On the wire an element takes b bits and no more (little-endian; 20-bit elements go in pairs of five
bytes). In memory it is an unsigned word of 16 or 32 bits, whose upper bits mean nothing until `pack`.

A sum that wraps around is silently wrong, the worst bug there is. So a ring is chosen for it: `fitting`
takes the narrowest in which n silos' vectors and their noise overflow with probability below 2^-40.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError, ProtocolError

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.unsignedinteger[Any]]

WIDTHS = (16, 20, 24, 32)
OVERFLOW_BITS = 40
"""A sum overflows with probability below 2^-40."""


@dataclass(frozen=True)
class Ring:
    """Z/2^bits; its elements stand for the integers −2^(bits−1) … 2^(bits−1) − 1."""

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS:
            raise InputError(f"a modulus of 2^{self.bits}: foedus sums modulo 2^16, 2^20, 2^24 or 2^32")

    @property
    def half(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def word(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Little-endian words of an element in memory and in a mask's keystream."""
        return np.dtype("<u2") if self.bits == 16 else np.dtype("<u4")

    def wire_bytes(self, dimension: int) -> int:
        """Bytes that `dimension` elements take on the wire."""
        return (dimension * self.bits + 7) // 8

    def zeros(self, dimension: int) -> Words:
        return np.zeros(dimension, self.word)

    def wrap(self, values: npt.NDArray[np.signedinteger[Any]] | npt.NDArray[np.float64]) -> Words:
        """Whole numbers, signed integers or float64, as ring elements; shape kept.

        Raises:
            InputError: a value outside the ring's range: it would come back as another number.
        """
        if values.size and not (values.max() < self.half and values.min() >= -self.half):
            raise InputError(f"a value does not fit the modulus 2^{self.bits}; it would wrap around")
        if values.dtype == np.float64:
            values = values.astype(np.int32)
        return values.astype(self.word)

    def unwrap(self, words: Words) -> Integers:
        """The signed integers nearest zero that `words` stand for."""
        if self.bits in (16, 32):
            return words.view(f"<i{self.word.itemsize}").astype(np.int64)
        shift = 32 - self.bits
        signed = (words << np.uint32(shift)).view("<i4") >> np.int32(shift)
        return signed.astype(np.int64)

    def pack(self, words: Words) -> bytes:
        """Elements as they travel: `wire_bytes(d)` bytes. Upper bits of a word are dropped."""
        data = bytearray(self.wire_bytes(words.size))
        self.pack_into(words, memoryview(data))
        return bytes(data)

    def pack_into(self, words: Words, room: memoryview) -> None:
        """`pack` into the `wire_bytes(d)` bytes of `room`."""
        out = np.frombuffer(room, np.uint8)
        if self.bits in (16, 32):
            out.view(self.word)[:] = words
            return
        group = _GROUP[self.bits]
        whole = words.size // group * group
        bits = _squeeze(words[:whole], self.bits)
        out[: bits.size] = bits
        if whole < words.size:
            rest = np.zeros(group, self.word)
            rest[: words.size - whole] = words[whole:]
            out[bits.size :] = _squeeze(rest, self.bits)[: out.size - bits.size]

    def unpack(self, data: bytes | bytearray, dimension: int) -> Words:
        """The elements of `pack`.

        Raises:
            ProtocolError: not as many bytes as `dimension` elements take, or padding that is not zero.
        """
        if len(data) != self.wire_bytes(dimension):
            raise ProtocolError(
                f"{len(data)} bytes where {dimension} elements of {self.bits} bits take {self.wire_bytes(dimension)}"
            )
        if self.bits in (16, 32):
            return np.frombuffer(data, self.word).copy()
        block = _GROUP[self.bits] * self.bits // 8
        raw = np.frombuffer(data, np.uint8)
        if raw.size % block:
            raw = np.concatenate([raw, np.zeros(-raw.size % block, np.uint8)])
        words = _spread(raw, self.bits)
        if words[dimension:].any():
            raise ProtocolError("the padding behind a packed vector is not zero")
        return words[:dimension]


# Elements of 20 and 24 bits: two words hold a pair (40 or 48 bits), and 8 or 4 pairs fill 5 or 3 words of
# 64 bits. Whole arrays at a time, as byte by byte it would cost as much as the masks.
_GROUP = {20: 16, 24: 8}  # elements that fill whole words of 64 bits


def _shifted(x: npt.NDArray[np.uint64], places: int) -> npt.NDArray[np.uint64]:
    """x · 2^places, whole."""
    return x << np.uint64(places) if places >= 0 else x >> np.uint64(-places)


def _squeeze(words: Words, bits: int) -> npt.NDArray[np.uint8]:
    """Whole groups of elements as bytes."""
    mask = np.uint64((1 << bits) - 1)
    both = words.view("<u8")
    pairs = (both & mask) | ((both >> np.uint64(32 - bits)) & (mask << np.uint64(bits)))
    count = _GROUP[bits] // 2
    pairs = pairs.reshape(-1, count)
    out = np.zeros((len(pairs), count * bits // 32), "<u8")
    for place in range(count):
        first, offset = divmod(place * 2 * bits, 64)
        out[:, first] |= _shifted(pairs[:, place], offset)
        if offset + 2 * bits > 64:
            out[:, first + 1] |= _shifted(pairs[:, place], offset - 64)
    return out.reshape(-1).view(np.uint8)


def _spread(raw: npt.NDArray[np.uint8], bits: int) -> Words:
    """The elements of whole groups."""
    count = _GROUP[bits] // 2
    packed = raw.view("<u8").reshape(-1, count * bits // 32)
    mask = np.uint64((1 << bits) - 1)
    both = np.empty((len(packed), count), "<u8")
    for place in range(count):
        first, offset = divmod(place * 2 * bits, 64)
        pair = _shifted(packed[:, first], -offset)
        if offset + 2 * bits > 64:
            pair = pair | _shifted(packed[:, first + 1], 64 - offset)
        both[:, place] = (pair & mask) | ((pair & (mask << np.uint64(bits))) << np.uint64(32 - bits))
    return both.reshape(-1).view("<u4")


def noise_tail(dimension: int) -> float:
    """z such that none of `dimension` coordinates of noise passes z·σ, but with probability < 2^-40.

    Discrete Gaussians and their sums are sub-Gaussian with their σ² (Canonne, Kamath and Steinke 2020,
    Corollary 17 and what follows): P(|X| ≥ zσ) ≤ 2 exp(−z²/2); then the union over all coordinates.
    """
    return math.sqrt(2 * math.log(2 * max(dimension, 1) * 2.0**OVERFLOW_BITS))


def fitting(magnitude: float, sigma: float, dimension: int, *, what: str = "the sum") -> Ring:
    """The narrowest ring for a sum.

    Args:
        magnitude: the largest absolute value a coordinate can have before noise, over all silos.
        sigma: standard deviation of all silos' noise together, integer units.
        dimension: number of coordinates.

    Raises:
        InputError: not even 2^32 is enough.
    """
    reach = magnitude + noise_tail(dimension) * sigma
    for bits in WIDTHS:
        if reach < 1 << (bits - 1):
            return Ring(bits)
    raise InputError(f"{what} can reach {reach:.3g}, which does not fit the modulus 2^{WIDTHS[-1]}")
