"""What a silo has done, on disk, so that it does nothing twice (across restarts too).

Every step is written and synced *before* its message may leave.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any, Literal

from ...errors import Refused

Step = Literal["set-up", "ready", "upload", "confirm", "answer", "checked", "shown", "release"]


class Journal:
    """Once-only steps in an SQLite file; a second try at a step is refused.

    One connection is held for as long as the journal lives; threads take turns, and so may processes.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._turn = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
        self._connection.execute("PRAGMA synchronous=FULL")
        with self._turn, self._connection as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS done (study TEXT NOT NULL, run TEXT NOT NULL, step TEXT NOT NULL,"
                " number INTEGER NOT NULL, detail TEXT NOT NULL, PRIMARY KEY (study, run, step, number)) STRICT"
            )

    def __del__(self) -> None:
        if hasattr(self, "_connection"):
            self._connection.close()

    def once(self, study: str, run: str, step: Step, number: int, detail: str = "") -> None:
        """Record a step durably.

        Raises:
            Refused: it was done before.
        """
        try:
            with self._turn, self._connection as connection:
                connection.execute(
                    "INSERT INTO done VALUES (?, ?, ?, ?, ?)", (study, run, step, number, detail)
                )
        except sqlite3.IntegrityError as error:
            raise _again(run, step, number) from error

    def require_new(self, study: str, run: str, step: Step, number: int) -> None:
        """Raise Refused if a step was taken: a look before anything is worked out; `once` decides."""
        if self.done(study, run, step, number) is not None:
            raise _again(run, step, number)

    def done(self, study: str, run: str, step: Step, number: int) -> str | None:
        """The detail recorded with a step, or None if it was never taken."""
        found = self._rows(
            "SELECT detail FROM done WHERE study = ? AND run = ? AND step = ? AND number = ?",
            (study, run, step, number),
        )
        return str(found[0][0]) if found else None

    def steps(self, study: str, run: str, step: Step) -> dict[int, str]:
        """Number -> detail of all steps of a kind."""
        found = self._rows(
            "SELECT number, detail FROM done WHERE study = ? AND run = ? AND step = ? ORDER BY number",
            (study, run, step),
        )
        return {int(number): str(detail) for number, detail in found}

    def _rows(self, query: str, parameters: tuple[Any, ...]) -> list[Any]:
        with self._turn:
            return self._connection.execute(query, parameters).fetchall()


def _again(run: str, step: Step, number: int) -> Refused:
    return Refused(
        "ALREADY_DONE", f"{step} {number} of run {run}: this silo has done it before and does it once only"
    )
