"""What a report derives from single rankings: reciprocal ranks, the positive's place, best and worst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from r1ranker.ranking.metrics import expected_metrics
from r1ranker.report.load import RankedQuery

KEPT = "kept"
"""in place of a round: never thrown out"""


def grade_of(ranked: RankedQuery, name: str) -> float:
    """As in the result file; without grades 1 for the positive and 0 for the others."""
    return float(name == ranked.positive) if ranked.grades is None else ranked.grades.get(name, 0.0)


def reciprocal_rank(ranked: RankedQuery) -> float:
    """1 / rank of the first relevant candidate; where the top was not told apart, the mean over its orders."""
    grades = [grade_of(ranked, name) for name in ranked.ranking]
    top = min(max(ranked.unordered, 1), len(grades))
    return expected_metrics([grades[:top], *([grade] for grade in grades[top:])], ())["mrr"]


def random_reciprocal_rank(ranked: RankedQuery) -> float:
    """Its mean over all orders of the candidates."""
    return expected_metrics([[grade_of(ranked, name) for name in ranked.ranking]], ())["mrr"]


def ranks_of_positive(ranked: RankedQuery) -> range:
    """The ranks, from 1, that the positive may have, all equally likely; none where it is not in the ranking."""
    if ranked.positive not in ranked.ranking:
        return range(0)
    rank = ranked.ranking.index(ranked.positive) + 1
    return range(1, ranked.unordered + 1) if rank <= ranked.unordered else range(rank, rank + 1)


def position_against_rank(rankings: Iterable[RankedQuery]) -> dict[tuple[int, int], float]:
    """(position of the positive in the list shown, its rank), both from 1 -> how many queries."""
    counts: dict[tuple[int, int], float] = {}
    for ranked in rankings:
        ranks = ranks_of_positive(ranked)
        if ranked.positive not in ranked.candidates:
            continue
        position = ranked.candidates.index(ranked.positive) + 1
        for rank in ranks:
            counts[position, rank] = counts.get((position, rank), 0.0) + 1 / len(ranks)
    return counts


def count_elimination_rounds(rankings: Iterable[RankedQuery]) -> Counter[int]:
    """Round in which the positive was thrown out -> how many queries; 0 for those that kept it to the end."""
    return Counter(
        ranked.out_in_round.get(ranked.positive, 0) for ranked in rankings if ranked.out_in_round and ranked.positive
    )


def by_pool_size(rankings: Iterable[RankedQuery]) -> dict[int, list[RankedQuery]]:
    """Number of candidates -> rankings, smallest first."""
    groups: dict[int, list[RankedQuery]] = {}
    for ranked in rankings:
        groups.setdefault(len(ranked.ranking), []).append(ranked)
    return dict(sorted(groups.items()))


def mean_rank_by_position(counts: dict[tuple[int, int], float]) -> dict[int, float]:
    """Position in the list shown -> mean rank of the positives that stood there."""
    queries: dict[int, float] = {}
    ranks: dict[int, float] = {}
    for (position, rank), count in counts.items():
        queries[position] = queries.get(position, 0.0) + count
        ranks[position] = ranks.get(position, 0.0) + rank * count
    return {position: ranks[position] / queries[position] for position in sorted(queries)}


def best_and_worst(rankings: Sequence[RankedQuery], each: int) -> tuple[list[int], list[int]]:
    """Places of the `each` best and worst rankings by reciprocal rank, of equals the first; none is in both."""
    order = sorted(range(len(rankings)), key=lambda place: -reciprocal_rank(rankings[place]))
    best = order[:each]
    worst = sorted(order[each:], key=lambda place: reciprocal_rank(rankings[place]))[:each]
    return best, worst
