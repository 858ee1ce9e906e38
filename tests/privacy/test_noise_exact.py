"""The discrete Gaussian is exact: its tables, and what it does with bits chosen to be hard, against decimals."""

from __future__ import annotations

import hashlib
import json
import runpy
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.gaussians import Dealt, Keyed, decimal_cumulative

from foedus.privacy import discrete_gaussian as distribution
from foedus.privacy.discrete_gaussian import cells_of, cumulative, exp_bounds, settle, table
from foedus.privacy.noise import _accepted, discrete_gaussian

VECTORS = Path(__file__).parents[1] / "vectors"
DISTRIBUTIONS = [
    (Fraction(1), True),
    (Fraction(25, 4), True),
    (Fraction(17**2), True),
    (Fraction(1024**2), True),
    (Fraction(1025**2, 4**4), False),
    (Fraction((2**40 - 1) ** 2, 4**33), False),
]
several = pytest.mark.parametrize(("variance", "folded"), DISTRIBUTIONS)


def load() -> Any:
    return json.loads((VECTORS / "noise.json").read_text())


# ── known answers ────────────────────────────────────────────────────────────────────────────────


def test_the_script_makes_just_this_file_again() -> None:
    made = runpy.run_path(str(VECTORS / "make_noise.py"))["files"]()
    assert made == {"noise.json": (VECTORS / "noise.json").read_text()}


def test_samples_of_a_known_stream() -> None:
    vectors = load()
    assert len(vectors["drawn"]) == 10
    for case in vectors["drawn"]:
        stream = Keyed(bytes.fromhex(vectors["key"]))
        found = discrete_gaussian(Fraction(case["sigma"]), len(case["samples"]), stream)
        assert (found.tolist(), stream.given) == (case["samples"], case["bytes"]), case["sigma"]


def test_samples_of_more_than_one_block() -> None:
    case, stream = load()["blocks"], Keyed(bytes.fromhex(load()["key"]))
    found = discrete_gaussian(int(case["sigma"]), case["size"], stream)
    assert hashlib.sha256(found.astype("<i8").tobytes()).hexdigest() == case["sha256_of_int64"]
    assert stream.given == case["bytes"]


@pytest.mark.parametrize("case", load()["crafted"], ids=lambda case: f"{case['name']}, σ = {case['sigma']}")
def test_bits_that_do_not_tell(case: Any) -> None:
    stream = Dealt(bytes.fromhex(case["stream"]))
    assert discrete_gaussian(int(case["sigma"]), 1, stream).tolist() == case["samples"]
    assert stream.left == b""


# ── the tables ───────────────────────────────────────────────────────────────────────────────────


@several
def test_prefixes_are_the_distribution_functions_first_63_bits(variance: Fraction, folded: bool) -> None:
    prefixes = table(variance, folded).prefixes.tolist()
    with localcontext() as context:
        context.prec = 60
        exact = [int(c * 2**63) for c in decimal_cumulative(variance, folded=folded, digits=30)]
    last = next(k for k, prefix in enumerate(exact) if prefix == 2**63 - 1)
    assert prefixes == exact[: last + 1]


@several
def test_a_cell_tells_the_magnitude_just_where_no_prefix_lies_in_it(variance: Fraction, folded: bool) -> None:
    source = table(variance, folded)
    crossed = {prefix >> 48 for prefix in source.prefixes.tolist()}
    found = source.cells.tolist()
    assert {c for c in range(2**15) if found[c] == -1} == crossed
    known = [(c, k) for c, k in enumerate(found) if k >= 0]
    assert len(known) > 0.85 * 2**15
    exact = [float(p) * 2.0**-63 for p in source.prefixes.tolist()]
    for c, k in known:
        middle = (c + 0.5) / 2**15
        assert middle < exact[k] and (k == 0 or exact[k - 1] < middle)


@several
@pytest.mark.parametrize("bits", [1, 127])
def test_bounds_of_the_distribution_function_hold_and_are_close(
    variance: Fraction, folded: bool, bits: int
) -> None:
    bounds = cumulative(variance, folded, bits)
    exact = decimal_cumulative(variance, folded=folded, digits=70)
    with localcontext() as context:
        context.prec = 90
        for low, high, c in zip(bounds.low, bounds.high, exact, strict=False):
            assert low <= c * 2**bits < high <= low + 2
        assert 1 - exact[min(len(exact), len(bounds.low)) - 1] < Decimal(2) ** -bits
    assert bounds.low == sorted(bounds.low) and bounds.high == sorted(bounds.high)


def test_bounds_hold_with_hardly_a_spare_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rounding and the tail can do is in the bounds, not hidden by precision to spare."""
    monkeypatch.setattr(distribution, "_GUARD", 2)
    for variance, folded in ((Fraction(1), True), (Fraction(17**2), True), (Fraction(64**2), False)):
        exact = decimal_cumulative(variance, folded=folded, digits=40)
        for bits in (8, 20, 40, 63):
            bounds = cumulative(variance, folded, bits)
            with localcontext() as context:
                context.prec = 60
                for low, high, c in zip(bounds.low, bounds.high, exact, strict=False):
                    assert low <= c * 2**bits < high


def test_a_prefix_on_a_cells_edge_leaves_that_cell_open() -> None:
    one = 1 << 48
    cells = cells_of(np.array([5 * one, 8 * one - 1, 9 * one + 7, 2**63 - 1], np.uint64)).tolist()
    assert cells[:11] == [0, 0, 0, 0, 0, -1, 1, -1, 2, -1, 3]
    assert set(cells[10:-1]) == {3} and cells[-1] == -1


@given(
    st.integers(0, 2**100), st.integers(1, 2**100), st.sampled_from([1, 8, 64, 128, 256]), st.integers(0, 8)
)
@settings(max_examples=200, deadline=None)
def test_bounds_of_the_exponential_hold_and_are_close(
    numerator: int, denominator: int, bits: int, shift: int
) -> None:
    low, high = exp_bounds(numerator << shift, denominator, bits)
    with localcontext() as context:
        context.prec = 150
        exact = (-Decimal(numerator << shift) / denominator).exp() * 2**bits
        assert low <= exact <= high
    assert low >= 0 and high - low <= 2


# ── one sample, of bits chosen ───────────────────────────────────────────────────────────────────


@given(st.sampled_from([1, 4, 64, 1000]), st.data())
@settings(max_examples=100, deadline=None)
def test_a_magnitude_is_that_of_its_uniform_real(sigma: int, data: st.DataObject) -> None:
    """u near a boundary as near as it takes, or anywhere: 63 + 128 bits of it."""
    exact = decimal_cumulative(Fraction(sigma**2), folded=True, digits=70)
    with localcontext() as context:
        context.prec = 90
        k = data.draw(st.integers(0, min(len(exact), 9 * sigma) - 1))
        distance = data.draw(st.sampled_from([0, 1, -1, 2**64, -(2**64), 2**128, -(2**128), 2**180, 2**190]))
        u = (int(exact[k] * 2**191) + distance) % 2**191
        if distance == 0:
            u ^= data.draw(st.integers(1, 2**20))
        real = Decimal(u) / 2**191
        expected = next(k for k, c in enumerate(exact) if real < c)
        assume(all(abs(real - c) > Decimal(2) ** -191 for c in exact[max(0, expected - 1) : expected + 1]))
    bits = (u >> 176).to_bytes(2, "little") + (u >> 128 & 2**48 - 1).__lshift__(16).to_bytes(8, "little")
    bits += (u >> 64 & 2**64 - 1).to_bytes(8, "little") + (u & 2**64 - 1).to_bytes(8, "little")
    assert discrete_gaussian(sigma, 1, Dealt(bits)).tolist() == [expected]


def test_settling_asks_for_no_more_bits_than_tell() -> None:
    source = table(Fraction(16), True)
    asked: list[int] = []

    def more() -> int:
        asked.append(0)
        return 2**63

    assert settle(int(source.prefixes[3]), more, Fraction(16), True) in (3, 4)
    assert len(asked) == 1


@given(
    st.sampled_from([1025, 5000, 2**20, 2**30 + 7, 2**40 - 1, Fraction(2**33, 3)]),
    st.integers(0, 2**15 - 1),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["p", "1 − t", "1 − t − 2^-18", "p + 2^-36", "p − 2^-36"]),
    st.sampled_from([s * 2**k for s in (-1, 1) for k in (64, 66, 65, 62, 60, 44, 43, 30, 1, 0)]),
)
@settings(max_examples=200, deadline=None)
def test_a_proposal_is_taken_just_where_its_exponential_says(
    sigma: int | Fraction, cell: int, part: float, near: str, distance: int
) -> None:
    """w within `distance`·2^-80 of the probability, and of each border between the ways to decide it."""
    shift = int(sigma).bit_length() - 7
    high = int(table(Fraction(sigma) ** 2 / 4**shift, False).cells[cell])
    if high < 0:
        return
    low = int(part * 2**shift)
    with localcontext() as context:
        context.prec = 80
        t = Decimal(low * (low + (2 * high << shift)) * Fraction(sigma).denominator ** 2) / (
            2 * Fraction(sigma).numerator ** 2
        )
        p = (-t).exp()
        border = {
            "p": p,
            "1 − t": 1 - t,
            "1 − t − 2^-18": 1 - t - Decimal(2) ** -18,
            "p + 2^-36": p + Decimal(2) ** -36,
            "p − 2^-36": p - Decimal(2) ** -36,
        }
        w = min(max(0, int(border[near] * 2**80) + distance), 2**80 - 1)
        assume(w != int(p * 2**80))
        take = w < int(p * 2**80)
        told = w >> 64 != int(p * 2**16)
    width = 2 if shift <= 16 else 4 if shift <= 32 else 8
    again = bytes(2 + width + 2)  # 0, taken
    proposal = cell.to_bytes(2, "little") + low.to_bytes(width, "little") + (w >> 64).to_bytes(2, "little")
    further = b"" if told else (w % 2**64).to_bytes(8, "little")
    stream = Dealt(proposal + further + again)
    z = (high << shift) + low
    assert discrete_gaussian(sigma, 1, stream).tolist() == [z if take else 0]
    assert len(stream.left) == (len(again) if take else 0)


@pytest.mark.parametrize("t", [0.4, 0.5, 0.6, 1, 3, 10, 11, 12, 20, 44, 5000])
def test_exponents_however_large_are_decided(t: float) -> None:
    """No y that is ever drawn leads there."""
    sigma, low, shift = 2**20, 2**14 - 1, 14
    far = int(2 * t * sigma**2 / low - low) >> shift + 1
    with localcontext() as context:
        context.prec = 80
        border = int((-Decimal(low * (low + (far << shift + 1))) / (2 * sigma**2)).exp() * 2**80)
    for distance in (-(2**65), -(2**62), -(2**44), -1, 1, 2**44, 2**62, 2**65):
        w = min(max(0, border + distance), 2**80 - 1)
        if w != border:
            bits = (w >> 64).to_bytes(2, "little") + (w % 2**64).to_bytes(8, "little")
            found = _accepted(
                np.array([far]), np.array([low], np.uint16), shift, Fraction(sigma**2), Dealt(bits)
            )
            assert found.tolist() == [w < border]


def test_blocks_and_calls_do_not_change_what_comes() -> None:
    key = bytes(32)
    for sigma in (4, 1024, 5000):
        stream = Keyed(key)
        parts = [discrete_gaussian(sigma, n, stream) for n in (2**15, 2**15, 100)]
        whole = discrete_gaussian(sigma, 2**16 + 100, Keyed(key))
        np.testing.assert_array_equal(np.concatenate(parts), whole)
