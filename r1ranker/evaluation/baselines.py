"""Orders that need no model, on the same rows: random, as given, and by how often a label was right in training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from r1ranker.evaluation.metrics import expected_metrics, metrics_of_ranking
from r1ranker.tasks.example import RankingExample

Metrics = dict[str, float]


def random_order(example: RankingExample, cutoffs: Sequence[int]) -> Metrics:
    """The exact expectation over all orders."""
    return expected_metrics([[example.grade_of(name) for name in example.candidates]], cutoffs)


def as_given(example: RankingExample, cutoffs: Sequence[int]) -> Metrics:
    """Candidates in the order in which they are listed."""
    return metrics_of_ranking(example.candidates, example, cutoffs)


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
        blocks: dict[int, list[float]] = {}
        for name in example.candidates:
            blocks.setdefault(counts[name], []).append(example.grade_of(name))
        return expected_metrics([blocks[count] for count in sorted(blocks, reverse=True)], cutoffs)
