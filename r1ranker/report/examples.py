"""Single queries to read: the best and the worst of each task, round by round, with the model's thoughts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from r1ranker.report.entries import Entry
from r1ranker.report.load import RankedQuery, Result
from r1ranker.report.queries import KEPT, best_and_worst, grade_of, ranks_of_positive

EACH = 3
"""best, and as many worst, of a task and a result"""
LONGEST = 1500
"""characters of a query or a thought"""


@dataclass(frozen=True)
class Round:
    """A row of an example: what happened to a candidate, and the thought that goes with it."""

    when: str
    names: tuple[tuple[str, float], ...]
    """candidates with their grades; above 0 is relevant"""
    thought: str = ""


@dataclass(frozen=True)
class Example:
    """A query as the page shows it."""

    task: str
    entry: str
    """ids"""
    summary: str
    query: str
    history: tuple[str, ...]
    when: str
    """what `when` of its rounds counts"""
    rounds: tuple[Round, ...]
    thoughts: tuple[str, ...]
    """those that belong to no single round"""


def examples_of(results: Sequence[Entry[Result]], task: str, task_id: str) -> list[Example]:
    """The best and the worst of each result on the task."""
    found = []
    for entry in results:
        own = entry.source.tasks.get(task)
        if own is None:
            continue
        best, worst = best_and_worst(own.rankings, EACH)
        for word, places in (("best", best), ("worst", worst)):
            found += [_example(own.rankings[place], entry, task_id, f"{word}, query {place + 1}") for place in places]
    return found


def _example(ranked: RankedQuery, entry: Entry[Result], task_id: str, title: str) -> Example:
    eliminated = bool(ranked.out_in_round)
    rounds = tuple(_eliminations(ranked) if eliminated else _places(ranked))
    thoughts = tuple(map(_shortened, ranked.thoughts))
    last = max(ranked.out_in_round.values()) if ranked.out_in_round else 0
    if eliminated and len(thoughts) == last:  # a thought a round
        numbered = {str(number): thought for number, thought in enumerate(thoughts, 1)}
        rounds = tuple(Round(row.when, row.names, numbered.get(row.when, "")) for row in rounds)
        thoughts = ()
    return Example(
        task_id,
        entry.id,
        f"{title} · {entry.label} · {_rank(ranked)}",
        _shortened(ranked.query),
        ranked.history,
        "out in round" if eliminated else "rank",
        rounds,
        tuple(thought for thought in thoughts if thought),
    )


def _rank(ranked: RankedQuery) -> str:
    ranks = ranks_of_positive(ranked)
    if not ranks:
        return "the positive is not in the ranking"
    place = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    return f"positive at rank {place} of {len(ranked.ranking)}"


def _eliminations(ranked: RankedQuery) -> Iterator[Round]:
    out = ranked.out_in_round or {}
    for number in sorted(set(out.values())):
        names = [name for name in reversed(ranked.ranking) if out.get(name) == number]
        yield Round(str(number), _graded(ranked, names))
    yield Round(KEPT, _graded(ranked, [name for name in ranked.ranking if name not in out]))


def _places(ranked: RankedQuery) -> Iterator[Round]:
    if ranked.unordered > 1:
        yield Round(f"1 to {ranked.unordered}", _graded(ranked, ranked.ranking[: ranked.unordered]))
    for place in range(ranked.unordered if ranked.unordered > 1 else 0, len(ranked.ranking)):
        yield Round(str(place + 1), _graded(ranked, [ranked.ranking[place]]))


def _graded(ranked: RankedQuery, names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    return tuple((name, grade_of(ranked, name)) for name in names)


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]} ... ({len(text) - LONGEST:,} more characters in the result file)"
