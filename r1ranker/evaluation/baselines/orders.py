"""Orders that need no language model, on the same rows: random, as given, by training labels, and those that suit a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from r1ranker.errors import UserError, note
from r1ranker.evaluation.baselines import sasrec
from r1ranker.evaluation.baselines.collaborative import BPR, CoOccurrence, Popularity
from r1ranker.evaluation.baselines.lexical import BM25, TfIdfCosine
from r1ranker.evaluation.baselines.neighbours import NearestQueries
from r1ranker.evaluation.baselines.scoring import ScoringBaseline
from r1ranker.evaluation.baselines.sequences import reconstruct_sequences
from r1ranker.ranking.metrics import expected_metrics, metrics_of_ranking
from r1ranker.tasks.catalog import get_task
from r1ranker.tasks.example import RankingExample, count_positives

Metrics = dict[str, float]


def random_order_metrics(example: RankingExample, cutoffs: Sequence[int]) -> Metrics:
    """The exact expectation over all orders."""
    return expected_metrics([[example.grade_of(name) for name in example.candidates]], cutoffs)


def given_order_metrics(example: RankingExample, cutoffs: Sequence[int]) -> Metrics:
    """Candidates in the order in which they are listed."""
    return metrics_of_ranking(example.candidates, example, cutoffs)


class MostFrequentLabel(ScoringBaseline):
    """Candidates by how often they were the positive of a training row of the same task."""

    name = "most frequent label"

    def __init__(self, training: Sequence[RankingExample]) -> None:
        self._counts = count_positives(training)

    def scores(self, example: RankingExample) -> list[float]:
        """How often each candidate was the positive."""
        return [float(self._counts[example.task, name]) for name in example.candidates]


def fit_baselines(training: Sequence[RankingExample], task: str) -> list[ScoringBaseline]:
    """The baselines that suit a task, fitted on its rows among `training` (of the direct configuration).

    BM25 and TF-IDF for every task; the nearest queries for routing; popularity, co-occurrence, BPR and, where its library
    is installed, SASRec where rows have histories. Raises UserError for a task that there is not, and where there is no
    row of it.
    """
    rows = [example for example in training if example.task == task]
    if not rows:
        raise UserError(f"{task}: no training rows; at least one is wanted to fit baselines on")
    fitted: list[ScoringBaseline] = [BM25(), TfIdfCosine(rows)]
    if get_task(task).scenario == "routing":
        fitted.append(NearestQueries([replace(one, grades=()) for one in rows]))  # what they count is positives
    with_history = [example for example in rows if example.history]
    if with_history:
        sequences = reconstruct_sequences(with_history)
        fitted += [Popularity.of_sequences(sequences), CoOccurrence(sequences), BPR(sequences)]
        if sasrec.is_installed():
            fitted.append(sasrec.SASRec(sequences, max(len(example.history) for example in with_history)))
        else:
            note("SASRec is left out: cornac is not installed (pip install 'r1ranker[baselines]')")
    return fitted
