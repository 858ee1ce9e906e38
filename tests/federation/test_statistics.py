"""What a study learns before and beside training: scales, label counts, held-out losses; and the rounds it then runs."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

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
from foedus.federation.rounds import curvature_shape, validate_shape
from foedus.federation.schema import CategoryColumn, ColumnLabel, NumberColumn
from foedus.federation.study import (
    DraftPrivacy,
    EarlyStopping,
    Scaling,
    Study,
    Training,
    draft_from,
    shape_of,
)
from foedus.federation.tasks import statistics, train
from foedus.privacy.clipping import clipped_sum
from foedus.privacy.noise import Keystream, discrete_gaussian

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
ANY = st.floats(allow_nan=False, allow_infinity=False)

FEATURES = (
    NumberColumn(column="age", lower=18, upper=98),
    NumberColumn(column="income"),
    CategoryColumn(column="plan", levels=("basic", "plus", "pro")),
    NumberColumn(column="balance"),
    NumberColumn(column="visits", log=True, upper=50),
)
LEARNED = 2  # income and balance
OPEN, TREATY, _ = make_treaty(4, unsafe=("central",))


@functools.cache
def studied(mode: str = "distributed", **training: Any) -> Study:
    draft = make_draft(
        label=ColumnLabel(column="left", positive="yes"),
        features=FEATURES,
        training=Training(**({"class_weight": "balanced"} | training)),
        privacy=DraftPrivacy.model_validate({"mode": mode, "epsilon": 4.0}),
    )
    return resolve(draft, TREATY, OPEN.digest)


def total_of(values: Floats, labels: Integers, study: Study) -> Integers:
    """The sum of the rows in integer units, without noise."""
    rows = statistics.contributions(values, labels, study)
    return rows.sum(axis=0, dtype=np.int64) * 2**study.privacy.scale_bits_statistics


def columns(income: Floats) -> Floats:
    """Quantities of customers with such an income; what else they have does not matter."""
    return np.column_stack([np.full(len(income), 40.0), income, np.zeros(len(income)), np.ones(len(income))])


def learned(income: Floats, study: Study | None = None, *, noise: float = 0.0) -> tuple[float, float]:
    """The bounds learned of an income that so many customers have."""
    used = study or studied()
    total = total_of(columns(income), np.zeros(len(income), np.int64), used)
    low, high = statistics.learn(total, used, noise)[:2]
    return float(low), float(high)


# ── what one customer moves ──────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.just(4)), elements=ANY),
    one=hnp.arrays(np.float64, (1, 4), elements=ANY),
    label=st.integers(0, 1),
)
def test_a_customer_more_moves_the_sum_by_the_bound_whatever_the_values(
    values: Floats, one: Floats, label: int
) -> None:
    study = studied()
    labels = np.arange(len(values)) % 2
    without = total_of(values, labels, study)
    with_one = total_of(np.vstack([values, one]), np.append(labels, label), study)
    shape, plan = shape_of(study, "statistics"), study.round(1, TREATY)
    assert plan.task == "statistics" and without.shape == (plan.dimension,)
    moved = (with_one - without) / 2**plan.scale_bits
    assert float(np.linalg.norm(moved)) == pytest.approx(math.sqrt(LEARNED + 1), rel=1e-12)
    assert float(np.linalg.norm(moved)) <= shape.bound * (1 + 1e-12)
    assert float(np.linalg.norm(with_one - without)) <= plan.sensitivity * (1 + 1e-12)  # it is what is priced
    assert moved.min() == 0 and moved.max() == 1 and moved[-2 + label] == 1


@settings(max_examples=100, deadline=None)
@given(
    inputs=hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=ANY),
    clip=st.floats(0.01, 5.0),
)
def test_no_row_of_products_is_longer_than_the_bound_of_the_curvature(inputs: Floats, clip: float) -> None:
    p = inputs.shape[1] + 1
    shape = curvature_shape(p, min(clip, math.sqrt(p)))
    rows = train.curvature(inputs, min(clip, math.sqrt(p)))
    assert rows.shape == (len(inputs), shape.dimension)
    assert np.linalg.norm(rows, axis=1).max() <= shape.bound * (1 + 1e-9)
    assert np.abs(rows).max() <= shape.entry
    for row in rows:
        moved = clipped_sum(row[None, :], shape.bound, 2**12, Keystream())
        assert float(np.linalg.norm(moved.astype(np.float64))) <= shape.sensitivity(12) * (1 + 1e-9)


def test_the_bound_of_the_curvature_is_reached() -> None:
    """…by the longest row there is, so a tighter one would be wrong: ones, under a clip that lets them through."""
    row = train.curvature(np.ones((1, 5)), math.sqrt(6))
    assert float(np.linalg.norm(row)) == pytest.approx(curvature_shape(6, math.sqrt(6)).bound)


@settings(max_examples=100, deadline=None)
@given(scores=hnp.arrays(np.float64, st.integers(1, 8), elements=ANY), label=st.integers(0, 1))
def test_a_held_out_customers_loss_is_bounded_whatever_the_score(scores: Floats, label: int) -> None:
    rows = train.losses(scores, np.full(len(scores), label))
    assert ((rows >= 0) & (rows <= 1)).all() and (rows[:, 1] == 1).all()
    assert np.linalg.norm(rows, axis=1).max() <= validate_shape().bound * (1 + 1e-12)
    agrees = scores if label == 1 else -scores
    expected = np.minimum(np.log1p(np.exp(-np.clip(agrees, -700, 700))) / train.MAX_LOSS, 1)
    assert rows[:, 0] == pytest.approx(expected, rel=1e-9, abs=1e-12)


# ── scales ───────────────────────────────────────────────────────────────────────────────────────


SAMPLES = {
    "normal": lambda rng: rng.normal(50, 10, 20_000),
    "long tail": lambda rng: rng.lognormal(7, 1.5, 20_000),
    "debts": lambda rng: -rng.lognormal(5, 1, 20_000),
    "both signs": lambda rng: rng.normal(0, 3000, 20_000),
    "below one": lambda rng: rng.uniform(-0.5, 1.0, 20_000),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_bounds_are_the_quantiles_to_a_cell_and_the_margin(name: str) -> None:
    income = SAMPLES[name](np.random.default_rng(3))
    study = studied()
    own = study.scaling
    low, high = learned(income, noise=5.0)
    spread = (high - low) / (1 + 2 * own.margin)  # the margin, taken off again
    found = np.array([low, high]) + own.margin * spread * np.array([1, -1])
    cell = 2 * np.arcsinh(own.limit / own.unit) / own.cells
    true = np.arcsinh(np.quantile(income, [own.tail, 1 - own.tail]) / own.unit)
    assert np.abs(np.arcsinh(found / own.unit) - true).max() <= cell
    inside = ((income >= low) & (income <= high)).mean()
    assert 1 - 2 * own.tail - 0.01 <= inside


def test_noise_as_priced_leaves_the_bounds_near_what_they_are_without() -> None:
    """…of 40,000 customers, by the noise of four silos in a study of ε = 4."""
    study = studied()
    income = np.random.default_rng(5).lognormal(7, 1, 40_000)
    exact = total_of(columns(income), np.arange(len(income)) % 2, study)
    noise = sum(discrete_gaussian(study.privacy.sigma_statistics, exact.size, Keystream()) for _ in range(4))
    clean = train.advance(train.State.start(study), 1, exact, study, 4).statistics
    noisy = train.advance(train.State.start(study), 1, exact + noise, study, 4).statistics
    assert noisy.shape == clean.shape == (study.learned,)
    cell = 2 * np.arcsinh(study.scaling.limit) / study.scaling.cells
    assert np.abs(np.arcsinh(noisy[:2]) - np.arcsinh(clean[:2])).max() <= 2 * cell
    assert noisy[4:] == pytest.approx([1.0, 1.0], abs=0.02)  # half of them bear each label


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    noise=st.floats(0.1, 1e6),
    tail=st.floats(1e-4, 0.4),
    cells=st.integers(8, 300),
)
def test_bounds_of_pure_noise_are_finite_ordered_and_on_the_grid(
    seed: int, noise: float, tail: float, cells: int
) -> None:
    scaling = Scaling(tail=tail, cells=cells)
    study = studied().model_copy(update={"scaling": scaling})
    drawn = np.random.default_rng(seed).normal(0, noise, LEARNED * cells + 2)
    total = np.rint(drawn * 2**study.privacy.scale_bits_statistics).astype(np.int64)
    found = statistics.learn(total, study, noise)
    assert found.shape == (study.learned,) and np.isfinite(found).all()
    reach = scaling.limit * (1 + 2 * scaling.margin) * (1 + 1e-9)
    for low, high in found[:4].reshape(2, 2):
        assert -reach <= low < high <= reach
    assert (found[4:] > 0).all()


@pytest.mark.parametrize("value", [0.0, -3.7, 1234.5, 1e6, -1e6, 1e300, -1e300])
def test_a_constant_column_gets_bounds_around_its_value(value: float) -> None:
    low, high = learned(np.full(5000, value), noise=5.0)
    limit = studied().scaling.limit
    assert low <= np.clip(value, -limit, limit) <= high and low < high
    found = statistics.inputs(
        columns(np.full(3, value)), np.zeros((3, 1), np.int64), FEATURES, np.array([low, high, -1.0, 1.0])
    )
    assert np.isfinite(found).all() and (np.abs(found) <= 1).all() and (found[0] == found).all()


def test_no_customers_and_no_noise_still_give_bounds() -> None:
    low, high = learned(np.zeros(0))
    assert math.isfinite(low) and math.isfinite(high) and low < high


@pytest.mark.parametrize(("mode", "spread"), [("distributed", 2.0), ("local", 2.0), ("central", 1.0)])
def test_what_stands_out_is_measured_by_the_modes_noise(mode: str, spread: float) -> None:
    """A far cell of 4.5σ is a customer's in the central mode, and noise where four silos add theirs."""
    study = studied(mode)
    sigma = study.privacy.sigma_statistics
    cells = study.scaling.cells
    total = np.zeros(LEARNED * cells + 2, np.int64)
    total[[60, cells + 60]], total[100] = 30 * sigma, math.ceil(4.5 * sigma)
    found = train.advance(train.State.start(study), 1, total, study, 4).statistics
    by_hand = statistics.learn(total, study, spread * sigma / 2**study.privacy.scale_bits_statistics)
    assert found.tolist() == by_hand.tolist()
    edge = float(np.sinh(statistics.edges(study)[100]))
    assert (found[1] > edge) == (mode == "central")


@pytest.mark.parametrize(
    "scaling",
    [{"tail": 1e-17}, {"tail": 0.5}, {"unit": 1e-300}, {"limit": 0.0}, {"cells": 4}, {"margin": -0.1}],
)
def test_a_scaling_that_no_histogram_carries_is_refused(scaling: dict[str, float]) -> None:
    plain = make_draft(label=ColumnLabel(column="left", positive="yes"), features=FEATURES)
    content = plain.model_dump(mode="json") | {"scaling": scaling}
    with pytest.raises(InputError, match=rf"scaling\.{next(iter(scaling))}"):
        draft_from(content)


# ── inputs and weights ───────────────────────────────────────────────────────────────────────────


@settings(max_examples=100, deadline=None)
@given(
    values=hnp.arrays(np.float64, (3, 4), elements=ANY),
    codes=hnp.arrays(np.int64, (3, 1), elements=st.integers(-1, 2)),
    bounds=st.lists(st.floats(-1e12, 1e12), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_inputs_lie_within_one_whatever_the_values_and_bounds(
    values: Floats, codes: Integers, bounds: list[float]
) -> None:
    found = statistics.inputs(values, codes, FEATURES, np.array([*bounds, -1.0, 1.0]))
    assert found.shape == (3, studied().inputs) == (3, 6)
    assert (np.abs(found) <= 1).all()  # which a NaN is not
    plan = found[:, 2:4]
    assert (plan == (codes == np.array([1, 2]))).all()  # levels but the first; none for an unknown one


def test_inputs_are_linear_within_their_bounds_and_clamped_beyond() -> None:
    values = np.array([[18.0, -5, 0, 0], [58, 0, 10, 50], [98, 5, 20, 1e9], [1000, 7, 99, -3]])
    found = statistics.inputs(values, np.zeros((4, 1), np.int64), FEATURES, np.array([-5.0, 5, 0, 20]))
    assert found[:, 0].tolist() == [-1, 0, 1, 1]
    assert found[:, 1].tolist() == [-1, 0, 1, 1]
    assert found[:, 4].tolist() == [-1, 0, 1, 1]
    assert found[:, 5].tolist() == [-1, 1, 1, -1]


def test_bounds_that_float64_can_not_subtract_are_refused() -> None:
    for wide in ({"upper": 1.7e308}, {"lower": -1.7e308, "upper": 1.0}):
        content = make_draft(label=ColumnLabel(column="left", positive="yes"), features=FEATURES).model_dump(
            mode="json"
        )
        content["features"] = [{"column": "age", **wide}]
        with pytest.raises(InputError, match="features"):
            draft_from(content)
    widest = NumberColumn(column="age", lower=-1e300, upper=1e300)
    found = statistics.inputs(
        np.array([[-1.7e308], [0.0], [1.7e308]]), np.zeros((3, 0), np.int64), (widest,), np.zeros(0)
    )
    assert found[:, 0].tolist() == [-1, 0, 1]


@pytest.mark.parametrize("stayed", [100, 5000, 9900])
def test_balanced_labels_weigh_the_same_in_all(stayed: int) -> None:
    study = studied()
    labels = np.repeat([0, 1], [stayed, 10_000 - stayed])
    total = total_of(columns(np.arange(10_000.0)), labels, study)
    weights = statistics.class_weights(statistics.learn(total, study, 1.0), study)
    assert weights[0] * stayed == pytest.approx(weights[1] * (10_000 - stayed))
    assert weights[labels].sum() == pytest.approx(10_000)  # the step stays as long as it was


def test_a_label_that_drowns_in_noise_gets_no_endless_weight() -> None:
    study = studied()
    total = total_of(columns(np.arange(10_000.0)), np.zeros(10_000, np.int64), study)
    for noise, most in ((0.0, 5001.0), (50.0, 60.0)):
        weights = statistics.class_weights(statistics.learn(total, study, noise), study)
        assert np.isfinite(weights).all() and 1 < weights[1] <= most


def test_without_class_weights_both_labels_count_one_and_no_count_is_taken_for_it() -> None:
    study = studied(class_weight=None)
    assert study.learned == 2 * LEARNED and studied().learned == 2 * LEARNED + 2
    assert statistics.class_weights(np.array([-5.0, 5, 0, 20]), study).tolist() == [1, 1]
    assert "statistics" not in resolve(make_draft(), TREATY, OPEN.digest).tasks


# ── early stopping ───────────────────────────────────────────────────────────────────────────────


def _expected(losses: list[float], patience: int) -> tuple[int, int]:
    """How many looks are taken, and which of them is the best, said another way than the code says it."""
    best, since = 0, 0
    for i in range(1, len(losses)):
        best, since = (i, 0) if losses[i] < losses[best] else (best, since + 1)
        if since >= patience:
            return i + 1, best
    return len(losses), best


def _walk(study: Study, treaty: Treaty, losses: list[float]) -> tuple[list[int], list[Floats], train.State]:
    """The rounds visited, the weights at each look, and the last state, if the held-out losses are these."""
    rng = np.random.default_rng(2)
    state = train.State.start(study)
    number = train.following(state, 0, study)
    visited: list[int] = []
    looked_at: list[Floats] = []
    while number is not None:
        visited.append(number)
        task, plan = study.tasks[number - 1], study.round(number, treaty)
        total = rng.integers(-(2**plan.scale_bits), 2**plan.scale_bits, plan.dimension)
        if task == "validate":
            customers = 1000 * 2**plan.scale_bits
            total = np.array([round(losses[len(looked_at)] / train.MAX_LOSS * customers), customers])
            looked_at.append(state.weights)
        state = train.advance(state, number, total, study, 4)
        number = train.following(state, number, study)
    return visited, looked_at, state


@settings(max_examples=60, deadline=None)
@given(
    losses=st.lists(st.integers(1, 30), min_size=6, max_size=6).map(lambda xs: [x / 10 for x in xs]),
    every=st.integers(1, 4),
    patience=st.integers(1, 3),
    optimiser=st.sampled_from(["fixed_hessian", "adam"]),
)
def test_early_stopping_visits_the_rounds_that_are_due_and_ends_with_the_best_look(
    losses: list[float], every: int, patience: int, optimiser: str
) -> None:
    stopping = EarlyStopping(every=every, patience=patience)
    study = studied(rounds=6, optimiser=optimiser, early_stopping=stopping)
    there = study.tasks.count("validate")
    assert there == math.ceil(6 / every)
    looks, best = _expected(losses[:there], patience)
    visited, looked_at, state = _walk(study, TREATY, losses)
    last_look = [i for i, t in enumerate(study.tasks, 1) if t == "validate"][looks - 1]
    assert visited == [*range(1, last_look + 1), study.rounds]
    assert study.tasks[visited[-1] - 1] == "evaluate"
    assert len(looked_at) == looks
    assert state.weights.tolist() == looked_at[best].tolist()
    assert state.looks == pytest.approx(losses[:looks], abs=1e-3)


def test_without_early_stopping_every_round_is_visited_and_the_last_weights_stay() -> None:
    study = studied(rounds=3)
    visited, _, state = _walk(study, TREATY, [])
    assert visited == list(range(1, study.rounds + 1)) and not state.stopped
    again = train.State.start(study)
    rng = np.random.default_rng(2)
    for number in visited:
        plan = study.round(number, TREATY)
        total = rng.integers(-(2**plan.scale_bits), 2**plan.scale_bits, plan.dimension)
        again = train.advance(again, number, total, study, 4)
    assert again.weights.tolist() == state.weights.tolist()


def test_a_look_of_noise_alone_breaks_nothing() -> None:
    """A sum of no customers, or of fewer than none, is a loss like any other."""
    study = studied(rounds=2, early_stopping=EarlyStopping(every=1, patience=1))
    start = replace(train.State.start(study), weights=np.ones(study.parameters))
    for total in ([0, 0], [-7, -50], [50, -7], [2**40, 1]):
        after = train.look(start, np.array(total, np.int64), study)
        assert math.isfinite(after.looks[0]) and after.weights.tolist() == start.weights.tolist()
