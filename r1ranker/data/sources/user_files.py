"""One's own data: JSON lines, CSV or parquet with a query or history, candidates, and a positive or graded labels, a row each."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from r1ranker.data.files.parquet_reader import read_table
from r1ranker.data.files.tally import Tally
from r1ranker.data.files.text_rows import STDIN, TextTable, json_rows, parse_json
from r1ranker.data.sources.source_example import SourceExample, Split
from r1ranker.errors import UserError, note, suggest
from r1ranker.tasks.catalog import TASKS
from r1ranker.tasks.custom import default_task, ensure_registered, render_request, template_variables
from r1ranker.tasks.example import HIGHEST_GRADE, RankingExample
from r1ranker.tasks.text import sanitise

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz", ".tsv.gz")
COLUMNS = ("task", "id", "split", "query", "history", "candidates", "texts", "positive", "labels")
_LISTS = ("history", "candidates", "texts", "labels")
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
    for number, (where, row) in enumerate(_rows(path)):
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
    for where, row in _rows(path, stdin=True):
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
    if value is None or value == "":
        return None
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
    example = RankingExample(task, candidates, positive, query=query, history=history, texts=texts, grades=grades)
    example.validate(where)
    return example


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
        raise UserError(f"{where}: {key}: found {_short(value)}; a list of texts is wanted")
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


def _rows(path: str, stdin: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and row, values) of a file of any of the kinds."""
    plain = path.lower().removesuffix(".gz")
    if plain.endswith((".jsonl", ".json")) or (stdin and path == STDIN):
        for line, row in json_rows(path, stdin):
            _check_keys(row, f"{path}: line {line}")
            yield f"{path}: line {line}", row
    elif plain.endswith(".parquet"):
        columns = dict.fromkeys(COLUMNS, "anything")
        required = {"candidates": columns.pop("candidates")}
        for number, row in enumerate(read_table(path, required, columns)):
            yield f"{path}: row {number}", row
    elif plain.endswith((".csv", ".tsv")):
        table = TextTable(path, "," if plain.endswith(".csv") else "\t", quoted=True)
        table.column_indices(["candidates"], "query,candidates,positive")
        for name in COLUMNS:
            table.once(name)
        _check_keys(table.columns, f"{path}: line 1")
        for line, fields in table:
            where = f"{path}: line {line}"
            row = {
                name: text for name, text in zip(table.columns, fields, strict=True) if name in COLUMNS and text != ""
            }
            if "positive" in row and not row.get("candidates", "").lstrip().startswith("["):
                row["positive"] = row["positive"].strip()  # as the parts between bars are
            yield where, {key: _list(text, key, where) if key in _LISTS else text for key, text in row.items()}
    else:
        raise UserError(f"{path}: a name that ends in one of {', '.join(SUFFIXES)} is wanted")


def _check_keys(keys: Iterable[str], where: str) -> None:
    """Candidates have to be there; a key that is nearly an optional one is pointed out."""
    keys = set(keys)
    if "candidates" not in keys:
        raise UserError(f"{where}: no key 'candidates'{suggest('candidates', keys)}; a list of names is wanted")
    for key in keys - set(COLUMNS):
        if like := suggest(key, set(COLUMNS) - keys, 0.8):
            note(f"{where}: {key!r} is not used{like}")


def _list(text: str, key: str, where: str) -> list[Any]:
    if text.lstrip().startswith('["') or (text.lstrip().startswith("[") and text.rstrip().endswith("]")):
        value = parse_json(text, f"{where}: {key}")
        return value if isinstance(value, list) else [value]
    parts = [part.strip() for part in text.split("|")]
    if key != "labels":
        return parts
    try:
        return [float(part) for part in parts]
    except ValueError as error:
        raise UserError(f"{where}: labels: found {text[:100]!r}; numbers with '|' between them are wanted") from error


def is_user_file(path: str) -> bool:
    """Whether `path` names a file of one's own data."""
    return path.lower().endswith(SUFFIXES) and not Path(path).is_dir()
