"""What baselines have in common: a score a candidate, and from the scores the metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from r1ranker.evaluation.metrics import expected_metrics
from r1ranker.tasks.example import RankingExample

DECIMALS = 9
"""scores are told apart by so many decimals: sums of the same terms in another order are no different scores"""


class ScoredOrder(ABC):
    """Candidates by a score. Equal scores cannot be told apart, so metrics are the exact expectation over their orders."""

    name: str
    """as tables call it"""

    @abstractmethod
    def scores(self, example: RankingExample) -> list[float]:
        """A score for each candidate, in the order of `example.candidates`; higher is better, -inf comes last."""

    def __call__(self, example: RankingExample, cutoffs: Sequence[int]) -> dict[str, float]:
        """Metrics of one row: mrr, hit@k and ndcg@k."""
        blocks: dict[float, list[float]] = {}
        for name, score in zip(example.candidates, self.scores(example), strict=True):
            blocks.setdefault(round(score, DECIMALS), []).append(example.grade_of(name))
        return expected_metrics([blocks[score] for score in sorted(blocks, reverse=True)], cutoffs)
