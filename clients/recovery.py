"""A ledger that was lost, brought back or written off by an officer: the one way on after ``LEDGER_ROLLED_BACK``.

- *restore*: from an export whose head is the furthest anchored one. Every line comes back as it was.
- *write-off*: what was lost is unknown, so every purpose's budget (the present period's, or for life) counts
  as spent. Only an amended treaty, of a higher version, or the next period gives a new one.

Either is a document signed by a data protection officer of the treaty or by one of this party's own
approvers; it stands in the ledger as a line, and in the node's audit log.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from .. import durable
from ..compliance import treaty as treaties
from ..compliance.treaty import Approver, Document, Name, Treaty
from ..documents import Envelope, SigningKey, canonical, parse_json, read_text
from ..errors import InputError, Refused, VerificationError
from ..privacy import ledger_file
from ..privacy.ledger import Head, Ledger
from ..privacy.ledger_lines import Row, check_chain, genesis, parse
from .budget import RECOVERED
from .guard import Guard
from .home import Home

KIND = "ledger-recovery"
_EXPORT = "ledger-export"


class HeadOf(Document):
    """A head, in a document."""

    size: int
    hash: str
    write_offs: int


class Recovery(Document):
    """What an officer signs.

    `lost` is the furthest head that was anchored; `found` the one that the ledger had, if it could be read.
    """

    party: Name
    treaty: str
    version: int
    officer: Name
    level: Literal["dpo", "partner"]
    mode: Literal["restore", "write-off"]
    reason: str = Field(min_length=1, max_length=2000)
    time: str
    lost: HeadOf
    found: HeadOf | None


def officer(treaty: Treaty, party: str, name: str, key: SigningKey) -> Approver:
    """Who may recover this party's ledger: a dpo of the treaty, or the party's own approver.

    Raises:
        Refused: this person may not. VerificationError: it is not their key.
    """
    for approver in treaty.approvers:
        if approver.name == name and (approver.level == "dpo" or approver.party == party):
            if approver.signing_key != key.public:
                raise VerificationError(f"the key is not the one that the treaty names for {name}")
            return approver
    able = [a.name for a in treaty.approvers if a.level == "dpo" or a.party == party]
    raise Refused(
        "NO_OFFICER",
        f"{name} may not recover the ledger of {party}",
        remedy=f"those who may, by the treaty: {', '.join(able) or 'nobody'}",
    )


def export(ledger: Ledger, out: Path) -> Head:
    """Write every line as it is stored, after a header, as JSON lines; a new file, mode 0600.

    Raises:
        InputError: the file exists or can't be written. VerificationError: the chain does not hold.
    """
    head, rows = ledger.verify(), ledger.rows()
    header = {"kind": _EXPORT, "population": ledger.population, **asdict(head)}
    lines = [header, *({"number": n, "body": body, "hash": stored} for n, body, stored in rows)]
    try:
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(b"".join(canonical(line) + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise InputError(f"{out}: it exists already", remedy="choose another file") from error
    except OSError as error:
        raise InputError(f"{out}: {error.strerror or error}") from error
    return head


def read_export(path: Path, population: str) -> list[Row]:
    """The lines of an export of this population's ledger.

    Raises:
        InputError: no export, or another population's. VerificationError: its chain does not hold.
    """
    header, *lines = [parse_json(line) for line in read_text(path).splitlines()] or [None]
    if not isinstance(header, dict) or header.get("kind") != _EXPORT:
        raise InputError(f"{path}: not an export of a ledger")
    if header.get("population") != population:
        raise InputError(f"{path}: of the ledger of {header.get('population')}, not of {population}")
    raw: list[Row] = []
    for line in lines:
        row = (line.get("number"), line.get("body"), line.get("hash")) if isinstance(line, dict) else ()
        if tuple(map(type, row)) != (int, str, str):
            raise InputError(f"{path}: line {len(raw) + 2} is no line of a ledger")
        raw.append(row)  # type: ignore[arg-type]
    rows = list(check_chain(raw, population, str(path)))
    for row in rows:
        parse(row)
    if header.get("size") != len(rows) or header.get("hash") != _last(rows, population):
        raise VerificationError(f"{path}: its lines do not end at the head that it names: some are missing")
    return rows


def recover(
    home: Home, *, name: str, key: SigningKey, reason: str, source: Path | None, now: datetime | None = None
) -> Head:
    """Restore from `source`, or write off if there is none. The node must not run meanwhile.

    1. The officer may, and the key is theirs. There is something to recover.
    2. The lines to go on from: the export's, or those still there; a file that can't be read is put aside.
    3. The officer's document becomes the next line, and an entry of the node's audit log.

    Returns:
        The new head.

    Raises:
        Refused, VerificationError: not this officer; or an export whose head is not the one anchored.
        InputError: nothing was lost, or no reason is given.
    """
    party, path, moment = home.party, home.path / "ledger.db", now or datetime.now(UTC)
    # 1.
    _, treaty = treaties.load(home.path / "treaty.json")
    who = officer(treaty, party, name, key)
    if not reason.strip():
        raise InputError("a recovery needs a reason: it is kept for good")
    guard = _guard(home, moment)
    lost, found = guard.budget.anchor, _found(guard)
    if found is not None and source is None and _is_well(guard):
        raise InputError(
            f"the ledger of {party} is not behind its anchors: there is nothing to write off",
            remedy="after a refusal LEDGER_ROLLED_BACK in a study, the node's audit log holds the anchor it was shown",
        )
    document = Recovery(
        party=party,
        treaty=guard.treaty_digest,
        version=treaty.version,
        officer=name,
        level="dpo" if who.level == "dpo" else "partner",
        mode="write-off" if source is None else "restore",
        reason=reason.strip(),
        time=moment.isoformat(timespec="seconds"),
        lost=HeadOf(**asdict(lost)),
        found=None if found is None else HeadOf(**asdict(found)),
    )
    signed = Envelope(KIND, document.model_dump(mode="json")).signed(name, key)
    signed.check(KIND, name, who.signing_key)
    # 2.
    if source is not None:
        rows = read_export(source, party)
        if (len(rows), _last(rows, party)) != (lost.size, lost.hash):
            raise Refused(
                "NOT_THE_ANCHORED_LEDGER",
                f"{source}: its head is of {len(rows)} lines, the one anchored of {lost.size}, or another hash",
                remedy="only the ledger up to its furthest anchor can be restored; else: --write-off",
            )
        if found is None or guard.ledger.hash_at(len(rows)) != lost.hash:
            _replace(path, party, rows, moment)
    elif found is None:
        _replace(path, party, [], moment)
    # 3.
    ledger = Ledger(path, party)
    note = {"treaty": guard.treaty_digest, "version": treaty.version, "document": signed.to_json()}
    ledger.note("restored" if source is not None else "written-off", reason.strip(), note)
    head = ledger.verify()
    guard.audit.append(name, RECOVERED, signed.digest, {**asdict(head), "document": signed.to_json()})
    return head


def _guard(home: Home, moment: datetime) -> Guard:
    """The node's guard; a ledger.db that is not even an SQLite file is put aside first."""
    try:
        Ledger(home.path / "ledger.db", home.party)
    except (InputError, VerificationError):
        _put_aside(home.path / "ledger.db", moment)
    return Guard(home)


def _put_aside(path: Path, moment: datetime) -> None:
    place = path.with_name(f"{path.name}.replaced-{moment:%Y%m%dT%H%M%S}")
    while place.exists():
        place = place.with_name(f"{place.name}+")
    path.replace(place)
    # A hot journal of the old file would be rolled back into the new one.
    with suppress(FileNotFoundError):
        path.with_name(f"{path.name}-journal").replace(place.with_name(f"{place.name}-journal"))


def _found(guard: Guard) -> Head | None:
    """The head of the ledger that is there; None if it can't be read."""
    try:
        return guard.ledger.verify()
    except (VerificationError, Refused):
        return None


def _is_well(guard: Guard) -> bool:
    try:
        guard.budget.verify()
    except (VerificationError, Refused):
        return False
    return True


def _last(rows: Sequence[Row], population: str) -> str:
    return rows[-1][2] if rows else genesis(population)


def _replace(path: Path, population: str, rows: Sequence[Row], moment: datetime) -> None:
    """A ledger of these lines in the place of what is there, which is kept beside it."""
    new = path.with_name(f"{path.name}.new")
    try:
        with suppress(FileNotFoundError):
            new.unlink()
        ledger_file.establish(new, population)
        with ledger_file.transaction(new) as db:
            for row in rows:
                ledger_file.append(db, row)
        if path.exists():
            _put_aside(path, moment)
        durable.move(new, path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def officer_lines(ledger: Ledger, treaty: Treaty, party: str) -> list[tuple[str, dict[str, Any]]]:
    """What officers wrote into a ledger: (kind, document), where the signature is of this treaty's officer.

    Under an amended treaty with other officers an older line's signature can't be checked here, and its
    document says under which treaty it was made.

    Raises:
        VerificationError: a line without such a document, or with one that is not signed by who it names.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    for line in ledger.lines():
        if line.note is None:
            continue
        try:
            envelope = Envelope.from_json(line.note.get("document"))
            told = envelope.payload
            keys = {a.name: a.signing_key for a in treaty.approvers if a.level == "dpo" or a.party == party}
            if told.get("version") == treaty.version:
                envelope.check(KIND, str(told["officer"]), keys[str(told["officer"])])
        except (InputError, KeyError) as error:
            raise VerificationError(f"ledger line {line.number}: not signed by an officer") from error
        found.append((line.kind, told))
    return found
