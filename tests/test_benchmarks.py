"""The benchmarks' two sides run, give right sums, and a wrong one is noticed; what they measure is not tested here."""

from __future__ import annotations

from pathlib import Path

import dpsgd_steps
import masking
import masking_rivals
import measure
import numpy as np
import ours_secagg
import pandas as pd
import pytest
import rival_flwr
from measure import Watch, compare

N, D = 5, 2000
VECTOR = (np.random.default_rng(1).normal(size=D) * 0.1).astype(np.float32)
T = ours_secagg.threshold(N)


def test_both_sides_mask_and_sum() -> None:
    rival_flwr.verify(N, T)
    found = compare(
        lambda: ours_secagg.client_mask(N, VECTOR, 2), lambda: rival_flwr.client_mask(N, VECTOR, T), 1
    )
    assert found.rival.size > 8 * D and D < found.ours.size < found.rival.size
    found = compare(
        lambda: ours_secagg.server_sum(N, VECTOR, 1, 2), lambda: rival_flwr.server_sum(N, VECTOR, 1, T), 1
    )
    assert all(seconds > 0 for side in (found.ours, found.rival) for seconds in side.cpu)


def test_both_sides_set_up() -> None:
    found = compare(lambda: ours_secagg.set_up(N), lambda: rival_flwr.set_up(N, T), 1)
    assert found.ratio == pytest.approx(found.ours.cpu[0] / found.rival.cpu[0])


def test_masks_and_their_cost() -> None:
    watch = Watch()
    next(ours_secagg.keystream(D, 3, 16))(watch)
    assert watch.size == 3 * D * 2
    assert ours_secagg.extra_noise(N, 200) >= 0


@pytest.mark.filterwarnings("ignore")  # Opacus'
@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_private_steps_are_those_of_opacus(kind: str) -> None:
    assert dpsgd_steps.verify(kind, 32) < 1e-4
    x, y = dpsgd_steps.rows(kind, 32)
    for name in ("plain", "ours", "ours, loop unchanged", *dpsgd_steps.OPACUS):
        dpsgd_steps.way(name, kind, 32)(x, y)


def test_a_wrong_sum_of_the_rival_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = rival_flwr.server_sum(N, VECTOR, 1, T)
    next(jobs)(Watch())
    monkeypatch.setattr(rival_flwr.Federation, "model", VECTOR + 1)
    with pytest.raises(AssertionError, match="wrong"):
        next(jobs)(Watch())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel's peak is read from /proc")
def test_memory_is_what_the_work_adds() -> None:
    watch = measure.MemoryWatch()
    before = np.ones(4_000_000)  # 32 MB that do not count
    with watch:
        during = before * 2
    assert before.nbytes // 2 < watch.growth < before.nbytes * 2 and during[0] == 2


def test_the_loss_of_sets_is_that_of_the_report() -> None:
    frame = pd.DataFrame({"age": ["20", "30", "40", "40"], "city": ["a", "b", "c", "c"]})
    parts = [np.array([0, 1]), np.array([2])]  # the last row is lost
    assert masking_rivals.set_loss(frame, ["age", "city"], parts) == pytest.approx((2 * (0.5 + 0.5) + 2) / 8)


def test_the_masking_benchmark_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no Adult data here; say where with --data or FOEDUS_DATA"):
        masking.Adult(tmp_path)
