"""Some trips to every node, one warm-up before them; what each took goes into a file.

A trip: one small message to every node, until every reply is there. ``quick`` trips are pushed and pulled as
`federation.secure_sum` does it, the others by Flower's own ``send_and_receive``.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()

_TICK = os.sysconf("SC_CLK_TCK")
_LIMIT = 300.0  # seconds for a trip


def cpu(roots: list[int]) -> float:
    """CPU seconds of some processes, of all below them, and of those that have ended."""
    parents: dict[int, list[tuple[int, int]]] = {}
    own: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        own[int(entry.name)] = sum(map(int, fields[11:15]))  # user, system, and of reaped children
        parents.setdefault(int(fields[1]), []).append((int(entry.name), own[int(entry.name)]))
    total, below = 0, list(roots)
    for root in roots:
        total += own.get(root, 0)
    while below:
        for pid, ticks in parents.get(below.pop(), []):
            total += ticks
            below.append(pid)
    return total / _TICK


def quick(grid: Grid, messages: list[Message], pause: Callable[[float], None]) -> list[Message]:
    """Push, then pull until all have answered."""
    waiting, replies, end = set(grid.push_messages(messages)), [], time.monotonic() + _LIMIT
    while waiting and time.monotonic() < end:
        got = list(grid.pull_messages(waiting))
        waiting -= {reply.metadata.reply_to_message_id for reply in got}
        replies += got
        if waiting:
            pause(1.0)
    return replies


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for the nodes, then make the trips."""
    config = context.run_config
    count, roots = int(config["nodes"]), [int(pid) for pid in str(config["roots"]).split()]
    pause = None
    if config["quick"]:
        from foedus.server.trips import quicken

        pause = quicken()
    end = time.monotonic() + _LIMIT
    while len(nodes := sorted(grid.get_node_ids())) < count:
        if time.monotonic() > end:
            raise TimeoutError(f"{len(nodes)} of {count} nodes")
        time.sleep(0.1)
    trips = []
    for number in range(int(config["trips"]) + 1):
        body = os.urandom(32)
        content = RecordDict({"c": ConfigRecord({"number": number, "body": body})})
        messages = [
            Message(content, dst_node_id=node, message_type="query.noop", group_id=str(number))
            for node in nodes
        ]
        spent, began, start = cpu(roots), time.time(), time.perf_counter()
        if pause is None:
            replies = list(grid.send_and_receive(messages, timeout=_LIMIT))
        else:
            replies = quick(grid, messages, pause)
        seconds = time.perf_counter() - start
        good = [reply for reply in replies if not reply.has_error() and reply.content["c"]["body"] == body]
        if {reply.metadata.src_node_id for reply in good} != set(nodes):
            raise ValueError(f"trip {number}: {len(good)} of {count} answers")
        trips.append({"wall": seconds, "cpu": cpu(roots) - spent, "from": began, "to": time.time()})
        time.sleep(0.5)
    Path(str(config["out"])).write_text(json.dumps(trips[1:]))
