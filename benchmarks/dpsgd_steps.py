"""One training step of every way there is: plain PyTorch, Opacus' four, ours. The same weights, rows and rate for all."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from measure import Job, Watch
from torch import Tensor, nn

from foedus.privacy.sgd import PrivateModel, PrivateOptimizer, clipped_gradient_sum

CLIP, NOISE, RATE, SEED = 1.0, 1.0, 0.05, 1
STEPS, FEATURES, HIDDEN = 30, 12, 64
OPACUS = ("hooks", "functorch", "ew", "ghost")
Step = Callable[[Tensor, Tensor], None]


class Recurrent(nn.Module):
    """LSTM 30×12, hidden 64, a linear layer on the last output."""

    def __init__(self, cell: Any = nn.LSTM) -> None:
        super().__init__()
        self.cell, self.last = cell(FEATURES, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.cell(x)
        logits: Tensor = self.last(out[:, -1])
        return logits


def network(kind: str, *, opacus: bool = False) -> nn.Module:
    """MLP 40-128-64-1, or the LSTM; Opacus needs its own cell."""
    torch.manual_seed(SEED)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(40, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))
    like = Recurrent()
    if not opacus:
        return like
    from opacus.layers import DPLSTM

    twin = Recurrent(DPLSTM)
    twin.cell.load_state_dict(like.cell.state_dict())
    twin.last.load_state_dict(like.last.state_dict())
    return twin


def rows(kind: str, batch: int) -> tuple[Tensor, Tensor]:
    """Random rows and labels, (batch, 1)."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (batch, 40) if kind == "mlp" else (batch, STEPS, FEATURES)
    x = torch.randn(shape, generator=generator)
    return x, (torch.rand(batch, 1, generator=generator) < 0.3).float()


def plain(kind: str, batch: int) -> Step:
    """PyTorch without privacy."""
    model, criterion = network(kind), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    return step


def ours(kind: str, batch: int) -> Step:
    """`model.loss`: block by block."""
    model, optimizer = _private(kind, batch)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        model.loss(x, y).backward()
        optimizer.step()

    return step


def ours_unchanged(kind: str, batch: int) -> Step:
    """The plain loop, line for line."""
    (model, optimizer), criterion = _private(kind, batch), nn.BCEWithLogitsLoss()

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    return step


def _private(kind: str, batch: int) -> tuple[PrivateModel, PrivateOptimizer]:
    model = PrivateModel(network(kind), clip=CLIP, loss=nn.BCEWithLogitsLoss(reduction="none"))
    inner = torch.optim.SGD(model.parameters(), lr=RATE)
    return model, PrivateOptimizer(inner, model, noise_multiplier=NOISE, expected_batch=batch)


def opacus(kind: str, batch: int, mode: str, *, noise: float = NOISE) -> tuple[Step, nn.Module]:
    """Opacus, of that grad_sample_mode, and its model."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus import PrivacyEngine
        from torch.utils.data import DataLoader, TensorDataset

        model: Any = network(kind, opacus=True)
        words = {
            "module": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=RATE),
            "data_loader": DataLoader(TensorDataset(*rows(kind, batch)), batch_size=batch),
            "noise_multiplier": noise,
            "max_grad_norm": CLIP,
            "poisson_sampling": False,
            "grad_sample_mode": mode,
        }
        criterion: Any = nn.BCEWithLogitsLoss()
        if mode == "ghost":
            model, optimizer, criterion, _ = PrivacyEngine(accountant="rdp").make_private(
                criterion=criterion, **words
            )
        else:
            model, optimizer, _ = PrivacyEngine(accountant="rdp").make_private(**words)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    return step, model


def way(name: str, kind: str, batch: int) -> Step:
    """A step by its name in the table."""
    if name in OPACUS:
        return opacus(kind, batch, name)[0]
    return {"plain": plain, "ours": ours, "ours, loop unchanged": ours_unchanged}[name](kind, batch)


def jobs(name: str, kind: str, batch: int, repeat: int) -> Iterator[Job]:
    """Endless repetitions of `repeat` steps."""
    step, (x, y) = way(name, kind, batch), rows(kind, batch)
    while True:

        def job(watch: Watch) -> None:
            with watch:
                for _ in range(repeat):
                    step(x, y)

        yield job


def verify(kind: str, batch: int = 256) -> float:
    """Our clipped mean gradient against what Opacus steps by without noise: the largest difference, relative.

    Raises:
        AssertionError: it is more than float32 explains.
    """
    x, y = rows(kind, batch)
    step, model = opacus(kind, batch, "hooks", noise=0.0)
    names = dict(network(kind).named_parameters())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step(x, y)
    moved = {
        k.removeprefix("_module."): (before[k] - v) / RATE * batch for k, v in model.state_dict().items()
    }
    theirs = torch.cat([moved[name].reshape(-1) for name in names]).double().numpy()
    loss = nn.BCEWithLogitsLoss(reduction="none")
    mine, customers = clipped_gradient_sum(network(kind), loss, x, y, clip=CLIP)
    assert customers == batch
    difference = float(np.abs(mine - theirs).max() / np.abs(theirs).max())
    assert difference < 1e-3, f"{kind}: our clipped sum and Opacus' differ by {difference:.1e}"
    return difference
