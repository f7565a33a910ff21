"""From a data set in Ranking-bench's layout to training parquet; what examples/data_preprocess and `r1ranker prepare` run."""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1ranker.data.card import About, print_tables
from r1ranker.data.dataset_writer import DataSetWriter, command_line
from r1ranker.data.parquet import RowWriter, training_row, training_schema
from r1ranker.data.sft import SFT_SCHEMA, cold_start_row
from r1ranker.data.sources.ranking_bench import SPLITS, Split, read_ranking_bench
from r1ranker.data.sources.toy import write_toy
from r1ranker.data.statistics import RowStatistics
from r1ranker.data.tokenise import encode_chats
from r1ranker.errors import UserError
from r1ranker.tasks.catalog import TASK_NAMES
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat, Mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_ID = "ulab-ai/Ranking-bench"
TOY = "toy"
AT_ONCE = 512
"""prompts tokenised at once"""
MOST_TOKENS = 1400
"""of a prompt; the published data.max_prompt_length"""


def generate(
    source: str,
    local_dir: str,
    mode: Mode,
    answer_format: AnswerFormat,
    tasks: Sequence[str] | None = None,
    cold_start_seed: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    most_tokens: int = MOST_TOKENS,
) -> DataSetWriter:
    """Write train.parquet and test.parquet to `local_dir`, with their card and manifest; returns the writer with its counts.

    With a `cold_start_seed` also sft.parquet, completions of the right form for the training rows; with a `tokenizer`
    the prompts' tokens are measured.
    """
    about = About(
        f"{mode.capitalize()} ranking: training rows", [f"made from {source}"], cold_start_seed or 0, command_line()
    )
    statistics = RowStatistics(most_tokens=most_tokens)
    with DataSetWriter(Path(local_dir), about) as out:
        out.statistics[mode] = statistics
        for split in SPLITS:
            examples = _examples(source, mode, split, tasks)
            first = next(examples)
            with ExitStack() as files:
                writer = files.enter_context(out.file(f"{split}.parquet", training_schema(bool(first.grades))))
                sft: RowWriter | None = None
                if split == "train" and cold_start_seed is not None:
                    sft = files.enter_context(out.file("sft.parquet", SFT_SCHEMA))
                rng = random.Random(cold_start_seed or 0)
                waiting: list[dict[str, Any]] = []
                for example in chain([first], examples):
                    row = training_row(example, mode, split, writer.count, answer_format)
                    writer.add(row)
                    if sft is not None:
                        sft.add(cold_start_row(row, rng))
                    out.tally.of(example.task).written[split] += 1
                    statistics.of(example.task).add(len(example.candidates), example.candidates.index(example.positive))
                    if tokenizer is not None:
                        waiting.append(row)
                        if len(waiting) == AT_ONCE:
                            _measure(tokenizer, waiting, statistics)
                            waiting = []
                if tokenizer is not None:
                    _measure(tokenizer, waiting, statistics)
    return out


def _measure(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], statistics: RowStatistics) -> None:
    for row, ids in zip(rows, encode_chats(tokenizer, [row["prompt"] for row in rows]), strict=True):
        statistics.of(row["extra_info"]["task_name"]).tokens.append(len(ids))


def _examples(source: str, mode: Mode, split: Split, tasks: Sequence[str] | None) -> Iterator[RankingExample]:
    """The examples of `tasks`, at least one."""
    found = False
    for _, example in read_ranking_bench(source, mode, split):
        if not tasks or example.task in tasks:
            found = True
            yield example
    if not found:
        raise UserError(f"{source}: no {split} rows of the tasks {', '.join(tasks or TASK_NAMES)}")


def show(out: DataSetWriter, statistics: bool = True) -> None:
    """Print the counts of a data set, and the statistics of its rows."""
    print_tables(str(out.directory), out.tally, out.statistics if statistics else {})


def checked_format(answer_style: str, think: bool) -> AnswerFormat:
    """The answer format, or UserError for a style that there is not."""
    if answer_style not in ("name", "label"):
        raise UserError(f"--answer-style: found {answer_style!r}; name or label is wanted")
    return AnswerFormat(answer_style, think)  # type: ignore[arg-type]


def main(mode: Mode) -> None:
    """The command line of examples/data_preprocess/<mode>_data_generation.py."""
    parser = argparse.ArgumentParser(description=f"Write training parquet for {mode} ranking.")
    parser.add_argument(
        "--source", default=HUB_ID, help="hub data set, directory of its layout, or `toy` (%(default)s)"
    )
    parser.add_argument("--local_dir", default=f"data/{mode}_ranking", help="where to write (%(default)s)")
    parser.add_argument("--answer_style", choices=["name", "label"], default="name")
    parser.add_argument("--no_think", action="store_true", help="answer at once, without reasoning before")
    options = parser.parse_args()
    answer_format = checked_format(options.answer_style, not options.no_think)
    if options.source != TOY:
        show(generate(options.source, options.local_dir, mode, answer_format))
        return
    with tempfile.TemporaryDirectory() as directory:
        write_toy(directory)
        show(generate(directory, options.local_dir, mode, answer_format))
