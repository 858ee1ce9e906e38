"""The cryptographer on the attacker's side.

`Spy` holds whatever a server and the silos that help it have, and opens whatever follows from it: every
sum over any set of silos whose masks it can take away, and from all opened sums together, by linear
algebra, a single silo's vector.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations, islice, product

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from foedus.documents import Envelope, Payload
from foedus.privacy.secagg import masks, shares
from foedus.privacy.secagg.client import Silo
from foedus.privacy.secagg.keys import (
    Advertisement,
    Context,
    Roster,
    agree,
    mask_agree,
    mask_public,
    seed_commitment,
)
from foedus.privacy.secagg.rings import Integers, Ring, Words
from foedus.privacy.secagg.seeds import pair_seed, self_seed
from foedus.privacy.secagg.statements import subject
from foedus.privacy.secagg.topology import names_digest

D = 2000  # coordinates of a victim's vector in these attacks


@dataclass(frozen=True)
class Reading:
    """How much of a victim's vector the attacker's best guess is.

    Args:
        exact: coordinates guessed exactly, of `size`. correlation: of guess and truth.
    """

    exact: int
    size: int
    correlation: float

    @property
    def broken(self) -> bool:
        """Better than chance: an exact coordinate in a hundred, or a correlation beyond six standard errors."""
        return self.exact > self.size / 100 or abs(self.correlation) > 6 / math.sqrt(self.size)

    def __str__(self) -> str:
        return f"{self.exact:,} of {self.size:,} coordinates, correlation {self.correlation:+.2f}"


def compare(guess: Integers, truth: Integers) -> Reading:
    """Measure a guess."""
    varied = guess.std() > 0 and truth.std() > 0
    return Reading(
        int((guess == truth).sum()),
        truth.size,
        float(np.corrcoef(guess, truth)[0, 1]) if varied else 0.0,
    )


Key = tuple[int, str]  # round, silo
SEED, MASK = "seed", "mask key"
_MIXTURES = 200  # ways to add up answers for different sets that are tried for one secret


@dataclass(frozen=True)
class Given:
    """One answer: who gave it, for which sets it was asked, and the values; and less the blinds shared with helpers."""

    by: str
    survivors: tuple[str, ...]
    answering: tuple[str, ...]
    values: Mapping[tuple[str, str], int]  # owner, kind
    bare: Mapping[tuple[str, str], int]


@cache
def _weights(points: tuple[int, ...]) -> dict[int, int]:
    """Lagrange's, at 0."""
    return {x: shares.weight(x, points) for x in points}


@dataclass
class Spy:
    """All that the server and its helpers know of one batch."""

    roster: Roster
    context: Context
    public: dict[str, Advertisement] = field(default_factory=dict)
    participants: tuple[str, ...] = ()
    uploads: dict[Key, Words] = field(default_factory=dict)
    headers: dict[Key, Payload] = field(default_factory=dict)
    own: dict[Key, Integers] = field(default_factory=dict)
    secrets: dict[tuple[int, str, str], int] = field(default_factory=dict)  # round, silo, kind
    shares: dict[tuple[int, str, str], dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    helpers: dict[str, X25519PrivateKey] = field(default_factory=dict)  # and their share keys
    given: dict[int, list[Given]] = field(default_factory=lambda: defaultdict(list))
    _news: int = 0  # counts what was heard: what was tried in vain is tried again after news only
    _vain: dict[tuple[int, str, str], int] = field(default_factory=dict)
    _opened: dict[int, tuple[int, dict[tuple[str, ...], Integers]]] = field(default_factory=dict)

    # ── what it comes by ─────────────────────────────────────────────────────────────────────────

    def hear_keys(self, envelopes: Sequence[Envelope], participants: Iterable[str]) -> None:
        """Everybody's public keys, and who finished set-up."""
        for envelope in envelopes:
            silo = str(envelope.payload["silo"])
            self.public[silo] = Advertisement.verify(envelope, self.context, silo, self.roster.key(silo))
        self.participants = tuple(sorted(participants))

    def hear_vector(self, number: int, silo: str, data: bytes | bytearray, header: Envelope) -> None:
        """A masked vector."""
        said = header.payload
        self.uploads[number, silo] = Ring(said["bits"]).unpack(data, said["dimension"])
        self.headers[number, silo] = said
        self._news += 1

    def hear_answer(
        self,
        number: int,
        silo: str,
        told: tuple[Sequence[str], Sequence[str]],
        seeds: Mapping[str, bytes],
        mask_keys: Mapping[str, bytes],
    ) -> None:
        """What one silo gave when it was told these survivors, and these to answer. (Helpers' own shares are known.)"""
        if silo in self.helpers:
            return
        values = {(owner, SEED): shares.from_bytes(value) for owner, value in seeds.items()}
        values |= {(owner, MASK): shares.from_bytes(value) for owner, value in mask_keys.items()}
        survivors, answering = (tuple(sorted(set(names))) for names in told)
        blinds = self._blinds(number, silo, survivors, answering)
        bare = {(o, kind): (value - blinds[o]) % shares.PRIME for (o, kind), value in values.items()}
        self.given[number].append(Given(silo, survivors, answering, values, bare))
        self._news += 1

    def _blinds(
        self, number: int, silo: str, survivors: tuple[str, ...], answering: tuple[str, ...]
    ) -> dict[str, int]:
        """What the helpers' keystreams add to an answer, by owner."""
        bound = [names_digest(names) for names in (self.participants, survivors, answering)]
        blinds = dict.fromkeys(self.participants, 0)
        for helper in set(answering) & set(self.helpers):
            low, high = sorted((silo, helper))
            secret = agree(self.helpers[helper], self.public[silo].share_key)
            key = masks.derive(secret, "answer", self.context.digest, number, low, high, *bound)
            stream = masks.keystream(key, 32 * len(blinds))
            for place, owner in enumerate(blinds):
                element = int.from_bytes(stream[32 * place : 32 * place + 32], "little")
                blinds[owner] += element if silo == low else -element
        return blinds

    def turn(self, silo: Silo, vectors: Mapping[int, Integers] | None = None) -> None:
        """A silo hands over all it has: its own secrets, its shares of the others', its vectors."""
        x = self.roster.point(silo.name)
        self.helpers[silo.name] = silo._keys._share_key
        for number in self.context.rounds:
            self.secrets[number, silo.name, SEED] = silo._keys.seed(number)
            self.secrets[number, silo.name, MASK] = silo._keys.mask_secret(number)
        for owner, rounds in silo._held.items():
            for number, (mask_share, seed_share) in rounds.items():
                self.shares[number, owner, MASK][x] = mask_share
                self.shares[number, owner, SEED][x] = seed_share
        for number, vector in (vectors or {}).items():
            self.own[number, silo.name] = vector
        self._news += 1

    def search(self, number: int, seeds: Iterable[int], mask_secrets: Iterable[int]) -> int:
        """Try candidates for secrets against what is public of them; how many were found."""
        commitments = {a.seeds[number]: silo for silo, a in self.public.items()}
        keys = {a.mask[number]: silo for silo, a in self.public.items()}
        found = 0
        for candidate in seeds:
            if (silo := commitments.get(seed_commitment(candidate))) is not None:
                self.secrets[number, silo, SEED], found = candidate, found + 1
        for candidate in mask_secrets:
            if (silo := keys.get(mask_public(candidate))) is not None:
                self.secrets[number, silo, MASK], found = candidate, found + 1
        self._news += 1
        return found

    # ── what follows from it ─────────────────────────────────────────────────────────────────────

    def secret(self, number: int, silo: str, kind: str) -> int | None:
        """A silo's self-mask seed or mask key, if it is known or follows from what was heard."""
        at = number, silo, kind
        if at not in self.secrets and self._vain.get(at) != self._news:
            published = self.public[silo]
            fits = (
                (lambda s: seed_commitment(s) == published.seeds[number])
                if kind == SEED
                else (lambda s: mask_public(s) == published.mask[number])
            )
            found = next((s for s in self._candidates(*at) if fits(s)), None)
            if found is None:
                self._vain[at] = self._news
            else:
                self.secrets[at] = found
        return self.secrets.get(at)

    def _candidates(self, number: int, owner: str, kind: str) -> Iterator[int]:
        """Everything the answers and the helpers' shares may add up to, once each."""
        about = [given for given in self.given[number] if (owner, kind) in given.values]
        own = self.shares[number, owner, kind]
        seen: set[int] = set()
        for candidate in self._sums(about, own, (owner, kind)):
            if candidate not in seen:
                seen.add(candidate)
                yield candidate
        for reading in self._readings(about, own, (owner, kind)):
            for points in combinations(sorted(reading), self.roster.threshold):
                weights = _weights(points)
                candidate = sum(weights[x] * reading[x] for x in points) % shares.PRIME
                if candidate not in seen:
                    seen.add(candidate)
                    yield candidate

    def _sums(self, about: list[Given], own: Mapping[int, int], what: tuple[str, str]) -> Iterator[int]:
        """As the server should: the answers of one set added up; then of any that can be mixed, weighed anew."""
        for answering in dict.fromkeys(given.answering for given in about):
            weights = _weights(tuple(self.roster.point(silo) for silo in answering))
            helped = sum(weights[x] * own.get(x, 0) for x in (self.roster.point(s) for s in answering))
            for survivors in dict.fromkeys(given.survivors for given in about):
                told = [g for g in about if (g.survivors, g.answering) == (survivors, answering)]
                yield (helped + sum({g.by: g.bare[what] for g in told}.values())) % shares.PRIME
            by = [[g for g in about if g.by == silo] for silo in answering if silo not in self.helpers]
            for mixed in islice(product(*(some for some in by if some)), _MIXTURES):
                total = helped
                for given in mixed:
                    x = self.roster.point(given.by)
                    total += given.bare[what] * self._unweighed(given) * weights[x]
                yield total % shares.PRIME

    def _unweighed(self, given: Given) -> int:
        """What takes an answer's own weight away."""
        points = tuple(self.roster.point(silo) for silo in given.answering)
        return pow(_weights(points)[self.roster.point(given.by)], -1, shares.PRIME)

    def _readings(
        self, about: list[Given], own: Mapping[int, int], what: tuple[str, str]
    ) -> list[dict[int, int]]:
        """Answers taken for shares: as they are, less helpers' blinds, without weight, and differences of two."""
        readings: list[dict[int, int]] = [dict(own) for _ in range(5)]
        for given in about:
            x, unweighed = self.roster.point(given.by), self._unweighed(given)
            plain, bare = given.values[what], given.bare[what]
            for reading, y in zip(readings, (plain, bare, plain * unweighed, bare * unweighed), strict=False):
                reading[x] = y % shares.PRIME
            for other in about:
                if other.by == given.by and other.answering != given.answering:
                    apart = pow(unweighed, -1, shares.PRIME) - pow(self._unweighed(other), -1, shares.PRIME)
                    if apart % shares.PRIME:
                        y = (bare - other.bare[what]) * pow(apart, -1, shares.PRIME)
                        readings[4][x] = y % shares.PRIME
        return [reading for reading in readings if len(reading) >= self.roster.threshold]

    def _pair(self, number: int, one: str, other: str) -> bytes | None:
        """The seed of the mask that `one` put on its vector together with `other`, if either half of it is known."""
        for mine, theirs in ((one, other), (other, one)):
            secret = self.secret(number, mine, MASK)
            if secret is not None:
                agreed = mask_agree(secret, self.public[theirs].mask[number])
                said = self.headers[number, one]
                about = subject(said["task"], said["dimension"], Ring(said["bits"]), said["model"])
                return pair_seed(agreed, self.context, number, one, other, about)
        return None

    def openable(self, number: int, members: Sequence[str]) -> bool:
        """Whether every mask on the sum over `members` is known."""
        outside = [s for s in self.participants if s not in members]
        return all(self.secret(number, silo, SEED) is not None for silo in members) and all(
            self.secret(number, one, MASK) is not None or self.secret(number, other, MASK) is not None
            for one, other in product(members, outside)
        )

    def unmasked(self, number: int, members: Sequence[str]) -> Integers:
        """The sum over `members` with every mask taken away that can be."""
        ring = Ring(self.headers[number, members[0]]["bits"])
        words = np.zeros_like(self.uploads[number, members[0]])
        known = []
        for silo in members:
            words += self.uploads[number, silo]
            seed = self.secret(number, silo, SEED)
            if seed is not None:
                known.append((self_seed(seed, self.context, number, silo), True))
            for peer in set(self.participants) - set(members):
                pair = self._pair(number, silo, peer)
                if pair is not None:
                    known.append((pair, silo < peer))
        on = masks.Masks(known, ring)
        for start, stop in masks.chunks(words.size):
            on.put_on(words[start:stop])
        return ring.unwrap(words)

    def opened(self, number: int) -> dict[tuple[str, ...], Integers]:
        """Every sum this spy can open, by its members."""
        news, found = self._opened.get(number, (-1, {}))
        if news != self._news:
            there = sorted(silo for r, silo in self.uploads if r == number)
            found = {
                members: self.unmasked(number, members)
                for size in range(1, len(there) + 1)
                for members in combinations(there, size)
                if self.openable(number, members)
            }
            self._opened[number] = self._news, found
        return found

    def honest_sums(self, number: int) -> int:
        """Of how many independent sums of honest silos the spy knows the value."""
        rows = [
            [s in members for s in self.participants if s not in self.helpers]
            for members in self.opened(number)
        ]
        return int(np.linalg.matrix_rank(np.array(rows, float))) if rows else 0

    def least_honest(self, number: int) -> int:
        """Of how few honest silos the spy has opened a sum; 0 if of none."""
        honest = [set(members) - set(self.helpers) for members in self.opened(number)]
        return min((len(some) for some in honest if some), default=0)

    def guess(self, number: int, victim: str) -> Integers:
        """The victim's vector solved from all opened sums, or else its upload without the masks that are known."""
        sums = dict(self.opened(number))
        sums |= {(silo,): vector for (r, silo), vector in self.own.items() if r == number}
        names = sorted(self.participants)
        if sums:
            rows = np.array([[name in members for name in names] for members in sums], float).T
            wanted = np.array([name == victim for name in names], float)
            solution = np.linalg.lstsq(rows, wanted, rcond=None)[0]
            if np.abs(rows @ solution - wanted).max() < 1e-9:
                parts = zip(solution, sums.values(), strict=True)
                return np.rint(sum(c * total for c, total in parts)).astype(np.int64)
        return self.unmasked(number, [victim])

    def read(self, number: int, victim: str, truth: Integers) -> Reading:
        """How much of the victim's vector this spy has."""
        return compare(self.guess(number, victim), truth)
