"""Ranking-bench, or a directory of its layout: {direct,iterative}/{train,test}.parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from r1ranker.data.files.parquet_reader import read_table
from r1ranker.data.sources.source_example import Split
from r1ranker.errors import UserError, first_line
from r1ranker.tasks.catalog import get_task
from r1ranker.tasks.custom import register_tasks_of
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.parsing import parse_problem
from r1ranker.tasks.prompts import Mode, render_problem

CONFIGS: tuple[Mode, ...] = ("direct", "iterative")
COLUMNS = {"problem": "text", "candidates": "a list of texts", "gt": "text", "task_name": "text"}
OPTIONAL = {"grades": "a list of numbers", "subject": "text"}


def bench_schema(graded: bool = False, subjects: bool = False) -> pa.Schema:
    """The benchmark's schema; with a grade for each candidate where the data has grades, and whom or what a row is about."""
    fields = [
        ("problem", pa.string()),
        ("candidates", pa.list_(pa.string())),
        ("gt", pa.string()),
        ("task_name", pa.string()),
    ]
    fields += [("grades", pa.list_(pa.float64()))] if graded else []
    fields += [("subject", pa.string())] if subjects else []
    return pa.schema(fields)


def example_to_bench_row(example: RankingExample, config: Mode) -> dict[str, Any]:
    """The row of an example in the benchmark's layout."""
    row: dict[str, Any] = {
        "problem": render_problem(example, config),
        "candidates": list(example.candidates),
        "gt": example.positive,
        "task_name": example.task,
    }
    if example.grades:
        row["grades"] = list(example.grades)
    if example.subject:
        row["subject"] = example.subject
    return row


def read_ranking_bench(source: str, config: Mode, split: Split) -> Iterator[tuple[int, RankingExample]]:
    """(row, example) of each row of a local directory in the benchmark's layout, or of a hub data set.

    Raises UserError naming file and row for whatever cannot be used.
    """
    if Path(source).is_dir() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        if not Path(source).is_dir():
            raise UserError(
                f"{source}: no such directory; one holding {config}/{split}.parquet, or a hub id, is wanted"
            )
        where = str(Path(source) / config / f"{split}.parquet")
        register_tasks_of(Path(source))
        rows: Iterable[dict[str, Any]] = read_table(where, COLUMNS, OPTIONAL)
    else:
        where = f"{source} ({config}, {split})"
        rows = hub_rows(source, config, split)
    count = 0
    for number, row in enumerate(rows):
        count += 1
        yield number, bench_row_to_example(row, f"{where}: row {number}")
    if not count:
        raise UserError(f"{where}: no rows; at least one is wanted")


def bench_row_to_example(row: dict[str, Any], where: str) -> RankingExample:
    """The validated example of a row of the benchmark's layout."""
    for column in COLUMNS:
        if row.get(column) is None:
            raise UserError(f"{where}: {column} is null; {COLUMNS[column]} is wanted")
    try:
        get_task(row["task_name"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    candidates = row["candidates"]
    if any(name is None for name in candidates):
        raise UserError(f"{where}: candidates holds null; names are wanted")
    grades = row.get("grades") or ()
    if any(grade is None for grade in grades):
        raise UserError(f"{where}: grades holds null; numbers are wanted")
    checked = RankingExample(row["task_name"], tuple(candidates), row["gt"], grades=tuple(grades))
    checked.validate(where)
    if not row["gt"].strip():
        raise UserError(f"{where}: gt is blank; one of the candidates is wanted")
    parsed = parse_problem(row["task_name"], row["problem"], candidates)
    return replace(parsed, positive=row["gt"], grades=tuple(grades), subject=row.get("subject") or "")


def hub_rows(source: str, config: str | None, split: str) -> Iterable[dict[str, Any]]:
    """The rows of a hub data set, or of a local copy of one; raises UserError where it cannot be read."""
    import datasets

    try:
        return datasets.load_dataset(source, config, split=split)
    except Exception as error:  # the hub's client raises many kinds, from no network to no such configuration
        raise UserError(
            f"{source}: the hub data set cannot be read ({type(error).__name__}: {first_line(error)}); "
            "a local directory of its layout works as well: --source DIR"
        ) from error
