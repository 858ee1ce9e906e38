"""Access events: who did what, when, to how many rows; and how they come from entries of an audit log.

==========================  ==========  ==================================================
entry                       kind        what is taken from it
==========================  ==========  ==================================================
``scored``, ``access.*``    read        ``rows`` (or ``customers``) of the details
``result.read``             read        no rows: hours only
``study.accepted`` (node)   spend       author, ε, purpose, run; cohort and question
``run.started`` (server)    spend       ε, author and purpose as ``study.submitted`` said
``*.refused``, ``refused``  refusal     the code
==========================  ==========  ==================================================

``access.read`` and ``access.export`` are for whatever reads customers' data beside foedus (a warehouse, a
CRM): their entries say ``{"rows": n}`` and, where there is one, the ``group`` of the actor's peers.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from ...errors import VerificationError
from ..auditlog.log import Entry
from .questions import Question

Kind = Literal["read", "spend", "refusal", "other"]
COORDINATOR = "coordinator"
_READS = ("scored", "result.read")
# What a node says when a message came twice or late: nobody is knocking at a door
_HARMLESS = frozenset({"ALREADY_DONE", "LOG_SIZE_UNKNOWN", "NO_SET_UP"})
_PLAIN = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_DIGITS = re.compile(r"\d{5}")
_HEX = re.compile(r"[0-9a-f]{64}")
_KEPT = 10_000  # studies whose price is remembered until they run


@dataclass(frozen=True, slots=True)
class Access:
    """One event.

    Args:
        id: its index in the silo's audit log.
        time: aware. actor, group: labels (`label`).
        rows: how many rows were read; 0 if nobody says.
        epsilon, purpose, run, study: of a `spend`; `study` is a digest or empty.
    """

    id: int
    time: datetime
    actor: str
    kind: Kind
    silo: str = ""
    group: str = ""
    rows: int = 0
    epsilon: float = 0.0
    purpose: str = ""
    run: str = ""
    study: str = ""
    question: Question | None = None


def label(actor: str, key: bytes) -> str:
    """What an alert calls an actor: a plain name (``alice``) as it is, anything else by a keyed digest of it.

    E-mail addresses, telephone and card numbers, and names as people write them are not plain. Keyed, as the
    digests of all telephone numbers there are can be tried out in hours.
    """
    if not actor or (_PLAIN.fullmatch(actor) and not _DIGITS.search(actor)):
        return actor
    return "actor-" + hmac.digest(key, actor.encode(errors="replace"), "sha256").hex()[:12]


class Reader:
    """Turns entries into events, in the log's order. It remembers the price of studies that have not run yet.

    Args:
        key: of `label`; secret.
        prices: study -> author, ε, purpose, as an earlier reader has left them.
    """

    def __init__(
        self, silo: str, key: bytes, prices: Mapping[str, tuple[str, float, str]] | None = None
    ) -> None:
        self._key, self.silo = key, label(silo, key)
        self.prices = dict(prices or {})

    def read(self, entries: Iterable[Entry]) -> Iterator[Access]:
        """The events of these entries; an entry that tells the watch nothing still shows the clock.

        Raises:
            VerificationError: the bytes are not an entry.
        """
        for entry in entries:
            record = entry.record
            try:
                time = datetime.fromisoformat(record["time"])
                if time.tzinfo is None:
                    raise ValueError("a time without a zone")
            except ValueError as error:
                raise VerificationError(f"entry {entry.index}: {error}") from error
            yield Access(entry.index, time, silo=self.silo, **self._rest(record))

    def _rest(self, record: Mapping[str, Any]) -> dict[str, Any]:
        action, details, actor = record["action"], record["details"], self._label(record["actor"])
        study = record["subject"] if _HEX.fullmatch(record["subject"]) else ""
        if action in _READS or action.startswith("access."):
            rows = max(_whole(details.get("rows")), _whole(details.get("customers")))
            return {
                "actor": actor,
                "kind": "read",
                "rows": rows,
                "group": self._label(str(details.get("group", ""))),
            }
        if action == "refused" or action.endswith(".refused"):
            # A node is asked by the server alone; the server's own log names who asked it
            who = self._label(str(details["author"])) if "author" in details else actor
            who = COORDINATOR if action == "refused" and "author" not in details else who
            return {"actor": who, "kind": "other" if details.get("code") in _HARMLESS else "refusal"}
        if action == "study.submitted":
            price = (
                str(details.get("author", "")),
                _number(details.get("epsilon")),
                str(details.get("purpose", "")),
            )
            self.prices[study] = price
            while len(self.prices) > _KEPT:
                del self.prices[next(iter(self.prices))]
        elif action == "run.started" and study in self.prices:
            author, epsilon, purpose = self.prices[study]
            return self._spend(author, epsilon, purpose, details, study)
        elif action == "study.accepted" and "author" in details:
            epsilon, purpose = _number(details.get("epsilon")), str(details.get("purpose", ""))
            told = self._spend(str(details["author"]), epsilon, purpose, details, study)
            return {**told, "question": Question.from_json(details.get("question"))}
        return {"actor": actor, "kind": "other"}

    def _spend(
        self, author: str, epsilon: float, purpose: str, details: Mapping[str, Any], study: str
    ) -> dict[str, Any]:
        return {
            "actor": self._label(author),
            "kind": "spend",
            "epsilon": epsilon,
            "purpose": purpose,
            "run": str(details.get("run", "")),
            "study": study,
        }

    def _label(self, actor: str) -> str:
        return label(actor, self._key)


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and value > 0 else 0.0
