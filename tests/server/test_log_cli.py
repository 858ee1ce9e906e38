"""What an officer reads of a server they do not trust: the log, and the whole of a study."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from foedus import cli
from foedus.compliance.auditlog.log import Entry
from foedus.documents import digest
from foedus.federation.log_table import table
from foedus.server.client import ApiClient

from .conftest import World


class Officer:
    """Runs commands as the officer, with their own copy of the treaty."""

    def __init__(self, world: World, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.world, self._capsys = world, capsys
        self.treaty, self._token = folder / "treaty.json", folder / "officer.token"
        self.treaty.write_bytes(world.document.dumps())
        self._token.write_text(world.tokens["officer"])

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        where = ["--server", self.world.url, "--token-file", str(self._token)]
        self._capsys.readouterr()
        code: object = 0
        try:
            cli.main([*map(str, arguments), *where])
        except SystemExit as end:
            code = end.code
        out, err = self._capsys.readouterr()
        return int(str(code or 0)), out, err

    def log(self, *arguments: object) -> tuple[int, str, str]:
        return self("log", "show", "--treaty", self.treaty, *arguments)


@pytest.fixture
def officer(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Officer:
    return Officer(world, tmp_path, capsys)


def test_the_log_is_shown_and_fits_a_terminal(officer: Officer) -> None:
    study, run = officer.world.started()
    code, out, err = officer.log()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["#", "time", "(UTC)", "actor", "action", "subject"]
    rows = [line.split() for line in lines[1:-2] if not line.startswith(" " * 8)]
    entries = officer.world.audit()
    assert [(r[3], r[4]) for r in rows] == [(actor, action) for actor, action, _, _ in entries]
    assert [int(r[0]) for r in rows] == list(range(len(entries)))
    assert rows[0][5] == study.digest[:12] and f"run {run}" in out
    assert lines[-2] == f"{len(entries)} entries hash to the head signed by coordinator.example/log:"
    assert lines[-1] == officer.world.desk.log.root().hex()


def test_a_part_of_the_log(officer: Officer) -> None:
    first, second = officer.world.submitted(title="one"), officer.world.approved(title="two")
    _, out, _ = officer.log("--study", first.digest[:10])
    assert first.digest[:12] in out and second.digest[:12] not in out
    _, out, _ = officer.log("--study", second.digest, "--since", 3)
    assert first.digest[:12] not in out and "study.submitted" not in out and "study.approved" in out
    code, out, err = officer.log("--study", "0" * 8)
    assert (code, out) == (2, "") and "no entry about study 00000000" in err
    code, out, err = officer.log("--since", 1000)
    assert (code, out) == (2, "") and "no entry 1000" in err


def _changed(entries: list[Entry]) -> list[Entry]:
    body = entries[1].body.replace(b"study.approved", b"study.rejected")
    return [entries[0], Entry(1, body), *entries[2:]]


@pytest.mark.parametrize(
    "lie",
    [
        _changed,
        lambda entries: entries[:-1],
        lambda entries: [entries[1], entries[0], *entries[2:]],
        lambda entries: [*entries, Entry(len(entries), entries[0].body)],
    ],
    ids=["an entry changed", "the last one kept back", "two swapped", "one more"],
)
def test_a_server_that_shows_another_log(
    officer: Officer, lie: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    officer.world.approved()
    honest = ApiClient.log_entries

    def lying(self: ApiClient, start: int = 0, end: int | None = None) -> Iterator[Entry]:
        yield from lie(list(honest(self, start, end)))  # type: ignore[operator]

    monkeypatch.setattr(ApiClient, "log_entries", lying)
    code, out, err = officer.log()
    assert (code, out) == (4, "") and "Traceback" not in err


def test_what_an_entry_has_sealed_is_shown_until_it_is_shredded(
    officer: Officer, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = officer.world.submitted(title="what Mr Wang fears")
    code, out, _ = officer.log()
    assert code == 0 and "sealed {title what Mr Wang fears}" in " ".join(out.split())
    assert b"Wang" not in next(officer.world.desk.log.entries(0, 1)).body

    real = ApiClient._json

    def lying(self: ApiClient, method: str, path: str, body: bytes = b"") -> Any:
        found = real(self, method, path, body) if body else real(self, method, path)
        return found | {"payload": {"title": "harmless"}} if "/payload" in path else found

    with monkeypatch.context() as patch:
        patch.setattr(ApiClient, "_json", lying)
        code, out, err = officer.log()
        assert (code, out) == (4, "") and "commits to" in err

    monkeypatch.setattr("sys.argv", ["foedus"])
    home = officer.world.desk.home
    for told in ("shredded 1 texts", "no text"):
        with pytest.raises(SystemExit) as end:
            cli.main(["server", "shred-study", str(home), study.digest])
        assert not end.value.code and told in officer._capsys.readouterr().out
    code, out, _ = officer.log()
    assert code == 0 and "sealed shredded" in " ".join(out.split()) and "Wang" not in out
    officer.world.desk.log.check()
    assert officer.world.audit()[-1][1:] == ("payloads.shredded", "", {"payloads": 1})


def test_a_head_of_another_key(officer: Officer, tmp_path: Path) -> None:
    from support.treaties import make_treaty

    officer.treaty.write_bytes(make_treaty()[0].dumps())
    code, out, _ = officer.log()
    assert (code, out) == (4, "")


def test_an_entry_cannot_steer_the_terminal() -> None:
    record = {
        "time": "2026-11-22T13:48:57.000000Z",
        "actor": "mallory\x1b[2J",
        "action": "a" * 40,
        "subject": "s\n\r",
        "details": {"title": "\x1b]0;x\x07" + "long " * 40, "sum": "ab" * 32, "who": ["a", "b"], "none": []},
    }
    lines = list(table([(123456, record)]))
    assert all(line.isprintable() and len(line) <= 80 for line in lines)
    assert "sum abababababab," in "\n".join(lines) and "who a b, none none" in " ".join(
        " ".join(lines).split()
    )


# ── the whole of a study ─────────────────────────────────────────────────────────────────────────


def test_the_whole_study_is_what_is_signed(officer: Officer) -> None:
    study = officer.world.submitted(title="Wer bestellt nicht? 谁")
    code, out, _ = officer("study", "show", study.digest[:8], "--full")
    assert code == 0
    assert out.splitlines()[0] == f"# study {study.digest}, signed by 'alice'"
    shown = yaml.safe_load(out)
    assert shown == study.payload and digest("study", shown) == study.digest
    assert next(iter(shown)) == "title" and "谁" in out
    assert "features:" not in officer("study", "show", study.digest[:8])[1]


def test_a_server_that_shows_another_study(officer: Officer, monkeypatch: pytest.MonkeyPatch) -> None:
    study, other = officer.world.submitted(), officer.world.study(title="another")
    monkeypatch.setattr(ApiClient, "study", lambda *_: {"envelope": other.to_json()})
    code, out, err = officer("study", "show", study.digest, "--full")
    assert (code, out) == (4, "") and "the server shows" in err
