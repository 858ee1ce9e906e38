"""A study that counts: its table leaves through the union gate, and both verifiers hold the server to that."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bundles import Tampered
from support.orders import PURPOSE, copy_of, make_count, no_noise, order_log, small_world
from support.sums import scratch

import foedus.verify_foedus as one_file
from foedus.clients.cohort import Cohorts, ask_of
from foedus.clients.counter import Counter
from foedus.clients.home import Home
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.consent import ConsentRegister
from foedus.compliance.gate import UNDER_K, least_shown
from foedus.demo.simulate import Simulated, prepare, simulate
from foedus.demo.world import World
from foedus.documents import Envelope
from foedus.errors import FoedusError, InputError, Refused
from foedus.federation.counting import CountDraft, CountStudy
from foedus.federation.fitting import resolve
from foedus.federation.limits import check_against
from foedus.federation.study import load_any, load_draft, parse
from foedus.federation.tasks import count
from foedus.federation.verification import verify
from foedus.privacy.ledger import Ledger
from foedus.privacy.noise import Keystream, discrete_gaussian
from foedus.server.checkpoint import Checkpoint
from foedus.server.coordinator import conduct

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def by_columns(**changes: Any) -> CountDraft:
    """A study of a table of customers."""
    keys = [
        {"column": "city", "groups": {"north": ["Oslo", "Bergen"], "south": ["Rome"]}},
        {"column": "age", "cuts": [30, 60]},
    ]
    return make_count(count={"by": keys} | changes)


@pytest.fixture(scope="module")
def counted_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("counts") / "world", make_count())


@pytest.fixture(scope="module")
def run(good_count: Any) -> tuple[World, Simulated]:
    return good_count.world, good_count.run


@pytest.fixture
def world(counted_world: World) -> Iterator[World]:
    folder = scratch()
    yield copy_of(counted_world, folder / "world")
    shutil.rmtree(folder)


def released(found: Simulated) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads((found.case.out / "table.json").read_bytes())["payload"]
    return payload


def truth(world: World, recency_cuts: Any = (30, 90, 365), order_cuts: Any = (4, 8, 16)) -> np.ndarray:
    """The exact counts, by pandas: orders of those who consent, up to the day, in the time of retention."""
    found = []
    for path in world.homes.values():
        orders = pd.read_parquet(path / "orders.parquet")
        ask = ask_of(Home.load(path), PURPOSE, order_log=True)
        cohort = Cohorts(ConsentRegister(path / "consent.db")).of(
            ask, pd.Timestamp.now("UTC").to_pydatetime()
        )
        orders["customer"] = orders["customer"].astype(str)
        days = orders[orders["customer"].isin(cohort.frame["subject"])].groupby(["customer", "date"]).size()
        days = days.reset_index().query("date < @d", local_dict={"d": date(2024, 3, 1)})
        each = days.groupby("customer")["date"].agg(["max", "size"])
        recency = (pd.Timestamp(2024, 3, 1) - pd.to_datetime(each["max"])).dt.days
        found.append(
            pd.DataFrame(
                {"r": np.digitize(recency, recency_cuts), "o": np.digitize(each["size"], order_cuts)}
            )
        )
    both = pd.concat(found)
    width = len(order_cuts) + 1
    return np.bincount(both["r"] * width + both["o"], minlength=width * (len(recency_cuts) + 1))


# ── a run ────────────────────────────────────────────────────────────────────────────────────────


def test_cells_of_k_people_or_more_are_shown_and_both_verifiers_recompute_them(
    run: tuple[World, Simulated], capsys: pytest.CaptureFixture[str]
) -> None:
    world, found = run
    payload, exact = released(found), truth(world)
    table = payload["table"]
    assert (table["k"], table["under_k"], len(table["cells"])) == (10, 1e-6, 16)
    shown = {i: c for i, c in enumerate(table["cells"]) if c["count"] is not None}
    assert 3 <= len(shown) == table["shown"] < 16
    for place, cell in shown.items():
        assert exact[place] >= 10 and cell["count"] >= table["least"]
        assert abs(cell["count"] - exact[place]) < 6 * table["noise"]
    for place in set(range(16)) - set(shown):
        assert exact[place] < table["least"] + 6 * table["noise"]
        assert table["cells"][place] == {"cell": table["cells"][place]["cell"], "count": None}
    assert "anonymous" not in json.dumps(payload).lower()

    report = verify(found.evidence, own_treaty=world.server / "treaty.json")
    assert report.metrics["shown"] == len(shown) and report.epsilon <= 8
    assert one_file.main([str(found.evidence), "--treaty", str(world.server / "treaty.json")]) == 0
    assert f"{len(shown)} of 16 cells pass the gate" in capsys.readouterr().out


def test_the_count_is_in_every_ledger_and_costs_what_the_release_says(run: tuple[World, Simulated]) -> None:
    world, found = run
    for path in world.homes.values():
        spent = Ledger(path / "ledger.db").epsilon(1e-5, study=found.case.study_envelope.digest)
        assert spent == pytest.approx(released(found)["epsilon"], abs=1e-6)


def test_without_noise_counts_sums_and_means_are_exact(world: World) -> None:
    found = simulate(world, make_count(), sampler=no_noise)
    table, exact = released(found)["table"], truth(world)
    for place, cell in enumerate(table["cells"]):
        assert cell["count"] == (exact[place] if exact[place] >= table["least"] else None)
    whole = [c for c in table["cells"] if c["count"] is not None]
    assert all(0 < c["mean"] < 800 and c["sum"] == pytest.approx(c["mean"] * c["count"]) for c in whole)


def test_4_and_4_and_4_and_4_pass_where_no_silo_alone_would(tmp_path: Path) -> None:
    """Cells that no silo could show alone, at k = 10, are shown once they are counted over all."""
    by = [{"name": "recency", "cuts": [20, 40, 60, 120]}, {"name": "orders", "cuts": [4, 6, 8, 10, 12, 15]}]
    draft = make_count(count={"as_of": "2024-03-01", "by": by}, privacy={"epsilon": 50.0, "delta": 9e-4})
    world = small_world(tmp_path / "world", draft)
    recency, orders = [k["cuts"] for k in by]
    alone = [truth(replace(world, homes={"one": path}), recency, orders) for path in world.homes.values()]
    found = simulate(world, draft, sampler=no_noise)
    shown = np.array([c["count"] is not None for c in released(found)["table"]["cells"]])
    assert (shown & (np.max(alone, axis=0) < 10)).sum() >= 2


def test_a_lost_silo_costs_epsilon_and_the_margin_follows_those_who_answered(world: World) -> None:
    found = simulate(world, make_count(), drop=lambda node, kind, _: node == 103 and kind == "query.vector")
    table = released(found)["table"]
    assert table["silos"] == 3
    report = verify(found.evidence)
    assert report.survivors[1] == tuple(sorted(world.homes))[:3]


@pytest.mark.parametrize("mode", ["local", "central"])
def test_both_accept_counts_under_other_noise(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by = [{"name": "orders", "cuts": [4, 8]}]
    draft = make_count(count={"as_of": "2024-03-01", "by": by}, privacy={"epsilon": 8.0, "mode": mode})
    world = small_world(tmp_path / "world", draft, orders=order_log(500))
    found = simulate(world, draft)
    report = verify(found.evidence, own_treaty=world.server / "treaty.json")
    assert report.metrics["shown"] == released(found)["table"]["shown"] >= 1
    assert one_file.main([str(found.evidence), "--treaty", str(world.server / "treaty.json")]) == 0
    assert f"{mode} noise" in capsys.readouterr().out


def test_a_server_that_is_killed_with_the_sum_in_hand_goes_on_to_the_same_table(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    grid, case = prepare(world, make_count())
    real = Checkpoint.keep

    def deadly(kept: Checkpoint, name: str, value: Any) -> None:
        real(kept, name, value)
        if name == "receipts":
            raise Killed(name)

    with monkeypatch.context() as patch, pytest.raises(Killed, match="receipts"):
        patch.setattr(Checkpoint, "keep", deadly)
        conduct(grid, case)
    again = replace(case, batches=[], sums=[])
    report = verify(conduct(grid, again))
    assert report.metrics["table"] == json.loads((again.out / "table.json").read_bytes())["payload"]["table"]
    assert all(
        Ledger(path / "ledger.db").epsilon(1e-5) == pytest.approx(report.epsilon, abs=1e-6)
        for path in world.homes.values()
    )


# ── who cheats ───────────────────────────────────────────────────────────────────────────────────


def place_of(table: dict[str, Any], *, shown: bool) -> int:
    return next(i for i, c in enumerate(table["cells"]) if (c["count"] is not None) == shown)


def under_the_gate(p: dict[str, Any]) -> None:
    cell = p["table"]["cells"][place_of(p["table"], shown=False)]
    cell |= {"count": 14.0, "sum": 1.0, "sum_noise": 1.0, "mean": 1.0, "mean_noise": 1.0}
    p["table"]["shown"] += 1


def hidden(p: dict[str, Any]) -> None:
    cell = p["table"]["cells"][place_of(p["table"], shown=True)]
    for name in set(cell) - {"cell", "count"}:
        del cell[name]
    cell["count"] = None
    p["table"]["shown"] -= 1


def first_shown(p: dict[str, Any]) -> dict[str, Any]:
    cell: dict[str, Any] = p["table"]["cells"][place_of(p["table"], shown=True)]
    return cell


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a cell under the gate is shown": under_the_gate,
    "a cell is held back": hidden,
    "a count is altered": lambda p: first_shown(p).update(count=first_shown(p)["count"] + 1),
    "a mean is altered": lambda p: first_shown(p).update(mean=first_shown(p)["mean"] + 1),
    "a field is added": lambda p: first_shown(p).update(true=12),
    "labels change places": lambda p: p["table"]["cells"][0]["cell"].reverse(),
    "a cell is left out": lambda p: p["table"]["cells"].pop(),
    "k is lowered": lambda p: p["table"].update(k=2),
    "the gate is lowered": lambda p: p["table"].update(least=1.0),
    "the noise is belittled": lambda p: p["table"].update(noise=0.1),
    "the bound is belittled": lambda p: p["table"].update(under_k=1e-9),
    "another column": lambda p: p["table"].update(by=["recency", "spend"]),
    "other cuts": lambda p: p["count"]["by"][0]["cuts"].append(1000),
    "another purpose": lambda p: p.update(purpose="dpv:Marketing"),
    "ε is belittled": lambda p: p.update(epsilon=0.1),
}


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_server_that_releases_another_table_is_found_out_by_both(
    run: tuple[World, Simulated], lie: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, found = run
    bundle = Tampered(found.evidence, world)
    bundle.release("table.json", LIES[lie])
    path, treaty = bundle.write(tmp_path / "evidence.zip"), world.server / "treaty.json"
    with pytest.raises(FoedusError, match=r"check 9 \(release\) fails"):
        verify(path, own_treaty=treaty)
    assert one_file.main([str(path), "--treaty", str(treaty)]) == 1
    assert "FAILS        9 release" in capsys.readouterr().out


def test_a_server_that_alters_the_sum_to_pass_a_cell_is_contradicted_by_the_nodes(
    run: tuple[World, Simulated], tmp_path: Path
) -> None:
    world, found = run
    bundle = Tampered(found.evidence, world)
    total = next(json.loads(line)["total"] for line in bundle.files["rounds.jsonl"].splitlines())
    place = place_of(released(found)["table"], shown=False)
    total[place] += 10**5
    digest = hashlib.sha256(np.array(total, dtype="<i8").tobytes()).hexdigest()
    bundle.lines("rounds.jsonl", lambda rounds: rounds[0].update(total=total))
    state, silos = np.array(total), len(found.case.sums[0].survivors)
    table = count.table(state, found.study, world.treaty, silos)
    bundle.release("table.json", lambda p: p.update(table=table))
    bundle.log(
        lambda log: [e["details"].update(sum=digest) for e in log if e["action"] == "round.summed"] and None
    )
    with pytest.raises(FoedusError, match=r"check 10 \(receipts\) fails"):
        verify(bundle.write(tmp_path / "evidence.zip"))


def refusals(world: World) -> set[str]:
    codes = set()
    for name, path in world.homes.items():
        for entry in AuditLog(path / "audit.db", f"foedus node {name}").entries():
            if entry.record["action"] == "refused":
                codes.add(entry.record["details"]["code"])
    return codes


@pytest.mark.parametrize(("signed", "code"), [(False, "VERIFICATION"), (True, "K_UNDER_FLOOR")])
def test_a_node_refuses_a_k_that_the_server_or_the_author_lowered(
    world: World, signed: bool, code: str
) -> None:
    grid, case = prepare(world, make_count())
    payload = dict(case.study_envelope.payload) | {"k": 3}
    altered = Envelope("study", payload, dict(case.study_envelope.signatures))
    if signed:
        altered = Envelope("study", payload).signed("dana", world.key("dana"))
    case.study_envelope, case.study = altered, parse(altered)
    if signed:
        case.approvals = [world.approve(case.study, altered.digest, a) for a in world.treaty.approvers]
    with pytest.raises(FoedusError):
        conduct(grid, case)
    assert refusals(world) == {code}
    assert all(Ledger(path / "ledger.db").epsilon(1e-5) == 0 for path in world.homes.values())


def test_a_k_under_the_treatys_is_refused_and_left_out_it_is_the_treatys(counted_world: World) -> None:
    treaty, digest = counted_world.treaty, counted_world.treaty_envelope.digest
    assert resolve(make_count(), treaty, digest).k == treaty.min_group == 10
    with pytest.raises(Refused, match="k = 9 is under the treaty's 10") as refused:
        resolve(make_count(k=9), treaty, digest)
    assert refused.value.code == "K_UNDER_FLOOR"
    with pytest.raises(Refused, match="more than the 40000 customers"):
        resolve(make_count(k=40_001), treaty, digest)
    stricter = treaty.model_copy(update={"min_group": 30})
    with pytest.raises(Refused, match="under the treaty's 30"):
        check_against(resolve(make_count(k=20), treaty, digest), stricter, digest)


# ── the gate ─────────────────────────────────────────────────────────────────────────────────────


@given(
    k=st.integers(2, 500), partners=st.integers(1, 8), cells=st.integers(2, 20_000), sigma=st.integers(4, 400),
    silos=st.integers(2, 50),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_gate_keeps_its_bound(k: int, partners: int, cells: int, sigma: int, silos: int) -> None:
    """By the Gaussian tail, which the discrete Gaussian's does not pass: over all cells at most `UNDER_K`."""
    noise = sigma * math.sqrt(silos)
    least = least_shown(k, partners, noise, cells)
    excess = least - (k - 1) * partners
    assert cells * math.erfc(excess / noise / math.sqrt(2)) / 2 <= UNDER_K
    assert least_shown(k + 1, partners, noise, cells) == least + partners
    assert least_shown(k, partners, 2 * noise, cells) > least


def test_noise_passes_a_margin_no_more_often_than_the_bound_says() -> None:
    """With power: a margin for 1 in 20 of 50 cells of k − 1 people, 400 tables; half the margin must fail."""
    sigma, silos, cells, tables = 12, 4, 50, 400
    noise = sum(discrete_gaussian(sigma, cells * tables, Keystream()) for _ in range(silos)).reshape(
        tables, cells
    )
    margin = sigma * math.sqrt(silos) * math.sqrt(2 * math.log(cells / 0.05))
    assert (noise >= margin).any(axis=1).mean() <= 0.05 + 4 * math.sqrt(0.05 / tables)
    assert (noise >= margin / 2).any(axis=1).mean() > 0.3


def test_a_person_at_two_partners_does_not_make_two_people(counted_world: World) -> None:
    """Without an attestation one person may count once at each partner."""
    treaty = counted_world.treaty
    study = resolve(make_count(), treaty, counted_world.treaty_envelope.digest)
    overlap = treaty.overlap.model_copy(update={"max_partners_per_customer": 4})
    scale = 2**study.privacy.scale_bits_count
    more = count.least(study, treaty.model_copy(update={"overlap": overlap}), 4) - count.least(
        study, treaty, 4
    )
    assert more == 9 * 3 * scale


# ── a silo's own table ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Frame:
    frame: pd.DataFrame

    @contextmanager
    def orders(self, names: Any, text: Collection[str] = ()) -> Iterator[ibis.Table]:
        yield ibis.memtable(pa.Table.from_pandas(self.frame, preserve_index=False))


def counted(frame: pd.DataFrame, world: World, draft: CountDraft) -> np.ndarray:
    study = resolve(draft, world.treaty, world.treaty_envelope.digest)
    counter = Counter(Frame(frame), study, 1096, no_noise)
    cohort = pd.DataFrame({"subject": sorted(set(frame["customer"]) - {"gone"})})
    found = counter.contribution(study.round(1, world.treaty), counter.dataset("all", cohort), np.zeros(0))
    scale = 2**study.privacy.scale_bits_count
    whole = np.asarray(found.chunk(0, found.size), dtype=np.int64)
    return whole / scale


GOOD = pd.DataFrame(
    {
        "customer": ["a", "b", "c", "d", "d", "gone"],
        "city": ["Oslo", "Rome", "Bergen", "Rome", "Rome", "Rome"],
        "age": [29.0, 30.0, 59.9, 60.0, 60.0, 10.0],
        "spend": [10.0, 20.0, 500.0, 30.0, 50.0, 1.0],
    }
)


def test_a_customer_of_the_cohort_is_counted_once_in_the_group_of_its_values(counted_world: World) -> None:
    assert counted(GOOD, counted_world, by_columns()).tolist() == [1, 1, 0, 0, 1, 1]
    by = [{"column": "city", "levels": ["Rome"], "other": "elsewhere"}]
    of = {"column": "spend", "lower": 0, "upper": 100}
    found = counted(GOOD, counted_world, make_count(count={"by": by, "of": of}))
    assert found[:2].tolist() == [2, 2]
    assert found[2:] == pytest.approx(
        [(-0.6) + (-0.2), (-0.8) + 1.0], abs=0.04
    )  # 500 counts as 100, 30 and 50 as 40


def test_an_empty_cohort_counts_nobody(counted_world: World) -> None:
    assert counted(GOOD[GOOD["customer"] == "gone"], counted_world, by_columns()).tolist() == [0] * 6


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("city", "Paris", "'city' has a missing value, or one that the study has no group for, in 1 rows"),
        ("city", None, "'city' has a missing value"),
        ("age", np.nan, "'age' has a missing value"),
        ("age", np.inf, "'age' has a missing value"),
    ],
)
def test_a_value_without_a_group_is_refused_unless_the_study_has_a_place_for_it(
    counted_world: World, column: str, value: Any, said: str
) -> None:
    frame = GOOD.copy()
    frame.loc[1, column] = value
    with pytest.raises(InputError, match=said) as error:
        counted(frame, counted_world, by_columns())
    assert "Paris" not in error.value.message + error.value.remedy
    keys = [key.model_dump(mode="json") | {"other": "other"} for key in by_columns().count.by]
    assert counted(frame, counted_world, make_count(count={"by": keys})).sum() == 4


def test_a_customer_in_two_cells_or_a_missing_quantity_is_refused(counted_world: World) -> None:
    frame = GOOD.copy()
    frame.loc[4, "city"] = "Oslo"
    with pytest.raises(InputError, match="1 customers have rows in different cells"):
        counted(frame, counted_world, by_columns())
    frame = GOOD.assign(spend=[1.0, np.nan, 1.0, 1.0, 1.0, 1.0])
    with pytest.raises(InputError, match="'spend' is missing, infinite or no number in 1 rows"):
        counted(frame, counted_world, by_columns(of={"column": "spend", "upper": 100}))


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_one_customer_moves_the_sum_by_no_more_than_is_paid_for(
    counted_world: World, values: list[float], seed: int
) -> None:
    study = resolve(make_count(), counted_world.treaty, counted_world.treaty_envelope.digest)
    cells = np.random.default_rng(seed).integers(0, 16, len(values))
    scale = 2**study.privacy.scale_bits_count
    for one in range(len(values)):
        alone = count.contributions(cells[one : one + 1], np.array(values[one : one + 1]), study, Keystream())
        assert np.linalg.norm(alone) <= study.shape.sensitivity(study.privacy.scale_bits_count) * (1 + 1e-12)
        assert alone[:16].sum() == scale and np.count_nonzero(alone) <= 2


# ── drafts ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"by": []}, "at least 1 item"),
        ({"by": [{"column": "a", "levels": []}]}, "at least 1 item"),
        ({"by": [{"column": "a", "levels": ["x"]}]}, "1 cells; a table has from 2"),
        ({"by": [{"column": c, "cuts": list(range(150))} for c in "abc"]}, "cells; a table has from 2 to 16384"),
        ({"by": [{"column": "a", "levels": ["x", "x"]}]}, "a label is there twice"),
        ({"by": [{"column": "a", "levels": ["x", "y"], "other": "x"}]}, "a label is there twice"),
        ({"by": [{"column": "a", "groups": {"x": ["1", "2"], "y": ["2"]}}]}, "a value is in two groups"),
        ({"by": [{"column": "a", "groups": {"x": ["1"], "y": []}}]}, "a group without a value"),
        ({"by": [{"column": "a", "cuts": [2, 1]}]}, "cuts must rise"),
        ({"by": [{"column": "a", "cuts": [1], "levels": ["x"]}]}, "exactly one of levels, groups, cuts"),
        ({"by": [{"column": "a", "name": "orders", "cuts": [1]}]}, "either column or name"),
        ({"by": [{"name": "orders", "cuts": [1]}]}, "name goes with as_of"),
        ({"as_of": "2024-01-01"}, "name goes with as_of"),
        ({"by": [{"name": "orders", "levels": ["1"]}], "as_of": "2024-01-01"}, "is grouped by cuts"),
        ({"as_of": "2024-13-01", "by": [{"name": "orders", "cuts": [1]}]}, "month must be in"),
        ({"of": {"column": "spend", "lower": 5, "upper": 5}}, "lower < upper"),
        ({"of": {"column": "spend", "upper": float("nan")}}, "finite"),
        ({"by": [{"column": "a", "cuts": [1]}, {"column": "a", "cuts": [2]}]}, "is there twice"),
    ],
)  # fmt: skip
def test_a_draft_that_is_none_is_refused_with_a_sentence(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        by_columns(**change)


def test_a_level_of_a_hierarchy_becomes_groups(tmp_path: Path) -> None:
    (tmp_path / "city.csv").write_text("Oslo;north;*\nBergen;north;*\nRome;south;*\n")
    text = (ROOT / "examples" / "counts.yaml").read_text()
    assert isinstance(load_any(ROOT / "examples" / "counts.yaml"), CountDraft)
    by = "  by:\n    - {column: city, hierarchy: city.csv, level: LEVEL}\n    - {column: age, cuts: [30]}\n"
    text = text[: text.index("  as_of")] + by + text[text.index("k: 20") :]
    (tmp_path / "study.yaml").write_text(text.replace("LEVEL", "1"))
    key = load_any(tmp_path / "study.yaml").count.by[0]  # type: ignore[union-attr]
    assert key.groups == {"north": ("Oslo", "Bergen"), "south": ("Rome",)} and key.labels == (
        "north",
        "south",
    )
    (tmp_path / "study.yaml").write_text(text.replace("LEVEL", "3"))
    with pytest.raises(InputError, match="no level 3"):
        load_any(tmp_path / "study.yaml")
    with pytest.raises(InputError, match="a counting study trains no model"):
        load_draft(ROOT / "examples" / "counts.yaml")


def test_a_signed_study_reads_the_same_whatever_the_order_of_its_groups(counted_world: World) -> None:
    groups = {"z": ["1"], "a": ["2"], "\U0001d54f": ["3"], "\uff21": ["4"]}
    study = resolve(
        make_count(count={"by": [{"column": "c", "groups": groups}]}),
        counted_world.treaty,
        counted_world.treaty_envelope.digest,
    )
    again = parse(Envelope.loads(study.envelope().dumps()))
    assert isinstance(again, CountStudy)
    assert again.count.by[0].labels == study.count.by[0].labels
    assert one_file.labels_of(study.model_dump(mode="json")["count"]["by"][0]) == list(
        study.count.by[0].labels
    )
