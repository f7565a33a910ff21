"""Training states on disk: `<output_dir>/state/step_N`, whole or not at all, checked before they are used.

A state is written under another name; its manifest, with a checksum of every file, comes last; then it is renamed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1ranker.atomic import fsync_directory, fsync_path
from r1ranker.data.files.manifest import sha256
from r1ranker.errors import UserError

FORMAT = 3
MANIFEST, DRIVER = "manifest.json", "driver.json"
STATES, ASIDE = "state", "state_before"
"""of the run, and of another run that was in its directory: kept until the first state of this one is whole"""
_NAME = re.compile(r"step_(\d+)")
_WRITING = ".writing"

Say = Callable[[str], None]


@dataclass(frozen=True)
class State:
    """A whole state."""

    directory: Path
    driver: dict[str, Any]
    """what the driver keeps: step, loader, KL coefficient, config, versions"""

    @property
    def step(self) -> int:
        return int(self.driver["step"])

    def is_among(self, states: Path) -> bool:
        """Whether it is one of those under `states`, however either is written."""
        return self.directory.resolve().parent == states.resolve()


def describe_file(file: Path) -> dict[str, Any]:
    """The manifest's line of a file."""
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def list_states(states: Path) -> list[tuple[int, Path]]:
    """(step, directory) of what stands under `states`, the newest first; nothing is checked."""
    if not states.is_dir():
        return []
    found = [(int(match[1]), path) for path in states.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def find_newest(states: Path, say: Say) -> State | None:
    """The newest whole state under `states`; each newer one is named with what is wrong with it.

    Raises UserError where there are states and none is whole.
    """
    try:
        found = list_states(states)
    except OSError as error:
        raise UserError(f"{states}: cannot be read ({error.strerror})") from error
    damage: list[str] = []
    for _, directory in found:
        state = read_state(directory)
        if isinstance(state, State):
            for sentence in damage:
                say(f"{sentence}; going on from {directory.name}")
            return state
        damage.append(state)
    if damage:
        raise UserError(f"{damage[0]}; no whole state is left in {states} (trainer.resume_mode=disable begins anew)")
    return None


def read_state(directory: Path) -> State | str:
    """The state in `directory`, or what is wrong with it."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"{directory}: of format {manifest['format']}; {FORMAT} is known"
        for name, wanted in manifest["files"].items():
            file = directory / name
            if file.stat().st_size != wanted["bytes"]:
                return f"{file}: {file.stat().st_size:,} bytes, but {wanted['bytes']:,} were written: damaged"
            if sha256(file) != wanted["sha256"]:
                return f"{file}: its checksum is not the one that was written: damaged"
        return State(directory, json.loads((directory / DRIVER).read_text(encoding="utf-8")))
    except OSError as error:
        return f"{error.filename}: cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{directory / MANIFEST}: not the manifest of a state ({type(error).__name__}): damaged"


def begin_state(states: Path, step: int, driver: Mapping[str, Any]) -> Path:
    """A directory to write the state of `step` in, with the driver's part in it. Raises OSError."""
    directory = states / f".step_{step}{_WRITING}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / DRIVER).write_text(json.dumps(driver, allow_nan=True), encoding="utf-8")
    return directory


def publish_state(directory: Path, files: Mapping[str, Any]) -> Path:
    """Put a state in its place, given the entries of the processes' files. Raises OSError."""
    fsync_path(directory / DRIVER)
    manifest = {"format": FORMAT, "files": {**files, DRIVER: describe_file(directory / DRIVER)}}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    fsync_path(directory / MANIFEST)
    fsync_directory(directory)
    target = directory.parent / directory.name.removeprefix(".").removesuffix(_WRITING)
    if target.exists():  # one that was found damaged
        shutil.rmtree(target)
    os.replace(directory, target)
    fsync_directory(directory.parent)
    return target


def prune_states(states: Path, newest_whole: Path, keep: int | None) -> None:
    """Leave the last `keep` states (None: all) up to `newest_whole`, which is known to be whole; no other run's is left."""
    step = {path: number for number, path in list_states(states)}[newest_whole]
    older = [path for number, path in list_states(states) if number < step]
    for path in [] if keep is None else older[keep - 1 :]:
        # renamed first: what is half deleted has no state's name
        gone = path.with_name(f".{path.name}{_WRITING}")
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    shutil.rmtree(states.parent / ASIDE, ignore_errors=True)


def clear_unfinished(states: Path) -> None:
    """Delete what a run that was killed left half-written."""
    for path in states.glob(f".*{_WRITING}") if states.is_dir() else []:
        shutil.rmtree(path, ignore_errors=True)


def set_aside(states: Path, up_to: State | None) -> None:
    """Move states that this run does not go on from out of its way, until it has one of its own.

    `up_to`: the state that it goes on from; older ones beside it stay. Raises UserError where they cannot be moved.
    """
    kept = up_to.step if up_to is not None and up_to.is_among(states) else -1
    leaving = [path for step, path in list_states(states) if step > kept]
    if not leaving:
        return
    aside = states.parent / ASIDE
    try:
        aside.mkdir(exist_ok=True)
        for path in leaving:
            target = aside / path.name
            while target.exists():  # of a run before that one, which may be all that is whole
                target = target.with_name(f"{target.name}_")
            path.rename(target)
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be moved to {aside} ({error.strerror}); a directory of one's own, or another "
            "trainer.default_local_dir is wanted"
        ) from error
