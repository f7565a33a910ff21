"""The most similar requests of a bank, whose thoughts go before a request that is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from r1ranker.tasks.catalog import TASKS
from r1ranker.tasks.custom import request_of
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.text import sanitise
from r1ranker.thoughts.bank import Thought, form_of
from r1ranker.thoughts.comparers import make_comparer
from r1ranker.thoughts.similarity import ShotContent, Similarity, Within


class ThoughtIndex:
    """Finds thoughts on requests like a given one, of the same task or scenario."""

    def __init__(
        self,
        thoughts: Sequence[Thought],
        similarity: Similarity = "tfidf",
        embedder: str | None = None,
        within: Within = "task",
    ) -> None:
        """`embedder`: model directory, for similarity by embeddings. Raises UserError where it cannot be had."""
        self._within = within
        found: dict[str, list[Thought]] = {}
        for one in thoughts:
            found.setdefault(self._group_of(one.task), []).append(one)
        self._groups = {
            group: (some, make_comparer(similarity, [one.request for one in some], embedder))
            for group, some in found.items()
        }

    def _group_of(self, task: str) -> str:
        scenario = TASKS[task].scenario if task in TASKS else "own"
        return task if self._within == "task" or scenario == "own" else scenario

    def find(self, example: RankingExample, count: int) -> list[Thought]:
        """The `count` thoughts on the most similar requests, the most similar first; of equals the one that is first in the bank.

        A request never finds itself.
        """
        group = self._groups.get(self._group_of(example.task))
        if group is None:
            return []
        thoughts, comparer = group
        request = request_of(example)
        own = form_of(request)
        order = np.argsort(-comparer.compare(request), kind="stable")
        others = [place for place in order if form_of(thoughts[place].request) != own]
        return [thoughts[place] for place in others[:count]]


def show_thoughts(
    example: RankingExample, thoughts: Sequence[Thought], content: ShotContent = "thoughts"
) -> RankingExample:
    """An example with similar requests before it; what they contain cannot pass for tags or control tokens."""
    shown = [(one.request, one.thought if content == "thoughts" else f"the best is {one.answer}") for one in thoughts]
    return replace(example, hints=tuple(f"{sanitise(request)}: {sanitise(text)}" for request, text in shown))
