"""`r1ranker rank`: rank candidates for requests of one's own, or of a search engine's run, with a trained model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from r1ranker.reranking.requests import RankRequest

A_RUN = "A search engine's run, in place of a file of requests"


def rank(
    model: Annotated[str, typer.Option(help="model directory or hub id")],
    file: Annotated[
        str, typer.Argument(help="requests in the format of `prepare --from FILE`; - for JSON lines on stdin")
    ] = "-",
    output: Annotated[
        str | None, typer.Option(help="file to write: JSON lines, .csv, or a TREC run (.trec, .run, .txt) (stdout)")
    ] = None,
    task: Annotated[str | None, typer.Option(help="the task of rows that name none")] = None,
    template: Annotated[str | None, typer.Option(help="a YAML file with the task's words, as for prepare")] = None,
    limit: Annotated[int | None, typer.Option(help="requests at most")] = None,
    run: Annotated[
        str | None, typer.Option(help="query Q0 document rank score tag, a line each", rich_help_panel=A_RUN)
    ] = None,
    queries: Annotated[str | None, typer.Option(help="id<tab>text", rich_help_panel=A_RUN)] = None,
    collection: Annotated[str | None, typer.Option(help="id<tab>text, or JSON lines", rich_help_panel=A_RUN)] = None,
    depth: Annotated[
        int, typer.Option(help="documents of a query that are ranked; the others follow", rich_help_panel=A_RUN)
    ] = 100,
    qrels: Annotated[
        str | None,
        typer.Option(help="judgments, query 0 document grade: measure the run before and after", rich_help_panel=A_RUN),
    ] = None,
    tag: Annotated[str, typer.Option(help="last column of a TREC run", rich_help_panel=A_RUN)] = "r1ranker",
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
) -> None:
    """Rank candidates for your requests with a trained model.

    A request is a query or a history, and candidates.
    It becomes a line of JSON: `ranking`, its candidates, best first;
    `indices`, their places in the request, from 0; its `id`, if any;
    and `scores`, where the strategy has any.
    """
    import_transformers()
    from r1ranker.atomic import atomic_path, check_place
    from r1ranker.errors import UserError, check_at_least
    from r1ranker.pretrained import load_tokenizer
    from r1ranker.ranking.ranker import Ranker, check_lengths
    from r1ranker.ranking.required_length import required_length
    from r1ranker.ranking.settings import EliminationSettings, RankerSettings, ShotSettings, WindowSettings
    from r1ranker.reranking.measure import check_judged, print_measures
    from r1ranker.reranking.outputs import check_ids, format_of, write_lines
    from r1ranker.reranking.rank import JOURNAL, open_journal, rank_requests
    from r1ranker.reranking.requests import first_requests

    elimination = EliminationSettings(eliminate=eliminate, votes=votes, top_k=top_k)
    windows = WindowSettings(size=window, step=step, passes=passes, inside=inside)
    templates = ShotSettings(thoughts, shots, similarity, embedder, shots_from, shots_show)
    RankerSettings(
        seed=seed, elimination=elimination, windows=windows, passage_tokens=max_passage_tokens, shots=templates
    ).check()
    check_lengths(max_tokens, max_model_len)
    for name, value in (("--limit", limit), ("--depth", depth)):
        if value is not None:
            check_at_least(name, value, 1)
    if tag.split() != [tag]:
        raise UserError(f"--tag: found {tag!r}; a word without white space is wanted")
    if output is not None:
        check_place(output)
    requests = first_requests(_read_requests(file, run, queries, collection, qrels, task, template, depth), limit)
    form = format_of(output) if output is not None else "json" if run is None else "trec"
    if form == "trec":
        check_ids(requests)
    judged = None if qrels is None else check_judged(qrels, requests)
    with redirect_stdout(sys.stderr):  # an engine may print; stdout is for the rankings
        settings = Ranker.settings_of(
            model,
            strategy=strategy,
            trained=mode,
            constrain=constrain,
            think=think,
            answer_style=answer_style,
            rounds=rounds,
            seed=seed,
            elimination=elimination,
            windows=windows,
            max_tokens=max_tokens,
            passage_tokens=max_passage_tokens,
            shots=templates,
        )
        settings.check()
        tokenizer = load_tokenizer(model)
        examples = [one.example for one in requests if len(one.documents) > 1]
        length = required_length(model, tokenizer, settings, examples, max_model_len, engine)
        with open_journal(output, requests, model, settings, f"{engine} {dtype}") as kept:
            ranker = Ranker.from_pretrained(
                model, settings=settings, engine=engine, gpu=gpu_id, max_model_len=length, dtype=dtype
            )
            try:
                ranked, costs = rank_requests(ranker, requests, kept, Path(model).name)
            finally:
                ranker.engine.close()
    lines = write_lines(requests, ranked, form, tag)
    if output is None:
        for line in lines:
            typer.echo(line, nl=False)
    else:
        with atomic_path(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as written:
            written.writelines(lines)
        Path(output + JOURNAL).unlink()
    typer.echo(str(costs), err=True)
    if judged is not None:
        print_measures(judged, requests, ranked, sys.stderr if output is None else sys.stdout)


def _read_requests(
    file: str,
    run: str | None,
    queries: str | None,
    collection: str | None,
    qrels: str | None,
    task: str | None,
    template: str | None,
    depth: int,
) -> Iterator[RankRequest]:
    """Of the file, or of the run and what belongs to it; raises UserError where both are named, or a part is missing."""
    from r1ranker.data.prepare import know_own_task
    from r1ranker.errors import UserError
    from r1ranker.reranking.requests import RunFiles, requests_of_file, requests_of_run

    words = know_own_task(task, template)
    if run is None:
        for name, value in (("--queries", queries), ("--collection", collection), ("--qrels", qrels)):
            if value is not None:
                raise UserError(f"{name}: found without --run; they are wanted together")
        yield from requests_of_file(file, words)
        return
    if queries is None or collection is None:
        raise UserError("--run: --queries and --collection are wanted with it")
    if file != "-":
        raise UserError(f"found both {file} and --run; one of them is wanted")
    yield from requests_of_run(RunFiles(run, queries, collection), words, depth)
