"""The server lost count of what a node has seen of the log: no fork, and no node lost over it."""

from pathlib import Path

import pytest
from support.orders import make_draft, small_world

from foedus.demo.simulate import prepare
from foedus.federation.verification import verify
from foedus.server.coordinator import conduct


def test_a_node_whose_acknowledgement_was_lost_is_asked_again(tmp_path: Path) -> None:
    """As after a crash between the node's saving a head and its reply: the server believes an older size."""
    steps: list[tuple[str, object]] = []
    built = small_world(tmp_path / "world")
    grid, case = prepare(built, make_draft(), note=lambda kind, data: steps.append((kind, dict(data))))
    forget = {"left": 1}
    keep = case.seen

    def seen(silo: str, size: int) -> None:
        if silo == "birch-records" and forget["left"] > 0 and case.heads.get(silo):
            forget["left"] -= 1  # this acknowledgement never reaches the server
            return
        keep(silo, size)

    case.seen = seen  # type: ignore[method-assign]
    report = verify(conduct(grid, case))
    assert forget["left"] == 0
    assert not [s for s in steps if s[0] == "silo-out"]
    assert all(len(s) == 4 for s in report.survivors.values())
    assert not list(built.homes["birch-records"].glob("log-head.refused-*")), "no false evidence of a fork"


def test_a_server_that_insists_on_a_wrong_size_loses_the_node(tmp_path: Path) -> None:
    steps: list[dict[str, object]] = []
    built = small_world(tmp_path / "world")
    grid, case = prepare(
        built, make_draft(), note=lambda kind, data: steps.append(dict(data)) if kind == "silo-out" else None
    )
    case.seen = lambda silo, size: None if silo == "birch-records" else case.heads.update({silo: size})  # type: ignore[method-assign]
    conduct(grid, case)
    assert [(s["silo"], s["code"]) for s in steps] == [("birch-records", "LOG_SIZE_UNKNOWN")]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foedus.server.coordinator._ROLL_CALL_SECONDS", 1.0)
