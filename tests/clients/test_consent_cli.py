"""``foedus consent`` after a study: what a customer is shown, what they can prove, and what their silo can't deny."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from support.consents import HEALTH, PURCHASES, content
from support.orders import PURPOSE, make_draft, small_world

from foedus import cli
from foedus.clients.home import Home, Settings
from foedus.compliance.auditlog.log import AuditLog, customer_key
from foedus.compliance.consent import ConsentRegister, Notice
from foedus.demo.simulate import simulate
from foedus.documents import Envelope, SigningKey, parse_json

NODE = "aster-music"
Said = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world in which one customer withdrew before a study, and one after it."""
    draft = make_draft(purpose=PURPOSE)
    folder = tmp_path_factory.mktemp("after") / "world"
    world = small_world(folder, draft)
    register = ConsentRegister(world.homes[NODE] / "consent.db")
    names = register.in_force(PURPOSE, datetime.now(UTC))["subject"]
    register.withdraw(names[0], PURPOSE, at=datetime.now(UTC) - timedelta(hours=1))
    simulate(world, draft)
    register.withdraw(names[1], PURPOSE)
    (folder / "names").write_text(json.dumps(names[:3].tolist()))
    return folder


@pytest.fixture
def node(after: Path, tmp_path: Path) -> Path:
    shutil.copytree(after / "nodes" / NODE, tmp_path / "node")
    return tmp_path / "node"


@pytest.fixture
def foedus(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        code: object = 0
        try:
            cli.main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        told = capsys.readouterr()
        return int(code or 0), told.out + told.err  # type: ignore[call-overload]

    return run


def test_who_withdrew_is_shown_to_be_in_no_cohort(after: Path, node: Path, foedus: Said) -> None:
    before, later, stays = json.loads((after / "names").read_text())
    treaty = node / "treaty.json"
    for who, since, inside in (
        (before, None, False),
        (later, "2020-01-01T00:00:00+00:00", True),
        (stays, None, True),
    ):
        out = node.parent / f"{who}.json"
        more = () if since is None else ("--since", since)
        assert foedus("consent", "proof", node, who, "--out", out, *more)[0] == 0
        assert out.stat().st_mode & 0o777 == 0o600
        shutil.move(node / "consent.db", node / "away.db")  # nothing of the node is needed
        code, said = foedus("consent", "check-proof", out, "--treaty", treaty)
        shutil.move(node / "away.db", node / "consent.db")
        assert code == 0 and ("not in 0 cohorts" in said) == inside and ("in 0 and" in said) == (not inside)
    code, said = foedus("consent", "proof", node, later, "--out", node.parent / "none.json")
    assert code == 2 and "nothing to prove" in said  # no cohort since they withdrew


def test_a_proof_that_was_changed_or_is_of_another_silo(after: Path, node: Path, foedus: Said) -> None:
    who = json.loads((after / "names").read_text())[0]
    out, treaty = node.parent / "proof.json", node / "treaty.json"
    foedus("consent", "proof", node, who, "--out", out)
    home = Home.load(node)
    assert foedus("consent", "check-proof", out, "--key", home.identity().public)[0] == 0
    assert foedus("consent", "check-proof", out, "--key", SigningKey.generate().public)[0] == 4
    assert foedus("consent", "check-proof", out)[0] == 2
    text = out.read_text()
    out.write_text(text.replace(f'"subject":"{who}"', '"subject":"somebody"'))
    assert foedus("consent", "check-proof", out, "--treaty", treaty)[0] == 4
    assert foedus("consent", "check-proof", treaty, "--treaty", treaty)[0] != 0


def test_the_silos_receipt_binds_its_log_entries(after: Path, node: Path) -> None:
    log = AuditLog(node / "audit.db", f"foedus node {NODE}")
    entries = {
        str(e.record["details"]["round"]): e.leaf.hex()
        for e in log.entries()
        if e.record["action"] == "cohort"
    }
    bundle = next((after / "server" / "evidence").rglob("evidence.zip"))
    with zipfile.ZipFile(bundle) as files:
        receipts = [Envelope.from_json(r) for r in parse_json(files.read("receipts.json"))]
    (mine,) = (r for r in receipts if r.payload["silo"] == NODE)
    assert mine.payload["cohorts"] == entries and len(entries) >= 2
    assert "size" not in json.dumps(mine.payload["cohorts"])


def test_notices_grants_and_receipts(tmp_path: Path, foedus: Said) -> None:
    home = Home.create(tmp_path / "node", Settings(party=NODE, server="127.0.0.1:1", table="orders.parquet"))
    node = home.path
    file = node.parent / "notice.yaml"
    told = content("2026-09", audience="all", purposes={PURPOSE: [PURCHASES, HEALTH]})
    file.write_text(yaml.safe_dump(told, allow_unicode=True), encoding="utf-8")
    assert foedus("consent", "notice", node, file)[0] == 0
    file.write_text(yaml.safe_dump(told | {"recipients": ["broker"]}, allow_unicode=True), encoding="utf-8")
    code, said = foedus("consent", "notice", node, file)
    assert code == 2 and "says something else" in said
    asked = ("consent", "grant", node, "child", "--purpose", PURPOSE, "--notice", "2026-09/zh")
    for more, problem in (
        ((), "date of birth"),
        (("--born", "2020-02-30"), "not a day"),
        (("--born", "2020-02-03"), "guardian"),
        (("--born", "2020-02-03", "--guardian", "g1"), "separate consent"),
        (("--born", "2020-02-03", "--guardian", "g1", "--sensitive", "--share", "broker"), "no recipient"),
        (
            ("--born", "2020-02-03", "--guardian", "g1", "--sensitive", "--expires", "2030-01-01T00:00:00"),
            "timezone",
        ),
    ):
        code, said = foedus(*asked, *more)
        assert code == 2 and problem in said, said
    assert (
        foedus(*asked, "--born", "2020-02-03", "--guardian", "g1", "--sensitive", "--share", "bank-b")[0] == 0
    )
    shown = foedus("consent", "show", node, "child")[1]
    assert "guardian g1" in shown and "bank-b" in shown and HEALTH in shown and "given" in shown
    assert "no consent" in foedus("consent", "show", node, "nobody")[1]
    out = node.parent / "receipt.json"
    assert foedus("consent", "receipt", node, "child", "--out", out)[0] == 0
    code, said = foedus("consent", "check-proof", out, "--key", home.identity().public)
    assert code == 0 and NODE in said
    assert foedus("consent", "receipt", node, "nobody", "--out", node.parent / "r.json")[0] == 2
    assert foedus("consent", "receipt", node, "child", "--out", out)[0] == 2  # never overwritten


def test_what_is_told_of_customers_is_in_the_nodes_log_and_shown_to_its_people(
    tmp_path: Path, foedus: Said
) -> None:
    home = Home.create(tmp_path / "node", Settings(party=NODE, server="127.0.0.1:1", table="orders.parquet"))
    node, log = home.path, AuditLog(home.path / "audit.db", f"foedus node {NODE}")
    ConsentRegister(node / "consent.db").publish(
        Notice.checked(content("2026-01", purposes={PURPOSE: [PURCHASES]}), "notice")
    )
    rows = tmp_path / "rows.csv"
    rows.write_text(
        f"subject,purpose,notice_version,granted_at\nK1,{PURPOSE},2026-01/en,2026-02-01T00:00:00+00:00\n",
        encoding="utf-8",
    )
    purpose = ("--purpose", PURPOSE)
    assert foedus("consent", "import", node, rows)[0] == 0
    assert foedus("consent", "grant", node, "K-7", *purpose, "--notice", "2026-01/en")[0] == 0
    assert foedus("consent", "withdraw", node, "K-7", *purpose)[0] == 0
    assert foedus("consent", "withdraw", node, "nobody", *purpose)[0] == 2
    told = [(r["action"], r["subject"], r["details"]) for r in (e.record for e in log.entries())]
    assert told[0] == ("consent.imported", "", {"rows": 1, "source": "csv"})
    assert [t[:2] for t in told[1:]] == [("consent.granted", "customer"), ("consent.withdrawn", "customer")]
    assert all(b"K-7" not in entry.body for entry in log.entries())

    code, said = foedus("node", "log", node)
    assert code == 0 and said.count("customer K-7") == 2 and "notice 2026-01/en" in said
    assert log.shred(NODE, customer_key("K-7")) == 2
    code, said = foedus("node", "log", node, "--since", 1)
    assert code == 0 and "K-7" not in said and said.count("sealed shredded") == 2 and "imported" not in said
    shutil.rmtree(node / "audit-keys")
    AuditLog(node / "audit.db", f"foedus node {NODE}").append(NODE, "x", "", {}, sealed={"a": 1}, key="k")
    shutil.rmtree(node / "audit-keys")
    code, said = foedus("node", "log", node)
    assert code == 4 and "deleted keys without a word" in said


def test_a_log_whose_clock_was_ahead_goes_on_when_an_officer_says_so(tmp_path: Path, foedus: Said) -> None:
    home = Home.create(tmp_path / "node", Settings(party=NODE, server="127.0.0.1:1", table="orders.parquet"))
    ahead = AuditLog(
        home.path / "audit.db", f"foedus node {NODE}", clock=lambda: datetime.now(UTC) + timedelta(days=365)
    )
    ahead.append(NODE, "x", "", {})
    ConsentRegister(home.path / "consent.db").publish(
        Notice.checked(content("2026-01", purposes={PURPOSE: [PURCHASES]}), "notice")
    )
    asked = ("consent", "grant", home.path, "K-7", "--purpose", PURPOSE, "--notice", "2026-01/en")
    code, said = foedus(*asked)
    assert code == 2 and "under a clock that was set back" in said and "foedus node clock" in said
    assert ConsentRegister(home.path / "consent.db").records("K-7") == []
    assert foedus("node", "clock", home.path, "--officer", "dora", "--reason", "a typo")[0] == 0
    assert foedus(*asked)[0] == 0
    assert [e.record["action"] for e in ahead.entries()] == ["x", "clock.set", "consent.granted"]
