"""Real vectors on a grid: rounded without bias, refused when too long, and summed without a second copy."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sums import Cast

from foedus.errors import InputError
from foedus.privacy.noise import Keystream, discrete_gaussian
from foedus.privacy.secagg import masks
from foedus.privacy.secagg.codec import Fixed, Grid, Whole
from foedus.privacy.secagg.rings import WIDTHS, Integers, Ring, noise_tail

FLOATS = [np.float32, np.float64]
each_float = pytest.mark.parametrize("dtype", FLOATS, ids=["float32", "float64"])


def rounded(values: npt.NDArray[Any], grid: Grid) -> Integers:
    source = Fixed(values, grid)
    parts = [source.chunk(start, stop).copy() for start, stop in masks.chunks(values.size)]
    return np.concatenate(parts).astype(np.int64)


# ── integers ─────────────────────────────────────────────────────────────────────────────────────


def test_integers_are_handed_out_as_they_are_in_chunks() -> None:
    values = np.arange(-5, 5)
    source = Whole(values, 5)
    assert source.size == 10
    assert [source.chunk(a, b).tolist() for a, b in ((0, 4), (4, 10))] == [
        [-5, -4, -3, -2],
        [-1, 0, 1, 2, 3, 4],
    ]
    with pytest.raises(InputError, match="wrap around"):
        Whole(values, 4).chunk(0, 4)


# ── the grid ─────────────────────────────────────────────────────────────────────────────────────

ROOMY = {
    "silos": st.integers(1, 500),
    "clip": st.floats(1e-3, 1e3),
    "relative": st.floats(1e-6, 10),
    "dimension": st.integers(1, 10**7),
    "extra": st.sampled_from([0.001, 0.01, 0.2]),
}


@settings(max_examples=200, deadline=None)
@given(**ROOMY)
def test_a_grid_keeps_its_promises(
    silos: int, clip: float, relative: float, dimension: int, extra: float
) -> None:
    """Little more noise; the sum fits even with that noise; a finer grid would not fit, nor a narrower ring do."""
    sigma = clip * relative
    known = {"silos": silos, "clip": clip, "sigma": sigma, "dimension": dimension, "extra_noise": extra}
    tail = noise_tail(dimension)
    try:
        grid = Grid.choose(**known)  # type: ignore[arg-type]
    except InputError:
        widest = (2**31 - silos) / (silos * clip + tail * sigma * (1 + extra))
        assert Grid(Ring(32), widest, clip, dimension).extra_noise(silos, sigma) > extra * 0.999
        return
    assert grid.extra_noise(silos, sigma) <= extra
    half, scale = grid.ring.half, grid.scale
    noise = sigma * grid.norm_bound / clip  # what a vector of that norm asks for
    assert silos * (clip * scale + 1) + tail * noise < half
    finer = scale * (1 + 1e-6)
    assert silos * (clip * finer + 1) + tail * sigma * finer * (1 + extra) > half * (1 - 1e-6)
    for bits in WIDTHS[: WIDTHS.index(grid.ring.bits)]:
        room = (1 << (bits - 1)) - silos
        narrower = Grid(Ring(bits), room / (silos * clip + tail * sigma * (1 + extra)), clip, dimension)
        assert room <= 0 or narrower.extra_noise(silos, sigma) > extra * 0.999


def test_more_noise_allows_a_narrower_ring() -> None:
    known = {"silos": 10, "clip": 1.0, "dimension": 10_000}
    widths = [Grid.choose(sigma=sigma, **known).ring.bits for sigma in (1e-6, 1e-4, 1e-3, 1e-1)]  # type: ignore[arg-type]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) > 2
    assert Grid.choose(sigma=0.0, **known).ring.bits == 16  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"silos": 0},
        {"dimension": 0},
        {"clip": 0.0},
        {"clip": -1.0},
        {"clip": math.inf},
        {"clip": math.nan},
        {"sigma": -1.0},
        {"sigma": math.inf},
        {"sigma": math.nan},
    ],
)
def test_a_grid_for_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="a grid needs"):
        Grid.choose(**{"silos": 3, "clip": 1.0, "sigma": 1.0, "dimension": 5} | wrong)  # type: ignore[arg-type]


def test_what_fits_no_modulus_says_so() -> None:
    with pytest.raises(InputError, match=r"fit no modulus up to 2\^32 at 1.0% more noise"):
        Grid.choose(silos=100, clip=1.0, sigma=1e-9, dimension=10**6)
    with pytest.raises(InputError, match="fit no modulus"):
        Grid.choose(silos=2**31, clip=1.0, sigma=1.0, dimension=1)


def test_decoding_undoes_the_scale() -> None:
    grid = Grid(Ring(32), 1000.0, 1.0, 3)
    assert grid.decode(np.array([1500, -250, 0])).tolist() == [1.5, -0.25, 0.0]


def test_without_noise_no_more_noise_is_asked_for() -> None:
    assert Grid(Ring(32), 10.0, 1.0, 4).extra_noise(3, 0.0) == 0.0
    exact = math.sqrt((2 * Grid(Ring(32), 10.0, 1.0, 4).norm_bound) ** 2 + 3 / 4) / (2 * 10) - 1
    assert math.isclose(Grid(Ring(32), 10.0, 1.0, 4).extra_noise(3, 2.0), exact)


# ── rounding ─────────────────────────────────────────────────────────────────────────────────────


@each_float
@pytest.mark.parametrize("value", [0.25, -0.25, 3.5, -7.9, 100.01, 0.001])
def test_rounding_goes_to_a_neighbour_and_has_no_bias(value: float, dtype: Any) -> None:
    n = 400_000
    values = np.full(n, value, dtype)
    whole = rounded(values, Grid(Ring(32), 1.0, abs(value) * math.sqrt(n) * 1.001, n))
    assert set(whole.tolist()) == {math.floor(value), math.ceil(value)}
    share = float(dtype(value)) - math.floor(value)
    deviation = math.sqrt(share * (1 - share) / n)
    assert abs(whole.mean() - value) < 6 * deviation + 2.0**-16
    # Power: ten deviations of bias would have been seen.
    assert abs(whole.mean() + 13 * deviation + 2.0**-16 - value) > 6 * deviation + 2.0**-16


@each_float
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 17.0, -65536.0])
def test_whole_numbers_stay_as_they_are(value: float, dtype: Any) -> None:
    values = np.full(1000, value, dtype)
    assert set(rounded(values, Grid(Ring(32), 1.0, 1e7, 1000)).tolist()) == {int(value)}


class EveryDither:
    """In place of a cipher: each of 2^16 dithers once."""

    def take(self, count: int) -> bytes:
        return (np.arange(count // 4) * (2**32 // (count // 4))).astype("<u4").tobytes()


@each_float
@pytest.mark.parametrize("value", [0.001, 0.01, 0.1, 0.3, 0.5, -0.3, 0.9, -0.9])
def test_a_coordinate_as_large_as_the_clip_is_rounded_without_bias(value: float, dtype: Any) -> None:
    """Added to a large float32, a dither would itself be rounded, upwards by up to 1/32 of a step."""
    scale = 2.0**20 - 1
    source = Fixed(np.zeros(2**16, dtype), Grid(Ring(32), scale, 1.0, 2**16))
    source._stream = EveryDither()  # type: ignore[assignment]
    # One such coordinate is all the clip allows; here each dither meets it in turn.
    source._values, source._norm = np.full(2**16, value, dtype), -math.inf
    whole = source.chunk(0, 2**16)
    exact = float(dtype(value)) * scale
    assert abs(whole.mean() - exact) <= 2.0**-16
    assert whole.max() - whole.min() <= 1


def test_rounding_is_drawn_anew_each_time() -> None:
    values, grid = np.full(200, 0.5), Grid(Ring(32), 1.0, 10.0, 200)
    assert rounded(values, grid).tolist() != rounded(values, grid).tolist()


@settings(max_examples=60, deadline=None)
@given(
    d=st.integers(1, 2000),
    size=st.floats(0, 50),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(FLOATS),
)
def test_a_rounded_vector_keeps_the_norm_bound(d: int, size: float, seed: int, dtype: Any) -> None:
    values = np.random.default_rng(seed).standard_normal(d) * size
    clip = float(np.linalg.norm(values)) + 1e-6
    grid = Grid(Ring(32), 3.0, clip, d)
    whole = rounded(values.astype(dtype), grid)
    assert float(np.linalg.norm(whole.astype(np.float64))) <= grid.norm_bound * (1 + 2.0**-40)
    assert np.abs(whole - values * 3.0).max() < 1 + 1e-3
    assert grid.norm_bound <= clip * 3.0 + math.sqrt(d)


def test_a_rounding_that_passes_the_norm_bound_is_not_sent() -> None:
    """The worst dither lifts every coordinate by almost one; its chance is below 2^-40."""

    class Most(EveryDither):
        def take(self, count: int) -> bytes:
            return b"\xff" * count

    grid = Grid(Ring(32), 1.0, 1.0, 10_000)
    assert grid.norm_bound < 100
    source = Fixed(np.full(10_000, 1e-3), grid)
    source._stream = Most()  # type: ignore[assignment]
    with pytest.raises(InputError, match="passes its bound"):
        source.chunk(0, 10_000)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


@each_float
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 99_999])
def test_a_number_that_is_not_finite_is_refused(bad: float, place: int, dtype: Any) -> None:
    values = np.zeros(100_000, dtype)
    values[place] = bad
    with pytest.raises(InputError, match="not finite"):
        Fixed(values, Grid(Ring(32), 1.0, 1.0, 100_000))


def test_numbers_whose_squares_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        Fixed(np.array([1e300, 1e300]), Grid(Ring(32), 1.0, 1.0, 2))


@each_float
def test_a_vector_longer_than_the_clip_is_refused(dtype: Any) -> None:
    values = np.full(90_000, 1 / 300, dtype)  # norm 1, up to the precision of its numbers
    grid = Grid(Ring(32), 1.0, 1.0, 90_000)
    Fixed(values, grid)
    Fixed(values * dtype(1 + 2.0**-22), grid)
    for factor in (1 + 2.0**-14, 1.001, 2.0, 1e6):
        with pytest.raises(InputError, match="of L2 norm"):
            Fixed(values * dtype(factor), grid)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(4),
        np.zeros(6),
        np.zeros((1, 5)),
        np.zeros(5, np.float16),
        np.zeros(5, np.int64),
        np.zeros(5, np.complex128),
    ],
)
def test_what_does_not_go_on_the_grid_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="the grid is for 5 float32 or float64"):
        Fixed(wrong, Grid(Ring(32), 1.0, 1.0, 5))


# ── in a sum ─────────────────────────────────────────────────────────────────────────────────────


@each_float
@pytest.mark.parametrize("bits", WIDTHS)
def test_the_sum_of_reals_is_theirs_but_for_rounding(bits: int, dtype: Any) -> None:
    d, n = 1001, 3
    grid = Grid(Ring(bits), (Ring(bits).half - n - 1) / n, 1.0, d)
    cast = Cast(n, 1, [1])
    cast.set_up()
    rng = np.random.default_rng(bits)
    reals = {name: rng.standard_normal(d).astype(dtype) for name in cast.names}
    reals = {name: x * dtype(0.99 / np.linalg.norm(x)) for name, x in reals.items()}
    cast.aggregator.open_round(1, d, "train", grid.ring)
    for name in cast.names:
        sent = cast.silos[name].mask(1, Fixed(reals[name], grid), grid.ring, task="train")
        cast.aggregator.add_vector(1, name, *sent)
    survivors = cast.aggregator.survivors(1)
    for name in cast.aggregator.ask(1):
        given = cast.silos[name].answer(1, survivors, answering=survivors)
        cast.aggregator.add_answer(1, name, *given)
    opened = cast.aggregator.total(1)
    exact = sum(x.astype(np.float64) for x in reals.values())
    # Each silo's number moves by less than a step; a float32 product adds its own rounding.
    assert np.abs(grid.decode(opened.total) - exact).max() < n / grid.scale + 2.0**-22
    for name in cast.names:
        cast.silos[name].verify_sum(1, survivors, opened.total, opened.check)


def test_noise_is_added_once_to_every_number() -> None:
    counts, steps = [], itertools.count()

    def noise(count: int) -> Integers:
        counts.append(count)
        return np.array([next(steps) for _ in range(count)], np.int64)

    d = masks.CHUNK + 7
    source = Fixed(np.zeros(d, np.float32), Grid(Ring(32), 1.0, 1.0, d), noise=noise)
    got = [source.chunk(start, stop).copy() for start, stop in masks.chunks(d)]
    assert np.concatenate(got).tolist() == list(range(d))
    assert counts == [masks.CHUNK, 7] == [part.size for part in got]


def test_a_noisy_sum_in_the_narrowest_ring_does_not_wrap() -> None:
    """Ten rounds in a grid that was chosen for this noise; every check value holds."""
    n, d, sigma = 3, 400, 0.05
    grid = Grid.choose(silos=n, clip=1.0, sigma=sigma, dimension=d)
    assert grid.ring.bits == 16
    each = math.ceil(sigma * grid.norm_bound / math.sqrt(n))
    cast = Cast(n, 1, range(3))
    cast.set_up()
    direction = np.zeros(d)
    direction[0] = 1.0
    for number in range(3):
        cast.aggregator.open_round(number, d, "train", grid.ring)
        for name in cast.names:
            stream = Keystream()
            source = Fixed(direction, grid, noise=lambda k, s=stream: discrete_gaussian(each, k, s))
            cast.aggregator.add_vector(
                number, name, *cast.silos[name].mask(number, source, grid.ring, task="train")
            )
        survivors = cast.aggregator.survivors(number)
        for name in cast.aggregator.ask(number):
            given = cast.silos[name].answer(number, survivors, answering=survivors)
            cast.aggregator.add_answer(number, name, *given)
        opened = cast.aggregator.total(number)
        for name in cast.names:
            cast.silos[name].verify_sum(number, survivors, opened.total, opened.check)
        found = grid.decode(opened.total)
        assert abs(found[0] - n) < 8 * sigma and np.abs(found[1:]).max() < 8 * sigma
        assert 0.7 * sigma < found[1:].std() < 1.4 * sigma


# ── memory ───────────────────────────────────────────────────────────────────────────────────────

MIB = 1 << 20
SCRATCH = 3 * MIB
"""What works on one chunk of 2^15 numbers: some eight arrays of a quarter MiB, whatever the vector's length."""


def peak(do: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that were taken at most while this ran, beyond those before it; and its result."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        result = do()
        _, most = tracemalloc.get_traced_memory()
        return most - before, result
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("bits", "d"), [(16, 2 * 10**6), (20, 10**7), (24, 2 * 10**6), (32, 10**7)])
def test_a_vector_of_ten_million_is_masked_in_constant_memory(bits: int, d: int) -> None:
    """Beyond its own wire form: a second copy of it, or one in float64, would be seen by far."""
    values = np.zeros(d, np.float32)
    values[::1000] = 0.005
    cast = Cast(3, 1)
    cast.set_up()
    grid = Grid(Ring(bits), Ring(bits).half / 4, 1.0, d)

    def mask() -> bytes:
        return cast.silos["s1"].mask(1, Fixed(values, grid), grid.ring, task="train")[0]

    most, data = peak(mask)
    assert len(data) == d * bits // 8
    assert len(data) <= most < len(data) + SCRATCH


def test_scratch_does_not_grow_with_the_vector() -> None:
    cast = Cast(3, 1, [1, 2, 3])
    cast.set_up()
    scratch = []
    for number, d in ((1, 5 * 10**5), (2, 10**6), (3, 3 * 10**6)):
        grid = Grid(Ring(20), Ring(20).half / 4, 1.0, d)
        source = Fixed(np.zeros(d, np.float32), grid)

        def mask(n: int = number, s: Fixed = source) -> bytes:
            return cast.silos["s1"].mask(n, s, Ring(20), task="train")[0]

        most, data = peak(mask)
        scratch.append(most - len(data))
    assert max(scratch) - min(scratch) < MIB // 4


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_server_keeps_one_vector_however_many_silos_send(bits: int) -> None:
    """The running sum, one word a number; and while one vector is taken in, a few copies of that vector."""
    d = 10**6
    ring, cast = Ring(bits), Cast(3, 1)
    cast.set_up()
    zeros = np.zeros(d, np.int32)
    sent = {name: cast.silos[name].mask(1, Whole(zeros, 1), ring, task="train") for name in cast.names}
    word = ring.word.itemsize * d
    most, _ = peak(lambda: cast.aggregator.open_round(1, d, "train", ring))
    assert most < word + MIB // 4
    tracemalloc.start()
    try:
        for name in cast.names:
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            cast.aggregator.add_vector(1, name, *sent[name])
            after, most = tracemalloc.get_traced_memory()
            assert after - before < MIB // 4  # nothing of it is kept
            assert most - before < 4.5 * word
    finally:
        tracemalloc.stop()
    survivors = cast.aggregator.survivors(1)
    for name in cast.aggregator.ask(1):
        cast.aggregator.add_answer(1, name, *cast.silos[name].answer(1, survivors, answering=survivors))
    most, opened = peak(lambda: cast.aggregator.total(1))
    assert most < 8 * d + 2 * word + MIB  # the total as int64, and two lots of words
    most, _ = peak(lambda: cast.silos["s1"].verify_sum(1, survivors, opened.total, opened.check))
    assert most < SCRATCH


# ── a bound on single coordinates ────────────────────────────────────────────────────────────────


def test_a_peak_leaves_the_ring_to_the_noise() -> None:
    """Long vectors have small coordinates: said so, the same ring carries a finer grid, and less extra noise."""
    told: dict[str, Any] = {"silos": 10, "clip": 1.0, "sigma": 0.25, "dimension": 10**6}
    plain, peaked = Grid.choose(**told), Grid.choose(**told, peak=1 / 16)
    assert (plain.ring.bits, peaked.ring.bits) == (20, 16)
    reach = 10 * (peaked.peak * peaked.scale + 1) + noise_tail(10**6) * 0.25 * peaked.scale
    assert reach < peaked.ring.half and peaked.extra_noise(10, 0.25) <= 0.01


@each_float
def test_a_coordinate_beyond_the_peak_is_not_sent(dtype: Any) -> None:
    grid = Grid(Ring(16), 100.0, 1.0, 8, 0.25)
    assert set(rounded(np.full(8, 0.25, dtype), grid).tolist()) == {25}
    for wrong in (0.27, -0.27):
        values = np.zeros(8, dtype)
        values[5] = wrong
        with pytest.raises(InputError, match="beyond the grid's peak"):
            rounded(values, grid)


@pytest.mark.parametrize("peak", [0.0, -1.0, math.nan])
def test_a_peak_that_is_none_is_refused(peak: float) -> None:
    with pytest.raises(InputError, match="a grid needs"):
        Grid.choose(silos=3, clip=1.0, sigma=1.0, dimension=10, peak=peak)
