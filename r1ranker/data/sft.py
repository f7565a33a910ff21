"""Cold-start data: completions of the right form whose answers are random, so that the form is taught and not the ranking; or a teacher's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from r1ranker.data.files.parquet import check_messages, row_format, row_mode
from r1ranker.data.files.parquet_reader import read_table
from r1ranker.data.teacher import Teacher
from r1ranker.errors import UserError
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.labels import write_label
from r1ranker.tasks.text import sanitise

SFT_SCHEMA = pa.schema(
    [
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("completion", pa.string()),
    ]
)


def cold_start_row(
    row: dict[str, Any], example: RankingExample, rng: random.Random, teacher: Teacher | None = None
) -> dict[str, Any]:
    """The (prompt, completion) row of a training row and the example that it words: a short thought where there is one, then a
    random valid answer, or with a teacher the teacher's."""
    answer_format, direct = row_format(row), row_mode(row) == "direct"
    written = [
        write_label(answer_format.answer_style, place) if answer_format.by_label else sanitise(name)
        for place, name in enumerate(example.candidates)
    ]
    if teacher is None:
        rng.shuffle(written)
        thought = f"There are {len(written)} candidates. I compare them with what is asked."
    else:
        lesson = teacher(example, row_mode(row), written)
        written = [written[place] for place in (lesson.order if direct else reversed(lesson.order))]
        thought = lesson.thought
    answer = "\n".join(written) if direct else written[0]
    before = f" {thought}</think>\n<answer>" if answer_format.think else ""
    completion = f"{before}{answer}</answer>"
    return {"prompt": row["prompt"], "completion": completion}


def read_sft_rows(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of (prompt, completion) parquet; raises UserError naming file and row for an empty one."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        for number, row in enumerate(read_table(path, {"prompt": "a list of messages", "completion": "text"})):
            if not row["prompt"] or not row["completion"]:
                raise UserError(f"{path}: row {number}: prompt or completion is empty; both are wanted")
            check_messages(row["prompt"], f"{path}: row {number}")
            rows.append(row)
    return rows
