"""A node works the model out for itself, from the sums it has checked, and compares.

The server sends the model a round is for. A node that was in every round so far needs no word of the
server's: it has checked each sum by its check value, and knows what model they give. A node that missed
a round can't; it takes the model as sent, and signs its digest with its vector, so that `foedus verify`
finds a model that the sums don't give.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from ..errors import Refused
from ..federation import course
from ..federation.study import AnyStudy
from ..privacy.secagg.rings import Integers


class Follower:
    """One run's model, as far as this node can vouch for it."""

    def __init__(self, study: AnyStudy) -> None:
        self._study = study
        self._state: course.State | None = course.start(study)
        self._next = course.following(self._state, 0, study)

    def advance(self, number: int, total: Integers, silos: int) -> None:
        """Take in a sum that was checked. Shown again, it changes nothing."""
        if self._state is not None and number == self._next:
            self._state = course.advance(self._state, number, total, self._study, silos)
            self._next = course.following(self._state, number, self._study)

    def check(self, number: int, sent: npt.NDArray[np.float64]) -> None:
        """The model sent for a round is the one the sums give, if this node has checked them all.

        Raises:
            Refused: it is another, or training is over by the sums and the round is none that comes after.
        """
        if self._state is not None and (self._next is None or number < self._next):
            raise Refused(
                "UNKNOWN_ROUND", f"round {number} is not due: by the sums so far training ended before it"
            )
        if self._next != number:
            self._state = None  # a round was missed
        if self._state is None:
            return
        # Another processor's linear algebra may differ in the last digits.
        if not np.allclose(sent, self._state.sent, rtol=1e-7, atol=1e-7):
            raise Refused("MODEL_ALTERED", f"round {number}: the model sent is not what the sums so far give")


def digest(data: bytes) -> str:
    """SHA-256 in hex: how headers and receipts name a model or a total."""
    return hashlib.sha256(data).hexdigest()
