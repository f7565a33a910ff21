"""What the columns of TREC files hold, which have no header: a file whose columns stand in another order is told by its ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from r1ranker.data.files.text_rows import parse_finite, text_lines
from r1ranker.errors import UserError

PAIRS = "lines of id, tab, text"
RUN = "lines of query Q0 document rank score tag, without a header,"
QRELS = "lines of query 0 document grade, without a header,"


@dataclass(frozen=True)
class IdColumn:
    """The ids of queries or of documents in a file."""

    path: str
    layout: str
    """of its lines: PAIRS, RUN or QRELS"""
    place: int
    """of the column, from 0"""
    ids: Collection[str]

    def fields(self) -> Iterator[list[str]]:
        """The columns of each line."""
        for _, line in trec_lines(self.path):
            yield line.split("\t") if self.layout == PAIRS else line.split()


def trec_lines(path: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of the lines that are not blank."""
    return ((number, line) for number, line in text_lines(path) if line.strip())


def check_common(what: str, checked: IdColumn, by: IdColumn) -> None:
    """Raise UserError unless two files have an id in common; it names the column that holds the other file's ids instead."""
    if any(name in checked.ids for name in by.ids):
        return
    for column, other in ((checked, by), (by, checked)):
        if column.path.removesuffix(".gz").endswith((".json", ".jsonl")):
            continue
        lines, held = 0, Counter[int]()
        for fields in column.fields():
            lines += 1
            held.update(place for place, field in enumerate(fields) if field.strip() in other.ids)
        place, count = max(held.items(), key=lambda item: item[1], default=(0, 0))
        if 2 * count > lines:
            raise UserError(
                f"{column.path}: the {what} ids of {other.path} stand in column {place + 1}; {column.layout} are wanted"
            )
    raise UserError(
        f"{checked.path}: column {checked.place + 1} has no {what} of {by.path}, such as {min(by.ids)[:40]!r}; "
        f"{checked.layout} are wanted"
    )


def parse_number(text: str, path: str, number: int, what: str, layout: str) -> float:
    """The number that a column of a line holds; raises UserError where it is none."""
    try:
        return parse_finite(text, f"{path}: line {number}: {what}")
    except UserError as error:
        raise UserError(f"{error}; {layout} are wanted") from None


def check_scores(path: str, queries: Mapping[str, Mapping[str, tuple[float, int]]]) -> None:
    """Raise UserError where the (score, rank) of a run's documents have changed places: the scores count 1, 2, ... alone."""
    several = [sorted(documents.values()) for documents in queries.values() if len(documents) > 1]
    if several and all(map(_changed_places, several)):
        raise UserError(f"{path}: the scores of each query count 1, 2, ..., as ranks do; {RUN} are wanted")


def _changed_places(pairs: list[tuple[float, int]]) -> bool:
    """Whether scores (ascending) count up, and the ranks fall with them without counting down."""
    scores, ranks = [score for score, _ in pairs], [rank for _, rank in pairs]
    falls = ranks == sorted(ranks, reverse=True) and ranks[0] > ranks[-1]
    return _is_count(scores) and falls and not _is_count(ranks[::-1])


def _is_count(numbers: Sequence[float]) -> bool:
    return numbers[0] in (0, 1) and all(after - before == 1 for before, after in pairwise(numbers))
