"""The command line as a stranger meets it: help for every command; every failure one clear message and its exit code."""

from __future__ import annotations

import shlex
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import typer
import yaml
from support.orders import PURPOSE, make_draft, small_world
from support.treaties import make_treaty

from foedus import cli, errors
from foedus.clients.fleet import node_public_key
from foedus.clients.home import Home, Settings
from foedus.compliance.treaty import Party
from foedus.demo.simulate import simulate
from foedus.documents import SigningKey
from foedus.errors import FoedusError

DRAFT = {
    "title": "churn",
    "author": "alice",
    "purpose": PURPOSE,
    "label": {"train_as_of": "2024-06-01", "test_as_of": "2024-09-01"},
    "privacy": {"epsilon": 4.0},
}


def every_command() -> Iterator[tuple[str, click.Command]]:
    """Every command and group, by its words after ``foedus``."""

    def below(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield words, command
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                yield from below(f"{words} {name}".strip(), child)

    yield from below("", typer.main.get_command(cli.app))


COMMANDS = {words: c for words, c in every_command() if not isinstance(c, click.Group)}


class Ended:
    """What a command left: its exit code and what it said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Foedus = Callable[..., Ended]


@pytest.fixture
def foedus(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Foedus:
    """Calls the command line in this process."""
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("FOEDUS_TOKEN", "FOEDUS_SERVER", "FOEDUS_CA"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        code: object = 0
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return Ended(int(code or 0) if isinstance(code, int | None) else 1, out, err)

    return call


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A scientist's directory: the treaty, alice's key, a draft."""
    document, _, keys = make_treaty()
    (tmp_path / "treaty.json").write_bytes(document.dumps())
    keys.scientists["alice"].save(tmp_path / "alice.key")
    write(tmp_path / "draft.yaml")
    return tmp_path


def write(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(DRAFT | changes), encoding="utf-8")
    return path


def said(ended: Ended, code: int, *parts: str, remedy: bool = False) -> None:
    """One message on stderr, which begins as its kind does and names its subject; nothing on stdout."""
    assert ended.code == code, ended.err
    first, *rest = ended.err.rstrip().splitlines()
    assert first.startswith("refused: " if code == 3 else "error: ")
    assert all(part in ended.err for part in parts), ended.err
    assert "Traceback" not in ended.err and ended.out == ""
    assert [line for line in rest if line.startswith("  → ")][:1] or not remedy, ended.err


def make_node(folder: Path, party: str = "shop-a") -> Home:
    """A node's directory with fresh keys."""
    settings = Settings.checked(party=party, server="127.0.0.1:1", table="orders.parquet")
    return Home.create(folder / "node", settings)


# ── help ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("words", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(words: str, foedus: Foedus) -> None:
    ended = foedus(*words.split(), "--help")
    assert ended.code == 0
    assert "Example: foedus " + words in " ".join(ended.out.split())
    command = COMMANDS[words]
    for option in command.params:
        assert not isinstance(option, click.Option) or option.help, f"{words}: {option.name} says nothing"


@pytest.mark.parametrize("words", sorted(COMMANDS))
def test_every_example_is_a_call_that_parses(words: str) -> None:
    example = next(line for line in (COMMANDS[words].help or "").splitlines() if "Example: " in line)
    called = shlex.split(example.partition("Example: foedus ")[2].partition(" > ")[0])
    assert called[: len(words.split())] == words.split()
    COMMANDS[words].make_context(words, called[len(words.split()) :])


def test_groups_say_what_they_hold(foedus: Foedus) -> None:
    for words, command in every_command():
        if isinstance(command, click.Group):
            ended = foedus(*words.split(), "--help")
            assert ended.code == 0 and all(name in ended.out for name in command.commands)


def test_the_help_names_every_exit_code(foedus: Foedus) -> None:
    shown = foedus("--help").out
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, FoedusError)]
    assert {k.exit_code for k in kinds} == {1, 2, 3, 4, 5, 6}
    assert all(f"{code} " in shown for code in range(7))


def test_no_arguments_is_help_not_a_crash(foedus: Foedus) -> None:
    ended = foedus()
    assert ended.code in (0, 2) and "demo" in ended.out + ended.err and "Traceback" not in ended.err


# ── a party's block of the treaty ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("party", ["shop-a", "1e5", "no"])
def test_a_partys_block_goes_into_a_treaty_as_it_is(tmp_path: Path, foedus: Foedus, party: str) -> None:
    node = tmp_path / "node"
    where = ("--party", party, "--server", "coordinator.example:9443", "--table", tmp_path / "orders.parquet")
    made, again = foedus("node", "init", node, *where), foedus("node", "party", node)
    assert (made.code, again.code) == (0, 0)
    assert made.out == again.out  # what a person needs to know besides goes to the other stream
    assert "treaty's author" in made.err and "node_key: |\n" in made.out
    (block,) = yaml.safe_load("parties:\n" + made.out)["parties"]
    home = Home.load(node)
    assert Party.model_validate(block) == Party(
        name=party,
        signing_key=home.identity().public,
        node_key=node_public_key(home.link.node_key).decode(),
    )


# ── exit 2: what is given is not what it must be ─────────────────────────────────────────────────


def test_a_missing_draft(desk: Path, foedus: Foedus) -> None:
    ended = foedus("study", "price", desk / "none.yaml", "--treaty", desk / "treaty.json")
    said(ended, 2, "none.yaml", "No such file")


def test_a_missing_treaty(desk: Path, foedus: Foedus) -> None:
    said(foedus("treaty", "show", desk / "none.json"), 2, "none.json", "No such file")


def test_a_draft_that_is_not_yaml(desk: Path, foedus: Foedus) -> None:
    (desk / "draft.yaml").write_text("title: [\n")
    ended = foedus("study", "price", desk / "draft.yaml", "--treaty", desk / "treaty.json")
    said(ended, 2, "draft.yaml", "not YAML")


def test_a_misspelt_field(desk: Path, foedus: Foedus) -> None:
    write(desk / "draft.yaml", privcy={})
    ended = foedus("study", "price", desk / "draft.yaml", "--treaty", desk / "treaty.json")
    said(ended, 2, "privcy")


def test_a_key_that_others_may_read(desk: Path, foedus: Foedus) -> None:
    (desk / "alice.key").chmod(0o644)
    ended = sign(desk, foedus)
    said(ended, 2, "alice.key", "readable by others", "chmod 600", remedy=True)


def test_an_existing_key_is_not_overwritten(desk: Path, foedus: Foedus) -> None:
    before = (desk / "alice.key").read_bytes()
    said(foedus("keygen", desk / "alice.key"), 2, "alice.key", "exists already", remedy=True)
    assert (desk / "alice.key").read_bytes() == before


def test_a_node_that_was_never_made(tmp_path: Path, foedus: Foedus) -> None:
    said(foedus("node", "check", tmp_path / "node"), 2, "node.yaml", "foedus node init", remedy=True)


def test_no_token(desk: Path, foedus: Foedus) -> None:
    said(foedus("study", "list"), 2, "no token", "FOEDUS_TOKEN", remedy=True)


def test_a_file_that_is_no_bundle(desk: Path, foedus: Foedus) -> None:
    said(foedus("verify", desk / "draft.yaml"), 2, "draft.yaml", "not an evidence bundle")


def test_a_consent_file_with_a_bad_line(tmp_path: Path, foedus: Foedus) -> None:
    rows = f"subject,purpose,notice_version,granted_at\nK1,{PURPOSE},1,2026-01-01T00:00:00Z\nK2,{PURPOSE},1,yesterday\n"
    (tmp_path / "consents.csv").write_text(rows)
    node = make_node(tmp_path)
    ended = foedus("consent", "import", node.path, tmp_path / "consents.csv")
    said(ended, 2, "line 3", "granted_at", "yesterday")
    counted = foedus("consent", "counts", node.path, "--purpose", PURPOSE)
    assert counted.out.split() == ["in_force", "0", "withdrawn", "0", "expired", "0"]


def test_an_unknown_option_is_clicks_own_answer(foedus: Foedus) -> None:
    ended = foedus("verify", "--frobnicate", "x.zip")
    assert ended.code == 2 and "--frobnicate" in ended.err and "Traceback" not in ended.err


# ── exit 3: a rule says no ───────────────────────────────────────────────────────────────────────


def sign(desk: Path, foedus: Foedus) -> Ended:
    return foedus(
        *("study", "sign", desk / "draft.yaml", "--treaty", desk / "treaty.json", "--author", "alice"),
        *("--key", desk / "alice.key", "--out", desk / "study.json"),
    )


def test_a_purpose_that_the_treaty_does_not_permit(desk: Path, foedus: Foedus) -> None:
    write(desk / "draft.yaml", purpose="dpv:Marketing")
    said(sign(desk, foedus), 3, "dpv:Marketing", f"permitted: {PURPOSE}", remedy=True)
    assert not (desk / "study.json").exists()


def test_an_epsilon_over_the_cap(desk: Path, foedus: Foedus) -> None:
    write(desk / "draft.yaml", privacy={"epsilon": 9.0})
    said(sign(desk, foedus), 3, "ε = 9", "the treaty's 8", remedy=True)
    assert not (desk / "study.json").exists()


def test_an_author_that_the_treaty_does_not_name(desk: Path, foedus: Foedus) -> None:
    write(desk / "draft.yaml", author="mallory")
    ended = foedus("study", "price", desk / "draft.yaml", "--treaty", desk / "treaty.json")
    said(ended, 3, "mallory")


# ── exit 4: a check does not hold ────────────────────────────────────────────────────────────────


def test_another_persons_key(desk: Path, foedus: Foedus) -> None:
    (desk / "alice.key").unlink()
    SigningKey.generate().save(desk / "alice.key")
    said(sign(desk, foedus), 4, "alice", "does not hold")


def test_a_treaty_that_was_changed(desk: Path, foedus: Foedus) -> None:
    text = (desk / "treaty.json").read_text().replace('"min_cohort":20', '"min_cohort":1')
    (desk / "treaty.json").write_text(text)
    said(foedus("treaty", "show", desk / "treaty.json"), 4, "signature does not hold")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The evidence of a simulated study, and a partner's own copy of the treaty."""
    draft = make_draft(rounds=1)
    world = small_world(tmp_path_factory.mktemp("cli") / "world", draft)
    found = simulate(world, draft)
    return found.evidence, next(iter(world.homes.values())) / "treaty.json"


def test_a_whole_bundle_verifies(bundle: tuple[Path, Path], foedus: Foedus) -> None:
    evidence, treaty = bundle
    ended = foedus("verify", evidence, "--treaty", treaty)
    assert ended.code == 0 and ended.out.count("✓") == 10
    assert "Everything holds" in ended.out and "taken from the bundle" not in ended.out
    assert "taken from the bundle" in foedus("verify", evidence).out


def test_a_bundle_can_be_watched(bundle: tuple[Path, Path], tmp_path: Path, foedus: Foedus) -> None:
    ended = foedus("watch", "run", bundle[0], "--book", tmp_path / "watch.db", "--json")
    assert ended.code in (0, 4) and {a["rule"] for a in yaml.safe_load(ended.out)} <= {"budget"}, ended.err


def test_a_tampered_bundle(bundle: tuple[Path, Path], tmp_path: Path, foedus: Foedus) -> None:
    evidence, treaty = bundle
    forged = tmp_path / "forged.zip"
    with zipfile.ZipFile(evidence) as old, zipfile.ZipFile(forged, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(
                name, data.replace(b'"auc":', b'"auc":1') if name == "release/metrics.json" else data
            )
    said(foedus("verify", forged, "--treaty", treaty), 4, "release/metrics.json was changed")


def test_another_treaty_than_ones_own(bundle: tuple[Path, Path], desk: Path, foedus: Foedus) -> None:
    ended = foedus("verify", bundle[0], "--treaty", desk / "treaty.json")
    said(ended, 4, "check 2 (treaty)", "not the one you hold")


# ── exit 6: a server can't be reached ────────────────────────────────────────────────────────────


def test_a_server_that_is_not_there(tmp_path: Path, foedus: Foedus) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"https://127.0.0.1:{probe.getsockname()[1]}"  # bound, and nobody listens
        (tmp_path / "token").write_text("foedus_00000000_" + "0" * 64)
        ended = foedus("study", "list", "--server", address, "--token-file", tmp_path / "token")
    said(ended, 6, address, "is the server running?", remedy=True)


# ── whatever goes wrong ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "kind", [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, FoedusError)]
)
def test_every_error_ends_as_its_message_and_code(
    kind: type[FoedusError], foedus: Foedus, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = (
        kind("CODE", "what happened", remedy="what to do")
        if kind is errors.Refused
        else kind("what happened", remedy="what to do")
    )  # type: ignore[call-arg]

    def fails(_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fails)
    ended = foedus("demo")
    assert ended.code == kind.exit_code
    kind_word = "refused" if kind.exit_code == 3 else "error"
    assert ended.err == f"{kind_word}: what happened\n  → what to do\n"
