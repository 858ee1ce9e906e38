"""Randomness that protects people: a cipher's keystream, and the exact discrete Gaussian.

The sampler is Canonne, Kamath and Steinke 2020 (NeurIPS, "The Discrete Gaussian for Differential
Privacy"), Algorithms 1–3, in integers throughout: no floating point touches the noise, so the attacks
on floating-point Gaussians (Mironov 2012; Haney et al. 2022) find nothing. It takes some 30 µs a
sample in Python: fine for thousands of coordinates a round, slow for millions.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ..errors import InputError


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


def discrete_gaussian(sigma: int, size: int, stream: Keystream) -> npt.NDArray[np.int64]:
    """`size` independent samples of N_Z(0, sigma²), P(x) ∝ exp(−x²/2σ²) on the integers.

    Args:
        sigma: whole and positive; the variance is very slightly below sigma² only for sigma < 1.
    """
    if sigma < 1 or sigma >= 2**40:
        raise InputError(f"sigma must be a whole number from 1 to 2^40, not {sigma}")
    return np.fromiter((_gaussian(sigma, stream) for _ in range(size)), np.int64, size)


def _gaussian(sigma: int, stream: Keystream) -> int:
    t = sigma + 1
    variance = sigma * sigma
    denominator = 2 * variance * t * t
    while True:
        y = _laplace(t, stream)
        if _bernoulli_exp((abs(y) * t - variance) ** 2, denominator, stream):
            return y


def _laplace(t: int, stream: Keystream) -> int:
    """Discrete Laplace of scale t (Algorithm 2 with s = 1)."""
    while True:
        u = stream.below(t)
        if not _bernoulli_exp(u, t, stream):
            continue
        v = 0
        while _bernoulli_exp(1, 1, stream):
            v += 1
        magnitude = u + t * v
        negative = stream.take(1)[0] & 1
        if negative and magnitude == 0:
            continue
        return -magnitude if negative else magnitude


def _bernoulli_exp(numerator: int, denominator: int, stream: Keystream) -> bool:
    """True with probability exp(−numerator/denominator) (Algorithm 1)."""
    while numerator > denominator:
        if not _bernoulli_exp_unit(1, 1, stream):
            return False
        numerator -= denominator
    return _bernoulli_exp_unit(numerator, denominator, stream)


def _bernoulli_exp_unit(numerator: int, denominator: int, stream: Keystream) -> bool:
    k = 1
    while stream.below(denominator * k) < numerator:
        k += 1
    return k % 2 == 1
