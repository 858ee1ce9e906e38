"""A label that is misspelt, or says the same of everybody: whoever can act on it is told, and nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.nodes import SILENT, Rehearsal, assert_refused
from support.orders import PURPOSE, make_draft
from support.orders import small_world as build

from foedus.clients.app import LABEL_ONE_SIDED
from foedus.clients.features import load_raw
from foedus.clients.rehearsal import Silo
from foedus.demo.data import Orders
from foedus.errors import InputError
from foedus.federation.schema import ChurnLabel, ColumnLabel, NumberColumn, question
from foedus.federation.study import Draft, DraftPrivacy, Split, Training, draft_from

NODE = "aster-music"


def contracts(customers: int = 800) -> Orders:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "customer": [f"K{i:03d}" for i in range(customers)],
            "months": rng.uniform(0, 72, customers),
            "cancelled": rng.choice(["yes", "no"], customers),
        }
    )
    return Orders(frame, "contracts", split_column=False)


def asking(**label: Any) -> Draft:
    return Draft(
        title="who cancels",
        author="dana",
        purpose=PURPOSE,
        label=ColumnLabel(column="cancelled", **label),
        features=(NumberColumn(column="months", upper=72),),
        split=Split(train=0.5),
        training=Training(rounds=1),
        privacy=DraftPrivacy(epsilon=4.0),
    )


def play(root: Path, **label: Any) -> Rehearsal:
    draft = asking(**label)
    return Rehearsal(build(root, draft, orders=contracts()), draft)


def entries(game: Rehearsal, action: str) -> list[dict[str, Any]]:
    return [record for done, record in game.journal(NODE) if done == action]


# ── with all values named ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "label",
    [
        {"positive": "yess", "negative": ("no",)},
        {"positive": "Yes", "negative": ("no",)},
        {"positive": "yes", "negative": ("noo", "never")},
    ],
    ids=["positive misspelt", "another case", "negative misspelt"],
)
def test_a_value_that_the_study_does_not_name_is_refused_and_only_the_node_says_why(
    label: dict[str, Any], tmp_path: Path
) -> None:
    game = play(tmp_path / "world", **label)
    said = game.ask(NODE, game.keys_request(NODE))
    assert assert_refused(game, NODE, said, "INPUT").message == SILENT
    (refused,) = entries(game, "refused")
    reason = str(refused["reason"])
    assert "'cancelled'" in reason and label["positive"] in reason and "rows" in reason


def test_a_label_all_of_whose_values_are_named_is_read_as_ever(tmp_path: Path) -> None:
    game = play(tmp_path / "world", positive="yes", negative=("no", "not yet"))
    assert game.ask(NODE, game.keys_request(NODE)).refusal is None
    assert not entries(game, LABEL_ONE_SIDED)


def test_the_reason_counts_the_rows_and_quotes_none_of_them(tmp_path: Path) -> None:
    world = build(tmp_path / "world", asking(positive="yes"), orders=contracts())
    study, _ = world.sign_study(asking(positive="7 May 1971", negative=("unknown",)))
    silo = Silo.of_home(world.homes[NODE], study, world.treaty)
    cohort = pd.DataFrame({"subject": contracts().frame["customer"]})
    with silo.trainer.source.orders(study.table) as table, pytest.raises(InputError) as caught:
        load_raw(table, study, "train", cohort, 365)
    rows = len(pd.read_parquet(world.homes[NODE] / "orders.parquet"))
    assert f"in {rows} rows" in caught.value.message
    assert "yes" not in caught.value.message and "'no'" not in caught.value.message


# ── with `positive` alone ────────────────────────────────────────────────────────────────────────


def test_a_label_that_nobody_bears_is_told_to_the_node_and_changes_nothing_that_leaves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = {}
    for spelt in ("yes", "yess"):
        game = play(tmp_path / spelt, positive=spelt)
        said = game.ask(NODE, game.keys_request(NODE))
        found[spelt] = (said.action, said.refusal, said.data, said.message.content.config_records.keys())
        told = entries(game, LABEL_ONE_SIDED)
        assert [t["side"] for t in told] == ([] if spelt == "yes" else ["test", "train"])
        assert all(t["bears"] == "no customer" and "'yess'" in t["label"] for t in told)
    assert found["yes"] == found["yess"]
    assert sum("no customer on the" in record.message for record in caplog.records) == 2


def test_a_table_that_ends_before_the_horizon_is_told_too(tmp_path: Path) -> None:
    draft = make_draft(label=ChurnLabel(train_as_of="2025-01-01", test_as_of="2025-02-01"))
    game = Rehearsal(build(tmp_path / "world", draft), draft)
    assert game.ask(NODE, game.keys_request(NODE)).refusal is None
    assert [t["bears"] for t in entries(game, LABEL_ONE_SIDED)] == ["every customer"] * 2


# ── what may be said ─────────────────────────────────────────────────────────────────────────────


def test_a_label_is_said_in_words() -> None:
    assert question(ColumnLabel(column="left", positive="1")) == "left is '1'"
    assert question(ColumnLabel(column="left", positive="1", negative=("0", "2"))) == (
        "left is '1', and not '0' or '2'"
    )


@pytest.mark.parametrize("negative", [["yes"], ["no", "no"], []], ids=["positive too", "twice", "none"])
def test_values_are_named_once_and_not_on_both_sides(negative: list[str]) -> None:
    content = asking(positive="yes").model_dump(mode="json")
    content["label"]["negative"] = negative
    with pytest.raises(InputError, match=r"listed twice|negative"):
        draft_from(content)
