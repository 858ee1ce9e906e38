"""One customer moves the sum by so much and no more, whatever stands in their row and in the others'."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.treaties import make_draft, make_treaty

from foedus.compliance.treaty import Treaty
from foedus.errors import InputError
from foedus.federation.fitting import resolve
from foedus.federation.rounds import row_bound
from foedus.federation.study import Study, Training, shape_of
from foedus.federation.tasks import evaluate, train
from foedus.privacy.clipping import clip_factors, clipped_sum
from foedus.privacy.noise import Keystream

Floats = npt.NDArray[np.float64]
FULL = np.finfo(np.float64)
ADVERSARIAL = [
    0.0,
    -0.0,
    5e-324,
    1e-300,
    1e-12,
    0.5,
    1.0,
    -1.0,
    1 / 3,
    1e6,
    -1e16,
    1e300,
    -1e300,
    float(FULL.max),
]


class FixedDither(Keystream):
    """The same dither for the same customer, so that two sums differ by one customer alone."""

    def __init__(self, dither: Floats) -> None:
        super().__init__()
        self._dither = dither

    def unit(self, shape: tuple[int, ...]) -> Floats:
        assert shape == self._dither.shape
        return self._dither


numbers = st.sampled_from(ADVERSARIAL) | st.floats(allow_nan=False, allow_infinity=False)
batches = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=numbers)


@settings(max_examples=300, deadline=None)
@given(
    rows=batches,
    clip=st.sampled_from([1e-3, 0.5, 1.0, 1000.0]),
    bits=st.integers(0, 20),
    out=st.integers(0, 5),
    data=st.data(),
)
def test_one_customer_moves_the_sum_by_at_most_the_bound(
    rows: Floats, clip: float, bits: int, out: int, data: st.DataObject
) -> None:
    dither = data.draw(hnp.arrays(np.float64, rows.shape, elements=st.sampled_from([0.0, 0.5, 1 - 2**-32])))
    out %= len(rows)
    with_them = clipped_sum(rows, clip, 2**bits, FixedDither(dither))
    keep = np.arange(len(rows)) != out
    without = clipped_sum(rows[keep], clip, 2**bits, FixedDither(dither[keep]))
    moved = float(np.linalg.norm((with_them - without).astype(np.float64)))
    assert moved <= (clip * 2**bits + math.sqrt(rows.shape[1])) * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(rows=batches, clip=st.sampled_from([1e-3, 1.0, 1000.0]))
def test_a_clipped_row_keeps_its_direction_and_loses_length_only_beyond_the_clip(
    rows: Floats, clip: float
) -> None:
    clipped = rows * clip_factors(rows, clip)
    for before, after in zip(rows, clipped, strict=True):
        peak = max(float(np.abs(before).max()), 1e-300)
        length = peak * float(np.linalg.norm(before / peak)) if peak < 1e307 else math.inf
        assert float(np.linalg.norm(after)) <= clip * (1 + 1e-9)
        if length <= clip:
            assert (after == before).all()
        else:
            assert float(np.linalg.norm(after)) >= clip * (1 - 1e-6)
            assert ((np.sign(after) == np.sign(before)) | (after == 0)).all()


@functools.cache
def priced(clip: float) -> tuple[Study, Treaty]:
    document, treaty, _ = make_treaty(4)
    return resolve(make_draft(training=Training(clip=clip)), treaty, document.digest), treaty


@settings(max_examples=60, deadline=None)
@given(
    gradients=hnp.arrays(np.float64, (3, 12), elements=numbers),
    inputs=hnp.arrays(np.float64, (3, 11), elements=st.floats(-1, 1)),
    score=st.floats(-1e6, 1e6),
    label=st.integers(0, 1),
    clip=st.sampled_from([0.1, 1.5, 30.0]),
)
def test_a_customers_row_stays_within_the_sensitivity_the_study_is_priced_at(
    gradients: Floats, inputs: Floats, score: float, label: int, clip: float
) -> None:
    study, treaty = priced(clip)
    products = train.curvature(inputs, study.curvature_clip)
    cells = evaluate.contributions(np.array([score]), np.array([label]), study)
    assert cells.sum() == 1
    for number, task in enumerate(study.tasks, 1):
        plan = study.round(number, treaty)
        scale = 2**plan.scale_bits
        if task == "train":
            rows, bound = train.contributions(gradients, study.clip), row_bound(study.clip)
            sums = [clipped_sum(row[None, :], bound, scale, Keystream()) for row in rows]
        elif task == "curvature":
            bound = shape_of(study, "curvature").bound
            sums = [clipped_sum(row[None, :], bound, scale, Keystream()) for row in products]
        else:
            sums = [cells[0] * scale]
        for moved in sums:
            assert moved.shape == (plan.dimension,)
            assert float(np.linalg.norm(moved.astype(np.float64))) <= plan.sensitivity * (1 + 1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (2, 1)])
def test_a_number_that_is_not_finite_is_refused(bad: float, place: tuple[int, int]) -> None:
    rows = np.ones((3, 2))
    rows[place] = bad
    with pytest.raises(InputError, match="not finite"):
        clipped_sum(rows, 1.0, 256, Keystream())


@pytest.mark.parametrize("shape", [(3,), (), (1, 2, 3)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="one row a customer"):
        clipped_sum(np.zeros(shape), 1.0, 256, Keystream())


def test_no_customers_sum_to_zeros() -> None:
    total = clipped_sum(np.zeros((0, 5)), 1.0, 256, Keystream())
    assert (total.tolist(), total.dtype) == ([0] * 5, np.int64)


def test_sums_of_grid_points_are_exact() -> None:
    """Values on the grid are not moved by rounding, and their sum is the integers' sum."""
    rng = np.random.default_rng(0)
    grid = rng.integers(-100, 101, (5000, 3))
    total = clipped_sum(grid / 256.0, 1.0, 256, Keystream())
    assert total.tolist() == grid.sum(axis=0).tolist()


def test_rounding_is_without_bias() -> None:
    """0.3 of a unit rounds up in 0.3 of the cases; nearest-rounding, or a dither short of its range, does not."""
    n, value = 200_000, 0.3
    rows = np.tile([value / 16, -value / 16, 0.0], (n, 1))
    total = clipped_sum(rows, 1.0, 16, Keystream())
    spread = math.sqrt(n * 0.3 * 0.7)
    assert abs(total[0] - n * value) < 6 * spread
    assert abs(total[1] + n * value) < 6 * spread
    assert total[2] == 0
    for biased in (np.zeros(rows.shape), np.full(rows.shape, 0.5), Keystream().unit(rows.shape) * 0.9):
        wrong = clipped_sum(rows, 1.0, 16, FixedDither(biased))
        assert abs(wrong[0] - n * value) > 20 * spread


def test_fresh_dither_every_time() -> None:
    rows = np.full((1000, 4), 0.3 / 16)
    sums = {tuple(clipped_sum(rows, 1.0, 16, Keystream()).tolist()) for _ in range(5)}
    assert len(sums) > 1
