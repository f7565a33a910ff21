"""Work side by side, each piece in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from rich.console import Console

from r1ranker.errors import EXIT_BAD_INPUT, RunError, UserError, exit_on_user_error

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Job:
    """A call that is made in a process of its own; what it says goes to the end of the file `log`."""

    work: Callable[..., None]
    arguments: tuple[object, ...]
    log: Path


def run_parallel(units: Mapping[str, Job], jobs: int, console: Console) -> None:
    """Make the calls, `jobs` of them at a time. One that fails or is killed leaves the others as they are.

    After all have ended raises UserError where all that failed had bad input, else RunError. What interrupts this
    process ends the others by SIGTERM, so that they can save what they have.
    """
    from r1ranker.device import count_cores  # and torch with it

    context, waiting = multiprocessing.get_context("spawn"), list(units.items())
    running: dict[int, tuple[str, BaseProcess]] = {}
    failed: list[str] = []
    codes: set[int | None] = set()
    with _threads(max(1, count_cores() // jobs)):
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    name, unit = waiting.pop(0)
                    process = context.Process(target=_apart, args=(unit,))
                    process.start()
                    running[process.sentinel] = name, process
                ready = wait(list(running))
                for sentinel in [one for one in running if one in ready]:
                    name, ended = running.pop(sentinel)
                    ended.join()
                    console.print(f"{name}: {'failed' if ended.exitcode else 'done'}", highlight=False, markup=False)
                    if ended.exitcode:
                        codes.add(ended.exitcode)
                        failed.append(f"{name}: {_reason(ended.exitcode, units[name].log)}")
        finally:
            for _, left in running.values():
                left.terminate()
            for _, left in running.values():
                left.join()
    if failed:
        raise (UserError if codes == {EXIT_BAD_INPUT} else RunError)("; ".join(failed))


def _apart(unit: Job) -> None:
    unit.log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = unit.log.open("a", encoding="utf-8", buffering=1)
    exit_on_user_error(lambda: unit.work(*unit.arguments))


def _reason(code: int, log: Path) -> str:
    """The last line that a process said, where it ended by itself."""
    if code < 0:
        return f"killed by signal {-code}"
    lines = log.read_text(encoding="utf-8").split("\n") if log.is_file() else []
    said = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
    return f"{said.removeprefix('error: ')} ({log})"


@contextmanager
def _threads(most: int) -> Iterator[None]:
    """Processes started meanwhile compute with `most` threads, or as few as are asked for already."""
    before = os.environ.get(THREADS)
    asked = int(before) if before and before.isdecimal() else most
    os.environ[THREADS] = str(max(1, min(most, asked)))
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before
