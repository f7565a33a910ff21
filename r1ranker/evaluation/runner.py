"""Ranking the test rows of tasks, measuring the rankings, and keeping every one of them in a result file."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from r1ranker.atomic import atomic_path
from r1ranker.data.generate import HUB_ID
from r1ranker.data.sources.ranking_bench import read_ranking_bench
from r1ranker.errors import UserError
from r1ranker.evaluation.baselines import Metrics, MostFrequentLabel, as_given, random_order
from r1ranker.evaluation.metrics import metrics_of_ranking, summarise
from r1ranker.evaluation.table import print_results
from r1ranker.ranking.decode import RankingResult
from r1ranker.ranking.ranker import Ranker, RankerSettings
from r1ranker.tasks.catalog import TASK_NAMES, get_task
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.own import know_tasks_of
from r1ranker.tasks.prompts import AnswerStyle, Mode

ALL = "all"


def tasks_of(dataset: str, data: str) -> list[str]:
    """The task of that name, several with commas between them, or for `all` the nine, or those of one's own data.

    Raises UserError listing them.
    """
    own = know_tasks_of(Path(data)) if Path(data).is_dir() else []
    if dataset == ALL:
        return own or list(TASK_NAMES)
    return [get_task(name.strip()).name for name in dataset.split(",")]


def examples_by_task(
    source: str, tasks: Sequence[str], split: Any, limit: int | None = None
) -> dict[str, list[RankingExample]]:
    """Direct rows of the tasks, the first `limit` of each; raises UserError where one has none."""
    found: dict[str, list[RankingExample]] = {task: [] for task in tasks}
    for _, example in read_ranking_bench(source, "direct", split):
        if example.task in found and (limit is None or len(found[example.task]) < limit):
            found[example.task].append(example)
    missing = [task for task, examples in found.items() if not examples]
    if missing:
        raise UserError(f"{source}: no {split} rows of {', '.join(missing)} in the direct configuration")
    return found


PerQuery = dict[str, list[Metrics]]
"""of a system (the model or a baseline): the metrics of each query"""


def evaluate(
    ranker: Ranker, test: dict[str, list[RankingExample]], train: Sequence[RankingExample], seed: int = 0
) -> dict[str, Any]:
    """Rank and measure the test rows of every task; `train` rows feed the most-frequent-label baseline.

    Returns {"tasks": task -> figures and rankings, "pooled": figures over all queries, of the metrics all tasks share}.
    """
    most_frequent = MostFrequentLabel(train)
    results: dict[str, Any] = {}
    measured: dict[str, PerQuery] = {}
    every: list[RankingResult] = []
    with Progress(console=Console(), transient=True) as progress:
        for task, examples in test.items():
            bar = progress.add_task(task, total=len(examples))
            began = time.perf_counter()
            rankings = ranker.rank_examples(examples, lambda count, bar=bar: progress.advance(bar, count))  # type: ignore[misc]
            seconds = time.perf_counter() - began
            every.extend(rankings)
            cutoffs = get_task(task).cutoffs
            measured[task] = {
                "model": [
                    metrics_of_ranking(result.ranking, example, cutoffs)
                    for example, result in zip(examples, rankings, strict=True)
                ],
                "random": [random_order(example, cutoffs) for example in examples],
                "order as given": [as_given(example, cutoffs) for example in examples],
                "most frequent label": [most_frequent(example, cutoffs) for example in examples],
            }
            results[task] = _figures(measured[task], rankings, seed) | _answers(examples, rankings, seconds)
    shared = set.intersection(*(set(systems["model"][0]) for systems in measured.values()))
    pooled: PerQuery = {}
    for systems in measured.values():
        for name, queries in systems.items():
            pooled.setdefault(name, []).extend({m: v for m, v in query.items() if m in shared} for query in queries)
    return {"tasks": results, "pooled": _figures(pooled, every, seed)}


def _figures(systems: PerQuery, rankings: Sequence[RankingResult], seed: int) -> dict[str, Any]:
    summaries = {name: summarise(queries, seed) for name, queries in systems.items()}
    queries, calls = len(rankings), max(1, sum(result.calls for result in rankings))
    return {
        "queries": queries,
        "metrics": summaries.pop("model"),
        "baselines": summaries,
        "valid_answer_rate": sum(result.valid_answers for result in rankings) / calls,
        "fallback_rate": sum(result.fallbacks for result in rankings) / calls,
        "calls_per_query": calls / queries,
        "prompt_tokens_per_query": sum(result.prompt_tokens for result in rankings) / queries,
        "response_tokens_per_query": sum(result.response_tokens for result in rankings) / queries,
    }


def _answers(examples: Sequence[RankingExample], rankings: Sequence[RankingResult], seconds: float) -> dict[str, Any]:
    return {
        "seconds_per_query": seconds / len(examples),
        "rankings": [
            {
                "query": example.query,
                "history": list(example.history),
                "positive": example.positive,
                **({"grades": dict(zip(example.candidates, example.grades, strict=True))} if example.grades else {}),
                "ranking": list(result.ranking),
                "out_in_round": result.out_in_round,
                "thoughts": result.thoughts,
            }
            for example, result in zip(examples, rankings, strict=True)
        ],
    }


def _file_name(dataset: str, tasks: Sequence[str], model_path: str, settings: RankerSettings, limit: int | None) -> str:
    """Task, model and strategy, and whatever else was asked for that is not the model's own way."""
    path = Path(model_path.rstrip("/"))
    own = RankerSettings.of_model(model_path)
    parts = [
        dataset if len(tasks) == 1 or dataset == ALL else f"{len(tasks)}-tasks",
        path.parent.name if path.name == "actor" else path.name,
        settings.strategy,
    ]
    if settings.answer_format.think != own.answer_format.think:
        parts.append("think" if settings.answer_format.think else "no-think")
    if settings.answer_format.answer_style != own.answer_format.answer_style:
        parts.append(settings.answer_format.answer_style)
    if settings.constrain != own.constrain:
        parts.append(f"constrain-{settings.constrain}")
    if limit is not None:
        parts.append(f"first-{limit}")
    return "_".join(parts)


def run_evaluation(
    dataset: str,
    model_path: str,
    data: str = HUB_ID,
    strategy: Mode | None = None,
    limit: int | None = None,
    output_dir: str = "eval/eval_result",
    constrain: Any = None,
    think: bool | None = None,
    answer_style: AnswerStyle | None = None,
    gpu: int = 0,
    seed: int = 0,
    show: bool = True,
    engine: str = "hf",
) -> dict[str, Any]:
    """Evaluate a model on a task or on all nine; writes one JSON file and prints a table. Returns what was written."""
    tasks = tasks_of(dataset, data)
    if limit is not None and limit < 1:
        raise UserError(f"--limit: found {limit}; at least 1 is wanted")
    if seed < 0:
        raise UserError(f"--seed: found {seed}; at least 0 is wanted")
    test = examples_by_task(data, tasks, "test", limit)
    train = [example for examples in examples_by_task(data, tasks, "train").values() for example in examples]
    ranker = Ranker.from_pretrained(model_path, strategy, constrain, gpu, think, answer_style, engine, seed=seed)
    try:  # before the work is done, not after it
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir: {output_dir} cannot be written ({error.strerror})") from error
    report = {
        "model": model_path,
        "data": data,
        "seed": seed,
        "settings": asdict(ranker.settings),
        **evaluate(ranker, test, train, seed),
    }
    file = Path(output_dir) / f"{_file_name(dataset, tasks, model_path, ranker.settings, limit)}.json"
    with atomic_path(file) as temporary:
        temporary.write_text(
            json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace"
        )
    if show:
        print_results(report, str(file))
    return report
