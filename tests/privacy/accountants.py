"""What every accountant must satisfy: inherit `AccountantContract` and say how to make one."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus.errors import InputError
from foedus.privacy.accountant import Accountant
from foedus.privacy.events import DistributedDiscreteGaussian, Event, NonPrivate

DELTAS = (1e-3, 1e-5, 1e-9)
events = st.builds(
    DistributedDiscreteGaussian,
    sensitivity=st.floats(1.0, 1e6),
    sigma=st.floats(4.0, 1e8),
    shares=st.integers(1, 20),
    dimension=st.integers(1, 2000),
).filter(lambda e: 1e-9 < e.rho < 50)


class AccountantContract:
    """The laws. An implementation's test class adds `make`, and `events` if it knows others."""

    ordinary: ClassVar[Event] = DistributedDiscreteGaussian(
        sensitivity=256.0, sigma=2000.0, shares=2, dimension=13
    )
    other: ClassVar[Event] = DistributedDiscreteGaussian(
        sensitivity=64.0, sigma=300.0, shares=3, dimension=48
    )

    def make(self) -> Accountant:
        raise NotImplementedError

    def of(self, *counted: tuple[Event, int]) -> Accountant:
        accountant = self.make()
        for event, count in counted:
            accountant.compose(event, count)
        return accountant

    @settings(max_examples=40, deadline=None)
    @given(event=events, count=st.integers(0, 60), delta=st.sampled_from(DELTAS))
    def test_n_at_once_is_n_times_once(self, event: Event, count: int, delta: float) -> None:
        at_once = self.of((event, count)).epsilon(delta)
        one_by_one = self.of(*[(event, 1)] * count).epsilon(delta)
        assert at_once == pytest.approx(one_by_one, rel=1e-9)

    @settings(max_examples=25, deadline=None)
    @given(chosen=st.lists(events, min_size=2, max_size=5), delta=st.sampled_from(DELTAS), data=st.data())
    def test_the_order_does_not_matter(self, chosen: list[Event], delta: float, data: st.DataObject) -> None:
        shuffled = data.draw(st.permutations(chosen))
        one, two = (self.of(*[(e, 1) for e in order]).epsilon(delta) for order in (chosen, shuffled))
        assert one == pytest.approx(two, rel=1e-9)

    @settings(max_examples=25, deadline=None)
    @given(before=events, event=events, delta=st.sampled_from(DELTAS))
    def test_more_is_never_cheaper(self, before: Event, event: Event, delta: float) -> None:
        one, both = self.of((before, 1)).epsilon(delta), self.of((before, 1), (event, 1)).epsilon(delta)
        assert one <= both
        assert self.of((before, 1)).epsilon(delta / 10) >= one

    def test_a_second_event_costs_something(self) -> None:
        assert self.of((self.ordinary, 1)).epsilon(1e-5) < self.of(
            (self.ordinary, 1), (self.other, 1)
        ).epsilon(1e-5)

    def test_nothing_costs_nothing(self) -> None:
        for delta in DELTAS:
            assert self.make().epsilon(delta) == 0
            assert self.of((self.ordinary, 0), (NonPrivate(), 0)).epsilon(delta) == 0

    def test_what_is_not_private_is_infinite_whatever_else_was_done(self) -> None:
        for counted in (
            [(NonPrivate(), 1)],
            [(self.ordinary, 3), (NonPrivate(), 1)],
            [(NonPrivate(), 1), (self.ordinary, 3)],
        ):
            assert self.of(*counted).epsilon(1e-5) == math.inf

    @pytest.mark.parametrize(
        "event", [None, object(), 1.0, {"event": "non_private"}, "non_private", NonPrivate]
    )
    def test_the_unknown_is_refused_and_not_free(self, event: object) -> None:
        accountant = self.of((self.ordinary, 1))
        before = accountant.epsilon(1e-5)
        with pytest.raises(InputError):
            accountant.compose(event)  # type: ignore[arg-type]
        assert accountant.epsilon(1e-5) == before

    @pytest.mark.parametrize("event", [ordinary, NonPrivate()])
    def test_a_negative_count_is_refused(self, event: Event) -> None:
        accountant = self.of((self.ordinary, 2))
        before = accountant.epsilon(1e-5)
        with pytest.raises(InputError):
            accountant.compose(event, -1)
        assert accountant.epsilon(1e-5) == before

    @pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
    def test_a_delta_outside_0_to_1_is_refused(self, delta: float) -> None:
        for accountant in (self.make(), self.of((self.ordinary, 1)), self.of((NonPrivate(), 1))):
            with pytest.raises(InputError):
                accountant.epsilon(delta)
