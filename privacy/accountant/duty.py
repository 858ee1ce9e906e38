"""What every accountant does, and what it asks of its arguments."""

from __future__ import annotations

import math
from typing import Protocol

from ...errors import InputError
from ..events import Event


class Accountant(Protocol):
    """The duty of every accountant; `tests/privacy/accountants.py` is its contract suite."""

    def compose(self, event: Event, count: int = 1) -> None:
        """Add `count` runs of `event`; composing n at once equals n times once."""

    def epsilon(self, delta: float) -> float:
        """The smallest ε this accountant can prove at `delta`; infinite if anything was not private."""


def check_count(count: int) -> None:
    """Refuse a number of runs that is none."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise InputError(f"{count} runs of an event can't be composed")


def check_delta(delta: float) -> None:
    """Refuse a δ outside (0, 1)."""
    if not 0 < delta < 1:
        raise InputError(f"delta must lie in (0, 1), not {delta}")


def check_epsilon(epsilon: float) -> None:
    """Refuse an ε that is no budget."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise InputError(f"epsilon must be positive and finite, not {epsilon}")
