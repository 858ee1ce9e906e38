"""What one silo alone lets out of its table, and what it may let out because the union has k."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
import typer
import yaml
from support.bundles import Tampered
from support.orders import PURPOSE, small_world

from foedus import cli
from foedus.clients.home import Home
from foedus.clients.release_gate import RELEASED, ReleaseGate, content, node_of
from foedus.clients.union_export import MAX_AGE, export
from foedus.compliance import policy as uses
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.masking.measures import Classes
from foedus.compliance.policy import Decision
from foedus.demo.data import Orders
from foedus.demo.simulate import Simulated, simulate
from foedus.demo.world import World
from foedus.errors import FoedusError, InputError, Refused
from foedus.federation.counting import count_draft

NO_PYCANON = "pycanon pins an older pandas: make bench-union runs this"
CITIES, PLANS = ["Ghent", "Bruges", "Namur", "Arlon"], ["basic", "plus", "gold"]


def customers(number: int = 900, *, seed: int = 3) -> pd.DataFrame:
    """A table of customers; some cities and ages are rare."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "customer": [f"C{i:05}" for i in range(number)],
            "city": rng.choice(CITIES, number, p=[0.6, 0.3, 0.08, 0.02]),
            "age": rng.integers(18, 80, number).astype(float),
            "plan": rng.choice(PLANS, number),
            "mail": [f"someone{i}@example.com" for i in range(number)],
            "date": pd.Timestamp("2024-01-01").date(),
            "amount": 1.0,
        }
    )


def a_draft(**changes: Any) -> Any:
    by = [
        {"column": "city", "levels": CITIES},
        {"column": "age", "cuts": [25, 35, 45, 55, 65]},
        {"column": "plan", "levels": PLANS},
    ]
    content: dict[str, Any] = {
        "title": "customers by city, age and plan", "author": "dana", "purpose": PURPOSE, "count": {"by": by},
        "privacy": {"epsilon": 20.0}, "trip_seconds": 0.5,
    }  # fmt: skip
    return count_draft(content | changes, Path())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Simulated]:
    draft = a_draft()
    world = small_world(
        tmp_path_factory.mktemp("union") / "world",
        draft,
        orders=Orders(customers(), "made", split_column=False),
    )
    return world, simulate(world, draft)


def released(home: Path) -> list[dict[str, Any]]:
    found = AuditLog(home / "audit.db", f"foedus node {home.name}").entries()
    return [e.record["details"] for e in found if e.record["action"] == RELEASED]


# ── on the union ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def exported(
    run: tuple[World, Simulated], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pd.DataFrame]:
    world, found = run
    folder = tmp_path_factory.mktemp("rows")
    for name, path in world.homes.items():
        export(Home.load(path), found.evidence, folder / f"{name}.parquet", keep=["amount"])
    return {name: pd.read_parquet(folder / f"{name}.parquet") for name in world.homes}


QUASI = ["city", "age", "plan"]


def test_the_union_has_k_where_silos_have_not(exported: dict[str, pd.DataFrame]) -> None:
    union = pd.concat(exported.values(), ignore_index=True)
    assert Classes.of(union, QUASI).size.min() >= 10
    alone = [Classes.of(rows, QUASI) for rows in exported.values()]
    small = sum(int(found.size[found.size < 10].sum()) for found in alone)
    assert small > 30 and min(found.size.min() for found in alone) < 10
    assert set(union.columns) == {*QUASI, "amount"}


def test_the_union_has_k_by_pycanon(exported: dict[str, pd.DataFrame]) -> None:
    anonymity = pytest.importorskip("pycanon.anonymity", reason=NO_PYCANON)
    union = pd.concat(exported.values(), ignore_index=True).astype({c: "str" for c in QUASI})
    assert anonymity.k_anonymity(union, QUASI) >= 10
    assert min(anonymity.k_anonymity(rows.astype("str"), QUASI) for rows in exported.values()) < 10


def test_more_cells_are_kept_than_each_silo_could_keep_alone(
    run: tuple[World, Simulated], exported: dict[str, pd.DataFrame]
) -> None:
    """The same k, without noise in the silos' favour: a cell counts for them if any of them has k in it."""
    union = pd.concat(exported.values()).groupby(QUASI, observed=True).ngroups
    alone = (
        pd.concat(exported.values(), keys=exported)
        .groupby(level=0)
        .apply(lambda rows: rows.groupby(QUASI).filter(lambda g: len(g) >= 10))
    )
    assert union >= 1.3 * alone.groupby(QUASI).ngroups


def test_rows_are_in_no_order_that_tells_who_is_who_and_each_export_is_logged(
    run: tuple[World, Simulated], exported: dict[str, pd.DataFrame]
) -> None:
    world, found = run
    for name, rows in exported.items():
        assert rows.equals(rows.sort_values(list(rows.columns), ignore_index=True))
        (told,) = [d for d in released(world.homes[name]) if d["what"] == "union"]
        assert (told["k"], told["study"]) == (10, found.case.study_envelope.digest)
        assert (told["table"], told["rows"]) == (content(rows), len(rows))


def test_the_same_export_again_is_the_same_and_another_is_refused(
    run: tuple[World, Simulated],
    exported: dict[str, pd.DataFrame],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world, found = run
    home = Home.load(world.homes["dune-media"])
    again = tmp_path / "again.parquet"
    with pytest.raises(SystemExit) as end:
        cli.main(["mask-union", str(home.path), str(found.evidence), "--keep", "amount", "--out", str(again)])
    said = " ".join(capsys.readouterr().out.split())
    assert (
        end.value.code == 0
        and "k = 10 on the union" in said
        and "only together with the other silos' rows" in said
    )
    assert pd.read_parquet(again).equals(exported["dune-media"]) and again.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Refused, match="could be intersected") as refused:
        export(home, found.evidence, tmp_path / "other.parquet")
    assert refused.value.code == "SECOND_PARTITION" and not (tmp_path / "other.parquet").exists()


def test_evidence_that_does_not_hold_is_not_current_or_is_of_another_kind_vouches_for_nothing(
    run: tuple[World, Simulated], tmp_path: Path
) -> None:
    world, found = run
    home = Home.load(world.homes["cedar-sound"])
    out = tmp_path / "rows.csv"
    bundle = Tampered(found.evidence, world)

    def lift(p: dict[str, Any]) -> None:
        for cell in p["table"]["cells"]:
            cell["count"] = cell["count"] or 99.0

    bundle.release("table.json", lift)
    with pytest.raises(FoedusError, match="does not pass the gate"):
        export(home, bundle.write(tmp_path / "evidence.zip"), out)
    with pytest.raises(Refused, match="who has withdrawn since") as refused:
        export(home, found.evidence, out, now=datetime.now(UTC) + MAX_AGE + timedelta(hours=1))
    assert refused.value.code == "COUNT_TOO_OLD"
    for keep, said in ((["mail"], "'mail' names|seems to name"), (["customer"], "names the customers"), (["x"], "no column 'x'"),
                       (["age"], "exported as its groups")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            export(home, found.evidence, out, keep=keep)
    assert not out.exists()


def test_a_silo_whose_vector_is_not_in_the_sum_exports_nothing(
    run: tuple[World, Simulated], tmp_path: Path
) -> None:
    world, _ = run
    lost = "dune-media"
    found = simulate(world, a_draft(), drop=lambda node, kind, _: node == 103 and kind == "query.vector")
    with pytest.raises(Refused, match="had no part in that count") as refused:
        export(Home.load(world.homes[lost]), found.evidence, tmp_path / "rows.csv")
    assert refused.value.code == "NOT_COUNTED"


# ── alone ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Path]:
    """A node's directory with a table of customers and a policy in it."""
    world = small_world(
        tmp_path / "world", a_draft(), orders=Orders(customers(400), "made", split_column=False)
    )
    home = world.homes["aster-music"]
    pd.read_parquet(home / "orders.parquet").drop(columns=["date", "amount"]).to_parquet(
        home / "customers.parquet"
    )
    policy(home, k=12)
    yield home


def policy(home: Path, **changes: Any) -> None:
    columns = {
        "customer": {"role": "identifying"}, "mail": {"role": "identifying"},
        "city": {"role": "quasi-identifier"},
        "age": {"role": "quasi-identifier", "hierarchy": {"intervals": [10, 20, 40]}},
        "plan": {"role": "sensitive", "l": 2},
    }  # fmt: skip
    rules = {"k": 12, "method": "local", "suppression_limit": 0.5, "columns": columns} | changes
    (home / "policy.yaml").write_text(yaml.safe_dump(rules))


def mask(home: Path, out: str, *more: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = 0
    try:
        cli.main(
            [
                "mask",
                str(home / "customers.parquet"),
                "--policy",
                str(home / "policy.yaml"),
                "--out",
                str(home / out),
                *more,
            ]
        )
    except SystemExit as end:
        code = int(str(end.code or 0))
    said = capsys.readouterr()
    return code, " ".join((said.out + said.err).split())


def test_a_nodes_table_goes_through_its_gate(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert node_of(shop / "customers.parquet") == shop
    code, said = mask(shop, "masked.parquet", capsys=capsys)
    assert code == 0 and "through the gate of" in said
    (told,) = released(shop)
    assert (told["k"], told["by"]) == (12, ["age", "city"]) and told["smallest"] >= 12
    assert told["table"] == content(pd.read_parquet(shop / "masked.parquet"))
    # The same again is the same; another partition of the same rows is not.
    assert mask(shop, "again.parquet", capsys=capsys)[0] == 0
    policy(shop, k=25)
    code, said = mask(shop, "other.parquet", capsys=capsys)
    assert code == 3 and "could be intersected" in said and not (shop / "other.parquet").exists()
    # Turned around it is the same version; with a row less it is another, and that is told.
    frame = pd.read_parquet(shop / "customers.parquet")
    frame.iloc[::-1, ::-1].to_parquet(shop / "customers.parquet")
    assert mask(shop, "other.parquet", capsys=capsys)[0] == 3
    frame.iloc[1:].to_parquet(shop / "customers.parquet")
    code, said = mask(shop, "next.parquet", capsys=capsys)
    assert code == 0 and "1 other versions of this data were released" in said and len(released(shop)) == 3


def test_a_k_under_the_treatys_leaves_nothing(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy(shop, k=5)
    code, said = mask(shop, "masked.parquet", "--report", str(shop / "report.json"), capsys=capsys)
    assert code == 3 and "k = 5 is under the treaty's 10" in said
    assert (
        not (shop / "masked.parquet").exists() and not (shop / "report.json").exists() and not released(shop)
    )


def test_a_table_elsewhere_is_gated_with_its_node_and_says_so_without(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    pd.read_parquet(shop / "customers.parquet").to_parquet(elsewhere / "customers.parquet")
    policy(elsewhere, k=5)
    code, said = mask(elsewhere, "a.csv", "--node", str(shop), capsys=capsys)
    assert code == 3 and "under the treaty's 10" in said
    code, said = mask(elsewhere, "b.csv", capsys=capsys)
    assert code == 0 and "of no node" in said


def test_the_gate_counts_for_itself(shop: Path) -> None:
    """Whatever a report says: the smallest class of what is to leave is counted from it."""
    gate, frame = ReleaseGate(Home.load(shop)), pd.DataFrame({"city": ["a"] * 20 + ["b"] * 9})
    with pytest.raises(Refused, match="a class of 9 rows") as refused:
        gate.admit(frame, frame, ["city"], 10, "a table")
    assert refused.value.code == "K_NOT_HELD"
    with pytest.raises(Refused, match="more than the 29 customers"):
        gate.admit(frame, frame, ["city"], 30, "a table")
    with pytest.raises(InputError, match="no row is left"):
        gate.admit(frame, frame.iloc[:0], ["city"], 10, "a table")
    missing = pd.DataFrame({"city": ["a"] * 20 + [None]})  # pyCANON would group without it
    with pytest.raises(Refused, match="a class of 1 rows"):
        gate.admit(missing, missing, ["city"], 10, "a table")
    assert not released(shop)


# ── nothing around it ────────────────────────────────────────────────────────────────────────────

GATED = {"mask": "release_gate", "mask-union": "union_export and release_gate"}
STAYS = {
    "audit-privacy": "what an audit of simulated silos found: no customer's",
    "consent check-proof": "nothing: reads a proof",
    "consent proof": "one customer's own proof, for that customer",
    "consent receipt": "one customer's own receipt, for that customer",
    "demo": "a world whose every table the demo owns",
    "keygen": "a key",
    "ledger export": "the node's own ledger: ε and digests, no customer's",
    "ledger show": "the same, drawn",
    "lineage draw": "names of tables, cohorts and models: no customer's",
    "node score": "a customer and a score a row, at home and for home (mode 0600); in the audit log",
    "pseudonyms apply": "rows under pseudonyms, personal data still, for home (mode 0600)",
    **{
        f"report {what}": "sentences about a study, each with its log entry: no customer's"
        for what in ("dpia", "epsilon", "model-card", "page", "pipia", "ropa")
    },
    "report questions": "questions for an officer",
    "rights access": "one customer's own data, for that customer",
    "simulate": "silos whose every table the caller owns",
    "study results": "what passed the gate, or the model, as the server released it",
    "study revoke": "an approver's rejection",
    "study sign": "a study",
    "treaty sign": "a treaty",
}
WRITES = ("out", "report", "picture", "directory", "file")


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        where = f"{path} {name}".strip()
        if isinstance(command, click.Group):
            yield from commands(command, where)
        else:
            yield where, command


def test_every_command_that_writes_a_file_is_gated_or_writes_nothing_of_customers_for_others() -> None:
    every = dict(commands(typer.main.get_command(cli.app)))  # type: ignore[arg-type]
    writing = {
        name
        for name, command in every.items()
        if any(isinstance(p, click.Option) and p.name in WRITES for p in command.params)
    }
    strangers = writing - set(GATED) - set(STAYS)
    assert not strangers, f"write files and are on neither list: {sorted(strangers)}"
    assert set(GATED) <= writing and set(STAYS) <= set(every)


def test_tables_are_written_by_the_gated_and_the_named_only() -> None:
    """Whatever in clients/ or compliance/ turns a frame into a file is on this list."""
    root = Path(cli.__file__).parent
    found = {
        str(path.relative_to(root))
        for folder in ("clients", "compliance", "server", "federation")
        for path in (root / folder).rglob("*.py")
        if any(word in path.read_text() for word in (".to_csv(", ".to_parquet(", ".to_excel("))
    }
    assert {f.rpartition("foedus/")[2] for f in found} == {
        "clients/masking_cli.py",  # pseudonyms apply
        "clients/scoring.py",  # node score
        "compliance/masking/files.py",  # mask, mask-union
    }


# ── the policy of uses ───────────────────────────────────────────────────────────────────────────


def test_what_is_sensitive_leaves_only_where_it_differs(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = yaml.safe_load((shop / "policy.yaml").read_text())["columns"] | {"plan": {"role": "sensitive"}}
    policy(shop, columns=columns)
    code, said = mask(shop, "masked.parquet", capsys=capsys)
    assert code == 3 and "sensitive data may not leave so" in said and not released(shop)
    assert not (shop / "masked.parquet").exists()


def test_where_the_policy_allows_nothing_no_row_of_the_union_leaves(
    run: tuple[World, Simulated], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, found = run
    monkeypatch.setattr(uses, "decide", lambda use: Decision(False, "NOT_TODAY", "nothing today"))
    with pytest.raises(Refused, match="nothing today"):
        export(Home.load(next(iter(world.homes.values()))), found.evidence, tmp_path / "rows.parquet")
    assert not (tmp_path / "rows.parquet").exists()


def test_where_the_policy_allows_nothing_no_row_leaves(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uses, "decide", lambda use: Decision(False, "NOT_TODAY", "nothing today"))
    code, said = mask(shop, "masked.parquet", capsys=capsys)
    assert code == 3 and "nothing today" in said and not (shop / "masked.parquet").exists()
