"""From a frame or a file, under a policy, to a released table and its report."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from foedus import cli
from foedus.compliance.masking import recoding_local
from foedus.compliance.masking.policy import Column, Policy
from foedus.compliance.masking.release import mask
from foedus.compliance.masking.roles import Role
from foedus.compliance.masking.tables import Table, code, read
from foedus.errors import InputError, Refused

CUSTOMERS = pd.DataFrame(
    {
        "name": [f"person {i}" for i in range(12)],
        "age": [21, 22, 23, 24, 35, 36, 37, 38, 51, 52, 53, 90],
        "city": ["Ghent", "Bruges"] * 6,
        "plan": ["a", "b", "c"] * 4,
        "orders": range(12),
    }
)
COLUMNS: dict[str, Any] = {
    "name": {"role": "identifying"},
    "age": {"role": "quasi-identifier", "hierarchy": {"intervals": [10, 20]}, "loss": "extent"},
    "city": {"role": "quasi-identifier"},
    "plan": {"role": "sensitive"},
    "orders": {"role": "insensitive"},
}


def policy(columns: dict[str, Any] | None = None, **more: Any) -> Policy:
    return Policy.of(
        {"k": 3, "suppression_limit": 1.0, "columns": COLUMNS if columns is None else columns} | more
    )


def main(*arguments: object) -> object:
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code
    return 0


def test_identifying_columns_are_gone_and_the_others_are_as_they_were() -> None:
    released, report = mask(CUSTOMERS.set_index(pd.Index(range(50, 62))), policy())
    assert list(released) == ["age", "city", "plan", "orders"]
    assert released.index.tolist() == list(range(len(released)))
    assert released["orders"].tolist() == sorted(released["orders"])
    assert released["orders"].dtype == CUSTOMERS["orders"].dtype
    assert report.k >= 3


def test_what_is_suppressed_is_left_out_or_starred() -> None:
    columns = {"age": {"role": "quasi-identifier"}, "plan": {"role": "sensitive"}}
    frame = pd.DataFrame({"age": [1] * 5 + [2, 3, 4], "plan": list("abcabcab")})
    # Without ages 2, 3, 4 there is one class of 5; value or * is all there is.
    released, report = mask(frame, policy(columns, method="global"))
    assert released["age"].tolist() == ["1"] * 5 and report.utility.suppressed == pytest.approx(3 / 8)
    released, report = mask(frame, policy(columns, method="global", suppressed="star"))
    assert released["age"].tolist() == ["1"] * 5 + ["*"] * 3
    assert (report.rows_out, report.starred, report.utility.suppressed) == (8, 3, pytest.approx(3 / 8))
    # Two starred rows would be a class of 2: they are left out after all.
    released, report = mask(frame[:7], policy(columns, method="global", suppressed="star"))
    assert (report.rows_out, report.starred, report.k) == (5, 0, 5)


def test_too_much_suppression_releases_nothing() -> None:
    frame = pd.DataFrame({"age": [1] * 5 + [2], "s": list("abcabc")})
    columns = {"age": {"role": "quasi-identifier"}, "s": {"role": "sensitive", "l": 3}}
    with pytest.raises(
        Refused, match=r"1 of 6 rows would be suppressed, more than the policy's 1\.00%"
    ) as caught:
        mask(frame, policy(columns, suppression_limit=0.01))
    assert caught.value.code == "SUPPRESSION_LIMIT"
    columns["s"]["l"] = 4
    for method in ("local", "global", "mondrian"):
        with pytest.raises(Refused, match="no labels of the quasi-identifiers hold") as caught:
            mask(frame, policy(columns, method=method))
        assert caught.value.code == "MASKING_IMPOSSIBLE"


def test_k_larger_than_the_table_is_an_input_error() -> None:
    with pytest.raises(InputError, match="k = 13 is more than the 12 rows"):
        mask(CUSTOMERS, policy(k=13))


@pytest.mark.parametrize("method", ["local", "global", "mondrian"])
def test_t_is_held_by_the_released_rows(method: str) -> None:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"age": rng.integers(0, 9, 200), "plan": rng.choice(list("abc"), 200)})
    columns = {
        "age": {"role": "quasi-identifier", "hierarchy": {"sizes": [3]}},
        "plan": {"role": "sensitive", "l": 1.5, "diversity": "entropy", "t": 0.15, "distance": "ordered"},
    }
    released, report = mask(frame, policy(columns, method=method))
    overall = released["plan"].value_counts(normalize=True).reindex(list("abc"), fill_value=0)
    for _, rows in released.groupby(released["age"].astype(str)):
        extra = rows["plan"].value_counts(normalize=True).reindex(list("abc"), fill_value=0) - overall
        assert extra.cumsum().abs().sum() / 2 <= 0.15 + 1e-9
    assert report.disclosure["plan"].t <= 0.15 + 1e-9


@pytest.mark.parametrize("method", ["local", "global", "mondrian"])
def test_presence_is_bounded_and_journalists_are_counted(method: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    people = pd.DataFrame({"age": rng.integers(20, 60, 400), "city": rng.choice(["Ghent", "Bruges"], 400)})
    people.to_parquet(tmp_path / "people.parquet")
    frame = people.sample(120, random_state=1)
    columns = {name: COLUMNS[name] for name in ("age", "city")}
    presence = {"population": tmp_path / "people.parquet", "high": 0.4}
    _, report = mask(frame, policy(columns, method=method, presence=presence))
    assert report.presence is not None and report.presence[1] <= 0.4
    assert report.journalist is not None and report.journalist.highest <= report.prosecutor.highest


def test_missing_values_are_refused_or_are_values() -> None:
    frame = pd.DataFrame({"age": [30.0] * 4 + [np.nan] * 3 + [31.0], "plan": list("abcabcab")})
    columns = {
        "age": {"role": "quasi-identifier", "hierarchy": {"intervals": [10]}},
        "plan": {"role": "sensitive"},
    }
    with pytest.raises(InputError, match="age: 3 missing values in a quasi-identifier"):
        mask(frame, policy(columns))
    for method in ("local", "global", "mondrian"):
        released, report = mask(frame, policy(columns, missing="value", method=method))
        assert report.rows_out >= 7 and report.k >= 3
        assert method != "local" or released["age"].tolist().count("(missing)") == 3


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pd.Series([1, 2, 10]), ("1", "2", "10")),
        (pd.Series([1.0, 2.5, np.nan]), ("1", "2.5", "(missing)")),
        (pd.Series(["b", "a", None], dtype=object), ("a", "b", "(missing)")),
        (pd.Series(["b", "a", "a"], dtype="category"), ("a", "b")),
        (pd.Series([True, False, True]), ("False", "True")),
        (pd.Series([1, "1", 2], dtype=object), ("1", "2")),
        (pd.Series(pd.to_datetime(["2026-01-02", "2026-01-02", "2026-01-01"])), ("2026-01-01", "2026-01-02")),
        (pd.Series([dt.date(2026, 1, 2)] * 3), ("2026-01-02",)),
    ],
)
def test_any_kind_of_column_becomes_texts(column: pd.Series[Any], values: tuple[str, ...]) -> None:
    coded = code(column, "q")
    assert coded.values == values and len(coded.codes) == len(column)


def test_every_column_has_a_role() -> None:
    with pytest.raises(InputError, match="column 'b' has no role"):
        Table.of(pd.DataFrame({"a": [1], "b": [2]}), {"a": Role.QUASI})
    with pytest.raises(InputError, match="no column 'c'"):
        Table.of(pd.DataFrame({"a": [1]}), {"a": Role.QUASI, "c": Role.SENSITIVE})
    with pytest.raises(InputError, match="two columns are called 'a'"):
        Table.of(pd.DataFrame([[1, 2]], columns=["a", "a"]), {"a": Role.QUASI})
    with pytest.raises(InputError, match=r"'\*' is a value"):
        Table.of(pd.DataFrame({"a": ["*"]}), {"a": Role.QUASI})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": 1}, "k: "),
        ({"kk": 2}, "kk: "),
        ({"method": "magic"}, "method: "),
        ({"labels": "set"}, "labels are of mondrian"),
        ({"columns": {"a": {"role": "sensitive"}}}, "no column is a quasi-identifier"),
        (
            {"columns": {"a": {"role": "quasi-identifier", "l": 2}}},
            "l: not of a column that is quasi-identifier",
        ),
        (
            {"columns": {"a": {"role": "quasi-identifier", "hierarchy": {"dates": ["day"], "sizes": [2]}}}},
            "exactly one of",
        ),
        (
            {
                "columns": {
                    "a": {"role": "quasi-identifier"},
                    "s": {"role": "sensitive", "l": 2, "diversity": "recursive"},
                }
            },
            "recursive diversity needs c",
        ),
        (
            {
                "columns": {
                    "a": {"role": "quasi-identifier"},
                    "s": {"role": "sensitive", "diversity": "entropy"},
                }
            },
            "needs l",
        ),
        ({"suppression_limit": 2}, "suppression_limit"),
        (
            {"columns": {"a": {"role": "quasi-identifier", "hierarchy": {"interval": [2]}}}},
            "^policy: columns.a.hierarchy.interval: Extra inputs are not permitted",
        ),
        ({"columns": {"a": {"role": "quasi-identifier", "hierarchy": 3}}}, "columns.a.hierarchy: .*path"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Policy.of({"k": 2, "columns": {"a": {"role": "quasi-identifier"}}} | change)


# ── files ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def here(tmp_path: Path) -> Path:
    CUSTOMERS.to_csv(tmp_path / "customers.csv", index=False, sep=";")
    CUSTOMERS.to_parquet(tmp_path / "customers.parquet")
    (tmp_path / "city.csv").write_text("Ghent,Flanders,*\nBruges,Flanders,*\n")
    (tmp_path / "policy.yaml").write_text(
        "k: 3\nsuppression_limit: 0.5\ncolumns:\n  name: {role: identifying}\n"
        "  age: {role: quasi-identifier, hierarchy: {intervals: [10, 20]}, loss: extent}\n"
        "  city: {role: quasi-identifier, hierarchy: city.csv}\n"
        "  plan: {role: sensitive, l: 2}\n  orders: {role: insensitive}\n"
    )
    return tmp_path


def test_csv_and_parquet_give_the_same_release(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = []
    for kind in ("csv", "parquet"):
        out = here / f"masked.{kind}"
        arguments = ("--policy", here / "policy.yaml", "--out", out, "--report", here / f"{kind}.json")
        assert main("mask", here / f"customers.{kind}", *arguments) == 0
        assert out.stat().st_mode & 0o777 == 0o600
        tables.append(read(out).astype(str))
        report = json.loads((here / f"{kind}.json").read_text())
        assert report["k"] >= 3 and report["rows_in"] == 12 and report["asked"]["k"] == 3
    assert tables[0].equals(tables[1])
    told = capsys.readouterr().out + (here / "csv.json").read_text()
    assert "anonym" not in told.lower()
    assert "still personal data" in told
    assert sorted(p.name for p in here.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("out", "change", "exit_code"),
    [
        ("customers.csv", "", 2),
        ("masked.txt", "", 2),
        ("no/where.csv", "", 2),
        ("masked.csv", "k: 50", 2),
        ("masked.csv", "k: [", 2),
        ("masked.csv", "suppression_limit: 0.0\nk: 4\nsuppressed: drop", 3),
    ],
)
def test_a_command_that_fails_writes_nothing(here: Path, out: str, change: str, exit_code: int) -> None:
    text = (here / "policy.yaml").read_text()
    if change:
        names = [line.partition(":")[0] for line in change.splitlines()]
        kept = [line for line in text.splitlines() if line.partition(":")[0] not in names]
        (here / "policy.yaml").write_text("\n".join([*kept, change]).replace("l: 2", "l: 4"))
    before = {p: p.read_bytes() for p in here.iterdir()}
    assert (
        main("mask", here / "customers.csv", "--policy", here / "policy.yaml", "--out", here / out)
        == exit_code
    )
    assert {p: p.read_bytes() for p in here.iterdir()} == before


def test_no_report_calls_a_table_anonymous() -> None:
    for frame_policy in (policy(), policy(method="global"), policy(method="mondrian")):
        _, report = mask(CUSTOMERS, frame_policy)
        told = "\n".join(report.lines()) + json.dumps(report.as_dict())
        assert "anonym" not in told.lower()


def test_every_field_of_a_policy_is_documented() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "masked-tables.md").read_text(encoding="utf-8")
    for field in (*Policy.model_fields, *Column.model_fields):
        assert f"| `{field}` |" in page, field
    for name, field_ in Policy.model_fields.items():
        default = str(field_.default) if field_.default is not None else "none"
        assert f"| `{name}` | {'–' if field_.is_required() else default} |" in page, name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2,3\n4,5,6\n", "more fields than its header"),
        ("a,b\n1,2\n3,4,5\n", "not a table"),
        ("", "not a table"),
    ],
)
def test_a_csv_file_loses_no_field_silently(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read(tmp_path / "t.csv")
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "u.csv")
    (tmp_path / "t.parquet").write_text("no parquet")
    with pytest.raises(InputError, match="not a table"):
        read(tmp_path / "t.parquet")


@pytest.mark.parametrize("written", ["quasi-identifier", "quasi_identifier", "quasi identifier"])
def test_a_role_may_be_written_in_three_ways(written: str) -> None:
    assert Policy.of({"k": 2, "columns": {"a": {"role": written}}}).names(Role.QUASI) == ["a"]


def test_a_column_of_lists_is_refused() -> None:
    with pytest.raises(InputError, match="a: holds lists"):
        Table.of(pd.DataFrame({"a": [[1], [2]]}), {"a": Role.QUASI})


def test_a_report_tells_no_path(here: Path) -> None:
    _, report = mask(read(here / "customers.csv"), Policy.load(here / "policy.yaml"))
    assert str(here) not in json.dumps(report.as_dict()) and "city.csv" in json.dumps(report.as_dict())


def test_a_method_that_lies_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its labels are counted from the table as written."""
    frame = pd.DataFrame({"age": [1] * 5 + [2, 3, 4], "plan": list("abcabcab")})
    columns = {"age": {"role": "quasi-identifier"}, "plan": {"role": "sensitive"}}
    monkeypatch.setattr(recoding_local, "recode", lambda lattice, _: np.zeros(len(lattice.tuples), np.int64))
    released, report = mask(frame, policy(columns))
    assert released["age"].tolist() == ["1"] * 5 and report.utility.suppressed == pytest.approx(3 / 8)
    with pytest.raises(Refused, match="3 of 8 rows"):
        mask(frame, policy(columns, suppression_limit=0.1))
