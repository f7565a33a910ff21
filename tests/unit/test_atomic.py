"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from r1ranker.atomic import atomic_path, check_place, lock_directory
from r1ranker.cli.ranking import rank
from r1ranker.errors import Terminated, UserError
from r1ranker.trainer.sft import fine_tune


def tree(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() if p.is_file() else "" for p in directory.rglob("*")}


def test_a_file_takes_its_place_with_parents_made(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("one")
        assert not target.exists()
    assert tree(tmp_path) == {"a": "", "a/b": "", "a/b/file.txt": "one"}
    with atomic_path(target) as temporary:
        temporary.write_text("two")
        assert target.read_text() == "one"
    assert target.read_text() == "two"


def test_a_directory_replaces_the_one_before_it(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("one", "two"):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / f"{content}.txt").write_text(content)
    assert tree(tmp_path) == {"model": "", "model/two.txt": "two"}


@pytest.mark.parametrize("existing", ["nothing", "file", "directory"])
def test_an_error_leaves_everything_as_it_was(existing: str, tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "target"
    if existing != "nothing":
        target.parent.mkdir(parents=True)
    if existing == "file":
        target.write_text("old")
    if existing == "directory":
        target.mkdir()
        (target / "old.txt").write_text("old")
    before = tree(tmp_path)
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:  # noqa: PT012
        temporary.mkdir() if existing == "directory" else temporary.write_text("half")
        raise ZeroDivisionError
    assert tree(tmp_path) == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(UserError, match=r"file.inner.*cannot be written"), atomic_path(tmp_path / "file" / "inner"):
        pass
    (tmp_path / "full" / "inner").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be written"), atomic_path(tmp_path / "full") as temporary:
        temporary.write_text("a file for a directory")
    assert tree(tmp_path) == {"file": "old", "full": "", "full/inner": ""}


BAD_PLACES = {
    "file": ["full", "file/inner", "x" * 250, ".", ""],
    "directory": ["file", "file/inner", "x" * 250, ".", ""],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in BAD_PLACES.items() for name in names])
def test_a_place_is_tried_before_the_work(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "file").write_text("old")
    before = tree(tmp_path)
    # neither rows nor a model are there: the place is looked at first
    asked = {
        "file": lambda: rank("gone.jsonl", "gone", output=name),
        "directory": lambda: fine_tune("gone", ["gone.parquet"], name),
    }
    with pytest.raises(UserError, match=r"found a|cannot be written"):
        asked[kind]()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["a/b/new", "file", "new"])
def test_a_place_that_is_fine_stays_as_it_is(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    before = tree(tmp_path)
    check_place(tmp_path / name)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("wait", [1, 2, 3])
@pytest.mark.parametrize("writing", [atomic_path, lock_directory])
def test_a_signal_right_after_a_directory_was_made_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writing: Callable[[Path], AbstractContextManager[object]],
    wait: int,
) -> None:
    made: list[Path] = []
    make = os.mkdir

    def interrupted(path: Path, *arguments: Any) -> None:
        make(path, *arguments)
        made.append(path)
        if len(made) == wait:
            raise Terminated(143)

    monkeypatch.setattr(os, "mkdir", interrupted)
    with pytest.raises(Terminated), writing(tmp_path / "a" / "b" / "c"):
        pass
    assert len(made) == wait
    assert list(tmp_path.iterdir()) == []
