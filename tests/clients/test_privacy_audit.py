"""The audit finds planted faults, each by the line that is there for it, and nothing in a sound study.

Every line is wrongly refuted with probability 1e-7 at most; the canaries are so many that a planted fault is
missed no more often.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from support.orders import order_log
from support.treaties import make_treaty

from foedus.clients import trainer
from foedus.clients.features import Raw
from foedus.clients.privacy_audit import Report, audit
from foedus.clients.rehearsal import Silo
from foedus.clients.trainer import Trainer
from foedus.compliance.treaty import Overlap, Treaty
from foedus.demo.data import deal
from foedus.errors import InputError
from foedus.federation.fitting import resolve
from foedus.federation.modes import MODES
from foedus.federation.pricing import price
from foedus.federation.rounds import RoundPlan
from foedus.federation.schema import CategoryColumn, ChurnLabel, ColumnLabel, NumberColumn, Split
from foedus.federation.study import Draft, DraftPrivacy, EarlyStopping, Model, Study, Training
from foedus.federation.tasks import train
from foedus.privacy.noise import Keystream, discrete_gaussian

pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
PURPOSE = "dpv:ServiceOptimisation"


@dataclasses.dataclass(frozen=True)
class Scene:
    """A study, its treaty and four shops' tables in memory."""

    study: Study
    treaty: Treaty
    silos: dict[str, Silo]

    def audit(self, sampler: Callable[..., Integers] = discrete_gaussian, canaries: int = 300) -> Report:
        return audit(self.study, self.treaty, self.silos, sampler=sampler, canaries=canaries)

    def with_trainer(self, kind: type[Trainer]) -> Scene:
        """The same shops, with a trainer that has a fault."""
        silos = {}
        for name, silo in self.silos.items():
            faulty = kind(silo.trainer.source, self.study, self.treaty.retention_days)
            silos[name] = Silo(faulty, silo.cohort)
        return dataclasses.replace(self, silos=silos)


def scene(draft: Draft, frame: pd.DataFrame, **terms: object) -> Scene:
    envelope, treaty, _ = make_treaty(4, **terms)
    study = resolve(draft, treaty, envelope.digest)
    parts = deal(dataclasses.replace(order_log(1), frame=frame), (1, 1, 1, 1))
    silos = {
        p.name: Silo.of_frame(part, study, treaty) for p, part in zip(treaty.parties, parts, strict=True)
    }
    return Scene(study, treaty, silos)


def churn_draft(mode: str = "distributed", epsilon: float = 8.0) -> Draft:
    return Draft(
        title="churn of the shops",
        author="alice",
        purpose=PURPOSE,
        label=ChurnLabel(train_as_of="2024-03-01", test_as_of="2024-06-01"),
        split=Split(train=0.5),
        training=Training(rounds=3),
        privacy=DraftPrivacy(epsilon=epsilon, evaluation_share=0.25, mode=MODES[mode]),
    )


@pytest.fixture(scope="module")
def churn() -> Scene:
    """Logistic regression on an order log: curvature, three steps, evaluation; twelve canaries a run."""
    return scene(churn_draft(), order_log(300).frame, overlap=ALONE)


@pytest.fixture(scope="module")
def visits() -> Scene:
    """A table with three rows a customer and scales to be learned; training stops by looks at held-out losses."""
    rng = np.random.default_rng(3)
    who = np.repeat(np.arange(240), 3)
    spend, stays = rng.gamma(2.0, 30.0, who.size), rng.random(240)[who] < 0.5
    frame = pd.DataFrame(
        {
            "customer": [f"C{i:03d}" for i in who],
            "spend": spend + 60 * stays,
            "tier": rng.choice(["basic", "plus"], who.size),
            "stays": np.where(stays, "yes", "no"),
        }
    )
    draft = Draft(
        title="who stays",
        author="alice",
        purpose=PURPOSE,
        label=ColumnLabel(column="stays", positive="yes"),
        features=(NumberColumn(column="spend"), CategoryColumn(column="tier", levels=("basic", "plus"))),
        split=Split(train=0.5),
        training=Training(rounds=4, early_stopping=EarlyStopping(every=1, patience=1, part=0.3)),
        privacy=DraftPrivacy(epsilon=8.0),
    )
    return scene(draft, frame, overlap=ALONE)


ALONE = Overlap(max_partners_per_customer=1, attestation="Made for a test.")
TWICE = Overlap(max_partners_per_customer=2, attestation="Made for a test.")


def refuted(report: Report) -> set[str]:
    return {line.name for line in report.lines if line.verdict == "refuted"}


# ── a sound study ────────────────────────────────────────────────────────────────────────────────


def test_a_sound_study_holds_and_the_audit_sees_nearly_all_of_its_mu(churn: Scene) -> None:
    report = churn.audit(canaries=600)
    assert refuted(report) == set() and report.holds
    # What canaries can show is what the plans claim, but for the rounding that is priced and the shared count.
    assert 0.97 * report.mu_claimed < report.mu_visible <= report.mu_claimed
    assert abs(report.mu - report.mu_visible) < 5.3 * report.mu_error
    assert 0.5 < report.steinke < report.epsilon  # the guesses prove something
    assert report.canaries == 600 and report.runs == 50 and report.colluders == 1
    assert report.detects < 2


def test_every_task_of_a_study_is_looked_at_and_three_rows_of_a_customer_count_once(visits: Scene) -> None:
    report = visits.audit(canaries=100)
    assert refuted(report) == set()
    tasks = {"statistics", "curvature", "train", "validate", "evaluate"}
    assert {f"sensitivity, {task}" for task in tasks} <= {line.name for line in report.lines}
    assert report.mu_visible > 0.85 * report.mu_claimed  # in looks, only two canaries of a run speak


@pytest.mark.parametrize("mode", ["distributed", "local", "central"])
def test_the_audit_takes_the_modes_adversary_and_people_at_two_partners(mode: str) -> None:
    terms = {"overlap": TWICE, "unsafe": ("central",)}
    report = scene(churn_draft(mode), order_log(120).frame, **terms).audit()
    assert refuted(report) == set()
    assert 0.95 * report.mu_claimed < report.mu_visible <= report.mu_claimed


# ── faulty noise ─────────────────────────────────────────────────────────────────────────────────


def seeded(sigma: int, size: int, seed: object) -> Integers:
    """Noise that somebody could draw again (a fault, for a test)."""
    words = np.frombuffer(repr(seed).encode().ljust(64), np.uint8)
    return np.rint(np.random.default_rng(words.tolist()).normal(0, sigma, size)).astype(np.int64)


class Calls:
    """A sampler that knows which silo of which round of which run asks: they come in order."""

    def __init__(self, rounds: int, draw: Callable[[int, int, int, int, int], Integers]) -> None:
        self._rounds, self._draw, self._calls = rounds, draw, 0

    def __call__(self, sigma: int, size: int, stream: Keystream) -> Integers:
        call, self._calls = self._calls, self._calls + 1
        return self._draw(sigma, size, call % 4, call // 4 % self._rounds, call // (4 * self._rounds))


def half(sigma: int, size: int, stream: Keystream) -> Integers:
    return discrete_gaussian(sigma // 2, size, stream)


def test_half_the_noise_is_seen_in_the_noise_and_in_what_the_canaries_give_away(churn: Scene) -> None:
    report = churn.audit(half, canaries=600)
    assert refuted(report) == {"size of the noise", "Gaussian fit"}
    assert report.fitted > report.epsilon


def test_a_twelfth_of_the_noise_is_proven_by_guessing_alone() -> None:
    weak = scene(churn_draft(epsilon=1.5), order_log(120).frame, overlap=ALONE)
    report = weak.audit(lambda s, n, stream: discrete_gaussian(s // 12, n, stream), canaries=800)
    assert report.steinke > report.epsilon
    assert {"one-run audit", "Gaussian fit", "size of the noise"} <= refuted(report)


@pytest.mark.parametrize("silo", [0, 3])
def test_one_silos_missing_noise_is_seen(churn: Scene, silo: int) -> None:
    sampler = Calls(
        churn.study.rounds,
        lambda sigma, size, who, number, run: (
            np.zeros(size, np.int64) if who == silo else discrete_gaussian(sigma, size, Keystream())
        ),
    )
    report = churn.audit(sampler)
    assert "size of the noise" in refuted(report)
    assert f"shop-{silo + 1}" in next(x.found for x in report.lines if x.name == "size of the noise")


@pytest.mark.parametrize(
    ("what", "seed"),
    [
        ("over rounds", lambda who, number, run: (who, run)),
        ("over silos", lambda who, number, run: (number, run)),
        ("over runs", lambda who, number, run: (who, number)),
    ],
)
def test_noise_used_twice_is_seen(
    churn: Scene, what: str, seed: Callable[[int, int, int], tuple[int, int]]
) -> None:
    sampler = Calls(
        churn.study.rounds,
        lambda sigma, size, who, number, run: seeded(sigma, size, (what, *seed(who, number, run))),
    )
    assert "fresh noise" in refuted(churn.audit(sampler))


def test_noise_used_again_a_few_places_further_on_is_seen(churn: Scene) -> None:
    sampler = Calls(
        churn.study.rounds,
        lambda sigma, size, who, number, run: np.roll(seeded(sigma, size, (number, run)), 3 * who),
    )
    assert "fresh noise" in refuted(churn.audit(sampler))


# ── faulty clipping ──────────────────────────────────────────────────────────────────────────────


def test_rows_that_nobody_clips_are_seen(churn: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def unclipped(rows: Floats, clip: float, scale: int, stream: Keystream) -> Integers:
        return np.floor(rows * scale + stream.unit(rows.shape)).astype(np.int64).sum(axis=0)

    monkeypatch.setattr("foedus.clients.trainer.clipped_sum", unclipped)
    monkeypatch.setattr(train, "clip_factors", lambda rows, clip: np.ones((len(rows), 1)))
    report = churn.audit()
    assert {"sensitivity, train", "sensitivity, curvature", "Gaussian fit"} <= refuted(report)
    assert "size of the noise" not in refuted(report)


def test_one_forgotten_clip_of_two_is_no_fault_yet(churn: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """`clipped_sum` clips again: the second lock holds."""
    real = train.contributions
    monkeypatch.setattr(train, "contributions", lambda rows, clip: real(rows, 4 * clip))
    report = churn.audit()
    assert "sensitivity, train" not in refuted(report)


def test_rows_clipped_one_by_one_where_a_customer_has_three_are_seen(
    visits: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Raw, "averaged", lambda self, rows: rows)
    report = visits.audit(canaries=100)
    assert {"sensitivity, train", "sensitivity, curvature"} <= refuted(report)
    found = next(x.found for x in report.lines if x.name == "sensitivity, train")
    assert float(found.split()[0]) > 2.9


def test_a_network_whose_gradients_are_clipped_ten_times_too_long_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draft = churn_draft().model_copy(
        update={
            "model": Model(kind="mlp", hidden=3),
            "training": Training(optimiser="adam", rounds=3),
        }
    )
    network = scene(draft, order_log(120).frame, overlap=ALONE)
    assert refuted(network.audit(canaries=100)) == set()
    real = trainer.clipped_gradient_sum
    monkeypatch.setattr(trainer, "clipped_gradient_sum", lambda *a: real(*a[:-1], 10 * a[-1]))
    assert refuted(network.audit(canaries=100)) == {"sensitivity, train"}


class Twice(Trainer):
    """Adds everything up twice."""

    def summed(self, plan: RoundPlan, rows: Floats, stream: Keystream) -> Integers:
        return 2 * super().summed(plan, rows, stream)


def test_customers_who_count_twice_are_seen(churn: Scene) -> None:
    found = refuted(churn.with_trainer(Twice).audit(canaries=600))
    assert {"sensitivity, train", "sensitivity, curvature", "sensitivity, evaluate", "Gaussian fit"} <= found


class Idle(Trainer):
    """Adds up nothing, so nothing can be wrong with it."""

    def summed(self, plan: RoundPlan, rows: Floats, stream: Keystream) -> Integers:
        return np.zeros(plan.dimension, np.int64)


def test_an_audit_that_does_not_see_its_canaries_does_not_hold(churn: Scene) -> None:
    report = churn.with_trainer(Idle).audit(canaries=360)
    assert refuted(report) == {"the audit's own sight"}


# ── questions that make no sense ─────────────────────────────────────────────────────────────────


def test_too_few_canaries_and_a_delta_that_is_none_are_refused(churn: Scene) -> None:
    with pytest.raises(InputError, match="canaries"):
        churn.audit(canaries=99)
    with pytest.raises(InputError, match="delta"):
        audit(churn.study, churn.treaty, churn.silos, delta=1.0)


def test_a_report_is_json_and_another_delta_is_another_claim(churn: Scene) -> None:
    report = audit(churn.study, churn.treaty, churn.silos, canaries=100, delta=1e-7)
    assert report.epsilon > price(churn.study, churn.treaty, survivors=dict.fromkeys(range(1, 6), 4))
    told = json.loads(json.dumps(report.to_json()))
    assert told["holds"] is report.holds and len(told["lines"]) == len(report.lines)
    assert told["delta"] == 1e-7
