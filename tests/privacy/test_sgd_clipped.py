"""The clipped sum is what autograd gives customer by customer, and nobody adds more than the clip."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import networks
from support.networks import ALL, CROSS_ENTROPY, FEATURES, by_customer, clipped, inputs, labels, network
from torch import Tensor, nn

from foedus.errors import InputError
from foedus.privacy.sgd import clipped as engine
from foedus.privacy.sgd import clipped_gradient_sum, recurrent, reference

GROUPS = np.array([3, 1, 3, 3, 0, 7, 7, -2, 1, 3, 3])
ROWS = len(GROUPS)
# Opacus 1.6 counts padding tokens, which torch gives no gradient, and pads circular convolutions with zeros.
OPACUS = [name for name in ALL if name not in ("padded words", "circular convolution")]


def relative(ours: networks.Floats, truth: networks.Floats) -> float:
    return float(np.abs(ours - truth).max() / np.abs(truth).max())


@pytest.mark.parametrize("block", [1024, 2])
@pytest.mark.parametrize("groups", [None, GROUPS], ids=["rows", "customers"])
@pytest.mark.parametrize("name", ALL)
def test_every_network(
    name: str, groups: npt.NDArray[np.int64] | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BLOCK", block)
    module, x, y = network(name), inputs(name, ROWS), labels(ROWS)
    gradients = by_customer(module, x, y, groups)
    clip = float(np.median(np.linalg.norm(gradients, axis=1)))
    weights = [p.detach().clone() for p in module.parameters()]
    total, customers = clipped_gradient_sum(module, CROSS_ENTROPY, x, y, clip=clip, groups=groups)
    assert customers == len(gradients) and total.dtype == np.float64
    assert relative(total, clipped(gradients, clip)) < 1e-10
    assert all(p.grad is None and (p == w).all() for p, w in zip(module.parameters(), weights, strict=True))
    assert not any("forward" in vars(m) or m._forward_hooks for m in module.modules())


@pytest.mark.parametrize("name", OPACUS)
def test_opacus_hooks_agree(name: str) -> None:
    module, x, y = network(name), inputs(name, ROWS), labels(ROWS)
    trace = reference.HookedTrace(module, (x,))
    logits = trace.outputs.detach().requires_grad_()
    (back,) = torch.autograd.grad(CROSS_ENTROPY(logits, y).sum(), logits)
    rows = reference.by_row(trace.gradients(back)).numpy()
    clip = float(np.median(np.linalg.norm(rows, axis=1)))
    assert (
        relative(clipped_gradient_sum(module, CROSS_ENTROPY, x, y, clip=clip)[0], clipped(rows, clip)) < 1e-10
    )


@pytest.mark.parametrize("name", ["perceptron ReLU", "LSTM", "GRU", "words", "picture"])
def test_float32_agrees_to_its_own_precision(name: str) -> None:
    module, x, y = network(name), inputs(name, ROWS), labels(ROWS)
    truth = clipped(by_customer(module, x, y, GROUPS), 0.1)
    x = x.float() if x.is_floating_point() else x
    total, _ = clipped_gradient_sum(module.float(), CROSS_ENTROPY, x, y.float(), clip=0.1, groups=GROUPS)
    assert relative(total, truth) < 1e-4


def test_formulas_serve_what_they_are_for_and_opacus_the_rest() -> None:
    served = {}
    for name in ALL:
        module = network(name)
        clipped_gradient_sum(module, CROSS_ENTROPY, inputs(name, 4), labels(4), clip=1.0)
        served[name] = engine.checked.get(module)  # None: a chain, by hand; False: Opacus' hooks
    assert {name for name, how in served.items() if how is False} == {"RNN", "tied"}
    assert {name for name, how in served.items() if how is None} == {
        name for name in networks.FLAT if name not in ("own parameter", "perceptron Softplus")
    }


ACTIVATIONS: list[Callable[[], nn.Module]] = [nn.ReLU, nn.Tanh, nn.GELU, nn.Softplus, nn.ELU]
sizes = st.lists(st.integers(1, 6), min_size=0, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    hidden=sizes,
    activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 10_000),
    owners=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    frozen=st.integers(0, 3),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    quantile=st.floats(0, 1),
)
def test_any_perceptron(
    hidden: list[int],
    activation: Callable[[], nn.Module],
    seed: int,
    owners: list[int],
    frozen: int,
    scale: float,
    quantile: float,
) -> None:
    torch.manual_seed(seed)
    module = networks.perceptron(FEATURES, *hidden, 1, activation=activation).double()
    for p in list(module.parameters())[:frozen][: len(list(module.parameters())) - 1]:
        p.requires_grad_(False)
    groups, rows = np.array(owners), len(owners)
    x = inputs("linear", rows, seed=seed) * scale
    gradients = by_customer(module, x, labels(rows), groups)
    norms = np.linalg.norm(gradients, axis=1)
    clip = float(np.quantile(norms, quantile)) or 1.0
    total, customers = clipped_gradient_sum(module, CROSS_ENTROPY, x, labels(rows), clip=clip, groups=groups)
    truth = clipped(gradients, clip)
    assert customers == len(set(owners)) and np.abs(total - truth).max() <= 1e-10 * np.abs(gradients).max()


def exact_norm_is_at_most(vector: networks.Floats, clip: float) -> bool:
    """In fractions: no rounding of the test's own."""
    return sum(Fraction(float(v)) ** 2 for v in vector) <= Fraction(clip) ** 2


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(
        ["linear", "perceptron Tanh", "linear in time", "long and narrow", "LSTM", "words", "GRU", "picture"]
    ),
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 9),
    single=st.booleans(),
    clip=st.floats(1e-6, 1e3),
    power=st.integers(-6, 8),
    cancelling=st.booleans(),
)
def test_nobody_adds_more_than_the_clip_to_the_last_bit(
    name: str, seed: int, rows: int, single: bool, clip: float, power: int, cancelling: bool
) -> None:
    """All rows are one customer's. Cancelling: rows in pairs whose gradients nearly undo each other."""
    module, x = network(name, seed=seed), inputs(name, rows, seed=seed)
    y = labels(rows)
    if cancelling:
        x = x[torch.arange(rows) // 2]
        y = (torch.arange(rows) % 2).double()[:, None]
    if x.is_floating_point():
        x = x * 10.0**power
    if single:
        module, x, y = module.float(), x.float() if x.is_floating_point() else x, y.float()
    total, customers = clipped_gradient_sum(
        module, CROSS_ENTROPY, x, y, clip=clip, groups=np.zeros(rows, np.int64)
    )
    assert customers == 1 and exact_norm_is_at_most(total, clip)


def test_a_thousand_rows_of_one_customer_are_one_contribution() -> None:
    module, x = network("linear"), inputs("linear", 1000)
    groups = np.zeros(1000, np.int64)
    total, customers = clipped_gradient_sum(module, CROSS_ENTROPY, x, labels(1000), clip=0.5, groups=groups)
    assert customers == 1 and np.linalg.norm(total) == pytest.approx(0.5, rel=1e-9)
    alone, _ = clipped_gradient_sum(module, CROSS_ENTROPY, x, labels(1000), clip=0.5)
    assert np.linalg.norm(alone) > 5  # each row for itself would add up to far more


@pytest.mark.parametrize("name", ["linear", "LSTM", "words", "RNN"])
def test_nobody_and_one(name: str) -> None:
    module = network(name)
    total, customers = clipped_gradient_sum(module, CROSS_ENTROPY, inputs(name, 0), labels(0), clip=1.0)
    assert customers == 0 and not total.any() and total.size == sum(p.numel() for p in module.parameters())
    x, y = inputs(name, 1), labels(1)
    total, customers = clipped_gradient_sum(module, CROSS_ENTROPY, x, y, clip=1e9, groups=np.array([5]))
    assert customers == 1 and relative(total, by_customer(module, x, y, None)[0]) < 1e-10


def test_frozen_and_unused_parameters() -> None:
    module = networks.Words().double()
    module.unused = nn.Linear(2, 2, dtype=torch.float64)
    module.windows.weight.requires_grad_(False)
    module.twice.bias.requires_grad_(False)
    x, y = inputs("words", ROWS), labels(ROWS)
    gradients = by_customer(module, x, y, GROUPS)
    total, _ = clipped_gradient_sum(module, CROSS_ENTROPY, x, y, clip=0.05, groups=GROUPS)
    assert relative(total, clipped(gradients, 0.05)) < 1e-10 and not total[-6:].any()


class Counting(nn.Module):
    """Buffers, one of whole numbers; `writes` changes it in every pass."""

    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("order", torch.arange(FEATURES).flip(0))
        self.inner = nn.Linear(FEATURES, 1)
        self.writes = writes

    def forward(self, x: Tensor) -> Tensor:
        if self.writes:
            self.seen += 1
        out: Tensor = self.inner(x[:, self.order])
        return out


def test_whole_number_buffers_are_fine_and_written_ones_are_not() -> None:
    x, y = inputs("linear", 5), labels(5)
    module = Counting(writes=False).double()
    total, _ = clipped_gradient_sum(module, CROSS_ENTROPY, x, y, clip=0.1)
    assert relative(total, clipped(by_customer(module, x, y, None), 0.1)) < 1e-10
    with pytest.raises(InputError, match="buffer seen"):
        clipped_gradient_sum(Counting(writes=True).double(), CROSS_ENTROPY, x, y, clip=0.1)


def test_in_place_activations_are_followed() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.act = nn.Linear(FEATURES, 3), nn.Linear(3, 1), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.two(self.act(self.one(x)))
            return out

    module, x, y = InPlace().double(), inputs("linear", 6), labels(6)
    total, _ = clipped_gradient_sum(module, CROSS_ENTROPY, x, y, clip=0.1)
    assert relative(total, clipped(by_customer(module, x, y, None), 0.1)) < 1e-10


def test_a_weight_used_outside_its_layer_is_noticed() -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(FEATURES, 1), nn.Linear(FEATURES, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) * nn.functional.linear(x, self.two.weight, self.two.bias)

    module, x, y = Behind().double(), inputs("linear", 6), labels(6)
    with pytest.raises(InputError, match="outside that layer"):
        clipped_gradient_sum(module, CROSS_ENTROPY, x, y, clip=0.1)


def test_what_opacus_gives_is_looked_at_too() -> None:
    """Around a layer that only Opacus serves: a weight used behind it, rows mixed before it."""

    class Behind(networks.Sequences):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x) @ self.last.weight[:, :1]
            return out

    class Before(networks.Sequences):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean(0) * torch.tanh(self.last(x[:, 0, :3])).mean())

    for module, match in ((Behind(nn.RNN), "outside that layer"), (Before(nn.RNN), "mixes rows")):
        with pytest.raises(InputError, match=match):
            clipped_gradient_sum(module.double(), CROSS_ENTROPY, inputs("LSTM", 9), labels(9), clip=1.0)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("rows", [networks.STEPS, 9])
def test_recurrent_layers_may_have_time_first(kind: Any, rows: int) -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(FEATURES, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.cell(x.transpose(0, 1))[0][-1]
            return out

    module, x, y = TimeFirst().double(), inputs("LSTM", rows), labels(rows)
    total, _ = clipped_gradient_sum(module, CROSS_ENTROPY, x, y, clip=0.2)
    assert relative(total, clipped(by_customer(module, x, y, None), 0.2)) < 1e-10


class Mixing(nn.Module):
    """Takes the mean over rows away: every row moves all others'."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(FEATURES, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        out: Tensor = self.last(torch.tanh(x - x.mean(0)))
        return out


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (nn.Sequential(nn.Linear(FEATURES, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), "BatchNorm1d mixes"),
        (nn.Sequential(nn.Linear(FEATURES, 3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1)), "mixes"),
        (Mixing(), "mixes rows"),
        (
            nn.Sequential(nn.Linear(FEATURES, 3), nn.Flatten(0), nn.Unflatten(0, (-1, 1)), nn.Linear(1, 1)),
            "rows",
        ),
    ],
    ids=["batch norm", "batch norm without weights", "home-made", "rows lost"],
)
def test_what_mixes_rows_is_refused(module: nn.Module, match: str) -> None:
    with pytest.raises(InputError, match=match):
        clipped_gradient_sum(module.double(), CROSS_ENTROPY, inputs("linear", 6), labels(6), clip=1.0)


def test_time_before_rows_is_refused() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(FEATURES, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x.transpose(0, 1)).mean(0)
            return out

    for rows in (
        5,
        networks.STEPS,
    ):  # by the shape; where the shape can't tell, by what rows do to each other
        with pytest.raises(InputError, match="rows"):
            clipped_gradient_sum(
                TimeFirst().double(), CROSS_ENTROPY, inputs("LSTM", rows), labels(rows), clip=1.0
            )


def test_batch_norm_that_only_scales_is_fine() -> None:
    module = nn.Sequential(nn.Linear(FEATURES, 3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1)).double()
    module[1].eval()
    x, y = inputs("linear", 6), labels(6)
    total, _ = clipped_gradient_sum(module, CROSS_ENTROPY, x, y, clip=0.1)
    assert relative(total, clipped(by_customer(module, x, y, None), 0.1)) < 1e-10


@pytest.mark.parametrize("name", ["perceptron ReLU", "LSTM", "picture"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_named(name: str, bad: float) -> None:
    module, x, y = network(name), inputs(name, 5), labels(5)
    poisoned = x.clone()
    poisoned.view(-1)[3] = bad
    with pytest.raises(InputError, match="input is not finite"):
        clipped_gradient_sum(module, CROSS_ENTROPY, poisoned, y, clip=1.0)
    y = y.clone()
    y[1] = bad
    with pytest.raises(InputError, match="loss is not finite"):
        clipped_gradient_sum(module, CROSS_ENTROPY, x, y, clip=1.0)
    if name == "LSTM":  # its gates only saturate
        return
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] = bad
    with pytest.raises(InputError, match="not finite"):
        clipped_gradient_sum(module, CROSS_ENTROPY, x, labels(5), clip=1.0)


def test_gradients_beyond_the_floats_are_refused() -> None:
    module = nn.Linear(FEATURES, 1)
    x = torch.full((2, FEATURES), 1e30)
    with pytest.raises(InputError, match="gradient is not finite"):
        clipped_gradient_sum(module, lambda out, _: out.sum(1) * 1e-30, x, labels(2).float(), clip=1.0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"clip": 0.0}, "clip"),
        ({"clip": math.inf}, "clip"),
        ({"clip": math.nan}, "clip"),
        ({"groups": np.zeros(4, np.int64)}, "groups"),
        ({"groups": np.zeros(5)}, "groups"),
        ({"targets": torch.zeros(4, 1, dtype=torch.float64)}, "targets"),
        ({"loss": nn.BCEWithLogitsLoss()}, "one number a row"),
        ({"loss": lambda out, y: (out - y[:, 0]) ** 2}, "one number a row"),
        ({"inputs": (torch.zeros(5, 4), torch.zeros(4, 4))}, "different numbers of rows"),
    ],
)
def test_wrong_words_are_refused(change: dict[str, Any], match: str) -> None:
    words: dict[str, Any] = {
        "loss": CROSS_ENTROPY,
        "inputs": inputs("linear", 5),
        "targets": labels(5),
        "clip": 1.0,
    }
    with pytest.raises(InputError, match=match):
        clipped_gradient_sum(network("linear"), **{**words, **change})


def test_any_loss_and_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.last = nn.Embedding(networks.WORDS, FEATURES), nn.Linear(FEATURES, 3)

        def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.words(tokens).mean(1) * x)
            return out

    loss = nn.CrossEntropyLoss(reduction="none")
    module, y = Two().double(), torch.arange(ROWS) % 3
    tokens, x = inputs("words", ROWS), inputs("linear", ROWS)
    total, _ = clipped_gradient_sum(module, loss, (tokens, x), y, clip=0.1, groups=GROUPS)
    rows = []
    for owner in np.unique(GROUPS):
        at = torch.from_numpy(np.flatnonzero(owner == GROUPS))
        found = torch.autograd.grad(loss(module(tokens[at], x[at]), y[at]).sum(), list(module.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in found]).numpy())
    assert relative(total, clipped(np.array(rows), 0.1)) < 1e-10


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_torchs(kind: type[nn.LSTM | nn.GRU]) -> None:
    """Same outputs from the same layer object: nothing to convert, the state_dict is torch's own."""
    torch.manual_seed(0)
    layer = kind(FEATURES, 3, num_layers=2, bidirectional=True, batch_first=False).double()
    x = torch.randn(networks.STEPS, 5, FEATURES, dtype=torch.float64)
    ours, state = recurrent.run(layer, recurrent.Desk(), torch.zeros((), dtype=torch.float64), x)
    theirs, their_state = layer(x)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    pairs = zip(state, their_state, strict=True) if kind is nn.LSTM else [(state, their_state)]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in pairs)


def test_dropout_between_recurrent_layers_drops() -> None:
    module = networks.Sequences(nn.LSTM, num_layers=2, dropout=0.5).double()
    x, y = inputs("LSTM", 8), labels(8)
    sums = [clipped_gradient_sum(module, CROSS_ENTROPY, x, y, clip=1.0)[0] for _ in range(2)]
    assert np.abs(sums[0] - sums[1]).max() > 1e-9
    module.eval()
    assert (
        relative(
            clipped_gradient_sum(module, CROSS_ENTROPY, x, y, clip=1.0)[0],
            clipped(by_customer(module, x, y, None), 1.0),
        )
        < 1e-10
    )
