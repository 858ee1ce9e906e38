"""Whatever shows an ε says whom it is for, at how many partners (m), and of a budget how long: each fails here without."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.orders import PURPOSE, make_draft, order_log, small_world

from foedus import cli
from foedus.clients.home import Home
from foedus.compliance.lineage import Store
from foedus.compliance.treaty import Overlap, Per, PurposeTerms, Treaty, sign_all
from foedus.demo.simulate import Simulated, simulate
from foedus.demo.world import World
from foedus.documents import Envelope
from foedus.errors import VerificationError
from foedus.federation.study import Draft
from foedus.federation.verification import verify

pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")

ATTESTED = "No household has contracts with more than two of us."
TERMS = PurposeTerms(purpose=PURPOSE, epsilon=8.0, delta=1e-5, period="quarter")
UNIT = "one customer, at up to m = 2 of 4 partners together (attested)"
BUDGET = "ε 8 at δ 1e-05 a quarter, without a cap for life"
Shown = Callable[..., str]


@pytest.fixture(scope="module")
def draft() -> Draft:
    return make_draft(rounds=1)


@pytest.fixture(scope="module")
def world(draft: Draft, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Four partners, of whom a person may be a customer of two, and a budget for each quarter."""
    made = small_world(tmp_path_factory.mktemp("units") / "world", draft, orders=order_log())
    overlap = Overlap(max_partners_per_customer=2, attestation=ATTESTED)
    treaty = made.treaty.model_copy(update={"overlap": overlap, "purposes": (TERMS,)})
    envelope = sign_all(treaty, [(name, Home.load(path).identity()) for name, path in made.homes.items()])
    for path in (*made.homes.values(), made.server):
        (path / "treaty.json").write_bytes(envelope.dumps())
    return replace(made, treaty=treaty, treaty_envelope=envelope)


@pytest.fixture(scope="module")
def run(world: World, draft: Draft) -> Simulated:
    return simulate(world, draft)


@pytest.fixture
def file(draft: Draft, tmp_path: Path) -> Path:
    path = tmp_path / "draft.yaml"
    path.write_text(yaml.safe_dump(draft.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    return path


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What a command prints, in one line."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> str:
        cli.main([str(word) for word in words])
        return " ".join(capsys.readouterr().out.split())

    def checked(*words: object) -> str:
        try:
            return call(*words)
        except SystemExit as end:
            assert not end.code
            return " ".join(capsys.readouterr().out.split())

    return checked


def assert_told(text: str, *, attestation: bool = True) -> None:
    assert UNIT in text
    assert "a quarter, without a cap for life" in text
    assert not attestation or ATTESTED in text


def test_verify(run: Simulated, world: World, shown: Shown) -> None:
    text = shown("verify", run.evidence, "--treaty", world.server / "treaty.json")
    assert_told(text)
    assert re.search(rf"ε = [\d.]+ at δ = 1e-05 for {re.escape(UNIT)}, recomputed", text)  # check 8
    assert BUDGET in text.partition("Everything holds")[2]


def test_study_price(file: Path, world: World, shown: Shown) -> None:
    assert_told(shown("study", "price", file, "--treaty", world.server / "treaty.json"))


def test_treaty_show(world: World, shown: Shown) -> None:
    assert_told(shown("treaty", "show", world.server / "treaty.json"))


def test_ledger_show_and_its_picture(run: Simulated, world: World, shown: Shown, tmp_path: Path) -> None:
    home = next(iter(world.homes.values()))
    text = shown("ledger", "show", home, "--picture", tmp_path / "ledger.svg")
    assert UNIT in text and ATTESTED in text
    assert "8 a quarter, now since" in text and "for life" in text
    picture = (tmp_path / "ledger.svg").read_text(encoding="utf-8")
    assert UNIT in picture and "cap a quarter: 8" in picture and "for life: " in picture


def test_node_check(run: Simulated, world: World, shown: Shown) -> None:
    home = next(iter(world.homes.values()))
    (home / "ca.crt").write_text("of the server's operator\n", encoding="utf-8")
    text = shown("node", "check", home)
    assert_told(text)
    assert re.search(rf"ε \d\.\d+ spent of {BUDGET}", text)


def test_audit_privacy_and_its_report(
    run: Simulated, file: Path, world: World, shown: Shown, tmp_path: Path
) -> None:
    out = tmp_path / "audit.json"
    assert_told(shown("audit-privacy", file, "--dir", world.root, "--canaries", 100, "--out", out))
    told = json.loads(out.read_bytes())["per"]
    assert Per.model_validate(told) == world.treaty.per(PURPOSE)


def test_simulate(file: Path, shown: Shown, tmp_path: Path) -> None:
    order_log().frame.to_csv(tmp_path / "orders.csv", index=False)
    text = shown("simulate", file, "--orders", tmp_path / "orders.csv")
    assert "for one customer, at up to m = 1 of 4 partners together (attested)" in text
    assert "ε 8 at δ 1e-05 for life" in text


@pytest.mark.parametrize("name", ["model.json", "metrics.json"])
def test_what_is_released(run: Simulated, name: str) -> None:
    told = Envelope.load(run.case.out / name).payload["per"]
    assert (told["unit"], told["partners"], told["budget"]["period"]) == ("customer", 2, "quarter")


def test_a_release_for_another_m_is_found_out(
    world: World, draft: Draft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Treaty.per
    with monkeypatch.context() as patch:
        patch.setattr(Treaty, "per", lambda t, p: honest(t, p).model_copy(update={"partners": 1}))
        lied = simulate(world, draft)
    with pytest.raises(VerificationError, match=r"check 9 .*another unit or budget"):
        verify(lied.evidence)


def test_lineage(run: Simulated, world: World) -> None:
    with zipfile.ZipFile(run.evidence) as bundle:
        server = [json.loads(line) for line in bundle.read("lineage.jsonl").splitlines()]
    node = [s.event for s in Store(next(iter(world.homes.values())) / "lineage.db").events()]
    for events in (server, node):
        facets = [event["run"]["facets"].get("foedus_dp_cost") for event in events]
        assert any(facets)
        assert all(f["partners"] == 2 for f in facets if f)


def test_the_words_follow_the_treaty(world: World) -> None:
    everywhere = world.treaty.model_copy(update={"overlap": Overlap(max_partners_per_customer=4)})
    assert everywhere.unit == "one customer, at all m = 4 partners together"
    assert everywhere.basis == f"Every ε is for {everywhere.unit}."
    assert world.treaty.basis == f"Every ε is for {UNIT}. The partners attest: “{ATTESTED}”"
    assert TERMS.budget == BUDGET
    assert TERMS.model_copy(update={"period": None}).budget == "ε 8 at δ 1e-05 for life"
