"""The cryptographer on the attacker's side. The one file here that knows the inside of the secure sum.

`Spy` holds whatever a server and the silos that help it have, and opens whatever follows from it: every
sum over any set of silos whose masks it can take away, and from all opened sums together, by linear
algebra, a single silo's vector. `Stage` plays a secure sum in which a defence may be removed.
"""

from __future__ import annotations

import copy
import math
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from support.sums import Cast

from foedus.documents import Envelope
from foedus.errors import FoedusError
from foedus.privacy.secagg import masks, shares
from foedus.privacy.secagg.aggregator import Aggregator
from foedus.privacy.secagg.client import Silo, pair_seed, self_seed
from foedus.privacy.secagg.codec import Integers, unwrap
from foedus.privacy.secagg.journal import Journal, Step
from foedus.privacy.secagg.keys import (
    Advertisement,
    BatchKeys,
    Context,
    Roster,
    mask_agree,
    mask_public,
    seed_commitment,
)

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


@dataclass
class Spy:
    """All that the server and its helpers know of one batch."""

    roster: Roster
    context: Context
    public: dict[str, Advertisement] = field(default_factory=dict)
    participants: tuple[str, ...] = ()
    uploads: dict[Key, masks.Words] = field(default_factory=dict)
    own: dict[Key, Integers] = field(default_factory=dict)
    seeds: dict[Key, int] = field(default_factory=dict)
    mask_secrets: dict[Key, int] = field(default_factory=dict)
    seed_shares: dict[Key, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    mask_shares: dict[Key, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))

    # ── what it comes by ─────────────────────────────────────────────────────────────────────────

    def hear_keys(self, envelopes: Sequence[Envelope], participants: Iterable[str]) -> None:
        """Everybody's public keys, and who finished set-up."""
        for envelope in envelopes:
            silo = str(envelope.payload["silo"])
            self.public[silo] = Advertisement.verify(envelope, self.context, silo, self.roster.key(silo))
        self.participants = tuple(sorted(participants))

    def hear_answer(
        self, number: int, silo: str, seeds: Mapping[str, bytes], mask_keys: Mapping[str, bytes]
    ) -> None:
        """The shares one silo gave away."""
        x = self.roster.point(silo)
        for owner, value in seeds.items():
            self.seed_shares[number, owner][x] = shares.from_bytes(value)
        for owner, value in mask_keys.items():
            self.mask_shares[number, owner][x] = shares.from_bytes(value)

    def turn(self, silo: Silo, vectors: Mapping[int, Integers] | None = None) -> None:
        """A silo hands over all it has: its own secrets, its shares of the others', its vectors."""
        x = self.roster.point(silo.name)
        for number in self.context.rounds:
            self.seeds[number, silo.name] = silo._keys.seed(number)
            self.mask_secrets[number, silo.name] = silo._keys.mask_secret(number)
        for owner, rounds in silo._held.items():
            for number, (mask_share, seed_share) in rounds.items():
                self.mask_shares[number, owner][x] = mask_share
                self.seed_shares[number, owner][x] = seed_share
        for number, vector in (vectors or {}).items():
            self.own[number, silo.name] = vector

    def search(self, number: int, seeds: Iterable[int], mask_secrets: Iterable[int]) -> int:
        """Try candidates for secrets against what is public of them; how many were found."""
        commitments = {a.seeds[number]: silo for silo, a in self.public.items()}
        keys = {a.mask[number]: silo for silo, a in self.public.items()}
        found = 0
        for candidate in seeds:
            if (silo := commitments.get(seed_commitment(candidate))) is not None:
                self.seeds[number, silo], found = candidate, found + 1
        for candidate in mask_secrets:
            if (silo := keys.get(mask_public(candidate))) is not None:
                self.mask_secrets[number, silo], found = candidate, found + 1
        return found

    # ── what follows from it ─────────────────────────────────────────────────────────────────────

    def seed(self, number: int, silo: str) -> int | None:
        """A silo's self-mask seed, if it is known or `threshold` shares rebuild it."""
        if (number, silo) not in self.seeds:
            rebuilt = self._rebuilt(self.seed_shares[number, silo])
            if rebuilt is None or seed_commitment(rebuilt) != self.public[silo].seeds[number]:
                return None
            self.seeds[number, silo] = rebuilt
        return self.seeds[number, silo]

    def mask_secret(self, number: int, silo: str) -> int | None:
        """A silo's mask key, the same way."""
        if (number, silo) not in self.mask_secrets:
            rebuilt = self._rebuilt(self.mask_shares[number, silo])
            if rebuilt is None or mask_public(rebuilt) != self.public[silo].mask[number]:
                return None
            self.mask_secrets[number, silo] = rebuilt
        return self.mask_secrets[number, silo]

    def _rebuilt(self, held: Mapping[int, int]) -> int | None:
        try:
            return shares.combine(held, self.roster.threshold)
        except FoedusError:
            return None

    def _pair(self, number: int, one: str, other: str) -> bytes | None:
        """The seed of a pair's mask, if either half of it is known."""
        for mine, theirs in ((one, other), (other, one)):
            secret = self.mask_secret(number, mine)
            if secret is not None:
                agreed = mask_agree(secret, self.public[theirs].mask[number])
                return pair_seed(agreed, self.context, number, one, other)
        return None

    def unmasked(self, number: int, members: Sequence[str]) -> tuple[Integers, bool]:
        """The sum over `members` with every mask taken away that can be; and whether those were all."""
        words = np.zeros_like(self.uploads[number, members[0]])
        whole = True
        for silo in members:
            words += self.uploads[number, silo]
            seed = self.seed(number, silo)
            if seed is None:
                whole = False
            else:
                masks.apply(words, self_seed(seed, self.context, number, silo), subtract=True)
            for peer in set(self.participants) - set(members):
                pair = self._pair(number, silo, peer)
                if pair is None:
                    whole = False
                else:
                    masks.apply(words, pair, subtract=silo < peer)
        return unwrap(words), whole

    def opened(self, number: int) -> dict[tuple[str, ...], Integers]:
        """Every sum this spy can open, by its members."""
        there = sorted(silo for r, silo in self.uploads if r == number)
        found = {}
        for size in range(1, len(there) + 1):
            for members in combinations(there, size):
                total, whole = self.unmasked(number, members)
                if whole:
                    found[members] = total
        return found

    def honest_sums(self, number: int) -> int:
        """Of how many independent sums of honest silos the spy knows the value."""
        helpers = {silo for r, silo in self.own if r == number}
        rows = [
            [s in members for s in self.participants if s not in helpers] for members in self.opened(number)
        ]
        return int(np.linalg.matrix_rank(np.array(rows, float))) if rows else 0

    def guess(self, number: int, victim: str) -> Integers:
        """The victim's vector solved from all opened sums, or else its upload without the masks that are known."""
        sums = self.opened(number)
        sums |= {(silo,): vector for (r, silo), vector in self.own.items() if r == number}
        names = sorted(self.participants)
        if sums:
            rows = np.array([[name in members for name in names] for members in sums], float).T
            wanted = np.array([name == victim for name in names], float)
            solution = np.linalg.lstsq(rows, wanted, rcond=None)[0]
            if np.abs(rows @ solution - wanted).max() < 1e-9:
                parts = zip(solution, sums.values(), strict=True)
                return np.rint(sum(c * total for c, total in parts)).astype(np.int64)
        return self.unmasked(number, [victim])[0]


# ── defences removed ─────────────────────────────────────────────────────────────────────────────


class Amnesiac(Journal):
    """A journal that never refuses."""

    def once(self, study: str, run: str, step: Step, number: int, detail: str = "") -> None:
        if self.done(study, run, step, number) is None:
            super().once(study, run, step, number, detail)

    def require_new(self, study: str, run: str, step: Step, number: int) -> None:
        pass


class Obliging(Silo):
    """A silo that keeps its secrets after an answer, so that it can answer again."""

    def answer(
        self, number: int, survivors: Sequence[str]
    ) -> tuple[Envelope, dict[str, bytes], dict[str, bytes]]:
        kept = copy.deepcopy(self._held), copy.copy(self._keys._seeds), copy.copy(self._keys._mask_secrets)
        answer = super().answer(number, survivors)
        self._held, self._keys._seeds, self._keys._mask_secrets = kept
        return answer


class ShortKeys(BatchKeys):
    """Secrets of 16 bits."""

    def __init__(self, rounds: Sequence[int]) -> None:
        super().__init__(rounds)
        self._mask_secrets = {r: secrets.randbelow(2**16) for r in rounds}
        self._seeds = {r: secrets.randbelow(2**16) for r in rounds}


class Low(Roster):
    """A roster whose threshold the server has talked down to two."""

    @property
    def threshold(self) -> int:
        return 2


class Stage(Cast):
    """A cast of real silos, or of weakened ones."""

    def __init__(
        self,
        n: int = 4,
        c: int = 1,
        rounds: Iterable[int] = (1,),
        *,
        silo: type[Silo] = Silo,
        journal: type[Journal] = Journal,
        roster: type[Roster] = Roster,
        keys: type[BatchKeys] = BatchKeys,
        folder: Path | None = None,
    ) -> None:
        self._kinds = silo, journal, keys
        super().__init__(n, c, rounds, folder)
        if roster is not Roster:
            self.roster = roster(self.roster.signing_keys, c)
            self.silos = {name: self.silo(name) for name in self.names}
            self.aggregator = Aggregator(self.roster, self.context)

    def silo(self, name: str, **changes: object) -> Silo:
        silo, journal, keys = self._kinds
        made = silo(
            name,
            self.keys[name],
            self.roster,
            replace(self.context, **changes),  # type: ignore[arg-type]
            journal(self.folder / f"{name}.db"),
        )
        if keys is not BatchKeys:
            made._keys = keys(made.context.rounds)
        return made

    def spy(self, colluders: Iterable[str] = (), vectors: Mapping[str, Integers] | None = None) -> Spy:
        """A spy at the server after set-up, helped by `colluders`."""
        spy = Spy(self.roster, self.context)
        spy.hear_keys(self.aggregator.advertisements, self.aggregator.participants)
        for name in colluders:
            own = {} if vectors is None else dict.fromkeys(self.context.rounds, vectors[name])
            spy.turn(self.silos[name], own)
        return spy

    def send(self, spy: Spy, number: int, name: str, vector: Integers) -> None:
        """A silo uploads; the spy at the server keeps it."""
        spy.uploads[number, name] = self.upload(number, name, vector)[0]

    def ask(self, spy: Spy, number: int, name: str, survivors: Sequence[str]) -> str:
        """A silo is asked to help open a sum; the spy keeps what it says. "" or why it said no."""
        try:
            _, seeds, mask_keys = self.silos[name].answer(number, survivors)
        except FoedusError as error:
            return code_of(error)
        spy.hear_answer(number, name, seeds, mask_keys)
        return ""


def code_of(error: FoedusError) -> str:
    """A refusal's code, or the error's name."""
    return str(getattr(error, "code", None) or type(error).__name__)


def secrets_of(silo: Silo) -> list[bytes]:
    """Every secret a silo holds in memory, as 32 bytes, both ways round: what no reply may contain."""
    numbers = [*silo._keys._seeds.values(), *silo._keys._mask_secrets.values()]
    numbers += [value for rounds in silo._held.values() for pair in rounds.values() for value in pair]
    found = [n.to_bytes(32, order) for n in numbers for order in ("big", "little")]
    return [*found, silo._keys._share_key.private_bytes_raw()]


def draw(keys: type[BatchKeys], count: int) -> tuple[npt.NDArray[np.uint64], bytes]:
    """The first 64 bits of so many secrets as a node makes them, and some of their bytes."""
    made = keys(range(count // 2))
    numbers = [*made._seeds.values(), *made._mask_secrets.values()]
    low = np.fromiter((n & 0xFFFFFFFFFFFFFFFF for n in numbers), np.uint64, len(numbers))
    return low, b"".join(n.to_bytes(32, "little")[:31] for n in numbers[:20_000])


class Naked(Silo):
    """A silo that signs and sends its vector as it is."""

    def mask(self, number: int, vector: masks.Words, *, task: str) -> tuple[masks.Words, Envelope]:
        masked, header = super().mask(number, vector, task=task)
        return vector.astype(masked.dtype), header


# ── protocol version 2 ───────────────────────────────────────────────────────────────────────────


def has_check_value() -> bool:
    """Whether silos can verify an opened sum (protocol version 2)."""
    return hasattr(Silo, "verify_sum")


@contextmanager
def alter(number: int, amount: int) -> Iterator[None]:
    """A server that adds `amount` to every number of a round's opened sum."""
    total = Aggregator.total

    def lie(self: Aggregator, asked: int) -> Any:
        opened = total(self, asked)
        if asked != number:
            return opened
        if isinstance(opened, np.ndarray):
            return opened + amount
        return replace(opened, total=opened.total + amount)

    with patch.object(Aggregator, "total", lie):
        yield


@contextmanager
def unchecked() -> Iterator[None]:
    """Silos that take any sum for the right one. Adapt to what the node checks in version 2."""
    if not has_check_value():
        yield
        return
    with patch.object(Silo, "verify_sum", lambda *_, **__: None):
        yield
