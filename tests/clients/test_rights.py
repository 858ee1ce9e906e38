"""A customer's rights at a node: what access shows, erasure removes; what must stay names nobody; nothing is claimed away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from pathlib import Path

import pandas as pd
import pytest
import yaml
from support.disks import small_disk
from support.orders import PURPOSE, make_draft, small_world

from foedus import cli
from foedus.clients.cohort import Cohorts
from foedus.clients.home import Home
from foedus.clients.lineage import subjects_of
from foedus.clients.retention import Retention
from foedus.clients.rights import Rights
from foedus.clients.scoring import score_to
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.consent import Ask, ConsentRegister, Grant, proofs, vocabulary
from foedus.compliance.rights import Errand, Kind, State
from foedus.demo.simulate import simulate
from foedus.errors import FoedusError, InputError, Refused, VerificationError
from foedus.privacy.ledger import Ledger

NODE = "aster-music"
Said = Callable[..., tuple[int, str]]


@dataclass
class Silo:
    """One node after a study; `who` was in its cohort, `other` too."""

    home: Home
    model: Path
    who: str
    other: str

    @property
    def rights(self) -> Rights:
        return Rights(self.home)

    @property
    def register(self) -> ConsentRegister:
        return ConsentRegister(self.home.path / "consent.db")

    def settings(self, **rights: object) -> None:
        file = self.home.path / "node.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"rights": rights}))
        self.home = Home.load(self.home.path)

    def as_csv(self) -> None:
        """The table as text, within the node's directory."""
        frame, file = pd.read_parquet(self.home.table), self.home.path / "orders.csv"
        frame.to_csv(file, index=False)
        self.home.table.unlink()
        told = yaml.safe_load((self.home.path / "node.yaml").read_text()) | {"table": file.name}
        (self.home.path / "node.yaml").write_text(yaml.safe_dump(told))
        self.home = Home.load(self.home.path)

    def score(self) -> Path:
        out = self.home.path / "scores.csv"
        out.unlink(missing_ok=True)
        score_to(self.home, self.model, date(2024, 8, 20), out)
        return out

    def fill(self) -> None:
        """Something of `who` at every place."""
        self.score()
        rights = self.rights
        rights.requests.open(Kind.EXPLAIN, self.who, note=f"{self.who} wants to know")

    def named_in(self, name: str) -> list[str]:
        """Every file under the node's directory whose bytes name somebody."""
        files = [path for path in self.home.path.rglob("*") if path.is_file()]
        found = [path for path in files if name.encode() in path.read_bytes()]
        if self.home.table.suffix == ".parquet" and name in set(pd.read_parquet(self.home.table)["customer"]):
            found.append(self.home.table)
        return sorted({path.relative_to(self.home.path).as_posix() for path in found})


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draft = make_draft()
    world = small_world(tmp_path_factory.mktemp("rights") / "world", draft)
    run = simulate(world, draft)
    node = world.homes[NODE]
    shutil.copy(run.case.out / "model.json", node.parent / "model.json")
    return node


@pytest.fixture
def silo(played: Path, tmp_path: Path) -> Silo:
    shutil.copytree(played, tmp_path / "node")
    home = Home.load(tmp_path / "node")
    register = ConsentRegister(home.path / "consent.db")
    named = register.in_force(PURPOSE, datetime.now(UTC))["subject"].tolist()
    uses = subjects_of(home)
    trained = (c for c in named if any(touch.use.what == "train" for touch in uses.touched(c)))
    who, other = islice(trained, 2)
    return Silo(home, played.parent / "model.json", who, other)


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


def test_what_access_shows_erasure_removes_at_every_place(silo: Silo) -> None:
    silo.as_csv()  # other kinds: test_table_rewrite
    silo.settings(table="rewrite")
    silo.fill()
    rights = silo.rights
    before, others = rights.access(silo.who), rights.access(silo.other)
    assert [place for place, rows in before.items() if not rows] == []  # the test sees every place of the map
    json.dumps(before, allow_nan=False)  # portable
    assert silo.named_in(silo.who)
    report = rights.erase(silo.who)
    assert report.complete
    assert {s.place: s.count for s in report.steps} == {place: len(rows) for place, rows in before.items()}
    assert rights.access(silo.who) == {place: [] for place in before}
    assert silo.named_in(silo.who) == []  # byte by byte, free pages of databases too
    assert rights.access(silo.other) == others
    kept = {s.place for s in report.steps if s.errand is Errand.PSEUDONYMISED}
    assert kept == {place.name for place in rights.map if place.clock == "record" and place.personal}
    assert silo.rights.audit.check() is None
    again = rights.erase(silo.who)  # asking twice finds nothing
    assert again.complete
    assert all(step.count == 0 for step in again.steps)


def test_every_file_of_a_node_is_in_the_map(silo: Silo) -> None:
    silo.fill()
    stray = silo.home.path / "export.csv"
    stray.write_text(f"customer,phone\n{silo.who},13800138000\n")
    silo.settings(table="rewrite")
    report = silo.rights.erase(silo.who)
    step = next(s for s in report.steps if s.place == "elsewhere")
    assert step.errand is Errand.ORDERED
    assert "export.csv" in step.why
    assert not report.complete
    stray.unlink()
    silo.rights.settle_by_hand(report.id, "elsewhere")
    assert silo.rights.erasures.get(report.id).complete


def test_categories_of_the_map_are_words_of_the_vocabulary(silo: Silo) -> None:
    for place in silo.rights.map:
        if place.personal:
            assert vocabulary.categories(place.category)


def test_proofs_of_earlier_cohorts_hold_after_an_erasure(silo: Silo) -> None:
    silo.settings(table="rewrite")
    silo.rights.erase(silo.who)
    log = AuditLog(silo.home.path / "audit.db", f"foedus node {NODE}", create=False)
    identity = silo.home.identity()
    for name in (silo.who, silo.other):  # who comes back with their name can still be told
        made = proofs.prove(
            name,
            silo=NODE,
            log=log,
            register=silo.register,
            silo_key=silo.home.cohort_key(),
            identity=identity,
        )
        assert all(found.member for found in proofs.check(made, NODE, identity.public))


def test_a_running_node_uses_nobody_who_was_erased_meanwhile(silo: Silo) -> None:
    silo.settings(table="rewrite")
    cohorts, ask = Cohorts(silo.register), Ask(PURPOSE, frozenset(["user.behavior.purchase_history"]))
    before = set(cohorts.of(ask, datetime.now(UTC)).frame["subject"])
    silo.rights.erase(silo.who)
    now = datetime.now(UTC)
    after = cohorts.of(ask, now).frame["subject"]  # of the copy in memory, as it goes on
    assert set(after) == before - {silo.who}
    assert after.tolist() == silo.register.cohort(ask, now)["subject"].tolist()


def test_an_old_import_revives_nobody_and_a_new_consent_is_a_new_customer(silo: Silo) -> None:
    silo.settings(table="rewrite")
    (old,) = [r for r in silo.register.records(silo.who) if r.purpose == PURPOSE][-1:]
    told = Grant(silo.who, PURPOSE, old.notice_version, old.granted_at, old.expires_at, "import")
    silo.rights.erase(silo.who)
    assert silo.register.grant_many([told]) == [""]
    assert silo.register.records(silo.who) == []
    silo.rights.grant(silo.who, PURPOSE, old.notice_version)
    (new,) = silo.register.records(silo.who)
    assert new.state(datetime.now(UTC)) == "given"
    assert [c.state for c in silo.rights.choices(silo.who) if c.purpose == PURPOSE] == ["given"]
    assert silo.rights.models_of(silo.who) == []  # nobody's earlier life
    with pytest.raises(InputError, match="erased"):
        silo.register.grant("erased:00", PURPOSE, notice_version=old.notice_version)


def test_a_restored_register_brings_nobody_back(silo: Silo, tmp_path: Path) -> None:
    silo.settings(table="rewrite")
    shutil.copy(silo.home.path / "consent.db", tmp_path / "backup.db")
    silo.rights.erase(silo.who)
    shutil.copy(tmp_path / "backup.db", silo.home.path / "consent.db")
    assert silo.register.records(silo.who)
    (report,) = silo.rights.resume()  # as a node does when it starts
    assert report.complete
    assert silo.register.records(silo.who) == []
    assert silo.rights.resume() == []
    (silo.home.path / "erasure.key").unlink()
    version = next(iter(silo.register.notices()))
    with pytest.raises(InputError, match="erased customers are known by it"):
        silo.register.grant(silo.other, PURPOSE, notice_version=f"{version}/en")


def test_a_table_that_is_read_only_is_an_order_and_a_closed_gate(silo: Silo) -> None:
    request = silo.rights.requests.open(Kind.DELETE, silo.who, "zh")
    report = silo.rights.erase(silo.who)
    step = next(s for s in report.steps if s.place == "orders")
    assert step.errand is Errand.ORDERED
    assert not report.complete
    (shown,) = [r for r in silo.rights.requests_of(silo.who) if r.id == request.id]
    assert shown.state is State.IN_PROGRESS
    assert silo.rights.still_in_table() == [silo.who]
    version = next(iter(silo.register.notices()))
    with pytest.raises(Refused, match="company's own table"):
        silo.rights.grant(silo.who, PURPOSE, f"{version}/en")
    # Whatever way a new consent comes, nothing of the old orders is used.
    silo.register.grant(silo.who, PURPOSE, notice_version=f"{version}/en")
    assert silo.who not in set(silo.register.in_force(PURPOSE, datetime.now(UTC))["subject"])
    assert silo.rights.settle() == 0
    frame = pd.read_parquet(silo.home.table)
    frame[frame["customer"] != silo.who].to_parquet(silo.home.table, index=False)
    assert silo.rights.settle() == 1
    assert silo.rights.erasures.get(report.id).complete
    (shown,) = [r for r in silo.rights.requests_of(silo.who) if r.id == request.id]
    assert shown.state is State.DONE
    silo.rights.grant(silo.who, PURPOSE, f"{version}/en")
    assert silo.who in set(silo.register.in_force(PURPOSE, datetime.now(UTC))["subject"])


@pytest.mark.parametrize("place", ["consents", "orders", "requests"])
def test_an_erasure_killed_in_the_middle_is_finished_by_the_next(silo: Silo, place: str) -> None:
    silo.settings(table="rewrite")
    rights = silo.rights
    rights.requests.open(Kind.EXPLAIN, silo.who)
    counts = {name: len(rows) for name, rows in rights.access(silo.who).items()}
    child = os.fork()
    if child == 0:  # the real thing, killed after `place` was erased and before anybody noted it
        victim = Rights(silo.home)
        note = victim.erasures.note

        def kill(number: str, name: str, outcome: object) -> None:
            if name == place:
                os.kill(os.getpid(), signal.SIGKILL)
            note(number, name, outcome)  # type: ignore[arg-type]

        victim.erasures.note = kill  # type: ignore[method-assign]
        victim.erase(silo.who)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (report,) = silo.rights.resume()
    assert report.complete
    assert {s.place: s.count for s in report.steps} == counts
    assert silo.named_in(silo.who) == []
    assert silo.rights.resume() == []


def test_models_are_listed_with_what_becomes_of_them(silo: Silo) -> None:
    silo.settings(table="rewrite", models="bound")
    spent = Ledger(silo.home.path / "ledger.db", NODE).head
    first = silo.rights.erase(silo.who)
    (fate,) = first.models
    assert (fate.action, fate.state, fate.partners) == ("bound", "stated", 1)
    assert fate.epsilon is not None
    assert 0 < fate.epsilon <= 4
    assert silo.score().exists()  # a bound is a statement; the model stays in use
    second = silo.rights.erase(silo.other, models="retrain")
    assert [m.state for m in second.models] == ["queued"]
    with pytest.raises(InputError, match="no cohort of a later run"):
        silo.rights.retrained(fate.study, fate.run, "never")
    assert Ledger(silo.home.path / "ledger.db", NODE).head == spent  # nobody's leaving refills a budget


def test_nobody_is_scored_with_a_retired_model(silo: Silo) -> None:
    silo.settings(table="rewrite")
    silo.rights.erase(silo.who, models="retire")
    with pytest.raises(Refused, match="retired") as no:
        silo.score()
    assert no.value.code == "MODEL_RETIRED"


def test_a_model_whose_cost_is_unknown_is_retired_not_bounded(silo: Silo) -> None:
    silo.settings(table="rewrite")
    (silo.home.path / "ledger.db").unlink()
    (fate,) = silo.rights.erase(silo.who).models
    assert (fate.action, fate.epsilon) == ("retire", None)
    assert not (silo.home.path / "ledger.db").exists()


def test_a_legal_hold_keeps_everything_and_the_subject_is_told_why(silo: Silo) -> None:
    rights = silo.rights
    request = rights.requests.open(Kind.DELETE, silo.who)
    before = rights.access(silo.who)
    hold = rights.holds.set("civil case 2026-17", "dora", silo.who)
    with pytest.raises(Refused, match="civil case"):
        rights.erase(silo.who)
    after = rights.requests.get(request.id)
    assert after.state is State.REFUSED
    assert "civil case 2026-17" in after.reason
    assert rights.access(silo.who)["orders"] == before["orders"]
    rights.holds.lift(hold, "dora")
    silo.settings(table="rewrite")
    assert silo.rights.erase(silo.who).complete
    assert silo.named_in(silo.who) == []


def test_who_is_unknown_learns_nothing(silo: Silo) -> None:
    rights = silo.rights
    assert rights.access("nobody") == {place: [] for place in rights.access(silo.who)}
    assert [c.state for c in rights.choices("nobody")] == ["never asked"] * len(rights.choices("nobody"))
    assert rights.requests_of("nobody") == []
    assert rights.erase("nobody").complete
    for bad in ("", "a\nb", "erased:00"):
        with pytest.raises(InputError):
            rights.access(bad)
    with pytest.raises(InputError, match="no place of personal data"):
        rights.correct(silo.who, "budget", "x", "1")


def test_a_correction_is_made_in_the_table_alone(silo: Silo) -> None:
    with pytest.raises(Refused) as no:
        silo.rights.correct(silo.who, "orders", "amount", "1")
    assert no.value.code == "TABLE_READ_ONLY"
    silo.settings(table="rewrite")
    rights = silo.rights
    orders = rights.access(silo.who)["orders"]
    with pytest.raises(InputError, match="say which value"):
        rights.correct(silo.who, "orders", "amount", "1")
    assert rights.correct(silo.who, "orders", "amount", "12.5", was=str(orders[0]["amount"])) == 1
    assert rights.access(silo.who)["orders"] == [orders[0] | {"amount": 12.5}, *orders[1:]]
    with pytest.raises(InputError):
        rights.correct(silo.who, "orders", "amount", "a lot", was="12.5")
    with pytest.raises(InputError, match="no 'phone'"):
        rights.correct(silo.who, "orders", "phone", "1")
    with pytest.raises(Refused, match="anew"):
        rights.correct(silo.who, "consents", "purpose", "x")


def test_a_table_that_cant_be_read_is_no_empty_table(silo: Silo) -> None:
    silo.settings(customer="kunde")
    with pytest.raises(InputError, match="no table has the column 'kunde'"):
        silo.rights.erase(silo.who)
    silo.settings(table="rewrite")
    silo.home.table.write_bytes(b"PAR1 and then nothing")
    for right in (silo.rights.access, silo.rights.erase):
        with pytest.raises(InputError, match="can't be read"):
            right(silo.who)
    assert silo.register.records(silo.who)  # nothing was begun


def test_damaged_rights_are_said(silo: Silo) -> None:
    rights = silo.rights
    rights.requests.open(Kind.ACCESS, silo.who)
    file = silo.home.path / "rights.db"
    file.write_bytes(file.read_bytes()[:2048] + os.urandom(2048) + file.read_bytes()[4096:])
    with pytest.raises((VerificationError, InputError)):
        Rights(silo.home).requests.waiting()


def test_a_full_disk_in_the_middle_is_said_and_the_erasure_goes_on_later(silo: Silo, tmp_path: Path) -> None:
    silo.settings(table="rewrite")
    with small_disk(tmp_path / "small", 16) as disk:
        shutil.copytree(silo.home.path, disk.path / "node")
        silo.home = Home.load(disk.path / "node")
        rights = silo.rights
        disk.fill(leave=24 * 1024)
        with pytest.raises(FoedusError, match=r"full|space"):
            for _ in range(20):  # it may fit: every erasure leaves records
                rights.erase(silo.who)
                rights.erase(silo.other)
        disk.free()
        for report in (*silo.rights.resume(), silo.rights.erase(silo.who)):
            assert report.complete
        assert silo.named_in(silo.who) == []


def test_retention_purges_what_is_old_and_keeps_records_and_what_is_held(silo: Silo) -> None:
    silo.settings(table="rewrite")
    closed = silo.rights.requests.open(Kind.ACCESS, silo.other)
    silo.rights.requests.done(closed.id)
    scores = silo.score()
    silo.register.withdraw(silo.who, PURPOSE)
    now, later = datetime.now(UTC), datetime.now(UTC) + timedelta(days=1000)
    due = {d.place: d.count for d in Retention(silo.home).show()}
    assert due["orders"] > 0
    assert due == {"orders": due["orders"], "scores": 0, "lineage": 0, "consents": 0, "requests": 0}
    with pytest.raises(Refused, match="more than a month ago"):
        Retention(silo.home, clock=lambda: later).purge()
    with pytest.raises(Refused, match="nothing is purged"):
        Retention(silo.home, clock=lambda: now - timedelta(days=1)).purge()
    retention = Retention(silo.home)
    hold = retention.hold("an audit of the authority", "dora")
    assert retention.purge() == []
    retention.lift(hold, "dora")
    hold = retention.hold("civil case", "dora", silo.other)
    old = silo.rights.access(silo.other)["orders"]
    done = {d.place: d for d in retention.purge()}
    assert set(done) == {"orders"}
    assert done["orders"].held > 0
    assert silo.rights.access(silo.other)["orders"] == old
    oldest = (now - timedelta(days=silo.rights.treaty.retention_days)).date().isoformat()
    assert all(row["date"] >= oldest for row in silo.rights.access(silo.who)["orders"])
    trail = [e.record for e in silo.rights.audit.entries() if b'"retention.purged"' in e.body]
    assert [(r["details"]["place"], r["details"]["records"]) for r in trail] == [
        ("orders", done["orders"].count)
    ]
    # Three years on: scores, uses and the name of who withdrew are old; the request is a record, and just so.
    far = Retention(silo.home, clock=lambda: datetime.now(UTC) + timedelta(days=1096))
    assert {d.place for d in far.show() if d.count} >= {"consents"}
    assert [d.count for d in far.show() if d.place == "requests"] == [0]
    beyond = Retention(silo.home, clock=lambda: datetime.now(UTC) + timedelta(days=1097))
    held = {d.place: d.held for d in beyond.show()}
    assert held["requests"] == held["scores"] == 1
    beyond.lift(hold, "dora")
    assert {d.place for d in beyond.purge(clock_checked=True)} == {
        "orders",
        "scores",
        "lineage",
        "consents",
        "requests",
    }
    assert not scores.exists()
    assert silo.register.records(silo.who) == []
    assert silo.rights.requests.all() == []


def test_the_desk_answers_by_command(silo: Silo, foedus: Said, tmp_path: Path) -> None:
    node, out = silo.home.path, tmp_path / "all.json"
    code, said = foedus("rights", "open", node, silo.who, "--kind", "delete", "--note", "goodbye")
    assert code == 0
    number = said.split(",")[0]
    assert number in foedus("rights", "queue", node)[1]
    assert foedus("rights", "access", node, silo.who, "--out", out)[0] == 0
    assert out.stat().st_mode & 0o777 == 0o600
    assert json.loads(out.read_text())["requests"][0]["note"] == "goodbye"
    assert foedus("rights", "access", node, silo.who, "--out", out)[0] == 2
    with zipfile.ZipFile(tmp_path / "all.zip", "w"):
        pass
    (tmp_path / "all.zip").unlink()
    assert foedus("rights", "access", node, silo.who, "--out", tmp_path / "all.zip")[0] == 0
    with zipfile.ZipFile(tmp_path / "all.zip") as bundle:
        assert len(bundle.read("orders.csv").splitlines()) > 1
    assert foedus("rights", "withdraw", node, silo.who, "--purpose", PURPOSE)[0] == 0
    code, said = foedus("rights", "erase", node, silo.who)
    assert code == 0
    assert "NOT complete" in said
    assert silo.who not in said
    assert "waits at orders" in foedus("rights", "queue", node)[1]
    assert foedus("rights", "settle", node, "--names")[1].split() == [silo.who]
    assert "1 erased customers are still" in foedus("rights", "settle", node)[1]
    assert "stated" in foedus("rights", "models", node)[1]
    code, said = foedus("retention", "purge", node, "--dry-run")
    assert code == 0
    assert "would be purged" in said
    assert foedus("retention", "hold", node, "--reason", "civil case", "--by", "dora")[0] == 0
    assert "civil case" in foedus("retention", "show", node)[1]
    assert foedus("rights", "erase", node, silo.other)[0] == 3
    assert foedus("rights", "refuse", node, number, "--reason", "")[0] == 2
    assert foedus("rights", "open", node, silo.who, "--kind", "forget")[0] == 2
