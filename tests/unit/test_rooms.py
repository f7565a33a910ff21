"""Imports run downwards between the rooms of the package, and every folder is a room of docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import r1ranker

PACKAGE = Path(r1ranker.__file__).parent
ROOMS = (
    "errors.py", "atomic.py", "progress.py", "choices.py", "lean_imports.py", "device.py", "pretrained.py",
    "tasks", "rewards", "data/files", "data/sources", "data", "model", "rollout",
    "trainer/config", "trainer/batch", "trainer/algorithm", "trainer/learners", "trainer/checkpoint", "trainer/memory",
    "trainer/workers", "trainer/scoring", "trainer/monitoring", "trainer/experience", "trainer",
    "thoughts", "ranking", "evaluation/baselines", "evaluation", "reranking", "serving", "report", "experiments", "cli", "quickstart.py", "__init__.py",
)  # fmt: skip
"""from the ground up: a room may import those before it, which also keeps circles out"""


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package by its full name."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def room_of(file: Path, package: Path) -> str:
    """The folder that a file is in; a file of the package's own folder is a room by itself."""
    place = file.relative_to(package)
    return place.name.replace("cli.py", "cli") if len(place.parts) == 1 else place.parent.as_posix()


def imports(file: Path, known: dict[str, Path], package: Path) -> Iterator[tuple[int, Path]]:
    """(line, imported file) for each import of the package's own modules, wherever in the file it stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name.split(".")[0] == package.name:
                yield node.lineno, known[name]


def upward(package: Path, rooms: tuple[str, ...]) -> list[str]:
    """A line for each import that does not run downwards, and for each room that has no place."""
    known, found = modules(package), []
    for file in known.values():
        own = room_of(file, package)
        if own not in rooms:
            found.append(f"{own}: no such room is known; {file.name} is in it")
            continue
        for line, imported in imports(file, known, package):
            other = room_of(imported, package)
            if other in rooms and rooms.index(other) > rooms.index(own):
                where = f"{file.relative_to(package.parent)}:{line}"
                found.append(
                    f"{where}: {own} imports {imported.relative_to(package.parent)} of {other}, which is above it"
                )
    return found


def test_imports_run_downwards_between_all_rooms() -> None:
    assert upward(PACKAGE, ROOMS) == []


def test_every_room_that_is_declared_exists() -> None:
    rooms = {room_of(file, PACKAGE) for file in modules(PACKAGE).values()}
    assert rooms == set(ROOMS)


@pytest.mark.parametrize(
    "text", ["from house.attic import roof", "import house.attic.roof", "def f():\n    from house.attic.roof import x"]
)
def test_an_upward_import_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    for name, content in (
        ("__init__.py", ""),
        ("cellar/wine.py", f"import os\n{text}\n"),
        ("attic/roof.py", "x = 1\n"),
    ):
        file = tmp_path / "house" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    (line,) = upward(tmp_path / "house", ("__init__.py", "cellar", "attic"))
    assert re.match(
        r"house/cellar/wine\.py:[23]: cellar imports house/attic/roof\.py of attic, which is above it", line
    )
    assert upward(tmp_path / "house", ("__init__.py", "attic", "cellar")) == []
    assert any("no such room" in line for line in upward(tmp_path / "house", ("__init__.py", "attic")))


def test_the_architecture_page_has_every_room() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [
        room
        for room in ROOMS
        if room not in ("__init__.py", "quickstart.py", "cli") and f"`{room}`" not in page and f"`{room}/`" not in page
    ]
    assert missing == []
