"""The secure sum gives the exact sum over the survivors, or nothing, whoever falls silent and when."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.goodness import uniform_bytes_p
from support.sums import BOUND, RING, Cast, scratch, total, vectors

from foedus.errors import Abandoned, InputError, ProtocolError, Refused, VerificationError
from foedus.privacy.secagg import check, masks, rings, shares
from foedus.privacy.secagg.aggregator import Aggregator
from foedus.privacy.secagg.client import Silo
from foedus.privacy.secagg.codec import Whole
from foedus.privacy.secagg.keys import BatchKeys, Roster, mask_agree, mask_public
from foedus.privacy.secagg.rings import Ring
from foedus.privacy.secagg.seeds import pair_seed


def subsets(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    names = list(names)
    return itertools.chain.from_iterable(itertools.combinations(names, k) for k in range(len(names) + 1))


# ── every way to fall silent ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [4, 5])
def test_every_pattern_of_who_uploads_and_who_answers(n: int) -> None:
    """Who does not answer at first is left out when the others are asked again, while t are left."""
    names = [f"s{i}" for i in range(1, n + 1)]
    patterns = [(up, back) for up in subsets(names) for back in subsets(up)]
    assert len(patterns) == 3**n
    cast = Cast(n, 1, range(len(patterns)))
    cast.set_up()
    made = vectors(names)
    opened = 0
    for number, (up, back) in enumerate(patterns):
        if len(up) >= cast.t and len(back) >= cast.t:
            assert cast.round(number, made, uploads=up, answers=back).tolist() == total(made, up)
            opened += 1
            continue
        alone = cast
        if len(up) >= cast.t and back:  # who answered in vain waits for a sum, so the batch ends here
            alone = Cast(n, 1, [number])
            alone.set_up()
        with pytest.raises(Abandoned):
            alone.round(number, made, uploads=up, answers=back)
        got = alone.answered[number].values()
        if len(up) < alone.t:
            assert not got  # nobody was even asked
        assert len(got) < alone.t
        for owner in names:  # and what they gave adds up to no secret
            given = [shares.from_bytes({**seeds, **keys}[owner]) for seeds, keys in got]
            keys_of = alone.silos[owner]._keys
            assert sum(given) % shares.PRIME not in (keys_of.seed(number), keys_of.mask_secret(number))
    assert opened == {4: 9, 5: 11}[n]


@pytest.mark.parametrize("last", [5, 6, 7])
def test_silos_are_lost_one_after_another_while_they_answer(last: int) -> None:
    """n = 10, c = 3, t = 7: each trip of answers loses one more; under t the round is given up."""
    cast = Cast(10, 3)
    cast.set_up()
    made, aggregator = vectors(cast.names), cast.aggregator
    aggregator.open_round(1, 6, "train", RING)
    for name in cast.names[:9]:
        aggregator.add_vector(1, name, *cast.upload(1, name, made[name]))
    survivors = aggregator.survivors(1)
    asked = aggregator.ask(1)
    assert asked == survivors
    while len(asked) > last:
        for name in asked[1:]:
            aggregator.add_answer(1, name, *cast.silos[name].answer(1, survivors, answering=asked))
        assert not aggregator.answered(1)
        if len(asked) - 1 < cast.t:
            for step in (aggregator.total, aggregator.ask):
                with pytest.raises(Abandoned, match="answers"):
                    step(1)
            return
        with pytest.raises(ProtocolError, match="not all who were asked"):
            aggregator.total(1)
        fewer = aggregator.ask(1)
        assert fewer == asked[1:]
        asked = fewer
    late = cast.silos[survivors[0]].answer(1, survivors, answering=survivors)
    with pytest.raises(ProtocolError, match="was not expected"):
        aggregator.add_answer(1, survivors[0], *late)
    for name in asked:
        aggregator.add_answer(1, name, *cast.silos[name].answer(1, survivors, answering=asked))
    opened = aggregator.total(1)
    assert opened.total.tolist() == total(made, survivors)
    for name in survivors:
        cast.silos[name].verify_sum(1, survivors, opened.total, opened.check)


@pytest.mark.parametrize(("n", "patterns"), [(4, 81), (5, 243)])
def test_every_pattern_of_who_advertises_and_who_deals(n: int, patterns: int) -> None:
    names = [f"s{i}" for i in range(1, n + 1)]
    made, seen = vectors(names), 0
    for advertise in subsets(names):
        for deal in subsets(advertise):
            seen += 1
            if n == 5 and seen % 3 and len(deal) < 4:
                continue  # a third of the hopeless ones is enough
            cast = Cast(n, 1, folder=scratch())
            if len(deal) >= cast.t:
                cast.set_up(advertise=advertise, deal=deal)
                assert cast.aggregator.participants == deal
                assert cast.round(1, made).tolist() == total(made, deal)
            else:
                with pytest.raises(Abandoned):
                    cast.set_up(advertise=advertise, deal=deal)
    assert seen == patterns


def test_losses_at_every_trip_at_once() -> None:
    cast = Cast(10, 3)  # t = 7
    made = vectors(cast.names)
    cast.set_up(advertise=cast.names[1:], deal=cast.names[2:])
    up = cast.names[3:]
    assert cast.round(1, made, uploads=up, answers=cast.names[3:]).tolist() == total(made, up)


def test_a_silo_lost_in_one_round_is_back_in_the_next() -> None:
    cast = Cast(4, 1, [1, 2, 3])
    cast.set_up()
    for number, up in ((1, ("s1", "s2", "s3")), (2, ("s1", "s2", "s3", "s4")), (3, ("s2", "s3", "s4"))):
        made = vectors(cast.names, seed=number)
        assert cast.round(number, made, uploads=up).tolist() == total(made, up)


@pytest.mark.parametrize(
    ("n", "c", "t"),
    [(3, 1, 3), (4, 1, 3), (5, 1, 4), (6, 1, 4), (7, 2, 5), (10, 3, 7), (50, 16, 34), (5, 3, 5)],
)
def test_the_threshold_lets_no_two_stories_be_told(n: int, c: int, t: int) -> None:
    roster = Roster({f"s{i}": "k" for i in range(n)}, c)
    assert roster.threshold == t
    assert 2 * (t - c) > n - c  # two sets of honest answerers would overlap


@pytest.mark.parametrize(("n", "c"), [(4, 0), (4, 3), (3, 2), (2, 1), (4, -1)])
def test_colluders_that_leave_nobody_to_protect_are_refused(n: int, c: int) -> None:
    with pytest.raises(InputError, match="nobody to protect"):
        Roster({f"s{i}": "k" for i in range(n)}, c)


# ── Shamir ───────────────────────────────────────────────────────────────────────────────────────

ELEMENTS = st.integers(0, shares.PRIME - 1)


@settings(max_examples=60, deadline=None)
@given(secret=ELEMENTS, n=st.integers(1, 8), data=st.data())
def test_any_t_shares_rebuild_the_secret(secret: int, n: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(1, n))
    points = data.draw(st.lists(st.integers(1, 1000), min_size=n, max_size=n, unique=True))
    dealt = shares.split(secret, t, points)
    chosen = data.draw(st.permutations(points))[: data.draw(st.integers(t, n))]
    assert shares.combine({x: dealt[x] for x in chosen}, t) == secret
    with pytest.raises(ProtocolError, match="needed"):
        shares.combine({x: dealt[x] for x in points[: t - 1]}, t)


@settings(max_examples=40, deadline=None)
@given(secret=ELEMENTS, other=ELEMENTS, t=st.integers(2, 6))
def test_fewer_than_t_shares_fit_every_secret(secret: int, other: int, t: int) -> None:
    """Given t − 1 shares, for any other secret there is one last share that makes it the answer."""
    dealt = shares.split(secret, t, list(range(1, t + 1)))
    known = {x: dealt[x] for x in range(1, t)}
    points = {0: other, **known}  # the polynomial through these, at t
    last = sum(shares.weight(x, list(points), t) * y for x, y in points.items()) % shares.PRIME
    assert shares.combine({**known, t: last}, t) == other


@settings(max_examples=40, deadline=None)
@given(secret=ELEMENTS, t=st.integers(1, 5), surplus=st.integers(1, 3), data=st.data())
def test_a_wrong_share_is_noticed_when_there_is_one_to_spare(
    secret: int, t: int, surplus: int, data: st.DataObject
) -> None:
    dealt = shares.split(secret, t, list(range(1, t + surplus + 1)))
    wrong = data.draw(st.sampled_from(sorted(dealt)))
    dealt[wrong] = (dealt[wrong] + data.draw(st.integers(1, shares.PRIME - 1))) % shares.PRIME
    with pytest.raises(ProtocolError, match="disagree"):
        shares.combine(dealt, t)


def test_shares_of_one_secret_are_never_the_same_twice() -> None:
    assert shares.split(5, 2, [1, 2]) != shares.split(5, 2, [1, 2])


@pytest.mark.parametrize(
    ("secret", "t", "points"),
    [(shares.PRIME, 2, [1, 2]), (-1, 2, [1, 2]), (5, 3, [1, 2]), (5, 2, [1, 1]), (5, 2, [0, 1]), (5, 0, [1])],
)
def test_shares_that_would_leak_or_not_combine_are_not_dealt(secret: int, t: int, points: list[int]) -> None:
    with pytest.raises(ProtocolError):
        shares.split(secret, t, points)


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 31, b"\0" * 33, shares.PRIME.to_bytes(32, "big"), b"\xff" * 32]
)
def test_bytes_that_encode_no_element(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        shares.from_bytes(data)


# ── masks and the ring ───────────────────────────────────────────────────────────────────────────


WIDTHS = [Ring(bits) for bits in rings.WIDTHS]


def masked(words: rings.Words, ring: Ring, *seeds: tuple[bytes, bool]) -> int:
    """Puts masks on in place; what they add to the check value."""
    on = masks.Masks(seeds, ring)
    for start, stop in masks.chunks(words.size):
        on.put_on(words[start:stop])
    return on.check


@pytest.mark.parametrize("ring", WIDTHS, ids=str)
def test_pairwise_masks_cancel_and_stop_cancelling_in_another_round(ring: Ring) -> None:
    context = Cast().context
    one, two = BatchKeys([1]), BatchKeys([1])
    a = mask_agree(one.mask_secret(1), mask_public(two.mask_secret(1)))
    b = mask_agree(two.mask_secret(1), mask_public(one.mask_secret(1)))
    vector = ring.zeros(1000)
    added = masked(vector, ring, (pair_seed(a, context, 1, "s1", "s2", "x"), False))
    assert ring.unwrap(vector).any() and added
    kept = vector.copy()
    taken = masked(vector, ring, (pair_seed(b, context, 1, "s2", "s1", "x"), True))
    assert not ring.unwrap(vector).any() and (added + taken) % check.P == 0
    taken = masked(kept, ring, (pair_seed(b, context, 2, "s2", "s1", "x"), True))
    assert ring.unwrap(kept).any() and (added + taken) % check.P


@pytest.mark.parametrize("ring", WIDTHS, ids=str)
def test_a_mask_does_not_depend_on_how_long_the_vector_is(ring: Ring) -> None:
    long, short = ring.zeros(200_001), ring.zeros(70_000)
    values = {masked(vector, ring, (b"s" * 32, False)) for vector in (long, short, ring.zeros(0))}
    assert len(values) == 1
    assert (long[:70_000] == short).all()
    assert len({long[start : start + 8].tobytes() for start in range(0, 200_000, masks.CHUNK)}) == 7


@pytest.mark.parametrize("ring", WIDTHS, ids=str)
def test_the_mask_of_the_check_value_and_that_of_the_vector_share_no_byte(ring: Ring) -> None:
    stream = masks.keystream(b"s" * 32, 16 + 40 * ring.word.itemsize)
    words = ring.zeros(40)
    added = masked(words, ring, (b"s" * 32, False))
    assert added == int.from_bytes(stream[:16], "little") % check.P
    assert words.tobytes() == stream[16:]


@settings(max_examples=60, deadline=None)
@given(seeds=st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.booleans()), max_size=5))
def test_masks_put_on_together_are_those_put_on_one_by_one(seeds: list[tuple[bytes, bool]]) -> None:
    together, apart = RING.zeros(300), RING.zeros(300)
    added = masked(together, RING, *seeds)
    assert added == sum(masked(apart, RING, seed) for seed in seeds) % check.P
    assert (together == apart).all()


@pytest.mark.parametrize("value", [BOUND + 1, -BOUND - 1, 2**31, -(2**63), 2**63 - 1])
def test_a_value_that_would_wrap_around_raises_at_the_silo(value: int) -> None:
    with pytest.raises(InputError, match="wrap around"):
        Whole(np.array([0, value, 0], np.int64), bound=BOUND).chunk(0, 3)
    cast = Cast(4, 1)
    cast.set_up()
    with pytest.raises(InputError, match="wrap around"):
        cast.upload(1, "s1", np.array([0, value, 0], np.int64))
    cast.upload(1, "s1", np.array([0, BOUND, -BOUND], np.int64))  # the refusal used nothing up


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((2, 2), np.int64), np.zeros(3, np.uint32)])
def test_only_whole_vectors_are_summed(wrong: Any) -> None:
    with pytest.raises(InputError, match="signed integers"):
        Whole(wrong, bound=10)


# ── what one vector shows ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ring", WIDTHS, ids=str)
def test_a_masked_vector_is_uniform_whatever_is_in_it(ring: Ring) -> None:
    cast = Cast(4, 1, [1, 2])
    cast.set_up()
    most = min(BOUND, ring.half - 1)
    zeros, ones = np.zeros(60_000, np.int64), np.full(60_000, most)
    for number, vector in ((1, zeros), (2, ones)):
        data, _ = cast.upload(number, "s1", vector, ring)
        assert uniform_bytes_p(data) > 1e-9
        words = ring.unpack(data, 60_000).astype(np.float64)
        assert abs(np.corrcoef(words, np.arange(60_000.0))[0, 1]) < 0.03
    assert uniform_bytes_p(ring.pack(ring.wrap(ones))) == 0  # the test sees plain text


def test_a_masked_vector_is_not_opened_by_the_sum_of_the_others() -> None:
    cast = Cast(4, 1)
    cast.set_up()
    made = vectors(cast.names, 5000)
    sent = {name: RING.unpack(cast.upload(1, name, made[name])[0], 5000) for name in cast.names}
    for some in subsets(cast.names):
        if some:
            summed = sum((sent[s] for s in some), RING.zeros(5000))
            assert uniform_bytes_p(RING.pack(summed)) > 1e-9  # self-masks still on, over all four too


def test_secrets_do_not_print() -> None:
    cast = Cast()
    cast.set_up()
    silo = cast.silos["s1"]
    secret, seed = silo._keys.mask_secret(1), silo._keys.seed(1)
    for shown in (repr(silo), str(silo), repr(silo._keys), f"{[silo, silo._keys]}"):
        assert str(secret) not in shown and str(seed) not in shown and f"{secret:x}" not in shown
        assert "…" in shown


def gone(silo: Silo, number: int) -> bool:
    """Whether nothing of a round's secrets is left; all or nothing."""
    held = [number in rounds for rounds in silo._held.values()]
    held += [number in kept for kept in (silo._keys._mask_secrets, silo._keys._seeds)]
    assert all(held) or not any(held)
    return not any(held)


def test_secrets_of_a_round_are_dropped_when_its_sum_was_verified() -> None:
    cast = Cast(4, 1, [1, 2])
    cast.set_up()
    cast.round(1, vectors(cast.names))
    silo = cast.silos["s2"]
    assert gone(silo, 1) and not gone(silo, 2)
    with pytest.raises(KeyError):
        silo._keys.mask_secret(1)
    with pytest.raises(ProtocolError, match="is over"):
        silo.answer(1, cast.names, answering=cast.names)
    with pytest.raises(Refused, match="once only"):
        cast.upload(1, "s2", np.zeros(6, np.int64))


def test_secrets_of_a_round_that_was_never_opened_are_dropped_at_the_next() -> None:
    cast = Cast(4, 1, [1, 2])
    cast.set_up()
    silo = cast.silos["s2"]
    cast.upload(1, "s2", np.zeros(6, np.int64))
    assert not gone(silo, 1)
    cast.upload(2, "s2", np.zeros(6, np.int64))
    assert gone(silo, 1) and not gone(silo, 2)
    with pytest.raises(ProtocolError, match="is over"):
        silo.answer(1, cast.names, answering=cast.names)


def test_an_aggregator_goes_on_from_what_another_wrote_down() -> None:
    """After set-up and after a closed round; what is written holds neither seeds nor shares in the clear."""
    cast = Cast(n=4, rounds=(1, 2))
    cast.set_up()
    made = vectors(cast.names)
    written = json.loads(json.dumps(cast.aggregator.set_up_state()))
    cast.aggregator = Aggregator(cast.roster, cast.context)
    cast.aggregator.restore_set_up(written)
    assert cast.aggregator.participants == tuple(cast.names)
    cast.aggregator.open_round(1, 6, "train", RING)
    for name in cast.names[:3]:
        cast.aggregator.add_vector(1, name, *cast.upload(1, name, made[name]))
    survivors = cast.aggregator.survivors(1)
    state, masked = cast.aggregator.round_state(1)
    again = Aggregator(cast.roster, cast.context)
    again.restore_set_up(written)
    again.restore_round(1, json.loads(json.dumps(state)), masked)
    assert again.survivors(1) == survivors == tuple(cast.names[:3])
    late, header = cast.upload(1, cast.names[3], made[cast.names[3]])
    with pytest.raises(ProtocolError, match="not expected"):
        again.add_vector(1, cast.names[3], late, header)
    for name in again.ask(1):
        again.add_answer(1, name, *cast.silos[name].answer(1, survivors, answering=survivors))
    opened = again.total(1)
    assert opened.total.tolist() == total(made, survivors)
    cast.silos[survivors[0]].verify_sum(1, survivors, opened.total, opened.check)
    with pytest.raises(ProtocolError, match="opened before"):
        again.restore_round(1, state, masked)
    forged = {**state, "uploads": [{**state["uploads"][0], "signatures": {}}]}
    with pytest.raises(VerificationError):
        Aggregator(cast.roster, cast.context).restore_round(2, forged, masked)
