"""Why answers are blinded: shares that were given for different sets of survivors must not be mixed.

Of honest silos A, B, C, D, E (n = 7, c = 2, t = 5; F and G help the server) each is told a set of its own, of t
members or more, and none is asked about one silo twice: nobody breaks a rule it could check alone. A hears that C
and D dropped; B that E did; C that D and E did; D that C and E did; E that C and D did. If silos sent plain shares,
the server had five of the mask keys of C, D, E and of the seeds of A, B: x_A + x_B, two honest vectors where three
are promised. The count of `client` (no two sets reach t) says nothing of that: no set reached t at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.sums import RING, Cast, vectors

from foedus.privacy.secagg import masks, rings, shares
from foedus.privacy.secagg.codec import Whole
from foedus.privacy.secagg.keys import mask_agree
from foedus.privacy.secagg.rings import Integers, Ring
from foedus.privacy.secagg.seeds import pair_seed, self_seed
from foedus.privacy.secagg.statements import subject
from foedus.privacy.secagg.topology import names_digest

Kind = str  # "seed" or "mask key"


class Told(NamedTuple):
    """What one silo hears: who survived, and who answers."""

    survivors: tuple[str, ...]
    answering: tuple[str, ...]


class Given(NamedTuple):
    """What a silo gave of each owner's secret, by the kind of secret."""

    by: str
    told: Told
    shares: Mapping[tuple[str, Kind], int]


def collusion(n: int, c: int) -> tuple[Cast, list[str], list[str]]:
    """The cast, set up; the honest; those who help the server (the last c)."""
    cast = Cast(n, c)
    cast.set_up()
    return cast, cast.names[: n - c], cast.names[n - c :]


def mixed_lies(cast: Cast, honest: list[str], targets: Collection[str]) -> dict[str, Told]:
    """Tell each honest silo a set such that t − c of them hear of every honest non-target that it dropped."""
    c = cast.roster.colluders
    dropped: dict[str, list[str]] = {name: [] for name in honest}
    for victim in (name for name in honest if name not in targets):
        willing = sorted((name for name in honest if name != victim), key=lambda name: len(dropped[name]))
        for name in willing[: cast.t - c]:
            dropped[name].append(victim)
    told = {}
    for name, gone in dropped.items():
        members = tuple(member for member in cast.names if member not in gone)
        told[name] = Told(members, members)
    return told


def ask(cast: Cast, told: Mapping[str, Told]) -> list[Given]:
    """What the honest really answer."""
    answers = []
    for name, (survivors, answering) in told.items():
        _, seeds, keys = cast.silos[name].answer(1, survivors, answering=answering)
        found = {(owner, "seed"): shares.from_bytes(value) for owner, value in seeds.items()}
        found |= {(owner, "mask key"): shares.from_bytes(value) for owner, value in keys.items()}
        answers.append(Given(name, Told(survivors, answering), found))
    return answers


def plain(cast: Cast, told: Mapping[str, Told]) -> list[Given]:
    """What they would answer in a protocol without weights and blinds."""
    answers = []
    for name, (survivors, answering) in told.items():
        found = {}
        for owner, held in cast.silos[name]._held.items():
            mask_share, seed_share = held[1]
            kind, share = ("seed", seed_share) if owner in survivors else ("mask key", mask_share)
            found[owner, kind] = share
        answers.append(Given(name, Told(survivors, answering), found))
    return answers


def unblinded(cast: Cast, given: Given, helpers: Collection[str]) -> Given:
    """Without the blinds that the helpers share with this silo, which they can work out."""
    silo = cast.silos[given.by]
    owners = sorted(owner for owner, _ in given.shares)
    bound = [names_digest(owners), names_digest(given.told.survivors), names_digest(given.told.answering)]
    left = dict(given.shares)
    for helper in set(helpers) & set(given.told.answering):
        low, high = sorted((given.by, helper))
        secret = cast.silos[helper]._keys.share_secret(silo._keys._share_key.public_key().public_bytes_raw())
        key = masks.derive(secret, "answer", cast.context.digest, 1, low, high, *bound)
        stream = masks.keystream(key, 32 * len(owners))
        for (owner, kind), value in left.items():
            at = 32 * owners.index(owner)
            blind = int.from_bytes(stream[at : at + 32], "little")
            left[owner, kind] = (value - (blind if given.by == low else -blind)) % shares.PRIME
    return Given(given.by, given.told, left)


def secret(cast: Cast, owner: str, kind: Kind) -> int:
    keys = cast.silos[owner]._keys
    return keys.seed(1) if kind == "seed" else keys.mask_secret(1)


def held(cast: Cast, helper: str, owner: str, kind: Kind) -> int:
    mask_share, seed_share = cast.silos[helper]._held[owner][1]
    return seed_share if kind == "seed" else mask_share


def rebuilt(
    cast: Cast, answers: list[Given], honest: Collection[str], helpers: Collection[str]
) -> dict[tuple[str, Kind], int]:
    """Secrets of honest silos that come out of the answers, with all that the helpers know.

    Each answer is read in three ways: as a plain share, as a weighted one, and as a term of a sum.
    """
    found = {}
    point = cast.roster.point
    answers = [*answers, *(unblinded(cast, given, helpers) for given in answers)]
    for owner, kind in itertools.product(honest, ("seed", "mask key")):
        wanted = secret(cast, owner, kind)
        own = {point(helper): held(cast, helper, owner, kind) for helper in helpers}
        about = [given for given in answers if (owner, kind) in given.shares]
        readings: list[dict[int, int]] = [dict(own), dict(own), dict(own), dict(own)]
        for place, given in enumerate(about):
            y, x = given.shares[owner, kind], point(given.by)
            weight = shares.weight(x, [point(name) for name in given.told.answering])
            lot = 0 if place < len(about) // 2 else 2  # as given; then less the helpers' blinds
            readings[lot][x] = y
            readings[lot + 1][x] = y * pow(weight, -1, shares.PRIME) % shares.PRIME
        for reading in readings:
            for some in itertools.combinations(sorted(reading), cast.t):
                if shares.combine({x: reading[x] for x in some}, cast.t) == wanted:
                    found[owner, kind] = wanted
        for told in {given.told.answering for given in about}:  # added up, as if all heard the same
            points = [point(name) for name in told]
            theirs = sum(
                shares.weight(point(helper), points) * held(cast, helper, owner, kind)
                for helper in helpers
                if helper in told
            )
            for lot in (about[: len(about) // 2], about[len(about) // 2 :]):
                terms = [given.shares[owner, kind] for given in lot if given.by in told]
                if (theirs + sum(terms)) % shares.PRIME == wanted:
                    found[owner, kind] = wanted
    return found


def less_masks(
    cast: Cast,
    sent: Mapping[str, bytes],
    targets: Collection[str],
    secrets: Mapping[tuple[str, Kind], int],
    helpers: Collection[str],
) -> list[int]:
    """The sum of the targets' vectors alone, from their masked vectors and secrets of honest silos and helpers."""
    words, d = RING.zeros(6), 6
    seeds = []
    for target in targets:
        words += RING.unpack(sent[target], d)
        seeds.append((self_seed(secrets[target, "seed"], cast.context, 1, target), True))
        public = cast.aggregator._advertised[target][1].mask[1]
        for other in cast.names:
            if other not in targets:
                key = secret(cast, other, "mask key") if other in helpers else secrets[other, "mask key"]
                agreed = mask_agree(key, public)
                about = subject("train", 6, RING, "")
                seeds.append((pair_seed(agreed, cast.context, 1, target, other, about), target < other))
    masks.Masks(seeds, RING).put_on(words)
    return RING.unwrap(words).tolist()


CASES = [(7, 2), (10, 3)]


@pytest.mark.parametrize(("n", "c"), CASES)
def test_shares_given_for_different_sets_would_open_a_sum_of_two(n: int, c: int) -> None:
    """The attack works where shares are plain, and fails against what silos really give."""
    cast, honest, helpers = collusion(n, c)
    made = vectors(cast.names)
    sent = {name: cast.upload(1, name, made[name])[0] for name in cast.names}
    targets = honest[:2]
    assert len(targets) < cast.t - c  # fewer honest vectors than the promise says
    lies = mixed_lies(cast, honest, targets)
    assert len(set(lies.values())) > 1 and all(len(told.survivors) >= cast.t for told in lies.values())

    without = rebuilt(cast, plain(cast, lies), honest, helpers)
    needed = {(name, "seed") for name in targets} | {(name, "mask key") for name in honest[2:]}
    assert needed <= set(without)
    expected = [int(x) for x in made[targets[0]] + made[targets[1]]]
    assert less_masks(cast, sent, targets, without, helpers) == expected

    assert rebuilt(cast, ask(cast, lies), honest, helpers) == {}


@pytest.mark.parametrize(("n", "c"), CASES)
def test_answers_for_one_set_open_it_to_this_same_attacker(n: int, c: int) -> None:
    """So what finds nothing in the other tests would find something if it were there."""
    cast, honest, helpers = collusion(n, c)
    for name in cast.names:
        cast.upload(1, name, np.zeros(6, np.int64))
    members = tuple(cast.names[1:])
    answers = ask(cast, {name: Told(members, members) for name in honest[1:]})
    found = rebuilt(cast, answers, honest, helpers)
    assert set(found) == {(honest[0], "mask key"), *((name, "seed") for name in honest[1:])}
    # One answer less, and all of it is gone: blinds with the silent one stay on.
    assert rebuilt(cast, answers[1:], honest, helpers) == {}


def test_the_attackers_reading_of_plain_shares_needs_t_of_them() -> None:
    cast, honest, helpers = collusion(7, 2)
    cast.upload(1, "s1", np.zeros(6, np.int64))
    told = {name: Told(tuple(cast.names), tuple(cast.names)) for name in honest}
    answers = plain(cast, told)
    assert set(rebuilt(cast, answers[:3], honest, helpers)) == {(name, "seed") for name in honest}
    assert rebuilt(cast, answers[:2], honest, helpers) == {}


def test_silos_told_the_same_survivors_and_another_answering_set_open_nothing() -> None:
    cast, honest, helpers = collusion(7, 2)
    for name in cast.names:
        cast.upload(1, name, np.zeros(6, np.int64))
    everybody = tuple(cast.names)
    told = {name: Told(everybody, everybody if name in honest[:3] else everybody[:-1]) for name in honest}
    assert rebuilt(cast, ask(cast, told), honest, helpers) == {}
    # Asked once more, all alike, they open the one sum they may: no other set was ever answered for.
    again = ask(cast, {name: Told(everybody, everybody[:-1]) for name in honest})
    assert set(rebuilt(cast, again, honest, helpers)) == {(name, "seed") for name in honest}


@pytest.mark.parametrize("withheld", [True, False])
def test_a_silo_told_of_other_participants_spoils_the_answer(withheld: bool) -> None:
    """The server kept s4's box from s1, so s1 masks without s4, and s4's key would be opened by the others."""
    cast = Cast(7, 2)
    honest, helpers = cast.names[:5], cast.names[5:]
    for name in cast.names:
        cast.aggregator.add_advertisement(name, cast.silos[name].advertise())
    for name in cast.names:
        cast.aggregator.add_boxes(name, cast.silos[name].share(cast.aggregator.advertisements))
    for name in cast.names:
        boxes = cast.aggregator.boxes_for(name)
        if withheld and name == "s1":
            del boxes["s4"]
        cast.silos[name].receive(boxes)
    for name in cast.names:
        cast.upload(1, name, np.zeros(6, np.int64))
    members = tuple(name for name in cast.names if name != "s4")
    answers = ask(cast, {name: Told(members, members) for name in members if name in honest})
    found = rebuilt(cast, answers, honest, helpers)
    opened = {("s4", "mask key"), *((name, "seed") for name in ("s1", "s2", "s3", "s5"))}
    assert set(found) == (set() if withheld else opened)


def test_what_is_given_looks_uniform_beside_the_secret_it_is_a_share_of() -> None:
    """All values of one silo's answer differ from its shares and weighted shares, and from each other."""
    cast, _, _ = collusion(7, 2)
    for name in cast.names:
        cast.upload(1, name, np.zeros(6, np.int64))
    everybody = tuple(cast.names)
    (given,) = ask(cast, {"s1": Told(everybody, everybody)})
    weight = shares.weight(1, [cast.roster.point(name) for name in everybody])
    seen = set()
    for (owner, kind), value in given.shares.items():
        share = held(cast, "s1", owner, kind)
        seen |= {value, share, weight * share % shares.PRIME}
    assert len(seen) == 3 * len(given.shares) == 21
    assert set(given.shares) == {(name, "seed") for name in everybody}


# ── another sum told to each ─────────────────────────────────────────────────────────────────────


def odd_places(narrow: rings.Words, wide: rings.Words) -> list[int]:
    """What a mask read as words of 16 bits and as words of 32 betrays of the vector under the first.

    narrow = x + m (mod 2^16), wide = y − m′ (mod 2^32), and m′[i] = m[2i] + 2^16·m[2i + 1]. So x[2i] + 2^16·x[2i + 1]
    + y[i] comes out, and if y is small its upper half is x[2i + 1], but for a carry: one silo's number alone.
    """
    pairs = narrow[0::2].astype(np.uint32) + (narrow[1::2].astype(np.uint32) << np.uint32(16))
    both = pairs + wide[: pairs.size]
    return (both >> np.uint32(16)).astype(np.uint16).view(np.int16).tolist()


def near(found: list[int], alone: Integers) -> bool:
    return bool(np.abs(np.array(found) - alone).max() <= 2)


def small(seed: int) -> Integers:
    return np.random.default_rng(seed).integers(-900, 900, 40)


def test_one_mask_in_two_rings_betrays_a_vector() -> None:
    """The attack, on masks that are bound to no ring."""
    x, y = small(1), small(2)
    under = {}
    for ring, vector, negative in ((Ring(16), x, False), (Ring(32), y, True)):
        under[ring.bits] = ring.wrap(vector)
        masks.Masks([(b"s" * 32, negative)], ring).put_on(under[ring.bits])
    assert near(odd_places(under[16], under[32]), x[1::2])


SUBJECTS: list[dict[str, Any]] = [
    {"ring": Ring(16)},
    {"task": "evaluate"},
    {"model": "9" * 64},
    {"d": 39},
]


@pytest.mark.parametrize("other", SUBJECTS, ids=lambda other: next(iter(other)))
def test_silos_told_of_different_sums_open_nothing(other: dict[str, Any]) -> None:
    """s1 is told one ring, task, model or length and s2 another; s3 helps. All answer for the same set.

    Else a server that gives s2 a model on which nothing is left to learn had s1's part alone
    (Pasquini, Francati and Ateniese 2022, CCS).
    """
    cast = Cast(3, 1)
    cast.set_up()
    everybody = tuple(cast.names)
    usual = {"ring": RING, "task": "train", "model": "", "d": 40}
    told = {"s1": usual | other, "s2": usual, "s3": usual}
    made = {name: small(place)[: told[name]["d"]] for place, name in enumerate(everybody)}
    sent = {}
    for name, this in told.items():
        source = Whole(made[name], 2**14)
        sent[name] = cast.silos[name].mask(1, source, this["ring"], task=this["task"], model=this["model"])
    found = rebuilt(
        cast, ask(cast, {n: Told(everybody, everybody) for n in ("s1", "s2")}), ("s1", "s2"), ("s3",)
    )
    assert set(found) == {("s1", "seed"), ("s2", "seed")}  # the self-masks do come off
    left = {}
    for name in ("s1", "s2"):
        this = told[name]
        words = this["ring"].unpack(sent[name][0], this["d"])
        seeds = [(self_seed(found[name, "seed"], cast.context, 1, name), True)]
        agreed = mask_agree(secret(cast, "s3", "mask key"), cast.aggregator._advertised[name][1].mask[1])
        about = subject(this["task"], this["d"], this["ring"], this["model"])
        seeds.append((pair_seed(agreed, cast.context, 1, name, "s3", about), True))  # both add it
        masks.Masks(seeds, this["ring"]).put_on(words)
        left[name] = words
    if other.get("ring"):
        assert not near(odd_places(left["s1"], left["s2"]), made["s1"][1::2])
        return
    d = min(this["d"] for this in told.values())
    both = RING.unwrap(left["s1"][:d] + left["s2"][:d])
    assert not set(both.tolist()) & set((made["s1"][:d] + made["s2"][:d]).tolist())
    assert np.abs(both).max() > 2**24  # the pair's masks are on


def test_silos_told_of_one_sum_open_it() -> None:
    """The same steps where both are told alike: so the test above would see their sum."""
    cast = Cast(3, 1)
    cast.set_up()
    made = {name: small(place) for place, name in enumerate(cast.names)}
    assert cast.round(1, made).tolist() == sum(made.values()).tolist()  # type: ignore[union-attr]
