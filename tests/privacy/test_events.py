"""Events on paper: what was written comes back, and nothing else is taken for an event."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foedus.documents import canonical, parse_json
from foedus.errors import InputError
from foedus.privacy.events import (
    DistributedDiscreteGaussian,
    Event,
    Gaussian,
    Laplace,
    NonPrivate,
    PoissonSampled,
    from_json,
    to_json,
)

from .accountants import discrete, gaussians, laplaces, sampled

SUM = {
    "event": "distributed_discrete_gaussian",
    "sensitivity": 2.5,
    "sigma": 40.0,
    "shares": 2,
    "dimension": 13,
}
NOISE = {"event": "gaussian", "noise_multiplier": 2.0}
SAMPLED = {"event": "poisson_sampled", "sampling_probability": 0.1, "of": NOISE}


@given(st.one_of(discrete, gaussians, laplaces, sampled, st.just(NonPrivate())))
def test_an_event_survives_canonical_json(event: Event) -> None:
    assert from_json(parse_json(canonical(to_json(event)))) == event


def test_the_form_of_each() -> None:
    assert to_json(DistributedDiscreteGaussian(2.5, 40.0, 2, 13)) == SUM
    assert to_json(PoissonSampled(0.1, Gaussian(2.0))) == SAMPLED
    assert to_json(Laplace(3.0)) == {"event": "laplace", "noise_multiplier": 3.0}
    assert to_json(NonPrivate()) == {"event": "non_private"}


@pytest.mark.parametrize(
    "value",
    [
        None, [], "non_private", {}, {"event": "gauss"}, {"event": None}, {"event": ["gaussian"]},
        {"event": "non_private", "sigma": 1.0}, {"event": {"event": "gaussian"}},
        {**SUM, "event": "Distributed_discrete_gaussian"}, {**SUM, "more": 1.0},
        {k: v for k, v in SUM.items() if k != "shares"}, {**SUM, "shares": 0}, {**SUM, "shares": -2},
        {**SUM, "shares": 2.0}, {**SUM, "shares": True}, {**SUM, "dimension": 0}, {**SUM, "dimension": 1.5},
        {**SUM, "shares": 10**400}, {**SUM, "sigma": 10**400}, {**SUM, "sigma": 0.0}, {**SUM, "sigma": -1.0},
        {**SUM, "sigma": "40"}, {**SUM, "sigma": None}, {**SUM, "sigma": math.inf}, {**SUM, "sigma": math.nan},
        {**SUM, "sensitivity": 0.0}, {**SUM, "sensitivity": -1.0}, {**SUM, "sensitivity": math.nan},
        {**SUM, "sensitivity": True}, {**NOISE, "noise_multiplier": 0}, {**NOISE, "noise_multiplier": -1.0},
        {**NOISE, "noise_multiplier": math.nan}, {**NOISE, "noise_multiplier": True}, {**NOISE, "noise_multiplier": {}},
        {"event": "gaussian"}, {"event": "laplace", "scale": 1.0}, {"event": "laplace", "noise_multiplier": math.inf},
        {**SAMPLED, "sampling_probability": 0.0}, {**SAMPLED, "sampling_probability": 1.0 + 1e-9},
        {**SAMPLED, "sampling_probability": math.nan}, {**SAMPLED, "sampling_probability": "0.1"},
        {**SAMPLED, "of": None}, {**SAMPLED, "of": "gaussian"}, {**SAMPLED, "of": {"event": "unknown"}},
        {**SAMPLED, "of": {**NOISE, "noise_multiplier": -1.0}}, {**SAMPLED, "of": {**NOISE, "more": 1}},
        {**SAMPLED, "of": SAMPLED}, {**SAMPLED, "of": SUM}, {**SAMPLED, "of": {"event": "non_private"}},
        {**SAMPLED, "of": {"event": "laplace", "noise_multiplier": 1.0}}, {**NOISE, "of": NOISE},
        {k: v for k, v in SAMPLED.items() if k != "of"},
    ],
)  # fmt: skip
def test_any_other_event_is_refused(value: Any) -> None:
    with pytest.raises(InputError):
        from_json(value)


@pytest.mark.parametrize("inner", [None, 1.0, NonPrivate(), Laplace(1.0), PoissonSampled(0.5, Gaussian(1.0))])
def test_only_a_gaussian_is_sampled(inner: Any) -> None:
    with pytest.raises(InputError):
        PoissonSampled(0.5, inner)
