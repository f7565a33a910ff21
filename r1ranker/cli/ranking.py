"""`r1ranker rank`: rank candidates for requests of one's own with a trained model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r1ranker.cli.options import (
    AnswerStyle,
    AskedFor,
    Constrain,
    Dtype,
    Eliminate,
    EngineName,
    GpuId,
    Inside,
    MaxModelLen,
    MaxTokens,
    Passes,
    Seed,
    Step,
    Strategy,
    Think,
    TopK,
    Votes,
    Window,
)

if TYPE_CHECKING:
    from r1ranker.ranking.conversation import RankingResult
    from r1ranker.tasks.example import RankingExample


def rank(
    file: Annotated[
        str, typer.Argument(help="requests in the format of `prepare --from FILE`; - for JSON lines on stdin")
    ],
    model: Annotated[str, typer.Option(help="model directory or hub id")],
    output: Annotated[str | None, typer.Option(help="JSON-lines file to write (stdout)")] = None,
    task: Annotated[str | None, typer.Option(help="the task of rows that name none")] = None,
    template: Annotated[str | None, typer.Option(help="a YAML file with the task's words, as for prepare")] = None,
    engine: EngineName = "auto",
    dtype: Dtype = "auto",
    gpu_id: GpuId = 0,
    seed: Seed = 0,
    strategy: Strategy = None,
    mode: AskedFor = None,
    constrain: Constrain = None,
    think: Think = None,
    answer_style: AnswerStyle = None,
    top_k: TopK = 0,
    eliminate: Eliminate = 1,
    votes: Votes = 1,
    window: Window = 20,
    step: Step = 10,
    passes: Passes = 1,
    inside: Inside = "answer",
    max_tokens: MaxTokens = None,
    max_model_len: MaxModelLen = None,
) -> None:
    """Rank candidates for your requests with a trained model.

    A request is a query or a history, and candidates.
    It becomes a line of JSON: `ranking`, its candidates, best first;
    `indices`, their places in the request, from 0; and its `id`, if any.
    """
    from r1ranker.atomic import atomic_path, check_place
    from r1ranker.data.prepare import know_own_task
    from r1ranker.data.sources.user_files import read_requests
    from r1ranker.pretrained import load_tokenizer
    from r1ranker.progress import follow
    from r1ranker.ranking.lengths import required_length
    from r1ranker.ranking.ranker import Ranker, check_lengths
    from r1ranker.ranking.settings import EliminationSettings, RankerSettings, WindowSettings

    elimination = EliminationSettings(eliminate=eliminate, votes=votes, top_k=top_k)
    windows = WindowSettings(size=window, step=step, passes=passes, inside=inside)
    RankerSettings(seed=seed, elimination=elimination, windows=windows).check()
    check_lengths(max_tokens, max_model_len)
    if output is not None:
        check_place(output)
    requests = list(read_requests(file, know_own_task(task, template)))
    with redirect_stdout(sys.stderr):  # an engine may print; stdout is for the rankings
        settings = Ranker.settings_of(
            model,
            strategy=strategy,
            trained=mode,
            constrain=constrain,
            think=think,
            answer_style=answer_style,
            seed=seed,
            elimination=elimination,
            windows=windows,
            max_tokens=max_tokens,
        )
        settings.check()
        examples = [example for _, example in requests]
        length = required_length(model, load_tokenizer(model), settings, examples, max_model_len, engine)
        ranker = Ranker.from_pretrained(
            model, settings=settings, engine=engine, gpu=gpu_id, max_model_len=length, dtype=dtype
        )
        try:
            stream = ranker.rank_stream(examples)
            with closing(follow(stream, len(examples), Path(model).name)) as followed:
                by_place = dict(followed)
            results = [by_place[place] for place in range(len(examples))]
        finally:
            ranker.engine.close()
    lines = _lines(requests, results)
    if output is None:
        for line in lines:
            typer.echo(line)
        return
    with atomic_path(output) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _lines(requests: list[tuple[Any, RankingExample]], results: list[RankingResult]) -> Iterator[str]:
    """A JSON object for each request; `unordered` counts the first candidates that --top-k left in the order shown."""
    for (name, example), result in zip(requests, results, strict=True):
        line: dict[str, Any] = {} if name is None else {"id": name}
        line |= {"ranking": result.ranking, "indices": [example.candidates.index(one) for one in result.ranking]}
        if result.scores:
            line["scores"] = [result.scores[one] for one in result.ranking]
        if result.unordered:
            line["unordered"] = result.unordered
        yield json.dumps(line, ensure_ascii=False)
