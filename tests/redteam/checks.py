"""What a red-team check is: an attack on the real thing, and the same attack where the defence is removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What an attack came to.

    Args:
        held: the real thing gave the attacker nothing.
        evidence: what was tried and seen, with figures.
        control_fell: the same attack broke the weakened variant; without that, `held` says nothing.
        control: what was weakened, and what the attack then got.
    """

    held: bool
    evidence: str
    control_fell: bool
    control: str

    @property
    def word(self) -> str:
        """One word for the table."""
        if self.held and self.control_fell:
            return "held"
        return "FELL" if not self.held else "VOID"  # void: the control did not fall


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Args:
        number: of issue 3's list; a letter tells apart several of one number.
        role: with whose powers the attacker comes.
        deployment: starts real processes.
    """

    number: str
    title: str
    role: str
    run: Callable[[], Outcome]
    deployment: bool = False


def tally(seen: dict[str, str]) -> str:
    """Refusal codes with how often each came: ``3 × ALREADY_DONE, 1 × PROTOCOL``."""
    codes = sorted(seen.values())
    return ", ".join(f"{codes.count(code)} × {code}" for code in dict.fromkeys(codes))
