"""`make bench-consent`: who of a million customers may be used now, beside a pandas merge and a scan of the register.

All three answer the same question of the same register, by turns, and must give the same customers. Prints every side,
the ratios and the bars; exits non-zero if one is missed. The cohort's Merkle tree is timed beside them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import ibis
import measure
import pandas as pd
from measure import Job, Side, Watch

from foedus.clients.cohort import PURCHASES, Cohorts
from foedus.compliance.consent import Ask, ConsentRegister, Grant, Notice, Withdrawal
from foedus.compliance.consent.membership import CohortTree, StudyKey
from foedus.compliance.consent.records import micros
from foedus.compliance.consent.store import Marks

CRM = "dpv:CustomerRelationshipManagement"
ASK = Ask(CRM, frozenset([PURCHASES]))
T0 = datetime(2026, 1, 1, tzinfo=UTC)
NOW = T0 + timedelta(days=100)
BAR_SECONDS = 0.3  # for a million customers, wall
NOTICE = {
    "version": "1",
    "effective_from": "2025-01-01T00:00:00Z",
    "controller": {"name": "a", "address": "b", "contact": "c"},
    "jurisdiction": "CN",
    "audience": "own_consent",
    "purposes": {CRM: [PURCHASES]},
    "storage": {"location": "CN", "days": 1096},
    "withdraw_at": "u",
    "rights_at": "u",
    "text": {"zh": "告知书", "en": "notice"},
}


def fill(register: ConsentRegister, customers: int) -> None:
    """1 in 20 withdrew, 1 in 20 has expired, 1 in 100 withdrew and consented again."""
    register.publish(Notice.checked(NOTICE))
    for start in range(0, customers, 100_000):
        part = range(start, min(start + 100_000, customers))
        register.grant_many(
            Grant(f"C{i:08d}", CRM, "1/zh", T0, T0 + timedelta(days=50) if i % 20 == 1 else None)
            for i in part
        )
        register.withdraw_many(
            Withdrawal(f"C{i:08d}", CRM, T0 + timedelta(days=10)) for i in part if i % 20 == 0
        )
        register.grant_many(
            Grant(f"C{i:08d}", CRM, "1/zh", T0 + timedelta(days=20)) for i in part if i % 100 == 0
        )


def by_pandas(register: ConsentRegister) -> Callable[[], list[str]]:
    """The same by merging two frames that are in memory already, as ours are."""
    found = register.changes(CRM, Marks(0, 0), None)
    names = ["subject", "at", "terms", "expires_at", "own_from", "guarded"]
    grants = pd.DataFrame(found.grants, columns=names).astype({"expires_at": "Int64"})
    out = pd.DataFrame(found.withdrawals, columns=["subject", "withdrawn_at"])
    now = micros("now", NOW)

    def ask() -> list[str]:
        live = grants[(grants["at"] <= now) & (grants["expires_at"].isna() | (grants["expires_at"] > now))]
        met = live.merge(out[out["withdrawn_at"] <= now], on="subject", how="left")
        ended = met[met["withdrawn_at"] >= met["at"]]
        keys = pd.MultiIndex.from_frame(live[["subject", "at"]])
        gone = keys.isin(pd.MultiIndex.from_frame(ended[["subject", "at"]]))
        return sorted(live["subject"][~gone].unique())

    return ask


def jobs(ask: Callable[[], object], right: int) -> Iterator[Job]:
    def job(watch: Watch) -> None:
        with watch:
            found = ask()
        if len(found) != right:  # type: ignore[arg-type]
            raise AssertionError(f"{len(found)} customers where {right} are due")  # type: ignore[arg-type]

    while True:
        yield job


def joined(cohorts: Cohorts, orders: ibis.Table) -> Callable[[], object]:
    """The cohort, and a row for each of its customers from the silo's table."""

    def ask() -> object:
        consenting = ibis.memtable(cohorts.of(ASK, NOW).frame)
        return (
            orders.semi_join(consenting, orders.customer == consenting.subject)
            .select("customer")
            .to_pyarrow()
        )

    return ask


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    n, repetitions = options.customers, options.repetitions
    with tempfile.TemporaryDirectory() as folder:
        register = ConsentRegister(Path(folder) / "consent.db")
        fill(register, n)
        with duckdb.connect(Path(folder) / "silo.duckdb") as db:
            db.execute(
                "CREATE TABLE t AS SELECT printf('C%08d', (i * 7919) % $n) customer FROM range($n) r(i)",
                {"n": n},
            )
        silo = ibis.duckdb.connect(Path(folder) / "silo.duckdb", read_only=True)
        cohorts = Cohorts(register)
        start = time.perf_counter()
        ours = cohorts.of(ASK, NOW).frame["subject"].tolist()
        first = time.perf_counter() - start
        pandas, scan = by_pandas(register), lambda: register.cohort(ASK, NOW)
        if not ours == pandas() == scan()["subject"].tolist():
            raise AssertionError("the three do not give the same customers")
        asks: dict[str, Callable[[], object]] = {
            "the cohort, DuckDB (ours)": lambda: cohorts.of(ASK, NOW).frame,
            "the same, joined to a table of as many customers": joined(cohorts, silo.table("t")),
            "merge of two frames, pandas": pandas,
            "scan of the register, SQLite": scan,
        }
        sides = {name: Side() for name in asks}
        running = {name: jobs(ask, len(ours)) for name, ask in asks.items()}
        for job in running.values():
            next(job)(Watch())
        for turn in range(repetitions):
            for name in list(asks)[:: 1 if turn % 2 else -1]:
                watch = Watch()
                next(running[name])(watch)
                sides[name].add(watch)
        register.withdraw(ours[1], CRM, at=NOW)
        start = time.perf_counter()
        after = len(cohorts.of(ASK, NOW).frame)
        seen = time.perf_counter() - start
        if after != len(ours) - 1:
            raise AssertionError("a withdrawal was not in the next cohort")
        start, cpu = time.perf_counter(), time.process_time()
        CohortTree(StudyKey(bytes(32), "5" * 64), ours)
        tree, tree_cpu = time.perf_counter() - start, time.process_time() - cpu
    mine = sides["the cohort, DuckDB (ours)"]
    base = statistics.median(mine.cpu)
    met = statistics.median(mine.wall) <= BAR_SECONDS
    lines = [
        "# The cohort",
        "",
        f"Who of {n:,} customers consents now: median (least–greatest) of {repetitions} runs by turns, seconds. CPU is of all",
        "threads. All give the same customers. Printed by `make bench-consent`.",
        "",
        "| | wall | CPU | CPU ÷ ours |",
        "|---|---|---|---|",
    ]
    for name, side in sides.items():
        cells = [f"{statistics.median(t):.3f} ({min(t):.3f}–{max(t):.3f})" for t in (side.wall, side.cpu)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {statistics.median(side.cpu) / base:.1f}× |")
    lines += [
        "",
        f"Bar: ours at most {BAR_SECONDS:g} s, wall: {'met' if met else '**missed**'}.",
        f"Load average at the end {os.getloadavg()[0]:.1f}.",
        f"The first cohort of a process reads the whole register: {first:.1f} s. A cohort right after a withdrawal: {seen:.2f} s.",
        f"The cohort's Merkle tree, only where the cohort changed: {tree:.1f} s wall, {tree_cpu:.1f} s CPU.",
        "",
        f"On {measure.machine()}, duckdb {duckdb.__version__}, pandas {pd.__version__}.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
