"""How a study goes from sum to sum, whichever kind it is: the server, each node and whoever verifies ask here."""

from __future__ import annotations

from .counting import CountStudy
from .study import AnyStudy
from .tasks import count, train
from .tasks.train import Integers

State = train.State | count.State


def start(study: AnyStudy) -> State:
    """Before the first round."""
    return count.State() if isinstance(study, CountStudy) else train.State.start(study)


def advance(state: State, number: int, total: Integers, study: AnyStudy, silos: int) -> State:
    """The state after round `number`, summed over so many silos."""
    if isinstance(state, count.State) or isinstance(study, CountStudy):
        return count.State(total, silos)
    return train.advance(state, number, total, study, silos)


def following(state: State, number: int, study: AnyStudy) -> int | None:
    """The round after `number` (0: the first), given the state after it; None after the last."""
    if isinstance(state, count.State) or isinstance(study, CountStudy):
        return 1 if number == 0 else None
    return train.following(state, number, study)
