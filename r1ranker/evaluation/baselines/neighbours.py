"""The nearest training queries, and which LLM was right for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r1ranker.evaluation.baselines.lexical import TfIdf
from r1ranker.evaluation.baselines.scoring import DECIMALS, ScoringBaseline
from r1ranker.tasks.custom import request_of
from r1ranker.tasks.example import RankingExample


class NearestQueries(ScoringBaseline):
    """k-nearest-neighbour router: the mean grade of each LLM over the k training queries with the highest TF-IDF cosine.

    Without grades that is how often it was the positive among them. Queries as near as the k-th share the places that
    are left, so that the order of the training rows decides nothing. An LLM that a row does not offer has grade 0 there.
    """

    name = "nearest queries"

    def __init__(self, training: Sequence[RankingExample], neighbours: int = 10) -> None:
        """`training`: rows of one task, at least one."""
        queries = [request_of(example) for example in training]
        self._tfidf = TfIdf(queries)
        self._vectors = self._tfidf.vectors(queries)
        self._neighbours = min(neighbours, len(training))
        self._grades = [{name: example.grade_of(name) for name in example.candidates} for example in training]

    def scores(self, example: RankingExample) -> list[float]:
        """The mean grade of each candidate over the neighbours of the query."""
        weights = self._weights(request_of(example))
        near = np.flatnonzero(weights)
        return [
            float(sum(weights[row] * self._grades[row].get(name, 0.0) for row in near)) / self._neighbours
            for name in example.candidates
        ]

    def _weights(self, query: str) -> np.ndarray:
        """[training rows], summing to k."""
        cosines = (self._vectors @ self._tfidf.vectors([query]).T).toarray()[:, 0].round(DECIMALS)
        last = np.sort(cosines)[-self._neighbours]
        nearer, equal = cosines > last, cosines == last
        return nearer + equal * (self._neighbours - nearer.sum()) / equal.sum()
