"""From a ranking data set to training parquet; what examples/data_preprocess and `r1ranker prepare` run."""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from r1ranker.atomic import atomic_path
from r1ranker.data.parquet import fill_file, read_training_rows, training_row, write_rows
from r1ranker.data.sft import SFT_SCHEMA, cold_start_rows
from r1ranker.data.sources.ranking_bench import Split, read_ranking_bench
from r1ranker.data.sources.toy import write_toy
from r1ranker.errors import UserError
from r1ranker.tasks.catalog import TASK_NAMES, get_task
from r1ranker.tasks.prompts import AnswerFormat, Mode

HUB_ID = "ulab-ai/Ranking-bench"
TOY = "toy"
SPLITS: tuple[Split, ...] = ("train", "test")


def generate(
    source: str, local_dir: str, mode: Mode, answer_format: AnswerFormat, tasks: Sequence[str] | None = None
) -> dict[str, Counter[str]]:
    """Write train.parquet and test.parquet to `local_dir`; returns the rows a task of each split."""
    counts: dict[str, Counter[str]] = {}
    with ExitStack() as both:  # the files take their places together, or neither does
        for split in SPLITS:
            counts[split] = Counter()
            rows = _rows(source, mode, split, answer_format, tasks, counts[split])
            temporary = both.enter_context(atomic_path(Path(local_dir) / f"{split}.parquet"))
            if not fill_file(rows, temporary):
                raise UserError(f"{source}: no {split} rows of the tasks {', '.join(tasks or TASK_NAMES)}")
    return counts


def _rows(
    source: str,
    mode: Mode,
    split: Split,
    answer_format: AnswerFormat,
    tasks: Sequence[str] | None,
    count: Counter[str],
) -> Iterator[dict[str, Any]]:
    for _, example in read_ranking_bench(source, mode, split):
        if tasks and example.task not in tasks:
            continue
        yield training_row(example, mode, split, count.total(), answer_format)
        count[example.task] += 1


def show(counts: dict[str, Counter[str]], local_dir: str) -> None:
    """Print the rows a task and split."""
    table = Table(title=local_dir)
    for column in ("task", *counts):
        table.add_column(column, justify="left" if column == "task" else "right")
    tasks = dict.fromkeys(task for counter in counts.values() for task in counter)
    for task in [name for name in TASK_NAMES if name in tasks] + [name for name in tasks if name not in TASK_NAMES]:
        table.add_row(task, *(f"{counter[task]:,}" for counter in counts.values()))
    table.add_row("all", *(f"{counter.total():,}" for counter in counts.values()), style="bold")
    Console().print(table)


def prepare_all(
    source: str,
    output: str,
    answer_style: str = "name",
    think: bool = True,
    size: int = 100,
    seed: int = 42,
    tasks: Sequence[str] | None = None,
    cold_start: bool = False,
) -> None:
    """Write `output`/direct_ranking and `output`/iterative_ranking; of the toy world also its benchmark layout, `output`/bench."""
    answer_format = checked_format(answer_style, think)
    if size < 1 or seed < 0:
        raise UserError(f"--size {size}, --seed {seed}: a size of at least 1 and a seed of at least 0 are wanted")
    for task in tasks or ():
        get_task(task)
    if source == TOY:
        source = str(Path(output) / "bench")
        write_toy(source, size, seed, tasks or TASK_NAMES)
    modes: tuple[Mode, ...] = ("direct", "iterative")
    for mode in modes:
        local_dir = str(Path(output) / f"{mode}_ranking")
        show(generate(source, local_dir, mode, answer_format, tasks), local_dir)
        if cold_start:
            rows = read_training_rows([str(Path(local_dir) / "train.parquet")])
            write_rows(cold_start_rows(rows, seed), str(Path(local_dir) / "sft.parquet"), SFT_SCHEMA)


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
        show(generate(options.source, options.local_dir, mode, answer_format), options.local_dir)
        return
    with tempfile.TemporaryDirectory() as directory:
        write_toy(directory)
        show(generate(directory, options.local_dir, mode, answer_format), options.local_dir)
