"""What was done to data, as frozen values; what it costs is computed in `accountant`.

The vocabulary is dp-accounting's: an *event* describes a mechanism, a ledger is a list of events, an
accountant maps the list to ε. Every event is per customer (add or remove one customer).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class Gaussian:
    """Gaussian noise on a sum.

    Args:
        noise_multiplier: standard deviation ÷ the L2 norm one customer can move the sum by.
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        _positive("noise_multiplier", self.noise_multiplier)


@dataclass(frozen=True)
class PoissonSampled:
    """`event` over a random part of the customers, each in it independently.

    Args:
        sampling_probability: in (0, 1]; 1 is `event` itself.
        event: what is done to those who were drawn.
    """

    sampling_probability: float
    event: Gaussian

    def __post_init__(self) -> None:
        _positive("sampling_probability", self.sampling_probability)
        if self.sampling_probability > 1:
            raise InputError(f"sampling_probability is at most 1, not {self.sampling_probability}")
        if not isinstance(self.event, Gaussian):
            raise InputError(f"only a Gaussian is accounted for under sampling, not {self.event!r}")


@dataclass(frozen=True)
class DistributedDiscreteGaussian:
    """The sum of `shares` independent discrete Gaussians N_Z(0, sigma²) per coordinate, added to an integer vector.

    Kairouz, Liu and Steinke 2021 (ICML, "The Distributed Discrete Gaussian Mechanism"), Theorem 1: with
    L2 sensitivity Δ, n shares and d coordinates it is ½ε²-concentrated DP for

        ε = min( sqrt(Δ²/(nσ²) + ½τd),  Δ/(√n σ) + τ√d ),   τ = 10 Σ_{k=1}^{n-1} exp(−2π²σ² k/(k+1)).

    Reduction modulo 2^b is post-processing and costs nothing.

    Args:
        sensitivity: Δ, the L2 norm one customer can move the integer vector by, rounding included.
        sigma: standard deviation of one share, in integer units.
        shares: shares no adversary knows (survivors less colluders).
        dimension: d.
    """

    sensitivity: float
    sigma: float
    shares: int
    dimension: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sensitivity) and self.sensitivity > 0):
            raise InputError(f"sensitivity must be positive and finite, not {self.sensitivity}")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise InputError(f"sigma must be positive and finite, not {self.sigma}")
        if self.shares < 1 or self.dimension < 1:
            raise InputError("a discrete Gaussian sum has at least one share and one coordinate")

    @property
    def tau(self) -> float:
        """Distance of the sum of shares from one discrete Gaussian (Theorem 1)."""
        s2 = self.sigma**2
        return 10.0 * sum(math.exp(-2 * math.pi**2 * s2 * k / (k + 1)) for k in range(1, self.shares))

    @property
    def rho(self) -> float:
        """The zero-concentrated DP parameter ρ = ½ε²."""
        base = self.sensitivity / (math.sqrt(self.shares) * self.sigma)
        tau, d = self.tau, self.dimension
        epsilon = min(math.sqrt(base**2 + 0.5 * tau * d), base + tau * math.sqrt(d))
        return 0.5 * epsilon**2


@dataclass(frozen=True)
class NonPrivate:
    """An unprotected release: its ε is infinite, whatever else was done."""


Event = DistributedDiscreteGaussian | NonPrivate
_KINDS: dict[str, type[DistributedDiscreteGaussian | NonPrivate]] = {
    "distributed_discrete_gaussian": DistributedDiscreteGaussian,
    "non_private": NonPrivate,
}


def to_json(event: Event) -> dict[str, Any]:
    """An event as a JSON object (the ledger's and the evidence's form)."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(event, cls))
    return {"event": kind, **asdict(event)}


def from_json(value: Any) -> Event:
    """Read an event.

    Raises:
        InputError: an unknown event or malformed fields; unknown never means free.
    """
    if not isinstance(value, dict) or value.get("event") not in _KINDS:
        raise InputError(
            f"unknown privacy event {value.get('event') if isinstance(value, dict) else value!r}"
        )
    fields = {k: v for k, v in value.items() if k != "event"}
    cls = _KINDS[value["event"]]
    expected = set(cls.__dataclass_fields__)
    if set(fields) != expected or any(
        isinstance(v, bool) or not isinstance(v, int | float) for v in fields.values()
    ):
        raise InputError(f"privacy event {value['event']}: fields {sorted(expected)} with numbers are needed")
    for whole in ("shares", "dimension"):
        if whole in fields and not isinstance(fields[whole], int):
            raise InputError(f"privacy event {value['event']}: {whole} is a whole number")
    return cls(**fields)


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} must be positive and finite, not {value}")
