"""The runs and results of a report as a reader sees them: short names, colours, and ids that its filters go by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from r1ranker.evaluation.identity import short_names
from r1ranker.report.load import Result, Run
from r1ranker.tasks.catalog import TASK_NAMES

# Okabe and Ito's colours, which stay apart for the colour-blind, then Paul Tol's muted ones
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#117733", "#332288", "#999933",
    "#AA4499", "#88CCEE", "#CC6677", "#44AA99", "#661100", "#6699CC",
)  # fmt: skip
ALL_TASKS = "all"

T = TypeVar("T", Run, Result)


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A run or a result with what it goes by in the report."""

    id: str
    """r0, r1, ... for runs, m0, m1, ... for results"""
    name: str
    detail: str
    """what sets it apart from others of that name: a result's strategy"""
    colour: str
    source: T

    @property
    def label(self) -> str:
        """Name and detail on one line."""
        return f"{self.name} · {self.detail}" if self.detail else self.name


def make_entries(runs: Sequence[Run], results: Sequence[Result]) -> tuple[list[Entry[Run]], list[Entry[Result]]]:
    """Entries; a run has the colour of the first result whose model has its name."""
    places = [str(run.file.resolve().parent) for run in runs]
    models = [result.model for result in results]
    names = short_names([places, models])
    details = [_way_of_asking(result.settings) for result in results]
    titles = Counter(zip(names[1], details, strict=True))
    alike = [titles[title] > 1 for title in zip(names[1], details, strict=True)]
    files = short_names([[str(result.file) for result in results]])[0]
    for place in range(len(results)):  # the same model asked in the same way, on other data or of fewer rows
        if alike[place]:
            details[place] = ", ".join(filter(None, (details[place], files[place])))
    colours = [PALETTE[place % len(PALETTE)] for place in range(len(results) + len(runs))]
    of_model = dict(zip(reversed(names[1]), reversed(colours[: len(results)]), strict=True))
    rest = iter(colours[len(results) :])
    return (
        [
            Entry(f"r{place}", names[0][place], "", of_model.get(names[0][place]) or next(rest), run)
            for place, run in enumerate(runs)
        ],
        [
            Entry(f"m{place}", names[1][place], details[place], colours[place], result)
            for place, result in enumerate(results)
        ],
    )


def _way_of_asking(settings: dict[str, Any]) -> str:
    """The strategy, and what an elimination does other than taking out one candidate a round by one answer."""
    parts = [str(settings.get("strategy", ""))]
    elimination = settings.get("elimination")
    if isinstance(elimination, dict):
        for name, usual in (("eliminate", 1), ("votes", 1), ("top_k", 0)):
            if elimination.get(name, usual) != usual:
                parts.append(f"{name} {elimination[name]}")
    return ", ".join(filter(None, parts))


def assign_task_ids(runs: Sequence[Run], results: Sequence[Result]) -> dict[str, str]:
    """Task -> its id in the report; the nine in the order of the catalogue, then those of one's own."""
    found = dict.fromkeys(task for result in results for task in result.tasks)
    found |= dict.fromkeys(task for run in runs for row in run.rows for task in validation_rewards(row))
    order = [*(task for task in TASK_NAMES if task in found), *(task for task in found if task not in TASK_NAMES)]
    return {task: f"t{place}" for place, task in enumerate(order)}


def validation_rewards(row: dict[str, float]) -> dict[str, float]:
    """Task -> mean validation reward in a row of metrics."""
    head, tail = "val-core/", "/reward/mean"
    return {
        name[len(head) : -len(tail)]: value
        for name, value in row.items()
        if name.startswith(head) and name.endswith(tail)
    }
