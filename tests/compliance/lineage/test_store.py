"""The store: pairs, one query, what is taken from others, and what is refused; threads, full disks, damage."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path
from uuid import UUID

import pytest
from support.disks import small_disk

from foedus.compliance.lineage import Dataset, Event, Lineage, Store, names, new_run_id, pair, tracing
from foedus.compliance.lineage import facets as f
from foedus.errors import FoedusError, InputError, VerificationError

PRODUCER = "https://example.com/foedus/0.1.0"
STUDY, ENTRY, MODEL = "ab" * 32, "cd" * 32, "ef" * 32
PARENT = (UUID(int=7), "foedus://server", "study")
PURPOSE = {f.Purpose.facet: names.purpose("dpv:A", STUDY, "17", None)}


def lineage(path: Path, party: str = "server") -> Lineage:
    return Lineage(path / f"{party}.db", names.namespace(party), PRODUCER)


def event(job: str = "j", **fields: object) -> Event:
    return Event(new_run_id(), job, "COMPLETE", PARENT, **fields)  # type: ignore[arg-type]


def a_silo(store: Lineage, party: str, rounds: int = 2) -> None:
    """A node's own account of a study of two rounds."""
    table = names.table(party, "orders")
    for number in range(1, rounds + 1):
        used = names.cohort(party, "dpv:A", ENTRY[:-2] + f"{number:02}", root=MODEL)
        made = Dataset("features", "features/train")
        store.emit(*pair(event("cohort", inputs=[names.register(party)], outputs=[used], facets=PURPOSE)))
        store.emit(*pair(event("features", inputs=[table, used], outputs=[made], facets=PURPOSE)))
        given = names.update(party, STUDY, "17", number)
        store.emit(*pair(event("round", inputs=[made, used], outputs=[given], facets=PURPOSE)))


def a_server(store: Lineage, parties: tuple[str, ...], rounds: int = 2) -> None:
    for number in range(1, rounds + 1):
        given = [names.update(p, STUDY, "17", number) for p in parties]
        total = names.total("server", STUDY, "17", number)
        store.emit(*pair(event("secure sum", inputs=given, outputs=[total], facets=PURPOSE)))
    sums = [names.total("server", STUDY, "17", n) for n in range(1, rounds + 1)]
    model = names.document("model", "server", MODEL)
    store.emit(*pair(event("release", inputs=sums, outputs=[model], facets=PURPOSE)))


def test_a_run_begins_and_ends_once(tmp_path: Path) -> None:
    store = lineage(tmp_path)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    start, end = pair(event())
    with pytest.raises(InputError, match="has not begun"):
        store.emit(end)
    assert store.emit(start, end) == 2
    assert store.emit(start, end) == 0  # a resumed process tells it again
    from dataclasses import replace

    with pytest.raises(InputError, match="has ended with COMPLETE"):
        store.emit(replace(end, event="FAIL"))
    assert [s.event["eventType"] for s in store.events()] == ["START", "COMPLETE"] and store.check() == 2


def test_a_batch_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    store = lineage(tmp_path)
    with pytest.raises(InputError):
        store.emit(*pair(event()), event())  # the last has not begun
    assert store.size == 0 and list(store.events()) == []
    with pytest.raises(InputError):
        Lineage(tmp_path / "x.db", "", PRODUCER)
    with pytest.raises(InputError, match=r"lineage of foedus://server, not of foedus://other"):
        Lineage(store.path, "foedus://other", PRODUCER)


def test_what_a_process_left_open_is_aborted_by_the_next(tmp_path: Path) -> None:
    store = lineage(tmp_path)
    start, _ = pair(event(facets=PURPOSE))
    store.emit(start, *pair(event()))
    assert lineage(tmp_path).abort_open("NODE_STOPPED: it was stopped") == 1
    *_, last = store.events()
    assert last.event["eventType"] == "ABORT" and last.event["run"]["runId"] == str(start.run_id)
    assert last.event["run"]["facets"]["errorMessage"]["message"].startswith("NODE_STOPPED")
    assert store.open_runs() == [] and lineage(tmp_path).abort_open("again") == 0


def test_one_query_from_a_model_to_all_it_comes_from(tmp_path: Path) -> None:
    server, parties = lineage(tmp_path), ("shop-a", "shop-b")
    a_server(server, parties)
    alone = tracing.trace(server, MODEL[:8])
    assert alone.tables == set() and {p for p, _ in alone.updates} == set(parties)
    for party in parties:
        silo = lineage(tmp_path, party)
        a_silo(silo, party)
        silo.emit(
            *pair(event("score", inputs=[names.table(party, "others")], outputs=[Dataset("scores", "s")]))
        )
        server.take([s.event for s in silo.events()], party)
    found = tracing.trace(server, MODEL)
    assert found.tables == {(p, "orders") for p in parties}  # and no table that it does not come from
    assert {(s.silo, s.entry) for s in found.merged()} == {
        (p, ENTRY[:-2] + n) for p in parties for n in ("01", "02")
    }
    assert all(s.root == MODEL for s in found.merged())
    assert found.releases == {("model", MODEL)} and found.studies == {(STUDY, "17")} and len(found.sums) == 2
    assert found.origins == {"own", *parties}
    said = "\n".join(tracing.lines(found))
    assert MODEL in said and "shop-b: orders" in said and "2, over 2 of shop-a, 2 of shop-b" in said
    assert server.models(STUDY, "17") == [MODEL]
    for unknown in ("0" * 64, "ef", "nothing!", MODEL[:8] + "%"):
        with pytest.raises(InputError):
            server.trace(unknown)


def test_only_its_owner_speaks_in_a_stores_name(tmp_path: Path) -> None:
    server, other = lineage(tmp_path), lineage(tmp_path / "elsewhere")
    server.emit(*pair(event()))
    mine = [s.event for s in server.events()]
    assert server.take(mine, "somebody") == 0  # they are here already
    other.emit(*pair(event("made up")))
    with pytest.raises(InputError, match="not in this store"):
        server.take([s.event for s in other.events()], "somebody")
    broken = [*mine, {**mine[0], "eventTime": "yesterday"}]
    with pytest.raises(InputError, match="event 3: eventTime"):
        server.take(broken, "somebody")
    silo = lineage(tmp_path, "shop-a")
    a_silo(silo, "shop-a", 1)
    his = [s.event for s in silo.events()]
    with pytest.raises(InputError, match=r"event 1: shop-b speaks in the name of foedus://shop-a"):
        server.take(his, "a file", "shop-b")
    for nobody in ("", "own", "a\nb"):
        with pytest.raises(InputError):
            server.take(mine, nobody)
    assert server.size == 2


def test_threads_share_a_store_and_one_ones_fault_is_not_the_others(tmp_path: Path) -> None:
    store, failed = lineage(tmp_path), []

    def tell(number: int) -> None:
        for _ in range(10):
            if number == 0:
                try:
                    store.emit(event("never begun"))
                except FoedusError as error:
                    failed.append(error)
            else:
                store.emit(*pair(event(f"job {number}")))

    threads = [threading.Thread(target=tell, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) == 10 and store.check() == 80
    jobs = [s.event["job"]["name"] for s in store.events()]
    assert jobs[::2] == jobs[1::2]  # pairs stay whole


def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    lineage(tmp_path)
    script = (
        "import sys; from pathlib import Path\n"
        "from foedus.compliance.lineage import *\n"
        f"store = Lineage(Path(sys.argv[1]), 'foedus://server', {PRODUCER!r})\n"
        "from uuid import UUID\n"
        "while True:\n"
        "    told = [x for _ in range(5) for x in pair(Event(new_run_id(), 'j', 'COMPLETE', (UUID(int=7), 'n', 'p')))]\n"
        "    store.emit(*told); print(store.size, flush=True)\n"
    )
    told = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "server.db")],
            stdout=subprocess.PIPE,
            env=os.environ,
        )
        assert process.stdout is not None
        for _ in range(3):
            told = int(process.stdout.readline())
        process.kill()
        process.wait()
        process.stdout.close()
        store = Store(tmp_path / "server.db")
        assert store.check() >= told and store.check() % 10 == 0


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2) as disk:
        store = lineage(disk.path)
        store.emit(*pair(event()))
        disk.fill()
        with pytest.raises(InputError, match=r"server\.db: .*(full|I/O)"):
            store.emit(*(x for i in range(100) for x in pair(event("x" * 500))))
        disk.free()
        assert store.check() == 2 and store.emit(*pair(event())) == 2


def test_what_is_no_store_or_was_changed_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Store(tmp_path / "none.db")
    store = lineage(tmp_path)
    store.emit(*(x for _ in range(50) for x in pair(event())))
    good = store.path.read_bytes()
    for raw in (b"", b"not a database" * 100):
        other = tmp_path / "other.db"
        other.write_bytes(raw)
        with pytest.raises(FoedusError):
            Store(other).check()
    changed = tmp_path / "changed.db"
    changed.write_bytes(good.replace(b'"COMPLETE"', b'"COMPLETF"', 1))
    with pytest.raises(VerificationError):
        Store(changed).check()
    changed.write_bytes(good[: len(good) // 2])
    with pytest.raises(FoedusError):
        Store(changed).check()
    shutil.copy(store.path, changed)
    with sqlite3.connect(changed) as db, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        db.execute("DELETE FROM event WHERE seq = 3")
    with sqlite3.connect(changed) as db:
        db.execute("DROP TRIGGER event_delete")
        db.execute("DELETE FROM event WHERE seq = 3")
    db.close()
    with pytest.raises(VerificationError, match="were changed"):
        Store(changed)
