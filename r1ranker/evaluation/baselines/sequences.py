"""What the users of training rows took, each user once: rows carry no user, so those that overlap are put together again."""

from __future__ import annotations

import html
from collections.abc import Sequence

from r1ranker.tasks.answers import normalise
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.text import one_line

Items = tuple[str, ...]

LEAST_IN_COMMON = 3
"""items in a row that make two rows one user's; of MovieLens and Amazon users no two were joined by it, some were by two items"""


def item_of(title: str) -> str:
    """What tells an item apart: its title as answers are compared, after what the reader of raw sources does to it."""
    return normalise(one_line(html.unescape(title)))


def items_of(example: RankingExample) -> Items:
    """The items that the user of a training row took, each once, in order: its history and its positive."""
    return tuple(dict.fromkeys(map(item_of, (*example.history, example.positive))))


def reconstruct_sequences(training: Sequence[RankingExample]) -> list[Items]:
    """The users' sequences, as far as the rows show them.

    Where a row ends as another one begins, in LEAST_IN_COMMON items or more, the two are joined, the longest overlaps
    first; a row that lies within another one, or stands there twice, is left out. A joined sequence holds no item twice.
    Rows of one user that have less in common stay apart.
    """
    rows = list(dict.fromkeys(map(items_of, training)))
    overlaps, within = _overlaps(rows)
    joined = {row: items for row, items in enumerate(rows) if row not in within}  # by its first row
    first_of, last_of = {row: row for row in joined}, {row: row for row in joined}
    for common, left, right in overlaps:
        if left not in first_of or right not in joined or first_of[left] == right:
            continue  # joined with others already
        rest = joined[right][common:]
        if set(rest).isdisjoint(joined[first_of[left]]):
            first, last = first_of.pop(left), last_of.pop(right)
            joined[first] += rest
            del joined[right]
            first_of[last], last_of[first] = first, last
    return list(joined.values())


def _overlaps(rows: Sequence[Items]) -> tuple[list[tuple[int, int, int]], set[int]]:
    """(items in common, row, row that goes on from it), the most first; and the rows that lie within another one."""
    heads: dict[Items, list[int]] = {}
    for row, items in enumerate(rows):
        if len(items) >= LEAST_IN_COMMON:
            heads.setdefault(items[:LEAST_IN_COMMON], []).append(row)
    overlaps, within = [], set()
    for row, items in enumerate(rows):
        for start in range(len(items) - LEAST_IN_COMMON + 1):
            for other in heads.get(items[start : start + LEAST_IN_COMMON], ()):
                common = len(items) - start
                if other == row or items[start:][: len(rows[other])] != rows[other][:common]:
                    continue
                if len(rows[other]) <= common:
                    within.add(other)
                elif start:
                    overlaps.append((common, row, other))
    overlaps = [one for one in overlaps if not within.intersection(one[1:])]
    return sorted(overlaps, key=lambda one: (-one[0], *one[1:])), within
