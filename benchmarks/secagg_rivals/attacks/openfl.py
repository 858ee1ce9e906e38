"""Attacks on OpenFL's secure aggregation, each against its own set-up, masks and average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from openfl.utilities.secagg import calculate_shared_mask, generate_agreed_key, pseudo_random_generator

from ..openfl import VERSION, Federation
from .outcome import Outcome, no_step, recovered, spoiled

NAME = f"OpenFL {VERSION}"
_NAMES = ["a", "b", "c"]
_VICTIM = "b"
_EXACT = 1e-9
Array = npt.NDArray[np.float64]


def _data(d: int = 64) -> dict[str, Array]:
    rng = np.random.default_rng(11)
    return {name: rng.normal(size=d) for name in _NAMES}


def _honest(
    weights: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3),
) -> tuple[Federation, dict[str, Array], Array, Array]:
    """A set-up and one sum: federation, uploads, OpenFL's average, the true one."""
    federation, data = Federation(_NAMES), _data()
    uploads = {name: federation.upload(name, value) for name, value in data.items()}
    share = dict(zip(_NAMES, weights, strict=True))
    true = np.average([data[n] for n in _NAMES], axis=0, weights=weights)
    return federation, uploads, federation.average(uploads, share), true


def _works(average: Array, true: Array) -> bool:
    return bool(np.abs(average - true).max() < _EXACT)


def one_scalar() -> Outcome:
    """The mask of a whole tensor is one number: differences of coordinates are exact in a single upload."""
    _, uploads, average, true = _honest()
    got, data = uploads[_VICTIM], _data()[_VICTIM]
    what = "no search needed: all 63 differences of coordinates"
    return recovered(got - got[0], data - data[0], within=_EXACT, what=what, also=_works(average, true))


def both_shares() -> Outcome:
    """In an honest set-up each collaborator hands the aggregator all shares of its own seed and private key."""
    federation, uploads, average, true = _honest()
    known: dict[str, Any] = federation.setup._results
    index = known["index"][_VICTIM]
    own = pseudo_random_generator(known["private_seeds"][index])
    keys = [
        [index, peer, generate_agreed_key(known["private_keys"][index], public[0])]
        for peer, public in known["public_keys"].items()
    ]
    got = uploads[_VICTIM] - own - calculate_shared_mask(keys)
    what = "nothing to ask: the aggregator holds both after set-up"
    return recovered(got, _data()[_VICTIM], within=_EXACT, what=what, also=_works(average, true))


def same_mask_again() -> Outcome:
    """Masks are made once an experiment: what changed between two rounds is exact."""
    federation, uploads, average, true = _honest()
    update = np.random.default_rng(12).normal(size=64)
    again = federation.upload(_VICTIM, _data()[_VICTIM] + update)
    what = "one mask for all rounds: the change between two"
    return recovered(again - uploads[_VICTIM], update, within=_EXACT, what=what, also=_works(average, true))


def clear_text() -> Outcome:
    """Tensors tagged as metrics go unmasked."""
    federation = Federation(_NAMES)
    metric = np.array(0.8125)
    return recovered(
        federation.upload(_VICTIM, metric, "metric"), metric, within=0.0, what="metrics go unmasked"
    )


def unequal_weights() -> Outcome:
    """Honest collaborators with 1 : 2 : 3 examples: pair masks are weighted, and no longer cancel."""
    _, _, average, true = _honest((1 / 6, 2 / 6, 3 / 6))
    return spoiled(average, true, beyond=1e-6, what="weights 1 : 2 : 3", objections=0)


ATTACKS: dict[str, Callable[[], Outcome]] = {
    "seed": one_scalar,
    "both": both_shares,
    "split": lambda: no_step("no survivor set is asked for: row 2 already opens everything"),
    "keys": lambda: no_step("not tried: the aggregator is given the private keys (row 2)"),
    "threshold": lambda: no_step("not tried: fixed at n, and the aggregator is given all n shares (row 2)"),
    "again": same_mask_again,
    "clear": clear_text,
    "altered": lambda: no_step("not tried: its aggregator does not start outside a workspace"),
    "share": lambda: no_step("its plan lets nobody fall silent: it waits for all"),
    "overflow": lambda: no_step("floats: no ring to overflow"),
    "weights": unequal_weights,
}
