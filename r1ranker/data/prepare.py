"""`r1ranker prepare`: from any source to Ranking-bench's layout, and from there to training parquet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from r1ranker.atomic import lock_directory
from r1ranker.data.build import TEST_SHARE, build_bench
from r1ranker.data.files.card import DataSetInfo
from r1ranker.data.files.dataset_writer import command_line
from r1ranker.data.files.manifest import MANIFEST
from r1ranker.data.files.tally import Tally
from r1ranker.data.generate import (
    TrainingOptions,
    TrainingRowsWriter,
    generate_training_rows,
    parse_answer_format,
    print_data_set,
)
from r1ranker.data.options import Kind, PrepareOptions, check_options, kind_of_source, parse_pool_sizes
from r1ranker.data.raw import RawSettings, raw_sources
from r1ranker.data.sources.facts import FACTS_TASK, read_facts
from r1ranker.data.sources.passage import PassageSettings
from r1ranker.data.sources.ranking_bench import CONFIGS, read_ranking_bench
from r1ranker.data.sources.recommendation import RecommendationSettings
from r1ranker.data.sources.routing import OBJECTIVES
from r1ranker.data.sources.source_example import Source, SourceExample, Split
from r1ranker.data.sources.toy import write_toy
from r1ranker.data.sources.trec import TrecFiles, read_trec
from r1ranker.data.sources.user_files import OWN, read_user_file
from r1ranker.data.teacher import teach_frequent_labels, teach_right_answers
from r1ranker.errors import UserError
from r1ranker.tasks.catalog import TASK_NAMES, TASKS, get_task
from r1ranker.tasks.custom import default_task, ensure_registered, read_task
from r1ranker.tasks.example import RankingExample, count_positives
from r1ranker.tasks.prompts import Mode

__all__ = ["PrepareOptions", "build_and_print", "prepare", "raw_settings"]


def prepare(options: PrepareOptions) -> None:
    """Write `output`/direct_ranking and `output`/iterative_ranking, and `output`/bench in Ranking-bench's layout where the
    source is not in it already; prints what was read, left out and written."""
    answer_format = parse_answer_format(options.answer_style, options.think)
    kind = kind_of_source(options)
    check_options(options, kind)
    tokenizer = None
    if options.tokenizer is not None:
        from r1ranker.pretrained import load_tokenizer

        tokenizer = load_tokenizer(options.tokenizer)
    training = TrainingOptions(
        answer_format,
        options.seed if options.cold_start else None,
        teach_right_answers if options.teacher == "right" else None,
        tokenizer=tokenizer,
        most_tokens=options.max_prompt_length,
        passage_tokens=options.max_passage_tokens,
    )
    with lock_directory(Path(options.output)):
        if kind in ("toy", "layout"):
            _generate(options, kind, training)
        else:
            _build(_sources(options, kind), options, training)


def _generate(options: PrepareOptions, kind: Kind, training: TrainingOptions) -> None:
    """Training rows of a source in the layout."""
    source, bench = options.source, Path(options.output) / "bench"
    if kind == "toy":
        source = str(bench)
        write_toy(source, options.size, options.seed, list(dict.fromkeys(options.tasks or TASK_NAMES)))
    elif (bench / MANIFEST).exists() and Path(source).resolve() != bench.resolve():
        raise UserError(
            f"{bench}: holds another data set than {source}; another --output is wanted, or {bench} deleted"
        )
    if options.teacher == "frequent":
        counts = count_positives(example for _, example in read_ranking_bench(source, "direct", "train"))
        training = replace(training, teacher=teach_frequent_labels(counts))
    with ExitStack() as commit:
        made = [
            generate_training_rows(source, _directory(options, mode), mode, training, options.tasks, commit)
            for mode in CONFIGS
        ]
    for out in made:
        print_data_set(out)


def _directory(options: PrepareOptions, mode: Mode) -> str:
    return str(Path(options.output) / f"{mode}_ranking")


def _sources(options: PrepareOptions, kind: Kind) -> tuple[dict[str, Source], list[str]]:
    """What the data set is built from, by group, with a line on each."""
    if kind == "facts":
        return _facts_sources(options)
    if kind == "raw":
        settings = raw_settings(
            options.history,
            candidates=options.candidates,
            users=options.users,
            seed=options.seed,
            tasks=options.tasks,
            positions=options.positions,
            recbole=options.recbole,
            merits=options.merits,
            pools=options.pools,
        )
        return raw_sources(options.source, options.tasks, settings)
    return _user_sources(options) if options.trec is None else _trec_sources(options, options.trec)


def _build(found: tuple[dict[str, Source], list[str]], options: PrepareOptions, training: TrainingOptions) -> None:
    """Layout and training rows in one go; they take their places together."""
    sources, lines = found
    about = DataSetInfo("A data set in Ranking-bench's layout", lines, options.seed, command_line())
    bench = Path(options.output) / "bench"
    with ExitStack() as commit, ExitStack() as writing:
        rows = {
            mode: writing.enter_context(
                TrainingRowsWriter(_directory(options, mode), mode, str(bench), training, commit)
            )
            for mode in CONFIGS
        }

        def on_row(config: Mode, split: Split, example: RankingExample, problem: str) -> None:
            rows[config].add(split, example, problem)

        built = build_bench(
            sources,
            bench,
            about,
            options.test_share,
            parse_pool_sizes(options.pool_sizes),
            options.test_rows,
            on_row,
            commit,
        )
    print_data_set(built)
    for mode in CONFIGS:
        print_data_set(rows[mode].out, statistics=training.tokenizer is not None)


def raw_settings(
    history: Sequence[str],
    *,
    candidates: int,
    users: int,
    seed: int,
    tasks: Sequence[str] | None = None,
    positions: int = 1,
    recbole: Sequence[str] = (),
    merits: bool = False,
    pools: int = 1,
) -> RawSettings:
    """Settings of raw sources; `history` holds N for all recommendation tasks and TASK=N for one of `tasks`, `recbole` TASK=NAME."""
    shared, histories = RecommendationSettings().history, {}
    for entry in history:
        task, equals, number = entry.rpartition("=")
        if not re.fullmatch(r"[1-9][0-9]{0,5}", number):
            raise UserError(f"--history: found {entry!r}; a number, or TASK=number, is wanted")
        if not equals:
            shared = int(number)
        else:
            _check_recommendation("--history", task, tasks)
            histories[task] = int(number)
    names = {}
    for entry in recbole:
        task, _, name = entry.partition("=")
        if not re.fullmatch(r"\w[\w.-]{0,99}", name):
            raise UserError(f"--recbole: found {entry!r}; TASK=NAME is wanted, such as Rec-Movie=ml-100k")
        _check_recommendation("--recbole", task, tasks)
        names[task] = name
    recommendation = RecommendationSettings(
        history=shared, candidates=candidates, users=users, seed=seed, positions=positions, pools=pools
    )
    return RawSettings(recommendation, histories, names, PassageSettings(seed=seed), seed, merits)


def _check_recommendation(option: str, task: str, tasks: Sequence[str] | None) -> None:
    """Raise UserError unless `task` is one of the recommendation tasks that are built."""
    if get_task(task).scenario != "recommendation":
        raise UserError(f"{option}: {task} has no history")
    if tasks and task not in tasks:
        raise UserError(f"{option}: {task} is not among the tasks named, {', '.join(tasks)}")


def build_and_print(
    sources: dict[str, Source], directory: str, lines: Sequence[str], seed: int, test_share: float = TEST_SHARE
) -> None:
    """Build a data set in the benchmark's layout and print its counts; what examples/data_preprocess/dataset runs."""
    about = DataSetInfo("A data set in Ranking-bench's layout", lines, seed, command_line())
    print_data_set(build_bench(sources, Path(directory), about, test_share))


def _facts_sources(options: PrepareOptions) -> tuple[dict[str, Source], list[str]]:
    ensure_registered(FACTS_TASK)

    def read(tally: Tally) -> Iterator[SourceExample]:
        return read_facts(options.size, options.seed, tally)

    return {"facts": read}, ["the built-in facts: invented by this project, MIT licence"]


def _user_sources(options: PrepareOptions) -> tuple[dict[str, Source], list[str]]:
    task = _own_task(options)

    def read(tally: Tally) -> Iterator[SourceExample]:
        return read_user_file(options.source, task, options.shuffle, options.seed, tally)

    return {"own": read}, [f"{Path(options.source).name}: one's own data, under one's own terms"]


def _trec_sources(options: PrepareOptions, files: TrecFiles) -> tuple[dict[str, Source], list[str]]:
    task = _own_task(options) or OWN
    if task not in TASKS:
        ensure_registered(default_task(task, by_history=False))
    if TASKS[task].scenario == "recommendation" or task in OBJECTIVES:
        raise UserError(f"--task: found {task!r}; a task that ranks passages for a query is wanted")

    def read(tally: Tally) -> Iterator[SourceExample]:
        return read_trec(files, task, options.candidates, options.shuffle, options.seed, tally.for_task(task))

    names = [Path(path).name for path in (files.queries, files.collection, files.run, files.qrels)]
    return {"own": read}, [f"TREC files {', '.join(names)}, under their own terms"]


def _own_task(options: PrepareOptions) -> str | None:
    """The task of rows that name none; raises UserError where several are named."""
    named = list(options.tasks or ())
    if len(named) > 1:
        raise UserError(f"--task: found {', '.join(named)}; one's own data takes one, or a column `task`")
    return know_own_task(named[0] if named else None, options.template)


def know_own_task(name: str | None, template: str | None) -> str | None:
    """The task of rows that name none: that of the template, whose words are registered, else the one named."""
    if template is None:
        return name
    task = read_task(template, name)
    ensure_registered(task)
    return task.name
