"""The nine tasks of Ranking-bench, each with its own words; registering one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1ranker.errors import UserError, suggest

Scenario = Literal["recommendation", "routing", "passage", "own"]


@dataclass(frozen=True)
class Task:
    """A ranking task: what is ranked, in which words, and at which ranks it is measured."""

    name: str
    scenario: Scenario
    noun: str
    """one candidate: 'film'"""
    plural: str
    goal: str
    """what puts a candidate ahead: 'the film I will watch next'; completes 'by how likely it is ...' or 'by ...'"""
    request: str
    """how the request is introduced: 'Films I have watched, oldest first:'; of scenario `own` a template of all of it"""
    cutoffs: tuple[int, ...]
    """the k of hit@k and ndcg@k"""


_REC, _SMALL = (5, 10, 20), (3, 5, 10)


def _recommendation(name: str, noun: str, plural: str, done: str, next_: str) -> Task:
    return Task(
        name,
        "recommendation",
        noun,
        plural,
        f"how likely I am to {next_} it next",
        f"{plural.capitalize()} I have {done}, oldest first:",
        _REC,
    )


def _routing(name: str, goal: str) -> Task:
    return Task(name, "routing", "LLM", "LLMs", goal, "A query has to be answered by one LLM:", _SMALL)


def _passage(name: str) -> Task:
    return Task(name, "passage", "passage", "passages", "how well it answers the query", "A search query:", _SMALL)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _recommendation("Rec-Movie", "film", "films", "watched", "watch"),
        _recommendation("Rec-Music", "album", "albums", "bought", "buy"),
        _recommendation("Rec-Game", "game", "games", "bought", "buy"),
        _routing("Router-Performance", "the quality of its answer to this query, whatever it costs"),
        _routing("Router-Balance", "the quality of its answer to this query and its price, both alike"),
        _routing("Router-Cost", "its price first and the quality of its answer to this query second"),
        _passage("Passage-5"),
        _passage("Passage-7"),
        _passage("Passage-9"),
    )
}
TASK_NAMES: tuple[str, ...] = tuple(TASKS)
HUB_ID = "ulab-ai/Ranking-bench"
"""the data set that the nine tasks are from"""


def get_task(name: str) -> Task:
    """The task of that name; raises UserError naming those there are."""
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}{suggest(name, TASKS)}; one of {', '.join(TASKS)} is wanted")
    return TASKS[name]


def register_task(task: Task) -> None:
    """Make a task of one's own known by its name; raises UserError where the name is taken."""
    if task.name in TASKS:
        raise UserError(f"task {task.name!r} is already registered")
    TASKS[task.name] = task
