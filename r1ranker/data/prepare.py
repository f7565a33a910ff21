"""`r1ranker prepare`: from any source to Ranking-bench's layout, and from there to training parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from r1ranker.data.build import TEST_SHARE, build_bench
from r1ranker.data.card import About
from r1ranker.data.dataset_writer import command_line
from r1ranker.data.generate import (
    HUB_ID,
    MOST_TOKENS,
    TOY,
    TrainingOptions,
    TrainingRows,
    checked_format,
    generate,
    show,
)
from r1ranker.data.raw import RawSettings, is_raw, raw_sources
from r1ranker.data.sources.passage import PassageSettings
from r1ranker.data.sources.ranking_bench import CONFIGS, Split
from r1ranker.data.sources.recommendation import RecommendationSettings
from r1ranker.data.sources.routing import OBJECTIVES
from r1ranker.data.sources.sourced import Source, Sourced
from r1ranker.data.sources.toy import write_toy
from r1ranker.data.sources.trec import TrecFiles, read_trec
from r1ranker.data.sources.user_files import OWN, is_user_file, read_user_file
from r1ranker.data.tally import Tally
from r1ranker.errors import UserError
from r1ranker.tasks.catalog import TASK_NAMES, TASKS, get_task
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.own import default_task, know, read_task
from r1ranker.tasks.prompts import Mode

TREC = "trec"


@dataclass(frozen=True)
class PrepareOptions:
    """What can be asked of `r1ranker prepare`."""

    source: str = HUB_ID
    output: str = "data"
    answer_style: str = "name"
    think: bool = True
    tasks: Sequence[str] | None = None
    seed: int = 42
    test_share: float = TEST_SHARE
    cold_start: bool = False
    tokenizer: str | None = None
    max_prompt_length: int = MOST_TOKENS
    size: int = 100
    """toy: direct training rows a task"""
    history: Sequence[str] = ()
    """raw: N for all tasks, TASK=N for one"""
    candidates: int = 20
    users: int = 657
    template: str | None = None
    shuffle: bool = False
    trec: TrecFiles | None = None


def prepare(options: PrepareOptions) -> None:
    """Write `output`/direct_ranking and `output`/iterative_ranking, and `output`/bench in Ranking-bench's layout where the
    source is not in it already; prints what was read, left out and written."""
    answer_format = checked_format(options.answer_style, options.think)
    for name, value, least in (
        ("--size", options.size, 1),
        ("--seed", options.seed, 0),
        ("--candidates", options.candidates, 2),
        ("--users", options.users, 1),
        ("--max-prompt-length", options.max_prompt_length, 1),
    ):
        if value < least:
            raise UserError(f"{name}: found {value}; at least {least} is wanted")
    tokenizer = None
    if options.tokenizer is not None:
        from r1ranker.model.loading import load_tokenizer

        tokenizer = load_tokenizer(options.tokenizer)
    training = TrainingOptions(
        answer_format, options.seed if options.cold_start else None, tokenizer, options.max_prompt_length
    )
    found = _sources(options)
    if found is not None:
        _build(found, options, training)
        return
    source = options.source
    if source == TOY:
        source = str(Path(options.output) / "bench")
        write_toy(source, options.size, options.seed, options.tasks or TASK_NAMES)
    for mode in CONFIGS:
        show(generate(source, _directory(options, mode), mode, training, options.tasks))


def _directory(options: PrepareOptions, mode: Mode) -> str:
    return str(Path(options.output) / f"{mode}_ranking")


def _sources(options: PrepareOptions) -> tuple[dict[str, Source], list[str]] | None:
    """What the data set is built from, by group, with a line on each; None where the source is in the layout already."""
    source = options.source
    if options.trec is not None:
        return _trec_sources(options, options.trec)
    if source == TREC:
        raise UserError("--from trec: --queries, --collection, --run and --qrels are wanted with it")
    if is_user_file(source):
        return _user_sources(options)
    for task in options.tasks or ():
        get_task(task)
    if Path(source).is_dir() and not (Path(source) / "direct").is_dir() and is_raw(source):
        settings = raw_settings(options.history, options.candidates, options.users, options.seed)
        return raw_sources(source, options.tasks, settings)
    return None


def _build(found: tuple[dict[str, Source], list[str]], options: PrepareOptions, training: TrainingOptions) -> None:
    """Layout and training rows in one go; they take their places together."""
    sources, lines = found
    about = About("A data set in Ranking-bench's layout", lines, options.seed, command_line())
    bench = Path(options.output) / "bench"
    with ExitStack() as commit, ExitStack() as writing:
        rows = {
            mode: writing.enter_context(TrainingRows(_directory(options, mode), mode, str(bench), training, commit))
            for mode in CONFIGS
        }

        def on_row(config: Mode, split: Split, example: RankingExample, problem: str) -> None:
            rows[config].add(split, example, problem)

        built = build_bench(sources, bench, about, options.test_share, on_row, commit)
    show(built)
    for mode in CONFIGS:
        show(rows[mode].out, statistics=training.tokenizer is not None)


def raw_settings(history: Sequence[str], candidates: int, users: int, seed: int) -> RawSettings:
    """Settings of raw sources; `history` holds N for all recommendation tasks and TASK=N for one."""
    shared, histories = RecommendationSettings().history, {}
    for entry in history:
        task, equals, number = entry.rpartition("=")
        if not number.isdigit() or int(number) < 1:
            raise UserError(f"--history: found {entry!r}; a number, or TASK=number, is wanted")
        if not equals:
            shared = int(number)
        elif get_task(task).scenario != "recommendation":
            raise UserError(f"--history: {task} has no history")
        else:
            histories[task] = int(number)
    return RawSettings(
        RecommendationSettings(shared, candidates, users, seed), histories, PassageSettings(seed=seed), seed
    )


def build_and_show(
    sources: dict[str, Source], directory: str, lines: Sequence[str], seed: int, test_share: float = TEST_SHARE
) -> None:
    """Build a data set in the benchmark's layout and print its counts; what examples/data_preprocess/dataset runs."""
    about = About("A data set in Ranking-bench's layout", lines, seed, command_line())
    show(build_bench(sources, Path(directory), about, test_share))


def _user_sources(options: PrepareOptions) -> tuple[dict[str, Source], list[str]]:
    task = _own_task(options)

    def read(tally: Tally) -> Iterator[Sourced]:
        return read_user_file(options.source, task, options.shuffle, options.seed, tally)

    return {"own": read}, [f"{Path(options.source).name}: one's own data, under one's own terms"]


def _trec_sources(options: PrepareOptions, files: TrecFiles) -> tuple[dict[str, Source], list[str]]:
    task = _own_task(options) or OWN
    if task not in TASKS:
        know(default_task(task, by_history=False))
    if TASKS[task].scenario == "recommendation" or task in OBJECTIVES:
        raise UserError(f"--task: found {task!r}; a task that ranks passages for a query is wanted")

    def read(tally: Tally) -> Iterator[Sourced]:
        return read_trec(files, task, options.candidates, options.shuffle, options.seed, tally.of(task))

    names = [Path(path).name for path in (files.queries, files.collection, files.run, files.qrels)]
    return {"own": read}, [f"TREC files {', '.join(names)}, under their own terms"]


def _own_task(options: PrepareOptions) -> str | None:
    """The task of rows that name none: that of the template, else the one named."""
    named = list(options.tasks or ())
    if len(named) > 1:
        raise UserError(f"--task: found {', '.join(named)}; one's own data takes one, or a column `task`")
    if options.template is not None:
        task = read_task(options.template, named[0] if named else None)
        know(task)
        return task.name
    return named[0] if named else None
