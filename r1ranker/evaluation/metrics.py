"""Measures of a ranking with one relevant candidate, and bootstrap intervals of their means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def rank_of(ranking: Sequence[str], positive: str) -> int:
    """Place of the positive, from 1; 0 where the ranking lacks it."""
    return list(ranking).index(positive) + 1 if positive in ranking else 0


def reciprocal_rank(rank: int) -> float:
    """1 / rank; 0 for an absent positive. Its mean is the MRR."""
    return 1.0 / rank if rank else 0.0


def hit_at(rank: int, k: int) -> float:
    """1 if the positive is among the first k."""
    return float(0 < rank <= k)


def ndcg_at(rank: int, k: int) -> float:
    """1 / log2(rank + 1) within the first k, else 0: NDCG with a single relevant candidate."""
    return 1.0 / math.log2(rank + 1) if 0 < rank <= k else 0.0


def metrics_of_rank(rank: int, cutoffs: Sequence[int]) -> dict[str, float]:
    """mrr, hit@k and ndcg@k of one query."""
    values = {"mrr": reciprocal_rank(rank)}
    for k in cutoffs:
        values[f"hit@{k}"] = hit_at(rank, k)
    for k in cutoffs:
        values[f"ndcg@{k}"] = ndcg_at(rank, k)
    return values


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, level: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over queries (Efron, 1979)."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0:
        return (math.nan, math.nan)
    chosen = np.random.default_rng(seed).integers(0, len(array), size=(draws, len(array)))
    low, high = np.quantile(array[chosen].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(per_query: Sequence[dict[str, float]], seed: int = 0) -> dict[str, dict[str, float]]:
    """Mean and 95% interval of each metric over queries."""
    names = list(per_query[0]) if per_query else []
    summary = {}
    for name in names:
        values = [query[name] for query in per_query]
        low, high = bootstrap_interval(values, seed)
        summary[name] = {"mean": float(np.mean(values)), "low": low, "high": high}
    return summary
