"""kill -9 while eight threads append: ``python killing.py FOLDER ROUNDS SEED [URL]`` prints ``{rounds, acknowledged, faults}``.

A process of its own, with one thread: it forks the writers, which spares each round the start of a Python.
"""

from __future__ import annotations

import json
import os
import random
import re
import select
import signal
import sys
import threading
import time
from pathlib import Path

from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.auditlog.witness import HeadKeeper
from foedus.documents import SigningKey
from foedus.errors import FoedusError

ORIGIN = "treaty.example/log"


def write(place: Path | str, out: int, name: str) -> None:
    """Append until killed, and say so after each entry."""
    log = AuditLog(place, ORIGIN)

    def run(actor: str) -> None:
        for i in range(10**9):
            index = log.append(actor, "write", str(i), {})
            os.write(out, f"{index} {actor} {i}\n".encode())

    for n in range(8):
        threading.Thread(target=run, args=(f"{name}.{n}",)).start()
    signal.pause()


def kill_once(place: Path | str, name: str, seconds: float) -> list[tuple[int, str, str]]:
    """What a writer said it had appended before it was killed."""
    read, out = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        write(place, out, name)
        os._exit(1)
    os.close(out)
    said = b""
    select.select([read], [], [], 60)  # it is writing
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([read], [], [], left)[0]:
            said += os.read(read, 1 << 16)
    os.kill(child, signal.SIGKILL)
    while part := os.read(read, 1 << 16):
        said += part
    os.close(read)
    os.waitpid(child, 0)
    return [(int(i), a, s) for i, a, s in re.findall(r"(\d+) (\S+) (\d+)\n", said.decode())]  # whole lines


def rounds(folder: Path, count: int, seed: int, url: str = "") -> dict[str, object]:
    """Kill `count` writers of one log; a witness follows it from round to round."""
    rng, faults, total = random.Random(seed), list[str](), 0
    place, key = url or folder / "audit.db", SigningKey.generate()
    log = AuditLog(place, ORIGIN)
    keeper = HeadKeeper(folder / "head", ORIGIN, key.public)
    for number in range(count):
        acknowledged = kill_once(place, f"r{number}", rng.uniform(0, 0.08))
        total += len(acknowledged)
        kept = keeper.head
        try:
            for index, actor, subject in acknowledged:
                (entry,) = log.entries(
                    index, index + 1
                )  # the first reading recovers the journal, if one was left
                if (entry.record["actor"], entry.record["subject"]) != (actor, subject):
                    faults.append(f"round {number}: entry {index} is another")
            keeper.advance(log.checkpoint(ORIGIN, key), log.consistency_proof(kept.size if kept else 0))
        except FoedusError as error:
            faults.append(f"round {number}: {error.message}")
    log.check()
    return {"rounds": count, "acknowledged": total, "entries": log.size, "faults": faults}


if __name__ == "__main__":
    print(json.dumps(rounds(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])))
