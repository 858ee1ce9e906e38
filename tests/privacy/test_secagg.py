"""The secure sum gives the exact sum over the survivors, or nothing, whoever falls silent and when."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.goodness import uniform_bytes_p
from support.sums import BOUND, Cast, scratch, total, vectors

from foedus.errors import Abandoned, InputError, ProtocolError, Refused, VerificationError
from foedus.privacy.secagg import codec, masks, shares
from foedus.privacy.secagg.aggregator import Aggregator
from foedus.privacy.secagg.client import pair_seed
from foedus.privacy.secagg.keys import BatchKeys, Roster, mask_agree, mask_public


def subsets(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    names = list(names)
    return itertools.chain.from_iterable(itertools.combinations(names, k) for k in range(len(names) + 1))


# ── every way to fall silent ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [4, 5])
def test_every_pattern_of_who_uploads_and_who_answers(n: int) -> None:
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
        with pytest.raises(Abandoned):
            cast.round(number, made, uploads=up, answers=back)
        got = cast.answered[number].values()
        if len(up) < cast.t:
            assert not got  # nobody was even asked
        for owner in names:  # of no secret as many shares as open it
            assert sum(owner in seeds for seeds, _ in got) < cast.t
            assert sum(owner in keys for _, keys in got) < cast.t
    assert opened == {4: 9, 5: 11}[n]


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
    last = shares._interpolate([0, *known], {0: other, **known}, t)
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


def test_pairwise_masks_cancel_and_stop_cancelling_in_another_round() -> None:
    context = Cast().context
    one, two = BatchKeys([1]), BatchKeys([1])
    a = mask_agree(one.mask_secret(1), mask_public(two.mask_secret(1)))
    b = mask_agree(two.mask_secret(1), mask_public(one.mask_secret(1)))
    vector = np.zeros(1000, np.uint32)
    masks.apply(vector, pair_seed(a, context, 1, "s1", "s2"))
    assert vector.any()
    kept = vector.copy()
    masks.apply(vector, pair_seed(b, context, 1, "s2", "s1"), subtract=True)
    assert not vector.any()
    masks.apply(kept, pair_seed(b, context, 2, "s2", "s1"), subtract=True)
    assert kept.any()


def test_a_mask_does_not_depend_on_how_long_the_vector_is() -> None:
    long, short = np.zeros(200_001, np.uint32), np.zeros(70_000, np.uint32)
    for vector in (long, short):
        masks.apply(vector, b"s" * 32)
    assert (long[:70_000] == short).all()
    assert len(set(long[:: 1 << 16].tolist())) == 4
    masks.apply(np.zeros(0, np.uint32), b"s" * 32)  # nothing to mask


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**29), 2**29), max_size=30))
def test_wrap_and_unwrap_are_inverse(values: list[int]) -> None:
    array = np.array(values, np.int64)
    assert codec.unwrap(codec.wrap(array, bound=2**29)).tolist() == values


@pytest.mark.parametrize("value", [BOUND + 1, -BOUND - 1, 2**31, -(2**63), 2**63 - 1])
def test_a_value_that_would_wrap_around_raises_at_the_silo(value: int) -> None:
    with pytest.raises(InputError, match="wrap around"):
        codec.wrap(np.array([0, value, 0], np.int64), bound=BOUND)


def test_only_whole_vectors_are_wrapped() -> None:
    for wrong in (np.zeros(3), np.zeros((2, 2), np.int64), np.zeros(3, np.int32)):
        with pytest.raises(InputError):
            codec.wrap(wrong, bound=10)


# ── what one vector shows ────────────────────────────────────────────────────────────────────────


def test_a_masked_vector_is_uniform_whatever_is_in_it() -> None:
    cast = Cast(4, 1, [1, 2])
    cast.set_up()
    zeros, ones = np.zeros(60_000, np.int64), np.full(60_000, BOUND)
    for number, vector in ((1, zeros), (2, ones)):
        data = masks.to_wire(cast.upload(number, "s1", vector)[0])
        assert uniform_bytes_p(data) > 1e-9
        words = np.frombuffer(data, "<u4").astype(np.float64)
        plain = np.arange(60_000.0)
        assert abs(np.corrcoef(words, plain)[0, 1]) < 0.03
    assert uniform_bytes_p(masks.to_wire(codec.wrap(ones, bound=BOUND))) == 0  # the test sees plain text


def test_a_masked_vector_is_not_opened_by_the_sum_of_the_others() -> None:
    cast = Cast(4, 1)
    cast.set_up()
    made = vectors(cast.names, 5000)
    sent = {name: cast.upload(1, name, made[name])[0] for name in cast.names}
    for some in subsets(cast.names):
        if some:
            summed = sum((sent[s].astype(np.uint64) for s in some), np.zeros(5000, np.uint64)).astype(
                np.uint32
            )
            assert uniform_bytes_p(masks.to_wire(summed)) > 1e-9  # self-masks still on, over all four too


def test_secrets_do_not_print() -> None:
    cast = Cast()
    cast.set_up()
    silo = cast.silos["s1"]
    secret, seed = silo._keys.mask_secret(1), silo._keys.seed(1)
    for shown in (repr(silo), str(silo), repr(silo._keys), f"{[silo, silo._keys]}"):
        assert str(secret) not in shown and str(seed) not in shown and f"{secret:x}" not in shown
        assert "…" in shown


def test_secrets_of_a_round_are_dropped_after_the_answer() -> None:
    cast = Cast(4, 1, [1, 2])
    cast.set_up()
    cast.round(1, vectors(cast.names))
    silo = cast.silos["s2"]
    assert all(1 not in held for held in silo._held.values()) and all(
        2 in held for held in silo._held.values()
    )
    with pytest.raises(KeyError):
        silo._keys.mask_secret(1)
    with pytest.raises(Refused, match="once only"):
        cast.upload(1, "s2", np.zeros(6, np.int64))


def test_an_aggregator_goes_on_from_what_another_wrote_down() -> None:
    """After set-up and after a closed round; what is written holds neither seeds nor shares in the clear."""
    cast = Cast(n=4, rounds=(1, 2))
    cast.set_up()
    made = vectors(cast.names)
    written = json.loads(json.dumps(cast.aggregator.set_up_state()))
    cast.aggregator = Aggregator(cast.roster, cast.context)
    cast.aggregator.restore_set_up(written)
    assert cast.aggregator.participants == tuple(cast.names)
    cast.aggregator.open_round(1, 6, "train")
    for name in cast.names[:3]:
        words, header = cast.upload(1, name, made[name])
        cast.aggregator.add_vector(1, name, masks.to_wire(words), header)
    survivors = cast.aggregator.survivors(1)
    state, masked = cast.aggregator.round_state(1)
    again = Aggregator(cast.roster, cast.context)
    again.restore_set_up(written)
    again.restore_round(1, json.loads(json.dumps(state)), masked)
    assert again.survivors(1) == survivors == tuple(cast.names[:3])
    late, header = cast.upload(1, cast.names[3], made[cast.names[3]])
    with pytest.raises(ProtocolError, match="not expected"):
        again.add_vector(1, cast.names[3], masks.to_wire(late), header)
    for name in survivors:
        again.add_answer(1, name, *cast.silos[name].answer(1, survivors))
    assert again.total(1).tolist() == total(made, survivors)
    with pytest.raises(ProtocolError, match="opened before"):
        again.restore_round(1, state, masked)
    forged = {**state, "uploads": [{**state["uploads"][0], "signatures": {}}]}
    with pytest.raises(VerificationError):
        Aggregator(cast.roster, cast.context).restore_round(2, forged, masked)
