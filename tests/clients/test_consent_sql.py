"""Consents by a query: whole or not at all, and the bad row is named."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from support.consents import ADS, CRM, HEALTH, PURCHASES, day, notice

from foedus.clients.consent_sql import read
from foedus.compliance.consent import ConsentRegister
from foedus.errors import InputError

QUERY = (
    "SELECT member AS subject, 'dpv:CustomerRelationshipManagement' AS purpose, '2026-01/zh' AS notice_version, "
    "agreed AS granted_at, left_at AS withdrawn_at FROM {}"
)
ROWS = [
    ("00042", "2026-01-02T00:00:00+00:00", None),
    ("7", "2026-01-02T00:00:00+00:00", "2026-01-03T00:00:00+00:00"),
]


@pytest.fixture
def register(tmp_path: Path) -> ConsentRegister:
    register = ConsentRegister(tmp_path / "consent.db")
    register.publish(notice())
    register.publish(notice("all", audience="all", purposes={CRM: [PURCHASES, HEALTH]}))
    return register


def sqlite(folder: Path, rows: list[tuple[object, ...]]) -> Path:
    path = folder / "crm.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE members (member TEXT, agreed TEXT, left_at TEXT)")
        db.executemany("INSERT INTO members VALUES (?, ?, ?)", rows)
    db.close()
    return path


def in_duckdb(folder: Path, rows: list[tuple[object, ...]]) -> Path:
    with duckdb.connect(folder / "crm.duckdb") as db:
        db.execute("CREATE TABLE members (member VARCHAR, agreed VARCHAR, left_at VARCHAR)")
        db.executemany("INSERT INTO members VALUES (?, ?, ?)", rows)
    return folder / "crm.duckdb"


def parquet(folder: Path, rows: list[tuple[object, ...]]) -> Path:
    pd.DataFrame(rows, columns=["member", "agreed", "left_at"]).to_parquet(folder / "crm.parquet")
    return folder / "crm.parquet"


def text(folder: Path, rows: list[tuple[object, ...]]) -> Path:
    pd.DataFrame(rows, columns=["member", "agreed", "left_at"]).to_csv(folder / "crm.csv", index=False)
    return folder / "crm.csv"


KINDS = [(sqlite, "members"), (in_duckdb, "members"), (parquet, "source"), (text, "source")]
Make = Callable[[Path, list[tuple[object, ...]]], Path]


@pytest.mark.parametrize(("make", "table"), KINDS)
def test_a_query_is_imported_whole_or_not_at_all(
    register: ConsentRegister, tmp_path: Path, make: Make, table: str
) -> None:
    path = make(tmp_path, ROWS)
    before = path.read_bytes()
    assert register.take_in(read(path, QUERY.format(table))) == 2
    assert register.take_in(read(path, QUERY.format(table))) == 2
    assert path.read_bytes() == before
    assert register.in_force(CRM, day(1))["subject"].tolist() == ["00042", "7"]
    assert register.in_force(CRM, day(2))["subject"].tolist() == ["00042"]


@pytest.mark.parametrize(("make", "table"), KINDS)
def test_the_bad_row_is_named(register: ConsentRegister, tmp_path: Path, make: Make, table: str) -> None:
    bad = make(tmp_path, [("new", "2026-01-02T00:00:00+00:00", None), ("c2", "2026-01-02T00:00:00", None)])
    with pytest.raises(InputError, match=r"crm\..*, row 2, column 'granted_at': .*timezone"):
        register.take_in(read(bad, QUERY.format(table)))
    wrong = QUERY.format(table).replace("2026-01/zh", "1999/zh")
    with pytest.raises(InputError, match=r"row 1, column 'notice_version': .*not published"):
        register.take_in(read(make(tmp_path / "x", ROWS) if (tmp_path / "x").mkdir() is None else bad, wrong))
    assert register.records("new") == [] and register.records("7") == []


def test_times_days_and_truths_may_come_as_such(register: ConsentRegister, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "subject": [1, 2],
            "purpose": [CRM, CRM],
            "notice_version": ["all/zh", "all/en"],
            "granted_at": [datetime(2026, 1, 2, tzinfo=UTC)] * 2,
            "sensitive": [True, False],
            "born": [date(2015, 1, 1), date(1990, 1, 1)],
            "guardian": ["g1", None],
        }
    )
    frame.to_parquet(tmp_path / "c.parquet")
    assert register.take_in(read(tmp_path / "c.parquet")) == 2
    one, two = register.records("1")[0], register.records("2")[0]
    assert (one.guardian, one.terms.categories, two.terms.categories) == (
        "g1",
        {PURCHASES, HEALTH},
        {PURCHASES},
    )
    assert one.granted_at == day(1)


@pytest.mark.parametrize(
    ("name", "query", "match"),
    [
        ("none.parquet", None, "no such file"),
        ("crm.xlsx", None, "not a"),
        ("crm.sqlite", None, "which of its tables"),
        ("crm.sqlite", "SELECT * FROM nowhere", "query failed"),
        ("crm.sqlite", "DELETE FROM members", "query failed"),
        ("crm.sqlite", "SELECT member AS subject FROM members", "column 'purpose': missing"),
        ("crm.duckdb", "SELEC", "query failed"),
        (
            "crm.duckdb",
            "SELECT 1.5 AS subject, '' AS purpose, '' AS notice_version, '' AS granted_at",
            "neither",
        ),
    ],
)
def test_what_cannot_be_read(
    register: ConsentRegister, tmp_path: Path, name: str, query: str | None, match: str
) -> None:
    sqlite(tmp_path, ROWS)
    in_duckdb(tmp_path, ROWS)
    with pytest.raises(InputError, match=match):
        register.take_in(read(tmp_path / name, query))
    assert (
        register.counts(ADS, day(9))
        == register.counts(CRM, day(9))
        == {"in_force": 0, "withdrawn": 0, "expired": 0}
    )
