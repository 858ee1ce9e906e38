"""What is installed is foedus and nothing else, and what is written in it keeps the house's rules."""

from __future__ import annotations

import ast
import email
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import foedus
from foedus.compliance.lineage.facets import OWN

ROOT = Path(__file__).parent.parent
ROOMS = ("clients", "compliance", "demo", "federation", "privacy", "server")
MODULES = (
    "__init__.py",
    "__main__.py",
    "cli.py",
    "documents.py",
    "durable.py",
    "errors.py",
    "py.typed",
    "verify_foedus.py",
)
SOURCES = sorted(
    [ROOT / m for m in MODULES if m.endswith(".py")]
    + [f for room in ROOMS for f in (ROOT / room).rglob("*.py")]
)
source = pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy without `src/` and without whatever else lies about here."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed in this environment (no build without downloading it)")
    copy = tmp_path_factory.mktemp("wheel") / "tree"
    copy.mkdir()
    for name in (*MODULES, "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copyfile(ROOT / name, copy / name)
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel"],
        cwd=copy,
        check=True,
        capture_output=True,
    )
    return zipfile.ZipFile(next((copy / "dist").glob("foedus-*.whl")))


def test_a_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    info = f"foedus-{foedus.__version__}.dist-info/"
    assert {n.partition("/")[0] + "/" for n in names} == {"foedus/", info}
    expected = {f"foedus/{m}" for m in MODULES}
    for room in ROOMS:
        files = (f for f in (ROOT / room).rglob("*") if f.is_file() and "__pycache__" not in f.parts)
        expected |= {f"foedus/{f.relative_to(ROOT)}" for f in files}
    assert {n for n in names if n.startswith("foedus/")} == expected


def test_a_wheel_holds_what_is_not_python(wheel: zipfile.ZipFile) -> None:
    for name in (
        "federation/bundle/pyproject.toml",
        "federation/bundle/foedus_stub/server_app.py",
        "federation/bundle/foedus_stub/client_app.py",
        "demo/churn.yaml",
        "demo/report.html.j2",
        *(f"compliance/lineage/schemas/{name}.json" for name in OWN),
        "py.typed",
    ):
        assert wheel.getinfo(f"foedus/{name}").file_size or name == "py.typed", name


def test_a_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    info = f"foedus-{foedus.__version__}.dist-info"
    told = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert (told["Name"], told["License-Expression"], told["Requires-Python"]) == (
        "foedus",
        "Apache-2.0",
        ">=3.11",
    )
    assert "foedus = foedus.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def python(code: str) -> str:
    """What a fresh interpreter prints, run outside the repository."""
    return subprocess.run(
        [sys.executable, "-I", "-c", code], cwd="/", check=True, capture_output=True, text=True
    ).stdout.strip()


def test_no_bare_name_is_imported() -> None:
    names = "{'clients', 'compliance', 'demo', 'documents', 'errors', 'federation', 'privacy', 'server'}"
    imports = "import sys, foedus.cli, foedus.federation.study, foedus.compliance.auditlog.log"
    assert python(f"{imports}; print(sorted({names} & set(sys.modules)))") == "[]"


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = "('torch', 'opacus', 'flwr', 'ibis', 'duckdb', 'dp_accounting', 'matplotlib')"
    assert python(f"import sys, foedus.cli; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_the_face_is_sorted_and_whole() -> None:
    assert foedus.__all__ == sorted(foedus.__all__)
    assert all(hasattr(foedus, name) for name in foedus.__all__)


def test_the_links_of_an_editable_install_are_whole() -> None:
    links = {p.name for p in (ROOT / "src" / "foedus").iterdir() if p.name != "__pycache__"}
    assert links == {*MODULES, *ROOMS}
    for name in links:
        assert (ROOT / "src" / "foedus" / name).resolve() == ROOT / name


@source
def test_no_assert_and_no_leftovers(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    asserts = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Assert)]
    assert not asserts, "an assert is gone under -O: raise one of foedus' errors"
    assert not re.search(r"\b(T[O]DO|F[I]XME|X{3})\b", text), "finish it, or open an issue"
    assert not re.search(r"(?<![\w.])/(work|root|Users)/|(?<![\w.])/home/\w", text), "a path of one machine"
    assert ast.get_docstring(tree) or not tree.body, "a module says what it is"


@source
def test_imports_inside_are_relative(path: Path) -> None:
    if "bundle" in path.parts:
        return  # a Flower app of its own: it names the installed package
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        found += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        for name in found:
            assert name.partition(".")[0] not in ("foedus", *ROOMS), (
                f"line {getattr(node, 'lineno', 0)}: {name}"
            )
