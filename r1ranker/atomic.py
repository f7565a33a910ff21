"""Files that appear whole or not at all: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import ctypes
import fcntl
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from r1ranker.errors import UserError


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, a file or a directory, which takes the place of `target` when the block ends without an error.

    After an error everything is as it was before. Raises UserError where the target's directory cannot be written.
    """
    target = Path(target)
    # named before it is made: a signal that comes at once finds what to delete
    holder = target.parent / f".{target.name}.{secrets.token_urlsafe(6)}"
    temporary = holder / target.name
    with _removed_if_empty(target.parent), ExitStack() as undo:
        undo.callback(shutil.rmtree, holder, ignore_errors=True)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            holder.mkdir(mode=0o700)
        except OSError as error:
            raise UserError(
                f"{target}: cannot be written ({error.strerror}); a writable directory is wanted"
            ) from error
        try:
            yield temporary
            fsync_path(temporary)
            if not (target.is_dir() and temporary.is_dir() and _exchange(temporary, target)):
                if target.is_dir() and temporary.is_dir():
                    # where the system cannot exchange two directories, the old one is moved aside first
                    target.rename(holder / "replaced")
                os.replace(temporary, target)
            fsync_directory(target.parent)
        except OSError as error:
            raise UserError(f"{target}: cannot be written ({error.strerror})") from error
        finally:
            if not target.exists() and (holder / "replaced").exists():
                (holder / "replaced").rename(target)


class _Tried(Exception):
    """Nothing is wanted at the place yet."""


def check_place(target: str | os.PathLike[str], directory: bool = False) -> None:
    """Raise UserError where `atomic_path` could not put a file, or a `directory`, to `target`; everything stays as it is.

    For the time before long work whose result goes there.
    """
    path = Path(target)
    wanted = "directory" if directory else "file"
    try:
        if path.name in ("", "..") or (not directory and path.is_dir()):
            raise UserError(f"{path}: found a directory; the name of a {wanted} to write is wanted")
        if directory and os.path.lexists(path) and not path.is_dir():
            raise UserError(f"{path}: found a file; the place of a directory is wanted")
        with suppress(_Tried), atomic_path(path):
            raise _Tried
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); another name is wanted") from error


def check_output_name(name: str) -> None:
    """Raise UserError for an --output that data cannot be prepared under: what cannot be printed, or is not UTF-8."""
    if not name.isprintable():  # bytes that are no UTF-8 are half surrogate pairs to Python
        raise UserError(f"--output: found {name!a}; a printable name in UTF-8 is wanted")


def _exchange(first: Path, second: Path) -> bool:
    """Have two directories change places in one step, so that a kill leaves one of them in each; False where that cannot be."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fcntl.h and linux/fs.h
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def clear_leftovers(directory: Path, names: Iterable[str]) -> None:
    """Delete what processes that were killed while they wrote `names` left in `directory`; nobody else may be writing there."""
    for name in names:
        for holder in directory.glob(f".{glob.escape(name)}.*"):
            shutil.rmtree(holder, ignore_errors=True)


@contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Have `directory` to oneself, made where it is not there; raises UserError where another process has it."""
    with _removed_if_empty(directory):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(directory, os.O_RDONLY)
        except OSError as error:
            raise UserError(
                f"{directory}: cannot be written ({error.strerror}); a writable directory is wanted"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise UserError(
                f"{directory}: another process is writing there; wait for it, or name another directory"
            ) from error
        finally:
            os.close(handle)


@contextmanager
def _removed_if_empty(directory: Path) -> Iterator[None]:
    """At the end of the block delete `directory` and those above it that were not there at its beginning, if nothing is in them."""
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    try:
        yield
    finally:
        for one in missing:  # innermost first
            try:
                one.rmdir()
            except OSError:  # something was put there meanwhile, or it was not made
                if one.exists():
                    break


def fsync_path(path: Path) -> None:
    """Have the disk take what was written to a file, or to all files of a directory."""
    for file in [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def fsync_directory(directory: Path) -> None:
    """Have the disk take which names a directory holds."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
