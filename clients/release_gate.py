"""What one silo alone lets out of its table: k or more, one release of each version of the data, in its log first.

A noisy count goes through the ledger. Rows have no noise and no ε; what can be held of them is this:

1. k is the treaty's `min_group` or more, and the smallest class of what is to leave, counted from it, has k rows. (Of rows that
   leave by a count over all silos, the union has k: `union_export`.)
2. Of one version of the data one release is made. Two partitions of the same people can be intersected until less than k are
   left, so another one is refused. A version is its rows, whatever their order and the file they are in.
3. It is in the node's journal and audit log before a row is written. The same release again is the same release.

What this can't see: another version of the same people. Whoever exports after each day's orders can be intersected across
days; the log shows each, and says how many versions there were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..compliance import treaty as treaties
from ..compliance.auditlog.log import AuditLog
from ..compliance.gate import require_k
from ..compliance.masking.measures import Classes
from ..compliance.masking.policy import Policy
from ..compliance.masking.roles import Role
from ..errors import InputError, Refused
from ..privacy.secagg.journal import Journal, Step
from . import uses
from .home import Home

RELEASED = "table.released"
_STEP: Step = "release"


class ReleaseGate:
    """The gate of one node."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._treaty = treaties.load(home.path / "treaty.json")[1]
        self._audit = AuditLog(home.path / "audit.db", f"foedus node {home.party}")
        self._journal = Journal(home.path / "journal.db")

    def admit_masked(self, source: pd.DataFrame, released: pd.DataFrame, rules: Policy, what: str) -> int:
        """`admit` a table masked by these rules, if the policy of uses allows it, too."""
        uses.of_masked(rules, self._treaty)
        return self.admit(source, released, rules.names(Role.QUASI), rules.k, what)

    def admit(
        self, source: pd.DataFrame, released: pd.DataFrame, quasi: Sequence[str], k: int, what: str
    ) -> int:
        """Let a masked table out; it may be written when this returns.

        Args:
            source: the rows it is made of. quasi: the columns that others know, too.

        Returns: how many versions of its data this node has released from before.

        Raises:
            Refused: ``K_UNDER_FLOOR``, ``K_TOO_LARGE``, ``K_NOT_HELD`` or ``SECOND_PARTITION``.
        """
        require_k(k, self._treaty.min_group, len(source), what)
        if released.empty:
            raise InputError(f"{what}: no row is left to release")
        smallest = int(Classes.of(released, quasi).size.min())
        if smallest < k:
            raise Refused(
                "K_NOT_HELD", f"{what}: a class of {smallest} rows, where k = {k} or more were promised"
            )
        return self.record(source, released, {"what": what, "k": k, "smallest": smallest, "by": list(quasi)})

    def record(self, source: pd.DataFrame, released: pd.DataFrame, details: dict[str, object]) -> int:
        """Points 2 and 3 alone, of a release whose k somebody else vouches for.

        Returns: as `admit`. Raises: Refused, ``SECOND_PARTITION``.
        """
        version, given = content(source), content(released)
        before = self._journal.done(version, "", _STEP, 0)
        if before is None:
            # The journal decides: of two that come at once one is second.
            self._journal.once(version, "", _STEP, 0, given)
        elif before != given:
            raise Refused(
                "SECOND_PARTITION",
                f"another table was released from this version of the data ({version[:12]}): the two could be intersected",
                remedy="release that one again, by the same policy; or wait for the data's next version",
            )
        earlier = {e.record["subject"] for e in self._audit.entries() if e.record["action"] == RELEASED}
        self._audit.append(
            self._home.party, RELEASED, version, {"table": given, "rows": len(released), **details}
        )
        return len(earlier - {version})


def content(frame: pd.DataFrame) -> str:
    """SHA-256 of a table's rows, in whatever order they and its columns are: values as text, missing ones apart."""
    columns = sorted(map(str, frame.columns))
    texts = []
    for name in columns:
        column = frame.iloc[:, list(map(str, frame.columns)).index(name)]
        missing = column.isna().to_numpy()
        texts.append(["\0" if gone else f"\1{value}" for value, gone in zip(column, missing, strict=True)])
    rows = sorted(hashlib.sha256("\2".join(row).encode()).digest() for row in zip(*texts, strict=True))
    named = hashlib.sha256("\2".join(columns).encode()).digest()
    return hashlib.sha256(named + b"".join(rows)).hexdigest()


def node_of(table: Path) -> Path | None:
    """The node in whose directory a table lies, or None."""
    for folder in table.resolve().parents:
        if (folder / "node.yaml").is_file():
            return folder
    return None
