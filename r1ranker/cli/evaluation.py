"""Commands that measure rankers: eval (eval/eval.py is the same), compare, report and experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r1ranker.cli.options import (
    AnswerStyle,
    AskedFor,
    Constrain,
    Content,
    Dtype,
    Eliminate,
    Embedder,
    EngineName,
    GpuId,
    Inside,
    MaxModelLen,
    MaxPassageTokens,
    MaxTokens,
    Passes,
    Rounds,
    Seed,
    Shots,
    Similar,
    Step,
    Strategy,
    Think,
    Thoughts,
    TopK,
    Votes,
    Window,
    Within,
)
from r1ranker.lean_imports import import_transformers
from r1ranker.tasks.catalog import HUB_ID

BESIDE = "What stands beside the model"


def evaluate(
    dataset: Annotated[str, typer.Option(help="a task, several with commas between them, or all")],
    model_path: Annotated[list[str], typer.Option(help="model directory or hub id; several in one table")],
    data: Annotated[str, typer.Option(help="a directory in Ranking-bench's layout, or a hub data set")] = HUB_ID,
    limit: Annotated[int | None, typer.Option(help="rows a task at most")] = None,
    output_dir: Annotated[str, typer.Option(help="where result files go")] = "eval/eval_result",
    trec_dir: Annotated[str | None, typer.Option(help="also write TREC run and qrels files here")] = None,
    max_passage_tokens: MaxPassageTokens = None,
    engine: EngineName = "auto",
    dtype: Dtype = "auto",
    gpu_id: GpuId = 0,
    seed: Seed = 0,
    strategy: Strategy = None,
    mode: AskedFor = None,
    constrain: Constrain = None,
    think: Think = None,
    answer_style: AnswerStyle = None,
    rounds: Rounds = None,
    top_k: TopK = 0,
    eliminate: Eliminate = 1,
    votes: Votes = 1,
    window: Window = 20,
    step: Step = 10,
    passes: Passes = 1,
    inside: Inside = "answer",
    thoughts: Thoughts = None,
    shots: Shots = 3,
    similarity: Similar = "tfidf",
    embedder: Embedder = None,
    shots_from: Within = "task",
    shots_show: Content = "thoughts",
    max_tokens: MaxTokens = None,
    max_model_len: MaxModelLen = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines",
            help="all that suit the task, not only three: BM25, popularity, query likelihood and the like",
            rich_help_panel=BESIDE,
        ),
    ] = False,
    baseline_model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=DIR",
            help="embeddings, cross-encoder, monot5 or, for routing, classifier, with its model; with all baselines",
            rich_help_panel=BESIDE,
        ),
    ] = None,
    interactions: Annotated[
        str | None,
        typer.Option(
            help="a directory with RecBole's files, or one .inter file, to count popularity in; with all baselines",
            rich_help_panel=BESIDE,
        ),
    ] = None,
    router_data: Annotated[
        str | None,
        typer.Option(
            help="routing: the router_data.csv[.gz] that the rows were made from; quality and cost of what comes first, "
            "with all baselines",
            rich_help_panel=BESIDE,
        ),
    ] = None,
) -> None:
    """Rank the test rows of a task and measure the rankings.

    Prints MRR, hit rate, NDCG and the share of valid answers.
    Every ranking is kept in a JSON file.
    """
    import_transformers()
    from r1ranker.evaluation.baselines.pretrained import parse_baseline_models
    from r1ranker.evaluation.options import EvaluationOptions
    from r1ranker.evaluation.runner import run_evaluation
    from r1ranker.ranking.settings import EliminationSettings, ShotSettings, WindowSettings

    options = EvaluationOptions(
        data=data,
        limit=limit,
        seed=seed,
        output_dir=output_dir,
        strategy=strategy,
        mode=mode,
        constrain=constrain,
        think=think,
        answer_style=answer_style,
        rounds=rounds,
        max_tokens=max_tokens,
        max_model_len=max_model_len,
        passage_tokens=max_passage_tokens,
        elimination=EliminationSettings(eliminate=eliminate, votes=votes, top_k=top_k),
        windows=WindowSettings(size=window, step=step, passes=passes, inside=inside),
        shots=ShotSettings(thoughts, shots, similarity, embedder, shots_from, shots_show),
        engine=engine,
        dtype=dtype,
        gpu=gpu_id,
        baselines=baselines or bool(baseline_model) or interactions is not None or router_data is not None,
        interactions=interactions,
        router_data=router_data,
        baseline_models=parse_baseline_models(baseline_model or ()),
    )
    run_evaluation(dataset, model_path, options, trec_dir=trec_dir)


def compare(
    first: Annotated[str, typer.Argument(help="result file of an evaluation")],
    second: Annotated[str, typer.Argument(help="another one, of the same queries")],
    metric: Annotated[str, typer.Option(help="mrr, hit@K or ndcg@K")] = "mrr",
    seed: Annotated[int, typer.Option(help="of the randomisation")] = 0,
) -> None:
    """Test whether two evaluations differ by more than chance.

    Prints the means and the p of a paired randomisation test, task by task.
    """
    from r1ranker.evaluation.table import print_comparison

    print_comparison([first, second], metric, seed)


def harness(
    model: Annotated[list[str], typer.Argument(help="model directories; the others are compared with the first")],
    tasks: Annotated[str, typer.Option(help="the harness's tasks, or one's own, with commas between them")],
    include_path: Annotated[str | None, typer.Option(help="a directory with tasks of one's own")] = None,
    limit: Annotated[int | None, typer.Option(help="questions a task")] = None,
    output_dir: Annotated[str, typer.Option(help="where result files go")] = "eval/harness",
) -> None:
    """Measure what training did to other language tasks.

    By lm-evaluation-harness, before and after, on the same questions.
    """
    from r1ranker.errors import check_at_least
    from r1ranker.evaluation.harness import harness_table, run_harness
    from r1ranker.evaluation.identity import short_names
    from r1ranker.evaluation.table import wide_console
    from r1ranker.pretrained import check_model_directory

    if limit is not None:
        check_at_least("--limit", limit, 1)
    for one in model:
        check_model_directory(one)
    wanted = [task.strip() for task in tasks.split(",")]
    scores = {
        name: run_harness(path, wanted, Path(output_dir) / f"{name.replace('/', '_')}.json", include_path, limit)
        for name, path in zip(*short_names([model]), model, strict=True)
    }
    wide_console().print(harness_table(scores))


def report(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="run directories, metrics.jsonl, evaluation results (.json), or directories that hold them"
        ),
    ],
    output: Annotated[str, typer.Option(help="HTML file to write")] = "report.html",
) -> None:
    """Write curves, results and examples as one HTML file."""
    from r1ranker.report import write_report

    write_report(inputs, output)
    typer.echo(output)


def experiment(
    name: Annotated[str, typer.Argument(help="a file of configs/experiments/ without .yaml, or a YAML file")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as steps=20 or model.path=DIR")] = None,
    output: Annotated[str | None, typer.Option(help="where everything goes (checkpoints/NAME)")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="trainings side by side, each with its share of the cores")] = 1,
) -> None:
    """Run one of the paper's experiments, from data to its table.

    A second call goes on where the first one ended.
    """
    from r1ranker.experiments.run import run_experiment
    from r1ranker.experiments.spec import load_experiment

    run_experiment(load_experiment(name, overrides or []), Path(output or f"checkpoints/{Path(name).stem}"), jobs)
