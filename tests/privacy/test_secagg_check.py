"""The check value: silos notice every sum that is not that of their vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from support.sums import BOUND, RING, Cast, vectors

from foedus.errors import FoedusError, ProtocolError, VerificationError
from foedus.privacy.secagg import check, masks, rings
from foedus.privacy.secagg.aggregator import Opened
from foedus.privacy.secagg.rings import Integers, Ring
from foedus.privacy.secagg.seeds import pad

P = 2**61 - 1
COLUMNS, ROWS = b"a" * 32, b"b" * 32


# ── arithmetic ───────────────────────────────────────────────────────────────────────────────────


def elements(seed: bytes, count: int) -> list[int]:
    """16 bytes each of AES-256 in counter mode, little-endian, mod p, in Python's integers."""
    block = Cipher(algorithms.AES256(seed), modes.ECB()).encryptor()  # noqa: S305 - a building block of CTR
    return [int.from_bytes(block.update(place.to_bytes(16, "big")), "little") % P for place in range(count)]


def reference(values: list[int], columns: bytes = COLUMNS, rows: bytes = ROWS) -> int:
    alpha, beta = elements(columns, 512), elements(rows, -(-len(values) // 512))
    return sum(beta[i // 512] * alpha[i % 512] * value for i, value in enumerate(values)) % P


def tag(values: Integers, columns: bytes = COLUMNS, rows: bytes = ROWS) -> int:
    found = check.Tag(columns, rows)
    for start, stop in masks.chunks(values.size):
        found.update(values[start:stop])
    return found.value


EXTREMES = (2**31, -(2**31), 2**31 - 1, -1, 0, 1)
FILLS: dict[str, Callable[[int], Integers]] = {
    "greatest": lambda d: np.full(d, 2**31),
    "least": lambda d: np.full(d, -(2**31)),
    "minus one": lambda d: np.full(d, -1),
    "extremes in turn": lambda d: np.resize(np.array(EXTREMES), d),
    "random": lambda d: np.random.default_rng(d).integers(-(2**31), 2**31 + 1, d),
}


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS.keys())
@pytest.mark.parametrize("d", [0, 1, 2, 511, 512, 513, 1023, 1024, 1025, 4097])
def test_a_tag_is_exact(d: int, fill: Callable[[int], Integers]) -> None:
    values = fill(d).astype(np.int64)
    assert tag(values) == reference(values.tolist())


@pytest.mark.parametrize("d", [masks.CHUNK - 1, masks.CHUNK, masks.CHUNK + 1, 2 * masks.CHUNK + 513])
def test_a_tag_is_exact_around_the_chunks(d: int) -> None:
    values = FILLS["extremes in turn"](d).astype(np.int64)
    assert tag(values) == reference(values.tolist())


@pytest.mark.parametrize("bits", rings.WIDTHS)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_a_tag_is_exact_for_what_each_ring_holds(bits: int, dtype: Any) -> None:
    half = Ring(bits).half
    values = np.random.default_rng(bits).integers(-half, half, 1500)
    values[:2], values[-1] = (-half, half - 1), half - 1
    assert tag(values.astype(dtype)) == reference(values.tolist())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-(2**31), 2**31), max_size=40),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
)
def test_a_tag_is_exact_under_any_key(values: list[int], columns: bytes, rows: bytes) -> None:
    assert tag(np.array(values, np.int64), columns, rows) == reference(values, columns, rows)


@settings(max_examples=60, deadline=None)
@given(a=st.integers(0, P - 1), b=st.integers(0, P - 1), places=st.integers(0, 60))
def test_multiplication_mod_p(a: int, b: int, places: int) -> None:
    some = [a, 0, 1, P - 1, 2**31, 2**31 - 1, 2**60]
    others = [b, P - 1, 0, P - 1, 2**31, 2**60, 2**60]
    x, y = np.array(some, np.uint64), np.array(others, np.uint64)
    product = check._reduce(check._multiply(x, y))
    assert [int(v) % P for v in product] == [i * j % P for i, j in zip(some, others, strict=True)]
    assert [int(v) % P for v in check._rotate(x, places)] == [(i << places) % P for i in some]
    top = np.array([2**64 - 1, 2**64 - 9, P, P + 1, 2 * P], np.uint64)
    assert [int(v) for v in check._reduce(top)] == [int(v) % P for v in top]


@settings(max_examples=50, deadline=None)
@given(d=st.integers(1, 1200), scale=st.integers(-3, 3), seed=st.integers(0, 2**32))
def test_tags_add_up_as_vectors_do(d: int, scale: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-(2**28), 2**28, (2, d))
    assert tag(a + scale * b) == (tag(a) + scale * tag(b)) % P


def test_zeros_behind_a_vector_change_nothing_and_places_count() -> None:
    """The length is compared apart. A value in another column or row has another tag."""
    assert tag(np.array([7])) == tag(np.array([7, *[0] * 2000])) == reference([7])
    tags = {tag(np.eye(1, 1500, place, dtype=np.int64)[0]) for place in range(0, 1500, 50)}
    assert len(tags) == 30


@pytest.mark.parametrize("keys", [[], [b"\0" * 32], [b"\xff" * 32] * 3, [bytes(range(32)), b"x" * 32]])
def test_pads(keys: list[bytes]) -> None:
    assert check.pads(keys) == sum(int.from_bytes(key, "little") for key in keys) % P


def test_a_tag_does_not_print_its_key() -> None:
    assert repr(check.Tag(COLUMNS, ROWS)) == "Tag(…)"


# ── the protocol ─────────────────────────────────────────────────────────────────────────────────

D = 700  # more than a row


class Played:
    """Two rounds of five silos, four of whom are in each sum; opened and not yet shown."""

    def __init__(self) -> None:
        self.cast = Cast(5, 1, [1, 2])
        self.cast.set_up()
        self.survivors = {1: ("s1", "s2", "s3", "s4"), 2: ("s1", "s2", "s4", "s5")}
        self.opened = {number: self.open(number) for number in (2, 1)}

    def open(self, number: int) -> Opened:
        cast, survivors = self.cast, self.survivors[number]
        made = vectors(cast.names, D, seed=number)
        cast.aggregator.open_round(number, D, "train", RING)
        for name in survivors:
            cast.aggregator.add_vector(number, name, *cast.upload(number, name, made[name] // 2))
        cast.aggregator.survivors(number)
        for name in cast.aggregator.ask(number):
            given = cast.silos[name].answer(number, survivors, answering=survivors)
            cast.aggregator.add_answer(number, name, *given)
        for silo in cast.silos.values():
            silo._unseen.clear()  # both rounds wait; what is tested here is what is shown
        return cast.aggregator.total(number)

    def refused_by_all(self, total: Integers, opened: int, survivors: tuple[str, ...] | None = None) -> bool:
        found = set()
        for name in self.survivors[1]:
            try:
                self.cast.silos[name].verify_sum(1, survivors or self.survivors[1], total, opened)
                found.add(False)
            except VerificationError:
                found.add(True)
        (answer,) = found  # all silos say the same
        return answer


@pytest.fixture(scope="module")
def played() -> Played:
    return Played()


def test_the_true_sum_is_taken(played: Played) -> None:
    opened = played.opened[1]
    assert not played.refused_by_all(opened.total, opened.check)
    assert not played.refused_by_all(opened.total, opened.check + P)  # a residue is what counts


NO_FIXTURE_HEALTH = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@NO_FIXTURE_HEALTH
@given(
    changes=st.dictionaries(
        st.integers(0, D - 1),
        st.integers(-(2**32) + 1, 2**32 - 1).filter(bool),
        min_size=1,
        max_size=20,
    )
)
def test_a_total_altered_anywhere_is_refused_by_every_silo(played: Played, changes: dict[int, int]) -> None:
    opened = played.opened[1]
    total = opened.total.copy()
    for place, change in changes.items():
        total[place] += change
    assert played.refused_by_all(total, opened.check)


@NO_FIXTURE_HEALTH
@given(check_value=st.integers(0, P - 1))
def test_another_check_value_is_refused(played: Played, check_value: int) -> None:
    opened = played.opened[1]
    if check_value != opened.check:
        assert played.refused_by_all(opened.total, check_value)


Lie = Callable[[Played], tuple[Any, int]]


def scaled(factor: int) -> Lie:
    return lambda p: (p.opened[1].total * factor, p.opened[1].check * factor % P)


LIES: dict[str, Lie] = {
    **{f"the sum {factor} times": scaled(factor) for factor in (-1, 2, 3)},
    "no sum": lambda p: (np.zeros(D, np.int64), 0),
    "zeros under the true check value": lambda p: (np.zeros(D, np.int64), p.opened[1].check),
    "turned by one": lambda p: (np.roll(p.opened[1].total, 1), p.opened[1].check),
    "turned by a row": lambda p: (np.roll(p.opened[1].total, 512), p.opened[1].check),
    "backwards": lambda p: (p.opened[1].total[::-1].copy(), p.opened[1].check),
    "two places swapped": lambda p: (p.opened[1].total[[1, 0, *range(2, D)]], p.opened[1].check),
    "sorted": lambda p: (np.sort(p.opened[1].total), p.opened[1].check),
    "another round's": lambda p: (p.opened[2].total, p.opened[2].check),
    "another round's sum": lambda p: (p.opened[2].total, p.opened[1].check),
    "another round's check value": lambda p: (p.opened[1].total, p.opened[2].check),
    "both rounds added up": lambda p: (
        p.opened[1].total + p.opened[2].total, (p.opened[1].check + p.opened[2].check) % P
    ),
    "one number short": lambda p: (p.opened[1].total[:-1], p.opened[1].check),
    "one zero more": lambda p: (np.append(p.opened[1].total, 0), p.opened[1].check),
    "in two rows": lambda p: (p.opened[1].total.reshape(2, -1), p.opened[1].check),
    "p more in a place": lambda p: (p.opened[1].total + P * np.eye(1, D, dtype=np.int64)[0], p.opened[1].check),
    "p more in every place": lambda p: (p.opened[1].total + P, p.opened[1].check),
    "as real numbers": lambda p: (p.opened[1].total.astype(np.float64), p.opened[1].check),
    "a little more than whole": lambda p: (p.opened[1].total + 2.0**-30, p.opened[1].check),
    "unsigned": lambda p: (np.abs(p.opened[1].total).astype(np.uint64), p.opened[1].check),
    "beyond the modulus": lambda p: (p.opened[1].total + 2**32, p.opened[1].check),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_lie_about_the_sum_is_refused_by_every_silo(played: Played, lie: Lie) -> None:
    assert played.refused_by_all(*lie(played))


@pytest.mark.parametrize(
    "survivors",
    [
        ("s1", "s2", "s3"),
        ("s1", "s2", "s3", "s4", "s5"),
        ("s1", "s2", "s3", "s5"),
        ("s1", "s2", "s3", "s4", "s4"),
        ("s1", "s2", "s3", "s4") * 2,
        ("s1", "s2", "s3", "mallory"),
    ],
)
def test_other_survivors_are_refused_by_every_silo(played: Played, survivors: tuple[str, ...]) -> None:
    opened = played.opened[1]
    assert played.refused_by_all(opened.total, opened.check, survivors)


def test_a_silo_knows_whom_it_answered_for_even_if_the_check_value_fits(played: Played) -> None:
    """A server that got the key from a silo could make a check value for any story; not one about another set."""
    silo, opened = played.cast.silos["s1"], played.opened[1]
    key = silo._check_key
    assert key is not None
    pads = {name: pad(key, played.cast.context, 1, name) for name in played.cast.names}
    for survivors in (("s1", "s2", "s3"), ("s1", "s2", "s3", "s5")):
        moved = sum(pads[n] for n in survivors) - sum(pads[n] for n in played.survivors[1])
        with pytest.raises(VerificationError, match="other silos than this one answered for"):
            silo.verify_sum(1, survivors, opened.total, (opened.check + moved) % P)


def test_the_order_of_the_survivors_does_not_matter(played: Played) -> None:
    opened = played.opened[1]
    assert not played.refused_by_all(opened.total, opened.check, ("s4", "s1", "s3", "s2"))


def test_a_silo_that_did_not_answer_checks_the_sum_too() -> None:
    """It was not told of the survivors before: the sum's pads must be those of just the silos named."""
    cast = Cast(4, 1)
    cast.set_up()
    made = vectors(cast.names)
    cast.aggregator.open_round(1, 6, "train", RING)
    for name in cast.names:
        cast.aggregator.add_vector(1, name, *cast.upload(1, name, made[name] // 2))
    survivors = cast.aggregator.survivors(1)
    for asked in (survivors, survivors[:3]):
        assert cast.aggregator.ask(1) == asked
        for name in survivors[:3]:
            given = cast.silos[name].answer(1, survivors, answering=asked)
            cast.aggregator.add_answer(1, name, *given)
    opened, silent = cast.aggregator.total(1), cast.silos["s4"]
    silent.verify_sum(1, survivors, opened.total, opened.check)
    doubled, twice = 2 * opened.total, 2 * opened.check % P
    lies: list[tuple[tuple[str, ...], Integers, int]] = [
        (survivors * 2, doubled, twice),  # each pad twice: the sum of these would fit
        (survivors, doubled, twice),
        (survivors[:3], opened.total, opened.check),
        ((*survivors[:3], "mallory"), opened.total, opened.check),
        (survivors, opened.total + 1, opened.check),
    ]
    for named, total, value in lies:
        with pytest.raises(VerificationError):
            silent.verify_sum(1, named, total, value)


def test_a_sum_that_wrapped_around_is_noticed() -> None:
    """Each vector fits the modulus 2^16, their sum does not."""
    cast = Cast(3, 1, [1, 2])
    cast.set_up()
    fits = {name: np.full(5, 10922) for name in cast.names}
    assert cast.round(1, fits, ring=Ring(16)).tolist() == [32766] * 5
    beyond = {name: np.array([1, 1, 10923, 1, 1]) for name in cast.names}
    with pytest.raises(VerificationError, match="wrapped around"):
        cast.round(2, beyond, ring=Ring(16))


def test_a_silo_that_was_not_in_the_round_can_not_check_it(played: Played) -> None:
    opened = played.opened[1]
    for number, name in ((1, "s5"), (3, "s1")):
        with pytest.raises(ProtocolError, match="was not in it"):
            played.cast.silos[name].verify_sum(number, played.survivors[1], opened.total, opened.check)


def test_the_check_key_needs_all_parts_and_is_the_same_for_all() -> None:
    one, two = Cast(4, 1), Cast(4, 1)
    for cast in (one, two):
        cast.set_up()
    assert len({silo._check_key for silo in one.silos.values()}) == 1
    assert one.silos["s1"]._check_key != two.silos["s1"]._check_key
    absent = Cast(4, 1)
    absent.set_up(deal=absent.names[:3])
    assert len({absent.silos[name]._check_key for name in absent.names[:3]}) == 1


def test_what_the_server_sees_of_tags_looks_uniform() -> None:
    """Of equal vectors, round after round: the values in headers, and the one that is opened."""
    rounds = range(150)
    cast = Cast(3, 1, rounds)
    cast.set_up()
    sent, opened = [], []
    for number in rounds:
        cast.round(number, {name: np.zeros(2, np.int64) for name in cast.names})
        current = cast.aggregator._rounds[number]
        sent += [int(header.payload["check"]) for header in current.uploads.values()]
        opened.append(cast.aggregator.total(number).check)
    for values in (sent, opened):
        assert len(set(values)) == len(values)
        assert all(0 <= value < P for value in values)
        assert stats.kstest([value / P for value in values], "uniform").pvalue > 1e-6
        assert stats.kstest([value % 65521 / 65521 for value in values], "uniform").pvalue > 1e-6


def test_one_opened_tag_fits_every_sum() -> None:
    """To one who lacks the key: for any total there are pads (of uniform law) under which this tag is its tag."""
    opened, rng = 123456789, np.random.default_rng(0)
    fitting = [(opened - tag(rng.integers(-BOUND, BOUND, 600), bytes(rng.bytes(32)))) % P for _ in range(200)]
    assert stats.kstest([value / P for value in fitting], "uniform").pvalue > 1e-6


def test_a_header_whose_check_value_was_altered_spoils_the_sum_for_all() -> None:
    """The server adds to what a silo sent; nothing tells it, but the sum does not pass."""
    cast = Cast(3, 1)
    cast.set_up()
    made = vectors(cast.names)
    original = cast.aggregator.total

    def altered(number: int) -> Opened:
        opened = original(number)
        return Opened(opened.total, (opened.check + 1) % P)

    cast.aggregator.total = altered  # type: ignore[method-assign]
    with pytest.raises(FoedusError, match="not the sum of the silos' vectors"):
        cast.round(1, {name: made[name] // 2 for name in cast.names})
