"""The head of a silo's ledger, signed by the silo, as it stands in the server's audit log.

At set-up and in its receipt a node states how far its ledger has come, and which size of the audit log it had
seen then. The server logs both: in ``run.set-up`` for every silo (``ledgers``), in ``receipt`` for one
(``ledger``). There a ledger that went back shows to everybody: to the node itself, which is shown the log,
and to whoever verifies a bundle (`check_log`). The silo's signature is on each, so the server can invent none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any

from pydantic import Field, ValidationError

from ..compliance.treaty import Document
from ..documents import Envelope, Payload, SigningKey
from ..errors import VerificationError
from ..privacy.ledger import Head

KIND = "ledger-head"


class Stated(Document):
    """A head as stated: lines, hash of the last, write-offs, and entries of the audit log seen at the time."""

    size: int = Field(ge=0, lt=2**53)
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    write_offs: int = Field(ge=0, lt=2**53)
    log: int = Field(ge=0, lt=2**53)

    @property
    def head(self) -> Head:
        return Head(self.size, self.hash, self.write_offs)


def state(head: Head, silo: str, log: int, key: SigningKey) -> Payload:
    """A head stated by `silo`, as JSON with its signature."""
    said = Stated(size=head.size, hash=head.hash, write_offs=head.write_offs, log=log).model_dump()
    envelope = Envelope(KIND, {"silo": silo, **said}).signed(silo, key)
    return {**said, "signature": envelope.signatures[silo]}


def read(stated: object, silo: str, public_key: str) -> Stated:
    """What `silo` states.

    Raises:
        VerificationError: malformed, or not signed by it.
    """
    if not isinstance(stated, dict):
        raise VerificationError(f"the ledger's head that {silo} states is missing")
    said = {name: value for name, value in stated.items() if name != "signature"}
    try:
        found = Stated.model_validate(said)
    except ValidationError as error:
        raise VerificationError(f"the ledger's head that {silo} states is malformed") from error
    signatures = {silo: str(stated.get("signature"))}
    Envelope(KIND, {"silo": silo, **said}, signatures).check(KIND, silo, public_key)
    return found


def silos_in(record: Mapping[str, Any]) -> list[str]:
    """Whose heads an entry of the audit log has."""
    details = record["details"]
    if record["action"] == "run.set-up" and isinstance(details.get("ledgers"), dict):
        return list(details["ledgers"])
    if record["action"] == "receipt" and isinstance(details.get("silo"), str) and "ledger" in details:
        return [details["silo"]]
    return []


def stated_in(record: Mapping[str, Any], silo: str) -> object:
    """The head of this silo's ledger in an entry that has one."""
    details = record["details"]
    return details["ledger"] if record["action"] == "receipt" else details["ledgers"][silo]


def check_order(silo: str, heads: Iterable[Stated]) -> None:
    """Raise unless these can be heads of one ledger that only ever grew.

    The order is that of the log as the silo had seen it: two runs at a time may log theirs the other way round.

    Raises:
        VerificationError: a later one is shorter, or two of one size differ.
    """
    hashes: dict[tuple[int, int], str] = {}
    best = (0, 0)
    for log, group in groupby(sorted(heads, key=_log), key=_log):
        known = best
        for head in group:
            place = (head.write_offs, head.size)
            if place < known or hashes.setdefault(place, head.hash) != head.hash:
                raise VerificationError(
                    f"{silo}'s ledger went back: with {log} log entries seen it had {head.size} lines that do not"
                    f" continue the {known[1]} it had before",
                    remedy=f"ask {silo}'s officer whether an old copy of its node was restored",
                )
            best = max(best, place)


def _log(stated: Stated) -> int:
    return stated.log


def check_log(records: Iterable[Mapping[str, Any]], key_of: Callable[[str], str]) -> int:
    """Check the heads in an audit log: each is signed by its silo, and no ledger went back; how many there are.

    Args:
        key_of: a silo's public key, by its name.

    Raises:
        VerificationError: one does not hold.
    """
    found: dict[str, list[Stated]] = {}
    for record in records:
        for silo in silos_in(record):
            found.setdefault(silo, []).append(read(stated_in(record, silo), silo, key_of(silo)))
    for silo, heads in found.items():
        check_order(silo, heads)
    return sum(map(len, found.values()))
