"""What the labels of one released column mean, and how much was lost by them.

A label is a value, a label of the column's hierarchy, an interval ``20..29`` of the ordered values, a set
``a|b``, or ``*`` for all. Whoever reads a released table needs nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from .hierarchies import TOP, Hierarchy, as_number, flat

MISSING = "(missing)"
TO, OR = "..", "|"
Floats = npt.NDArray[np.float64]


class Loss(StrEnum):
    """How the loss of a label is counted, from 0 for a value to 1 for all values."""

    LEAVES = "leaves"
    """(values covered − 1) / (values − 1)."""
    EXTENT = "extent"
    """(greatest covered − least covered) / (greatest − least), of numbers."""


@dataclass(frozen=True, eq=False)
class Domain:
    """One quasi-identifier: the values that are there, in their order, and how they are generalised.

    The loss of a label is its normalised certainty penalty (Xu et al. 2006, KDD, "Utility-Based
    Anonymization Using Local Recoding") over the values that occur in the table.

    Args:
        values: distinct texts in order; a missing one is `MISSING`.
        hierarchy: of exactly these values, in this order.
        weight: of this column among the others, above 0.
    """

    name: str
    values: tuple[str, ...]
    hierarchy: Hierarchy = field(repr=False)
    loss: Loss = Loss.LEAVES
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.hierarchy.values != self.values:
            raise InputError(f"{self.name}: the hierarchy is of other values than the column")
        if self.loss is Loss.EXTENT and (bad := [v for v in self.values if not _measurable(v)]):
            raise InputError(
                f"{self.name}: {bad[0]!r} is not a number, so there is no extent", remedy="loss: leaves"
            )

    @classmethod
    def plain(cls, name: str, values: Sequence[str], loss: Loss = Loss.LEAVES, weight: float = 1.0) -> Domain:
        """Without a hierarchy: value or ``*``."""
        return cls(name, tuple(values), flat(values, name), loss, weight)

    @cached_property
    def positions(self) -> Floats:
        """Where the values lie, shape (values,): 0 to 1, and a missing one at 2, a whole range from all others."""
        if self.loss is Loss.LEAVES:
            return np.arange(len(self.values)) / max(len(self.values) - 1, 1)
        numbers = np.array([_number(v) for v in self.values])
        low, high = np.nanmin(numbers, initial=np.inf), np.nanmax(numbers, initial=-np.inf)
        return np.where(np.isnan(numbers), 2.0, (numbers - low) / ((high - low) or 1.0))

    @cached_property
    def _meaning(self) -> dict[str, npt.NDArray[np.bool_]]:
        covered: dict[str, npt.NDArray[np.bool_]] = {}
        for labels, codes in zip(self.hierarchy.labels, self.hierarchy.codes, strict=True):
            covered |= {label: codes == code for code, label in enumerate(labels) if label not in covered}
        return covered | {TOP: np.ones(len(self.values), bool)}

    def covers(self, label: str) -> npt.NDArray[np.bool_]:
        """Which values a label stands for, shape (values,).

        Raises:
            InputError: no label of this column.
        """
        if (known := self._meaning.get(label)) is not None:
            return known
        place = {value: at for at, value in enumerate(self.values)}
        covered = np.zeros(len(self.values), bool)
        ends = label.split(TO)
        if len(ends) == 2 and set(ends) <= place.keys():
            covered[place[ends[0]] : place[ends[1]] + 1] = True
        elif set(parts := label.split(OR)) <= place.keys():
            covered[[place[part] for part in parts]] = True
        if not covered.any():
            raise InputError(f"{self.name}: {label!r} is no label of this column")
        return covered

    def label_loss(self, label: str) -> float:
        """The loss of one label, 0 to 1; of ``*`` always 1."""
        covered = self.covers(label)
        if label == TOP:
            return 1.0
        if self.loss is Loss.EXTENT:
            return float(min(1.0, np.ptp(self.positions[covered])))
        return float((covered.sum() - 1) / max(len(self.values) - 1, 1))

    def level_losses(self) -> Floats:
        """The loss of every value at every level of the hierarchy, shape (levels, values)."""
        return np.array(
            [
                np.array([self.label_loss(label) for label in labels])[codes]
                for labels, codes in zip(self.hierarchy.labels, self.hierarchy.codes, strict=True)
            ]
        )


def _measurable(value: str) -> bool:
    return value == MISSING or as_number(value) is not None


def _number(value: str) -> float:
    number = as_number(value)
    return np.nan if number is None else number
