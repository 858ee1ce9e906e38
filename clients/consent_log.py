"""What a node's audit log says of consents: that one was granted or withdrawn, and, sealed, whose.

======================  =========================================  ==================================================
entry                   in the open                                sealed under the customer's key
======================  =========================================  ==================================================
``consent.granted``     purpose, method                            customer, notice, times, who consented for a child
``consent.withdrawn``   purpose, method                            customer, time
``consent.imported``    how many rows, of what kind of source      nothing: it names nobody
======================  =========================================  ==================================================

The subject of such an entry is ``customer``. Each is written before the register commits (log, then act): a crash in
between leaves an entry of something that did not come to be, and never the reverse. Erasing the customer shreds
the key: ``log.shred(party, customer_key(customer))``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from ..compliance.auditlog.log import AuditLog, customer_key
from ..compliance.consent import Grant, Withdrawal
from .home import Home

SUBJECT = "customer"


class ConsentLog:
    """Notes for one node's log, to be handed to the register as ``record``."""

    def __init__(self, home: Home) -> None:
        self._party = home.party
        self._log = AuditLog(home.path / "audit.db", f"foedus node {home.party}")

    def granted(self, grant: Grant) -> Callable[[], object]:
        """An entry ``consent.granted``."""
        sealed = {
            "customer": grant.subject,
            "notice": grant.notice_version,
            "granted_at": _text(grant.granted_at),
            "expires_at": _text(grant.expires_at),
            "guardian": grant.guardian,
        }
        return self._note("consent.granted", grant.purpose, grant.method, grant.subject, sealed)

    def withdrawn(self, withdrawal: Withdrawal, method: str) -> Callable[[], object]:
        """An entry ``consent.withdrawn``."""
        sealed = {"customer": withdrawal.subject, "at": _text(withdrawal.at)}
        return self._note("consent.withdrawn", withdrawal.purpose, method, withdrawal.subject, sealed)

    def imported(self, rows: int, source: str) -> Callable[[], object]:
        """An entry ``consent.imported``: of all rows of a file at once, for a key each would take hours."""
        details = {"rows": rows, "source": source}
        return lambda: self._log.append(self._party, "consent.imported", "", details)

    def _note(
        self, action: str, purpose: str, method: str, customer: str, sealed: dict[str, str | None]
    ) -> Callable[[], object]:
        told = {name: value for name, value in sealed.items() if value is not None}
        return lambda: self._log.append(
            self._party,
            action,
            SUBJECT,
            {"purpose": purpose, "method": method},
            sealed=told,
            key=customer_key(customer),
        )


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
