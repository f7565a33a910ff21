"""Cold-start data: completions of the right form whose answers are random, so that the form is taught and not the ranking; or a teacher's."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from r1ranker.data.files.parquet import check_messages, row_format, row_mode
from r1ranker.data.files.parquet_reader import read_table
from r1ranker.errors import UserError
from r1ranker.tasks.text import sanitise

SFT_SCHEMA = pa.schema(
    [
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("completion", pa.string()),
    ]
)


NAMED = 3
"""candidates in a teacher's thought"""


def cold_start_row(
    row: dict[str, Any], rng: random.Random, teacher: Counter[tuple[str, str]] | None = None
) -> dict[str, Any]:
    """The (prompt, completion) row of a training row: a short thought where there is one, then a random valid answer.

    With a teacher, which is `count_positives` of training rows, the answer is by these, of equals the one that is listed first
    before, and the thought names the candidates that decide it.
    """
    answer_format, direct = row_format(row), row_mode(row) == "direct"
    names = [str(name) for name in row["reward_model"]["ground_truth"]["candidate_text"]]
    labels = answer_format.answer_style == "label"
    written = [f"[{place}]" if labels else sanitise(name) for place, name in enumerate(names, start=1)]
    if teacher is None:
        rng.shuffle(written)
        thought = f" There are {len(names)} candidates. I compare them with what is asked."
    else:
        task = row["extra_info"]["task_name"]
        order = sorted(range(len(names)), key=lambda place: -teacher[task, names[place]])
        written = [written[place] for place in (order if direct else reversed(order))]
        thought = f" {'Most' if direct else 'Least'} often chosen: {', '.join(written[:NAMED])}."
    answer = "\n".join(written) if direct else written[0]
    before = f"{thought}</think>\n<answer>" if answer_format.think else ""
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
