"""Grouping is exact on every path: direct tables, buckets, keys that would overflow."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus.compliance.masking import classes
from foedus.compliance.masking.classes import Tuples, counted, dense, grouped, in_large, super_columns
from foedus.compliance.masking.domains import Domain
from foedus.compliance.masking.hierarchies import Hierarchy
from foedus.compliance.masking.lattice import Constraint, Lattice
from foedus.compliance.masking.models import DistinctDiversity, KAnonymity, all_hold
from foedus.compliance.masking.policy import Policy
from foedus.compliance.masking.release import mask
from foedus.errors import InputError


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=200), st.integers(1, 9)
)
def test_heavy_keys_are_found_directly_and_by_buckets(rows: list[tuple[int, int]], least: int) -> None:
    keys = np.array([key for key, _ in rows])
    weight = np.array([w for _, w in rows], float)
    total = Counter[int]()
    for key, w in rows:
        total[key] += w
    expected = [total[key] >= least for key in keys]
    assert in_large(keys, 41, weight, least).tolist() == expected
    spread = keys * 7_919_000_003  # far apart: the space is much larger than the table
    assert in_large(spread, 41 * 7_919_000_003, weight, least).tolist() == expected
    for found, space in ((keys, 41), (spread, 41 * 7_919_000_003)):
        ids, count = dense(found, space)
        assert count == len(total) and len(set(zip(ids, keys, strict=True))) == count


@pytest.mark.parametrize("columns", [1, 3, 12, 40])
def test_tuples_are_told_apart_beyond_64_bits(columns: int) -> None:
    rng = np.random.default_rng(columns)
    codes = [rng.integers(0, 2, 300) * 99 for _ in range(columns)]
    ids, count = grouped([(c, 100) for c in codes], 300)
    tuples = list(zip(*codes, strict=True))
    assert count == len(set(tuples)) == len(set(zip(ids, tuples, strict=True)))


def test_nodes_are_keyed_beyond_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foedus.compliance.masking.lattice._EXACT", 50)
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({f"q{i}": rng.integers(0, 4, 100) for i in range(5)})
    columns = {name: {"role": "quasi-identifier", "hierarchy": {"sizes": [2]}} for name in frame}
    _, report = mask(frame, Policy.of({"k": 3, "suppression_limit": 0.2, "columns": columns}))
    assert report.k >= 3


def test_classes_are_counted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    from foedus.compliance.masking.tables import Coded

    column = Coded(rng.integers(0, 3, 500), ("a", "b", "c"))
    tuples = Tuples.of([(rng.integers(0, 60, 500), 60)], {"s": column}, 500)
    group, size = np.arange(len(tuples)), tuples.weight.astype(float)
    models = [KAnonymity(5), DistinctDiversity("s", 3)]
    whole = counted(group, size, tuples.sensitive, {})
    monkeypatch.setattr(classes, "_BLOCK", 30)
    blocks = counted(group, size, tuples.sensitive, {})
    assert len(whole) == 1 and len(blocks) > 3
    assert all_hold(models, whole).tolist() == all_hold(models, blocks).tolist()
    assert np.concatenate([b.values["s"] for b in blocks]).sum() == 500


def test_bundles_stay_small() -> None:
    assert super_columns([2, 5, 7, 16, 9], 1000) == [[0, 1, 2], [3, 4]]
    assert super_columns([5000, 2], 1000) == [[0], [1]]


def test_a_lattice_that_is_too_large_is_refused() -> None:
    tree = Hierarchy.of([["a", "b", "c", "d", "e", "*"]])
    domains = [Domain(f"q{i}", ("a",), tree) for i in range(8)]
    tuples = Tuples.of([(np.zeros(3, np.int64), 1)] * 8, {}, 3)
    with pytest.raises(InputError, match="1,679,616 combinations of levels"):
        Lattice(domains, tuples)
    assert Constraint.of([KAnonymity(2), KAnonymity(3)], tuples).k == 3
