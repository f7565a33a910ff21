"""Passage ranking from MS MARCO v1.1 QA parquet: rows with exactly one selected passage and 5, 7 or 9 passages."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1ranker.data.files.parquet_reader import read_table
from r1ranker.data.files.tally import Tally
from r1ranker.data.sources.source_example import SPLITS, Split
from r1ranker.errors import UserError, check_at_least
from r1ranker.tasks.answers import normalise
from r1ranker.tasks.example import RankingExample, number_passages

SIZES = {"Passage-5": 5, "Passage-7": 7, "Passage-9": 9}
MAX_ROWS = 10_000
"""iterative rows of a task and split at most: MAX_ROWS // (passages - 1) queries"""
MOST_CHARACTERS = 2_600
"""of passage text in a row"""


@dataclass(frozen=True)
class PassageSettings:
    """Which rows become examples; the published values."""

    rows: int = MAX_ROWS
    characters: int = MOST_CHARACTERS
    seed: int = 42

    def __post_init__(self) -> None:
        check_at_least("--rows", self.rows, 1)
        check_at_least("--characters", self.characters, 1)


@dataclass
class _Row:
    number: int
    query: str
    texts: list[str]
    selected: int


def read_passages(
    files: Mapping[Split, Sequence[str]], settings: PassageSettings, tally: Tally
) -> Iterator[tuple[str, Split, RankingExample]]:
    """(query, split, example): the sources' own split, passages in an order of its own for each row, named by place.

    A training row whose query is a test row's as well is left out. Raises UserError naming file and row.
    """
    held_out: set[str] = set()
    for split in reversed(SPLITS):
        usable: dict[str, list[_Row]] = {task: [] for task in SIZES}
        for path in files[split]:
            for row in _rows(path):
                task = next((name for name, size in SIZES.items() if size == len(row.texts)), None)
                for name in SIZES:
                    tally.for_task(name).read[f"{split} rows"] += 1
                    tally.for_task(name).left_out["rows with another number of passages"] += name != task
                if task is None:
                    continue
                reason = _unusable(row, settings)
                if reason is None and split == "train" and normalise(row.query) in held_out:
                    reason = "training rows whose query is in the test rows"
                if reason:
                    tally.for_task(task).left_out[reason] += 1
                    continue
                if split == "test":
                    held_out.add(normalise(row.query))
                usable[task].append(row)
        for task, rows in usable.items():
            most = settings.rows // (SIZES[task] - 1)
            if len(rows) > most:
                tally.for_task(task).left_out[f"{split} rows beyond the {most} drawn"] += len(rows) - most
                drawn = set(random.Random(f"{settings.seed} {task} {split}").sample(range(len(rows)), most))
                rows = [row for place, row in enumerate(rows) if place in drawn]
            for row in rows:
                yield row.query, split, _example(task, row, settings.seed)


def _example(task: str, row: _Row, seed: int) -> RankingExample:
    order = list(range(len(row.texts)))
    # neither the retriever's order nor the file's may tell which one was selected
    random.Random(f"{seed} {row.query} {row.number}").shuffle(order)
    names = number_passages(len(order))
    texts = tuple(row.texts[place] for place in order)
    return RankingExample(task, names, names[order.index(row.selected)], query=row.query, texts=texts)


def _unusable(row: _Row, settings: PassageSettings) -> str | None:
    if row.selected < 0:
        return "rows without exactly one selected passage"
    if not row.query.strip():
        return "rows without a query"
    if any(not text.strip() for text in row.texts):
        return "rows with an empty passage"
    if len({normalise(text) for text in row.texts}) < len(row.texts):
        return "rows with a passage twice"
    if sum(map(len, row.texts)) > settings.characters:
        return f"rows over {settings.characters:,} characters of passages"
    return None


def _rows(path: str) -> Iterator[_Row]:
    for number, row in enumerate(read_table(path, {"query": "text", "passages": "a record"})):
        where = f"{path}: row {number}"
        passages: Any = row["passages"]
        if row["query"] is None or passages is None:
            raise UserError(f"{where}: query or passages is null; a text and a record are wanted")
        selected, texts = passages.get("is_selected"), passages.get("passage_text")
        if not isinstance(selected, list) or not isinstance(texts, list):
            raise UserError(
                f"{where}: passages holds {', '.join(passages) or 'nothing'}; lists is_selected and passage_text are wanted"
            )
        if len(selected) != len(texts):
            raise UserError(f"{where}: {len(selected)} is_selected for {len(texts)} passage_text; as many are wanted")
        if any(not isinstance(text, str) for text in texts) or any(value not in (0, 1) for value in selected):
            raise UserError(f"{where}: passages holds other than texts and 0 or 1")
        chosen = [place for place, value in enumerate(selected) if value == 1]
        yield _Row(number, row["query"], texts, chosen[0] if len(chosen) == 1 else -1)


def passage_files(directory: str) -> dict[Split, list[str]]:
    """The parquet files of each split, by the beginning of their names."""
    found: dict[Split, list[str]] = {}
    for split in SPLITS:
        found[split] = sorted(str(path) for path in Path(directory).rglob(f"{split}*.parquet"))
        if not found[split]:
            raise UserError(f"{directory}: no {split}*.parquet; MS MARCO's parquet files of both splits are wanted")
    return found
