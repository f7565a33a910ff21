"""The parts of a reward: the task's, of a direct ranking or of one elimination, and the form's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

CUTOFF = 20
WINDOW_CUTOFF = 10
"""of a window of 20, whose first ten go on to the next"""


def binary_ndcg(ranking: Sequence[int], positive: int, cutoff: int = CUTOFF) -> float:
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
    found = sum(discounted_gains([grades[index] for index in ranking[:cutoff]], gain))
    ideal = sum(discounted_gains(sorted(grades, reverse=True)[:cutoff], gain))
    return found / ideal if ideal > 0 else 0.0


def discounted_gains(grades: Sequence[float], gain: Callable[[float], float]) -> list[float]:
    """gain / log2(rank + 1) of grades in the order of their ranks, which are from 1."""
    return [gain(grade) / math.log2(place + 2) for place, grade in enumerate(grades)]


def known_grades(positive: int, candidates: int, grades: Sequence[float] = ()) -> list[float]:
    """The grades; where there are none, 1 for the positive and 0 for the others."""
    return list(grades) if grades else [float(place == positive) for place in range(candidates)]


def direct_task_score(
    named: Sequence[int],
    positive: int,
    candidates: int,
    grades: Sequence[float] = (),
    gain: Callable[[float], float] = exponential_gain,
) -> float:
    """NDCG@20 of the named candidates' order, plus the share of candidates named, less 1."""
    ndcg = graded_ndcg(named, grades, gain) if grades else binary_ndcg(named, positive)
    return ndcg + len(set(named)) / candidates - 1.0


def rank_biased_overlap(ranking: Sequence[int], ideal: Sequence[int], p: float = 0.9) -> float:
    """Rank-biased overlap of two orders, to the depth of the longer one (Webber et al., 2010, equation 7, scaled so that equal ones have 1).

    (1 - p) / (1 - p^k) times the sum over depths d = 1..k of p^(d - 1) times the share of both first d that they have in common.
    """
    depth = max(len(ranking), len(ideal))
    common = [len(set(ranking[:d]) & set(ideal[:d])) / d for d in range(1, depth + 1)]
    total = sum(p ** (d - 1) for d in range(1, depth + 1))
    return sum(p**d * share for d, share in enumerate(common)) / total if depth else 0.0


def window_task_score(named: Sequence[int], positive: int, candidates: int, grades: Sequence[float] = ()) -> float:
    """NDCG@10 + 0.2 Recall@10 + 0.1 RBO (ReasonRank, arXiv 2508.07050), over 1.3, plus the share of candidates named, less 1.

    RBO is held against the order by grades, of equals the first shown first. Without grades the positive alone has one.
    """
    known = known_grades(positive, candidates, grades)
    relevant = {place for place, grade in enumerate(known) if grade > 0}
    recall = len(relevant & set(named[:WINDOW_CUTOFF])) / min(len(relevant), WINDOW_CUTOFF) if relevant else 0.0
    ideal = sorted(range(candidates), key=lambda place: (-known[place], place))
    ndcg = graded_ndcg(named, known, exponential_gain, WINDOW_CUTOFF)
    whole = ndcg + 0.2 * recall + 0.1 * rank_biased_overlap(named, ideal)
    return whole / 1.3 + len(set(named)) / candidates - 1.0


def first_task_score(named: Sequence[int], positive: int, candidates: int, grades: Sequence[float] = ()) -> float:
    """1 if the first named candidate is the best (of the highest grade, where there are grades), else 0; plus the share of
    candidates named, less 1."""
    best = [place for place, grade in enumerate(grades) if grade == max(grades)] if grades else [positive]
    return float(bool(named) and named[0] in best) + len(set(named)) / candidates - 1.0


def iterative_task_score(
    named: Sequence[int], positive: int, grades: Sequence[float] = (), left: Sequence[float] | None = None
) -> float:
    """-0.5 if the answer names none of the pool; else 1 less what going without the named one costs, from 0 to 1.

    Without grades: 0 for the positive, 1 for another. With grades 1 - (grade - worst) / best of the pool, which is the same
    where only the positive has one. What is lost counts against the best, not against best - worst, which would make the
    smallest difference among candidates that are nearly equal worth as much as one between right and wrong. `left`: the grades of
    those who are still in the pool, where not all are.
    """
    if not named:
        return -0.5
    if not grades:
        return 0.0 if named[0] == positive else 1.0
    pool = grades if left is None else left
    best, worst = max(pool), min(pool)
    return 1.0 - (grades[named[0]] - worst) / best if best > 0 else 1.0


_THOUGHT = re.compile(r"<think>.*?</think>\s*\n\s*<answer>.*?</answer>(?:<\|[^|<>]*\|>)?", re.DOTALL)
_AT_ONCE = re.compile(r"<answer>.*?</answer>(?:<\|[^|<>]*\|>)?", re.DOTALL)


def format_score(completion: str, think: bool) -> float:
    """0 if the whole completion is <think>...</think>, a line break, <answer>...</answer>; else -1. Without thinking: only the latter."""
    return 0.0 if (_THOUGHT if think else _AT_ONCE).fullmatch(completion.strip()) else -1.0


def tags_score(completion: str, think: bool) -> float:
    """-0.25 for each of the tags that does not occur exactly once."""
    tags = ("<think>", "</think>", "<answer>", "</answer>") if think else ("<answer>", "</answer>")
    return -0.25 * sum(completion.count(tag) != 1 for tag in tags)
