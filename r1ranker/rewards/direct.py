"""The task reward of direct ranking: NDCG@20 of the ranking, and the share of candidates it names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

CUTOFF = 20


def ndcg_of_positive(ranking: Sequence[int], positive: int, cutoff: int = CUTOFF) -> float:
    """NDCG@cutoff with one relevant candidate: 1 / log2(rank + 1), rank from 1; 0 where it is absent or below the cutoff."""
    top = list(ranking[:cutoff])
    return 1.0 / math.log2(top.index(positive) + 2) if positive in top else 0.0


def exponential_gain(grade: float) -> float:
    """2^grade - 1 (Burges et al., 2005): what a relevant candidate adds."""
    return float(2.0**grade - 1.0)


def linear_gain(grade: float) -> float:
    """The grade itself (Jarvelin and Kekalainen, 2002)."""
    return grade


def graded_ndcg(
    ranking: Sequence[int], grades: Sequence[float], gain: Callable[[float], float], cutoff: int = CUTOFF
) -> float:
    """NDCG@cutoff: sum of gain / log2(rank + 1) over the ranking, divided by that of the ideal order of all candidates."""
    found = sum(gain(grades[index]) / math.log2(place + 2) for place, index in enumerate(ranking[:cutoff]))
    best = sorted(grades, reverse=True)[:cutoff]
    ideal = sum(gain(grade) / math.log2(place + 2) for place, grade in enumerate(best))
    return found / ideal if ideal > 0 else 0.0


def direct_task_score(
    named: Sequence[int],
    positive: int,
    candidates: int,
    grades: Sequence[float] = (),
    gain: Callable[[float], float] = exponential_gain,
) -> float:
    """NDCG@20 of the named candidates' order, plus the share of candidates named, less 1."""
    ndcg = graded_ndcg(named, grades, gain) if grades else ndcg_of_positive(named, positive)
    return ndcg + len(set(named)) / candidates - 1.0
