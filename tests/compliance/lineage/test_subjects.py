"""Who went into what, at the silo only: found with the key, not without it, and not any more once forgotten."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sums import scratch

from foedus.compliance.lineage import Subjects, Use
from foedus.errors import FoedusError, InputError

TRAIN, TEST, LATER = (
    Use("ab" * 32, "17", "train"),
    Use("ab" * 32, "17", "test"),
    Use("cd" * 32, "18", "train"),
)


@pytest.fixture
def subjects(tmp_path: Path) -> Subjects:
    return Subjects(tmp_path / "subjects.db", tmp_path / "lineage.key")


def test_a_customer_is_found_in_every_use_they_were_in(subjects: Subjects, tmp_path: Path) -> None:
    assert subjects.record(TRAIN, ["K1", "K2"]) == 2
    assert subjects.record(TRAIN, ["K2", "K3"]) == 1  # a later round of the same side: K1 was in it, too
    assert subjects.record(TRAIN, ["K3"]) == 0
    subjects.record(LATER, ["K1", "王小明"])
    assert [t.use for t in subjects.touched("K1")] == [TRAIN, LATER]
    assert [t.use for t in subjects.touched("王小明")] == [LATER]
    assert subjects.touched("K9") == [] and len(subjects.uses()) == 2
    for file in ("subjects.db", "lineage.key"):
        assert stat.S_IMODE((tmp_path / file).stat().st_mode) == 0o600


def test_the_file_names_nobody_and_links_nobody(subjects: Subjects, tmp_path: Path) -> None:
    subjects.record(TRAIN, ["K0001", "王小明"])
    subjects.record(LATER, ["K0001"])
    raw = (tmp_path / "subjects.db").read_bytes()
    assert b"K0001" not in raw and "王小明".encode() not in raw
    import sqlite3

    with sqlite3.connect(tmp_path / "subjects.db") as db:
        first, second = (row[0] for row in db.execute("SELECT names FROM use ORDER BY id"))
    db.close()
    assert len(second) == 16 and second not in (first[:16], first[16:])  # another name in every use
    assert "…" not in repr(subjects) and "key" not in repr(TRAIN)


def test_who_is_forgotten_is_gone_from_the_file(subjects: Subjects, tmp_path: Path) -> None:
    everybody = [f"K{i}" for i in range(500)]
    subjects.record(TRAIN, everybody)
    subjects.record(TEST, ["K7"])
    import sqlite3

    def names() -> bytes:
        with sqlite3.connect(tmp_path / "subjects.db") as db:
            found = b"".join(row[0] for row in db.execute("SELECT names FROM use"))
        db.close()
        return found

    before = names()
    assert [t.use for t in subjects.forget("K7")] == [TRAIN, TEST]
    after = names()
    assert len(before) - len(after) == 32
    gone = {before[i : i + 16] for i in range(0, len(before), 16)} - {
        after[i : i + 16] for i in range(0, len(after), 16)
    }
    raw = (tmp_path / "subjects.db").read_bytes()
    assert len(gone) == 2 and not any(name in raw for name in gone)  # nor in a freed page
    assert subjects.touched("K7") == [] == subjects.forget("K7")
    assert [t.use for t in subjects.touched("K8")] == [TRAIN]


def test_without_the_key_nobody_is_found_and_nothing_is_added(subjects: Subjects, tmp_path: Path) -> None:
    subjects.record(TRAIN, ["K1"])
    key = tmp_path / "lineage.key"
    kept = key.read_bytes()
    key.unlink()
    for ask in (
        lambda: subjects.touched("K1"),
        lambda: subjects.record(TEST, ["K1"]),
        lambda: subjects.forget("K1"),
    ):
        with pytest.raises(InputError, match=r"lineage\.key"):
            ask()
    assert not key.exists()
    key.write_bytes(kept)
    with pytest.raises(InputError, match="readable by others"):
        subjects.touched("K1")
    key.chmod(0o600)
    assert len(subjects.touched("K1")) == 1
    key.write_bytes(b"short")
    with pytest.raises(InputError, match="not a key"):
        subjects.touched("K1")


def test_a_damaged_register_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"no database" * 100)
    with pytest.raises(FoedusError):
        Subjects(tmp_path / "bad.db", tmp_path / "key")


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["record", "forget"]),
            st.sampled_from([TRAIN, TEST]),
            st.sets(st.sampled_from("abcd")),
        ),
        max_size=6,
    )
)
def test_it_keeps_what_sets_would(steps: list[tuple[str, Use, set[str]]]) -> None:
    folder = scratch()
    subjects = Subjects(folder / "subjects.db", folder / "lineage.key")
    model: dict[Use, set[str]] = {}
    for what, use, customers in steps:
        if what == "record":
            subjects.record(use, customers)
            model.setdefault(use, set()).update(customers)
        else:
            for customer in customers:
                subjects.forget(customer)
                for names in model.values():
                    names.discard(customer)
    for customer in "abcd":
        assert {t.use for t in subjects.touched(customer)} == {
            u for u, names in model.items() if customer in names
        }
