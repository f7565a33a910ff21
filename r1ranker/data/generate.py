"""From a data set in Ranking-bench's layout to training parquet; what examples/data_preprocess and `r1ranker prepare` run."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1ranker.data.files.card import DataSetInfo, print_tables
from r1ranker.data.files.dataset_writer import DataSetWriter, command_line
from r1ranker.data.files.manifest import digest
from r1ranker.data.files.parquet import RowWriter, example_to_row, training_schema
from r1ranker.data.files.statistics import RowStatistics
from r1ranker.data.passages import cut_texts
from r1ranker.data.sft import SFT_SCHEMA, cold_start_row
from r1ranker.data.sources.ranking_bench import read_ranking_bench
from r1ranker.data.sources.source_example import SPLITS, Split
from r1ranker.data.sources.toy import TOY, write_toy
from r1ranker.data.teacher import Teacher
from r1ranker.data.tokenise import encode_chats
from r1ranker.errors import UserError
from r1ranker.tasks.answers import normalise
from r1ranker.tasks.catalog import TASK_NAMES
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.labels import ANSWER_STYLES
from r1ranker.tasks.prompts import AnswerFormat, Mode
from r1ranker.tasks.text import sanitise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SFT = "sft"
TOKENISE_BATCH_SIZE = 512
"""prompts tokenised at once"""
MOST_TOKENS = 1400
"""of a prompt; the published data.max_prompt_length"""


@dataclass(frozen=True)
class TrainingOptions:
    """How training rows are worded, and what is written beside them."""

    answer_format: AnswerFormat = field(default_factory=AnswerFormat)
    cold_start_seed: int | None = None
    """with one, sft.parquet is written: completions of the right form for the training rows"""
    teacher: Teacher | None = None
    """whom their thoughts and answers are by; None: answers are random"""
    tokenizer: PreTrainedTokenizerBase | None = None
    """with one, the prompts' tokens are measured"""
    most_tokens: int = MOST_TOKENS
    passage_tokens: int | None = None
    """of a candidate's text at most, in its tokens; None: texts are shown whole"""


class TrainingRowsWriter:
    """train.parquet and test.parquet of a directory on their way to disk, with their card and manifest."""

    def __init__(
        self, local_dir: str, mode: Mode, source: str, options: TrainingOptions, commit: ExitStack | None = None
    ) -> None:
        title = f"{mode.capitalize()} ranking: training rows"
        about = DataSetInfo(title, [f"made from {source}"], options.cold_start_seed or 0, command_line())
        self.out = DataSetWriter(Path(local_dir), about, commit)
        self._mode, self._options = mode, options
        self._statistics = RowStatistics(most_tokens=options.most_tokens)
        self._files: dict[str, RowWriter] = {}
        self._stack = ExitStack()
        self._rng = random.Random(options.cold_start_seed or 0)
        self._waiting: list[dict[str, Any]] = []

    def __enter__(self) -> TrainingRowsWriter:
        self._stack.enter_context(self.out)
        self.out.statistics[self._mode] = self._statistics
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._measure()
        self._stack.__exit__(*error)

    def add(self, split: str, example: RankingExample, named: str | None = None) -> None:
        """Word an example and write its row; `named` is its wording by names, where that was made already."""
        writer = self._file(split, bool(example.grades))
        answer_format, tokenizer, most = (
            self._options.answer_format,
            self._options.tokenizer,
            self._options.passage_tokens,
        )
        cut = 0
        if tokenizer is not None and most is not None:
            example, cut = cut_texts(example, tokenizer, most)
            self.out.tally.for_task(example.task).noted["candidates' texts that were cut"] += cut
        problem = named if answer_format.answer_style == "name" and not cut else None
        row = example_to_row(example, self._mode, split, writer.count, answer_format, problem)
        writer.add(row)
        if split == "train" and self._options.cold_start_seed is not None:
            self._file(SFT).add(cold_start_row(row, example, self._rng, self._options.teacher))
        self.out.tally.for_task(example.task).written[split] += 1
        self._statistics.for_task(example.task).add(len(example.candidates), example.candidates.index(example.positive))
        if self._options.tokenizer is not None:
            self._waiting.append(row)
            if len(self._waiting) == TOKENISE_BATCH_SIZE:
                self._measure()

    def _file(self, name: str, graded: bool = False) -> RowWriter:
        if name not in self._files:
            schema = SFT_SCHEMA if name == SFT else training_schema(graded)
            self._files[name] = self._stack.enter_context(self.out.file(f"{name}.parquet", schema))
        return self._files[name]

    def _measure(self) -> None:
        if self._options.tokenizer is None:
            return
        found = encode_chats(self._options.tokenizer, [row["prompt"] for row in self._waiting])
        for row, ids in zip(self._waiting, found, strict=True):
            self._statistics.for_task(row["extra_info"]["task_name"]).tokens.append(len(ids))
        self._waiting = []


def generate_training_rows(
    source: str,
    local_dir: str,
    mode: Mode,
    options: TrainingOptions | None = None,
    tasks: Sequence[str] | None = None,
    commit: ExitStack | None = None,
) -> DataSetWriter:
    """Write the training rows of a data set in Ranking-bench's layout; returns the writer with its counts.

    The rows are taken as they are; those that stand there twice, and training rows whose request is a test row's too,
    are counted. `commit` is for DataSetWriter. Raises UserError naming file and row, and for a task without rows.
    """
    next(_examples(source, mode, "train", tasks))  # what is wrong with it is said first
    tested: set[int] = set()
    with TrainingRowsWriter(local_dir, mode, source, options or TrainingOptions(), commit) as rows:
        for split in reversed(SPLITS):  # what is tested has to be known before the training rows
            seen: set[int] = set()
            for example in _examples(source, mode, split, tasks):
                noted = rows.out.tally.for_task(example.task).noted
                row, request = _row(example), _request(example)
                noted["rows that stand there twice"] += row in seen
                seen.add(row)
                if split == "test":
                    tested.add(request)
                noted["training rows whose request is in the test file too"] += split == "train" and request in tested
                rows.add(split, example)
        missing = [task for task in tasks or () if task not in rows.out.tally.tasks]
        if missing:
            raise UserError(f"{source}: no {mode} rows of {', '.join(missing)}")
    return rows.out


def _said(example: RankingExample) -> tuple[str, ...]:
    return (example.task, example.query, *example.history, example.request, example.problem)


def _row(example: RankingExample) -> int:
    """What makes two rows the same one, as they are shown."""
    return digest(map(sanitise, (*_said(example), *example.candidates, *example.texts)))


def _request(example: RankingExample) -> int:
    """What makes two requests the same one to a reader, whatever the pool."""
    return digest(map(normalise, _said(example)))


def _examples(source: str, mode: Mode, split: Split, tasks: Sequence[str] | None) -> Iterator[RankingExample]:
    """The examples of `tasks`, at least one."""
    found = False
    for _, example in read_ranking_bench(source, mode, split):
        if not tasks or example.task in tasks:
            found = True
            yield example
    if not found:
        raise UserError(f"{source}: no {split} rows of the tasks {', '.join(tasks or TASK_NAMES)}")


def print_data_set(out: DataSetWriter, statistics: bool = True) -> None:
    """Print the counts of a data set, and the statistics of its rows."""
    print_tables(str(out.directory), out.tally, out.statistics if statistics else {})


def parse_answer_format(answer_style: str, think: bool) -> AnswerFormat:
    """The answer format, or UserError for a style that there is not."""
    if answer_style not in ANSWER_STYLES:
        raise UserError(f"--answer-style: found {answer_style!r}; one of {', '.join(ANSWER_STYLES)} is wanted")
    return AnswerFormat(answer_style, think)


def generate_and_show(source: str, local_dir: str, mode: Mode, answer_style: str, think: bool) -> None:
    """Write the training rows of one mode, from a data set or from the built-in world, and print their counts."""
    options = TrainingOptions(parse_answer_format(answer_style, think))
    if source != TOY:
        print_data_set(generate_training_rows(source, local_dir, mode, options))
        return
    with tempfile.TemporaryDirectory() as directory:
        write_toy(directory)
        print_data_set(generate_training_rows(directory, local_dir, mode, options))
