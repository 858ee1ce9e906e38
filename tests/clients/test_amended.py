"""An amendment at a node: what runs under the former treaty stops, and what was spent stays spent."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.nodes import Rehearsal, assert_refused

from foedus import cli
from foedus.compliance import treaty as treaties
from foedus.documents import Envelope

NODE = "aster-music"


def amendment(play: Rehearsal, path: Path) -> Path:
    """Signed by all, at the terminal, one after the other."""
    world = play.world
    content = world.treaty.model_dump(mode="json") | {
        "version": world.treaty.version + 1,
        "amends": world.treaty_envelope.digest,
    }
    draft = treaties.draft(content | {"min_cohort": 1}).envelope()
    path.write_bytes(draft.dumps())
    for name, home in world.homes.items():
        foedus("treaty", "sign", path, "--party", name, "--key", home / "identity.key", "--out", path)
    return path


def foedus(*arguments: object) -> int:
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as end:
        return int(str(end.code or 0))
    return 0


def test_a_running_study_is_refused_and_what_was_spent_stays_spent(
    play: Rehearsal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play.set_up()
    play.play_round(1, play.weights)
    spent = play.spent(NODE)
    file = amendment(play, tmp_path / "treaty-2.json")
    assert foedus("treaty", "diff", play.home(NODE) / "treaty.json", file) == 0
    assert "min_cohort" in capsys.readouterr().out
    assert foedus("node", "amend", play.home(NODE), file) == 0
    said = play.ask(NODE, play.vector_request(NODE, 2), play.weights)
    refusal = assert_refused(play, NODE, said, "OTHER_TREATY", before=spent)
    assert "amended" in refusal.message
    app = play.restart(NODE)
    assert app.guard.treaty_digest == Envelope.load(file).digest and spent > 0
    purpose = play.case.study.purpose
    assert app.guard.budget.cap(purpose).epsilon == play.world.treaty.terms(purpose).epsilon
    assert play.spent(NODE) == spent  # the ledger is the same one
    app.guard.budget.verify()
    assert_refused(play, NODE, play.ask(NODE, play.keys_request(NODE)), "OTHER_TREATY", before=spent)


def test_a_node_takes_no_amendment_that_somebody_has_not_signed(play: Rehearsal, tmp_path: Path) -> None:
    before = (play.home(NODE) / "treaty.json").read_bytes()
    file = amendment(play, tmp_path / "treaty-2.json")
    told = Envelope.load(file)
    one = next(name for name in told.signatures if name != NODE)
    left = {n: s for n, s in told.signatures.items() if n != one}
    file.write_bytes(Envelope(told.kind, told.payload, left).dumps())
    assert foedus("node", "amend", play.home(NODE), file) == 4
    assert (play.home(NODE) / "treaty.json").read_bytes() == before
