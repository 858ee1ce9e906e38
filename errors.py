"""Every error foedus raises on purpose, in one tree.

::

    FoedusError
    ├── InputError            exit 2   a file, table or option is not what it must be
    ├── Refused               exit 3   a node, or a rule of the treaty, says no (fails closed)
    │   └── BudgetExceeded             the ledger would pass its cap
    ├── VerificationError     exit 4   a signature, proof, digest or recomputation does not hold
    │   └── ProtocolError              a peer broke the protocol (secure sum, messages)
    ├── Abandoned             exit 5   too few parties answered in time; nothing was revealed
    └── Unreachable           exit 6   a server or node can't be reached

Exit 1 is a fault of foedus itself.
"""

from __future__ import annotations


class FoedusError(Exception):
    """Root of the tree: what happened to which subject, and what to do about it.

    Args:
        message: one clear sentence naming the subject and what happened.
        remedy: what the reader can do now; shown on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def diagnostics(self) -> str:
        """The message and its remedy, for a person at a terminal."""
        return f"{self.message}\n  → {self.remedy}" if self.remedy else self.message


class InputError(FoedusError):
    """A file, table or option is not what it must be."""

    exit_code = 2


class Refused(FoedusError):
    """A rule says no, so nothing leaves.

    Args:
        code: a stable name of the rule (``"PURPOSE_NOT_PERMITTED"``); never depends on data beyond
            the fact of refusal.
    """

    exit_code = 3

    def __init__(self, code: str, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


class BudgetExceeded(Refused):
    """The ledger would pass its cap."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__("BUDGET_EXCEEDED", message, remedy=remedy)


class VerificationError(FoedusError):
    """A signature, proof, digest or recomputation does not hold."""

    exit_code = 4


class ProtocolError(VerificationError):
    """A peer broke the protocol: malformed, replayed, unauthenticated or contradictory messages."""


class Abandoned(FoedusError):
    """Too few parties answered in time; the round ended with nothing revealed."""

    exit_code = 5


class Unreachable(FoedusError):
    """A server or node can't be reached."""

    exit_code = 6
