"""How far long work is: a bar on a terminal for what ranks, and elsewhere a line every half a minute."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")
EVERY = 30.0
"""seconds between lines"""


Pace = Callable[[Any], dict[str, int]]
"""an item -> what else came with it, such as calls: 9, tokens: 1,400"""


def follow(
    items: Iterable[Item], total: int, name: str, clock: Callable[[], float] = time.monotonic, pace: Pace | None = None
) -> Generator[Item, None, None]:
    """`items`, of which there are `total` queries, as they come; `name` is said before how many have come, on stderr.

    `pace`: how many of other things came a second is said too.
    """
    began, found = clock(), Counter[str]()

    def paces() -> str:
        seconds = clock() - began
        return ", ".join(f"{_rate(count / seconds)} {what}/s" for what, count in list(found.items()) if seconds > 0)

    with show_progress(name, total, "queries", paces, clock) as count:
        for item in items:
            found.update(pace(item) if pace else {})
            count()
            yield item


@contextmanager
def show_progress(
    name: str, total: int, unit: str, more: Callable[[], str], clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[], None]]:
    """A function to be called as each of `total` is done: on a terminal it moves a bar, elsewhere report_progress says a line.

    `more`: what else is said, such as a rate or the last loss.
    """
    console = Console(stderr=True)
    if not console.is_interactive:  # no terminal, or one that cannot move its cursor
        with report_progress(name, total, unit, _say_on_stderr, clock, predict=True, more=more) as count:
            yield count
        return
    with Progress(*_columns(unit), console=console, transient=True) as progress:
        bar = progress.add_task(name, total=total, more="")
        yield lambda: progress.update(bar, advance=1, more=more())


@contextmanager
def report_progress(
    name: str,
    total: int,
    unit: str,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    predict: bool = False,
    more: Callable[[], str] = str,
) -> Iterator[Callable[[], None]]:
    """A function to be called as each of `total` is done; until the block ends `say` takes a line every EVERY seconds.

    The lines come from a thread of their own, so also while nothing is done. `predict`: they name the time left, at the rate
    so far. Where all are computed at once and most are done at the end, that is far off. `more`: what a line ends in.
    """
    done, began, ended = 0, clock(), threading.Event()

    def count() -> None:
        nonlocal done
        done += 1

    def report() -> None:
        while not ended.wait(EVERY):
            now, seconds = done, clock() - began
            line = f"{name}: {now:,} of {total:,} {unit}, {_in_words(seconds)}"
            if predict and 0 < now < total:
                line += f", {_rate(now / seconds)} {unit}/s, about {_in_words((total - now) * seconds / now)} left"
            say(f"{line}, {more()}" if more() else line)

    thread = threading.Thread(target=report, name=f"progress of {name}", daemon=True)
    thread.start()
    try:
        yield count
    finally:
        ended.set()
        thread.join()


def _say_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _columns(unit: str) -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TextColumn("{task.fields[more]}", markup=False),
        TimeRemainingColumn(),
    )


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Any) -> Text:
        return Text(f"{task.speed:.1f} {self._unit}/s" if task.speed else "")
