"""The node as a witness of the server's log: what it cosigns, and which cosignatures it wants to see.

A head that this node takes (guard, check 2) is on its disk, then cosigned; the line goes out with the reply. The
server shows what the others have cosigned. Without a quorum of the treaty on one head this node gives nothing:

- it deals no shares before the head that came with set-up's first message, the one with this run's start in it, is
  shown cosigned;
- it sends no vector before the head that it kept until this message, or the one in it, is;
- it helps to open no sum before the head that came with its own vector is.

So a server that shows two groups different logs gets vectors from one of them at most, and of a log that it splits
later no sum is opened in the round in which it does: any two quorums share an honest node (`Treaty.least_quorum`),
which cosigns one of the histories.

Once two heads of the log contradict each other, this node cosigns nothing and takes part in nothing until its
officer has looked (`foedus node witness --settle`). Both are kept beside the head.
"""

from __future__ import annotations

from pathlib import Path

from ..compliance.auditlog.checkpoint import Checkpoint
from ..compliance.auditlog.cosignature import NO_QUORUM, require_quorum
from ..compliance.auditlog.witness import HeadKeeper
from ..compliance.treaty import Treaty
from ..documents import SigningKey
from ..durable import replace
from ..errors import Refused, VerificationError

LOG_CONTRADICTED = "LOG_CONTRADICTED"


def check_clear(heads: HeadKeeper) -> None:
    """Raise ``LOG_CONTRADICTED`` if contradicting heads of the log are kept here that no officer has looked into."""
    if heads.unkept or heads.evidence:
        raise Refused(
            LOG_CONTRADICTED,
            "two heads of the log contradict each other, and nobody has looked into it yet",
            remedy="compare heads with the other parties; then `foedus node witness NODE --settle REASON`",
        )


class Witness:
    """This party's word on heads of the log.

    Args:
        file: where the last head that was shown under a quorum's cosignatures is kept.
    """

    def __init__(self, treaty: Treaty, party: str, identity: SigningKey, file: Path) -> None:
        self._treaty, self._party, self._identity, self._file = treaty, party, identity, file
        self._last: tuple[Checkpoint, str] | None = None  # a head and the line for it
        self._shown: Checkpoint | None = None

    def cosign(self, heads: HeadKeeper) -> tuple[int, str]:
        """The size of the head kept, and the line for it: always the same, as the same question has the same answer.

        Raises:
            Refused: ``LOG_CONTRADICTED``.
        """
        check_clear(heads)
        head, line = heads.cosign(self._party, self._identity)
        if self._last is None or self._last[0] != head:
            self._last = head, line
        return head.size, self._last[1]

    def read(self, note: str | None, heads: HeadKeeper) -> Checkpoint | None:
        """The head that the server shows as cosigned, if a quorum has; None if it shows none.

        Raises:
            Refused: ``NO_QUORUM``: by too few.
            VerificationError: malformed, not this log's, a cosignature does not hold, or it contradicts the head
                kept here (then both are kept as evidence).
        """
        if note is None:
            return None
        head = heads.compare(note)
        require_quorum(note, self._treaty.witnesses, self._treaty.quorum)
        if head != self._shown:
            replace(self._file, note.encode())
            self._shown = head
        return head

    def require(self, shown: Checkpoint | None, *wanted: Checkpoint) -> None:
        """Raise unless the head that is shown as cosigned is one of those wanted.

        Raises:
            Refused: ``NO_QUORUM``. VerificationError: it has the size of one of them, and another root.
        """
        if shown is not None and shown in wanted:
            return
        for head in wanted:
            if shown is not None and shown.size == head.size:
                raise VerificationError(f"the cosigned head of {head.size} entries is not the one shown here")
        sizes = " or ".join(str(size) for size in sorted({head.size for head in wanted}))
        found = "none is shown" if shown is None else f"the one shown has {shown.size}"
        raise Refused(
            NO_QUORUM,
            f"the log's head of {sizes} entries is not shown cosigned by {self._treaty.quorum} parties: {found}",
            remedy="nothing to do if it passes; if it stays, compare heads with the other parties",
        )
