"""One's own data: JSON lines, CSV or parquet with a query or history, candidates, and a positive or graded labels, a row each."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from r1ranker.data.files.tally import Tally
from r1ranker.data.sources.source_example import SourceExample, Split
from r1ranker.data.sources.user_rows import read_user_rows
from r1ranker.errors import UserError
from r1ranker.tasks.catalog import TASKS
from r1ranker.tasks.custom import default_task, ensure_registered, render_request, template_variables
from r1ranker.tasks.example import HIGHEST_GRADE, RankingExample
from r1ranker.tasks.text import sanitise

_EXACT = 2**53
"""up to which a float holds every whole number"""
OWN = "Own"
"""name of the task of rows that name none"""


def read_user_file(path: str, task: str | None, shuffle: bool, seed: int, tally: Tally) -> Iterator[SourceExample]:
    """The examples of a file; rows without a column `task` are of `task`.

    Each row has `query` (a text) or `history` (a list of texts), `candidates` (a list of names), and `positive` (one of
    them) or `labels` (a number from 0 for each). Optional: `task`, `texts` (a text for each candidate), `id` (whom or
    what a row is about), `split` (train or test). In CSV a list is JSON, or parts between '|'.
    Raises UserError naming file and row.
    """
    found: set[str] = set()
    for number, (where, row) in enumerate(read_user_rows(path)):
        name, query, history = _request(row, task, where)
        found.add(name)
        counts = tally.for_task(name)
        counts.read["rows"] += 1
        example = _example(row, name, query, history, where)
        if example is None:
            counts.left_out["rows whose labels are all 0"] += 1
            continue
        if len(example.candidates) < 2:
            counts.left_out["rows with fewer than two candidates"] += 1
            continue
        best = max(example.grades, default=0.0)
        counts.noted["rows whose highest label is shared"] += example.grades.count(best) > 1
        if shuffle:
            pool = list(example.candidates)
            random.Random(f"{seed} {number}").shuffle(pool)
            example = example.with_pool(tuple(pool))
        yield SourceExample(_key(row, query, history, where), example, _split(row, where))
    if task is not None and task not in found:
        raise UserError(
            f"{path}: no row is of the task {task!r} that was named; its rows name {', '.join(sorted(found))}"
        )


def read_requests(path: str, task: str | None) -> Iterator[tuple[str | int | None, RankingExample]]:
    """(id or None, example without a positive) of each row of a file, or of JSON lines on stdin where `path` is `-`.

    Rows are those of `read_user_file`; positive, labels and split are not read. Raises UserError naming file and row.
    """
    for where, row in read_user_rows(path, stdin=True):
        name, query, history = _request(row, task, where)
        candidates, texts = _texts(row, "candidates", where), _texts(row, "texts", where)
        example = RankingExample(name, candidates, query=query, history=history, texts=texts)
        example.validate(where)
        yield _id(row, where), example


def _request(row: Mapping[str, Any], task: str | None, where: str) -> tuple[str, str, tuple[str, ...]]:
    """(task, query, history) of a row, one of the last two empty."""
    name = _text(row, "task", where) or task or OWN
    history = _texts(row, "history", where)
    query = _text(row, "query", where)
    if not all(map(sanitise, history)):
        raise UserError(f"{where}: history holds a blank text")
    if bool(history) == bool(sanitise(query)):
        raise UserError(
            f"{where}: found {'both' if history else 'neither'} of query and history; one of them is wanted"
        )
    _check_words(name, query, history, where)
    return name, query, history


def _check_words(name: str, query: str, history: tuple[str, ...], where: str) -> None:
    """Have the task known, and see that its words say what the row holds."""
    if name not in TASKS:
        ensure_registered(default_task(name, bool(history), where))
    task = TASKS[name]
    kind = "history" if history else "query"
    if task.scenario == "own":
        fitting = kind in template_variables(task.request)
        render_request(task.request, query, history, where)
    else:
        fitting = kind == ("history" if task.scenario == "recommendation" else "query")
    if not fitting:
        other = "query" if history else "history"
        raise UserError(f"{where}: found a {kind}, but the words of the task {name} are of a {other}")


def _key(row: Mapping[str, Any], query: str, history: tuple[str, ...], where: str) -> str:
    value = _id(row, where)
    return (query or "\n".join(history)) if value is None else str(value)


def _id(row: Mapping[str, Any], where: str) -> str | int | None:
    value = row.get("id")
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)  # pandas makes whole numbers floats where one is missing
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{where}: id: found {value!r}; a text or a whole number is wanted")
    return value


def _split(row: Mapping[str, Any], where: str) -> Split | None:
    value = row.get("split")
    if value is None or value == "":
        return None
    if value not in ("train", "test"):
        raise UserError(f"{where}: split: found {value!r}; train or test is wanted")
    return value


def _example(
    row: Mapping[str, Any], task: str, query: str, history: tuple[str, ...], where: str
) -> RankingExample | None:
    candidates = _texts(row, "candidates", where)
    texts = _texts(row, "texts", where)
    positive = _text(row, "positive", where)
    grades = _numbers(row, where)
    if grades and len(grades) != len(candidates):
        raise UserError(f"{where}: {len(grades)} labels for {len(candidates)} candidates; one for each is wanted")
    if grades and not positive:
        if max(grades) == 0:
            return None
        positive = candidates[grades.index(max(grades))]
    elif grades and positive in candidates and grades[candidates.index(positive)] < max(grades):
        raise UserError(f"{where}: the positive {positive!r} is not of the highest label, {max(grades):g}")
    if not grades and not positive:
        raise UserError(f"{where}: found neither positive nor labels; one of them is wanted")
    _check_number(positive, candidates, where)
    example = RankingExample(task, candidates, positive, query=query, history=history, texts=texts, grades=grades)
    example.validate(where)
    return example


def _check_number(positive: str, candidates: Sequence[str], where: str) -> None:
    """Raise UserError where the positive is a candidate but for the `.0` that pandas gives whole numbers."""
    for other in (positive.removesuffix(".0"), f"{positive}.0"):
        if positive not in candidates and other in candidates:
            raise UserError(
                f"{where}: positive: found {positive!r}, but candidates holds {other!r}; the same text is wanted "
                "(pandas writes 1 as 1.0 where another cell of its column is empty)"
            )


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: {key}: found {value!r}; a text is wanted")
    return value


def _texts(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = row.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f'{where}: {key}: found {_short(value)}; a list of texts is wanted, such as ["a", "b"]')
    return tuple(value)


def _numbers(row: Mapping[str, Any], where: str) -> tuple[float, ...]:
    value = row.get("labels")
    if value is None:
        return ()
    if not isinstance(value, list) or any(isinstance(n, bool) or not isinstance(n, int | float) for n in value):
        raise UserError(f"{where}: labels: found {_short(value)}; a list of numbers is wanted")
    if any(not 0 <= number <= HIGHEST_GRADE for number in value):
        raise UserError(f"{where}: labels: found {_short(value)}; numbers from 0 to {HIGHEST_GRADE} are wanted")
    return tuple(map(float, value))


def _short(value: Any) -> str:
    return repr(value)[:100]
