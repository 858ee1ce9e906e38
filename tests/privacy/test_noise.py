"""The noise, tested with power: what passes must be rejected at 0.7 and 1.3 times its scale."""

from __future__ import annotations

import ast
import inspect
import runpy
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from support.gaussians import cks
from support.goodness import chi_square, discrete_gaussian_p, discrete_gaussian_pmf, same_p, uniform_bytes_p

import foedus
from foedus.errors import InputError
from foedus.privacy.noise import Keystream, discrete_gaussian
from foedus.privacy.secagg.codec import Fixed, Grid
from foedus.privacy.secagg.masks import CHUNK, chunks

Integers = npt.NDArray[np.int64]
REJECT = 1e-9
N = 100_000
SIGMAS = [1, 2, 4, 17, 64, 1000, 1024, 1025, 5000, 2**20, 2**30 + 7, 2**40 - 1]


@cache
def drawn(sigma: int) -> Integers:
    """100,000 samples; read-only, since every test has the same."""
    samples = discrete_gaussian(sigma, N, Keystream())
    samples.setflags(write=False)
    return samples


# ── the sampler ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_samples_are_discrete_gaussian_of_this_sigma_and_no_other(sigma: int) -> None:
    """A false alarm comes once in 10^9 runs; 0.7 and 1.3 sigma would pass with p < 10^-20, 0.9 and 1.1 with 10^-9."""
    samples = drawn(sigma)
    assert samples.dtype == np.int64 and samples.shape == (N,)
    assert discrete_gaussian_p(samples, sigma) > REJECT
    for factor, at_most in ((0.7, 1e-20), (1.3, 1e-20), (0.9, REJECT), (1.1, REJECT)):
        assert discrete_gaussian_p(samples, factor * sigma) < at_most


@pytest.mark.parametrize("sigma", [4, 1000, 2**20])
def test_the_test_would_see_bad_noise(sigma: int) -> None:
    samples = drawn(sigma)
    half = samples[: N // 2]
    bad = {
        "shifted by σ/4": samples + sigma // 4,
        "constant": np.zeros_like(samples),
        "one-sided": np.abs(samples),
        "cut off at 1.5σ": np.clip(samples, -3 * sigma // 2, 3 * sigma // 2),
        "a stream of 500 samples again and again": np.resize(samples[:500], N),
        "every second sample zero": np.where(np.arange(N) % 2, samples, 0),
        "of twice the variance": np.rint(half * np.sqrt(2)).astype(np.int64),
    }
    missed = [name for name, wrong in bad.items() if discrete_gaussian_p(wrong, sigma) >= REJECT]
    assert missed == []


@pytest.mark.parametrize("sigma", SIGMAS)
def test_mean_variance_and_symmetry(sigma: int) -> None:
    samples = drawn(sigma) / sigma
    variance = 1.0 if sigma > 1 else float(discrete_gaussian_pmf(1, 12) @ np.arange(-12, 13) ** 2)
    assert abs(samples.mean()) < 6 / np.sqrt(N)
    assert abs(samples.var() - variance) < 6 * np.sqrt(2 / N)  # sees a sigma that is off by 1.4 %
    assert same_p(drawn(sigma)[: N // 2], -drawn(sigma)[N // 2 :]) > REJECT
    positive, negative = int((samples > 0).sum()), int((samples < 0).sum())
    assert abs(positive - negative) < 6 * np.sqrt(N)


@pytest.mark.parametrize("sigma", [1, 17, 1025, 2**20])
def test_samples_are_independent(sigma: int) -> None:
    samples = drawn(sigma)
    for lag in (1, 2, 7, 1 << 15):
        correlation = float(np.corrcoef(samples[:-lag], samples[lag:])[0, 1])
        assert abs(correlation) < 6 / np.sqrt(N - lag)


@pytest.mark.parametrize("sigma", [s for s in SIGMAS if s >= 1000])
def test_the_lowest_bits_are_uniform(sigma: int) -> None:
    """Below sigma/16 the grid does not show: residues are uniform to exp(−2π²·16²)."""
    for modulus in (2, 7, 64 if sigma > 1024 else 60):
        counts = np.bincount(drawn(sigma) % modulus, minlength=modulus)
        assert chi_square(counts.tolist(), [N / modulus] * modulus) > REJECT


@pytest.mark.parametrize("sigma", [1, 4, 1024, 1025, 2**20])
def test_the_algorithm_of_canonne_kamath_and_steinke_draws_the_same(sigma: int) -> None:
    other = cks(sigma, 8000, Keystream())
    assert same_p(drawn(sigma), other) > REJECT
    assert same_p(drawn(sigma), np.rint(1.3 * other).astype(np.int64)) < REJECT


def test_a_sigma_may_be_a_fraction() -> None:
    for sigma in (Fraction(5, 2), Fraction(10**7, 3)):
        samples = discrete_gaussian(sigma, N, Keystream())
        assert discrete_gaussian_p(samples, float(sigma)) > REJECT
        assert discrete_gaussian_p(samples, 1.1 * float(sigma)) < REJECT


@pytest.mark.parametrize("sigma", [0, -4, 2**40, 4.0, float("nan"), True, "4", None, Fraction(1, 2)])
def test_a_sigma_out_of_range_is_refused(sigma: int) -> None:
    with pytest.raises(InputError, match="sigma must be a whole number or a Fraction from 1"):
        discrete_gaussian(sigma, 1, Keystream())


def test_no_samples_of_nothing() -> None:
    for sigma in (4, 5000):
        assert discrete_gaussian(sigma, 0, Keystream()).shape == (0,)
    with pytest.raises(InputError, match="-1 samples"):
        discrete_gaussian(4, -1, Keystream())


def test_it_takes_no_seed_and_never_repeats() -> None:
    assert list(inspect.signature(discrete_gaussian).parameters) == ["sigma", "size", "stream"]
    assert list(inspect.signature(Keystream).parameters) == []
    seen = {discrete_gaussian(2**30, 4, Keystream()).tobytes() for _ in range(50)}
    stream = Keystream()
    seen |= {discrete_gaussian(2**30, 4, stream).tobytes() for _ in range(50)}
    assert len(seen) == 100


def test_a_vector_to_be_summed_takes_its_noise_chunk_by_chunk() -> None:
    d, sigma, counts = 2 * CHUNK + 1000, 1000, []
    stream = Keystream()

    def noise(count: int) -> Integers:
        counts.append(count)
        return discrete_gaussian(sigma, count, stream)

    grid = Grid.choose(silos=3, clip=1.0, sigma=0.5, dimension=d)
    source = Fixed(np.zeros(d), grid, noise=noise)
    total = np.concatenate([source.chunk(start, stop).astype(np.int64) for start, stop in chunks(d)])
    assert counts == [CHUNK, CHUNK, 1000]
    assert discrete_gaussian_p(total, sigma) > REJECT


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


def test_the_helper_compares_two_samples() -> None:
    rng = np.random.default_rng(2)
    one, other, wide = (np.rint(rng.normal(0, s, 4000)).astype(np.int64) for s in (5, 5, 6.5))
    assert same_p(one, other) > 1e-6
    assert same_p(one, wide) < REJECT and same_p(one, other + 2) < REJECT
    with pytest.raises(ValueError, match="too few"):
        same_p(one[:9], other[:9])


# ── the benchmark ────────────────────────────────────────────────────────────────────────────────


def test_the_benchmark_compares_and_notices_a_wrong_sampler() -> None:
    bench = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "noise.py"))
    line, _ = bench["row"](4, 1)
    assert line.startswith("| 2^2 | ") and "≥ 8" in line
    wrong = bench["jobs"](lambda sigma, size, stream: discrete_gaussian(2 * sigma, size, stream), 4, 5000)
    with pytest.raises(AssertionError, match="where 4 is due"):
        next(wrong)(bench["Watch"]())
