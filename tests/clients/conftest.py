"""One world for all tests of the node; each test plays in a copy of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.nodes import Rehearsal
from support.orders import copy_of, make_draft, small_world
from support.sums import scratch

from foedus.demo.world import World


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ibis 10 asks pandas 3 for an option on its way out: not ours to change."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"))


@pytest.fixture(scope="session")
def guarded_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("guarded") / "world", make_draft(epsilon=20.0))


@pytest.fixture
def play(guarded_world: World) -> Iterator[Rehearsal]:
    """A study of ε = 4 under a treaty that allows 40; nobody has been asked anything."""
    folder = scratch()
    yield Rehearsal(copy_of(guarded_world, folder / "world"), make_draft())
    shutil.rmtree(folder)
