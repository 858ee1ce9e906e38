"""The noise, tested with power: what passes must be rejected at 0.7 and 1.3 times its scale."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from support.goodness import (
    chi_square,
    discrete_gaussian_p,
    discrete_gaussian_pmf,
    gaussian_p,
    uniform_bytes_p,
)

import foedus
from foedus.errors import InputError
from foedus.privacy.noise import Keystream, discrete_gaussian

Integers = npt.NDArray[np.int64]
REJECT = 1e-9
SMALL, LARGE = 4, 352_208


@pytest.fixture(scope="module")
def small() -> Integers:
    return discrete_gaussian(SMALL, 100_000, Keystream())


@pytest.fixture(scope="module")
def large() -> Integers:
    return discrete_gaussian(LARGE, 100_000, Keystream())


def p_of(samples: Integers, sigma: float) -> float:
    return discrete_gaussian_p(samples, sigma) if sigma < 1000 else gaussian_p(samples, sigma)


# ── the sampler ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("which", "sigma"), [("small", SMALL), ("large", LARGE)])
def test_the_samples_are_discrete_gaussian_of_this_sigma_and_no_other(
    which: str, sigma: float, request: pytest.FixtureRequest
) -> None:
    samples = request.getfixturevalue(which)
    assert samples.dtype == np.int64
    assert p_of(samples, sigma) > REJECT
    for factor in (0.7, 0.9, 1.1, 1.3):
        assert p_of(samples, factor * sigma) < REJECT


@pytest.mark.parametrize(("which", "sigma"), [("small", SMALL), ("large", LARGE)])
def test_the_test_would_see_bad_noise(which: str, sigma: int, request: pytest.FixtureRequest) -> None:
    samples = request.getfixturevalue(which)
    half = samples[: len(samples) // 2]
    bad = {
        "shifted by σ/4": samples + sigma // 4,
        "constant": np.zeros_like(samples),
        "one-sided": np.abs(samples),
        "cut off at 1.5σ": np.clip(samples, -3 * sigma // 2, 3 * sigma // 2),
        "a stream of 500 samples again and again": np.resize(samples[:500], len(samples)),
        "every second sample zero": np.where(np.arange(len(samples)) % 2, samples, 0),
        "a continuous Gaussian of twice the variance": np.rint(half * np.sqrt(2)).astype(np.int64),
    }
    missed = [name for name, wrong in bad.items() if p_of(wrong, sigma) >= REJECT]
    assert missed == []


def test_mean_and_variance_are_those_of_the_pmf(small: Integers) -> None:
    n = len(small)
    assert abs(small.mean()) < 6 * SMALL / np.sqrt(n)
    assert abs(small.var() / SMALL**2 - 1) < 6 * np.sqrt(2 / n)


def test_samples_are_independent(small: Integers) -> None:
    for lag in (1, 2, 7):
        correlation = float(np.corrcoef(small[:-lag], small[lag:])[0, 1])
        assert abs(correlation) < 6 / np.sqrt(len(small))


@pytest.mark.parametrize("sigma", [1, 2, 37])
def test_other_scales(sigma: int) -> None:
    samples = discrete_gaussian(sigma, 20_000, Keystream())
    assert discrete_gaussian_p(samples, sigma) > REJECT
    assert discrete_gaussian_p(samples, 1.3 * sigma) < REJECT


@pytest.mark.parametrize("sigma", [0, -4, 2**40])
def test_a_sigma_out_of_range_is_refused(sigma: int) -> None:
    with pytest.raises(InputError):
        discrete_gaussian(sigma, 1, Keystream())


def test_no_samples_of_nothing() -> None:
    assert discrete_gaussian(SMALL, 0, Keystream()).shape == (0,)


# ── the keystream ────────────────────────────────────────────────────────────────────────────────


def test_two_keystreams_never_agree_and_neither_repeats() -> None:
    seen = set()
    for _ in range(50):
        stream = Keystream()
        seen |= {stream.take(16) for _ in range(1000)}  # across many refills of its buffer
        seen.add(stream.take(10_000)[:16])
        seen.add(stream.unit((4,)).tobytes()[:16])
    assert len(seen) == 50 * 1002


def test_the_keystream_is_uniform() -> None:
    stream = Keystream()
    assert uniform_bytes_p(b"".join(stream.take(97) for _ in range(3000))) > REJECT
    assert uniform_bytes_p(stream.take(300_000)) > REJECT


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 255, 256, 257, 1000])
def test_below_is_uniform_and_exact(limit: int) -> None:
    stream = Keystream()
    counts = np.bincount([stream.below(limit) for _ in range(25_000)], minlength=limit)
    assert len(counts) == limit
    if limit > 1:
        assert chi_square(counts.tolist(), [25_000 / limit] * limit) > REJECT


def test_below_takes_numbers_beyond_machine_words() -> None:
    stream, limit = Keystream(), 3 * 2**130
    values = [stream.below(limit) for _ in range(3000)]
    thirds = np.bincount([v // 2**130 for v in values], minlength=3)
    assert chi_square(thirds.tolist(), [1000.0] * 3) > REJECT
    assert len(set(values)) == 3000


def test_unit_is_uniform_on_zero_to_one() -> None:
    values = Keystream().unit((100, 1000))
    assert values.shape == (100, 1000)
    assert values.min() >= 0 and values.max() < 1
    counts, _ = np.histogram(values, 100, (0, 1))
    assert chi_square(counts.tolist(), [1000.0] * 100) > REJECT


def test_a_keystream_does_not_print() -> None:
    stream = Keystream()
    stream.take(1)
    assert repr(stream) == "Keystream(…)"


# ── no other generator ───────────────────────────────────────────────────────────────────────────


def forbidden_randomness(source: str) -> list[str]:
    """Uses of generators that are not a cipher: numpy.random, torch's, and the module random."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [
                a.name
                for a in node.names
                if a.name.split(".")[0] == "random" or a.name.startswith("numpy.random")
            ]
        elif isinstance(node, ast.ImportFrom):
            names = {a.name for a in node.names}
            module = node.module or ""
            if node.level == 0 and (module.split(".")[0] == "random" or module.startswith("numpy.random")):
                found.append(module)
            if module in ("numpy", "torch") and names & {
                "random",
                "Generator",
                "randn",
                "normal",
                "manual_seed",
            }:
                found.append(f"from {module} import {names}")
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner in ("np", "numpy") and node.attr == "random":
                found.append("np.random")
            if owner == "torch" and node.attr in {
                "rand",
                "randn",
                "randint",
                "normal",
                "Generator",
                "manual_seed",
                "poisson",
            }:
                found.append(f"torch.{node.attr}")
            if node.attr in {"normal_", "uniform_", "bernoulli_", "random_"}:
                found.append(node.attr)
    return found


def test_no_other_generator_is_used_in_privacy() -> None:
    folder = Path(foedus.__file__).parent / "privacy"
    files = sorted(folder.rglob("*.py"))
    assert len(files) >= 12
    assert {f.name: bad for f in files if (bad := forbidden_randomness(f.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import random", "from random import gauss", "import numpy as np\nnp.random.default_rng()", "import numpy.random",
        "from numpy.random import normal", "from numpy import random", "import torch\ntorch.randn(3)", "x.normal_()",
        "import torch\ng = torch.Generator()", "from torch import manual_seed",
    ],
)  # fmt: skip
def test_the_scan_finds_them(source: str) -> None:
    assert forbidden_randomness(source)


# ── the tests' own helper ────────────────────────────────────────────────────────────────────────


def test_the_helper_accepts_what_is_exactly_expected_and_counts_empty_cells() -> None:
    expected = [100.0] * 10
    assert chi_square(expected, expected) == 1.0
    assert chi_square([200.0, 0.0] * 5, expected) < 1e-100  # an empty cell is a miss of 100, not of nothing
    assert chi_square([1000.0] + [0.0] * 9, expected) < 1e-100


def test_the_helper_refuses_to_judge_on_nothing() -> None:
    for counts, expected in (
        ([5.0, 5.0], [5.0, 5.0]),
        ([100.0, 50.0], [100.0, 100.0]),
        ([100.0], [50.0, 50.0]),
    ):
        with pytest.raises(ValueError, match=r"too few|same"):
            chi_square(counts, expected)


def test_the_helpers_p_values_are_uniform_under_the_null() -> None:
    rng = np.random.default_rng(1)  # a reference for the helper, not for the noise
    pmf = discrete_gaussian_pmf(3.0, 36)
    ps = [discrete_gaussian_p(rng.choice(73, 2000, p=pmf) - 36, 3.0) for _ in range(300)]
    assert 0.4 < float(np.mean(ps)) < 0.6
    assert sum(p < 0.05 for p in ps) < 45 and sum(p < 0.5 for p in ps) > 90
