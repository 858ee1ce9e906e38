"""Masks: AES-256-CTR keystreams from HKDF-SHA256 seeds, added in the ring of the sum.

Every seed serves one purpose in one round (domain separation by HKDF's info), so a counter from zero
is safe. A seed's keystream gives, in this order, 16 bytes (little-endian, mod 2^61 − 1: the mask of the
check value, see `check`) and then the vector's mask, one little-endian word an element: 16 bits for the
modulus 2^16, else 32 bits, of which the lower b count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .check import P
from .rings import Ring, Words

CHUNK = 1 << 15
"""Elements worked on at a time: they and a keystream stay in the processor's cache. Even, so that chunks
of 20-bit elements end on whole bytes; a multiple of `check.ROW`."""

_ZEROS = memoryview(bytes(4 * CHUNK))


def derive(secret: bytes, *context: str | int) -> bytes:
    """A 32-byte key bound to its context (HKDF-SHA256, RFC 5869; fields joined by NUL, so none may hold one)."""
    info = b"foedus/v1\0" + b"\0".join(str(part).encode() for part in context)
    return HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(secret)


def keystream(key: bytes, count: int) -> bytes:
    """The first `count` bytes of AES-256-CTR under `key` from counter zero."""
    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(count))


class Masks:
    """The masks of several seeds, put on (or taken off) a vector chunk by chunk, in its order.

    Args:
        seeds: (seed of 32 bytes, True to subtract its mask); a seed is used for nothing else.
        ring: of the sum.
    """

    def __init__(self, seeds: Sequence[tuple[bytes, bool]], ring: Ring) -> None:
        self._ring = ring
        self._width = ring.word.itemsize
        self._room = memoryview(bytearray(self._width * CHUNK))
        self._words = np.frombuffer(self._room, ring.word)
        self._streams = []
        self.check = 0
        """What the masks add to the check value, mod p."""
        first = memoryview(bytearray(16))
        for seed, negative in seeds:
            update = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor().update_into
            update(_ZEROS[:16], first)
            element = int.from_bytes(first, "little")
            self.check = (self.check + (-element if negative else element)) % P
            self._streams.append((update, np.subtract if negative else np.add))

    def __repr__(self) -> str:
        return "Masks(…)"

    def put_on(self, chunk: Words) -> None:
        """Add the next `chunk.size` (at most `CHUNK`) mask elements to `chunk`, in place."""
        count = self._width * chunk.size
        zeros, room, words = _ZEROS[:count], self._room[:count], self._words[: chunk.size]
        for update, combine in self._streams:
            update(zeros, room)
            combine(chunk, words, out=chunk)


def chunks(dimension: int) -> list[tuple[int, int]]:
    """The (start, stop) of every chunk of a vector."""
    return [(start, min(start + CHUNK, dimension)) for start in range(0, dimension, CHUNK)]
