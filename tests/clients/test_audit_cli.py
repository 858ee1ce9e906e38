"""`foedus audit-privacy` as an officer meets it: a table, a report, and an exit code to rely on."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy.typing as npt
import pytest
import yaml
from support.orders import make_draft, order_log, small_world

from foedus import cli
from foedus.clients import audit_cli
from foedus.clients.privacy_audit import audit
from foedus.demo.world import World
from foedus.federation.study import Draft
from foedus.privacy.noise import Keystream, discrete_gaussian

pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")


def call(*arguments: object) -> int:
    """The command's exit code."""
    try:
        cli.main(["audit-privacy", *(str(a) for a in arguments)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def draft() -> Draft:
    return make_draft(epsilon=8.0)


@pytest.fixture(scope="module")
def trial(draft: Draft, tmp_path_factory: pytest.TempPathFactory) -> World:
    """What `foedus simulate --dir` leaves, without the run."""
    return small_world(tmp_path_factory.mktemp("audit") / "trial", draft, orders=order_log(200))


@pytest.fixture
def file(draft: Draft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "draft.yaml"
    path.write_text(yaml.safe_dump(draft.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    return path


def test_a_draft_on_ones_own_orders_holds(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order_log(200).frame.to_csv(tmp_path / "orders.csv", index=False)
    report = tmp_path / "report.json"
    assert call(file, "--orders", tmp_path / "orders.csv", "--canaries", 100, "--out", report) == 0
    shown, told = capsys.readouterr().out, json.loads(report.read_bytes())
    assert told["holds"] is True and told["study"] == "churn of the record shops"
    for line in told["lines"]:
        assert line["name"] in shown and line["verdict"] == "holds"
    assert "│ refuted" not in shown and f"claimed ε = {told['epsilon']:.3f} at δ = 1e-05" in shown
    assert not list(tmp_path.glob("foedus-audit-*"))


def test_a_signed_study_on_a_trials_silos_with_too_little_noise_exits_4_and_says_why(
    draft: Draft,
    trial: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def half(sigma: int, size: int, stream: Keystream) -> npt.NDArray[object]:
        return discrete_gaussian(sigma // 2, size, stream)

    _, envelope = trial.sign_study(draft)
    (tmp_path / "study.json").write_bytes(envelope.dumps())
    monkeypatch.setattr(audit_cli, "audit", partial(audit, sampler=half))
    report = tmp_path / "report.json"
    code = call(tmp_path / "study.json", "--dir", trial.root, "--canaries", 100, "--out", report)
    out, err = capsys.readouterr()
    assert code == 4 and "size of the noise" in err and "Traceback" not in err
    assert "refuted" in out and json.loads(report.read_bytes())["holds"] is False


def test_what_can_not_be_audited_is_said_at_once(
    file: Path, trial: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.json").write_text("mine")
    for arguments, words in (
        ((file, "--dir", tmp_path / "nowhere"), "no trial"),
        ((file, "--dir", trial.root, "--orders", file), "one of them"),
        ((file, "--dir", trial.root, "--out", tmp_path / "there.json"), "exists already"),
        ((file, "--dir", trial.root, "--canaries", 5), "canaries"),
        ((file, "--dir", trial.root, "--delta", 0), "delta"),
        ((tmp_path / "none.yaml", "--dir", trial.root), "none.yaml"),
    ):
        assert call(*arguments) == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "there.json").read_text() == "mine"
