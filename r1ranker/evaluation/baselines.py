"""Orders that need no model, on the same rows: random, as given, and by how often a label was right in training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from r1ranker.evaluation.metrics import metrics_of_rank, rank_of
from r1ranker.tasks.example import RankingExample

Metrics = dict[str, float]


def random_order(example: RankingExample, cutoffs: Sequence[int]) -> Metrics:
    """The exact expectation over all orders: the mean over the positive's ranks, which are equally likely."""
    ranks = [metrics_of_rank(rank, cutoffs) for rank in range(1, len(example.candidates) + 1)]
    return {name: sum(metrics[name] for metrics in ranks) / len(ranks) for name in ranks[0]}


def as_given(example: RankingExample, cutoffs: Sequence[int]) -> Metrics:
    """Candidates in the order in which they are listed."""
    return metrics_of_rank(rank_of(example.candidates, example.positive), cutoffs)


class MostFrequentLabel:
    """Candidates by how often they were the positive of a training row of the same task.

    Candidates that were equally often right cannot be told apart: the metrics are the exact expectation over their
    orders, so that neither the order shown nor the alphabet decides.
    """

    def __init__(self, training: Sequence[RankingExample]) -> None:
        self._counts: dict[str, Counter[str]] = {}
        for example in training:
            self._counts.setdefault(example.task, Counter())[example.positive] += 1

    def __call__(self, example: RankingExample, cutoffs: Sequence[int]) -> Metrics:
        """Metrics of one row."""
        counts = self._counts.get(example.task, Counter())
        own = counts[example.positive]
        better = sum(counts[name] > own for name in example.candidates)
        equal = sum(counts[name] == own for name in example.candidates)
        ranks = [metrics_of_rank(better + place, cutoffs) for place in range(1, equal + 1)]
        return {name: sum(metrics[name] for metrics in ranks) / equal for name in ranks[0]}
