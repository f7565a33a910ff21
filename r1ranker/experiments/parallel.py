"""Work side by side, each piece in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager

from rich.console import Console

from r1ranker.errors import UserError

THREADS = "OMP_NUM_THREADS"


def side_by_side(
    work: Callable[..., None], units: Mapping[str, tuple[object, ...]], jobs: int, console: Console
) -> None:
    """Call `work` with the arguments of each unit, `jobs` of them at a time.

    Raises UserError after all have ended where some failed.
    """
    failed = []
    # spawned anew for each: a process's memory and its random state are its own run's alone
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with _threads(max(1, (os.cpu_count() or 1) // jobs)), pool:
        running = {pool.submit(work, *arguments): name for name, arguments in units.items()}
        for done in as_completed(running):
            name, error = running[done], done.exception()
            console.print(f"{name}: {'failed' if error else 'done'}", highlight=False, markup=False)
            if error is not None:
                failed.append(f"{name}: {str(error) or type(error).__name__}")
    if failed:
        raise UserError("\n".join(failed))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Processes started meanwhile compute with `count` threads."""
    before = os.environ.get(THREADS)
    os.environ[THREADS] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before
