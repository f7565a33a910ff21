"""How far a ranking of many queries is: a bar on a terminal, and elsewhere a line every half a minute, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")
EVERY = 30.0
"""seconds between lines"""


def follow(items: Iterable[Item], total: int, name: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Item]:
    """`items`, of which there are `total` queries, as they come; `name` is said before how many have come."""
    console = Console(stderr=True)
    if console.is_interactive:  # a terminal, and not one that cannot move its cursor
        with Progress(*_columns(), console=console, transient=True) as progress:
            bar = progress.add_task(name, total=total)
            for item in items:
                progress.advance(bar)
                yield item
        return
    began = said = clock()
    for done, item in enumerate(items, start=1):
        now = clock()
        if now - said >= EVERY and done < total:
            said = now
            print(_line(name, done, total, now - began), file=sys.stderr, flush=True)
        yield item


def _line(name: str, done: int, total: int, seconds: float) -> str:
    left = (total - done) * seconds / done
    return f"{name}: {done:,} of {total:,} queries, {done / seconds:.2g} queries/s, about {_in_words(left)} left"


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )


class _Rate(ProgressColumn):
    def render(self, task: Any) -> Text:
        return Text(f"{task.speed:.1f} queries/s" if task.speed else "")
