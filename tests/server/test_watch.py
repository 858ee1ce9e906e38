"""The watch on duty at the server: over its own log, and in the way of who is blocked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from foedus.errors import InputError, Refused

from .conftest import World


def test_a_blocked_author_neither_submits_nor_starts(serve: Callable[..., World], tmp_path: Path) -> None:
    home = tmp_path / "server"
    home.mkdir()
    (home / "watch.yaml").write_text("blocks: [refusals]\n")
    world = serve(home)
    study = world.approved()
    author = world.desk.registry.find(study.digest).author
    world.desk.log.append_many([(author, "study.refused", "", {"code": "INPUT", "author": author})] * 5)
    world.desk.patrol.turn()
    assert world.actions()[-1] == "anomaly.alert"
    with world.client("scientist") as scientist:
        with pytest.raises(Refused, match="blocked since alert") as refusal:
            scientist.start(study.digest)
        assert refusal.value.code == "ACTOR_BLOCKED"
        with pytest.raises(Refused, match="blocked since alert"):
            scientist.submit(world.study(title="Another"))
    assert world.superlink.configs == []
    assert world.audit()[-1][1:] == ("study.refused", world.audit()[-1][2], {"code": "ACTOR_BLOCKED"})


def test_bad_settings_of_the_watch_stop_the_server(serve: Callable[..., World], tmp_path: Path) -> None:
    home = tmp_path / "server"
    home.mkdir()
    (home / "watch.yaml").write_text("blocks: [everything]\n")
    with pytest.raises(InputError, match=r"watch\.yaml"):
        serve(home)
