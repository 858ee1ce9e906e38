"""A rehearsal is the study itself, without what hides its sums."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from support.orders import make_draft, no_noise, order_log, small_world

from foedus.clients.rehearsal import Silo, rehearse
from foedus.demo.data import deal
from foedus.demo.simulate import Simulated, simulate
from foedus.demo.world import SHARES, World, build
from foedus.errors import Abandoned, InputError
from foedus.federation.study import Study, Training
from foedus.federation.tasks.train import State
from foedus.privacy.noise import Keystream

pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")
Floats = npt.NDArray[np.float64]
Run = tuple[World, Simulated]


class HalfDither(Keystream):
    """Rounds to nearest, so that two runs agree to the last bit."""

    def unit(self, shape: tuple[int, ...]) -> Floats:
        return np.full(shape, 0.5)


@pytest.fixture(scope="module", params=["fixed_hessian", "adam"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole simulation with masks, guard and coordinator, without noise and without chance in its rounding."""
    draft = make_draft(training=Training(optimiser=request.param, rounds=2))
    world = small_world(tmp_path_factory.mktemp("rehearsal") / "world", draft)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("foedus.clients.trainer.Keystream", HalfDither)
        done = simulate(world, draft, sampler=no_noise)
    return world, done


@pytest.fixture(scope="module")
def open_world(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Study, dict[str, Silo]]:
    """Everybody consents, so that a silo's directory and its table alone are the same cohort."""
    draft = make_draft()
    world = build(tmp_path_factory.mktemp("open") / "world", order_log(), draft, consent=False)
    study, _ = world.sign_study(draft)
    frames = dict(zip(world.homes, deal(order_log(), SHARES), strict=True))
    return world, study, {n: Silo.of_frame(f, study, world.treaty) for n, f in frames.items()}


def homes(world: World, study: Study) -> dict[str, Silo]:
    return {name: Silo.of_home(path, study, world.treaty) for name, path in world.homes.items()}


def test_the_sums_and_the_weights_are_those_of_the_secure_sum(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, done = run
    monkeypatch.setattr("foedus.clients.trainer.Keystream", HalfDither)
    outcome = rehearse(done.study, world.treaty, homes(world, done.study), sampler=no_noise)
    assert list(outcome.totals) == [s.round for s in done.case.sums]
    for summed in done.case.sums:
        np.testing.assert_array_equal(outcome.totals[summed.round], summed.total)
        assert outcome.survivors[summed.round] == summed.survivors
    release = json.loads((done.case.out / "model.json").read_bytes())["payload"]
    np.testing.assert_array_equal(outcome.weights, np.array(release["weights"]))
    figures = json.loads((done.case.out / "metrics.json").read_bytes())["payload"]
    assert outcome.metrics.auc == figures["metrics"]["auc"]


def test_a_frame_in_memory_does_as_well_as_a_directory(
    open_world: tuple[World, Study, dict[str, Silo]],
) -> None:
    world, study, frames = open_world
    for name, silo in homes(world, study).items():
        for side in ("train", "test"):
            there, here = silo.dataset(side), frames[name].dataset(side)
            np.testing.assert_array_equal(here.customers, there.customers)
            np.testing.assert_allclose(here.values, there.values, rtol=1e-12)  # SQL adds in any order
            np.testing.assert_array_equal(here.labels, there.labels)


def test_every_silo_that_is_present_adds_its_noise_and_no_other_does(
    open_world: tuple[World, Study, dict[str, Silo]], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, study, silos = open_world
    monkeypatch.setattr("foedus.clients.trainer.Keystream", HalfDither)
    three = sorted(silos)[1:]

    def ones(sigma: int, size: int, stream: Keystream) -> npt.NDArray[np.int64]:
        return np.full(size, sigma, np.int64)

    plain = rehearse(study, world.treaty, silos, sampler=no_noise)
    some = rehearse(
        study,
        world.treaty,
        silos,
        sampler=ones,
        present=lambda number: three if number == 1 else sorted(silos),
    )
    assert some.counts == {1: 3, 2: 4, 3: 4, 4: 4}
    assert some.survivors[1] == tuple(three)
    first, plan = min(silos), study.round(1, world.treaty)
    trainer, dataset = silos[first].trainer, silos[first].dataset("train")
    missing = trainer.summed(plan, trainer.rows(plan, dataset, State.start(study).sent), HalfDither())
    np.testing.assert_array_equal(some.totals[1], plain.totals[1] - missing + 3 * plan.sigma)


def test_the_hook_hears_every_round_and_the_model_before_it(
    open_world: tuple[World, Study, dict[str, Silo]],
) -> None:
    world, study, silos = open_world
    heard: list[tuple[int, str, Floats, int]] = []
    outcome = rehearse(
        study,
        world.treaty,
        silos,
        hook=lambda plan, state, total: heard.append((plan.round, plan.task, state.weights, total.size)),
    )
    assert [(n, task) for n, task, _, _ in heard] == list(enumerate(study.tasks, 1))
    assert [size for *_, size in heard] == [t.size for t in outcome.totals.values()]
    assert not np.array_equal(heard[1][2], heard[2][2])
    np.testing.assert_array_equal(heard[-1][2], outcome.weights)  # evaluation moves no weight


def test_too_few_silos_and_strangers_are_refused(open_world: tuple[World, Study, dict[str, Silo]]) -> None:
    world, study, silos = open_world
    names = sorted(silos)
    with pytest.raises(Abandoned, match="round 2: 2 silos"):
        rehearse(study, world.treaty, silos, present=lambda n: names[: 2 if n == 2 else 3])
    with pytest.raises(InputError, match="parties"):
        rehearse(study, world.treaty, {n: silos[n] for n in names[1:]})
    with pytest.raises(InputError, match="parties"):
        rehearse(study, world.treaty, {**silos, "mallory": silos[names[0]]})


def test_a_frame_without_the_column_of_customers_is_refused(
    open_world: tuple[World, Study, dict[str, Silo]],
) -> None:
    world, study, _ = open_world
    with pytest.raises(InputError, match="customer"):
        Silo.of_frame(pd.DataFrame({"person": ["a"]}), study, world.treaty)
