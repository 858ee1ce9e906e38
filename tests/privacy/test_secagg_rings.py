"""Rings, their wire and their choice: what a sum is taken in never wraps around in silence."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from support.goodness import discrete_gaussian_pmf
from support.sums import Cast

from foedus.errors import InputError, ProtocolError
from foedus.privacy.secagg.rings import OVERFLOW_BITS, WIDTHS, Ring, fitting, noise_tail

RINGS = [Ring(bits) for bits in WIDTHS]
each_ring = pytest.mark.parametrize("ring", RINGS, ids=lambda ring: f"{ring.bits} bits")
SIZES = [0, 1, 2, 3, 4, 5, 7, 511, 512, 513, 1001]


@pytest.mark.parametrize("bits", [0, 1, 8, 15, 17, 31, 33, 64, -16])
def test_other_moduli_are_refused(bits: int) -> None:
    with pytest.raises(InputError, match="foedus sums modulo"):
        Ring(bits)


# ── the wire ─────────────────────────────────────────────────────────────────────────────────────


def reference(values: list[int], bits: int) -> bytes:
    """Element by element: the lower 16 bits of all, then the upper parts of all, half bytes from below."""
    elements = [value % (1 << bits) for value in values]
    if bits in (16, 32):
        return b"".join(e.to_bytes(bits // 8, "little") for e in elements)
    lower = b"".join((e & 0xFFFF).to_bytes(2, "little") for e in elements)
    upper = [e >> 16 for e in elements]
    if bits == 24:
        return lower + bytes(upper)
    upper += [0] * (len(upper) % 2)
    return lower + bytes(a | b << 4 for a, b in zip(upper[::2], upper[1::2], strict=True))


@each_ring
@pytest.mark.parametrize("size", SIZES)
def test_packing_is_plane_after_plane_and_unpacking_its_inverse(ring: Ring, size: int) -> None:
    rng = np.random.default_rng(size)
    values = rng.integers(-ring.half, ring.half, size)
    values[: min(size, 4)] = [ring.half - 1, -ring.half, -1, 0][:size]
    words = ring.wrap(values)
    assert words.dtype == ring.word and words.dtype.byteorder in "<="
    data = ring.pack(words)
    assert type(data) is bytes and len(data) == ring.wire_bytes(size)
    assert data == reference(values.tolist(), ring.bits)
    for source in (data, memoryview(data), memoryview(bytearray(data))):
        back = ring.unpack(source, size)
        assert back.dtype == ring.word
        back += ring.zeros(size)  # it is writable and its own
        assert ring.unwrap(back).tolist() == values.tolist()
        assert ring.unwrap(back).dtype == np.int64


@settings(max_examples=150, deadline=None)
@given(ring=st.sampled_from(RINGS), data=st.data())
def test_any_words_survive_the_wire_but_for_their_upper_bits(ring: Ring, data: st.DataObject) -> None:
    top = (1 << (8 * ring.word.itemsize)) - 1
    words = np.array(data.draw(st.lists(st.integers(0, top), max_size=30)), ring.word)
    kept = words.copy()
    back = ring.unpack(ring.pack(words), words.size)
    assert (words == kept).all()  # packing takes nothing away from what it packs
    assert [int(w) % (1 << ring.bits) for w in words] == back.tolist()
    assert ring.unwrap(words).tolist() == ring.unwrap(back).tolist()


@each_ring
@pytest.mark.parametrize("size", [1, 2, 3, 512])
def test_a_wrong_length_is_refused(ring: Ring, size: int) -> None:
    data = ring.pack(ring.zeros(size))
    for wrong in (b"", data[:-1], data + b"\0", data + data):
        with pytest.raises(ProtocolError, match=f"elements of {ring.bits} bits"):
            ring.unpack(wrong, size)
    if ring.bits != 20:
        with pytest.raises(ProtocolError, match="bytes where"):
            ring.unpack(data, size + 1)


@pytest.mark.parametrize("size", [1, 3, 5, 1001])
@pytest.mark.parametrize("bit", [4, 5, 6, 7])
def test_padding_that_is_not_zero_is_refused(size: int, bit: int) -> None:
    """20 bits, an odd number of them: half a byte is left. One vector has one encoding."""
    ring = Ring(20)
    data = bytearray(ring.pack(ring.wrap(np.full(size, -1))))
    assert ring.unpack(bytes(data), size).tolist() == [0xFFFFF] * size
    data[-1] |= 1 << bit
    with pytest.raises(ProtocolError, match="padding"):
        ring.unpack(bytes(data), size)


@each_ring
def test_the_ends_of_the_ring(ring: Ring) -> None:
    ends = [ring.half - 1, -ring.half, 0, -1, 1]
    assert ring.unwrap(ring.wrap(np.array(ends))).tolist() == ends
    one_more = ring.wrap(np.array([ring.half - 1])) + ring.wrap(np.array([1]))
    assert ring.unwrap(one_more).tolist() == [-ring.half]  # wrapped: only `fitting` and the check value help


@each_ring
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
def test_a_value_outside_the_ring_raises(ring: Ring, dtype: type[np.signedinteger]) -> None:
    info = np.iinfo(dtype)
    for value in (ring.half, -ring.half - 1, 2**40, info.max, info.min):
        if info.min <= value <= info.max and not -ring.half <= value < ring.half:
            with pytest.raises(InputError, match="wrap around"):
                ring.wrap(np.array([0, value, 0], dtype))
    assert ring.wrap(np.zeros(0, dtype)).size == 0


@each_ring
def test_sums_are_exact_in_every_ring_up_to_its_ends(ring: Ring) -> None:
    cast = Cast(3, 1, [1])
    cast.set_up()
    reach = min(ring.half - 1, 2**28 * 3)
    thirds = [reach // 3, reach // 3, reach - 2 * (reach // 3)]
    rng = np.random.default_rng(5)
    made = {
        name: np.array([third, -third, 0, *rng.integers(-third, third + 1, 38)])
        for name, third in zip(cast.names, thirds, strict=True)
    }
    got = cast.round(1, made, ring=ring)
    assert got.tolist() == sum(made.values()).tolist()  # type: ignore[union-attr]
    assert got[:2].tolist() == [reach, -reach]


@each_ring
def test_what_travels_takes_just_its_bits(ring: Ring) -> None:
    cast = Cast(3, 1, [1])
    cast.set_up()
    data, header = cast.upload(1, "s1", np.ones(1001, np.int64), ring)
    assert len(data) == -(-1001 * ring.bits // 8)
    assert header.payload["bits"] == ring.bits


# ── which ring ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bits", WIDTHS)
def test_without_noise_the_narrowest_ring_is_taken_to_the_last_value(bits: int) -> None:
    last = (1 << (bits - 1)) - 1
    assert fitting(last, 0.0, 10).bits == bits
    assert fitting(last + 0.5, 0.0, 10).bits == bits  # sums are whole
    if bits == 32:
        with pytest.raises(InputError, match="does not fit the modulus"):
            fitting(last + 1, 0.0, 10, what="the sum of this table")
    else:
        assert fitting(last + 1, 0.0, 10).bits == WIDTHS[WIDTHS.index(bits) + 1]


@settings(max_examples=200, deadline=None)
@given(
    magnitude=st.floats(0, 2**31),
    sigma=st.floats(0, 2**29),
    dimension=st.integers(1, 10**9),
)
@example(magnitude=0.0, sigma=0.0, dimension=1)
def test_a_ring_fits_and_no_narrower_would(magnitude: float, sigma: float, dimension: int) -> None:
    reach = magnitude + noise_tail(dimension) * sigma
    try:
        ring = fitting(magnitude, sigma, dimension)
    except InputError:
        assert reach >= 2**31
        return
    assert reach < ring.half
    assert all(reach >= Ring(bits).half for bits in WIDTHS if bits < ring.bits)


def test_an_unfit_sum_says_what_it_was() -> None:
    with pytest.raises(InputError, match="the sum of ages can reach"):
        fitting(1e10, 0, 1, what="the sum of ages")
    for nonsense in (math.inf, math.nan):
        with pytest.raises(InputError):
            fitting(nonsense, 1.0, 5)


@pytest.mark.parametrize("dimension", [1, 10, 1000, 10**6, 10**8])
def test_the_tail_of_a_gaussian_is_below_the_bound(dimension: int) -> None:
    """Exact chance that one of `dimension` normal coordinates passes z·σ, by the union bound."""
    bound = 2.0**-OVERFLOW_BITS
    z = noise_tail(dimension)
    assert 2 * dimension * stats.norm.sf(z) < bound
    assert 2 * dimension * stats.norm.sf(0.9 * z) > bound  # nor is it needlessly wide


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, 8.0])
@pytest.mark.parametrize("silos", [1, 2, 5])
def test_the_tail_of_sums_of_discrete_gaussians_is_below_the_bound(sigma: float, silos: int) -> None:
    """Their sum's law by convolution, in full precision of floats; many narrow ones are the hard case."""
    reach = math.ceil(14 * sigma) + 14
    one = discrete_gaussian_pmf(sigma, reach)
    law = one
    for _ in range(silos - 1):
        law = np.convolve(law, one)
    middle = law.size // 2
    together = sigma * math.sqrt(silos)
    for dimension in (1, 1000, 10**6):
        at = noise_tail(dimension) * together
        tail = law[: middle - math.ceil(at) + 1].sum() + law[middle + math.ceil(at) :].sum()
        assert dimension * tail <= 2.0**-OVERFLOW_BITS


def test_the_bound_on_the_tail_is_the_one_that_is_cited() -> None:
    """2·d·exp(−z²/2) = 2^-40, to the precision of floats."""
    for dimension in (1, 7, 10**5):
        z = Fraction(noise_tail(dimension))
        assert math.isclose(2 * dimension * math.exp(-float(z * z) / 2), 2.0**-40, rel_tol=1e-9)
