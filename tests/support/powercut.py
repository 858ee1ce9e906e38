"""Power cuts that take what was not synced: what the log acknowledged must be there afterwards.

SIGKILL can't show a missing fsync: the kernel still writes what it was given. So a real process is recorded
(`powercut.c`, preloaded: the system's SQLite, no stand-in) and its operations are replayed up to a moment, as the
worst disk that POSIX allows would have kept them:

- what a file was synced with is there; of what was written to it since, every sector of 512 bytes is there or not,
  by chance, in any order; so is every truncation;
- of names made, removed or changed since their directory was synced, each is there or not, by chance. Syncing a file
  does not sync its name.

(Why not a VFS by apsw: it brings an SQLite of its own, and the log runs on the system's.)
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from foedus.compliance.auditlog.log import AuditLog

ORIGIN = "treaty.example/log"
SOURCE = Path(__file__).with_name("powercut.c")
COMPILER = shutil.which("cc")
_SECTOR = 512
_ACKS = "acks"

WRITER = """
import os, sys, threading
from pathlib import Path
from foedus.compliance.auditlog.log import AuditLog
path, threads, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if len(sys.argv) > 4:  # as a faulty build would: nothing is synced
    from foedus import durable
    durable.SYNCHRONOUS = sys.argv[4]
log = AuditLog(path, "treaty.example/log")
acks = os.open(path.with_name("acks"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
def run(name):
    for i in range(count):
        index = log.append(name, "write", str(i), {})
        os.write(acks, f"{index} {name} {i}\\n".encode())
all = [threading.Thread(target=run, args=(f"t{n}",)) for n in range(threads)]
for one in all: one.start()
for one in all: one.join()
"""


# ── recording ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Step:
    """One operation: kind (see powercut.c), descriptor, offset or size, bytes."""

    kind: str
    fd: int
    at: int
    data: bytes


def build(folder: Path) -> Path:
    """The recorder, compiled."""
    out = folder / "powercut.so"
    command = [str(COMPILER), "-O1", "-shared", "-fPIC", "-o", str(out), str(SOURCE), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return out


def record(recorder: Path, folder: Path, *, threads: int, count: int, synchronous: str = "") -> list[Step]:
    """What a process does to the files of `folder` while its threads append `count` entries each."""
    trace = folder.with_name(f"{folder.name}.trace")
    command = [sys.executable, "-c", WRITER, str(folder / "audit.db"), str(threads), str(count)]
    environment = {
        "LD_PRELOAD": str(recorder),
        "POWERCUT_DIR": str(folder),
        "POWERCUT_TRACE": str(trace),
        "PYTHONPATH": ":".join(sys.path),
    }
    subprocess.run([*command, *([synchronous] if synchronous else [])], env=environment, check=True)
    return list(_records(trace.read_bytes()))


def _records(data: bytes) -> Iterator[Step]:
    place, head = 0, struct.Struct("<ciqI")
    while place < len(data):
        kind, fd, at, length = head.unpack_from(data, place)
        place += head.size
        yield Step(kind.decode(), fd, at, data[place : place + length])
        place += length


# ── the worst disk ───────────────────────────────────────────────────────────────────────────────


@dataclass
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # (offset, bytes), or (size, None)
    size: int = 0  # as the process sees it

    def left(self, rng: random.Random) -> bytes:
        """What a power cut leaves of it."""
        out = bytearray(self.durable)
        mood = rng.choice(["none", "all", "some", "sectors"])
        for at, data in self.pending:
            if mood == "none" or (mood == "some" and rng.random() < 0.5):
                continue
            if data is None:
                _apply(out, at, None)
                continue
            for start in range(0, len(data), _SECTOR):
                if mood != "sectors" or rng.random() < 0.5:
                    _apply(out, at + start, data[start : start + _SECTOR])
        return bytes(out)


def _apply(content: bytearray, at: int, data: bytes | None) -> None:
    end = at if data is None else at + len(data)
    if end > len(content):
        content.extend(bytes(end - len(content)))
    if data is None:
        del content[at:]
    else:
        content[at:end] = data


class Disk:
    """The files of one directory, as the steps leave them."""

    def __init__(self, start: Path) -> None:
        self._names: dict[str, _File] = {}  # as the process sees them
        for path in start.iterdir():
            content = path.read_bytes()
            self._names[path.name] = _File(bytearray(content), [], len(content))
        self._durable = dict(self._names)
        self._changes: list[tuple[str, _File | None]] = []  # names, not synced yet
        self._open: dict[int, _File | None] = {}  # None: the directory
        self._folder = str(start)
        self.acknowledged: list[tuple[int, str, str]] = []

    def take(self, step: Step) -> None:
        """Do one step."""
        match step.kind:
            case "O":
                self._take_open(step)
            case "U":
                name = Path(step.data.decode()).name
                self._change(name, None)
            case "R":
                old, new = (Path(part.decode()).name for part in step.data.split(b"\0"))
                file = self._names[old]
                self._change(new, file)
                self._change(old, None)
            case "S":
                self._take_sync(self._open[step.fd])
            case _:
                self._take_write(step)

    def _take_open(self, step: Step) -> None:
        path = step.data.decode()
        if path.rstrip("/") == self._folder:
            self._open[step.fd] = None
            return
        name = Path(path).name
        if name not in self._names:
            self._change(name, _File())
        file = self._names[name]
        if step.at:  # O_TRUNC
            file.pending.append((0, None))
            file.size = 0
        self._open[step.fd] = file

    def _take_sync(self, file: _File | None) -> None:
        if file is None:
            self._durable, self._changes = dict(self._names), []
            return
        for at, data in file.pending:
            _apply(file.durable, at, data)
        file.pending = []

    def _take_write(self, step: Step) -> None:
        file = self._open[step.fd]
        assert file is not None
        if file is self._names.get(_ACKS):
            for line in step.data.decode().splitlines():
                index, name, i = line.split()
                self.acknowledged.append((int(index), name, i))
        elif step.kind == "T":
            file.pending.append((step.at, None))
            file.size = step.at
        else:
            at = file.size if step.at < 0 else step.at
            file.pending.append((at, step.data))
            file.size = max(file.size, at + len(step.data))

    def _change(self, name: str, file: _File | None) -> None:
        if file is None:
            self._names.pop(name, None)
        else:
            self._names[name] = file
        self._changes.append((name, file))

    def cut(self, folder: Path, rng: random.Random) -> None:
        """Write what a power cut now would leave into `folder`."""
        names, mood = dict(self._durable), rng.choice(["none", "all", "some"])
        for name, file in self._changes:
            if mood == "all" or (mood == "some" and rng.random() < 0.5):
                if file is None:
                    names.pop(name, None)
                else:
                    names[name] = file
        for name, file in names.items():
            if name != _ACKS:
                (folder / name).write_bytes(file.left(rng))


def lost(path: Path, acknowledged: list[tuple[int, str, str]], before: list[bytes]) -> str:
    """What is wrong with a log after a crash, in words; "" if nothing is.

    Args:
        acknowledged: (index, actor, subject) of entries that a caller was told of.
        before: the bodies that the log had at the start.
    """
    try:
        log = AuditLog(path, ORIGIN, create=False)
        log.check()
        entries = list(log.entries())
    except Exception as error:  # noqa: BLE001
        return f"no log: {error}"
    if [entry.body for entry in entries[: len(before)]] != before:
        return "an entry from before is gone"
    for index, actor, subject in acknowledged:
        if index >= len(entries):
            return f"entry {index} was acknowledged, and is lost"
        record = entries[index].record
        if (record["actor"], record["subject"]) != (actor, subject):
            return f"entry {index} was acknowledged, and is another"
    return ""


@dataclass(frozen=True)
class Cuts:
    """How many cuts there were, and what was wrong after some."""

    rounds: int
    steps: int
    acknowledged: int
    faults: list[str]


def power_cuts(folder: Path, rounds: int, seed: int, *, synchronous: str = "", count: int = 12) -> Cuts:
    """Record eight threads that append, and cut the power at `rounds` moments.

    Args:
        folder: empty; files are left in it.
        synchronous: overrides SQLite's setting of that name ("OFF": what a build that syncs nothing loses).
    """
    rng = random.Random(seed)
    base, live = folder / "base", folder / "live"
    base.mkdir()
    log = AuditLog(base / "audit.db", ORIGIN)
    log.append_many([("before", "write", str(i), {}) for i in range(20)])
    before = [entry.body for entry in log.entries()]
    shutil.copytree(base, live)
    steps = record(build(folder), live, threads=8, count=count, synchronous=synchronous)
    moments = sorted(rng.randrange(len(steps) + 1) for _ in range(rounds))
    shutil.rmtree(live)
    shutil.copytree(base, live)  # as it was: where the disk starts from
    disk, done, faults = Disk(live), 0, list[str]()
    for number, moment in enumerate(moments):
        for step in steps[done:moment]:
            disk.take(step)
        done = moment
        place = folder / f"cut-{number}"
        place.mkdir()
        disk.cut(place, rng)
        if fault := lost(place / "audit.db", disk.acknowledged, before):
            faults.append(f"cut after {moment} of {len(steps)} steps: {fault}")
        shutil.rmtree(place)
    return Cuts(rounds, len(steps), len(disk.acknowledged), faults)
