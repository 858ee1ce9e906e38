"""Every check of the red team: the real thing holds, and the weakened variant falls to the same attack."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redteam import live
from redteam.checks import Check
from redteam.table import CHECKS


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    live.close()


@pytest.mark.timeout(900)  # 10,000 messages on a busy machine
@pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=check.number, marks=[pytest.mark.deployment] if check.deployment else [])
        for check in CHECKS
    ],
)
def test_the_attack_fails_and_its_control_succeeds(check: Check) -> None:
    outcome = check.run()
    assert outcome.control_fell, (
        f"the attack breaks nothing even where the defence is removed: {outcome.control}"
    )
    assert outcome.held, outcome.evidence
