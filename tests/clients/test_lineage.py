"""A study's lineage at a silo and at the server: every step in it, nothing personal, asked both ways, from the command line."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import ibis
import pandas as pd
import pytest
from support.nodes import Rehearsal
from support.openlineage import SPEC, official, transcribed
from support.orders import copy_of, make_draft, small_world
from support.sums import scratch

from foedus import cli
from foedus.clients import sources
from foedus.clients.column_lineage import columns_of
from foedus.clients.features import expression, load_raw
from foedus.clients.home import Home
from foedus.clients.lineage import subjects_of
from foedus.clients.scoring import score_to
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.consent import ConsentRegister
from foedus.compliance.lineage import Store, tracing
from foedus.compliance.lineage import events as e
from foedus.demo.simulate import Simulated, simulate
from foedus.demo.world import World
from foedus.documents import Envelope
from foedus.errors import InputError
from foedus.server.lineage import note_end

NODE = "aster-music"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Simulated]:
    world = small_world(tmp_path_factory.mktemp("lineage") / "world")
    return world, simulate(world, make_draft())


@pytest.fixture
def world(ran: tuple[World, Simulated]) -> Iterator[World]:
    folder = scratch()
    yield copy_of(ran[0], folder / "world")
    shutil.rmtree(folder)


@pytest.fixture
def server(world: World) -> Store:
    return Store(world.root / "server" / "lineage.db")


@pytest.fixture
def node(world: World) -> Store:
    return Store(world.homes[NODE] / "lineage.db")


@pytest.fixture
def model(ran: tuple[World, Simulated]) -> str:
    return Envelope.load(ran[1].case.out / "model.json").digest


def ends(store: Store, job: str) -> list[str]:
    return [
        s.event["eventType"] for s in store.events(own=True) if s.event["job"]["name"].endswith(f"/{job}")
    ]


# ── what is in it ────────────────────────────────────────────────────────────────────────────────


def test_every_event_is_what_openlineage_asks_for(world: World, server: Store) -> None:
    checks = [transcribed, *([official()] if SPEC else [])]
    for store in (server, *(Store(home / "lineage.db") for home in world.homes.values())):
        seen = [s.event for s in store.events()]
        assert store.open_runs() == [] and len(seen) == store.check() > 0
        for check in checks:
            for event in seen:
                check(event)


def test_every_round_is_in_it_at_both_ends(ran: tuple[World, Simulated], server: Store, node: Store) -> None:
    rounds = ran[1].study.rounds
    for store, job, times in ((node, "cohort", rounds), (node, "round", rounds), (node, "features", 2),
                              (node, "node", 1), (server, "secure sum", rounds), (server, "study", 1),
                              (server, "release", 2), (server, f"silo {NODE}", 1)):  # fmt: skip
        assert sorted(ends(store, job)) == ["COMPLETE"] * times + ["START"] * times, job
    parents = {s.event["run"]["facets"]["parent"]["run"]["runId"] for s in node.events() if s.event["job"]["name"].endswith("/node")}  # fmt: skip
    own = {s.event["run"]["runId"] for s in server.events() if s.event["job"]["name"].endswith("/study")}
    assert parents == own  # both worked out the same id


def test_no_event_holds_personal_data(ran: tuple[World, Simulated], world: World, server: Store) -> None:
    people = {a.name for a in world.treaty.approvers} | {ran[1].study.author}
    for name, home in world.homes.items():
        store = Store(home / "lineage.db")
        orders = pd.read_parquet(home / "orders.parquet")
        customers = set(orders["customer"].astype(str))
        entries = AuditLog(home / "audit.db", f"foedus node {name}").entries()
        counts = {str(len(orders)), str(len(customers))}
        counts |= {str(x.record["details"]["size"]) for x in entries if x.record["action"] == "cohort"}
        for stored in (*store.events(), *server.events()):
            text = json.dumps(stored.event)
            assert not set(re.findall(r"K\d{4}", text)) & customers
            assert not counts & set(re.findall(r"(?<![\w.-])\d+(?![\w.-])", text))
            assert not any(f'"{person}"' in text for person in people)
        for file in home.glob("*.db"):
            if file.name in ("lineage.db", "subjects.db"):
                assert not re.search(rb"K\d{4}", file.read_bytes())


def test_the_cohort_in_it_is_the_one_in_the_audit_log(world: World, node: Store) -> None:
    log = AuditLog(world.homes[NODE] / "audit.db", f"foedus node {NODE}")
    logged = {x.leaf.hex(): x for x in log.entries() if x.record["action"] == "cohort"}
    told = [
        e.facet_of(d, "foedus_consent")
        for s in node.events()
        for d in s.event["outputs"]
        if e.kind_of(d) == "cohort"
    ]
    assert len(told) == len(logged) and {t["entry"] for t in told} == set(logged)
    for facet in told:
        entry = logged[facet["entry"]]
        assert (facet["root"], facet["log_size"]) == (entry.record["details"]["root"], entry.index + 1)


# ── from a model, and back from a customer ───────────────────────────────────────────────────────


def test_from_a_model_to_everything_by_one_query(
    ran: tuple[World, Simulated], world: World, server: Store, model: str
) -> None:
    alone = tracing.trace(server, model)
    assert alone.tables == {(p, "orders") for p in world.homes}
    assert len(alone.merged()) == len(world.homes) * ran[1].study.rounds  # from receipts: entries, no roots
    assert all(s.root is None for s in alone.merged())
    assert {a.digest for a in alone.approvals} == {a.digest for a in ran[1].case.approvals}
    metrics = Envelope.load(ran[1].case.out / "metrics.json").digest
    assert alone.releases == {("model", model), ("metrics", metrics)}
    assert [c["epsilon"] for c in alone.costs] == [json.loads((ran[1].case.out / "model.json").read_bytes())["payload"]["epsilon"]]  # fmt: skip
    for name, home in world.homes.items():
        server.take([s.event for s in Store(home / "lineage.db").events(own=True)], name)
    whole = tracing.trace(server, model)
    assert whole.tables == alone.tables and len(whole.merged()) == len(alone.merged())
    assert all(s.root for s in whole.merged())  # the same entries, now as the silos tell them
    assert whole.columns[NODE, f"features/{ran[1].case.study_envelope.digest[:16]}/1/train"]["amount"] == [
        "orders.amount"
    ]


def test_back_from_a_customer_to_every_model(
    ran: tuple[World, Simulated], world: World, node: Store, model: str, tmp_path: Path
) -> None:
    home, study = Home.load(world.homes[NODE]), ran[1].study
    subjects = subjects_of(home)
    used: dict[str, set[str]] = {}
    frame = ConsentRegister(home.path / "consent.db").in_force(
        study.purpose, pd.Timestamp.now(tz="UTC").to_pydatetime()
    )
    with home.orders(study.table) as orders:
        for side in ("train", "test"):
            raw = load_raw(orders, study, side, frame, world.treaty.retention_days)  # type: ignore[arg-type]
            used[side] = set(raw.customers.tolist())
    everybody = set(pd.read_parquet(home.path / "orders.parquet")["customer"].astype(str))
    for customer in sorted(everybody):
        assert {t.use.what for t in subjects.touched(customer)} == {s for s in used if customer in used[s]}
    somebody = min(used["train"])
    (touch,) = subjects.touched(somebody)
    assert node.models(touch.use.study, touch.use.run) == []  # the node does not know it yet
    released = ran[1].case.out / "model.json"
    scored = score_to(home, released, date(2024, 8, 20), tmp_path / "scores.csv")
    assert node.models(touch.use.study, touch.use.run) == [model]  # since it scored with it
    for customer in scored.frame["customer"].head(5):
        assert f"scored/{model[:16]}" in {t.use.what for t in subjects.touched(customer)}
    assert ends(node, "scoring") == ["START", "COMPLETE"]
    subjects.forget(somebody)
    assert subjects.touched(somebody) == []


# ── refused, failed, stopped ─────────────────────────────────────────────────────────────────────


def test_a_refused_round_fails_and_says_no_more_than_the_server_heard(play: Rehearsal) -> None:
    play.set_up()
    store = Store(play.home(NODE) / "lineage.db")
    register = ConsentRegister(play.home(NODE) / "consent.db")
    purpose = play.case.study.purpose
    for subject in register.in_force(purpose, pd.Timestamp.now(tz="UTC").to_pydatetime())["subject"]:
        register.withdraw(str(subject), purpose)
    said = play.ask(NODE, play.vector_request(NODE, 1), play.weights)
    assert said.refusal is not None and said.refusal.code == "COHORT_TOO_SMALL"
    assert ends(store, "round") == ["START", "FAIL"]
    *_, last = store.events()
    message = last.event["run"]["facets"]["errorMessage"]["message"]
    assert message == f"COHORT_TOO_SMALL: {said.refusal.message}"
    transcribed(last.event)


def test_a_vector_that_was_given_is_not_told_as_failed(play: Rehearsal) -> None:
    play.set_up()
    store = Store(play.home(NODE) / "lineage.db")
    assert play.ask(NODE, play.vector_request(NODE, 1), play.weights).refusal is None
    again = play.ask(NODE, play.vector_request(NODE, 1, boxes=False, log=play.case.head("dune-media")), b"")
    assert again.refusal is not None and again.refusal.code != "ALREADY_DONE"
    assert ends(store, "round") == ["START"]  # its sum may yet be opened


def test_a_refused_study_fails_at_once(play: Rehearsal) -> None:
    said = play.ask(NODE, play.keys_request(NODE, approvals=[]))
    assert said.refusal is not None and said.refusal.code == "APPROVAL_MISSING"
    store = Store(play.home(NODE) / "lineage.db")
    assert ends(store, "node") == ["START", "FAIL"] and store.open_runs() == []


def test_a_node_that_stops_leaves_its_runs_aborted(play: Rehearsal) -> None:
    play.set_up()
    assert play.ask(NODE, play.vector_request(NODE, 1), play.weights).refusal is None
    store = Store(play.home(NODE) / "lineage.db")
    assert len(store.open_runs()) == 2  # the study, and the round whose sum is not opened
    app = play.restart(NODE)
    assert len(store.open_runs()) == 2  # `foedus node check` makes one too: who only looks ends nothing
    app.lineage.begin()
    assert store.open_runs() == []
    assert ends(store, "round") == ["START", "ABORT"] and ends(store, "node") == ["START", "ABORT"]


def test_a_lineage_that_cant_be_written_lets_nothing_out(play: Rehearsal) -> None:
    play.set_up()
    path = play.home(NODE) / "lineage.db"
    path.write_bytes(b"no database" * 100)
    said = play.ask(NODE, play.vector_request(NODE, 1), play.weights)
    assert said.refusal is not None and said.data == b""
    assert play.spent(NODE) == 0.0  # nothing left, so nothing is paid


def test_a_stopped_run_is_aborted_at_the_server_once(
    world: World, server: Store, ran: tuple[World, Simulated]
) -> None:
    case, home = ran[1].case, world.root / "server"
    log = AuditLog(home / "audit.db", world.treaty.coordinator.origin)
    study, before = case.study_envelope.digest, server.size
    note_end(home, log, study, case.run, "stopped", "RUN_STOPPED: x")
    assert server.size == before  # it has ended well already
    log.append("coordinator", "run.started", study, {"run": "2"})
    entry = list(log.entries())[-1]
    begun = next(s.event for s in server.events() if s.event["job"]["name"].endswith("/study"))
    from foedus.compliance.lineage import names

    ident = names.of_study(pd.Timestamp(entry.record["time"]).to_pydatetime(), study, "2", log.origin)[0]
    begun["run"]["runId"] = str(ident)
    server.add([begun])
    for _ in range(2):
        note_end(home, log, study, "2", "stopped", "RUN_STOPPED: x")
    assert ends(server, "study") == ["START", "COMPLETE", "START", "ABORT"]


# ── columns ──────────────────────────────────────────────────────────────────────────────────────


def test_columns_are_read_off_the_query_that_is_run(world: World, ran: tuple[World, Simulated]) -> None:
    study = ran[1].study
    with Home.load(world.homes[NODE]).orders(study.table) as orders:
        found = columns_of(expression(orders, study, "train", world.treaty.retention_days))
    told = {name: {(s.table, s.column, s.kind) for s in sources} for name, sources in found.direct.items()}
    assert told["amount"] == {("orders", "amount", "AGGREGATION")}
    assert told["recency"] == {("orders", "date", "AGGREGATION")}
    assert told["orders"] == {("orders", c, "AGGREGATION") for c in ("customer", "date")}
    assert {s.column for s in found.indirect if s.table is None} == {"subject"}  # the cohort
    assert {(s.column, s.kind) for s in found.indirect} >= {("customer", "JOIN"), ("date", "FILTER")}


def test_columns_of_joins_unions_and_windows() -> None:
    a = ibis.table({"k": "string", "x": "float64", "y": "float64"}, name="a")
    b = ibis.table({"k": "string", "z": "int64"}, name="b")
    joined = a.join(b, "k").select(a.k, sum=a.x + a.y, same=b.z, cast=a.x.cast("int64"))
    found = columns_of(joined.filter(joined.sum > 1).order_by("same"))
    told = {n: sorted((s.table, s.column, s.kind) for s in d) for n, d in found.direct.items()}
    assert told["sum"] == [("a", "x", "TRANSFORMATION"), ("a", "y", "TRANSFORMATION")]
    assert told["same"] == [("b", "z", "IDENTITY")] and told["cast"] == [("a", "x", "IDENTITY")]
    assert {(s.table, s.column, s.kind) for s in found.indirect} == {
        ("a", "k", "JOIN"), ("b", "k", "JOIN"), ("a", "x", "FILTER"), ("a", "y", "FILTER"), ("b", "z", "SORT"),
    }  # fmt: skip
    ranked = columns_of(a.mutate(rank=a.x.rank()))
    assert {s.kind for s in ranked.direct["rank"]} == {"AGGREGATION"}
    within = columns_of(a.filter(a.k.isin(b.k)))
    assert ("b", "k") in {(s.table, s.column) for s in within.indirect}
    with pytest.raises(InputError, match="Union is not known"):
        columns_of(a.select("k").union(b.select("k")))


def test_a_table_of_customers_has_columns_too(tmp_path: Path) -> None:
    from foedus.federation.schema import CategoryColumn, ColumnLabel, NumberColumn, Split

    frame = pd.DataFrame(
        {"customer": ["a", "b"], "age": [1.0, 2.0], "city": ["x", "y"], "left": ["yes", "no"]}
    )
    frame.to_parquet(tmp_path / "t.parquet")
    draft = make_draft(
        label=ColumnLabel(column="left", positive="yes"),
        features=(NumberColumn(column="age", upper=99), CategoryColumn(column="city", levels=("x", "y"))),
        split=Split(),
    )
    with sources.table(tmp_path / "t.parquet", "people") as people:
        found = columns_of(expression(people, draft, "train", 365))  # type: ignore[arg-type]
    told = {n: {(s.table, s.column, s.kind) for s in d} for n, d in found.direct.items()}
    assert told["age"] == {("people", "age", "IDENTITY")} and told["city"] == {("people", "city", "IDENTITY")}
    assert told["label·"] == {("people", "left", "IDENTITY")}


# ── the command line ─────────────────────────────────────────────────────────────────────────────

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def foedus(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "220")

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code: object = 0
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(str(code)), out, err

    return call


def test_a_person_asks_takes_draws_and_sends(
    ran: tuple[World, Simulated], world: World, model: str, foedus: Run, tmp_path: Path
) -> None:
    home, evidence = world.homes[NODE], ran[1].evidence
    code, out, _ = foedus("lineage", "show", home, "--check")
    assert code == 0 and model not in out and "of them as written" in out
    assert foedus("lineage", "query", home, "--model", model)[0] == 2  # the node has not heard of it
    code, out, _ = foedus("lineage", "take", home, evidence)
    assert code == 0 and "foedus.demo/log, signed" in out and " 0 known already" in out
    assert ", 0 new" not in out and ": 0 new" in foedus("lineage", "take", home, evidence)[1]
    code, out, _ = foedus("lineage", "query", home, "--model", model[:10], "--columns")
    assert code == 0
    for word in (
        f"model {model}",
        "dune-media: orders",
        "partner of birch-records",
        "orders.amount",
        "this store's owner",
    ):
        assert word in out
    somebody = str(pd.read_parquet(home / "orders.parquet")["customer"].iloc[0])
    code, out, _ = foedus("lineage", "query", home, "--customer", somebody)
    assert code == 0 and (model in out or "in no study" in out)
    code, _, err = foedus("lineage", "query", world.root / "server", "--customer", somebody)
    assert code == 2 and "own silo" in err
    picture = tmp_path / "lineage.svg"
    assert foedus("lineage", "draw", home, "--model", model, "--out", picture)[0] == 0
    assert "masked updates" in picture.read_text()
    assert foedus("lineage", "draw", home, "--study", "0" * 8, "--out", picture)[0] == 2
    assert foedus("lineage", "draw", home, "--out", tmp_path / "x.png")[0] == 2
    sent = tmp_path / "sent.jsonl"
    assert foedus("lineage", "send", home, "--to", sent)[0] == 0
    code, out, _ = foedus("lineage", "take", world.root / "server", sent, "--from", NODE)
    assert code == 0 and " 0 known already" in out
    assert foedus("lineage", "take", world.root / "server", sent)[0] == 2  # whose?
    code, _, err = foedus("lineage", "send", home, "--to", "https://127.0.0.1:1/x", "--retries", "0")
    assert code == 6 and "sent by the next call" in err
    assert "waiting" in foedus("lineage", "show", home)[1]


def test_a_bundle_of_another_coordinator_is_not_taken(
    ran: tuple[World, Simulated], world: World, node: Store, foedus: Run, tmp_path: Path
) -> None:
    forged, before = tmp_path / "forged.zip", node.size
    with zipfile.ZipFile(ran[1].evidence) as old, zipfile.ZipFile(forged, "w") as new:
        for name in old.namelist():
            new.writestr(
                name,
                old.read(name).replace(b'"COMPLETE"', b'"FAIL"')
                if name == "lineage.jsonl"
                else old.read(name),
            )
    code, _, err = foedus("lineage", "take", world.homes[NODE], forged)
    assert code == 4 and "lineage.jsonl" in err and node.size == before


def masks(foedus: Run, home: Path, **options: Any) -> tuple[int, str, str]:
    frame = pd.DataFrame({"age": [1, 2, 3, 4] * 5, "name": ["x"] * 20, "spend": ["y"] * 20})
    frame.to_csv(home / "people.csv", index=False)
    k = options.get("k", 10)  # the treaty's least
    (home / "policy.yaml").write_text(
        f"k: {k}\nmethod: mondrian\ncolumns:\n  age: {{role: quasi-identifier}}\n  name: {{role: identifying}}\n"
        "  spend: {role: insensitive}\n"
    )
    more = options.get("more", ())
    return foedus(
        "mask", home / "people.csv", "--policy", home / "policy.yaml", "--out", home / "masked.csv", *more
    )


def test_a_masked_table_is_in_the_lineage_of_the_node_it_lies_in(
    world: World, node: Store, foedus: Run
) -> None:
    home = world.homes[NODE]
    assert masks(foedus, home)[0] == 0
    *_, start, end = node.events()
    assert (start.event["eventType"], end.event["eventType"]) == ("START", "COMPLETE")
    (made,) = end.event["outputs"]
    facet = e.facet_of(made, "foedus_masking")
    assert facet["k"] == 10 and facet["columns"] == {
        "age": "quasi-identifier",
        "name": "identifying",
        "spend": "insensitive",
    }
    fields = e.facet_of(made, "columnLineage")["fields"]
    assert {n: f["inputFields"][0]["transformations"][0]["masking"] for n, f in fields.items()} == {
        "age": True,
        "spend": False,
    }
    transcribed(end.event)
    (home / "masked.csv").unlink()
    code, _, _ = masks(foedus, home, k=21)
    assert code in (2, 3) and not (home / "masked.csv").exists()
    *_, last = node.events()
    assert last.event["eventType"] == "FAIL"


def test_a_masked_table_elsewhere_is_noted_if_told_where(
    world: World, node: Store, foedus: Run, tmp_path: Path
) -> None:
    code, out, _ = masks(foedus, tmp_path)
    assert code == 0 and "of no node" in out
    (tmp_path / "masked.csv").unlink()
    before = node.size
    assert masks(foedus, tmp_path, more=("--node", world.homes[NODE]))[0] == 0
    assert node.size == before + 2
    *_, last = node.events()
    assert last.event["outputs"][0]["name"] == "masked.csv"  # the path elsewhere is nobody's business
    foedus("pseudonyms", "key", "new", tmp_path / "k.key")
    code, _, _ = foedus("pseudonyms", "apply", tmp_path / "people.csv", "--column", "name:text", "--purpose", "dpv:Marketing",
                        "--key", tmp_path / "k.key", "--out", tmp_path / "p.csv", "--node", world.homes[NODE])  # fmt: skip
    *_, last = node.events()
    columns = e.facet_of(last.event["outputs"][0], "foedus_masking")["columns"]
    assert code == 0 and columns["name"] == "pseudonym of a text" and columns["age"] == "as it was"
