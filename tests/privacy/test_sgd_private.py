"""PyTorch's own loop, made private by two objects: what it releases, what it notes, what it refuses."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from support import networks
from support.networks import CROSS_ENTROPY, FEATURES, by_customer, clipped, inputs, labels, network
from torch import Tensor, nn

from foedus.errors import InputError, ProtocolError
from foedus.privacy.events import Gaussian, PoissonSampled
from foedus.privacy.sgd import PoissonBatches, PrivateModel, PrivateOptimizer, SecureSumOptimizer
from foedus.privacy.sgd.release import LocalNoise

GROUPS = np.array([0, 0, 1, 2, 2, 2, 5, 5])
MEAN = nn.BCEWithLogitsLoss()


def private(name: str = "linear", clip: float = 0.1) -> PrivateModel:
    return PrivateModel(network(name), clip=clip, loss=CROSS_ENTROPY)


def flat(model: nn.Module) -> networks.Floats:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).numpy().copy()


def optimizer(model: PrivateModel, noise_multiplier: float = 1.0, rate: float = 1.0) -> PrivateOptimizer:
    inner = torch.optim.SGD(model.parameters(), lr=rate)
    return PrivateOptimizer(inner, model, noise_multiplier=noise_multiplier, expected_batch=8)


@pytest.mark.parametrize("block", [1024, 1])
@pytest.mark.parametrize("name", ["perceptron Tanh", "LSTM", "words", "tied", "picture", "own parameter"])
def test_backward_leaves_the_clipped_sum(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foedus.privacy.sgd.clipped.BLOCK", block)
    model, x, y = private(name), inputs(name, 8), labels(8)
    truth = clipped(by_customer(model.module, x, y, GROUPS), 0.1)
    MEAN(model(x, groups=GROUPS), y).backward()
    assert np.abs(flat(model) - truth).max() < 1e-10
    model.drop()
    loss = model.loss(x, y, groups=GROUPS)
    loss.backward()
    assert np.abs(flat(model) - truth).max() < 1e-10
    assert float(loss.detach()) == pytest.approx(float(MEAN(model.module(x), y).detach()))


def test_a_sum_for_a_loss() -> None:
    model = PrivateModel(network("linear"), clip=0.1, reduction="sum")
    x, y = inputs("linear", 8), labels(8)
    nn.BCEWithLogitsLoss(reduction="sum")(model(x), y).backward()
    assert np.abs(flat(model) - clipped(by_customer(model.module, x, y, None), 0.1)).max() < 1e-12


def test_the_plain_loop_learns() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, FEATURES)
    y = (x.sum(1, keepdim=True) > 0).float()
    batches = PoissonBatches(x, y, sampling_probability=0.1, steps=60)
    model = PrivateModel(networks.perceptron(FEATURES, 16, 1), clip=1.0)
    private_adam = PrivateOptimizer(
        torch.optim.Adam(model.parameters(), lr=0.02), model, noise_multiplier=1.0, batches=batches
    )
    for features, answers in batches:
        loss = MEAN(model(features), answers)
        loss.backward()
        private_adam.step()
        private_adam.zero_grad()
    assert private_adam.events == [PoissonSampled(0.1, Gaussian(1.0))] * 60
    right = ((model.eval()(x) > 0).float() == y).float().mean()
    assert float(right) > 0.9


def test_without_a_sampler_no_sampling_is_claimed() -> None:
    model = private()
    steps = optimizer(model, noise_multiplier=2.0)
    assert steps.events == []
    model.loss(inputs("linear", 8), labels(8)).backward()
    steps.step()
    assert steps.events == [Gaussian(2.0)]


def test_the_noise_is_what_the_event_says() -> None:
    """160,000 numbers: 3% more or less noise than said passes once in 10^25; a fair one fails once in 10^9."""
    clip, multiplier, d = 0.5, 1.5, 160_000
    noise = LocalNoise(clip, multiplier, d)
    total = np.full(d, 0.123)
    drawn = (noise.release(total) - total) / (clip * multiplier)
    excess = 0.0011  # of the grid: a thousandth, and the last step of σ
    low, high = stats.chi2.ppf([5e-10, 1 - 5e-10], d)
    assert (
        low < (drawn**2).sum() / (1 + excess) ** 2 + d * 0.0025
        and (drawn**2).sum() / (1 + excess) ** 2 < high
    )
    for wrong in (0.97, 1.03):
        square = ((drawn * wrong) ** 2).sum()
        assert not low < square < high
    assert abs(drawn.mean()) < 6.2 / math.sqrt(d)


def test_what_is_released_lies_on_the_grid() -> None:
    noise = LocalNoise(1.0, 1.0, 50)
    released = noise.release(np.random.default_rng(0).normal(size=50))
    steps = released / noise.grid
    assert (steps == np.rint(steps)).all() and math.log2(noise.grid).is_integer()
    assert noise.sigma >= 1.0 * (1.0 / noise.grid + math.sqrt(50))
    assert noise.sigma * noise.grid < 1.003  # all this costs less than a third of a percent


def test_two_releases_have_their_own_noise() -> None:
    noise, other = LocalNoise(1.0, 1.0, 1000), LocalNoise(1.0, 1.0, 1000)
    zero = np.zeros(1000)
    draws = [noise.release(zero), noise.release(zero), other.release(zero)]
    for i in range(3):
        for j in range(i):
            assert abs(np.corrcoef(draws[i], draws[j])[0, 1]) < 0.2  # p < 1e-9 by chance


def test_a_step_is_the_noisy_mean() -> None:
    model, x, y = private("perceptron ReLU"), inputs("linear", 8), labels(8)
    truth = clipped(by_customer(model.module, x, y, None), 0.1) / 8
    steps = optimizer(model, noise_multiplier=1e-6)
    before = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()
    model.loss(x, y).backward()
    steps.step()
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    moved = (before - after).numpy()
    assert 0 < np.abs(moved - truth).max() < 1e-5


def test_an_empty_batch_is_a_step_of_noise_alone() -> None:
    for name in ("linear", "LSTM", "words"):
        model = private(name)
        steps = optimizer(model)
        before = copy.deepcopy(model.state_dict())
        MEAN(model(inputs(name, 0)), labels(0)).backward()
        assert not flat(model).any()
        steps.step()
        assert steps.events and any((before[k] != v).any() for k, v in model.state_dict().items())
        model.loss(inputs(name, 0), labels(0)).backward()
        steps.step()


def test_poisson_batches() -> None:
    n, q, steps = 400, 0.03, 300
    x = torch.arange(n).float()[:, None]
    groups = np.arange(n) // 4
    sizes, seen = [], np.zeros(n)
    for rows, owner in PoissonBatches(x, sampling_probability=q, steps=steps, groups=groups):
        chosen = rows[:, 0].long().numpy()
        assert np.bincount(groups[chosen], minlength=100).max(initial=0) in (
            0,
            4,
        )  # all of a customer, or nothing
        assert (np.unique(owner.numpy()) == np.unique(groups[chosen])).all()
        seen[chosen] += 1
        sizes.append(len(chosen) // 4)
    p = stats.binomtest(sum(sizes), 100 * steps, q).pvalue
    assert p > 1e-9 and stats.binomtest(sum(sizes), 100 * steps, 1.3 * q).pvalue < 1e-9
    counts = seen[::4]
    assert stats.chisquare(counts).pvalue > 1e-9
    assert min(sizes) == 0  # Poisson, not a fixed size: e^-3 of batches are empty
    everyone = next(iter(PoissonBatches(x, sampling_probability=1.0, steps=1)))
    assert len(everyone[0]) == n


@pytest.mark.parametrize("q", [0.0, -0.1, 1.1, math.nan, 1e-30])
def test_impossible_probabilities_are_refused(q: float) -> None:
    with pytest.raises(InputError, match="probability"):
        PoissonBatches(torch.zeros(3, 1), sampling_probability=q, steps=1)


def test_a_step_needs_a_batch_of_its_own() -> None:
    x, y = inputs("linear", 8), labels(8)
    batches = PoissonBatches(x, y, sampling_probability=0.5, steps=5)
    model = private()
    steps = PrivateOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model, noise_multiplier=1.0, batches=batches
    )
    model.loss(x, y).backward()
    with pytest.raises(InputError, match="none was drawn"):
        steps.step()
    features, answers = next(iter(batches))
    model.loss(features, answers).backward()
    steps.step()
    assert len(steps.events) == 1


def test_a_step_without_a_clipped_sum_is_refused() -> None:
    model, x, y = private(), inputs("linear", 8), labels(8)
    steps = optimizer(model)
    with pytest.raises(InputError, match="no clipped sum"):
        steps.step()
    MEAN(model.module(x), y).backward()  # around the private model
    with pytest.raises(InputError, match="no clipped sum"):
        steps.step()
    with pytest.raises(InputError, match="not a clipped sum"):
        model.loss(x, y).backward()
    steps.zero_grad()
    model.loss(x, y).backward()
    steps.step()
    with pytest.raises(InputError, match="no clipped sum"):
        steps.step()
    assert len(steps.events) == 1


def test_a_gradient_that_was_touched_is_refused() -> None:
    for touch in (
        lambda p: p.grad.mul_(2),
        lambda p: setattr(p, "grad", torch.ones_like(p)),
        lambda p: setattr(p, "grad", None),
    ):
        model = private()
        steps = optimizer(model)
        model.loss(inputs("linear", 8), labels(8)).backward()
        touch(next(model.parameters()))
        with pytest.raises(InputError, match="changed between"):
            steps.step()


def test_more_of_a_loss_than_the_loss_is_refused() -> None:
    model, x, y = private(), inputs("linear", 8), labels(8)
    with pytest.raises(InputError, match="a factor"):
        (2 * model.loss(x, y)).backward()
    weights = list(model.module.parameters())
    steps = optimizer(model)
    with pytest.raises(InputError, match=r"not a clipped sum|changed between"):
        (model.loss(x, y) + weights[0].square().sum()).backward()  # whichever of the two arrives first
        steps.step()
    steps.zero_grad()
    model.loss(x, y).backward()
    steps.step()
    steps.zero_grad(set_to_none=False)
    model.loss(x, y).backward()
    steps.step()


def test_two_batches_before_a_step_are_refused_and_dropping_one_is_not() -> None:
    model, x, y = private(), inputs("linear", 8), labels(8)
    steps = optimizer(model)
    model.loss(x, y).backward()
    with pytest.raises(InputError, match="two batches"):
        model.loss(x, y).backward()
    steps.zero_grad()
    model.loss(x, y).backward()
    steps.step()
    loss = model.loss(x, y)
    loss.backward(retain_graph=True)
    steps.step()
    with pytest.raises(InputError, match="once"):
        loss.backward()


def test_a_clip_changed_afterwards_is_refused() -> None:
    model = private()
    steps = optimizer(model)
    model.clip = 100.0
    model.loss(inputs("linear", 8), labels(8)).backward()
    with pytest.raises(InputError, match="clip was changed"):
        steps.step()
    assert steps.events == []


def test_a_module_changed_afterwards_is_refused() -> None:
    model, x, y = private("perceptron ReLU"), inputs("linear", 8), labels(8)
    assert isinstance(model.module, nn.Sequential)
    model.module[-1] = nn.Linear(3, 1, dtype=torch.float64)
    for differentiate in (lambda: model.loss(x, y), lambda: model(x)):
        with pytest.raises(InputError, match="other parameters"):
            differentiate()


def test_a_parameter_frozen_between_is_refused() -> None:
    model, x, y = private("perceptron ReLU"), inputs("linear", 8), labels(8)
    steps = optimizer(model)
    model.loss(x, y).backward()
    next(model.parameters()).requires_grad_(False)
    with pytest.raises(InputError, match="frozen"):
        steps.step()


def test_models_and_optimisers_that_do_not_fit_are_refused() -> None:
    model = private()
    foreign = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(InputError, match="not the private model's"):
        PrivateOptimizer(foreign, model, noise_multiplier=1.0, expected_batch=1)
    inner = torch.optim.SGD(model.parameters(), lr=1.0)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="noise multiplier"):
            PrivateOptimizer(inner, model, noise_multiplier=wrong, expected_batch=1)
        with pytest.raises(InputError, match="expected"):
            PrivateOptimizer(inner, model, noise_multiplier=1.0, expected_batch=wrong)
    with pytest.raises(InputError, match="batches"):
        PrivateOptimizer(inner, model, noise_multiplier=1.0)
    with pytest.raises(InputError, match="clip"):
        PrivateModel(network("linear"), clip=0.0)
    with pytest.raises(InputError, match="mixes"):
        PrivateModel(nn.BatchNorm1d(3), clip=1.0)
    with pytest.raises(InputError, match="frozen"):
        PrivateModel(network("linear").requires_grad_(False), clip=1.0)
    with pytest.raises(InputError, match="loss="):
        PrivateModel(network("linear"), clip=1.0).loss(inputs("linear", 3), labels(3))


def test_in_eval_mode_it_is_the_module() -> None:
    model, x = private("perceptron ReLU"), inputs("linear", 8)
    with torch.no_grad():
        assert (model(x) == model.module(x)).all()
    model.eval()
    assert (model(x) == model.module(x)).all() and model(x).requires_grad


def test_the_state_dict_loads_both_ways() -> None:
    model = private("LSTM")
    plain = network("LSTM", seed=9)
    plain.load_state_dict(model.module.state_dict())
    model.module.load_state_dict(network("LSTM", seed=10).state_dict())
    x = inputs("LSTM", 4)
    assert not torch.allclose(plain(x), model.module(x))
    plain.load_state_dict({k.removeprefix("module."): v for k, v in model.state_dict().items()})
    assert (plain(x) == model.module(x)).all()


def test_distributed_mode_hands_the_sum_out_and_steps_by_the_total() -> None:
    handed: list[networks.Floats] = []

    def secure_sum(mine: networks.Floats) -> networks.Floats:
        handed.append(mine.copy())
        return 3 * mine + 1

    model, x, y = private("perceptron ReLU"), inputs("linear", 8), labels(8)
    truth = clipped(by_customer(model.module, x, y, None), 0.1)
    weights = [p.detach().clone() for p in model.parameters()]
    step = SecureSumOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0), model, secure_sum=secure_sum, expected_batch=24
    )
    model.loss(x, y).backward()
    step.step()
    moved = torch.cat(
        [(w - p.detach()).reshape(-1) for w, p in zip(weights, model.parameters(), strict=True)]
    )
    assert np.abs(handed[0] - truth).max() < 1e-10
    assert np.abs(moved.numpy() - (3 * truth + 1) / 24).max() < 1e-12


@pytest.mark.parametrize("answer", [np.zeros(3), np.full(5, math.nan)])
def test_a_total_that_is_none_is_refused(answer: networks.Floats) -> None:
    model = private()
    step = SecureSumOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0), model, secure_sum=lambda _: answer, expected_batch=1
    )
    model.loss(inputs("linear", 8), labels(8)).backward()
    with pytest.raises(ProtocolError, match="gave back"):
        step.step()


def test_rows_of_other_customers_do_not_show_in_a_contribution() -> None:
    """Adding a customer moves the sum by at most the clip, whatever the others are."""
    model, x, y = private("LSTM", clip=0.01), inputs("LSTM", 8), labels(8)

    def total(rows: Tensor) -> networks.Floats:
        model.drop()
        MEAN(model(x[rows], groups=GROUPS[rows.numpy()]), y[rows]).backward()
        return flat(model)

    whole = total(torch.arange(8))
    for customer in np.unique(GROUPS):
        without = total(torch.from_numpy(np.flatnonzero(customer != GROUPS)))
        assert np.linalg.norm(whole - without) <= 0.01 * (1 + 1e-9)
