"""The sums that the server's log names, as far as the log was shown to this node's process: they date what is shown of it.

A server could go on showing the head that a node has kept, and so hold back what was logged since, a revocation for one. But
nobody knows a sum before it is opened. A log that names the sum of a round, which this node checked itself, was shown at least
up to that moment; the node was shown all entries before. So what is in the log when a round ends is known at the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import VerificationError

ACTION = "round.summed"


class LoggedSums:
    """(study, run, round) -> SHA-256 of the sum in the log; in memory, as the rounds of a process are."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, int], str] = {}

    def read(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take in entries of the server's log; of two about one round the first stands, so that none can be corrected."""
        for record in records:
            if record["action"] != ACTION:
                continue
            run, number, name = (record["details"].get(key) for key in ("run", "round", "sum"))
            if type(run) is str and type(number) is int and type(name) is str:
                self._found.setdefault((str(record.get("subject")), run, number), name)

    def require(self, study: str, run: str, number: int, name: str) -> None:
        """Raises: VerificationError: the log does not name the sum of this round, or another one."""
        found = self._found.get((study, run, number))
        if found is None:
            raise VerificationError(
                f"round {number}: its sum is shown, and a log that ends before it: entries are held back",
                remedy="a server logs each sum before it asks for the next round",
            )
        if found != name:
            raise VerificationError(f"round {number}: the log names another sum than the one shown")
