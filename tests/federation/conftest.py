"""One world and one good run in it, for all tests of this folder; whoever changes it takes a copy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.orders import copy_of, make_count, make_draft, small_world
from support.sums import scratch

from foedus.demo.simulate import Simulated, simulate
from foedus.demo.world import World


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ibis 10 asks pandas 3 for an option on its way out: not ours to change."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"))


@dataclass
class GoodRun:
    world: World
    run: Simulated
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@pytest.fixture(scope="session")
def fresh_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Nobody has run anything in it. Its treaty permits ε = 40."""
    return small_world(tmp_path_factory.mktemp("fresh") / "world", make_draft(epsilon=20.0))


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> GoodRun:
    """A study of two training rounds over four silos, with its noise and its evidence."""
    draft = make_draft()
    world = small_world(tmp_path_factory.mktemp("good") / "world", draft)
    events: list[tuple[str, dict[str, Any]]] = []
    run = simulate(world, draft, note=lambda kind, data: events.append((kind, dict(data))))
    return GoodRun(world, run, events)


@pytest.fixture(scope="session")
def good_count(tmp_path_factory: pytest.TempPathFactory) -> GoodRun:
    """A study that counts, with its noise and its evidence."""
    world = small_world(tmp_path_factory.mktemp("count") / "world", make_count())
    return GoodRun(world, simulate(world, make_count()))


@pytest.fixture
def world(fresh_world: World) -> Iterator[World]:
    """A copy of the fresh world."""
    folder = scratch()
    yield copy_of(fresh_world, folder / "world")
    shutil.rmtree(folder)
