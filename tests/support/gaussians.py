"""The discrete Gaussian by other means than foedus': an oracle to compare with, and streams one chooses."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from foedus.privacy.noise import Keystream


class Dealt(Keystream):
    """Hands out just these bytes; whoever asks for more fails."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.left = data

    def take(self, count: int) -> bytes:
        if count > len(self.left):
            raise EOFError(f"{count} bytes asked for, {len(self.left)} left")
        taken, self.left = self.left[:count], self.left[count:]
        return taken


class Keyed(Keystream):
    """AES-256-CTR under a key that is known. Counts what it gives."""

    def __init__(self, key: bytes) -> None:
        super().__init__()
        self._encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        self.given = 0

    def take(self, count: int) -> bytes:
        self.given += count
        return self._encryptor.update(bytes(count))


@cache
def decimal_cumulative(variance: Fraction, *, folded: bool, digits: int) -> list[Decimal]:
    """P(magnitude ≤ k), each weight by its own exponential, until what is left is below 10^-digits."""
    with localcontext() as context:
        context.prec = digits + 20
        weights = [Decimal(1)]
        while weights[-1] > Decimal(10) ** -(digits + 5):
            square = Decimal(len(weights) ** 2 * variance.denominator)
            weights.append((1 + folded) * (-square / (2 * variance.numerator)).exp())
        total, sums = sum(weights), [Decimal(0)]
        for weight in weights:
            sums.append(sums[-1] + weight)
        return [s / total for s in sums[1:]]


def cks(sigma: int, size: int, stream: Keystream) -> npt.NDArray[np.int64]:
    """N_Z(0, sigma²) as Canonne, Kamath and Steinke 2020 (NeurIPS) draw it, Algorithms 1–3, some 30 µs a sample."""
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
