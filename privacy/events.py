"""What was done to data, as frozen values; what it costs is computed in `accountant`.

The vocabulary is dp-accounting's: an *event* describes a mechanism, a ledger is a list of events, an
accountant maps the list to ε. Every event is per customer (add or remove one customer).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from ..errors import InputError

_UP = 1 + 1e-12
"""A bound is raised by this factor, so that the rounding of its few operations can't lower it."""


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
class Laplace:
    """Laplace noise on a number, or on each coordinate of a vector.

    Args:
        noise_multiplier: scale of the noise ÷ the L1 norm one customer can move the result by.
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

    With L2 sensitivity Δ, n shares and d coordinates two bounds are known; both may be used.

    *Concentrated DP* (`rho`). Kairouz, Liu and Steinke 2021 (ICML, "The Distributed Discrete Gaussian
    Mechanism"), Theorem 1: it is ½ε²-concentrated DP for

        ε = min( sqrt(Δ²/(nσ²) + ½τd),  Δ/(√n σ) + τ√d ),   τ = 10 Σ_{k=1}^{n-1} exp(−2π²σ² k/(k+1)).

    *Comparison with a Gaussian* (`mu`, `slack`). Pointwise, up to factors e^{±slack}, the noisy vector is a function
    of the same vector with continuous Gaussian noise of variance nσ² − r², for any r > 0; so

        δ(ε) ≤ e^slack · δ_mu(ε − 2·slack),   mu = Δ/√(nσ² − r²),

    δ_mu that of the Gaussian mechanism with sensitivity ÷ deviation mu (proof: docs/protocols/accounting.md).
    Over rounds mu² and slack add up.

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
        _positive("sensitivity", self.sensitivity)
        _positive("sigma", self.sigma)
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

    @property
    def mu(self) -> float:
        """Sensitivity ÷ deviation of the Gaussian mechanism it is compared with."""
        return _UP * self.sensitivity / math.sqrt(self.shares * self.sigma**2 - self._rounding)

    @property
    def slack(self) -> float:
        """a, the logarithm of the factor within which the comparison holds; infinite if σ is hopelessly small."""
        s2, extra = self.sigma**2, self.shares - 1
        sums = extra * ripple(s2 / 2) if extra else 0.0  # k = 1 is the largest of them
        if sums > 1e-15:
            sums = sum(ripple(s2 * k / (k + 1)) for k in range(1, self.shares))
        return _UP * self.dimension * (sums + ripple(self._rounding))

    @property
    def _rounding(self) -> float:
        """r²: any value is sound; this one is near the best where some hundreds of events are composed.

        It weighs what r adds to mu, r²/(2nσ²) of it, against what it takes from the slack, 8d·exp(−2π²r²).
        """
        variance = self.shares * self.sigma**2
        weight = 1600 * self.dimension * variance * math.sqrt(variance) / self.sensitivity
        return min(max(0.5, math.log(weight) / (2 * math.pi**2)), variance / 2)


def ripple(variance: float) -> float:
    """log((1 + η)/(1 − η)) with η = 2 Σ_{k≥1} exp(−2π² variance k²).

    By Poisson summation Σ_{z ∈ ℤ} exp(−(z − x)²/(2 variance)) lies within √(2π variance)·(1 ± η) for every x: this
    is how much it can vary. Infinite if η ≥ 1.
    """
    eta, k = 0.0, 1
    while (term := 2 * math.exp(-2 * math.pi**2 * variance * k * k)) > 1e-20 * eta and eta < 1:
        eta, k = eta + term, k + 1
    return 2 * math.atanh(eta) if eta < 1 else math.inf


@dataclass(frozen=True)
class NonPrivate:
    """An unprotected release: its ε is infinite, whatever else was done."""


Event = Gaussian | Laplace | PoissonSampled | DistributedDiscreteGaussian | NonPrivate
_KINDS: dict[str, type[Event]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "poisson_sampled": PoissonSampled,
    "distributed_discrete_gaussian": DistributedDiscreteGaussian,
    "non_private": NonPrivate,
}
_WHOLE = {"shares", "dimension"}
_LARGEST = 2**53  # whole numbers beyond it are not exact in JSON; no event is anywhere near


def to_json(event: Event) -> dict[str, Any]:
    """An event as a JSON object (the ledger's and the evidence's form); the event within it, if any, under `of`."""
    kind = next(name for name, cls in _KINDS.items() if type(event) is cls)
    found = {field.name: getattr(event, field.name) for field in fields(event)}
    if "event" in found:
        found["of"] = to_json(found.pop("event"))
    return {"event": kind, **found}


def from_json(value: Any) -> Event:
    """Read an event.

    Raises:
        InputError: an unknown event or malformed fields, at any depth; unknown never means free.
    """
    kind = value.get("event") if isinstance(value, dict) else value
    if not isinstance(value, dict) or not isinstance(kind, str) or kind not in _KINDS:
        raise InputError(f"unknown privacy event {kind!r}")
    cls = _KINDS[kind]
    found: dict[str, Any] = {k: v for k, v in value.items() if k != "event"}
    expected = {"of" if field.name == "event" else field.name for field in fields(cls)}
    if set(found) != expected:
        raise InputError(f"privacy event {kind}: fields {sorted(expected)} are needed, not {sorted(found)}")
    inner: dict[str, Any] = {"event": from_json(found.pop("of"))} if "of" in found else {}
    for name, number in found.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise InputError(f"privacy event {kind}: {name} is a number, not {number!r}")
        if name in _WHOLE and not isinstance(number, int):
            raise InputError(f"privacy event {kind}: {name} is a whole number")
        if abs(number) > _LARGEST:
            raise InputError(f"privacy event {kind}: {name} is at most {_LARGEST:g}")
    return cls(**found, **inner)


def _positive(name: str, value: float) -> None:
    if not 1e-50 < value < 1e50:  # and so is everything that is computed from it
        raise InputError(f"{name} must be positive and finite (1e-50 to 1e50), not {value}")
