"""Attacks on APPFL's secure aggregation, each against its own masks and aggregator."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from ..appfl import VERSION, Federation
from .outcome import Outcome, no_step, recovered, spoiled

NAME = f"APPFL {VERSION}"
_NAMES = ["a", "b", "c", "d", "e"]
_VICTIM = "b"
_EXACT = 1e-5  # float32 masks
Array = npt.NDArray[np.float32]


def _data(d: int = 64) -> dict[str, Array]:
    rng = np.random.default_rng(11)
    return {name: rng.normal(size=d).astype(np.float32) for name in _NAMES}


def _federation() -> Federation:
    return Federation(_NAMES, secrets.token_bytes(32))


def _works(federation: Federation) -> bool:
    """Whether an honest round of its own gives the right average."""
    data = _data()
    got = federation.average({name: federation.upload(name, value, 9) for name, value in data.items()})
    return bool(np.abs(got - np.mean(list(data.values()), axis=0)).max() < _EXACT)


def one_secret() -> Outcome:
    """Any client (here `e`, with the server) makes the victim's mask from the secret all share."""
    federation = _federation()
    upload = federation.upload(_VICTIM, _data()[_VICTIM], 1)["flat"]
    # All `e` holds: the names, the secret and the class.
    mask = Federation(_NAMES, federation.secret).masker(_VICTIM).make_pairwise_mask(upload.numel(), 1)
    what = "one shared secret: any client unmasks any other (collusion is documented)"
    return recovered(
        (upload - mask).numpy(), _data()[_VICTIM], within=_EXACT, what=what, also=_works(federation)
    )


def magnitudes() -> Outcome:
    """No secret at all: masks are N(0, n - 1), so a value of 100 stands out of a single upload."""
    federation = _federation()
    data = _data()[_VICTIM].copy()
    data[:8] = [100, -100, 200, -200, 300, -300, 400, -400]
    seen = federation.upload(_VICTIM, data, 1)["flat"].numpy()
    large = np.argsort(-np.abs(seen))[:8]
    relative = float(np.abs(seen[large] / data[large] - 1).max())
    found = set(large.tolist()) == set(range(8))
    return Outcome(bool(found and relative < 0.1), f"masks N(0, 4): 8 of 8 large values, to {relative:.1%}")


def same_round_again() -> Outcome:
    """The mask is a function of the round's number, which the server names: two uploads in one round differ exactly."""
    federation = _federation()
    update = np.random.default_rng(12).normal(size=64).astype(np.float32)
    first = federation.upload(_VICTIM, _data()[_VICTIM], 1)["flat"]
    second = federation.upload(_VICTIM, _data()[_VICTIM] + update, 1)["flat"]
    what = "one round number twice: the change between two uploads"
    return recovered((second - first).numpy(), update, within=_EXACT, what=what, also=_works(federation))


def clear_text() -> Outcome:
    """Its own trainer puts the number of examples beside the masked vector."""
    payload = _federation().trained(_VICTIM, 37)
    return recovered(payload["num_examples"], 37, within=0.0, what="number of examples in clear")


def lost() -> Outcome:
    """One client falls silent: the masks it shared stay in the average, which is given all the same."""
    federation, data = _federation(), _data()
    rest = {name: federation.upload(name, value, 1) for name, value in data.items() if name != _VICTIM}
    true = np.mean([data[name] for name in rest], axis=0)
    return spoiled(
        federation.average(rest), true, beyond=0.1, what="one of five falls silent (documented)", objections=0
    )


def unequal_weights() -> Outcome:
    """Honest clients, weighted by examples: masks are multiplied by unequal weights, and no longer cancel."""
    federation, data = _federation(), _data()
    examples = dict(zip(_NAMES, (100, 200, 300, 400, 500), strict=True))
    uploads = {name: federation.upload(name, value, 1, examples[name]) for name, value in data.items()}
    true = np.average(list(data.values()), axis=0, weights=list(examples.values()))
    got = federation.average(uploads, "sample_size")
    return spoiled(got, true, beyond=0.1, what="weights by sample size", objections=0)


def altered_sum() -> Outcome:
    """The server shifts the model by 1; a client's `load_parameters` takes it."""
    from appfl.algorithm.trainer.vanilla_trainer import VanillaTrainer

    federation, data = _federation(), _data()
    honest = federation.average({name: federation.upload(name, value, 1) for name, value in data.items()})
    layer = torch.nn.Linear(64, 1, bias=False)
    trainer = VanillaTrainer.__new__(VanillaTrainer)
    trainer.model = layer
    trainer.load_parameters({"weight": torch.from_numpy(honest + 1.0).reshape(1, -1)})
    got = layer.weight.detach().numpy().ravel()
    return spoiled(got, honest, beyond=0.5, what="taken by a client's load_parameters", objections=0)


ATTACKS: dict[str, Callable[[], Outcome]] = {
    "seed": magnitudes,
    "both": one_secret,
    "split": lambda: no_step("no survivor set: silent clients are not recovered"),
    "keys": lambda: no_step("no key agreement: one secret is given to all"),
    "threshold": lambda: no_step("no threshold"),
    "again": same_round_again,
    "clear": clear_text,
    "altered": altered_sum,
    "share": lost,
    "overflow": lambda: no_step("floats: no ring to overflow"),
    "weights": unequal_weights,
}
