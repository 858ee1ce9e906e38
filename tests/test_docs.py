"""Whatever the documents show is run, and whatever they list is what the code has.

The fences of a document say what becomes of a block, in this order on every page:

- ``console``: every ``$`` line is run, in a directory of the page's own; it must exit with 0.
- ``yaml file=NAME`` and ``csv file=NAME``: written there as NAME, ``<…>`` filled in by `_Partners`.
- ``python``: run there, unless marked ``not-run`` (then it must compile).
- ``bash``: not run: its first line says that it starts servers or needs one. Its commands must parse.
- ``text``: shown.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from support.orders import make_draft, order_log, small_world
from support.treaties import make_treaty

import foedus.demo.data
from foedus import cli
from foedus.clients.fleet import generate_node_key, node_public_key
from foedus.clients.home import Home
from foedus.compliance.treaty import Coordinator, Person, PurposeTerms, Treaty
from foedus.demo.data import Orders
from foedus.demo.simulate import simulate
from foedus.documents import Envelope, SigningKey
from foedus.federation.counting import Count, CountDraft, Key
from foedus.federation.study import Draft

ROOT = Path(__file__).parent.parent
PURPOSE = "dpv:CustomerRelationshipManagement"
NOT_RUN = ("# starts servers", "# needs a server")
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "benchmarks" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)
_FENCE = re.compile(r"^```([a-z]*) ?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
page = pytest.mark.parametrize("path", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])


@dataclass(frozen=True)
class Block:
    language: str
    info: str
    text: str

    @property
    def file(self) -> str | None:
        return self.info.removeprefix("file=") if self.info.startswith("file=") else None


def blocks(path: Path) -> list[Block]:
    return [Block(*found) for found in _FENCE.findall(path.read_text(encoding="utf-8"))]


SHOWING = [p for p in PAGES if any(b.language in ("console", "python") or b.file for b in blocks(p))]
shows = pytest.mark.parametrize("path", SHOWING, ids=[str(p.relative_to(ROOT)) for p in SHOWING])


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a console or bash block, split as a shell splits them."""
    for line in block.text.splitlines():
        if block.language == "bash" and line.strip() and not line.startswith("#"):
            yield shlex.split(line)
        elif block.language == "console" and line.startswith("$ "):
            yield shlex.split(line.removeprefix("$ "))


# ── what a page finds when its commands are run ──────────────────────────────────────────────────


class Stage:
    """The directory of a page; `before` and `fill` do what other people would have done meanwhile."""

    def __init__(self, here: Path) -> None:
        self.here = here

    def before(self, command: list[str]) -> None:
        """Called before each command."""

    def fill(self, text: str) -> str:
        """A file's text with its placeholders filled in."""
        return text


class _Reader(Stage):
    """README: the example beside a small log in CDNOW's place (see `small_cdnow`)."""

    def __init__(self, here: Path) -> None:
        super().__init__(here)
        (here / "examples").mkdir()
        shutil.copyfile(ROOT / "demo" / "churn.yaml", here / "examples" / "churn.yaml")


class _Partners(Stage):
    """for-partners: the other three partners, and the people whose keys the treaty names."""

    def __init__(self, here: Path) -> None:
        super().__init__(here)
        order_log(60).frame.to_parquet(here / "orders.parquet")
        (here / "ca.crt").write_text("of the server's operator\n")
        self.keys: dict[str, SigningKey] = {}

    def fill(self, text: str) -> str:
        return re.sub(r"<(signing|node) key of ([a-z -]+)>", self._key, text)

    def _key(self, found: re.Match[str]) -> str:
        kind, who = found[1], found[2].removeprefix("the ")
        if kind == "node":
            file = self.here / ("node/fleet.key" if who == "shop-a" else f"{who}.fleet.key")
            if not file.exists():
                generate_node_key(file)
            return node_public_key(file).decode().strip().replace("\n", "\n      ")
        if who == "shop-a":
            return Home.load(self.here / "node").identity().public
        return self.keys.setdefault(who, SigningKey.generate()).public

    def before(self, command: list[str]) -> None:
        if command[:3] == ["foedus", "treaty", "show"]:
            treaty = Envelope.load(self.here / "treaty.json")
            for name in ("shop-b", "shop-c", "shop-d"):
                treaty = treaty.signed(name, self.keys[name])
            (self.here / "treaty.json").write_bytes(treaty.dumps())


class _Operator(Stage):
    """for-operators: the parties, who sign once the coordinator's key is made."""

    def before(self, command: list[str]) -> None:
        if "--treaty" in command:
            public = SigningKey.load(self.here / "coordinator" / "server.key").public
            coordinator = Coordinator(origin="coordinator.example/log", signing_key=public)
            (self.here / "treaty.json").write_bytes(make_treaty(coordinator=coordinator)[0].dumps())


class _Scientist(Stage):
    """for-scientists: alice's key and treaty, and later what the run of her trial left."""

    def __init__(self, here: Path) -> None:
        super().__init__(here)
        order_log(2400).frame.to_csv(here / "orders.csv", index=False)
        key = SigningKey.generate()
        key.save(here / "alice.key")
        treaty, _, _ = make_treaty(
            scientists=(Person(name="alice", signing_key=key.public),),
            purposes=(PurposeTerms(purpose=PURPOSE, epsilon=8.0, delta=1e-5),),
        )
        (here / "treaty.json").write_bytes(treaty.dumps())

    def before(self, command: list[str]) -> None:
        if command[:2] == ["foedus", "verify"]:
            leave(self.here / "trial", self.here)


def leave(trial: Path, here: Path) -> None:
    """Put what a trial left where a person would have it."""
    node = trial / "nodes" / "aster-music"
    shutil.copyfile(next(trial.glob("server/evidence/*/evidence.zip")), here / "evidence.zip")
    shutil.copyfile(next(trial.glob("server/evidence/*/model.json")), here / "model.json")
    shutil.copyfile(node / "treaty.json", here / "treaty.json")
    shutil.copytree(node, here / "node")


class _Officer(Stage):
    """for-officers: a node's directory and the evidence after a study."""

    def __init__(self, here: Path) -> None:
        super().__init__(here)
        draft = make_draft(purpose=PURPOSE)
        simulate(small_world(here / "trial", draft), draft)
        leave(here / "trial", here)


STAGES: dict[str, Callable[[Path], Stage]] = {
    "README.md": _Reader,
    "docs/for-partners.md": _Partners,
    "docs/for-operators.md": _Operator,
    "docs/for-scientists.md": _Scientist,
    "docs/for-officers.md": _Officer,
}


@pytest.fixture
def small_cdnow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of CDNOW's shape and dates, a twentieth of its size."""
    frame = order_log(1200).frame
    shift = date(1996, 12, 1) - date(2022, 9, 1)
    frame["date"] = [day + shift for day in frame["date"]]
    frame["panel"] = ["test" if int(c[-1]) % 2 else "train" for c in frame["customer"]]
    monkeypatch.setattr(foedus.demo.data, "cdnow", lambda: Orders(frame, "synthetic", split_column=True))


def run(*command: str) -> None:
    """Run a command in this process if it is ours; it must end well."""
    if command[0] != "foedus":
        program = sys.executable if command[0] == "python" else shutil.which(command[0])
        if program is not None:  # unzip may be missing
            subprocess.run([program, *command[1:]], check=True, stdout=subprocess.DEVNULL)
        return
    arguments = [
        argument
        for word in command[1:]
        for argument in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
    ]
    code: object = 0
    try:
        cli.main(arguments)
    except SystemExit as end:
        code = end.code
    assert code in (0, None), f"{shlex.join(command)}: exit {code}"


@shows
def test_what_a_page_shows_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_cdnow: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    stage = STAGES.get(str(path.relative_to(ROOT)), Stage)(tmp_path)
    for block in blocks(path):
        if block.file:
            text = stage.fill(block.text)
            assert "<" not in text, f"{block.file}: something in <brackets> that this test does not fill in"
            (tmp_path / block.file).write_text(text, encoding="utf-8")
        elif block.language == "python":
            code = compile(block.text, f"{path.name}, python block", "exec")
            if block.info != "not-run":
                exec(code, {"__name__": "snippet"})  # noqa: S102 - our own documents
        for command in commands(block) if block.language == "console" else ():
            stage.before(command)
            run(*command)


@page
def test_fences_say_what_becomes_of_a_block(path: Path) -> None:
    for block in blocks(path):
        assert block.language in ("console", "yaml", "csv", "python", "bash", "text", "toml"), block
        assert block.info in ("", "not-run") or block.file, block
        if block.language == "bash":
            assert block.text.splitlines()[0] in NOT_RUN, block
        if block.language == "console":
            assert all(line.startswith("$ ") for line in block.text.splitlines()), block


# ── commands ─────────────────────────────────────────────────────────────────────────────────────


def find(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that ``foedus WORDS`` names, and the arguments left for it."""
    command: click.Command = typer.main.get_command(cli.app)
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"foedus {' '.join(words)}: there is no {rest[0]!r}"
        command = command.commands[rest.pop(0)]
    return command, rest


@page
def test_every_command_shown_exists(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for block in blocks(path):
        for words in commands(block):
            if words[0] == "foedus":
                command, rest = find(words[1:])
                command.make_context(command.name, rest)  # raises where click would refuse
            elif words[0] == "make":
                assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
            elif words[:2] == ["python", "-m"] and words[2].startswith("foedus"):
                assert importlib.util.find_spec(words[2]) is not None, words
    prose = _FENCE.sub("", path.read_text(encoding="utf-8"))
    for span in re.findall(r"`foedus ([^`]+)`", prose):
        command, rest = find(span.split())
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        assert {w for w in rest if w.startswith("--")} <= known, span


# ── links and text ───────────────────────────────────────────────────────────────────────────────


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@page
def test_links_resolve(path: Path) -> None:
    prose = _FENCE.sub("", path.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    for named in re.findall(r"`((?:tests|docs|examples|benchmarks)/[\w./-]+)`", prose):
        assert (ROOT / named).exists(), named


@page
def test_no_page_knows_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(tmp|work|home|root|Users)/|pypi\.org|files\.pythonhosted|@@", text)


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def table(path: Path, header: str) -> dict[str, str]:
    """First cell (without its backticks) -> second cell, of every table whose first header is `header`."""
    found: dict[str, str] = {}
    inside = False
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif cells[0] == header:
            inside = True
        elif inside and not cells[0].startswith("---"):
            found |= {name: cells[1] for name in re.findall(r"`([^`]+)`", cells[0])}
    return found


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The documents that a field may hold, in unions, lists and annotations too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for item in get_args(annotation):
        yield from models_in(item)


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field of a model, by its dotted name; a model within stands for its own fields."""
    for name, field in model.model_fields.items():
        within = list(models_in(field.annotation))
        if field.annotation not in within:
            yield prefix + name, field
        for one in within:
            yield from fields(one, f"{prefix}{name}.")


def test_every_field_of_a_draft_is_documented() -> None:
    documented = table(ROOT / "docs" / "for-scientists.md", "field")
    expected = dict(fields(Draft))
    assert set(documented) == set(expected)
    kinds = {"label", "label.kind", "training.early_stopping"}  # of several models, with a default each
    for name, field in expected.items():
        if name in kinds:
            continue
        if name == "features":
            assert documented[name].startswith("eleven") and len(field.default) == 11
        elif field.is_required():
            assert documented[name] == "–", name
        else:
            told = documented[name]
            written = getattr(field.default, "name", field.default)  # a mode is written by its name
            assert (None if told == "none" else yaml.safe_load(told)) == written, name


def test_every_field_of_a_count_is_documented() -> None:
    keys = {*Key.model_fields, "hierarchy", "level"}
    documented = set(table(ROOT / "docs" / "for-scientists.md", "of a count"))
    # The second name in a cell counts as well; `column` … `upper` of a quantity stand in its sentence.
    assert documented == {f"count.by.{n}" for n in keys} | {f"count.{n}" for n in Count.model_fields} | {"k"}
    assert set(CountDraft.model_fields) <= set(Draft.model_fields) | {"count", "k"}


def test_every_field_of_a_treaty_is_documented() -> None:
    documented = table(ROOT / "docs" / "for-partners.md", "field")
    assert set(documented) == set(Treaty.model_fields)
    for name, field in Treaty.model_fields.items():
        assert (documented[name] == "–") == field.is_required(), name


# Calls whose upper-case text is the code of a refusal, and places where codes stand in a table.
_RAISING = ("Refused", "Forbidden", "Unauthenticated", "Silence", "_Out", "_reply")
_LISTING = {"clients/app.py": "_code", "server/problems.py": "_STATUS"}


def codes(*rooms: str) -> set[str]:
    """The codes of all refusals in the code of these rooms and modules."""
    found: set[str] = set()
    for room in rooms:
        place = ROOT / room
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            listing = _LISTING.get(str(file.relative_to(ROOT)))
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                    if name in _RAISING or (name == "__init__" and room == "errors.py"):
                        found |= _upper(*node.args) | _named(*node.args)
                elif listing is not None and listing in (
                    getattr(node, "name", ""),
                    getattr(getattr(node, "target", None), "id", ""),
                ):
                    found |= _upper(node)
    return found


def _upper(*nodes: ast.AST) -> set[str]:
    texts = {n.value for node in nodes for n in ast.walk(node) if isinstance(n, ast.Constant)}
    return {t for t in texts if isinstance(t, str) and re.fullmatch(r"[A-Z]+(_[A-Z]+)*", t)}


def _named(*nodes: ast.AST) -> set[str]:
    """Constants that are named as what they say: ``LOG_SIZE_UNKNOWN = "LOG_SIZE_UNKNOWN"``."""
    names = (getattr(n, "id", getattr(n, "attr", "")) for n in nodes)
    return {n for n in names if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", n)}


def test_every_refusal_is_documented() -> None:
    node = table(ROOT / "docs" / "for-partners.md", "code")
    server = table(ROOT / "docs" / "for-scientists.md", "code")
    exits = {c for c in node if c.isdigit()}
    assert set(node) - exits == codes("errors.py", "privacy", "compliance", "federation", "clients")
    assert set(server) == codes("server")


def test_the_scan_of_refusals_sees_them() -> None:
    found = codes("errors.py", "privacy", "clients", "server")
    assert {
        "BUDGET_EXCEEDED",
        "ALREADY_DONE",
        "COHORT_TOO_SMALL",
        "PROTOCOL",
        "NO_TOKEN",
        "TOO_LARGE",
    } <= found


def test_exit_codes_are_those_of_the_errors() -> None:
    text = (ROOT / "errors.py").read_text(encoding="utf-8")
    numbers = set(re.findall(r"exit (\d)", text.partition('"""')[2].partition('"""')[0]))
    page = (ROOT / "docs" / "for-partners.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    assert set(re.findall(r"^\| (\d) \|", page, re.MULTILINE)) >= numbers
