"""What `server.db` promises while several processes write to it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from foedus.documents import Envelope
from foedus.errors import InputError, Refused, Unreachable, VerificationError
from foedus.server.store import Store, database

STUDY = Envelope("study", {"a": 1})
WRITER = """
import sys
from pathlib import Path
from foedus.server.store import Store
with Store(Path(sys.argv[1])) as store:
    for i in range(int(sys.argv[3])):
        store.add_event("1", "round", {"who": sys.argv[2], "i": i})
        print(i, flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "server.db") as opened:
        opened.add_study(STUDY, author="alice", title="t", submitted_by="alice")
        yield opened


def _writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, path, name, str(count)], stdout=subprocess.PIPE, text=True
    )


def test_three_processes_and_this_one_write_at_once(store: Store, tmp_path: Path) -> None:
    store.open_run("1", STUDY.digest)
    processes = [_writer(tmp_path / "server.db", name, 40) for name in "abc"]
    for i in range(40):
        store.add_event("1", "round", {"who": "d", "i": i})
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    events = store.events("1")
    assert len(events) == 160 and len({e.id for e in events}) == 160
    # followers resume after an id, so nothing may appear later with a smaller one
    assert [e.id for e in events] == list(range(1, 161))


def test_a_killed_writer_leaves_what_it_had_written(store: Store, tmp_path: Path) -> None:
    store.open_run("1", STUDY.digest)
    process = _writer(tmp_path / "server.db", "a", 100_000)
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    rest = process.communicate(timeout=30)[0].splitlines()
    written = len(store.events("1", limit=100_000))
    assert written in (len(seen) + len(rest), len(seen) + len(rest) + 1)
    store.add_event("1", "finished", {})


def test_settings_of_the_file(store: Store, tmp_path: Path) -> None:
    with store._read() as session:
        connection = session.connection()
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {"journal_mode": "delete", "synchronous": 3, "foreign_keys": 1, "busy_timeout": 30_000}
    with pytest.raises(InputError, match="FOREIGN KEY"):
        store.open_run("2", "0" * 64)


def test_the_file_itself_refuses_a_second_active_run(store: Store, tmp_path: Path) -> None:
    store.open_run("1", STUDY.digest)
    store.open_run("1", STUDY.digest)  # the ServerApp and the API both do
    with pytest.raises(Refused, match="still active"):
        store.open_run("2", STUDY.digest)
    db = sqlite3.connect(tmp_path / "server.db")
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("INSERT INTO runs VALUES ('3', ?, 'running', '', NULL)", (STUDY.digest,))
    db.close()
    store.add_event("1", "stopped", {})
    store.open_run("2", STUDY.digest)


def test_nothing_follows_the_last_event(store: Store) -> None:
    store.open_run("1", STUDY.digest)
    store.add_event("1", "finished", {})
    for kind in ("round", "failed", "finished"):
        with pytest.raises(Refused, match="has ended: finished"):
            store.add_event("1", kind, {})
    with pytest.raises(InputError, match="no run 9"):
        store.add_event("9", "round", {})
    with pytest.raises(InputError, match="canonical"):
        store.add_event("1", "round", {"loss": float("nan")})


def test_what_cannot_be_recorded_is_not_written(store: Store) -> None:
    def fails() -> None:
        raise VerificationError("the log is damaged")

    other = Envelope("study", {"a": 2})
    with pytest.raises(VerificationError):
        store.add_study(other, author="alice", title="t", submitted_by="alice", record=fails)
    with pytest.raises(VerificationError):
        store.open_run("1", STUDY.digest, record=fails)
    assert store.study(other.digest) is None and store.run("1") is None
    store.open_run("1", STUDY.digest)
    with pytest.raises(VerificationError):
        store.add_event("1", "stopped", {}, record=fails)
    found = store.run("1")
    assert found is not None and found.status == "running" and store.events("1") == []


def test_acknowledged_heads_never_go_back(store: Store) -> None:
    for size in (3, 7, 5):
        store.acknowledge("shop-1", size)
    assert store.heads() == {"shop-1": 7}


def test_of_two_runs_the_newest_file_counts(store: Store, tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    for run, content in (("1", b"old"), ("2", b"new!")):
        path = evidence / run / "model.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        store.open_run(run, STUDY.digest)
        store.add_release(evidence, path, study=STUDY.digest, run=run, kind="model")
        store.add_event(run, "failed", {})
        time.sleep(0.002)
    (found,) = store.releases(STUDY.digest)
    assert (found.run, found.size, found.path) == ("2", 4, "2/model.json")


def test_wildcards_are_no_abbreviations(store: Store) -> None:
    assert store.studies("%") == [] and store.studies("_" * 8) == []
    assert [row.digest for row in store.studies(STUDY.digest[:8])] == [STUDY.digest]


def test_files_that_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database at all, whatever it is called")
    for path in (tmp_path / "text", tmp_path / "nowhere" / "server.db"):
        with pytest.raises(InputError):
            Store(path)


def test_a_lock_that_lasts(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    db = sqlite3.connect(tmp_path / "server.db", isolation_level=None)
    with Store(tmp_path / "server.db") as hasty:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unreachable, match="locked"):
            hasty.acknowledge("shop-1", 1)
    db.close()
