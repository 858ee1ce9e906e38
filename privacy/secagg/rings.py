"""The rings a sum is taken in, Z/2^b for b = 16, 20, 24, 32, and how their elements travel.

On the wire an element takes b bits and no more. 16 and 32 bits are little-endian words; of wider and
narrower ones come first the lower 16 bits of all elements, as words, and then the upper parts of all: a
byte each of 24 bits; of 20 bits half a byte, the earlier element's in the lower half. In memory it is an unsigned word of 16 or 32 bits, whose upper bits mean nothing until `pack`.

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
        room = bytearray(self.wire_bytes(words.size))
        self.pack_into(words, room, 0)
        return bytes(room)

    def pack_into(self, words: Words, room: bytearray, start: int) -> None:
        """Write elements `start` and following (an even number) into the room of a whole packed vector."""
        out, stop = np.frombuffer(room, np.uint8), start + words.size
        if self.bits in (16, 32):
            out.view(self.word)[start:stop] = words
            return
        dimension = len(room) * 8 // self.bits
        out[: 2 * dimension].view("<u2")[start:stop] = words.astype("<u2")
        upper = (words >> np.uint32(16)).astype(np.uint8)
        if self.bits == 24:
            out[2 * dimension + start : 2 * dimension + stop] = upper
            return
        upper &= np.uint8(15)
        at = 2 * dimension + start // 2
        half = upper.size // 2
        out[at : at + half] = upper[0 : 2 * half : 2] | upper[1::2] << np.uint8(4)
        if upper.size % 2:
            out[at + half] = upper[-1]

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
        raw = np.frombuffer(data, np.uint8)
        upper = raw[2 * dimension :]
        if self.bits == 20:
            upper = np.stack((upper & np.uint8(15), upper >> np.uint8(4)), axis=1).reshape(-1)
            if upper[dimension:].any():
                raise ProtocolError("the padding behind a packed vector is not zero")
        words = upper[:dimension].astype(self.word)
        words <<= np.uint32(16)
        words |= raw[: 2 * dimension].view("<u2")
        return words


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
