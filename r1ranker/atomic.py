"""Files that appear whole or not at all: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from r1ranker.errors import UserError


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, a file or a directory, which takes the place of `target` when the block ends without an error.

    After an error everything is as it was before. Raises UserError where the target's directory cannot be written.
    """
    target = Path(target)
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); a writable directory is wanted") from error
    temporary = holder / target.name
    try:
        yield temporary
        flush(temporary)
        if target.is_dir() and temporary.is_dir():
            # a directory cannot be replaced in one step: the old one is moved aside first
            target.rename(holder / "replaced")
        os.replace(temporary, target)
        _flush_directory(target.parent)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from error
    finally:
        if not target.exists() and (holder / "replaced").exists():
            (holder / "replaced").rename(target)
        shutil.rmtree(holder, ignore_errors=True)
        if not target.exists():
            _remove_empty(made)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Have `directory` to oneself, made where it is not there; raises UserError where another process has it."""
    made = [parent for parent in (directory, *directory.parents) if not parent.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror}); a writable directory is wanted") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(
            f"{directory}: another process is writing there; wait for it, or name another directory"
        ) from error
    finally:
        os.close(handle)
        _remove_empty(made)


def _remove_empty(directories: list[Path]) -> None:
    for directory in directories:  # innermost first
        try:
            directory.rmdir()
        except OSError:  # something else was put there meanwhile
            return


def flush(path: Path) -> None:
    """Have the disk take what was written to a file, or to all files of a directory."""
    for file in [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _flush_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
