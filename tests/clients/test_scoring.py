"""A partner scores its own customers with a released model: the right numbers, for the right people, from the right model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.orders import PURPOSE, copy_of, make_draft, small_world

from foedus import cli
from foedus.clients import sources
from foedus.clients.features import history, load, measured
from foedus.clients.home import Home
from foedus.clients.scoring import Scored, score_to
from foedus.compliance import policy
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.consent import ConsentRegister
from foedus.compliance.policy import Decision
from foedus.demo.simulate import Simulated, simulate
from foedus.demo.world import World
from foedus.documents import Envelope, SigningKey
from foedus.errors import InputError, Refused, VerificationError
from foedus.federation import models
from foedus.federation.study import Model, Study, Training
from foedus.federation.tasks import statistics

SILO = "cedar-sound"
AS_OF = date(2024, 8, 20)


@dataclass
class Desk:
    """One silo after a study, and the model that the study released."""

    world: World
    home: Home
    study: Study
    model: Path
    out: Path

    def score(self, as_of: date = AS_OF) -> Scored:
        return score_to(self.home, self.model, as_of, self.out)

    def consenting(self) -> list[str]:
        register = ConsentRegister(self.home.path / "consent.db")
        return [str(c) for c in register.in_force(PURPOSE, datetime.now(UTC))["subject"]]

    def release(self, change: Callable[[dict[str, Any]], Any], key: SigningKey | None = None) -> None:
        """Change what model.json says, signed again by the coordinator (or by `key`)."""
        payload = json.loads(self.model.read_bytes())["payload"]
        change(payload)
        key = key or SigningKey.load(self.world.server / "server.key")
        origin = self.world.treaty.coordinator.origin
        self.model.write_bytes(Envelope("release", payload).signed(origin, key).dumps())


@pytest.fixture(scope="module", params=["logistic_regression", "mlp"])
def played(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[World, Simulated]:
    optimiser = "adam" if request.param == "mlp" else "fixed_hessian"
    draft = make_draft(model=Model(kind=request.param), training=Training(optimiser=optimiser, rounds=2))
    world = small_world(tmp_path_factory.mktemp("scoring") / "world", draft)
    return world, simulate(world, draft)


@pytest.fixture
def desk(played: tuple[World, Simulated], tmp_path: Path) -> Desk:
    original, run = played
    world = copy_of(original, tmp_path / "world")
    model = tmp_path / "model.json"
    model.write_bytes((run.case.out / "model.json").read_bytes())
    return Desk(world, Home.load(world.homes[SILO]), run.study, model, tmp_path / "scores.csv")


# ── the right numbers ────────────────────────────────────────────────────────────────────────────


def test_scores_are_the_models_on_the_inputs_of_training(desk: Desk) -> None:
    """Both sides of the split as the trainer loads them, moved to the day of scoring, are everybody."""
    day = AS_OF.isoformat()
    label = desk.study.label.model_copy(update={"train_as_of": day, "test_as_of": day})
    moved = desk.study.model_copy(update={"label": label})
    cohort = ConsentRegister(desk.home.path / "consent.db").in_force(PURPOSE, datetime.now(UTC))
    weights = np.array(json.loads(desk.model.read_bytes())["payload"]["weights"])
    expected: dict[str, float] = {}
    for side in ("train", "test"):
        with sources.table(desk.home.table, "orders") as orders:
            data = load(orders, moved, side, cohort, desk.world.treaty.retention_days)  # type: ignore[arg-type]
        logits = models.scores(desk.study.model, weights, data.inputs)
        expected |= dict(zip(data.customers.tolist(), (1 / (1 + np.exp(-logits))).tolist(), strict=True))

    scored = desk.score()
    found = pd.read_csv(desk.out, dtype={"customer": str})
    assert found.columns.tolist() == ["customer", "score"] and found["score"].is_monotonic_decreasing
    assert dict(zip(found["customer"], found["score"], strict=True)) == pytest.approx(expected, abs=1e-12)
    assert len(found) == len(scored.frame) > 100
    assert found["score"].between(0, 1).all() and found["score"].std() > 0.01
    assert (scored.purpose, scored.as_of, scored.meaning) == (PURPOSE, AS_OF, "no order in 90 days")


def test_only_who_consents_now_is_scored(desk: Desk) -> None:
    desk.score()
    first = pd.read_csv(desk.out)["customer"].tolist()
    frame = pd.read_parquet(desk.home.table)
    assert set(first) <= set(desk.consenting()) < set(frame["customer"])
    ConsentRegister(desk.home.path / "consent.db").withdraw(first[0], PURPOSE)
    desk.out.unlink()
    desk.score()
    assert set(pd.read_csv(desk.out)["customer"]) == set(first[1:])


def test_orders_from_the_day_on_are_not_looked_at(desk: Desk) -> None:
    before = desk.score(date(2024, 6, 1)).frame
    frame = pd.read_parquet(desk.home.table)
    frame[pd.to_datetime(frame["date"]) < "2024-06-01"].to_parquet(desk.home.table)
    desk.out.unlink()
    after = desk.score(date(2024, 6, 1)).frame
    assert len(after) == len(before) > 0
    pd.testing.assert_frame_equal(*(f.sort_values("customer", ignore_index=True) for f in (before, after)))


def test_history_needs_no_label_and_agrees_with_training(desk: Desk) -> None:
    cohort = pd.DataFrame({"subject": desk.consenting()})
    with sources.table(desk.home.table, "orders") as orders:
        told = history(orders, desk.study.table, date(2024, 3, 1), cohort, 1096).to_pyarrow().to_pandas()
        data = load(orders, desk.study, "train", cohort, 1096)
    assert "churned" not in told
    side = told[told["customer"].isin(data.customers.tolist())]
    features = desk.study.features
    values, codes = measured(side, features, desk.study.table)
    found = statistics.inputs(values, codes, features, statistics.initial(desk.study))
    assert np.allclose(found, data.inputs, rtol=0, atol=1e-12)  # DuckDB adds in any order


def test_parquet_keeps_the_same(desk: Desk) -> None:
    desk.score()
    csv = pd.read_csv(desk.out, dtype={"customer": str}).sort_values("customer", ignore_index=True)
    desk.out = desk.out.with_suffix(".parquet")
    desk.score()
    parquet = pd.read_parquet(desk.out).sort_values("customer", ignore_index=True)
    assert len(parquet) == len(csv) > 100
    pd.testing.assert_frame_equal(parquet, csv, check_dtype=False)


def test_the_file_is_the_owners_and_the_node_notes_it(desk: Desk) -> None:
    scored = desk.score()
    assert desk.out.stat().st_mode & 0o077 == 0
    log = AuditLog(desk.home.path / "audit.db", f"foedus node {SILO}", create=False)
    last = list(log.entries())[-1].record
    assert (last["actor"], last["action"]) == (SILO, "scored")
    assert last["details"] == {
        "model": Envelope.load(desk.model).digest,
        "as_of": AS_OF.isoformat(),
        "customers": len(scored.frame),
    }
    before = desk.out.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        desk.score()
    assert desk.out.read_bytes() == before and len(list(log.entries())) == last_index(log)


def last_index(log: AuditLog) -> int:
    return [e.index for e in log.entries()][-1] + 1


# ── the right model ──────────────────────────────────────────────────────────────────────────────


def refused(desk: Desk, kind: type[Exception], as_of: date = AS_OF) -> str:
    """Why it is refused; nothing was written."""
    with pytest.raises(kind) as refusal:
        desk.score(as_of)
    assert not desk.out.exists()
    return str(refusal.value)


def test_a_model_that_was_altered(desk: Desk) -> None:
    text = desk.model.read_text()
    desk.model.write_text(text.replace('"weights":[', '"weights":[0,', 1))
    assert "signature does not hold" in refused(desk, VerificationError)


def test_a_model_that_somebody_else_signed(desk: Desk) -> None:
    desk.release(lambda p: None, key=SigningKey.generate())
    assert "signature does not hold" in refused(desk, VerificationError)


def test_a_model_that_nobody_signed(desk: Desk) -> None:
    payload = json.loads(desk.model.read_bytes())["payload"]
    desk.model.write_bytes(Envelope("release", payload).dumps())
    assert "has not signed it" in refused(desk, VerificationError)


def test_another_document_of_the_coordinators(desk: Desk) -> None:
    key = SigningKey.load(desk.world.server / "server.key")
    payload = json.loads(desk.model.read_bytes())["payload"]
    desk.model.write_bytes(
        Envelope("manifest", payload).signed(desk.world.treaty.coordinator.origin, key).dumps()
    )
    assert "'release' document was expected" in refused(desk, VerificationError)
    desk.release(lambda p: p.__setitem__("what", "metrics"))
    assert "not of a model" in refused(desk, InputError)


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        (lambda p: p.__setitem__("purpose", "dpv:Marketing"), Refused, "not permitted"),
        (lambda p: p["weights"].pop(), InputError, "finite numbers are needed"),
        (lambda p: p["weights"].__setitem__(0, "1"), InputError, "weights"),
        (lambda p: p["features"].clear(), InputError, "features"),
        (lambda p: p.pop("table"), InputError, "table"),
        (lambda p: p["table"].__setitem__("amount", "price"), InputError, "lacks 'price'"),
    ],
)
def test_a_coordinator_that_signs_nonsense(
    desk: Desk, change: Callable[[dict[str, Any]], Any], kind: type[Exception], match: str
) -> None:
    desk.release(change)
    assert match in refused(desk, kind)


def test_whole_numbers_among_the_weights_are_fine(desk: Desk) -> None:
    desk.release(lambda p: p["weights"].__setitem__(0, 0.0))  # canonical JSON writes 0
    assert len(desk.score().frame) > 100


# ── the right day and table ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("as_of", "match"),
    [
        (date.today() + timedelta(days=1), "has not come yet"),
        (date(2020, 1, 1), "no customer with an order before 2020-01-01"),
        (date(2025, 6, 1), "the last order before 2025-06-01 is of 2024-08"),
    ],
)
def test_a_wrong_day(desk: Desk, as_of: date, match: str) -> None:
    assert match in refused(desk, InputError, as_of)


def test_no_table_or_register(desk: Desk) -> None:
    desk.home.table.rename(desk.home.path / "elsewhere.parquet")
    assert "orders.parquet: no such file" in refused(desk, InputError)
    (desk.home.path / "consent.db").unlink()
    assert "consent.db: no such file" in refused(desk, InputError)


def test_the_command(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*changed: str) -> tuple[int, str, str]:
        arguments = ["--as-of", AS_OF.isoformat(), "--out", str(desk.out), *changed]
        try:
            cli.main(["node", "score", str(desk.home.path), str(desk.model), *arguments])
            code: object = 0
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return int(str(code or 0)), out, err

    assert call("--as-of", "today")[0] == 2
    assert call("--out", "scores.xlsx")[0] == 2
    code, out, _ = call()
    assert code == 0 and f"customers who consent to {PURPOSE}" in out and "no order in 90 days" in out
    desk.out.unlink()
    desk.release(lambda p: None, key=SigningKey.generate())
    code, out, err = call()
    assert (code, out) == (4, "") and "does not hold" in err and not desk.out.exists()


def test_where_the_policy_allows_nothing_nobody_is_scored(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "decide", lambda use: Decision(False, "NOT_TODAY", "nothing today"))
    with pytest.raises(Refused, match="nothing today"):
        desk.score()
    assert not desk.out.exists()
