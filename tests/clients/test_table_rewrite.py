"""A silo's table without one customer, or with one value corrected; everything else stays as it was."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pandas as pd
import pytest

from foedus.clients import sources, table_rewrite
from foedus.errors import FoedusError, InputError

CSV = (
    "﻿customer,date,amount,note\r\n"
    'C00042,2026-01-01,1.50,"a, ""b"""\r\n'
    '00043,2020-01-02,2.0,"x\ny"\r\n'
    "C00042,2020-01-03,3,\r\n"
    "C00044,2020-01-04,4,王\r\n"
).encode()
KINDS = ("csv", "parquet", "duckdb")


@pytest.fixture(params=KINDS)
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / f"orders.{request.param}"
    frame = pd.DataFrame(
        {
            "customer": ["C00042", "00043", "C00042", "C00044"],
            "date": pd.to_datetime(["2026-01-01", "2020-01-02", "2020-01-03", "2020-01-04"]).date,
            "amount": [1.5, 2.0, 3.0, 4.0],
            "note": ['a, "b"', "x\ny", None, "王"],
        }
    )
    if request.param == "csv":
        file.write_bytes(CSV)
    elif request.param == "parquet":
        frame.to_parquet(file, index=False)
    else:
        with duckdb.connect(str(file)) as db:
            db.execute("CREATE TABLE orders AS SELECT * FROM frame")
            db.execute("CREATE TABLE phones AS SELECT customer, '13800138000' AS phone FROM frame LIMIT 1")
            db.execute("CREATE TABLE other AS SELECT 1 AS x")
    return file


def left(file: Path) -> list[str]:
    with sources.table(file, "orders", text={"customer"}) as found:
        return [str(c) for c in found.to_pyarrow()["customer"].to_pylist()]


def test_a_customer_is_taken_out_and_nobody_else(table: Path) -> None:
    others = {who: table_rewrite.rows_of(table, "customer", who) for who in ("00043", "C00044")}
    table.chmod(0o640)
    assert table_rewrite.remove(table, "customer", "C00042") == (3 if table.suffix == ".duckdb" else 2)
    assert table_rewrite.rows_of(table, "customer", "C00042") == []
    assert {who: table_rewrite.rows_of(table, "customer", who) for who in others} == others
    assert b"C00042" not in table.read_bytes()
    assert b"13800138000" not in table.read_bytes()
    assert table.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in table.parent.iterdir()] == [table.name]
    assert table_rewrite.remove(table, "customer", "C00042") == 0


def test_other_lines_of_a_csv_stay_to_the_byte(tmp_path: Path) -> None:
    file = tmp_path / "orders.csv"
    file.write_bytes(CSV)
    table_rewrite.remove(file, "customer", "C00044")
    assert file.read_bytes() == CSV[: CSV.index(b"C00044")]
    table_rewrite.change(file, "customer", "C00042", "note", "c;d", 'a, "b"')
    assert file.read_bytes() == CSV[: CSV.index(b"C00044")].replace(b'"a, ""b"""', b"c;d")


def test_a_value_is_corrected_where_it_was_wrong(table: Path) -> None:
    assert table_rewrite.change(table, "customer", "C00042", "amount", "7.25", "3.0") == 1
    orders = [r for r in table_rewrite.rows_of(table, "customer", "C00042") if r["table"] == "orders"]
    assert sorted(row["amount"] for row in orders) == [1.5, 7.25]
    before = table.read_bytes()
    for field, value, was in (
        ("date", "soon", "2020-01-03"),
        ("amount", "much", None),
        ("customer", "X", None),
    ):
        with pytest.raises(FoedusError):
            table_rewrite.change(table, "customer", "C00042", field, value, was)
        assert table.read_bytes() == before


def test_old_rows_go_but_those_of_who_is_held(table: Path) -> None:
    assert table_rewrite.old_rows(table, "customer", "date", "2025-01-01") == 3
    assert table_rewrite.remove_before(table, "customer", "date", "2025-01-01", {"C00044"}) == 2
    assert sorted(left(table)) == ["C00042", "C00044"]


def test_a_rewriting_that_fails_leaves_the_table(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = table.read_bytes()

    def full(new: Path, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table_rewrite.durable, "move", full)
    with pytest.raises(InputError, match="No space left"):
        table_rewrite.remove(table, "customer", "C00042")
    assert table.read_bytes() == before
    assert [p.name for p in table.parent.iterdir()] == [table.name]
