"""The task reward of direct ranking: NDCG@20 of the ranking, and the share of candidates it names."""

from __future__ import annotations

import math
from collections.abc import Sequence

CUTOFF = 20


def ndcg_of_positive(ranking: Sequence[int], positive: int, cutoff: int = CUTOFF) -> float:
    """NDCG@cutoff with one relevant candidate: 1 / log2(rank + 1), rank from 1; 0 where it is absent or below the cutoff."""
    top = list(ranking[:cutoff])
    return 1.0 / math.log2(top.index(positive) + 2) if positive in top else 0.0


def direct_task_score(named: Sequence[int], positive: int, candidates: int) -> float:
    """NDCG@20 of the named candidates' order, plus the share of candidates named, less 1."""
    return ndcg_of_positive(named, positive) + len(set(named)) / candidates - 1.0
