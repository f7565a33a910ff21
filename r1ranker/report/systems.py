"""The rows of a comparison on a task: models, and the orders that they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from r1ranker.data.sources.toy import TOY
from r1ranker.evaluation.baselines.scoring import BY_MODEL
from r1ranker.evaluation.identity import short_names
from r1ranker.report.entries import Entry
from r1ranker.report.figure import GREY
from r1ranker.report.load import COSTS, Metrics, Result, TaskResult


@dataclass(frozen=True)
class System:
    """Something that ranked a task's test rows, with what it reached."""

    kind: Literal["model", "baseline"]
    name: str
    note: str
    """what sets it apart: strategy or data"""
    metrics: Metrics
    entries: tuple[str, ...] = ()
    """ids of the results that it belongs to; empty: to none"""
    colour: str = GREY
    strict: Metrics = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    queries: int | None = None

    @property
    def all_valid(self) -> bool:
        """Whether the strict figures are there and those of `metrics`."""
        return bool(self.strict) and self.strict == self.metrics


@dataclass(frozen=True)
class Comparison:
    """The systems of a task, or over all queries."""

    title: str
    task: str
    """the task's id, or ALL_TASKS"""
    systems: tuple[System, ...]
    note: str = ""
    built_in: bool = False
    """whether all of it was measured on the built-in world, which nobody else has results on"""

    @property
    def metrics(self) -> list[str]:
        """Those that any system has, in the order of the files."""
        return list(dict.fromkeys(name for system in self.systems for name in system.metrics))

    @property
    def costs(self) -> list[str]:
        """Those of COSTS that any system has."""
        return [name for name in COSTS if any(name in system.costs for system in self.systems)]


def compare_systems(title: str, task_id: str, results: Sequence[tuple[Entry[Result], TaskResult]]) -> Comparison:
    """Each result's own row, and each distinct baseline once."""
    models = [
        System(
            "model",
            entry.name,
            entry.detail,
            own.metrics,
            (entry.id,),
            entry.colour,
            own.strict,
            own.costs,
            own.queries,
        )
        for entry, own in results
    ]
    built_in = all(entry.source.source == TOY for entry, _ in results)
    return Comparison(title, task_id, (*models, *_baselines(results)), built_in=built_in)


def compare_routing(title: str, task_id: str, results: Sequence[tuple[Entry[Result], TaskResult]]) -> Comparison | None:
    """The same with what the LLMs put first are worth for metrics; None where no result has that."""
    routed = [
        (entry, replace(own, metrics=own.routing["model"], strict={}, costs={}, baselines=_others(own.routing)))
        for entry, own in results
        if "model" in own.routing
    ]
    if not routed:
        return None
    notes = dict.fromkeys(own.routing_note for _, own in routed if own.routing_note)
    return replace(compare_systems(title, task_id, routed), note=". ".join(notes))


def _others(systems: dict[str, Metrics]) -> dict[str, Metrics]:
    return {name: metrics for name, metrics in systems.items() if name != "model"}


def _baselines(results: Sequence[tuple[Entry[Result], TaskResult]]) -> list[System]:
    """Those with the same figures are one: they were measured on the same rows."""
    found: dict[str, list[System]] = {}
    data, models = (short_names([[getattr(entry.source, key) for entry, _ in results]])[0] for key in ("data", "model"))
    for (entry, own), source, model in zip(results, data, models, strict=True):
        for of_all, metrics in own.baselines.items():
            name = f"{of_all} ({model})" if of_all in BY_MODEL else of_all
            known = found.setdefault(name, [])
            place = next((place for place, system in enumerate(known) if system.metrics == metrics), None)
            if place is None:
                known.append(System("baseline", name, source, metrics, (entry.id,)))
            else:
                known[place] = replace(known[place], entries=(*known[place].entries, entry.id))
    return [
        system if len(systems) > 1 else replace(system, note="") for systems in found.values() for system in systems
    ]
