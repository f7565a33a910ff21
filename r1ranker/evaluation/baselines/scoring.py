"""What baselines have in common: a score a candidate, and from the scores the metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from r1ranker.ranking.metrics import expected_metrics
from r1ranker.tasks.example import RankingExample

DECIMALS = 9
"""scores are told apart by so many decimals: sums of the same terms in another order are no different scores"""
OF_MODEL, OF_BASE, OF_PRETRAINED = (
    "query likelihood",
    "query likelihood before training",
    "query likelihood, pretrained model",
)
"""names of query likelihood: by the model that is evaluated, by the one that its training began with, and by an experiment's model"""
BY_MODEL = (OF_MODEL, OF_BASE)
"""baselines that are another one for another model"""

Blocks = Sequence[Sequence[str]]
"""candidates, best first; those of equal score together"""


class ScoringBaseline(ABC):
    """Candidates by a score. Equal scores cannot be told apart, so metrics are the exact expectation over their orders."""

    name: str
    """as tables call it"""
    is_slow = False
    """whether a model is computed, so that progress is shown"""

    def release(self) -> None:  # noqa: B027, most hold nothing
        """Give back the memory of a model, if there is one."""

    @abstractmethod
    def scores(self, example: RankingExample) -> list[float]:
        """A score for each candidate, in the order of `example.candidates`; higher is better, -inf comes last."""

    def rank_with_ties(self, example: RankingExample) -> list[list[str]]:
        """The candidates, best first; those of equal score together."""
        blocks: dict[float, list[str]] = {}
        for name, score in zip(example.candidates, self.scores(example), strict=True):
            blocks.setdefault(round(score, DECIMALS), []).append(name)
        return [blocks[score] for score in sorted(blocks, reverse=True)]

    def __call__(self, example: RankingExample, cutoffs: Sequence[int]) -> dict[str, float]:
        """Metrics of one row: mrr, hit@k and ndcg@k."""
        return metrics_of_blocks(example, self.rank_with_ties(example), cutoffs)


def metrics_of_blocks(example: RankingExample, blocks: Blocks, cutoffs: Sequence[int]) -> dict[str, float]:
    """mrr, hit@k and ndcg@k, as the expectation over the orders of candidates that stand together."""
    return expected_metrics([[example.grade_of(name) for name in block] for block in blocks], cutoffs)
