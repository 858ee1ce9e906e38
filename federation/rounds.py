"""One secure sum of a study: what a customer's row looks like in it, and what noise it carries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from ..compliance.treaty import Document, Treaty
from ..privacy.events import DistributedDiscreteGaussian
from ..privacy.secagg.rings import Ring, fitting, noise_tail
from .modes import Distributed, Mode, ModeField

Task = Literal["statistics", "curvature", "train", "validate", "evaluate", "count"]

COUNT_SHARE = 0.25
"""Behind every gradient travels a constant of this part of the clip, so that its sum counts customers."""


class RoundPlan(Document):
    """One secure sum of a study: its shape and its noise. Same for every silo."""

    round: int
    task: Task
    mode: ModeField = Distributed()
    dimension: int
    scale_bits: int
    sigma: int
    sensitivity: float = Field(description="L2, integer units, rounding and overlap included")
    bits: int = Field(description="of the modulus: 16, 20, 24 or 32")
    bound: int = Field(description="largest magnitude one silo may add to a coordinate, noise included")

    @property
    def ring(self) -> Ring:
        """Where the sum is taken."""
        return Ring(self.bits)

    def cost(self, survivors: int, treaty: Treaty) -> DistributedDiscreteGaussian:
        """What the round did to a customer's data if so many silos were summed; see `modes`."""
        return self.mode.event(self.sensitivity, self.sigma, self.dimension, survivors, treaty)

    def event(self, shares: int) -> DistributedDiscreteGaussian:
        """What was done to the data if `shares` noise shares are unknown to any adversary."""
        return DistributedDiscreteGaussian(
            sensitivity=self.sensitivity, sigma=float(self.sigma), shares=shares, dimension=self.dimension
        )


@dataclass(frozen=True)
class Shape:
    """One customer's row in a task: its length, its L2 bound, its largest entry, and whether it is rounded."""

    dimension: int
    bound: float
    entry: float
    rounded: bool

    def sensitivity(self, scale_bits: int) -> float:
        """How far, in L2 and integer units, one customer moves the sum of rows × 2^scale_bits.

        Rounding moves a coordinate by less than 1, so it adds at most √dimension.
        """
        return self.bound * 2.0**scale_bits + (math.sqrt(self.dimension) if self.rounded else 0.0)


FLOAT_SLACK = 2.0**-12
"""What a float64 sum of clipped gradients may move by beyond the clip, relative to it.

Blocks of at most 8,192 rows are added as floats are, which errs by at most 8,192·2^-53 of the sum of the rows'
norms, in L2; their sums are added with compensation. Over 10^8 customers, the most a treaty allows, and in both
of two neighbouring tables, that is 2·10^8·8,192·2^-53 < 2^-12 (Higham 2002, "Accuracy and Stability of Numerical
Algorithms", section 3.1 and 4.3).
"""


def row_bound(clip: float) -> float:
    """L2 bound of one customer's row in training: its gradient's clip and the constant together (+3 %)."""
    return clip * math.sqrt(1 + COUNT_SHARE**2)


def statistics_shape(learned: int, cells: int) -> Shape:
    """A cell in each learned feature's histogram, and one of two for the label: whole numbers."""
    return Shape(learned * cells + 2, math.sqrt(learned + 1), 1.0, False)


def curvature_shape(inputs: int, clip: float) -> Shape:
    """The products x_i·x_j, i ≤ j, of a row x of inputs in [−1, 1] (the constant 1 among them) clipped to ‖x‖ ≤ clip.

    Σ_{i≤j} (x_i x_j)² = ½(‖x‖⁴ + Σ x_i⁴) ≤ ½(clip⁴ + clip²), as no |x_i| is over 1.
    """
    return Shape(inputs * (inputs + 1) // 2, math.sqrt((clip**4 + clip**2) / 2), 1.0, True)


def train_shape(weights: int, clip: float) -> Shape:
    """A clipped gradient, and the constant that counts."""
    return Shape(weights + 1, row_bound(clip) * (1 + FLOAT_SLACK), row_bound(clip), True)


def validate_shape() -> Shape:
    """A customer's loss, from 0 to 1, and the constant 1 that counts."""
    return Shape(2, math.sqrt(2), 1.0, True)


def evaluate_shape(bins: int) -> Shape:
    """A histogram for each label: a customer falls in one cell, a whole number."""
    return Shape(2 * bins, 1.0, 1.0, False)


def count_shape(cells: int, *, of: bool) -> Shape:
    """A customer falls in one cell: 1 there and, if a quantity is summed, its value from −1 to 1 in whole steps.

    Whoever rounds does so a customer at a time and within [−1, 1], so rounding moves nobody else's numbers.
    """
    return Shape(2 * cells, math.sqrt(2), 1.0, False) if of else Shape(cells, 1.0, 1.0, False)


def largest(treaty: Treaty, shape: Shape, scale_bits: int) -> float:
    """The largest magnitude that one silo's customers can add up to in a coordinate."""
    return treaty.max_cohort * (shape.entry * 2.0**scale_bits + shape.rounded)


def ring_for(treaty: Treaty, shape: Shape, mode: Mode, scale_bits: int, sigma: int) -> Ring:
    """Where the sum over all silos overflows with probability below 2^-40: rows at their largest, and noise.

    Raises:
        InputError: no ring is wide enough.
    """
    n = len(treaty.parties)
    return fitting(n * largest(treaty, shape, scale_bits), mode.spread(n) * sigma, shape.dimension)


def plan_round(
    treaty: Treaty, number: int, task: Task, shape: Shape, mode: Mode, scale_bits: int, sigma: int
) -> RoundPlan:
    """One secure sum of rows of a shape, under noise of σ at a fixed-point scale.

    Raises:
        InputError: no ring holds it. Refused: the treaty does not permit the mode.
    """
    mode.require(treaty)
    return RoundPlan(
        round=number,
        task=task,
        mode=mode,
        dimension=shape.dimension,
        scale_bits=scale_bits,
        sigma=sigma,
        sensitivity=mode.sensitivity(shape.sensitivity(scale_bits), treaty.overlap.max_partners_per_customer),
        bits=ring_for(treaty, shape, mode, scale_bits, sigma).bits,
        bound=math.ceil(
            largest(treaty, shape, scale_bits) + noise_tail(shape.dimension) * mode.silo_sigma(sigma)
        ),
    )
