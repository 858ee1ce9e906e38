"""`make bench-lineage`: events a second that are on disk, beside openlineage-python's file transport, and one query.

Both sides are given the same runs of a study's rounds, a START and a COMPLETE each, with the same inputs, outputs and facets, and
must leave the same events. Ours checks pairs, indexes what flows where and syncs; the transport opens a file for each event and
syncs nothing. Prints every side, the ratios and the bars; exits non-zero if one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

import measure
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.transport.file import FileConfig, FileTransport

from foedus.compliance.lineage import Event, Lineage, names, new_run_id, pair, tracing
from foedus.compliance.lineage import facets as f

STUDY, MODEL = "5a" * 32, "6b" * 32
PARENT = (UUID(int=7), "foedus://server", "study")
PRODUCER = "https://foedus.invalid/bench"
BAR = 2_000  # events a second, on disk
BATCH = 256
BAR_QUERY = 1.0  # s, from a model to everything, among all events
PURPOSE = {f.Purpose.facet: names.purpose("dpv:ServiceOptimisation", STUDY, "1", None)}


def a_round(number: int) -> tuple[Event, Event]:
    """One silo's round: a cohort and a table in, a masked update out."""
    entry = f"{number:064x}"
    used = names.cohort("shop-a", "dpv:ServiceOptimisation", entry, root=MODEL, log_size=number)
    told = names.secure_sum(number + 1, "train", ["shop-a", "shop-b", "shop-c"], 3, "checked", entry)
    return pair(
        Event(
            new_run_id(),
            "study/round",
            "COMPLETE",
            PARENT,
            [names.table("shop-a", "orders"), used],
            [names.update("shop-a", STUDY, "1", number)],
            {"purpose": "dpv:ServiceOptimisation"},
            {**PURPOSE, f.SecureSum.facet: told},
        )
    )


def batched(store: Lineage, rounds: Sequence[tuple[Event, Event]]) -> None:
    for start in range(0, len(rounds), BATCH // 2):
        store.emit(*(event for run in rounds[start : start + BATCH // 2] for event in run))


def by_threads(path: Path, rounds: Sequence[tuple[Event, Event]], writers: int) -> Lineage:
    """Every run by itself; those of several threads share a commit."""
    store = Lineage(path, "foedus://shop-a", PRODUCER)

    def tell(mine: Sequence[tuple[Event, Event]]) -> None:
        for run in mine:
            store.emit(*run)

    threads = [threading.Thread(target=tell, args=(rounds[i::writers],)) for i in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return store


def transported(path: Path, events: Sequence[RunEvent]) -> None:
    transport = FileTransport(FileConfig(str(path), append=True))
    for event in events:
        transport.emit(event)


def theirs(store: Lineage, rounds: Sequence[tuple[Event, Event]]) -> list[RunEvent]:
    """The same events as objects of openlineage-python's; making them is not timed."""
    made = []
    for event in (store.json(e) for run in rounds for e in run):
        run, job = event["run"], event["job"]
        made.append(
            RunEvent(
                eventTime=event["eventTime"],
                producer=event["producer"],
                eventType=RunState[event["eventType"]],
                run=Run(runId=run["runId"], facets=run["facets"]),
                job=Job(job["namespace"], job["name"], job["facets"]),
                inputs=[InputDataset(d["namespace"], d["name"], facets=d["facets"]) for d in event["inputs"]],
                outputs=[
                    OutputDataset(d["namespace"], d["name"], facets=d["facets"]) for d in event["outputs"]
                ],
            )
        )
    return made


def same(store: Lineage, path: Path) -> None:
    """Both must have left the same events, but for their times."""

    def plain(event: dict[str, object]) -> str:
        for dataset in (*event["inputs"], *event["outputs"]):  # type: ignore[misc]
            for empty in ("inputFacets", "outputFacets"):
                dataset.pop(empty, None)
        return json.dumps({k: v for k, v in event.items() if k != "eventTime"}, sort_keys=True)

    ours = sorted(plain(s.event) for s in store.events())
    rival = sorted(plain(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
    if ours != rival:
        raise AssertionError("the two sides did not leave the same events")


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=4_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    runs, writers = options.events // 2, 16
    events, rates = 2 * runs, dict[str, list[float]]()
    names_of = (
        f"our store, {BATCH} events a commit",
        f"our store, {writers} writers of two events",
        "our store, one writer of two events",
        "openlineage-python's file transport, not synced",
    )
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # on a disk: /tmp may be memory
        home = Path(folder)
        for turn in range(options.repetitions):
            rounds = [a_round(n) for n in range(runs)]
            few = rounds[: max(runs // 10, 1)]
            store = Lineage(home / f"{turn}-a.db", "foedus://shop-a", PRODUCER)
            path, rival = home / f"{turn}.jsonl", theirs(store, rounds)
            sides: list[tuple[str, int, Callable[[], object]]] = [
                (names_of[0], events, partial(batched, store, rounds)),
                (names_of[3], events, partial(transported, path, rival)),
                (names_of[1], events, partial(by_threads, home / f"{turn}-b.db", rounds, writers)),
                (names_of[2], 2 * len(few), partial(by_threads, home / f"{turn}-c.db", few, 1)),
            ]
            for name, count, work in sides if turn % 2 == 0 else reversed(sides):
                rates.setdefault(name, []).append(count / timed(work))
            same(store, path)
        inputs = [names.update("shop-a", STUDY, "1", n) for n in range(runs)]
        store.emit(
            *pair(
                Event(
                    new_run_id(), "r", "COMPLETE", PARENT, inputs, [names.document("model", "server", MODEL)]
                )
            )
        )
        found: list[tracing.Trace] = []
        query = min(timed(lambda: found.append(tracing.trace(store, MODEL))) for _ in range(3))
        if len(found[0].merged()) != runs or found[0].tables != {("shop-a", "orders")}:
            raise AssertionError("the query did not find every consent snapshot and table")
    rival_rate = statistics.median(rates[names_of[3]])
    ours = statistics.median(rates[names_of[0]])
    met = ours >= BAR
    asked = query <= BAR_QUERY
    lines = [
        "# Lineage",
        "",
        f"Events a second, each {events:,} events of rounds of a study: median (least–greatest) of {options.repetitions} runs by turns.",
        "Both sides leave the same events. Ours are on disk when the call returns, checked, and indexed by what flows where; the",
        "transport's may go with a power cut. Printed by `make bench-lineage`.",
        "",
        "| | events/s | ÷ transport |",
        "|---|---|---|",
    ]
    for name in names_of:
        found_rates = rates[name]
        middle = statistics.median(found_rates)
        lines.append(
            f"| {name} | {middle:,.0f} ({min(found_rates):,.0f}–{max(found_rates):,.0f}) | {middle / rival_rate:.2f}× |"
        )
    lines += [
        "",
        f"Bar: our store, {BATCH} events a commit, {BAR:,} events/s or more: {'met' if met else '**missed**'}.",
        f"Bar: one query from a model to its {runs:,} consent snapshots, among {events + 2:,} events, takes {BAR_QUERY:g} s or"
        + f" less: {query:.2f} s, {'met' if asked else '**missed**'}.",
        f"Load average at the end {os.getloadavg()[0]:.1f}.",
        "",
        f"On {measure.machine()}, openlineage-python {version('openlineage-python')}.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    return 0 if met and asked else 1


if __name__ == "__main__":
    sys.exit(main())
