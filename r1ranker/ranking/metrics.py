"""Measures of a ranking, and bootstrap intervals of their means."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TypedDict

import numpy as np

from r1ranker.rewards.parts import exponential_gain
from r1ranker.tasks.example import RankingExample


def expected_metrics(blocks: Sequence[Sequence[float]], cutoffs: Sequence[int]) -> dict[str, float]:
    """mrr, hit@k and ndcg@k of one query, from the grades of its candidates in the order of the ranking.

    A block holds candidates that the ranking cannot tell apart: the metrics are the exact expectation over their orders.
    mrr: 1 / rank of the first candidate of a grade above 0. hit@k: 1 if one is among the first k. ndcg@k: gains
    2^grade - 1, discounts log2(rank + 1), over the ideal order of the same candidates. With a single relevant candidate
    that is 1 / rank, rank <= k and 1 / log2(rank + 1).
    """
    gains: list[float] = []
    first: dict[int, float] = {}  # rank of the first relevant candidate -> its probability
    for block in blocks:
        relevant, size = sum(grade > 0 for grade in block), len(block)
        if relevant and not first:
            for place in range(1, size - relevant + 2):
                chance = math.comb(size - place, relevant - 1) / math.comb(size, relevant)
                first[len(gains) + place] = chance
        gains += [sum(map(exponential_gain, block)) / size] * size
    ideal = sorted((exponential_gain(grade) for block in blocks for grade in block), reverse=True)
    values = {"mrr": sum(chance / rank for rank, chance in first.items())}
    for k in cutoffs:
        values[f"hit@{k}"] = sum(chance for rank, chance in first.items() if rank <= k)
    for k in cutoffs:
        best = _discounted(ideal[:k])
        values[f"ndcg@{k}"] = _discounted(gains[:k]) / best if best > 0 else 0.0
    return values


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def metrics_of_ranking(ranking: Sequence[str], example: RankingExample, cutoffs: Sequence[int]) -> dict[str, float]:
    """The same of a ranking of an example's candidates."""
    return expected_metrics([[example.grade_of(name)] for name in ranking], cutoffs)


Subjects = Sequence[Hashable]
"""of each query whom or what it is about; those of one subject are not independent"""


def sums_by_subject(values: Sequence[float], subjects: Subjects | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Each subject's sum and number of values, in float64; without `subjects` every value is one's own."""
    codes: dict[Hashable, int] = {}
    places = [codes.setdefault(one, len(codes)) for one in (range(len(values)) if subjects is None else subjects)]
    return np.bincount(places, weights=np.asarray(values, dtype=np.float64)), np.bincount(places)


def bootstrap_interval(
    values: Sequence[float],
    seed: int = 0,
    level: float = 0.95,
    draws: int = 2000,
    subjects: Subjects | None = None,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean over queries (Efron, 1979), which are drawn subject by subject, all of a
    subject's at once (the cluster bootstrap of Field and Welsh, 2007).

    None for fewer than two subjects: what varies between subjects cannot be told from one.
    """
    sums, counts = sums_by_subject(values, subjects)
    if len(sums) < 2:
        return None
    chosen = np.random.default_rng(seed).integers(0, len(sums), size=(draws, len(sums)))
    means = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class Interval(TypedDict):
    """A mean and the ends of its interval, None where there is none."""

    mean: float
    low: float | None
    high: float | None


def summarise(
    per_query: Sequence[dict[str, float]], seed: int = 0, subjects: Subjects | None = None
) -> dict[str, Interval]:
    """Mean and 95% interval of each metric over queries."""
    names = list(per_query[0]) if per_query else []
    return {name: mean_with_interval([query[name] for query in per_query], seed, subjects) for name in names}


def mean_with_interval(values: Sequence[float], seed: int = 0, subjects: Subjects | None = None) -> Interval:
    """Mean over queries, at least one, and the ends of its 95% interval."""
    low, high = bootstrap_interval(values, seed, subjects=subjects) or (None, None)
    return {"mean": float(np.mean(values)), "low": low, "high": high}
