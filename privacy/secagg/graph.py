"""The sparse neighbour graph of the secure sum among many silos.

Bell, Bonawitz, Gascón, Lepoint and Raykova 2020 (CCS), "Secure Single-Server Aggregation with (Poly)Logarithmic
Overhead": a Harary (circulant) graph on a random cyclic order, each silo joined to the h nearest on
either side. A silo masks with its k = 2h neighbours only, and deals its shares to them and to itself.

The graph is over the m silos that advertised keys, of which up to c (chosen before the graph is drawn)
help the server. Everybody knows it, and the server chooses whom it calls dropped *after* seeing it. So
no bound on random drop-outs may carry secrecy; each silo checks the survivors U instead, before it answers:

    **every window of h consecutive places holds at least w + 1 members of U**   (`Graph.check`)

where w bounds the colluders in every window of h (`parameters`; fails with chance 2^-100 a draw at most).

(a) *Connected.* Let p and q be honest members of U with none between them in the cyclic order. If h or
    more places lay between, the first h of them were a window whose members of U are colluders only: at
    most w, against the check. So fewer than h lie between, and p and q are joined. Going round, all honest
    members of U are connected, whatever was dropped; their masks cancel in no smaller sum than that of all.
(b) *Secret.* The holders of an honest silo's shares are itself and two windows: at most 2w colluders. The
    threshold is 2w + 1, so they need an honest holder; and honest holders give one of the two secrets
    only, since all answer for one U (members' seeds, the others' mask keys).
(c) *Available.* By the check, two windows hold 2w + 2 members of U at least. So of the holders of a
    dropped silo one may still vanish before it answers, of a member's (which holds a share itself)
    two; that is the worst case the check lets pass. `parameters` makes it rare: with a random share
    `losses` of all silos lost *by the end of the round*, every window still has w + 1 that answer,
    but for a chance of 2^-40. A higher threshold than 2w + 1 would take from this and add nothing to (b).

Nobody is promised a result against a server, or colluders, who fall silent: they can always deny service.

What (a)–(c) rest on, and the caller owes:

1. One U: |U| ≥ T = ⌊(n + c)/2⌋ + 1 and T signed confirmations of it, over the n silos of the treaty.
2. One graph: the boxes of shares are bound to the advertisements the graph was drawn from, so that of a silo that was
   shown another graph no honest silo holds a share, and no sum with it opens.
3. One list of participants: an honest holder gives a share of a member of U only if that member's signed upload
   names the participants this holder knows. Else two honest neighbours, each told that the other
   never dealt its shares, would both leave out their mask, and (a) lacks that edge.
4. The seed depends on all advertisements (a digest of them) and no silo's secret; the order then counts as random,
   HKDF as a random oracle. The server may still try seeds, by leaving silos out or making colluders' keys anew:
   2^60 tries, over all set-ups of a treaty, are in the bound. All silos that advertised are placed (m may be less
   than n; all c may be among them); who then deals no shares is not in U and counts as lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Self

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ...errors import InputError, ProtocolError
from . import masks

SPARSE_ABOVE = 64  # silos; up to here everybody is joined to everybody, and nothing is left to chance
FAILURE_BITS = 40  # a bound fails with chance 2^-40 at most …
GRINDING_BITS = 60  # … and that of secrecy even if the best of 2^60 seeds may be picked
SEED_BYTES = 32
LOSSES = 0.1


@dataclass(frozen=True)
class Parameters:
    """Args: half: h, neighbours on either side. window: w, colluders in h consecutive places at most."""

    half: int
    window: int

    def __post_init__(self) -> None:
        if not 0 <= self.window < self.half:
            raise InputError(f"a window of {self.half} places can't be checked for {self.window} colluders")

    @property
    def degree(self) -> int:
        """k = 2h, the neighbours of each silo."""
        return 2 * self.half

    @property
    def threshold(self) -> int:
        """Shares that rebuild a secret dealt to the k + 1 holders: one more than their colluders, 2w."""
        return 2 * self.window + 1

    @property
    def least(self) -> int:
        """Survivors that every window must hold: w + 1."""
        return self.window + 1


def parameters(silos: int, colluders: int, *, losses: float = LOSSES) -> Parameters | None:
    """The sparsest graph that keeps all bounds, or None if only the complete graph does.

    With m silos of which c collude and ⌈losses · m⌉ are lost, the least h < (m − 1)/2 that has a w with

    - m · P[Hypergeometric(m, c, h) > w] ≤ 2^-(FAILURE_BITS + GRINDING_BITS): w bounds the colluders in every window;
    - m · P[Hypergeometric(m, ⌈losses · m⌉, h) > h − w − 1] ≤ 2^-FAILURE_BITS: each keeps w + 1 silos.

    Both are decided in integers, so no rounding can understate a tail. With the default losses:

    ====== ===== ==== ==== ==== =========
    m      c     h    k    w    threshold
    ====== ===== ==== ==== ==== =========
        65    21   29   58   21        43
       200    66   85  170   64       129
       200    20   40   80   20        41
      1000   333  185  370  133       267
      1000   100   84  168   49        99
     10000  3333  243  486  173       347
     10000  1000  103  206   60       121
    ====== ===== ==== ==== ==== =========

    (Where w = c no chance is left: all colluders may be side by side.)

    Args:
        silos: m, those that advertised keys (not all of the treaty).
        colluders: c, as in the treaty: all of them may be present.
        losses: share of the silos that may be lost at random, at any time in the round.

    Raises:
        InputError: nobody to protect, or losses outside [0, 1).
    """
    if not 1 <= colluders <= silos - 2:
        raise InputError(f"{colluders} colluders among {silos} silos leave nobody to protect")
    if not 0 <= losses < 1:
        raise InputError(f"losses must be a share in [0, 1), not {losses}")
    lost = math.ceil(Fraction(str(losses)) * silos)
    return _sparsest(silos, colluders, lost, FAILURE_BITS + GRINDING_BITS, FAILURE_BITS)


@lru_cache(maxsize=256)
def _sparsest(silos: int, colluders: int, lost: int, secrecy: int, liveness: int) -> Parameters | None:
    half, window = 1, 0
    while 2 * half < silos - 1:
        # For this h the least w is wanted: it leaves the most room for losses, and never falls as h grows.
        # So a w may be refused for good, and what is refused to a lesser w is refused to a greater. Estimates
        # only refuse; what is returned was decided in integers.
        colluding = silos, colluders, half, window, secrecy
        losing = silos, lost, half, half - window - 1, liveness
        if _surely_common(*colluding):
            window += 1
        elif half <= window or _surely_common(*losing):
            half += 1
        elif not rare(*colluding):
            window += 1
        elif not rare(*losing):
            half += 1
        else:
            return Parameters(half, window)
    return None


def _surely_common(silos: int, marked: int, size: int, most: int, bits: int) -> bool:
    """Whether one term of the tail is above the bound of `rare`, by a factor of two for what floats lose."""
    j = max(most + 1, (size + 1) * (marked + 1) // (silos + 2))  # the mode, or the tail's first
    if not max(0, size + marked - silos) <= j <= min(size, marked):
        return False
    chance = _log_comb(marked, j) + _log_comb(silos - marked, size - j) - _log_comb(silos, size)
    return chance + math.log(silos) > (1 - bits) * math.log(2)


def _log_comb(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def rare(silos: int, marked: int, size: int, most: int, bits: int) -> bool:
    """Whether silos · P[Hypergeometric(silos, marked, size) > most] ≤ 2^-bits, exactly.

    By the union bound: whether, but for 2^-bits, no window of `size` places of a random cyclic order holds more
    than `most` of the `marked`.
    """
    limit = math.comb(silos, size) // (silos << bits)  # of the sum of the tail's numerators
    first, last = max(most + 1, size + marked - silos, 0), min(size, marked)
    if first > last:
        return True
    term = total = math.comb(marked, first) * math.comb(silos - marked, size - first)
    for j in range(first, last):
        if total > limit:
            return False
        # Each term is `up/down` of the one before; that ratio falls with j, so a geometric sum bounds the rest.
        up, down = (marked - j) * (size - j), (j + 1) * (silos - marked - size + j + 1)
        if up < down and total * (down - up) + term * up <= limit * (down - up):
            return True
        term = term * up // down
        total += term
    return total <= limit


@dataclass(frozen=True)
class Graph:
    """Who is whose neighbour: silos in cyclic order, each joined to the `parameters.half` next on either side.

    Raises:
        InputError: a silo twice, or so few that all were joined to all.
    """

    order: tuple[str, ...]
    parameters: Parameters

    def __post_init__(self) -> None:
        if len(set(self.order)) != len(self.order):
            raise InputError("a silo has two places in the neighbour graph")
        if self.parameters.degree >= len(self.order) - 1:
            raise InputError(
                f"{len(self.order)} silos can't have {self.parameters.degree} neighbours each in a sparse graph",
                remedy="use the parameters of just these silos",
            )

    @classmethod
    def draw(cls, names: Iterable[str], seed: bytes, parameters: Parameters) -> Self:
        """The graph of a public seed, the same for everybody and in every language.

        1. Sort the names by their UTF-8 bytes; call the list a, its length m.
        2. key = HKDF-SHA256(seed, no salt, info = "foedus/v1" NUL "secure-sum-graph"), 32 bytes (`masks.derive`).
        3. The stream is AES-256-CTR under key, counter block 0 (16 bytes, big-endian), of zeros; it is read
           four bytes at a time, each a little-endian word v.
        4. For i = m − 1 down to 1: read words until v < 2^32 − (2^32 mod (i + 1)); then j = v mod (i + 1), and
           a[i], a[j] change places (Fisher–Yates: all m! orders are equally likely under a random stream).
        5. a is the cyclic order.

        Raises:
            InputError: a seed that is not 32 bytes, or as the class says.
        """
        if len(seed) != SEED_BYTES:
            raise InputError(f"the seed of a neighbour graph has {SEED_BYTES} bytes, not {len(seed)}")
        order = sorted(names)  # by code points, which is the order of UTF-8 bytes
        words = _words(masks.derive(seed, "secure-sum-graph"))
        for i in range(len(order) - 1, 0, -1):
            fair = (1 << 32) - (1 << 32) % (i + 1)
            j = next(v for v in words if v < fair) % (i + 1)
            order[i], order[j] = order[j], order[i]
        return cls(tuple(order), parameters)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {silo: place for place, silo in enumerate(self.order)}

    def holders(self, name: str) -> tuple[str, ...]:
        """Who holds shares of a silo's secrets: its neighbours and itself, sorted (k + 1 names)."""
        return tuple(sorted((*self.neighbours(name), name)))

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Whom a silo shares masks with, sorted (k names).

        Raises:
            ProtocolError: it has no place in this graph.
        """
        place = self._place(name)
        steps = range(1, self.parameters.half + 1)
        around = (self.order[(place + way * step) % len(self.order)] for step in steps for way in (1, -1))
        return tuple(sorted(around))

    def check(self, survivors: Iterable[str]) -> None:
        """Every window of h consecutive places must hold w + 1 survivors; what follows stands at the top.

        Raises:
            ProtocolError: names the first window that is too empty; or a survivor twice, or without a place.
        """
        here = [False] * len(self.order)
        for silo in survivors:
            place = self._place(silo)
            if here[place]:
                raise ProtocolError(f"{silo} is named twice among the survivors")
            here[place] = True
        half, least = self.parameters.half, self.parameters.least
        inside = sum(here[:half])
        for start in range(len(self.order)):
            end = (start + half) % len(self.order)  # the place behind the window
            if inside < least:
                raise ProtocolError(
                    f"of the {half} silos from {self.order[start]} to {self.order[end - 1]} in the neighbour graph "
                    f"{inside} survive, {least} must: too few to hide who is beside them",
                    remedy="nothing was revealed; see why so many of these are silent, then run the round again",
                )
            inside += here[end] - here[start]

    def _place(self, name: str) -> int:
        if name not in self._places:
            raise ProtocolError(f"{name} has no place in the neighbour graph")
        return self._places[name]


def _words(key: bytes) -> Iterator[int]:
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    while True:
        yield int.from_bytes(stream.update(bytes(4)), "little")
