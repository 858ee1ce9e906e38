"""Randomness that protects people: a cipher's keystream, and the exact discrete Gaussian drawn from it.

The distribution is that of Canonne, Kamath and Steinke 2020 (NeurIPS, "The Discrete Gaussian for Differential
Privacy"), and exactly that, at 4 to 15 ns a sample: each step either looks at enough of a uniform real's bits to
be sure, or draws more of them. Floating point appears in one place, between proven bounds, and never in a
sample, so the attacks on floating-point Gaussians (Mironov 2012; Haney et al. 2022) find nothing. The time taken
does depend, slightly, on what is drawn (Jin et al. 2022): draw where nobody can time it to nanoseconds.
"""

from __future__ import annotations

import operator
import os
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ..errors import InputError
from .discrete_gaussian import CELL_BITS, FINER, PREFIX_BITS, Table, exp_bounds, settle, table

_DIRECT = 1 << 10
"""The largest sigma that is drawn from one table; above it, a table of σ/2^j in [2^6, 2^7) serves."""
_BLOCK = 1 << 15  # samples drawn at a time: they and their random bits stay in the processor's cache
_SURE = 2.0**-20  # far above what rounding can do to doubles below 2^16
_W_BITS = 16


class Keystream:
    """Uniform bits from AES-256-CTR under a fresh key of the operating system. Has no seed to set."""

    def __init__(self) -> None:
        self._encryptor = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
        self._buffer = b""
        self._at = 0

    def __repr__(self) -> str:
        return "Keystream(…)"

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > 4096:
            return self._encryptor.update(bytes(count))
        if self._at + count > len(self._buffer):
            self._buffer, self._at = self._encryptor.update(bytes(8192)), 0
        self._at += count
        return self._buffer[self._at - count : self._at]

    def below(self, limit: int) -> int:
        """A uniform integer in [0, limit), exact by rejection; `limit` is at least 1."""
        if limit < 1:
            raise InputError(f"there is no integer in [0, {limit})")
        width = limit.bit_length()
        count = (width + 7) // 8
        while True:
            value = int.from_bytes(self.take(count), "little") & ((1 << width) - 1)
            if value < limit:
                return value

    def unit(self, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        """Uniform multiples of 2^-32 in [0, 1), for dither."""
        size = int(np.prod(shape))
        words = np.frombuffer(self._encryptor.update(bytes(4 * size)), np.uint32)
        return words.reshape(shape).astype(np.float64) * 2.0**-32


def discrete_gaussian(sigma: int | Fraction, size: int, stream: Keystream) -> npt.NDArray[np.int64]:
    """`size` independent samples of N_Z(0, sigma²), P(x) ∝ exp(−x²/2σ²) on the integers; exact.

    Sigma to 2^10: a sign, and a magnitude by inverse CDF. Above, k = 2^j with σ/k in [2^6, 2^7), and

    1. y ≥ 0 from the half Gaussian of variance (σ/k)², r uniform in [0, k);
    2. z = ky + r with probability exp(−r(r + 2ky)/2σ²), else again: then P(z) ∝ exp(−z²/2σ²), for
       exp(−y²/2(σ/k)²) · exp(−r(r + 2ky)/2σ²) = exp(−(ky + r)²/2σ²);
    3. a sign; again if it is −0, so that 0 has weight 1 as every other integer has.

    (Ducas, Durmus, Lepoint and Lyubashevsky 2013, CRYPTO, "Lattice Signatures and Bimodal Gaussians", section 6,
    where y comes bit by bit.) Step 2 takes 99 proposals in 100.

    Bits are read from the stream in this order, numbers little-endian (tests/vectors/noise.json has examples).
    Blocks of 2^15 samples; in each, for all m of them, then for the m that no z was taken for, until none is left:

    - m × 16 bits: the highest is the sign, the others the first 15 bits of u;
    - for every magnitude that these don't tell, in order, 64 bits: the highest 48 are u's next;
    - for every one that 63 bits don't tell, in order, 64 bits again and again until it is told;
    - for sigma over 2^10: m × 16 bits (32 if j > 16, 64 if j > 32), the lowest j are r; m × 16 bits, the first of a
      uniform real w, with z taken if w < exp(−r(r + 2ky)/2σ²); for every w that these don't decide, in order, 64
      bits again and again.

    Args:
        sigma: at least 1 and below 2^40; whole, or a fraction.
        size: how many, 0 or more.

    Returns: int64, shape (size,).

    Raises:
        InputError: sigma or size is not such a number.
    """
    if (
        isinstance(sigma, bool)
        or not isinstance(sigma, int | Fraction | np.integer)
        or not 1 <= sigma < 2**40
    ):
        raise InputError(f"sigma must be a whole number or a Fraction from 1 to 2^40, not {sigma!r}")
    if size < 0:
        raise InputError(f"there are no {size} samples")
    variance = Fraction(sigma if isinstance(sigma, Fraction) else operator.index(sigma)) ** 2
    shift = 0 if sigma <= _DIRECT else int(sigma).bit_length() - 7
    source = table(variance / 4**shift, shift == 0)
    samples = np.empty(size, np.int64)
    for start in range(0, size, _BLOCK):
        block = samples[start : start + _BLOCK]
        if not shift:
            words = _words(block.size, 2, stream)
            block[:] = _signed(_magnitudes(words, source, stream), words)
            continue
        block[:], taken = _proposals(variance, shift, block.size, source, stream)
        missing = np.flatnonzero(~taken)
        while missing.size:
            block[missing], taken = _proposals(variance, shift, missing.size, source, stream)
            missing = missing[~taken]
    return samples


def _proposals(
    variance: Fraction, shift: int, count: int, source: Table, stream: Keystream
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """`count` z with their signs, and which are taken."""
    words = _words(count, 2, stream)
    y = _magnitudes(words, source, stream)
    r = _words(count, 2 if shift <= 16 else 4 if shift <= 32 else 8, stream)
    r = r & r.dtype.type((1 << shift) - 1)
    taken = _accepted(y, r, shift, variance, stream)
    z = y << shift
    z |= r.astype(np.int64)
    if not z.all():
        taken &= (z > 0) | (words < 1 << CELL_BITS)
    return _signed(z, words), taken


def _words(count: int, width: int, stream: Keystream) -> npt.NDArray[np.unsignedinteger[Any]]:
    return np.frombuffer(stream.take(width * count), f"<u{width}")


def _signed(
    magnitudes: npt.NDArray[np.int64], words: npt.NDArray[np.unsignedinteger[Any]]
) -> npt.NDArray[np.int64]:
    """Minus where a word's highest bit is set, in place: −x is (x XOR −1) + 1."""
    sign = (words.view("<i2") >> CELL_BITS).astype(np.int64)
    magnitudes ^= sign
    magnitudes -= sign
    return magnitudes


def _magnitudes(
    words: npt.NDArray[np.unsignedinteger[Any]], source: Table, stream: Keystream
) -> npt.NDArray[np.int64]:
    """Inverse CDF at the u that begin with the words' lower 15 bits."""
    first = words & np.uint16((1 << CELL_BITS) - 1)
    magnitudes = source.cells.take(first).astype(np.int64)
    hard = np.flatnonzero(magnitudes < 0)
    if hard.size:
        rest = PREFIX_BITS - CELL_BITS
        u = first[hard].astype(np.uint64) << rest | _words(hard.size, 8, stream) >> (64 - rest)
        place = source.prefixes.searchsorted(u, side="right")
        magnitudes[hard] = place
        # At place 0 this looks at the last prefix, which u, below the first, does not equal.
        for tie in np.flatnonzero(source.prefixes[place - 1] == u):
            magnitudes[hard[tie]] = settle(
                int(u[tie]), lambda: _further(stream), source.variance, source.folded
            )
    return magnitudes


def _accepted(
    y: npt.NDArray[np.int64],
    r: npt.NDArray[np.unsignedinteger[Any]],
    shift: int,
    variance: Fraction,
    stream: Keystream,
) -> npt.NDArray[np.bool_]:
    """True with probability exp(−t), t = r(r + 2·2^shift·y)/2v, elementwise."""
    words = _words(r.size, 2, stream)
    # In units of 2^-16: t, then w + t. Seven roundings of floats put it off by less than 1/32 where it is below 2^16.
    low = r.astype(np.float32)
    sum_ = y.astype(np.float32)
    sum_ *= np.float32(2.0 ** (shift + 1))
    sum_ += low
    sum_ *= low
    sum_ *= np.float32(2**_W_BITS / float(2 * variance))
    sum_ += words
    taken: npt.NDArray[np.bool_] = sum_ <= 2**_W_BITS - 1.25  # all w that begin so are below 1 − t ≤ exp(−t)
    open_ = np.flatnonzero(~taken)
    if open_.size:
        a, b, w = r[open_].astype(np.int64), y[open_] << shift + 1, words[open_].astype(np.float64)
        p = np.exp(a * (b + a).astype(np.float64) / -float(2 * variance)) * 2.0**_W_BITS
        taken[open_] = w + (1 + _SURE) <= p
        for i in np.flatnonzero((w < p + _SURE) & ~taken[open_]):
            taken[open_[i]] = _below_exp(int(words[open_[i]]), int(a[i]) * int(a[i] + b[i]), variance, stream)
    return taken


def _below_exp(w: int, product: int, variance: Fraction, stream: Keystream) -> bool:
    """Whether the real that begins with these 16 bits is below exp(−product/2v)."""
    bits = _W_BITS
    while True:
        low, high = exp_bounds(product * variance.denominator, 2 * variance.numerator, bits + FINER)
        if (w + 1) << FINER <= low:
            return True
        if w << FINER >= high:
            return False
        w = w << 64 | _further(stream)
        bits += 64


def _further(stream: Keystream) -> int:
    return int.from_bytes(stream.take(8), "little")
