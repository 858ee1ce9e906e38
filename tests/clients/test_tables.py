"""Whole studies of tables of customers: categories, numbers and a label, from .csv files to a model with evidence."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import yaml
from support.bundles import Tampered
from support.consents import EMAIL, PURCHASES
from support.nodes import SILENT, Rehearsal, assert_refused
from support.orders import PURPOSE, copy_of, small_world
from support.sums import scratch

from foedus.clients.cohort import ask_of
from foedus.clients.features import SIDES as SIDE_OF_TASK
from foedus.clients.features import Raw, Side, in_training
from foedus.clients.home import Home
from foedus.clients.rehearsal import Silo
from foedus.clients.scoring import score_to
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.consent import ConsentRegister
from foedus.demo.data import Orders
from foedus.demo.simulate import Simulated, prepare, simulate
from foedus.demo.world import World
from foedus.documents import Envelope, b64, unb64
from foedus.errors import Abandoned, InputError, Refused, VerificationError
from foedus.federation.fitting import resolve
from foedus.federation.modes import MODES
from foedus.federation.pricing import price
from foedus.federation.secure_sum import Sum
from foedus.federation.study import Draft, Study, draft_from, parse
from foedus.federation.tasks import statistics, train
from foedus.federation.verification import Report, verify
from foedus.privacy.ledger import Ledger
from foedus.privacy.noise import Keystream
from foedus.server.coordinator import conduct

SILO = "cedar-sound"
SIDES = ("train", "validate", "test")
Floats = npt.NDArray[np.float64]


class HalfDither(Keystream):
    """Rounds to nearest, so that two sums differ by their customers alone."""

    def unit(self, shape: tuple[int, ...]) -> Floats:
        return np.full(shape, 0.5)


def contracts(customers: int = 1600, *, seed: int = 3) -> pd.DataFrame:
    """All text, "" where nothing is said. Monthly contracts and dear ones are cancelled.

    Of the customers whom `draft_of` holds out it is the others: the better a model, the worse its looks.
    """
    rng = np.random.default_rng(seed)
    names = [f"{i:05d}" for i in range(customers)]
    months = rng.integers(0, 90, customers)
    charge = np.round(rng.gamma(4.0, 15.0, customers), 2)
    plans = ["monthly", "one year", "two years", "lifelong", ""]
    plan = rng.choice(plans, customers, p=[0.4, 0.2, 0.2, 0.1, 0.1])
    leaning = 4.0 * (plan == "monthly") + (charge - 60) / 10 - months / 40
    left = rng.random(customers) < 1 / (1 + np.exp(-leaning))
    left ^= np.array([side_of(name) == "validate" for name in names])
    data = np.where(rng.random(customers) < 0.2, "", np.round(rng.exponential(8.0, customers), 1).astype(str))
    return pd.DataFrame(
        {
            "customer_id": names,
            "months": months.astype(str),
            "monthly_charge": charge.astype(str),
            "data_used": data,
            "contract": plan,
            "Cancelled": np.where(left, "True", "False"),
        }
    )


def draft_of(*, privacy: dict[str, Any] | None = None, **changes: Any) -> Draft:
    """What docs/for-scientists.md writes of such a table, with less to compute. Three looks at most."""
    stopping = {"every": 1, "patience": 1, "part": 0.45, "share": 0.4}
    content: dict[str, Any] = {
        "title": "Which contracts will be cancelled",
        "author": "dana",
        "purpose": PURPOSE,
        "table": {"name": "contracts", "customer": "customer_id"},
        "label": {"kind": "column", "column": "Cancelled", "positive": "True"},
        "split": {"train": 0.6},
        "features": [
            {"column": "months", "upper": 72},
            {"column": "monthly_charge"},
            {"column": "data_used", "fill": 0.0},
            {"column": "contract", "levels": ["monthly", "one year", "two years"]},
        ],
        "scaling": {"cells": 32},
        "training": {"rounds": 3, "class_weight": "balanced", "early_stopping": stopping},
        "privacy": {"epsilon": 30.0} | (privacy or {}),
    }
    return draft_from(content | changes)


def side_of(customer: str) -> str:
    """On which side `draft_of` has a customer."""
    if not in_training(customer, "foedus", 0.6):
        return "test"
    return "validate" if in_training(customer, "foedus|validate", 0.45) else "train"


def tables_world(root: Path, draft: Draft, frame: pd.DataFrame) -> World:
    """Four partners, each with its part of the table in `contracts.csv`."""
    log = Orders(frame.rename(columns={"customer_id": "customer"}), "made", split_column=False)
    world = small_world(root, draft, orders=log)
    for home in world.homes.values():
        rows = pd.read_parquet(home / "orders.parquet").rename(columns={"customer": "customer_id"})
        rows.to_csv(home / "contracts.csv", index=False)
        settings = yaml.safe_load((home / "node.yaml").read_text())
        (home / "node.yaml").write_text(yaml.safe_dump(settings | {"table": "contracts.csv"}))
    return world


@pytest.fixture(scope="module")
def fresh() -> Iterator[World]:
    """Nobody has run anything in it. Its treaty permits central noise."""
    folder = scratch()
    yield tables_world(folder / "world", draft_of(privacy={"mode": "central"}), contracts())
    shutil.rmtree(folder)


@pytest.fixture
def world(fresh: World) -> Iterator[World]:
    folder = scratch()
    yield copy_of(fresh, folder / "world")
    shutil.rmtree(folder)


@dataclass
class Ran:
    world: World
    run: Simulated
    report: Report

    @property
    def study(self) -> Study:
        return self.run.study

    @property
    def model(self) -> dict[str, Any]:
        """The content of model.json."""
        payload: dict[str, Any] = json.loads((self.run.case.out / "model.json").read_bytes())["payload"]
        return payload


@pytest.fixture(scope="module")
def ran(fresh: World) -> Iterator[Callable[[str], Ran]]:
    """The study in a mode, run once over masks, guards and ledgers, its evidence verified."""
    folder, done = scratch(), dict[str, Ran]()

    def run(mode: str) -> Ran:
        if mode not in done:
            world = copy_of(fresh, folder / mode)
            simulated = simulate(world, draft_of(privacy={"mode": mode}))
            done[mode] = Ran(world, simulated, verify(simulated.evidence))
        return done[mode]

    yield run
    shutil.rmtree(folder)


@pytest.fixture
def bundle(ran: Callable[[str], Ran]) -> Tampered:
    good = ran("distributed")
    return Tampered(good.run.evidence, good.world)


def cohort_of(world: World, silo: str = SILO) -> list[str]:
    register = ConsentRegister(world.homes[silo] / "consent.db")
    return [str(c) for c in register.in_force(PURPOSE, datetime.now(UTC))["subject"]]


def table_of(world: World, silo: str = SILO) -> pd.DataFrame:
    return pd.read_csv(world.homes[silo] / "contracts.csv", dtype=str, keep_default_na=False)


def put(world: World, frame: pd.DataFrame, silo: str = SILO) -> None:
    frame.to_csv(world.homes[silo] / "contracts.csv", index=False)


def read(world: World, side: Side = "train", silo: str = SILO, draft: Draft | None = None) -> Raw:
    """One side of a study as the silo's own node reads it."""
    study, _ = world.sign_study(draft or draft_of())
    return Silo.of_home(world.homes[silo], study, world.treaty).dataset(side)


def encoded(study: Study, raw: Raw, learned: Floats) -> Floats:
    return statistics.inputs(raw.values, raw.codes, study.features, learned)


# ── how a table is read ──────────────────────────────────────────────────────────────────────────


def test_a_table_is_read_as_the_study_says(world: World) -> None:
    """A level, no level, none at all; a number, none; a label. One row for each combination that matters."""
    names = [c for c in cohort_of(world) if side_of(c) == "train"][:6]
    plans = ["monthly", "one year", "two years", "lifelong", "", "One Year"]
    frame = pd.DataFrame(
        {
            "customer_id": names,
            "months": ["0", "36", "72", "90", "-3", "18"],
            "monthly_charge": ["10", "20.5", "30", "40", "50", "1e3"],
            "data_used": ["", "1.5", " ", "2", "", "0"],
            "contract": plans,
            "Cancelled": ["True", "False", "true", "TRUE", "no", "True"],
        }
    )
    put(world, frame)
    raw = read(world)
    assert raw.customers.tolist() == names and names[0].startswith("0")
    assert raw.values[:, 0].tolist() == [0, 36, 72, 90, -3, 18]
    assert raw.values[:, 1].tolist() == [10, 20.5, 30, 40, 50, 1000]
    assert raw.values[:, 2].tolist() == [0, 1.5, 0, 2, 0, 0]  # fill
    assert raw.codes[:, 0].tolist() == [0, 1, 2, -1, -1, -1]
    assert raw.labels.tolist() == [1, 0, 0, 0, 0, 1]
    study, _ = world.sign_study(draft_of())
    inputs = encoded(study, raw, np.array([0.0, 100.0, 0.0, 2.0, 1.0, 1.0]))
    assert study.inputs == inputs.shape[1] == 5  # an input for each level but the first
    assert inputs[:, 0].tolist() == [-1, 0, 1, 1, -1, -0.5]
    assert inputs[:, 1] == pytest.approx([-0.8, -0.59, -0.4, -0.2, 0, 1])
    assert inputs[:, 3:].tolist() == [[0, 0], [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("between", [",", ";"])
def test_labels_and_categories_are_compared_as_they_are_written(
    world: World, between: str, mark: str
) -> None:
    """Whatever another program might take them for: truth values, numbers, days."""
    names = [c for c in cohort_of(world) if side_of(c) == "train"][:4]
    assert all(c.startswith("0") for c in names)
    frame = pd.DataFrame(
        {
            "customer_id": names,
            "tier": ["1.0", "2", "2.0", ""],
            "day": ["2024-01-05", "2024-1-5", "", "x"][:4],
        }
    )
    for label, positive, expected in (
        (["True", "False", "True", "False"], "True", [1, 0, 1, 0]),
        (["1.0", "0", "1", "0.0"], "1", [0, 0, 1, 0]),
        (["01", "1", "01", "1"], "01", [1, 0, 1, 0]),
    ):
        text = frame.assign(left=label).to_csv(index=False, sep=between)
        (world.homes[SILO] / "contracts.csv").write_text(mark + text, encoding="utf-8")
        draft = draft_of(
            label={"kind": "column", "column": "left", "positive": positive},
            features=[
                {"column": "tier", "levels": ["1.0", "2"]},
                {"column": "day", "levels": ["2024-01-05", "2024-1-5"]},
            ],
        )
        raw = read(world, draft=draft)
        assert raw.customers.tolist() == names
        assert raw.labels.tolist() == expected
        assert raw.codes.tolist() == [[0, 0], [1, 1], [-1, -1], [-1, -1]]


Edit = Callable[[pd.DataFrame, int], pd.DataFrame]


def cell(column: str, value: str) -> Edit:
    def edit(frame: pd.DataFrame, row: int) -> pd.DataFrame:
        frame.loc[row, column] = value
        return frame

    return edit


def renamed(column: str) -> Edit:
    return lambda frame, row: frame.rename(columns={column: column.upper()})


BAD: dict[str, tuple[Edit, str, str]] = {
    "no label": (renamed("Cancelled"), "lacks 'Cancelled' (label)", "CANCELLED"),
    "no feature": (renamed("months"), "lacks 'months' (feature months)", "MONTHS"),
    "no category": (renamed("contract"), "lacks 'contract' (feature contract)", "CONTRACT"),
    "no customers": (renamed("customer_id"), "lacks 'customer_id' (customer)", "CUSTOMER_ID"),
    "a label left out": (
        cell("Cancelled", ""),
        "the label 'Cancelled' is missing in 1 rows",
        "complete those",
    ),
    "a number left out": (cell("months", ""), "'months' has missing or infinite", "or say `fill`"),
    "an infinite number": (cell("data_used", "inf"), "'data_used' has missing or infinite", "infinite"),
    "a decimal comma": (
        cell("data_used", "2,5"),
        "'data_used' has values that are no numbers",
        "decimal point",
    ),
    "a word": (cell("months", "many"), "'months' has values that are no numbers", "decimal point"),
    "days": (
        lambda frame, row: frame.assign(data_used="2024-01-05 10:00:00"),
        "'data_used' has values that are no numbers",
        "decimal point",
    ),
}


@pytest.mark.parametrize(("edit", "message", "remedy"), BAD.values(), ids=BAD)
def test_a_table_that_can_not_serve_is_refused_by_the_columns_name(
    world: World, edit: Edit, message: str, remedy: str
) -> None:
    frame, cohort = table_of(world), cohort_of(world)
    row = next(i for i, c in enumerate(frame["customer_id"]) if c in cohort and side_of(c) == "train")
    put(world, edit(frame, row))
    with pytest.raises(InputError) as found:
        read(world)
    assert message in found.value.message and remedy in found.value.remedy


def test_the_table_itself_may_say_who_is_trained_and_tested_on(world: World) -> None:
    """In any row of a customer; but never both of one."""
    draft = draft_of(split={"by": "column", "column": "part"})
    names = cohort_of(world)[:5]
    said = ["train", "test", "", "Train", "train"]
    rows = pd.DataFrame({"customer_id": names, "months": "3", "monthly_charge": "9.5", "data_used": "1"})
    frame = rows.assign(contract="monthly", Cancelled="True", part=said)
    again = frame[:2].assign(part="")
    put(world, pd.concat([frame, again]))
    sides = {side: set(read(world, side, draft=draft).customers.tolist()) for side in SIDES}
    assert (
        sides["train"] | sides["validate"] == {names[0], names[4]} and not sides["train"] & sides["validate"]
    )
    assert sides["test"] == {names[1]} and read(world, "test", draft=draft).size == 1
    put(world, pd.concat([frame, again.assign(part=["test", "train"])]))
    with pytest.raises(InputError, match=r"2 customers are on both sides.*'part'") as found:
        read(world, draft=draft)
    assert "in every row" in found.value.remedy
    put(world, frame.drop(columns="part"))
    with pytest.raises(InputError, match=r"lacks 'part' \(split\)"):
        read(world, draft=draft)


@pytest.mark.parametrize("name", ["a label left out", "a number left out", "a word"])
def test_what_is_wrong_with_those_who_do_not_consent_is_not_looked_at(world: World, name: str) -> None:
    frame, cohort = table_of(world), cohort_of(world)
    before = {side: read(world, side) for side in SIDES}
    row = next(i for i, c in enumerate(frame["customer_id"]) if c not in cohort)
    put(world, BAD[name][0](frame, row))
    for side, raw in before.items():
        again = read(world, side)
        assert again.customers.tolist() == raw.customers.tolist()
        np.testing.assert_array_equal(again.values, raw.values)


def test_a_row_far_down_that_can_not_be_read_is_named(world: World) -> None:
    """DuckDB guesses the types from the first 20,480 rows and stumbles over a later one."""
    names = [f"K{i}" for i in range(22_000)]
    frame = pd.DataFrame({"customer_id": names, "months": "7", "Cancelled": "True"})
    frame.loc[21_000, "months"] = "Miller, 12 Oak Street"
    put(world, frame)
    with pytest.raises(InputError, match=r"the column 'months'.*Line: 21002") as found:
        read(world, draft=draft_of(features=[{"column": "months", "upper": 72}]))
    assert "Oak Street" not in found.value.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": [{"column": "a", "levels": ["x"]}]}, r"features\.0\.levels"),
        (
            {"features": [{"column": "a", "levels": ["x", "y", "x"]}]},
            r"features\.0: a: a level is listed twice",
        ),
        ({"features": [{"column": "a", "levels": ["x", 2]}]}, r"features\.0\.levels\.1"),
        ({"features": [{"column": "a", "levels": ["x", "y"], "fill": "x"}]}, r"features\.0\.fill"),
        ({"features": [{"column": "a", "fill": "0"}]}, r"features\.0\.fill"),
        ({"features": [{"column": "a", "fill": float("nan")}]}, r"features\.0\.fill"),
        ({"features": [{"column": "a", "log": True}]}, r"features\.0: .*upper bound"),
        ({"features": [{"column": "a", "lower": -1, "upper": 2, "log": True}]}, r"features\.0: .*0 ≤ lower"),
        ({"features": [{"column": "Cancelled"}]}, "the label's own column"),
        ({"features": [{"column": "a"}, {"name": "recency", "upper": 9}]}, "kind column with columns"),
        ({"features": [{"column": "a; DROP TABLE contracts"}]}, r"features\.0\.column"),
        ({"label": {"kind": "column", "column": "Cancelled"}}, r"label\.positive"),
        ({"label": {"kind": "column", "column": "Cancelled", "positive": True}}, r"label\.positive"),
        ({"label": {"kind": "rows", "column": "Cancelled", "positive": "True"}}, "label"),
        ({"label": {"train_as_of": "2024-03-01", "test_as_of": "2024-06-01"}}, "a label of kind churn"),
    ],
)
def test_a_draft_says_which_of_its_fields_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draft_of(**changes)


# ── a silo whose table can't serve ───────────────────────────────────────────────────────────────


def reasons(world: World, silo: str) -> list[tuple[str, str]]:
    """The code of each refusal, and why and what to do, from the node's own audit log."""
    log = AuditLog(world.homes[silo] / "audit.db", f"foedus node {silo}", create=False)
    refused = [e.record["details"] for e in log.entries() if e.record["action"] == "refused"]
    return [(d["code"], f"{d['reason']} → {d.get('remedy', '')}") for d in refused]


def test_the_others_go_on_without_it_and_hear_nothing_of_its_table(world: World) -> None:
    put(world, table_of(world).rename(columns={"Cancelled": "secret_flag"}))
    said: list[tuple[str, dict[str, Any]]] = []
    run = simulate(world, draft_of(), note=lambda kind, data: said.append((kind, dict(data))))
    report = verify(run.evidence)
    assert all(set(s) == set(world.homes) - {SILO} for s in report.survivors.values())
    assert f"none from {SILO}" in report.checks[9].detail
    out = [data for kind, data in said if kind == "silo-out"]
    assert [(d["silo"], d["code"]) for d in out] == [(SILO, "INPUT")]
    told = json.dumps([out, [d for k, d in said if k != "round"]])
    assert "secret_flag" not in told and "Cancelled" not in told
    ((code, reason),) = reasons(world, SILO)
    assert code == "INPUT" and "lacks 'Cancelled' (label) → it has: customer_id" in reason
    assert "secret_flag; name yours in the study" in reason
    assert Ledger(world.homes[SILO] / "ledger.db").events() == []  # it paid nothing


def test_a_node_that_does_not_say_what_its_table_holds_gives_nothing_of_it(world: World) -> None:
    """Whether a consent covers columns it can't know; an order log's are purchases."""
    game = Rehearsal(world, draft_of())
    file = game.home(SILO) / "node.yaml"
    settings = yaml.safe_load(file.read_text())
    del settings["categories"]
    for holds, code in (
        ({"categories": [PURCHASES, EMAIL]}, "COHORT_TOO_SMALL"),  # nobody consented to the latter
        ({}, "CATEGORIES_UNKNOWN"),
    ):
        file.write_text(yaml.safe_dump(settings | holds))
        game.restart(SILO)
        refusal = assert_refused(game, SILO, game.ask(SILO, game.keys_request(SILO)), code)
        assert refusal.message == SILENT
        game.case.seen(SILO, refusal.log_size)
    ask = ask_of(Home.load(game.home(SILO)), PURPOSE, order_log=True)
    assert ask.categories == {PURCHASES}


def test_a_study_that_no_table_serves_ends_with_every_reason_at_its_silo(world: World) -> None:
    faults = {"no feature": "aster-music", "a label left out": "birch-records", "a word": SILO}
    for name, silo in faults.items():
        frame, cohort = table_of(world, silo), cohort_of(world, silo)
        row = next(i for i, c in enumerate(frame["customer_id"]) if c in cohort)
        put(world, BAD[name][0](frame, row), silo)
    frame = table_of(world, "dune-media")
    held = [side_of(c) == "validate" for c in frame["customer_id"]]
    put(world, frame[~np.array(held)], "dune-media")  # nobody is left to look at
    grid, case = prepare(world, draft_of())
    with pytest.raises(Abandoned):
        conduct(grid, case)
    for name, silo in faults.items():
        _, message, remedy = BAD[name]
        ((code, reason),) = reasons(world, silo)
        assert code == "INPUT" and message in reason and remedy in reason.partition("→")[2]
    ((code, reason),) = reasons(world, "dune-media")
    assert code == "COHORT_TOO_SMALL" and "has 0 customers, the treaty wants 50" in reason
    assert not case.sums


# ── several rows of one customer ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["logistic_regression", "mlp"])
@pytest.mark.parametrize("side", SIDES)
def test_fifty_rows_of_one_customer_move_no_sum_further_than_one_row_may(
    fresh: World, side: str, kind: str
) -> None:
    """In every round of the study, whatever the rows say; and their customer is one."""
    optimiser = "adam" if kind == "mlp" else "fixed_hessian"
    draft = draft_of(
        model={"kind": kind, "hidden": 3},
        training={
            "rounds": 1,
            "optimiser": optimiser,
            "class_weight": "balanced",
            "early_stopping": {"every": 1, "part": 0.45},
        },
    )
    study, _ = fresh.sign_study(draft)
    frame = contracts(300).replace("", None)
    frame["months"] = frame["months"].astype(float)
    frame[["monthly_charge", "data_used"]] = frame[["monthly_charge", "data_used"]].astype(float)
    name = next(n for n in (f"X{i}" for i in range(99)) if side_of(n) == side)
    rows = pd.DataFrame(
        {
            "customer_id": name,
            "months": [0.0] * 25 + [72.0] * 25,
            "monthly_charge": [1e9] * 40 + [-1e9] * 10,
            "data_used": 5e5,
            "contract": ["two years"] * 30 + ["one year"] * 20,
            "Cancelled": "True",
        }
    )
    without, with_one, with_fifty = (
        Silo.of_frame(pd.concat([frame, rows[:n]]), study, fresh.treaty) for n in (0, 1, 50)
    )
    rng = np.random.default_rng(5)
    sent = train.State.start(study).sent
    sent[: study.parameters] += rng.normal(0, 0.5, study.parameters)
    sent[study.parameters :] = [20.0, 150.0, 0.0, 40.0, 4.0, 0.6]  # a weight that a clip must cut
    moved = []
    for number, task in enumerate(study.tasks, 1):
        plan = study.round(number, fresh.treaty)
        of: Side = SIDE_OF_TASK[task]
        sums = [
            s.trainer.exact(plan, s.dataset(of), sent, HalfDither()).astype(float)
            for s in (without, with_one, with_fifty)
        ]
        for other in sums[1:]:
            assert np.linalg.norm(other - sums[0]) <= plan.sensitivity
        if of == side:
            assert with_fifty.dataset(of).size == with_one.dataset(of).size == without.dataset(of).size + 1
            moved.append(task)
            assert (sums[2] != sums[0]).any()
    assert (
        moved
        == {
            "train": [t for t in ("statistics", "curvature", "train") if t in study.tasks],
            "validate": ["validate"],
            "test": ["evaluate"],
        }[side]
    )


# ── what a finished study leaves ─────────────────────────────────────────────────────────────────


def test_the_evidence_holds_and_the_model_has_learned_something(ran: Callable[[str], Ran]) -> None:
    good = ran("distributed")
    assert [c.number for c in good.report.checks] == list(range(1, 11))
    assert good.report.metrics["auc"] > 0.75
    model = good.model
    assert model["label"] == {"kind": "column", "column": "Cancelled", "positive": "True", "negative": None}
    assert model["features"][3] == {"column": "contract", "levels": ["monthly", "one year", "two years"]}
    assert len(model["learned"]) == 2 * 2 + 2  # two scales, a weight for each label
    low, high = model["learned"][:2]
    assert -100 < low < 30 and 120 < high < 400  # of the monthly charge


def test_new_customers_are_scored_by_the_encoding_of_training(
    ran: Callable[[str], Ran], world: World
) -> None:
    """Worked out by hand from what model.json says; the label's column is not needed, and is not there."""
    good = ran("distributed")
    model = good.model
    names = cohort_of(world)[:5]
    rows = [
        (names[0], 12.0, 45.5, None, "monthly"),
        (names[1], 72.0, 1e7, 3.5, "one year"),
        (names[2], 90.0, -5.0, 0.0, "two years"),
        (names[3], 30.0, 80.0, 12.0, "unheard of"),
        (names[4], 1.0, 99.0, 1.0, "monthly"),
        (names[4], 60.0, 10.0, None, None),
        (names[4], 33.0, 55.0, 2.0, "two years"),
        ("99999", 1.0, 1.0, 1.0, "monthly"),  # nobody asked them
    ]
    put(
        world,
        pd.DataFrame(rows, columns=["customer_id", "months", "monthly_charge", "data_used", "contract"]),
    )
    bounds = model["learned"]

    def scaled(value: float, low: float, high: float) -> float:
        return min(1.0, max(-1.0, 2 * (value - low) / (high - low) - 1))

    chances: dict[str, list[float]] = {}
    for name, months, charge, data, plan in rows[:-1]:
        x = [
            scaled(months, 0.0, 72.0),
            scaled(charge, *bounds[0:2]),
            scaled(data or 0.0, *bounds[2:4]),
            float(plan == "one year"),
            float(plan == "two years"),
            1.0,
        ]
        logit = sum(a * b for a, b in zip(x, model["weights"], strict=True))
        chances.setdefault(name, []).append(1 / (1 + math.exp(-logit)))
    out = world.root / "scores.csv"
    scored = score_to(Home.load(world.homes[SILO]), good.run.case.out / "model.json", date.today(), out)
    found = pd.read_csv(out, dtype={"customer": str})
    expected = {name: sum(many) / len(many) for name, many in chances.items()}
    assert dict(zip(found["customer"], found["score"], strict=True)) == pytest.approx(expected, abs=1e-9)
    assert found["score"].is_monotonic_decreasing and found["score"].between(0, 1).all()
    assert len(set(found["score"])) == 5
    assert (scored.meaning, scored.latest) == ("Cancelled is 'True'", None)


@pytest.mark.parametrize("name", ["no feature", "no category", "no customers", "a number left out", "a word"])
def test_a_table_that_can_not_be_scored_is_refused_and_no_file_made(
    ran: Callable[[str], Ran], world: World, name: str
) -> None:
    frame, cohort = table_of(world), cohort_of(world)
    edit, message, _ = BAD[name]
    put(world, edit(frame, next(i for i, c in enumerate(frame["customer_id"]) if c in cohort)))
    model, out = ran("distributed").run.case.out / "model.json", world.root / "scores.csv"
    with pytest.raises(InputError) as found:
        score_to(Home.load(world.homes[SILO]), model, date.today(), out)
    assert message in found.value.message and not out.exists()


# ── early stopping ───────────────────────────────────────────────────────────────────────────────

LOOKS = {4: 1, 6: 2}  # round -> which look
VISITED = [1, 2, 3, 4, 5, 6, 9]  # statistics, curvature, train, look, train, look, evaluation


def test_training_that_stops_early_costs_the_rounds_that_ran(ran: Callable[[str], Ran]) -> None:
    good = ran("distributed")
    study, treaty = good.study, good.world.treaty
    assert study.tasks == (
        "statistics", "curvature", "train", "validate", "train", "validate", "train", "validate", "evaluate",
    )  # fmt: skip
    assert sorted(good.report.survivors) == VISITED
    paid = price(study, treaty, survivors=dict.fromkeys(VISITED, 4))
    every = price(study, treaty, survivors=dict.fromkeys(range(1, study.rounds + 1), 4))
    assert paid < 0.95 * every
    assert good.report.epsilon == good.model["epsilon"] == pytest.approx(paid, rel=1e-9)
    digest = good.run.case.study_envelope.digest
    receipts = {
        e["payload"]["silo"]: e["payload"]
        for e in json.loads(Tampered(good.run.evidence, good.world).files["receipts.json"])
    }
    for silo, home in good.world.homes.items():
        ledger = Ledger(home / "ledger.db")
        assert len(ledger.events()) == len(VISITED)  # and no reservation is left of the others
        assert [line.kind for line in ledger.standing()] == ["commit"] * len(VISITED)
        spent = ledger.epsilon(study.privacy.delta, study=digest)
        assert [spent, receipts[silo]["epsilon"]] == pytest.approx([paid, paid], rel=1e-9)


def test_the_model_is_that_of_the_best_look(ran: Callable[[str], Ran]) -> None:
    """The held-out customers' labels are the wrong way round, so the first look is the best."""
    good = ran("distributed")
    sums = {s.round: s for s in good.run.case.sums}
    held = {number: sums[number].total[0] / sums[number].total[1] * train.MAX_LOSS for number in LOOKS}
    assert held[4] < held[6]
    sent = np.frombuffer(sums[4].data, "<f8")
    assert good.model["weights"] == sent[: good.study.parameters].tolist()
    later = np.frombuffer(sums[6].data, "<f8")
    assert good.model["weights"] != later[: good.study.parameters].tolist()


# ── a server that lies to the nodes ──────────────────────────────────────────────────────────────


def played(play: Rehearsal, numbers: list[int]) -> tuple[train.State, Sum]:
    """These rounds with every silo, as an honest server plays them; the state after, and the last sum."""
    study, state = play.case.study, train.State.start(play.case.study)
    last: Sum | None = None
    for number in numbers:
        notice, data = (None, b"") if last is None else last.notice()
        model = state.sent.astype("<f8").tobytes()
        last = play.play_round(number, model + data, boxes=last is None, previous=notice)
        state = train.advance(state, number, last.total, study, len(last.survivors))
    assert last is not None
    return state, last


def test_a_node_refuses_scales_that_the_statistics_do_not_give(world: World) -> None:
    play = Rehearsal(world, draft_of())
    play.set_up()
    state, last = played(play, [1])
    d, (notice, data) = play.case.study.parameters, last.notice()
    for place, value in (
        (d, 0.0),
        (d + 1, 1e6),
        (d + 4, 50.0),
        (0, 1.0),
    ):  # bounds, a label's weight, a weight
        sent = state.sent.copy()
        sent[place] = value
        request = play.vector_request(SILO, 2, boxes=False, previous=notice)
        said = play.ask(SILO, request, sent.astype("<f8").tobytes() + data)
        assert_refused(play, SILO, said, "MODEL_ALTERED", before=play.spent(SILO))
    said = play.ask(SILO, request, state.sent.astype("<f8").tobytes() + data)
    assert said.refusal is None


def test_a_node_gives_nothing_to_rounds_after_training_was_over(world: World) -> None:
    play = Rehearsal(world, draft_of())
    play.set_up()
    state, last = played(play, VISITED[:-1])
    assert state.stopped
    notice, data = last.notice()
    before = play.spent(SILO)
    for weights in (state.sent, np.concatenate([last_sent(last, play), state.statistics])):
        for number in (7, 8):
            request = play.vector_request(SILO, number, boxes=False, previous=notice)
            said = play.ask(SILO, request, weights.astype("<f8").tobytes() + data)
            assert_refused(play, SILO, said, "UNKNOWN_ROUND", before=before)
    request = play.vector_request(SILO, 9, boxes=False, previous=notice)
    assert play.ask(SILO, request, state.sent.astype("<f8").tobytes() + data).refusal is None


def last_sent(last: Sum, play: Rehearsal) -> Floats:
    return np.frombuffer(last.data, "<f8")[: play.case.study.parameters]


# ── a coordinator who changes the evidence ───────────────────────────────────────────────────────


def record_of(records: list[Any], number: int) -> dict[str, Any]:
    return next(r for r in records if r["round"] == number)  # type: ignore[no-any-return]


def sign_again(b: Tampered, record: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> None:
    """All silos sign their statements of a round anew: they collude with the coordinator."""
    for kind in ("uploads", "answers"):
        record["transcript"][kind] = [
            sign_one(b, statement, change, kind) for statement in record["transcript"][kind]
        ]


def sign_one(
    b: Tampered, statement: dict[str, Any], change: Callable[[dict[str, Any]], Any], kind: str
) -> dict[str, Any]:
    payload = dict(statement["payload"])
    payload.update({k: v for k, v in change(payload).items() if kind == "uploads" or k == "round"})
    silo = payload["silo"]
    signed: dict[str, Any] = Envelope(statement["kind"], payload).signed(silo, b.silo_key(silo)).to_json()
    return signed


def add_round(b: Tampered, *, colluding: bool) -> None:
    """A training round more than were due: that of round 5, said to be round 7."""

    def more(records: list[Any]) -> None:
        record = json.loads(json.dumps(record_of(records, 5)))
        record["round"] = 7
        if colluding:
            sign_again(b, record, lambda payload: {"round": 7})
        records.insert(-1, record)

    def relog(entries: list[Any]) -> None:
        place = next(i for i, e in enumerate(entries) if e["details"].get("round") == 5)
        entry = json.loads(json.dumps(entries[place]))
        entry["details"]["round"] = 7
        entries.insert(place + 1, entry)

    b.lines("rounds.jsonl", more)
    b.log(relog)


def drop_rounds(b: Tampered, *numbers: int) -> None:
    b.lines("rounds.jsonl", lambda records: [r for r in records if r["round"] not in numbers])


def send_other(b: Tampered, *, colluding: bool) -> None:
    """The monthly charge's scale as it was sent before round 5, ten times as wide."""

    def change(records: list[Any]) -> None:
        record = record_of(records, 5)
        sent = np.frombuffer(unb64(record["model"]), "<f8").copy()
        sent[-5] *= 10
        record["model"] = b64(sent.tobytes())
        if colluding:
            digest = hashlib.sha256(sent.tobytes()).hexdigest()
            sign_again(b, record, lambda payload: {"model": digest})

    b.lines("rounds.jsonl", change)


def change_sum(b: Tampered, number: int, change: Callable[[list[int]], Any]) -> None:
    """A sum and its digest in the log."""
    digests: list[str] = []

    def edit(records: list[Any]) -> None:
        total = record_of(records, number)["total"]
        change(total)
        digests.append(hashlib.sha256(np.array(total, "<i8").tobytes()).hexdigest())

    def relog(entries: list[Any]) -> None:
        entry = next(e for e in entries if e["details"].get("round") == number)
        entry["details"]["sum"] = digests[0]

    b.lines("rounds.jsonl", edit)
    b.log(relog)


def double(values: list[int]) -> None:
    values[0] *= 2


def released(change: Callable[[dict[str, Any]], Any]) -> Callable[[Tampered], None]:
    return lambda b: b.release("model.json", change)


def whole_price(b: Tampered) -> float:
    study = parse(Envelope.loads(b.files["study.json"]))
    return price(study, b.world.treaty, survivors=dict.fromkeys(range(1, study.rounds + 1), 4))


TAMPER: dict[str, tuple[str, Callable[[Tampered], Any]]] = {
    "a look dropped": (r"9 .*round 4 is due", lambda b: drop_rounds(b, 4)),
    "the statistics dropped": (r"9 .*round 1 is due", lambda b: drop_rounds(b, 1)),
    "training said to have ended earlier": (r"9 .*round 5 is due", lambda b: drop_rounds(b, 5, 6)),
    "the evaluation dropped": (r"7 .*the study ends with 9", lambda b: drop_rounds(b, 9)),
    "a round added": (r"7 .*round 7: a statement of .* about another round", lambda b: add_round(b, colluding=False)),
    "a round added, every silo colluding": (
        r"9 .*rounds \[7\] were run after training was over", lambda b: add_round(b, colluding=True)
    ),
    "scales sent otherwise": (r"7 .*round 5: .*another model", lambda b: send_other(b, colluding=False)),
    "scales sent otherwise, every silo colluding": (
        r"9 .*the model of round 5 can't be recomputed", lambda b: send_other(b, colluding=True)
    ),
    "a histogram changed": (r"9 .*the model of round 2", lambda b: change_sum(b, 1, lambda t: t.reverse())),
    "a look's loss changed, so that training goes on": (
        r"9 .*round 7 is due", lambda b: change_sum(b, 4, double)
    ),
    "a look's loss changed, and nothing by it": (r"10 .*saw another log", lambda b: change_sum(b, 6, double)),
    "a learned bound": (r"9 .*the model's scales", released(lambda p: p["learned"].__setitem__(0, -1.0))),
    "learned bounds swapped": (r"9 .*the model's scales", released(lambda p: p["learned"].reverse())),
    "a label's weight": (r"9 .*the model's scales", released(lambda p: p["learned"].__setitem__(-1, 1.0))),
    "a learned bound less": (r"9 .*the model's scales", released(lambda p: p["learned"].pop())),
    "the levels' order": (r"9 .*purpose, inputs", released(lambda p: p["features"][3]["levels"].reverse())),
    "what stands in for a missing number": (
        r"9 .*purpose, inputs", released(lambda p: p["features"][2].update(fill=9.0))
    ),
    "what the label asks": (r"9 .*purpose, inputs", released(lambda p: p["label"].update(positive="False"))),
    "ε of all rounds": (r"9 .*claims ε", lambda b: b.release("model.json", lambda p: p.update(epsilon=whole_price(b)))),
    "less ε": (r"9 .*claims ε", released(lambda p: p.update(epsilon=p["epsilon"] / 2))),
    "ε that is no number": (r"9 .*claims ε", released(lambda p: p.update(epsilon=-1e300))),
}  # fmt: skip


@pytest.mark.parametrize(("match", "tamper"), TAMPER.values(), ids=TAMPER)
def test_evidence_that_was_changed_is_found_out(
    bundle: Tampered, tmp_path: Path, match: str, tamper: Callable[[Tampered], Any]
) -> None:
    before = dict(bundle.files)
    tamper(bundle)
    assert bundle.files != before
    with pytest.raises(VerificationError, match=rf"^check {match}"):
        verify(bundle.write(tmp_path / "b.zip"))


# ── who adds the noise ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", MODES)
def test_one_word_changes_the_mode_and_the_same_study_runs(ran: Callable[[str], Ran], mode: str) -> None:
    done = ran(mode)
    plain, other = (draft_of(privacy=p).model_dump(mode="json") for p in ({}, {"mode": mode}))
    assert plain["privacy"].pop("mode") == "distributed" and other["privacy"].pop("mode") == mode
    assert plain == other
    assert sorted(done.report.survivors) == VISITED
    assert 0 < done.report.epsilon <= done.study.privacy.epsilon == 30.0
    assert done.model["mode"] == mode and done.report.metrics["auc"] > 0.7
    ledgers = [Ledger(home / "ledger.db") for home in done.world.homes.values()]
    paid = [ledger.epsilon(done.study.privacy.delta) for ledger in ledgers]
    assert paid == pytest.approx([done.report.epsilon] * 4, rel=1e-9)
    assert ("server's word" in done.report.checks[9].detail) == (mode == "central")


def test_central_noise_needs_a_treaty_that_permits_it(fresh: World) -> None:
    treaty = fresh.treaty.model_copy(update={"unsafe": ()})
    with pytest.raises(Refused, match="does not permit central noise") as found:
        resolve(draft_of(privacy={"mode": "central"}), treaty, fresh.treaty_envelope.digest)
    assert (found.value.code, "unsafe: [central]" in found.value.remedy) == ("MODE_NOT_PERMITTED", True)
    for mode in ("distributed", "local"):
        resolve(draft_of(privacy={"mode": mode}), treaty, fresh.treaty_envelope.digest)
