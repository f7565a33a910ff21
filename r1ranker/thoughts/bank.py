"""A bank of thoughts: what a ranker thought of requests that it ranked right, kept with these requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from r1ranker.atomic import atomic_path
from r1ranker.errors import UserError, first_line
from r1ranker.tasks.answers import normalise
from r1ranker.tasks.custom import request_of
from r1ranker.tasks.example import RankingExample

SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("request", pa.string()),
        ("candidates", pa.int32()),
        ("thought", pa.string()),
        ("reward", pa.float64()),
        ("model", pa.string()),
        ("step", pa.int64()),
        ("answer", pa.string()),
    ]
)


@dataclass(frozen=True)
class Thought:
    """What was thought of a request."""

    task: str
    request: str
    """its query, or its history, an item a line"""
    candidates: int
    """in the pool"""
    thought: str
    reward: float
    model: str
    """who thought it"""
    step: int
    """of that model's training; 0 where it is not known"""
    answer: str = ""
    """the best candidate, by its text where it has one"""


def form_of(request: str) -> str:
    """The form in which two requests are the same one to a reader."""
    return normalise(request)


def choose_thoughts(found: Iterable[Thought], tested: Iterable[str]) -> tuple[list[Thought], Counter[str]]:
    """The best thought of each request of a task, of equals the first, in the order of the requests; and what was left out, and why.

    Left out: requests among `tested` (what test rows ask), thoughts that are blank, and those that another request has as well,
    which say nothing of their own.
    """
    forbidden, counts = {form_of(request) for request in tested}, Counter[str]()
    best: dict[tuple[str, str], Thought] = {}
    for one in found:
        if form_of(one.request) in forbidden:
            counts["requests that are tested"] += 1
        elif not one.thought.strip():
            counts["blank thoughts"] += 1
        else:
            key = one.task, form_of(one.request)
            if key in best:
                counts["further thoughts on a request"] += 1
            if key not in best or one.reward > best[key].reward:
                best[key] = one
    times = Counter(normalise(one.thought) for one in best.values())
    kept = [one for one in best.values() if times[normalise(one.thought)] == 1]
    counts["thoughts that several requests have"] += len(best) - len(kept)
    return kept, +counts


def write_bank(thoughts: Sequence[Thought], path: str) -> None:
    """Write a bank as parquet. Raises UserError where there is nothing to write."""
    if not thoughts:
        raise UserError(
            f"{path}: no thought is left to be kept; a ranker that thinks, and is right at times, is wanted"
        )
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(one) for one in thoughts], SCHEMA), temporary)


def read_bank(path: str) -> list[Thought]:
    """The thoughts of a bank; raises UserError for a file that is none."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; a bank of `r1ranker thoughts collect` is wanted")
    try:
        table = pq.read_table(path).select(SCHEMA.names).cast(SCHEMA)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are kinds of these
        raise UserError(f"{path}: not a bank of thoughts ({type(error).__name__}: {first_line(error, 200)})") from error
    return [Thought(**row) for row in table.to_pylist()]


def check_untested(path: str, thoughts: Sequence[Thought], examples: Iterable[RankingExample]) -> None:
    """Raise UserError where a bank holds a request that is to be ranked and measured."""
    held = {(one.task, form_of(one.request)): one.request for one in thoughts}
    for example in examples:
        request = held.get((example.task, form_of(request_of(example))))
        if request is not None:
            raise UserError(
                f"{path}: holds a thought on {request[:80]!r} of {example.task}, which is a test row; a bank of training rows is wanted"
            )
