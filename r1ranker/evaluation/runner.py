"""Ranking the test rows of tasks, measuring the rankings, and keeping every one of them in a result file."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from r1ranker.atomic import atomic_path
from r1ranker.data.files.manifest import source_of
from r1ranker.data.raw import find_recbole_files
from r1ranker.data.sources.ranking_bench import read_ranking_bench
from r1ranker.data.sources.recommendation import RECBOLE_DATA_SETS
from r1ranker.data.sources.routing import OBJECTIVES
from r1ranker.errors import UserError
from r1ranker.evaluation.baselines.collaborative import Popularity
from r1ranker.evaluation.baselines.likelihood import QueryLikelihood, has_texts_to_ask_of, likelihood_baselines
from r1ranker.evaluation.baselines.orders import (
    MostFrequentLabel,
    fit_baselines,
    given_order_metrics,
    random_order_metrics,
)
from r1ranker.evaluation.baselines.pretrained import pretrained_baselines
from r1ranker.evaluation.baselines.scoring import Blocks, ScoringBaseline, metrics_of_blocks
from r1ranker.evaluation.journal import Journal
from r1ranker.evaluation.options import ALL, EvaluationOptions
from r1ranker.evaluation.plan import Plan, plan_evaluations
from r1ranker.evaluation.records import Metrics, Record, metrics_of, record_of, strict_metrics_of, summarise_systems
from r1ranker.evaluation.results import FORMAT, write_trec
from r1ranker.evaluation.routing import (
    FixedLLM,
    RouterTable,
    add_outcomes,
    routing_baselines,
    routing_figures,
    top_candidates,
)
from r1ranker.evaluation.table import print_results
from r1ranker.pretrained import list_state
from r1ranker.progress import follow
from r1ranker.ranking.ranker import Ranker
from r1ranker.tasks.catalog import TASK_NAMES, get_task
from r1ranker.tasks.custom import register_tasks_of
from r1ranker.tasks.example import RankingExample

ANSWERS = 2
"""how answers come about: what a journal of another number had ranked is ranked anew. 2: loops are ended"""


def resolve_tasks(dataset: str, data: str) -> list[str]:
    """The task of that name, several with commas between them, or for `all` the nine, or those of one's own data.

    Raises UserError listing them.
    """
    own = register_tasks_of(Path(data)) if Path(data).is_dir() else []
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


def evaluate(
    model_path: str,
    test: dict[str, list[RankingExample]],
    train: Sequence[RankingExample],
    options: EvaluationOptions,
    dataset: str = ALL,
    router: RouterTable | None = None,
) -> tuple[dict[str, Any], Path]:
    """Rank and measure the test rows of every task with one model; `train` rows feed the baselines.

    `router`: what the LLMs did with the queries of the routing tasks, checked against `test` and `train`.

    Writes the result file, which repeats exactly where the engine does, and the seconds in a file beside it; returns the
    result and its path. What an evaluation that was cut off had ranked is taken over from its journal.
    """
    (plan,) = plan_evaluations([model_path], test, options, dataset)
    return _carry_out(plan, test, train, options, router), plan.result


def _carry_out(
    plan: Plan,
    test: dict[str, list[RankingExample]],
    train: Sequence[RankingExample],
    options: EvaluationOptions,
    router: RouterTable | None,
) -> dict[str, Any]:
    words = repr([get_task(task) for task in test])
    state = {"files": list_state(plan.model), "rows": _digest(test), "words": words, "answers": ANSWERS}
    every = [example for examples in test.values() for example in examples]
    # before anything is ranked: what cannot be had is said now
    likelihoods = likelihood_baselines(plan.model, every, options.gpu, options.dtype) if options.baselines else []
    with Journal(plan.journal, plan.about | state) as kept:
        timing = _rank(plan, test, options, kept)
        records = {task: [kept.done[task, row] for row in range(len(rows))] for task, rows in test.items()}
    about = {key: value for key, value in plan.about.items() if key != "tasks"}  # which come with their figures
    source = source_of(Path(options.data))
    known = {"source": source} if source else {}
    report = {"format": FORMAT, **about, **known, **_measured(test, train, records, options, router, likelihoods)}
    _write(plan.result, report)
    _write(plan.timing, timing)
    kept.path.unlink()
    return report


def _rank(
    plan: Plan, test: dict[str, list[RankingExample]], options: EvaluationOptions, kept: Journal
) -> dict[str, float]:
    """Rank what the journal does not hold yet; returns seconds and the share of prompt tokens that came from a cache."""
    left = [(task, row) for task, rows in test.items() for row in range(len(rows)) if (task, row) not in kept.done]
    if not left:
        return {"queries": 0}
    ranker = Ranker.from_pretrained(
        plan.model,
        settings=plan.settings,
        gpu=options.gpu,
        engine=options.engine,
        dtype=options.dtype,
        max_model_len=plan.max_model_len,
    )
    began, tokens, cached = time.perf_counter(), 0, 0
    try:
        stream = ranker.rank_stream(test[task][row] for task, row in left)
        with closing(follow(stream, len(left), Path(plan.model).name)) as followed:
            for place, ranked in followed:
                task, row = left[place]
                kept.add(task, row, record_of(test[task][row], ranked))
                tokens, cached = tokens + ranked.prompt_tokens, cached + ranked.cached_tokens
    finally:
        ranker.engine.close()
    seconds = time.perf_counter() - began
    return {
        "queries": len(left),
        "seconds": seconds,
        "seconds_per_query": seconds / len(left),
        "prompt_tokens": tokens,
        "prompt_tokens_cached": cached,
    }


def _measured(
    test: dict[str, list[RankingExample]],
    train: Sequence[RankingExample],
    records: dict[str, list[Record]],
    options: EvaluationOptions,
    router: RouterTable | None,
    likelihoods: Sequence[QueryLikelihood] = (),
) -> dict[str, Any]:
    """{"tasks": task -> figures and rankings, "pooled": figures over all queries, of the metrics all tasks share}."""
    most_frequent = MostFrequentLabel(train)
    measured: dict[str, dict[str, list[Metrics]]] = {}
    tasks = {}
    for task, examples in test.items():
        cutoffs = get_task(task).cutoffs
        measured[task] = {
            "model": [metrics_of(record, cutoffs) for record in records[task]],
            "strict": [strict_metrics_of(record, cutoffs) for record in records[task]],
            "random": [random_order_metrics(example, cutoffs) for example in examples],
            "order as given": [given_order_metrics(example, cutoffs) for example in examples],
            "most frequent label": [most_frequent(example, cutoffs) for example in examples],
        }
        fitted = _fitted(task, examples, train, options, router)
        if all(map(has_texts_to_ask_of, examples)):
            fitted += likelihoods
        orders = {baseline.name: _rank_by(baseline, examples) for baseline in fitted}
        for name, blocks in orders.items():
            measured[task][name] = [
                metrics_of_blocks(example, own, cutoffs) for example, own in zip(examples, blocks, strict=True)
            ]
        tasks[task] = summarise_systems(measured[task], records[task], options.seed)
        if router is not None and task in OBJECTIVES:
            tasks[task]["routing"] = _routing(
                examples,
                records[task],
                {most_frequent.name: _rank_by(most_frequent, examples), **orders},
                [one for one in fitted if isinstance(one, FixedLLM)],
                router,
                options.seed,
            )
        tasks[task]["rankings"] = [
            record if router is None or task not in OBJECTIVES else add_outcomes(record, router.lookup(example))
            for example, record in zip(examples, records[task], strict=True)
        ]
    shared = set.intersection(*(set(systems["model"][0]) for systems in measured.values()))
    everywhere = set.intersection(*(set(systems) for systems in measured.values()))
    pooled: dict[str, list[Metrics]] = {}
    for systems in measured.values():
        for name in (name for name in systems if name in everywhere):
            pooled.setdefault(name, []).extend(
                {m: v for m, v in query.items() if m in shared} for query in systems[name]
            )
    every = [record for task in test for record in records[task]]
    return {"tasks": tasks, "pooled": summarise_systems(pooled, every, options.seed)}


def _rank_by(baseline: ScoringBaseline, examples: Sequence[RankingExample]) -> list[Blocks]:
    if not baseline.is_slow:
        return [baseline.rank_with_ties(example) for example in examples]
    try:
        with closing(follow(examples, len(examples), baseline.name)) as followed:
            return [baseline.rank_with_ties(example) for example in followed]
    finally:
        baseline.release()  # no more than one model is held


def _fitted(
    task: str,
    examples: Sequence[RankingExample],
    train: Sequence[RankingExample],
    options: EvaluationOptions,
    router: RouterTable | None,
) -> list[ScoringBaseline]:
    """The baselines beside those that every table has."""
    fitted = fit_baselines(train, task) if options.baselines else []
    fitted += pretrained_baselines(options.baseline_models, train, task, options.gpu)
    if options.baselines and options.interactions is not None and task in RECBOLE_DATA_SETS:
        fitted.append(Popularity.of_interactions(*find_recbole_files(options.interactions, task), examples))
    if router is not None and task in OBJECTIVES:
        fitted += routing_baselines(train, task, router)
    return fitted


def _routing(
    examples: Sequence[RankingExample],
    records: Sequence[Record],
    orders: Mapping[str, Sequence[Blocks]],
    fixed: Sequence[FixedLLM],
    router: RouterTable,
    seed: int,
) -> dict[str, Any]:
    """What the first choices of the model and of the baselines were worth."""
    first: dict[str, Sequence[Sequence[str]]] = {
        "model": [top_candidates(record) for record in records],
        "random": [example.candidates for example in examples],
        "order as given": [example.candidates[:1] for example in examples],
        **{name: [own[0] for own in blocks] for name, blocks in orders.items()},
    }
    return routing_figures(examples, first, fixed, router, seed)


def _write(file: Path, value: dict[str, Any]) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")


def _digest(test: dict[str, list[RankingExample]]) -> str:
    """Of the rows that are ranked."""
    return hashlib.sha256(repr(test).encode("utf-8", "surrogatepass")).hexdigest()


def run_evaluation(
    dataset: str,
    models: str | Sequence[str],
    options: EvaluationOptions | None = None,
    show: bool = True,
    trec_dir: str | None = None,
) -> list[dict[str, Any]]:
    """Evaluate one or several models on a task, on several or on all; writes a JSON file each and prints their table.

    Returns what was written. `trec_dir` takes run and qrels files too.
    """
    options = options or EvaluationOptions()
    options.check()
    models = [models] if isinstance(models, str) else list(models)
    tasks = resolve_tasks(dataset, options.data)
    test = examples_by_task(options.data, tasks, "test", options.limit)
    train = [example for examples in examples_by_task(options.data, tasks, "train").values() for example in examples]
    router = None
    if options.router_data is not None:
        router = RouterTable(options.router_data)
        router.check(test, train)
    plans = plan_evaluations(models, test, options, dataset, trec_dir)
    results = []
    for plan in plans:
        results.append(_carry_out(plan, test, train, options, router))
        if trec_dir is not None:
            write_trec(results[-1], str(Path(trec_dir) / plan.name))
    if show:
        print_results(results, [str(plan.result) for plan in plans])
    return results
