"""What an attack found: measured, never asserted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Outcome:
    """`falls` is None where the rival has no such step to attack; `told` says what was measured."""

    falls: bool | None
    told: str


def recovered(
    got: npt.ArrayLike, true: npt.ArrayLike, *, within: float, what: str, also: bool = True
) -> Outcome:
    """Falls if what the attacker holds is the victim's data to `within`, and `also` holds."""
    error = float(np.abs(np.asarray(got, np.float64) - np.asarray(true, np.float64)).max())
    return Outcome(bool(error <= within and also), f"{what}; max error {error:.1e}")


def spoiled(got: npt.ArrayLike, true: npt.ArrayLike, *, beyond: float, what: str, objections: int) -> Outcome:
    """Falls if the result is wrong by more than `beyond` and nobody objected."""
    error = float(np.abs(np.asarray(got, np.float64) - np.asarray(true, np.float64)).max())
    return Outcome(
        bool(error > beyond and not objections), f"{what}; max error {error:.2g}, {objections} objections"
    )


def no_step(why: str) -> Outcome:
    """The rival has nothing this attack could be tried on."""
    return Outcome(None, why)
