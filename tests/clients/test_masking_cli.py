"""``foedus columns`` and ``foedus pseudonyms`` as a person meets them."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from foedus import cli

Run = Callable[..., tuple[int, str, str]]
PURPOSE = "dpv:Marketing"


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


@pytest.fixture
def desk(tmp_path: Path, foedus: Run) -> Path:
    """A table whose phones are China Mobile's message centres, and a key."""
    lines = [
        "code,手机,city,[note]",
        *(f"{i:04},13800{i:03}500,{'甲乙'[i % 2]}市,n" for i in range(40)),
        "0040,,丙市,",
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    assert foedus("pseudonyms", "key", "new", tmp_path / "k.key")[0] == 0
    return tmp_path


def apply(
    desk: Path, foedus: Run, *more: object, out: str = "out.csv", column: str = "手机:phone"
) -> tuple[int, str, str]:
    return foedus(
        *("pseudonyms", "apply", desk / "t.csv", "--column", column, "--purpose", PURPOSE),
        *("--key", desk / "k.key", "--out", desk / out, *more),
    )


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype="str", keep_default_na=False)


def test_columns_are_suggested_and_no_value_is_shown(desk: Path, foedus: Run) -> None:
    code, out, _ = foedus("columns", desk / "t.csv", "--singling-out")
    assert code == 0 and "for an officer to decide" in out
    assert "手机" in out and "phone" in out and "quasi identifier" in out and "[note]" in out
    assert "single out" in out and "13800" not in out and "甲" not in out


def test_pseudonyms_stand_in_the_place_of_phones_and_all_else_stays(desk: Path, foedus: Run) -> None:
    code, out, _ = apply(desk, foedus, "--missing", "keep")
    assert code == 0 and "41 rows" in out
    before, after = pd.read_csv(desk / "t.csv", dtype="str", keep_default_na=False), read(desk / "out.csv")
    assert list(after) == ["code", "手机", "city", "[note]"]
    assert after.drop(columns="手机").equals(before.drop(columns="手机"))
    assert after["手机"].str.fullmatch(r"p1\.[0-9a-f]{32}").sum() == 40 and after["手机"].iloc[-1] == ""
    assert stat.S_IMODE((desk / "out.csv").stat().st_mode) == 0o600
    assert not list(desk.glob("*.partial"))


def test_parquet_comes_and_goes(desk: Path, foedus: Run) -> None:
    assert apply(desk, foedus, "--missing", "keep", out="out.parquet")[0] == 0
    assert foedus("columns", desk / "out.parquet")[0] == 0
    assert pd.read_parquet(desk / "out.parquet")["手机"].iloc[0].startswith("p1.")


def test_keys_rotate_and_die(desk: Path, foedus: Run) -> None:
    key = desk / "k.key"
    assert apply(desk, foedus, "--missing", "keep")[0] == 0
    assert "version 2" in foedus("pseudonyms", "key", "rotate", key)[1]
    assert apply(desk, foedus, "--missing", "keep", "--version", 1, out="again.csv")[0] == 0
    assert read(desk / "again.csv").equals(read(desk / "out.csv"))
    assert apply(desk, foedus, "--missing", "keep", out="new.csv")[0] == 0
    assert read(desk / "new.csv")["手机"].iloc[0].startswith("p2.")
    assert foedus("pseudonyms", "key", "delete", key, 1)[0] == 0
    assert "versions 2; the latest ever was 2" in foedus("pseudonyms", "key", "show", key)[1]
    code, _, err = apply(desk, foedus, "--version", 1, out="never.csv")
    assert code == 2 and "no key of version 1" in err and not (desk / "never.csv").exists()


@pytest.mark.parametrize(
    ("more", "column", "out", "said"),
    [
        ((), "手机:phone", "out.csv", "1 of 41 values are missing"),
        (("--missing", "keep"), "city:phone", "out.csv", "41 of 41 values are not of kind phone"),
        ((), "手机", "out.csv", "not name:kind"),
        ((), "手机:fax", "out.csv", "not name:kind"),
        ((), "tel:phone", "out.csv", "not one column 'tel'"),
        (("--missing", "drop"), "手机:phone", "out.csv", "refuse or keep"),
        (("--missing", "keep"), "手机:phone", "out.xlsx", "not a .csv or .parquet file"),
        (("--missing", "keep"), "手机:phone", "t.csv", "exists already"),
        (("--missing", "keep"), "手机:phone", "none/out.csv", "No such file"),
    ],
)
def test_what_apply_refuses(
    more: tuple[str, ...], column: str, out: str, said: str, desk: Path, foedus: Run
) -> None:
    there, table = sorted(desk.iterdir()), (desk / "t.csv").read_bytes()
    code, shown, err = apply(desk, foedus, *more, out=out, column=column)
    assert code == 2 and said in err and shown == "" and "13800" not in err
    assert sorted(desk.iterdir()) == there and (desk / "t.csv").read_bytes() == table


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "No such file"),
        ("t.xlsx", b"", "not a .csv or .parquet"),
        ("gbk.csv", "手机\n".encode("gb18030"), "not UTF-8"),
        ("empty.csv", b"", "can't be read"),
        ("ragged.csv", b"a,b\n1,2\n1,2,3\n", "can't be read"),
        ("bad.parquet", b"PAR1", "can't be read"),
    ],
)
def test_tables_that_cannot_be_read(
    name: str, content: bytes | None, said: str, tmp_path: Path, foedus: Run
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, _, err = foedus("columns", tmp_path / name)
    assert code == 2 and said in err and name in err


def test_a_null_surname_is_a_name(tmp_path: Path, foedus: Run) -> None:
    (tmp_path / "t.csv").write_text("surname\nNull\nNA\nNone\n")
    foedus("pseudonyms", "key", "new", tmp_path / "k")
    arguments = (
        "--column",
        "surname:name",
        "--purpose",
        PURPOSE,
        "--key",
        tmp_path / "k",
        "--out",
        tmp_path / "o.csv",
    )
    assert foedus("pseudonyms", "apply", tmp_path / "t.csv", *arguments)[0] == 0
    assert read(tmp_path / "o.csv")["surname"].nunique() == 3
