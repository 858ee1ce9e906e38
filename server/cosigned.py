"""Heads of the audit log under the cosignatures of the parties' nodes: collected, kept, shown.

Nodes of one trip are shown one head (`one_head`), so that their cosignatures add up. The newest head that a quorum
of the treaty has cosigned lies in ``HOME/log-cosigned``, a note with the lines of all who have; the API serves it.
A cosignature that was lost with a killed process is nothing lost: whoever wants a quorum says no, and cosigns.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .. import durable
from ..compliance.auditlog.checkpoint import Checkpoint, open_checkpoint
from ..compliance.auditlog.cosignature import cosigners, with_lines
from ..compliance.auditlog.log import AuditLog
from ..compliance.treaty import Treaty
from ..documents import SigningKey
from ..errors import FoedusError, InputError, VerificationError

FILE = "log-cosigned"
_journal = logging.getLogger(__name__)
_HEADS = 16  # newer ones are cosigned by the time that so many are there


def read(file: Path) -> str | None:
    """The newest head that a quorum has cosigned; None if there is none yet.

    Raises:
        InputError: the file can't be read.
    """
    try:
        return file.read_bytes().decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: can't be read: {error}") from error


class Cosigned:
    """The cosignatures of one log's heads, as nodes send them.

    Args:
        file: where the newest head with a quorum is kept; None keeps it in memory only.
    """

    def __init__(self, log: AuditLog, treaty: Treaty, key: SigningKey, file: Path | None) -> None:
        self._log, self._treaty, self._key, self._file = log, treaty, key, file
        self._lines: dict[int, dict[str, str]] = {}  # size -> party -> line
        self._fixed: str | None = None
        self._kept: str | None = None
        if file is not None:
            self._restore(file)

    def _restore(self, file: Path) -> None:
        coordinator = self._treaty.coordinator
        try:
            note = read(file)
            if note is None:
                return
            head = open_checkpoint(note, coordinator.origin, coordinator.signing_key)
            for line in note.rpartition("\n\n")[2].splitlines(keepends=True):
                silo = line.split(" ")[1]
                if silo in self._treaty.witnesses:
                    self.take(silo, head.size, line)
        except FoedusError as error:  # damaged, or of another log: cosignatures come anew
            _journal.warning("%s is not taken: %s", file, error.message)

    def _head(self, size: int) -> Checkpoint:
        if not 0 < size <= self._log.size:
            raise VerificationError(f"the log never had {size} entries")
        return Checkpoint(self._log.origin, size, self._log.root(size))

    def note(self) -> str:
        """The log's signed head: within `one_head` that one, else the head of now."""
        return self._fixed or self._log.checkpoint(self._log.origin, self._key)

    @contextmanager
    def one_head(self, note: str | None = None) -> Iterator[str]:
        """Within it `note` gives one head: the one given, that of an outer `one_head`, or that of now."""
        before = self._fixed
        self._fixed = note or before or self.note()
        try:
            yield self._fixed
        finally:
            self._fixed = before

    def take(self, silo: str, size: int, line: str) -> None:
        """Keep a party's cosignature of the head of `size` entries.

        Raises:
            VerificationError: the log never had that head, or the line is no cosignature of it by that party.
            InputError, Refused: no party.
        """
        head, key = self._head(size), self._treaty.party(silo).signing_key
        if line.count("\n") != 1 or not line.endswith("\n"):
            raise VerificationError(f"{silo} has not cosigned the head of {size} entries")
        note = with_lines(head.sign(self._log.origin, self._key), {silo: line})
        if silo not in cosigners(note, {silo: key}):
            raise VerificationError(f"{silo} has not cosigned the head of {size} entries")
        self._lines.setdefault(size, {}).setdefault(silo, line)
        for old in sorted(self._lines)[:-_HEADS]:
            del self._lines[old]

    def _newest(self) -> int | None:
        quorum = self._treaty.quorum
        return max((size for size, lines in self._lines.items() if len(lines) >= quorum), default=None)

    def reached(self, size: int) -> bool:
        return self._newest() == size

    def shown(self) -> str | None:
        """The newest head that a quorum has cosigned, under as many lines as make the quorum."""
        size = self._newest()
        if size is None:
            return None
        lines = sorted(self._lines[size].items())[: self._treaty.quorum]
        return self._under(size, dict(lines))

    def whole(self, size: int) -> str:
        """The head of `size` entries under all the cosignatures there are."""
        return self._under(size, self._lines.get(size, {}))

    def by(self, size: int) -> list[str]:
        """Who has cosigned the head of `size` entries."""
        return sorted(self._lines.get(size, {}))

    def _under(self, size: int, lines: Mapping[str, str]) -> str:
        return with_lines(self._head(size).sign(self._log.origin, self._key), lines)

    def keep(self) -> None:
        """Put the newest head with a quorum on disk, under all its lines."""
        size = self._newest()
        if size is None or self._file is None:
            return
        note = self.whole(size)
        if note != self._kept:
            durable.replace(self._file, note.encode())
            self._kept = note
