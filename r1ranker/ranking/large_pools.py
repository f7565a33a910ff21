"""Ranking more candidates than one prompt takes: part by part, each part as a pool of its own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from r1ranker.ranking.conversation import Conversation, Question, RankingResult, Reply, together
from r1ranker.ranking.settings import WindowSettings
from r1ranker.tasks.example import RankingExample

Inside = Callable[[RankingExample], Conversation]
"""the conversation that ranks a part"""


def rank_by_windows(example: RankingExample, settings: WindowSettings, inside: Inside) -> Conversation:
    """Windows from the back to the front, each overlapping the one before (Sun et al., 'Is ChatGPT good at search?', 2023)."""
    result = RankingResult(ranking=example.candidates)
    for _ in range(settings.passes):
        for start in window_starts(len(example.candidates), settings.size, settings.step):
            end = start + settings.size
            part = yield from inside(example.with_pool(result.ranking[start:end]))
            result.ranking = (*result.ranking[:start], *part.ranking, *result.ranking[end:])
            result.add_costs([part])
            if len(part.ranking) == len(example.candidates):
                result.scores = part.scores  # of one pool, so they can be compared
    return result


def window_starts(count: int, size: int, step: int) -> list[int]:
    """Where the windows over `count` candidates begin, last one first; the first one begins at 0."""
    starts = list(range(max(0, count - size), 0, -step))
    return [*starts, 0]


def rank_by_tournament(example: RankingExample, size: int, top_k: int, inside: Inside) -> Conversation:
    """Groups whose winners meet in groups again, up to one; then the next place is played for where the winner came from.

    Only the first `top_k` places (0: all) are played for. The others follow in the order shown. With n candidates in groups of g
    that takes about n/g calls at first, side by side, and log_g(n) for each further place.
    """
    result = RankingResult()
    wanted = min(top_k or len(example.candidates), len(example.candidates))
    leaves = [example.candidates[start : start + size] for start in range(0, len(example.candidates), size)]
    levels: list[list[tuple[str, ...]]] = [(yield from _play(example, leaves, inside, result))]
    while len(levels[-1]) > 1:
        levels.append((yield from _play(example, _meet(levels[-1], size), inside, result)))
    places: list[str] = []
    while True:
        winner = levels[-1][0][0]
        places.append(winner)
        if len(places) == wanted:
            break
        yield from _take_out(example, levels, winner, size, inside, result)
    first = set(places)
    result.ranking = (*places, *(name for name in example.candidates if name not in first))
    return result


def _meet(groups: Sequence[Sequence[str]], size: int) -> list[tuple[str, ...]]:
    """The winners of each `size` groups that stand together; of groups that are out there is none."""
    return [tuple(group[0] for group in groups[start : start + size] if group) for start in range(0, len(groups), size)]


def _play(
    example: RankingExample, groups: Sequence[tuple[str, ...]], inside: Inside, result: RankingResult
) -> Generator[Sequence[Question], Sequence[Sequence[Reply]], list[tuple[str, ...]]]:
    """Each group in its order, best first."""
    played = yield from together([inside(example.with_pool(group)) for group in groups if len(group) > 1])
    result.add_costs(played)
    rankings = iter([part.ranking for part in played])
    return [next(rankings) if len(group) > 1 else group for group in groups]


def _take_out(
    example: RankingExample,
    levels: list[list[tuple[str, ...]]],
    winner: str,
    size: int,
    inside: Inside,
    result: RankingResult,
) -> Generator[Sequence[Question], Sequence[Sequence[Reply]], None]:
    """Without `winner`: its first group moves up, and the groups that it won above play again with the next of theirs."""
    place = next(number for number, group in enumerate(levels[0]) if group and group[0] == winner)
    levels[0][place] = levels[0][place][1:]
    for height in range(1, len(levels)):
        place //= size
        below = levels[height - 1][place * size : (place + 1) * size]
        (levels[height][place],) = yield from _play(example, _meet(below, size), inside, result)
