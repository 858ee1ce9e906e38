"""`make bench-auditlog`: the audit log's speed beside SQLite with a transaction an entry and pymerkle, and what it survives.

First the figures: appends by 64 writers, each acknowledged when on disk, by turns with the rivals on the same disk;
inclusion proofs and reopening at a million entries. Then the rounds: kill -9, power cuts that take what was not synced
(and the same with the syncs taken out, which must lose entries), and 10,000 attacks by the log's owner. Prints all with
their bars; exits non-zero if one is missed. The disk is the one that TMPDIR, or --folder, is on.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import measure
from measure import Row
from support import killing, log_attacks, postgres, powercut

from foedus.compliance.auditlog import merkle
from foedus.compliance.auditlog.log import AuditLog
from foedus.documents import canonical

ORIGIN = "bench.example/log"
WRITERS = 64
DETAILS = {"round": 7, "digest": "ab" * 32, "silos": ["bank-a", "bank-b", "shop"]}
APPENDS, P99 = 3_000.0, 20.0  # a second; ms
PROOFS, REOPEN = 2_000.0, 50.0  # a second; ms
PARTS = ("appends", "proofs", "postgres", "crashes", "tampering")
HEAD = ("work", "foedus", "rival", "ratio", "bar", "")


@dataclass(frozen=True)
class Rate:
    """Entries a second, and the 99th percentile of the wait for one, ms."""

    rate: float
    p99: float


def hammer(append: Callable[[int], object], seconds: float, writers: int = WRITERS) -> Rate:
    """`writers` threads that append one after another for a while."""
    waits: list[list[float]] = [[] for _ in range(writers)]
    until = time.perf_counter() + seconds

    def run(mine: list[float]) -> None:
        while (start := time.perf_counter()) < until:
            append(len(mine))
            mine.append(time.perf_counter() - start)

    threads = [threading.Thread(target=run, args=(mine,)) for mine in waits]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent, all_waits = time.perf_counter() - start, sorted(w for mine in waits for w in mine)
    return Rate(len(all_waits) / spent, 1e3 * all_waits[int(0.99 * len(all_waits))])


def ours(folder: Path, seconds: float) -> Rate:
    """foedus' log; checked afterwards."""
    log = AuditLog(folder / "ours.db", ORIGIN)
    found = hammer(lambda i: log.append("coordinator", "round.summed", "c" * 64, DETAILS), seconds)
    log.check()
    return found


def plain(folder: Path, seconds: float) -> Rate:
    """SQLite with the same safety and no tree: one connection, a lock, a transaction an entry."""
    record = {"actor": "coordinator", "action": "round.summed", "subject": "c" * 64, "details": DETAILS}
    body, lock = canonical({**record, "time": "2026-11-22T13:48:57.123456Z"}), threading.Lock()
    with closing(sqlite3.connect(folder / "plain.db", isolation_level=None, check_same_thread=False)) as db:
        db.execute("PRAGMA synchronous = EXTRA")
        db.execute("CREATE TABLE entry (seq INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT")

        def append(_: int) -> None:
            with lock:
                db.execute("INSERT INTO entry (body) VALUES (?)", (body,))

        return hammer(append, seconds)


def pymerkle_tree(folder: Path, seconds: float) -> Rate:
    """pymerkle's own tree in SQLite, which is for one thread."""
    from pymerkle import SqliteTree

    tree, body = SqliteTree(str(folder / "pymerkle.db"), algorithm="sha256"), canonical(DETAILS)
    return hammer_one(lambda: tree.append_entry(body), seconds)


def hammer_one(append: Callable[[], object], seconds: float) -> Rate:
    """One writer; with a lock around, more would share this rate."""
    waits, start = [], time.perf_counter()
    while (now := time.perf_counter()) < start + seconds:
        append()
        waits.append(time.perf_counter() - now)
    waits.sort()
    return Rate(len(waits) / (time.perf_counter() - start), 1e3 * waits[int(0.99 * len(waits))])


def postgres_rows(folder: Path, turns: int, seconds: float, entries: int) -> list[Row]:
    """The log in PostgreSQL, its cluster on the same disk; reported, no bar."""
    if why := postgres.missing():
        return [Row("the log in PostgreSQL", why, "–", "–", "–", None)]
    rates, single, opening = [], [], []
    with postgres.cluster(folder) as cluster:
        for _ in range(min(turns, 3)):
            log = AuditLog(cluster.log(), ORIGIN)
            rates.append(
                hammer(
                    lambda i, log=log: log.append("coordinator", "round.summed", "c" * 64, DETAILS), seconds
                )
            )
            log.check()
        place = cluster.log()
        log = AuditLog(place, ORIGIN)
        fill(log, entries)
        rng = random.Random(1)
        for _ in range(turns):
            start = time.perf_counter()
            for _ in range(500):
                log.inclusion_proof(rng.randrange(entries))
            single.append(500 / (time.perf_counter() - start))
            start = time.perf_counter()
            assert AuditLog(place, ORIGIN, create=False).size == entries
            opening.append(1e3 * (time.perf_counter() - start))

    def spread(values: list[float], form: str) -> str:
        return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"

    return [
        Row(
            f"in PostgreSQL: durable appends a second, {WRITERS} writers",
            spread([r.rate for r in rates], ",.0f"),
            f"99th percentile, ms: {spread([r.p99 for r in rates], '.1f')}",
            "–",
            "–",
            None,
        ),
        Row(
            f"in PostgreSQL: inclusion proofs a second, one by one, {entries:,} entries",
            spread(single, ",.0f"),
            f"reopening, ms: {spread(opening, '.1f')}",
            "–",
            "–",
            None,
        ),
    ]


def fill(log: AuditLog, entries: int) -> None:
    """Entries up to so many."""
    while (size := log.size) < entries:
        rows = [("coordinator", "round.summed", "c" * 64, {"n": size + i}) for i in range(20_000)]
        log.append_many(rows[: entries - size])


def append_rows(folder: Path, turns: int, seconds: float) -> list[Row]:
    """64 writers, ours and each rival by turns."""
    rivals: dict[str, Callable[[Path, float], Rate]] = {"SQLite, a transaction an entry": plain}
    if installed("pymerkle"):
        rivals["pymerkle's SqliteTree, one writer"] = pymerkle_tree
    found: dict[str, list[Rate]] = {name: [] for name in ("", *rivals)}
    for turn in range(turns):
        for name, side in {"": ours, **rivals}.items():
            place = folder / f"turn-{turn}-{len(name)}"
            place.mkdir()
            found[name].append(side(place, seconds))
            shutil.rmtree(place)
    mine = found.pop("")
    rate, p99 = statistics.median(r.rate for r in mine), statistics.median(r.p99 for r in mine)
    rows = []
    for name, theirs in found.items():
        ratios = [a.rate / b.rate for a, b in zip(mine, theirs, strict=True)]
        rival = statistics.median(r.rate for r in theirs)
        rows.append(
            Row(
                f"durable appends a second, {WRITERS} writers",
                f"{rate:,.0f} ({min(r.rate for r in mine):,.0f}–{max(r.rate for r in mine):,.0f})",
                f"{name}: {rival:,.0f}",
                f"{statistics.median(ratios):.0f}× ({min(ratios):.0f}–{max(ratios):.0f})",
                f"≥ {APPENDS:,.0f}",
                rate >= APPENDS,
            )
        )
    slow = statistics.median(r.p99 for r in found["SQLite, a transaction an entry"])
    spread = f"{p99:.1f} ({min(r.p99 for r in mine):.1f}–{max(r.p99 for r in mine):.1f})"
    rows.append(Row("… 99th percentile, ms", spread, f"SQLite: {slow:,.0f}", "–", f"≤ {P99:g}", p99 <= P99))
    return rows


def proof_rows(folder: Path, entries: int, turns: int) -> list[Row]:
    """Inclusion proofs and reopening at `entries`."""
    path = folder / "large.db"
    log = AuditLog(path, ORIGIN)
    fill(log, entries)
    rng, root, rates, single, opening = random.Random(1), log.root(), [], [], []
    for _ in range(turns):
        indices = [rng.randrange(entries) for _ in range(2_000)]
        start = time.perf_counter()
        proofs = log.inclusion_proofs(indices)
        rates.append(len(indices) / (time.perf_counter() - start))
        for index, proof in list(zip(indices, proofs, strict=True))[:20]:
            (entry,) = log.entries(index, index + 1)
            merkle.verify_inclusion(entry.leaf, index, entries, proof, root)
        start = time.perf_counter()
        for index in indices:
            log.inclusion_proof(index)
        single.append(len(indices) / (time.perf_counter() - start))
        start = time.perf_counter()
        assert AuditLog(path, ORIGIN, create=False).size == entries
        opening.append(1e3 * (time.perf_counter() - start))
    rate, opened = statistics.median(single), statistics.median(opening)
    path.unlink()

    def spread(values: list[float], form: str) -> str:
        return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"

    many = statistics.median(rates)
    return [
        Row(
            f"inclusion proofs a second, one by one, {entries:,} entries",
            spread(single, ",.0f"),
            f"foedus, 2,000 at once: {spread(rates, ',.0f')}",
            f"{rate / many:.1f}×",
            f"≥ {PROOFS:,.0f}",
            rate >= PROOFS,
        ),
        Row(
            f"reopening, ms, {entries:,} entries",
            spread(opening, ".1f"),
            "–",
            "–",
            f"≤ {REOPEN:g}",
            opened <= REOPEN,
        ),
    ]


def crash_rows(folder: Path, kills: int, cuts: int) -> list[Row]:
    """kill -9 and power cuts; each figure is faults of rounds."""
    place = folder / "kills"
    place.mkdir()
    command = [sys.executable, str(killing.__file__), str(place), str(kills), "1"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    told = f"{len(found['faults'])} of {kills} rounds, {found['acknowledged']:,} acknowledged"
    rows = [Row("lost to kill -9, 8 writers", told, "–", "–", "0", not found["faults"])]
    if powercut.COMPILER is None:
        return [*rows, Row("lost to a power cut", "no C compiler: not run", "–", "–", "0", False)]
    sides = {"": "", "OFF": ""}
    memory = Path("/dev/shm")  # noqa: S108  # the disk is simulated
    for synchronous in sides:
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
            done = powercut.power_cuts(Path(name), cuts, seed=1, synchronous=synchronous, count=40)
        sides[synchronous] = f"{len(done.faults)} of {cuts} cuts, {done.acknowledged} acknowledged"
    rival = f"without the syncs: {sides['OFF']}"
    fine = sides[""].startswith("0 ") and not sides["OFF"].startswith("0 ")
    return [
        *rows,
        Row("lost to a power cut, 8 writers", sides[""], rival, "–", "0, and without syncs some", fine),
    ]


def installed(name: str) -> str:
    """Its version, "" if it is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*PARTS], action="append")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of appending, a turn")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--cuts", type=int, default=1_000)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--write", type=Path, help="also write the tables to this file")
    options = parser.parse_args()
    logging.disable()  # first contacts, by the thousand
    parts = options.only or PARTS
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if "appends" in parts:
            rows += append_rows(folder, options.turns, options.seconds)
        if "proofs" in parts:
            rows += proof_rows(folder, options.entries, options.turns)
        if "postgres" in parts:
            # beside `folder`, which only this user may enter: PostgreSQL runs as another
            place = options.folder or Path(tempfile.gettempdir())
            rows += postgres_rows(place, options.turns, options.seconds, options.entries // 5)
        if "crashes" in parts:
            rows += crash_rows(folder, options.kills, options.cuts)
    cells = [row.cells for row in rows]
    measure.show("the audit log", HEAD, cells)
    fine = all(row.fine is not False for row in rows)
    lines = [
        "# The audit log",
        "",
        f"Median (least–greatest) of {options.turns} turns; of appends, {options.seconds:g} s a turn, ours and each rival one after the",
        "other on one disk. An append is acknowledged once it is on disk. Printed by `make bench-auditlog`.",
        "",
        *measure.markdown(HEAD, cells),
    ]
    if "tampering" in parts:
        table = log_attacks.many(options.cases, seed=1)
        head = ("the log's owner", "cases", "of them rebuilt", "detected", "by the file", "by the witness")
        measure.show("attacks", (*head, ""), [(*row, "") for row in table.rows()])
        lines += [
            "",
            f"{options.cases:,} attacks on entries that one honest witness has seen, and honest logs that grew (*none*).",
            "*Rebuilt*: the whole tree was made anew and the head signed with the log's key. *By the file*: `AuditLog.check`",
            "recomputes it from its bytes. *By the witness*: the new head does not continue the one kept.",
            "",
            *measure.markdown(head, list(table.rows())),
        ]
        fine = fine and table.fine
    lines += [
        "",
        f"On {measure.machine()}, SQLite {sqlite3.sqlite_version}, pymerkle {installed('pymerkle') or '–'}.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
