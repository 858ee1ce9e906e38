"""Who adds the noise, as three types: `Distributed`, `Local`, `Central`. A study names one of them in a word.

What differs between them is here and nowhere else: what one customer can move, what noise a round carries
and where it is added, what the round costs, and what nodes can check. Whoever wants to know asks the mode
that the study or the round plan holds; nobody compares names.

                 noise of a silo    noise of the server    the sum's σ²    ε holds against
    Distributed  σ                  none                   n·σ²            the server and c silos together
    Local        σ                  none                   n·σ²            everybody but the silo itself
    Central      none               σ, once                σ²              everybody but the server

(n survivors.) In all three the vectors travel under the secure sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from ..compliance.treaty import Treaty
from ..errors import Refused
from ..privacy.events import DistributedDiscreteGaussian
from ..privacy.noise import Keystream

Integers = npt.NDArray[np.int64]
Sampler = Callable[[int, int, Keystream], Integers]
"""(sigma, size, stream) -> that many discrete Gaussians."""
Name = Literal["distributed", "local", "central"]
Witness = Literal["checked", "shown"]


class Mode(Protocol):
    """What a round's noise is and what it is worth. σ is the study's, in integer units; Δ is the L2 norm by
    which one customer moves one silo's integers, rounding included; m the partners a person may be a customer
    of (the treaty's overlap)."""

    name: ClassVar[Name]
    unsafe: ClassVar[tuple[Literal["central"], ...]]
    """What the treaty's `unsafe` must list."""
    witness: ClassVar[Witness]
    """What nodes sign of a sum: that they checked it by its check value, or were shown it."""
    witnessed: ClassVar[str]
    """The same in words, with a place for how many."""
    caution: ClassVar[str]
    """What whoever reads a study, a treaty or a report in this mode must be told; mostly nothing."""

    def require(self, treaty: Treaty) -> None:
        """Raise Refused unless the treaty permits the mode."""

    def sensitivity(self, one: float, partners: int) -> float:
        """The L2 sensitivity a round is priced with, from Δ and m."""

    def shares(self, survivors: int, treaty: Treaty) -> int:
        """How many noises of σ² stand between the data and the adversary when so many silos are summed."""

    def event(
        self, sensitivity: float, sigma: int, dimension: int, survivors: int, treaty: Treaty
    ) -> DistributedDiscreteGaussian:
        """What a round over so many silos did to a customer's data; `sensitivity` as above."""

    def silo_sigma(self, sigma: int) -> int:
        """Standard deviation of what one silo adds."""

    def spread(self, silos: int) -> float:
        """Standard deviation of the sum's noise, in σ."""

    def at_silo(self, summed: Integers, sigma: int, sampler: Sampler, stream: Keystream) -> Integers:
        """A silo's vector, shape (d,), with its noise in it: what may be masked."""

    def at_server(self, total: Integers, check: int, sigma: int, sampler: Sampler) -> tuple[Integers, int]:
        """An opened sum, shape (d,), and its check value, as anybody but the aggregation may see them."""


@dataclass(frozen=True)
class _AtTheSilos:
    """Every silo adds discrete Gaussian noise of σ² to its vector; the server adds nothing."""

    unsafe: ClassVar[tuple[Literal["central"], ...]] = ()
    witness: ClassVar[Witness] = "checked"
    witnessed: ClassVar[str] = "checked by {} or more"
    caution: ClassVar[str] = ""

    def require(self, treaty: Treaty) -> None:
        """Every treaty permits it."""

    def silo_sigma(self, sigma: int) -> int:
        return sigma

    def spread(self, silos: int) -> float:
        return math.sqrt(silos)

    def at_silo(self, summed: Integers, sigma: int, sampler: Sampler, stream: Keystream) -> Integers:
        return summed + sampler(sigma, summed.size, stream)

    def at_server(self, total: Integers, check: int, sigma: int, sampler: Sampler) -> tuple[Integers, int]:
        return total, check


@dataclass(frozen=True)
class Distributed(_AtTheSilos):
    """The silos' noises protect together, inside the sum (Kairouz, Liu and Steinke 2021, ICML).

    A person who is a customer of m silos moves the one sum by up to m·Δ. Of the survivors' shares the
    adversary knows the colluders' own: survivors − c count, and at least t − c.
    """

    name: ClassVar[Name] = "distributed"

    def sensitivity(self, one: float, partners: int) -> float:
        return partners * one

    def shares(self, survivors: int, treaty: Treaty) -> int:
        return survivors - treaty.colluders

    def event(
        self, sensitivity: float, sigma: int, dimension: int, survivors: int, treaty: Treaty
    ) -> DistributedDiscreteGaussian:
        return DistributedDiscreteGaussian(
            sensitivity, float(sigma), self.shares(survivors, treaty), dimension
        )


@dataclass(frozen=True)
class Local(_AtTheSilos):
    """Each silo's noise protects alone: its vector is private by itself, whatever server and other silos do.

    Against such an adversary the masks count for nothing, and all m vectors that a person is in may be seen.
    Together they are one discrete Gaussian of m·d coordinates, which that person moves by up to √m·Δ in L2:
    ρ = m·Δ²/(2σ²), the m-fold composition of what one silo does. Who survived makes no difference.
    """

    name: ClassVar[Name] = "local"

    def sensitivity(self, one: float, partners: int) -> float:
        return math.sqrt(partners) * one

    def shares(self, survivors: int, treaty: Treaty) -> int:
        return 1

    def event(
        self, sensitivity: float, sigma: int, dimension: int, survivors: int, treaty: Treaty
    ) -> DistributedDiscreteGaussian:
        coordinates = treaty.overlap.max_partners_per_customer * dimension
        return DistributedDiscreteGaussian(sensitivity, float(sigma), 1, coordinates)


@dataclass(frozen=True)
class Central:
    """The server adds the noise, once, to the sum it has opened: it is trusted with every exact sum.

    For comparison, and for those who trust their coordinator; the treaty must say ``unsafe: [central]``.
    Nodes can't check a sum: the check value is of the exact one, and a silo, which knows the check key,
    would learn from it which exact sums are possible. So it is dropped where the noise is added.
    """

    name: ClassVar[Name] = "central"
    unsafe: ClassVar[tuple[Literal["central"], ...]] = ("central",)
    witness: ClassVar[Witness] = "shown"
    witnessed: ClassVar[str] = "taken on the server's word, checked by nobody, shown the same to {} or more"
    caution: ClassVar[str] = (
        "CENTRAL NOISE: the silos add none. The server sees every sum exactly, and that it adds the noise, and"
        " adds it to the right sum, is its word: no node can check it. ε holds against everybody but the server."
    )

    def require(self, treaty: Treaty) -> None:
        if not set(self.unsafe) <= set(treaty.unsafe):
            raise Refused(
                "MODE_NOT_PERMITTED",
                f"the treaty {treaty.name!r} does not permit central noise: the server would see exact sums",
                remedy="say mode: distributed; else amend the treaty with `unsafe: [central]`, signed by every party",
            )

    def sensitivity(self, one: float, partners: int) -> float:
        return partners * one

    def shares(self, survivors: int, treaty: Treaty) -> int:
        return 1

    def event(
        self, sensitivity: float, sigma: int, dimension: int, survivors: int, treaty: Treaty
    ) -> DistributedDiscreteGaussian:
        return DistributedDiscreteGaussian(sensitivity, float(sigma), 1, dimension)

    def silo_sigma(self, sigma: int) -> int:
        return 0

    def spread(self, silos: int) -> float:
        return 1.0

    def at_silo(self, summed: Integers, sigma: int, sampler: Sampler, stream: Keystream) -> Integers:
        return summed

    def at_server(self, total: Integers, check: int, sigma: int, sampler: Sampler) -> tuple[Integers, int]:
        return total + sampler(sigma, total.size, Keystream()), 0


MODES: dict[str, Mode] = {mode.name: mode for mode in (Distributed(), Local(), Central())}


def cautions(treaty: Treaty) -> list[str]:
    """What must be told of what a treaty permits: a sentence for each mode it lists as unsafe."""
    return [
        f"{treaty.name!r} permits studies with `mode: {name}`. {MODES[name].caution}"
        for name in treaty.unsafe
    ]


def _parse(value: object) -> Mode:
    known = value if isinstance(value, str) else getattr(value, "name", None)
    if isinstance(known, str) and known in MODES and value in (known, MODES[known]):
        return MODES[known]
    raise ValueError(f"the mode is one of {', '.join(MODES)}")


ModeField = Annotated[
    Mode,
    PlainValidator(_parse),
    PlainSerializer(lambda mode: mode.name, return_type=str),
    WithJsonSchema({"enum": list(MODES)}),
]
"""A mode in a document: its name in JSON, the object in code."""
