"""What a column is to somebody who wants to know who is in a table: k-anonymity's four roles."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a column is to an attacker."""

    IDENTIFYING = "identifying"
    """Names somebody: never released."""
    QUASI = "quasi-identifier"
    """Known to others, too: generalised."""
    SENSITIVE = "sensitive"
    """What nobody is to learn of a person: released as it is."""
    INSENSITIVE = "insensitive"
    """Released as it is."""

    @classmethod
    def _missing_(cls, value: object) -> Role | None:
        """``quasi_identifier`` and ``quasi identifier`` are the same role."""
        written = str(value).replace("_", "-").replace(" ", "-")
        return next((role for role in cls if role == written), None)
