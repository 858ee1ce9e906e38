"""The watch on duty at the server: over its own log, and in the way of who is blocked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from foedus import cli
from foedus.compliance import treaty as treaties
from foedus.documents import Envelope
from foedus.errors import FoedusError, InputError, Refused
from foedus.server.app import Settings
from foedus.server.desk import Desk

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


def test_an_amended_treaty_makes_earlier_studies_void(serve: Callable[..., World], tmp_path: Path) -> None:
    home = tmp_path / "server"
    world = serve(home)
    study, file = world.submitted(), tmp_path / "treaty-2.json"
    content = world.treaty.model_dump(mode="json") | {"version": 2, "amends": world.document.digest}
    file.write_bytes(treaties.sign_all(treaties.draft(content), list(world.keys.parties.items())).dumps())
    with pytest.raises(SystemExit) as end:
        cli.main(["server", "amend", str(home), str(file)])
    assert not end.value.code and world.actions()[-1] == "treaty.amended"
    desk = Desk.open(Settings(home=home, superlink=world.superlink))
    try:
        assert desk.document.digest == Envelope.load(file).digest
        assert desk.registry.standing(desk.registry.find(study.digest)).status == "void"
        with pytest.raises(FoedusError, match="treaty"):
            desk.registry.require_runnable(study.digest)
    finally:
        desk.close()


def test_no_amendment_while_a_run_is_active(
    serve: Callable[..., World], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "server"
    world = serve(home)
    world.started()
    (file := tmp_path / "treaty-2.json").write_bytes(world.document.dumps())
    with pytest.raises(SystemExit) as end:
        cli.main(["server", "amend", str(home), str(file)])
    assert end.value.code == 3 and "still active" in capsys.readouterr().err
    assert (home / "treaty.json").read_bytes() == world.document.dumps()


def test_bad_settings_of_the_watch_stop_the_server(serve: Callable[..., World], tmp_path: Path) -> None:
    home = tmp_path / "server"
    home.mkdir()
    (home / "watch.yaml").write_text("blocks: [everything]\n")
    with pytest.raises(InputError, match=r"watch\.yaml"):
        serve(home)
