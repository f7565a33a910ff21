"""The most similar requests of a bank, whose thoughts go before a request that is asked."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from r1ranker.tasks.custom import request_of
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.text import sanitise
from r1ranker.thoughts.bank import Thought, form_of
from r1ranker.thoughts.similarity import Similarity


class ThoughtIndex:
    """Finds thoughts on requests like a given one, of the same task."""

    def __init__(self, thoughts: Sequence[Thought], similarity: Similarity = "tfidf") -> None:
        self._similarity = similarity
        by_task: dict[str, list[Thought]] = {}
        for one in thoughts:
            by_task.setdefault(one.task, []).append(one)
        self._of_task = {task: (some, self._index(some)) for task, some in by_task.items()}

    def _index(self, thoughts: Sequence[Thought]) -> Any:
        requests = [one.request for one in thoughts]
        if self._similarity == "random":
            return len(requests)
        if self._similarity == "bm25":
            import bm25s

            index = bm25s.BM25(method="lucene", dtype="float64")
            index.index(bm25s.tokenize(requests, return_ids=False, show_progress=False), show_progress=False)
            return index
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer()
        return vectorizer, vectorizer.fit_transform(requests)

    def find(self, example: RankingExample, count: int) -> list[Thought]:
        """The `count` thoughts on the most similar requests, the most similar first; of equals the one that is first in the bank.

        A request never finds itself.
        """
        if example.task not in self._of_task:
            return []
        thoughts, index = self._of_task[example.task]
        request = request_of(example)
        scores = self._scores(index, request)
        own = form_of(request)
        order = [place for place in np.argsort(-scores, kind="stable") if form_of(thoughts[place].request) != own]
        return [thoughts[place] for place in order[:count]]

    def _scores(self, index: Any, request: str) -> np.ndarray:
        if self._similarity == "random":
            seed = zlib.crc32(request.encode("utf-8", "surrogatepass"))
            return np.random.default_rng(seed).random(index)
        if self._similarity == "bm25":
            import bm25s

            (words,) = bm25s.tokenize([request], return_ids=False, show_progress=False)
            known = [word for word in words if word in index.vocab_dict]
            count = index.scores["num_docs"]
            return np.asarray(index.get_scores(known), dtype=float) if known else np.zeros(count)
        vectorizer, matrix = index
        return np.asarray((matrix @ vectorizer.transform([request]).T).toarray()[:, 0], dtype=float)


def show_thoughts(example: RankingExample, thoughts: Sequence[Thought]) -> RankingExample:
    """An example with thoughts before it; what they contain cannot pass for tags or control tokens."""
    hints = tuple(f"{sanitise(one.request)}: {sanitise(one.thought)}" for one in thoughts)
    return replace(example, hints=hints)
