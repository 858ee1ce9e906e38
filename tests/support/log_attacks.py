"""Seeded attacks on an audit log by whoever owns its file and its key, and who notices.

A case is an honest log of which a witness has seen a beginning; the owner changes an entry that the witness has
seen, in one of eight ways and to one of three depths:

- *rows*: the entries alone, the tree left as it was;
- *leaves*: their leaf hashes, too;
- *rebuilt*: the whole tree, so that the file is flawless, and the new head is signed with the log's key.

Two may notice: the file (`AuditLog.check` recomputes it from its bytes) and the witness (`HeadKeeper`, shown the new
head with the best proof that the changed log can give). A ninth kind, *none*, is an honest log that grew: nobody may
object to it. The real code runs on real files, in memory if there is a
/dev/shm, where fsync costs nothing; or in a real database (`postgres.Ground`).
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foedus.compliance.auditlog import merkle
from foedus.compliance.auditlog.checkpoint import Checkpoint
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.auditlog.witness import HeadKeeper
from foedus.documents import SigningKey, canonical
from foedus.errors import FoedusError, InputError, VerificationError

ORIGIN = "treaty.example/log"
KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))
TIME = "2026-11-22T13:48:57.123456Z"
DEPTHS = ("rows", "leaves", "rebuilt")
Bodies = list[bytes]


# ── the ways ─────────────────────────────────────────────────────────────────────────────────────
# Each takes what the log says, how much of it the witness has seen, and chance; it returns what the log says then.


def _other(rng: random.Random) -> bytes:
    """An entry that is in no honest log."""
    record = {
        "actor": "owner",
        "action": "study.approved",
        "subject": f"{rng.getrandbits(64):x}",
        "details": {},
    }
    return canonical({**record, "time": TIME})


def edit(bodies: Bodies, seen: int, rng: random.Random) -> Bodies:
    at = rng.randrange(seen)
    old = bodies[at]
    if rng.random() < 0.5:  # one bit, which may leave no JSON
        bit = rng.randrange(8 * len(old))
        new = bytearray(old)
        new[bit // 8] ^= 1 << bit % 8
    else:
        new = bytearray(old.replace(b"bank", b"shop"))
    return [*bodies[:at], bytes(new), *bodies[at + 1 :]]


def reorder(bodies: Bodies, seen: int, rng: random.Random) -> Bodies:
    first, second = rng.sample(range(len(bodies)), 2)
    first, second = min(first, second), max(first, second)
    if first >= seen:
        first = rng.randrange(seen)
    out = list(bodies)
    match rng.randrange(3):
        case 0:
            out[first], out[second] = out[second], out[first]
        case 1:
            out.insert(second, out.pop(first))
        case _:
            out[first : second + 1] = reversed(out[first : second + 1])
    return out


def insert(bodies: Bodies, seen: int, rng: random.Random) -> Bodies:
    at = rng.randrange(seen)
    new = rng.choice(bodies) if rng.random() < 0.3 else _other(rng)
    if new == bodies[at]:  # doubled: what the witness has seen may still be there
        new = _other(rng)
    return [*bodies[:at], new, *bodies[at:]]


def delete(bodies: Bodies, seen: int, rng: random.Random) -> Bodies:
    at = rng.randrange(min(seen, len(bodies) - 1))  # never the last: that is the next kind
    return bodies[:at] + bodies[min(len(bodies) - 1, at + rng.choice([1, 1, 1, 2, 5])) :]


def truncate(bodies: Bodies, seen: int, rng: random.Random) -> Bodies:
    return bodies[: rng.randrange(seen)]


def swap(bodies: Bodies, seen: int, rng: random.Random) -> Bodies:
    return [_other(rng) for _ in range(rng.randrange(2 * len(bodies)))]


def rewrite_suffix(bodies: Bodies, seen: int, rng: random.Random) -> Bodies:
    at = rng.randrange(seen)
    return bodies[:at] + [_other(rng) for _ in bodies[at:]]


def split_view(bodies: Bodies, seen: int, rng: random.Random) -> Bodies:
    """A second history from before what the witness saw on; another party is shown it, and can't tell."""
    at = rng.randrange(seen)
    return bodies[:at] + [_other(rng) for _ in range(rng.randrange(1, 2 * len(bodies)))]


def grown(bodies: Bodies, seen: int, rng: random.Random) -> Bodies:
    return bodies + [_other(rng) for _ in range(rng.randrange(20))]


Way = Callable[[Bodies, int, random.Random], Bodies]
KINDS: dict[str, Way] = {
    "edit": edit,
    "reorder": reorder,
    "insert": insert,
    "delete": delete,
    "tail truncation": truncate,
    "whole-log swap": swap,
    "same-length suffix rewrite": rewrite_suffix,
    "split view": split_view,
}
HONEST = "none"


# ── the places ───────────────────────────────────────────────────────────────────────────────────

Node = tuple[int, int, bytes]


class Ground(Protocol):
    """A place that a log lies in, in its owner's hands."""

    def lay(self, base: Base, folder: Path) -> Path | str:
        """Where the honest log of `base` lies from now on."""

    def write(self, bodies: Bodies, nodes: Sequence[Node], depth: str) -> None:
        """Make it say this, as its owner can: triggers off, and on again."""


class File:
    """An SQLite file."""

    def lay(self, base: Base, folder: Path) -> Path | str:
        self._path = folder / "log.db"
        shutil.copyfile(base.path, self._path)
        return self._path

    def write(self, bodies: Bodies, nodes: Sequence[Node], depth: str) -> None:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as db:
            triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
            db.execute("BEGIN")
            for name, _ in triggers:
                db.execute(f"DROP TRIGGER {name}")
            db.execute("DELETE FROM entry")
            db.executemany("INSERT INTO entry VALUES (?, ?)", enumerate(bodies))
            if depth != "rows":
                db.execute("DELETE FROM node WHERE level = 0 OR ?", (depth == "rebuilt",))
                db.executemany(
                    "INSERT INTO node VALUES (?, ?, ?)", [n for n in nodes if depth == "rebuilt" or n[0] == 0]
                )
            for _, sql in triggers:
                db.execute(sql)
            db.execute("COMMIT")


def tree(bodies: Sequence[bytes]) -> list[Node]:
    """Every complete subtree over these entries."""
    nodes: list[Node] = []
    edge: list[bytes] = []
    for size, body in enumerate(bodies):
        added, edge = merkle.grow(edge, size, merkle.leaf_hash(body))
        nodes += added
    return nodes


@dataclass(frozen=True)
class Base:
    """An honest log, and the heads that a witness may have kept of it."""

    path: Path
    bodies: Bodies

    @classmethod
    def make(cls, folder: Path, size: int) -> Base:
        path = folder / f"honest-{size}.db"
        log = AuditLog(path, ORIGIN, clock=lambda: datetime.fromisoformat(TIME))
        log.append_many([("dpo@bank", "study.approved", f"study-{i}", {"n": i}) for i in range(size)])
        return cls(path, [entry.body for entry in log.entries()])

    def keeper(self, path: Path, seen: int) -> HeadKeeper:
        """A witness that has seen so many entries."""
        head = Checkpoint(ORIGIN, seen, merkle.root_from_leaves([*map(merkle.leaf_hash, self.bodies[:seen])]))
        path.write_text(head.sign(ORIGIN, KEY), encoding="utf-8")
        return HeadKeeper(path, ORIGIN, KEY.public)


@dataclass(frozen=True)
class Outcome:
    """Who noticed."""

    kind: str
    depth: str
    by_file: bool
    by_witness: bool


def _noticed(look: Callable[[], object]) -> bool:
    try:
        look()
    except (VerificationError, InputError):
        return True
    return False


def show(log: AuditLog, keeper: HeadKeeper) -> None:
    """Show a witness the log's head, with the best proof the log can give."""
    kept = keeper.head
    size = 0 if kept is None else kept.size
    keeper.advance(log.checkpoint(ORIGIN, KEY), log.consistency_proof(min(size, log.size)))


def run(
    base: Base, kind: str, depth: str, folder: Path, rng: random.Random, ground: Ground | None = None
) -> Outcome:
    """One case, from the honest log to who notices. `folder` is empty before, and is left behind."""
    ground = ground or File()
    seen = rng.randrange(1, len(base.bodies) + 1)
    changed = (KINDS | {HONEST: grown})[kind](base.bodies, seen, rng)
    if kind != HONEST and changed[:seen] == base.bodies[:seen]:
        raise AssertionError(f"{kind}: nothing that the witness has seen was changed")
    place = ground.lay(base, folder)
    ground.write(changed, tree(changed), depth)
    keeper = base.keeper(folder / "head", seen)
    log = AuditLog(place, ORIGIN)
    if kind == "split view":  # somebody else follows the second history in good faith
        show(log, HeadKeeper(folder / "victim", ORIGIN, KEY.public))
    return Outcome(kind, depth, _noticed(log.check), _noticed(lambda: show(log, keeper)))


# ── many ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Table:
    """Counts by kind."""

    cases: Counter[str] = field(default_factory=Counter)
    rebuilt: Counter[str] = field(default_factory=Counter)
    by_file: Counter[str] = field(default_factory=Counter)
    by_witness: Counter[str] = field(default_factory=Counter)
    detected: Counter[str] = field(default_factory=Counter)

    def add(self, one: Outcome) -> None:
        self.cases[one.kind] += 1
        self.rebuilt[one.kind] += one.depth == "rebuilt"
        self.by_file[one.kind] += one.by_file
        self.by_witness[one.kind] += one.by_witness
        self.detected[one.kind] += one.by_file or one.by_witness

    @property
    def fine(self) -> bool:
        """Every attack was noticed, and no honest log objected to."""
        return self.detected[HONEST] == 0 and all(self.detected[k] == self.cases[k] for k in KINDS)

    def rows(self) -> Iterator[tuple[str, ...]]:
        """kind, cases, of them rebuilt, detected, by the file itself, by the witness."""
        for kind in (*KINDS, HONEST):
            counts = (self.cases, self.rebuilt, self.detected, self.by_file, self.by_witness)
            yield (kind, *(f"{count[kind]:,}" for count in counts))


def many(count: int, seed: int, ground: Ground | None = None) -> Table:
    """`count` attacks, the eight kinds by turns, two in three rebuilt, and a tenth as many honest logs.

    Raises:
        AssertionError: an attack changed nothing, or a flawless file was found at fault.
    """
    rng, table = random.Random(seed), Table()
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        bases = [Base.make(folder, size) for size in (2, 3, 4, 7, 8, 9, 16, 21, 33, 64)]
        kinds = [list(KINDS)[i % len(KINDS)] for i in range(count)] + [HONEST] * (count // 10)
        for kind in kinds:
            depth = "rebuilt" if kind in (HONEST, "split view") else rng.choice([*DEPTHS, "rebuilt"])
            place = Path(tempfile.mkdtemp(dir=folder))
            try:
                found = run(rng.choice(bases), kind, depth, place, rng, ground)
            except FoedusError as error:
                raise AssertionError(f"{kind}, {depth}: {error.message}") from error
            finally:
                shutil.rmtree(place)
            table.add(found)
    return table
