"""The rules of the house that a program can check: packages, faces, sizes of folders, private names."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = sorted({name.split(".")[1] for name in PROJECT["tool"]["setuptools"]["packages"] if "." in name} - {"configs"})
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
MOST_MODULES = 12
SEVERAL = {
    "main": ["cli/main.py", "engines/vllm_main.py", "sandbox/make_base.py"],  # each runs a module as a program
}
"""Functions whose name several modules have, for a reason."""


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _imported(path: Path) -> Iterator[tuple[int, str]]:
    """Names that a module imports from plyfold, with their lines."""
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("plyfold")):
            for alias in node.names:
                yield node.lineno, alias.name


def test_the_packages_that_ship_are_the_folders_of_the_tree() -> None:
    packages = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {f"plyfold.{_relative(path.parent).replace('/', '.')}" for path in MODULES}
    assert packages == {"plyfold", "plyfold.configs"} | folders
    mapped = PROJECT["tool"]["setuptools"]["package-dir"]
    assert mapped == {
        name: "src/plyfold" if name == "plyfold" else name.removeprefix("plyfold.").replace(".", "/")
        for name in packages
    }


def test_every_folder_of_code_is_one_that_ships() -> None:
    ours = {path.parent for path in ROOT.glob("*/*.py") if path.parent.name != "build"}
    assert {path.name for path in ours} <= {*ROOMS, "configs", "tests", "benchmarks", "src"}
    assert not (ROOT / "__init__.py").exists()


@pytest.mark.parametrize("room", ROOMS)
def test_a_folder_has_a_face_that_says_what_it_knows(room: str) -> None:
    for folder in {path.parent for path in MODULES if path.is_relative_to(ROOT / room)}:
        said = ast.get_docstring(_parsed(folder / "__init__.py"))
        assert said, _relative(folder)
        assert said.splitlines()[0].rstrip().endswith((".", ":")), _relative(folder)


def test_a_folder_holds_few_modules() -> None:
    for folder in {path.parent for path in MODULES}:
        found = sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        assert found <= MOST_MODULES, _relative(folder)


def test_private_names_stay_in_their_module() -> None:
    taken = [f"{_relative(path)}:{line} {name}" for path in MODULES for line, name in _imported(path) if name[0] == "_"]
    assert taken == []


def test_private_attributes_of_the_store_stay_there() -> None:
    found = [
        f"{_relative(path)}:{node.lineno} {node.attr}"
        for path in MODULES
        if not path.is_relative_to(ROOT / "registry" / "store")
        for node in ast.walk(_parsed(path))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if isinstance(node.value, ast.Name) and node.value.id == "store"
    ]
    assert found == []


def test_a_class_has_a_name_of_its_own() -> None:
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(_relative(path))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_a_public_function_has_a_name_of_its_own() -> None:
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name[0] != "_":
                homes.setdefault(node.name, []).append(_relative(path))
    assert {name: found for name, found in homes.items() if len(found) > 1} == SEVERAL
