"""Examples to training rows in veRL's schema, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from r1ranker.atomic import atomic_path
from r1ranker.data.files.parquet_reader import read_table
from r1ranker.errors import UserError
from r1ranker.rewards import MODES
from r1ranker.tasks.custom import register_tasks_of
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.labels import ANSWER_STYLES
from r1ranker.tasks.parsing import parse_problem
from r1ranker.tasks.prompts import AnswerFormat, Mode, chat_messages, render_problem, user_problem

BATCH = 2048
"""rows written at once"""


def training_schema(graded: bool = False) -> pa.Schema:
    """veRL's schema; with a grade for each candidate in the ground truth where the data has grades."""
    truth = [("candidate_text", pa.list_(pa.string())), ("gt", pa.string())]
    if graded:
        truth.append(("grades", pa.list_(pa.float64())))
    return pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            ("ability", pa.string()),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.struct(truth))])),
            (
                "extra_info",
                pa.struct(
                    [
                        ("split", pa.string()),
                        ("index", pa.int64()),
                        ("task_name", pa.string()),
                        ("think", pa.bool_()),
                        ("answer_style", pa.string()),
                    ]
                ),
            ),
        ]
    )


_COLUMNS = {
    "data_source": "text",
    "prompt": "a list of messages",
    "ability": "text",
    "reward_model": "a record",
    "extra_info": "a record",
}


def example_to_row(
    example: RankingExample,
    mode: Mode,
    split: str,
    index: int,
    answer_format: AnswerFormat | None = None,
    problem: str | None = None,
) -> dict[str, Any]:
    """The row of an example in veRL's schema; `problem` is its wording where that was made already."""
    answer_format = answer_format or AnswerFormat()
    if problem is None:
        problem = render_problem(example, mode, answer_format.answer_style)
    truth: dict[str, Any] = {"candidate_text": list(example.candidates), "gt": example.positive}
    if example.grades:
        truth["grades"] = list(example.grades)
    return {
        "data_source": f"{mode}_ranking",
        "prompt": chat_messages(problem, answer_format, mode),
        "ability": "ranking",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {
            "split": split,
            "index": index,
            "task_name": example.task,
            "think": answer_format.think,
            "answer_style": answer_format.answer_style,
        },
    }


class RowWriter:
    """Rows to a parquet file, a batch at a time; `count` says how many there were.

    Raises UserError, naming the row, for text that is none: half a surrogate pair has no place in UTF-8.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.count = 0
        self._writer = pq.ParquetWriter(path.absolute(), schema)  # run:1/x would be a URI
        self._schema = schema
        self._buffer: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._buffer.append(row)
        self.count += 1
        if len(self._buffer) == BATCH:
            self._write()

    def _write(self) -> None:
        try:
            table = pa.Table.from_pylist(self._buffer, schema=self._schema)
        except UnicodeEncodeError as error:
            row = self.count - len(self._buffer) + next(i for i, one in enumerate(self._buffer) if _is_no_text(one))
            around = error.object[max(0, error.start - 20) : error.start + 20]
            raise UserError(f"row {row}: found {around!a}, half a surrogate pair; text is wanted") from error
        self._writer.write_table(table)
        self._buffer = []

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if self._buffer and error[0] is None:
                self._write()
        finally:
            self._writer.close()


def _is_no_text(row: dict[str, Any]) -> bool:
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return True
    return False


def write_rows(rows: Iterable[dict[str, Any]], path: str, schema: pa.Schema | None = None) -> int:
    """Write rows to a parquet file, whole or not at all; returns how many there were."""
    with atomic_path(Path(path)) as temporary:
        return fill_file(rows, temporary, schema)


def fill_file(rows: Iterable[dict[str, Any]], path: Path, schema: pa.Schema | None = None) -> int:
    """Write rows to a parquet file at once; returns how many there were."""
    with RowWriter(path, schema or training_schema()) as writer:
        for row in rows:
            writer.add(row)
    return writer.count


def read_training_rows(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of training parquet, read in batches; raises UserError naming file and row for whatever cannot be trained on."""
    for path in paths:
        register_tasks_of(Path(path).parent)
        for number, row in enumerate(read_table(path, _COLUMNS)):
            _check(row, f"{path}: row {number}")
            yield row


def _check(row: dict[str, Any], where: str) -> None:
    for column in _COLUMNS:
        if row[column] is None:
            raise UserError(f"{where}: {column} is null")
    if row["data_source"] not in MODES:
        raise UserError(f"{where}: data_source {row['data_source']!r}; one of {', '.join(MODES)} is wanted")
    check_messages(row["prompt"], where)
    truth = row["reward_model"].get("ground_truth")
    if not isinstance(truth, dict) or truth.get("candidate_text") is None or truth.get("gt") is None:
        raise UserError(f"{where}: reward_model.ground_truth lacks candidate_text or gt; a record of both is wanted")
    names = truth["candidate_text"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in (*names, truth["gt"])):
        raise UserError(f"{where}: reward_model.ground_truth holds {truth!r}; a list of names and a name are wanted")
    grades = truth.get("grades")
    if grades is not None and (not isinstance(grades, list) or any(grade is None for grade in grades)):
        raise UserError(f"{where}: reward_model.ground_truth.grades holds {grades!r}; numbers are wanted")
    checked = RankingExample("", tuple(names), truth["gt"], grades=tuple(grades or ()))
    checked.validate(where)
    truth["gt"] = checked.positive  # as the candidate is written
    if not truth["gt"]:
        raise UserError(f"{where}: reward_model.ground_truth.gt is empty; the positive is wanted")
    if not isinstance(row["extra_info"].get("task_name"), str):
        raise UserError(f"{where}: extra_info lacks task_name; a name is wanted")
    style = row["extra_info"].get("answer_style")
    if style and style not in ANSWER_STYLES:
        raise UserError(
            f"{where}: extra_info.answer_style: found {style!r}; one of {', '.join(ANSWER_STYLES)} is wanted"
        )


def check_messages(messages: Any, where: str) -> None:
    """Raise UserError unless `messages` are of role and content, both text, with a user's turn among them."""
    for message in messages:
        texts = isinstance(message, dict) and set(message) == {"role", "content"}
        if not texts or not all(isinstance(value, str) for value in message.values()):
            raise UserError(f"{where}: prompt holds {message!r}; messages of role and content are wanted")
    if not any(message["role"] == "user" for message in messages):
        raise UserError(f"{where}: prompt has no message of role 'user'")


def row_mode(row: dict[str, Any]) -> Mode:
    """How the row is ranked."""
    return MODES[row["data_source"]]


def row_format(row: dict[str, Any]) -> AnswerFormat:
    """The answer format that the row was worded for; the published one where it does not say."""
    extra = row["extra_info"]
    think = extra.get("think")
    return AnswerFormat(extra.get("answer_style") or "name", True if think is None else bool(think))


def row_to_example(row: dict[str, Any]) -> RankingExample:
    """The example that a row was made from."""
    truth = row["reward_model"]["ground_truth"]
    answer_format = row_format(row)
    problem = user_problem(row["prompt"], answer_format, row_mode(row))
    example = parse_problem(
        row["extra_info"]["task_name"], problem, truth["candidate_text"], answer_format.answer_style
    )
    return replace(example, positive=truth["gt"], grades=tuple(truth.get("grades") or ()))


def reword_row(row: dict[str, Any], answer_format: AnswerFormat) -> dict[str, Any]:
    """The same row worded for another answer format."""
    extra = row["extra_info"]
    return example_to_row(
        row_to_example(row), row_mode(row), extra.get("split") or "", extra.get("index") or 0, answer_format
    )
