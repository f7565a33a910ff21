"""Cold-start data: completions of the right form whose answers are random, so that the form is taught and not the ranking."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from r1ranker.data.parquet import check_messages, row_format, row_mode
from r1ranker.data.table import read_table
from r1ranker.errors import UserError
from r1ranker.tasks.text import shown

SFT_SCHEMA = pa.schema(
    [
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("completion", pa.string()),
    ]
)


def cold_start_row(row: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The (prompt, completion) row of a training row: a short thought where there is one, then a random valid answer."""
    answer_format = row_format(row)
    names = [shown(name) for name in row["reward_model"]["ground_truth"]["candidate_text"]]
    written = [f"[{place}]" for place in range(1, len(names) + 1)] if answer_format.answer_style == "label" else names
    rng.shuffle(written)
    answer = "\n".join(written) if row_mode(row) == "direct" else written[0]
    thought = f" There are {len(names)} candidates. I compare them with what is asked.</think>\n<answer>"
    completion = f"{thought if answer_format.think else ''}{answer}</answer>"
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
