"""The bars on Adult, 30,162 × 8, with ARX's hierarchies. Needs ../shared/data (or FOEDUS_DATA)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from support.masking import ADULT, adult, adult_policy

from foedus.compliance.masking.release import mask
from foedus.compliance.masking.tables import read

pytestmark = pytest.mark.skipif(adult() is None, reason="../shared/data/adult_arx is not here")


@pytest.fixture(scope="module")
def directory() -> Path:
    found = adult()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def frame(directory: Path) -> pd.DataFrame:
    return read(directory / "adult.csv")


@pytest.mark.parametrize(("k", "bar"), [(5, 0.054), (10, 0.079), (50, 0.151)])
def test_local_recoding_loses_less_than_arx(frame: pd.DataFrame, directory: Path, k: int, bar: float) -> None:
    released, report = mask(frame, adult_policy(directory, k=k))
    assert report.utility.gcp <= bar and report.utility.suppressed <= 0.0004
    assert released.astype(str).groupby(list(ADULT)).size().min() >= k


# Found by going through all 6,480 nodes: `make bench-masking` does it again.
@pytest.mark.parametrize(("k", "limit", "loss"), [(5, 0.02, 0.3439), (10, 0.0, 0.6608), (50, 0.1, 0.4019)])
def test_global_recoding_is_at_the_optimum(
    frame: pd.DataFrame, directory: Path, k: int, limit: float, loss: float
) -> None:
    _, report = mask(frame, adult_policy(directory, k=k, method="global", suppression_limit=limit))
    assert report.utility.gcp == pytest.approx(loss, abs=5e-5)
    assert report.utility.suppressed <= limit


def test_l_and_t_hold_on_a_subset(directory: Path) -> None:
    frame = read(directory / "adult_subset.csv")
    for method, limit in (("local", 0.5), ("global", 0.1), ("mondrian", 0.0)):
        told = adult_policy(
            directory, k=10, method=method, suppression_limit=limit, sensitive={"l": 2, "t": 0.2}
        )
        _, report = mask(frame, told)
        found = report.disclosure["salary-class"]
        assert report.k >= 10 and found.distinct_l == 2 and found.t <= 0.2
