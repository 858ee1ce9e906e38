"""Attacks by the log's owner: with one honest witness none goes unnoticed. All 10,000: `make bench-auditlog`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from support import log_attacks

from foedus.compliance.auditlog.witness import HeadKeeper


def test_every_attack_is_noticed_and_no_honest_log() -> None:
    table = log_attacks.many(240, seed=20261122)
    assert table.fine, list(table.rows())
    for kind in log_attacks.KINDS:
        assert table.cases[kind] == 30
        # A tree rebuilt over what was changed is flawless: only the witness can tell. Anything less shows in the file.
        assert table.by_file[kind] >= table.cases[kind] - table.rebuilt[kind]
        assert table.by_witness[kind] >= table.rebuilt[kind] > 0
    assert table.cases[log_attacks.HONEST] == 24


def test_without_a_witness_rebuilt_logs_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def gullible(*_: Any) -> None:
        pass

    monkeypatch.setattr(HeadKeeper, "_continues", gullible)
    table = log_attacks.many(160, seed=1)
    assert not table.fine
    for kind in set(log_attacks.KINDS) - {"edit"}:  # an edited bit may leave no entry, which the file shows
        assert table.detected[kind] == table.cases[kind] - table.rebuilt[kind]


def test_a_case_that_changes_nothing_is_no_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(log_attacks.KINDS, "edit", lambda bodies, seen, rng: bodies)
    with pytest.raises(AssertionError, match="nothing"):
        log_attacks.run(log_attacks.Base.make(tmp_path, 4), "edit", "rows", tmp_path, random.Random(1))
