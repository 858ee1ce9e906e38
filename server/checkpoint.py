"""How far a run has come, on disk, so that another process can go on where this one was killed.

One SQLite file a run, ``HOME/runs/RUN.db`` (mode 0600), gone when the run has ended. It holds what the
server has heard anyway: signed public keys, sealed boxes, signed headers, the running *masked* total of a
round until its sum is opened, the noisy sums. Shares and seeds are never written.

Write order: the number of a batch before anybody is asked for its keys; what a round sends down before
anybody is asked for a vector; a closed round before anybody is asked to open it; an opened sum before the
audit log speaks of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..compliance.auditlog.database import Schema, connection, establish, transaction
from ..documents import Envelope, Payload, b64, canonical, parse_json, unb64
from ..errors import InputError
from ..federation.rounds import RoundPlan
from ..federation.secure_sum import Sum

_SCHEMA = Schema(
    title="a run's checkpoint",
    application_id=0x666F6370,  # "focp"
    statements=(
        "CREATE TABLE run (study TEXT NOT NULL, id TEXT NOT NULL) STRICT",
        "CREATE TABLE batch (number INTEGER PRIMARY KEY, rounds TEXT NOT NULL, state TEXT) STRICT",
        "CREATE TABLE asked (round INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT",
        (
            "CREATE TABLE closed (round INTEGER PRIMARY KEY, batch INTEGER NOT NULL, state TEXT NOT NULL,"
            " total BLOB NOT NULL) STRICT"
        ),
        "CREATE TABLE sum (round INTEGER PRIMARY KEY, state TEXT NOT NULL, total BLOB NOT NULL) STRICT",
        "CREATE TABLE kept (name TEXT PRIMARY KEY, state TEXT NOT NULL) STRICT",
    ),
)


@dataclass(frozen=True)
class Batch:
    """A batch whose set-up is finished: its number, its rounds, and what `Aggregator.set_up_state` said."""

    number: int
    rounds: tuple[int, ...]
    state: Payload


@dataclass(frozen=True)
class Closed:
    """A round whose survivors stand and whose sum is not opened yet, as `Aggregator.round_state` said."""

    round: int
    batch: int
    state: Payload
    total: bytes


class Checkpoint:
    """The checkpoint of one run. Every method is one transaction, on disk when it returns.

    Args:
        path: the file; made if there is none.

    Raises:
        InputError: it is something else, or the checkpoint of another run.
        VerificationError: a damaged file.
    """

    def __init__(self, path: Path, *, study: str, run: str) -> None:
        self.path = path
        establish(path, _SCHEMA, first=[("INSERT INTO run VALUES (?, ?)", (study, run))])
        with connection(path) as db:
            if db.execute("SELECT study, id FROM run").fetchall() != [(study, run)]:
                raise InputError(f"{path}: the checkpoint of another run than {run}")

    # ── set-up ───────────────────────────────────────────────────────────────────────────────────

    def new_batch(self, rounds: Sequence[int]) -> int:
        """A batch number that was never given before, for these rounds."""
        with transaction(self.path) as db:
            (number,) = db.execute("SELECT coalesce(max(number) + 1, 0) FROM batch").fetchone()
            db.execute("INSERT INTO batch VALUES (?, ?, NULL)", (number, _text(list(rounds))))
        return int(number)

    def keep_batch(self, number: int, state: Payload) -> None:
        """The set-up of a batch is finished, and the run goes on with it."""
        with transaction(self.path) as db:
            db.execute("UPDATE batch SET state = ? WHERE number = ?", (_text(state), number))

    def batches(self) -> list[Batch]:
        """The batches with a finished set-up, in order; the last is the one in use."""
        with connection(self.path) as db:
            rows = db.execute(
                "SELECT number, rounds, state FROM batch WHERE state IS NOT NULL ORDER BY number"
            ).fetchall()
        return [Batch(number, tuple(parse_json(rounds)), parse_json(state)) for number, rounds, state in rows]

    # ── rounds ───────────────────────────────────────────────────────────────────────────────────

    def ask_round(self, number: int, data: bytes) -> None:
        """This is about to go to the nodes with a round: asked again, they want it to the byte.

        (Computed anew it might differ in a last digit.)
        """
        with transaction(self.path) as db:
            db.execute("DELETE FROM asked")
            db.execute("INSERT INTO asked VALUES (?, ?)", (number, data))

    def asked(self, number: int) -> bytes | None:
        """What went to the nodes with a round, or None if nobody was asked yet."""
        with connection(self.path) as db:
            row = db.execute("SELECT data FROM asked WHERE round = ?", (number,)).fetchone()
        return None if row is None else bytes(row[0])

    def close_round(self, closed: Closed) -> None:
        """The survivors of a round stand: from here on no other sum of it may be asked for."""
        with transaction(self.path) as db:
            row = (closed.round, closed.batch, _text(closed.state), closed.total)
            db.execute("INSERT INTO closed VALUES (?, ?, ?, ?)", row)

    def closed(self) -> Closed | None:
        """The round that is closed and not opened, if there is one."""
        with connection(self.path) as db:
            row = db.execute("SELECT round, batch, state, total FROM closed").fetchone()
        return None if row is None else Closed(row[0], row[1], parse_json(row[2]), bytes(row[3]))

    def keep_sum(self, result: Sum) -> None:
        """A round's sum is open; its masked total is not needed any more."""
        state = {
            "plan": result.plan.model_dump(mode="json"),
            "batch": result.batch,
            "check": str(result.check),
            "model": b64(result.data),
            "survivors": list(result.survivors),
            "transcript": {name: [e.to_json() for e in said] for name, said in result.transcript.items()},
        }
        with transaction(self.path) as db:
            row = (result.round, _text(state), result.total.astype("<i8").tobytes())
            db.execute("INSERT INTO sum VALUES (?, ?, ?)", row)
            db.execute("DELETE FROM closed WHERE round = ?", (result.round,))

    def sums(self) -> dict[int, Sum]:
        """The opened sums, by round."""
        with connection(self.path) as db:
            rows = db.execute("SELECT round, state, total FROM sum ORDER BY round").fetchall()
        return {number: _sum(parse_json(state), bytes(total)) for number, state, total in rows}

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def keep(self, name: str, value: Any) -> None:
        """Keep a JSON value of the release under a name."""
        with transaction(self.path) as db:
            db.execute("INSERT INTO kept VALUES (?, ?)", (name, _text(value)))

    def kept(self, name: str) -> Any:
        """The value kept under a name, or None."""
        with connection(self.path) as db:
            row = db.execute("SELECT state FROM kept WHERE name = ?", (name,)).fetchone()
        return None if row is None else parse_json(row[0])

    def remove(self) -> None:
        """The run has ended: what is worth keeping is in its evidence."""
        self.path.unlink(missing_ok=True)


def _sum(state: Payload, total: bytes) -> Sum:
    transcript = {name: [Envelope.from_json(e) for e in said] for name, said in state["transcript"].items()}
    return Sum(
        plan=RoundPlan.model_validate(state["plan"]),
        batch=state["batch"],
        total=np.frombuffer(total, "<i8").astype(np.int64),
        check=int(state["check"]),
        survivors=tuple(state["survivors"]),
        transcript=transcript,
        data=unb64(state["model"]),
    )


def _text(value: Any) -> str:
    return canonical(value).decode()


# ── one coordinator a run ────────────────────────────────────────────────────────────────────────


def place(home: Path, run: str) -> Path:
    """Where the checkpoint of a run lies under the server's directory."""
    return home / "runs" / f"{run}.db"


def remove(home: Path, run: str) -> None:
    """Forget the checkpoint of a run that has ended."""
    for path in (place(home, run), _lock(home, run)):
        path.unlink(missing_ok=True)


def _lock(home: Path, run: str) -> Path:
    return place(home, run).with_suffix(".lock")


@contextmanager
def alone(home: Path, run: str, attempt: str, *, seconds: float = 60.0) -> Iterator[None]:
    """Be the one coordinator of a run, for as long as this process lives.

    Flower calls a run over that it hears nothing of; the process may live on for a moment. The kernel drops
    the lock with the process, and `died` reads it from outside.

    Raises:
        InputError: another process has it for `seconds`.
    """
    path = _lock(home, run)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    raise InputError(f"run {run}: another coordinator holds it") from error
                time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, attempt.encode(), 0)
        yield
    finally:
        os.close(descriptor)


def died(home: Path, run: str, attempt: str) -> bool:
    """Whether the process that carried this attempt of a run is known to have ended.

    False where it never began: Flower alone knows whether it will.
    """
    try:
        descriptor = os.open(_lock(home, run), os.O_RDONLY)
    except OSError:
        return False
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return os.read(descriptor, 32).decode() == attempt
        return False
    finally:
        os.close(descriptor)
