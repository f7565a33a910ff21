"""`r1ranker thoughts`: a bank of what rankers thought, to be shown before similar requests."""

from __future__ import annotations

from typing import Annotated

import typer

from r1ranker.cli.options import AnswerStyle, Constrain, Dtype, Embedder, EngineName, MaxTokens, Similar, Strategy


def collect(
    source: Annotated[str, typer.Argument(help="a run's directory with rollouts/, or a trained model's directory")],
    data: Annotated[str, typer.Option(help="its data set in Ranking-bench's layout: test rows are left out")],
    output: Annotated[str, typer.Option(help="parquet file to write")],
    dataset: Annotated[str, typer.Option(help="a task of the data, several with commas between them, or all")] = "all",
    limit: Annotated[int | None, typer.Option(help="of a model: training rows a task that it is asked about")] = None,
    strategy: Strategy = None,
    constrain: Constrain = None,
    answer_style: AnswerStyle = None,
    max_tokens: MaxTokens = None,
    engine: EngineName = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Keep a ranker's thoughts on requests that it ranked right.

    Of a run with rollouts those that it wrote down.
    Of a model those that it has now, asked about the training rows.
    """
    from pathlib import Path

    from r1ranker.atomic import check_place
    from r1ranker.errors import check_at_least
    from r1ranker.evaluation.thoughts import collect_thoughts
    from r1ranker.ranking.ranker import Ranker
    from r1ranker.trainer.monitoring.rollouts import DIRECTORY

    if limit is not None:
        check_at_least("--limit", limit, 1)
    check_place(output)
    settings = None
    if not (Path(source) / DIRECTORY).is_dir():
        settings = Ranker.settings_of(
            source, strategy=strategy, constrain=constrain, answer_style=answer_style, max_tokens=max_tokens
        )
    kept, counts = collect_thoughts(source, data, output, settings, engine, dtype, limit, dataset)
    typer.echo(f"{output}: {kept:,} thoughts")
    for reason, count in counts.items():
        typer.echo(f"left out: {count:,} {reason}")


def show(
    bank: Annotated[str, typer.Argument(help="parquet file of `thoughts collect`")],
    query: Annotated[str, typer.Option(help="a request, or items of a history, a line each")],
    task: Annotated[str | None, typer.Option(help="its task (the bank's only one)")] = None,
    shots: Annotated[int, typer.Option(help="thoughts")] = 3,
    similarity: Similar = "tfidf",
    embedder: Embedder = None,
) -> None:
    """Show the thoughts on the requests of a bank that are most like a query."""
    from r1ranker.errors import UserError
    from r1ranker.ranking.settings import RankerSettings, ShotSettings
    from r1ranker.tasks.example import RankingExample
    from r1ranker.thoughts.bank import read_bank
    from r1ranker.thoughts.retrieval import ThoughtIndex

    RankerSettings(shots=ShotSettings(bank, shots, similarity, embedder)).check()
    thoughts = read_bank(bank)
    tasks = sorted({one.task for one in thoughts})
    if (task is None and len(tasks) > 1) or (task is not None and task not in tasks):
        raise UserError(f"--task: found {task}; one of {', '.join(tasks)} is wanted")
    asked = RankingExample(task or tasks[0], (), query=query)
    for one in ThoughtIndex(thoughts, similarity, embedder).find(asked, shots):
        typer.echo(
            f"{one.request}\n  {one.thought}\n  ({one.candidates} candidates, reward {one.reward:g}, {one.model}, step {one.step})"
        )
