"""Global recoding finds the optimum; all three methods keep their promises on any table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.masking import best_by_hand, chains, random_table

from foedus.compliance.masking.hierarchies import TOP
from foedus.compliance.masking.policy import Policy
from foedus.compliance.masking.release import mask
from foedus.errors import InputError, Refused

METHODS = ("local", "global", "mondrian")


def changed(policy: Policy, **more: Any) -> Policy:
    return Policy.of({name: getattr(policy, name) for name in policy.model_fields_set} | more)


def sensitive(policy: Policy, **more: Any) -> Policy:
    return changed(policy, columns=dict(policy.columns) | {"s": {"role": "sensitive"} | more})


@pytest.mark.parametrize("block", range(5))
def test_the_global_optimum_is_that_of_brute_force(block: int) -> None:
    found = 0
    for seed in range(block * 50, block * 50 + 50):
        frame, policy = random_table(seed)
        limit = (0.0, 0.1, 0.3, 1.0)[seed % 4]
        policy = changed(policy, method="global", suppression_limit=limit)
        least = 1 + seed % 2
        if least > 1:
            policy = sensitive(policy, l=least)
        best, admissible = best_by_hand(frame, policy, limit, least_values=least)
        try:
            _, report = mask(frame, policy)
        except (Refused, InputError):
            # All rows gone is admissible with a limit of 1, but is no release.
            assert not admissible or best == 1 or policy.k > len(frame), seed
            continue
        found += 1
        assert report.utility.gcp == pytest.approx(best, abs=1e-12), seed
    assert found >= 30


def covers(policy: Policy, name: str, label: str, value: str) -> bool:
    """Whether a label may stand for a value, read by hand."""
    if label == TOP or label in chains(policy, name)[value] or value in label.split("|"):
        return True
    low, dots, high = label.partition("..")
    return bool(dots) and low[:-1] == high[:-1] == value[:-1]  # the order of siblings is the tree's


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(METHODS), st.sampled_from(("drop", "star")), st.integers(1, 2))
def test_a_release_keeps_its_promises(seed: int, method: str, suppressed: str, least: int) -> None:
    frame, policy = random_table(seed)
    frame["row"] = np.arange(len(frame))
    frame.index = pd.Index(np.random.default_rng(seed).integers(0, 3, len(frame)))  # not to be trusted
    columns = dict(policy.columns) | {
        "row": {"role": "insensitive"},
        "s": {"role": "sensitive"} | ({"l": 2, "t": 0.6} if least > 1 else {}),
    }
    policy = changed(policy, method=method, suppressed=suppressed, suppression_limit=1.0, columns=columns)
    try:
        released, report = mask(frame, policy)
    except (Refused, InputError):
        return
    names = [n for n in policy.columns if n.startswith("q")]
    sizes = released.astype({n: str for n in names}).groupby(names).agg(n=("row", "size"), l=("s", "nunique"))
    assert sizes["n"].min() == report.k >= policy.k
    assert sizes["l"].min() == report.disclosure["s"].distinct_l >= least
    # No row is lost silently, changed or given to somebody else.
    assert report.rows_in == len(frame) and report.rows_out == len(released) == released["row"].nunique()
    before = frame.iloc[released["row"]].reset_index(drop=True)
    assert released["s"].tolist() == before["s"].tolist()
    for name in names:
        for label, value in zip(released[name], before[name], strict=True):
            assert covers(policy, name, str(label), value), (name, label, value)


@pytest.mark.parametrize("limit", [0.0, 0.05])
def test_the_global_loss_grows_with_k(limit: float) -> None:
    for seed in range(40):
        frame, policy = random_table(seed, 60)
        losses = []
        for k in (2, 3, 5, 8):
            try:
                _, report = mask(frame, changed(policy, method="global", k=k, suppression_limit=limit))
            except (Refused, InputError):
                losses.append(math.inf)
                continue
            losses.append(report.utility.gcp)
        assert losses == sorted(losses), seed


@pytest.mark.parametrize("method", METHODS)
def test_a_larger_k_gives_classes_as_large(method: str) -> None:
    frame, policy = random_table(7, 200)
    frame = pd.concat([frame] * 5)
    found = [mask(frame, changed(policy, method=method, k=k))[1].k for k in (2, 10, 40, len(frame))]
    assert found == sorted(found) and found[-1] == len(frame)


def test_local_recoding_loses_less_than_global() -> None:
    for seed in range(30):
        frame, policy = random_table(seed, 80)
        policy = changed(policy, suppression_limit=1.0)
        try:
            best = mask(frame, changed(policy, method="global", suppression_limit=0.0))[1].utility.gcp
            local = mask(frame, policy)[1].utility.gcp
        except (Refused, InputError):
            continue
        assert local <= best + 0.1, seed  # greedy: it may lose a little on a handful of rows


def test_mondrian_labels_are_intervals_or_sets_of_what_is_there() -> None:
    frame = pd.DataFrame({"age": [20, 21, 30, 31, 70, 71, 90, 91], "s": list("abababab")})
    columns = {"age": {"role": "quasi-identifier", "loss": "extent"}, "s": {"role": "sensitive"}}
    content = {"k": 2, "method": "mondrian", "columns": columns}
    released, report = mask(frame, Policy.of(content))
    assert released["age"].tolist() == ["20..21"] * 2 + ["30..31"] * 2 + ["70..71"] * 2 + ["90..91"] * 2
    assert report.utility.gcp == pytest.approx(1 / 71)
    released, report = mask(frame, Policy.of(content | {"labels": "set"}))
    assert released["age"].tolist() == ["20|21"] * 2 + ["30|31"] * 2 + ["70|71"] * 2 + ["90|91"] * 2


def test_mondrian_cuts_only_where_both_halves_hold_all_models() -> None:
    frame = pd.DataFrame({"age": range(8), "s": list("aaaabbbb")})
    columns = {"age": {"role": "quasi-identifier"}, "s": {"role": "sensitive", "l": 2}}
    released, _ = mask(frame, Policy.of({"k": 2, "method": "mondrian", "columns": columns}))
    assert set(released["age"]) == {"0..7"}


def test_a_value_that_would_make_a_label_ambiguous_is_refused() -> None:
    frame = pd.DataFrame({"q": ["a..b", "a", "b", "c"]})
    policy = Policy.of({"k": 2, "method": "mondrian", "columns": {"q": {"role": "quasi-identifier"}}})
    with pytest.raises(InputError, match=r"'a\.\.b' contains '\.\.'"):
        mask(frame, policy)
