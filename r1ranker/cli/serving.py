"""`r1ranker serve`: a trained ranker behind the APIs of rerankers over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from r1ranker.cli.options import (
    AnswerStyle,
    AskedFor,
    Constrain,
    Content,
    Dtype,
    Embedder,
    EngineName,
    GpuId,
    Inside,
    MaxModelLen,
    MaxPassageTokens,
    MaxTokens,
    Rounds,
    Shots,
    Similar,
    Step,
    Strategy,
    Think,
    Thoughts,
    Window,
    Within,
)
from r1ranker.lean_imports import import_transformers

BOUNDS = "What is served at most"


def serve(
    model: Annotated[str, typer.Argument(help="model directory or hub id")],
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0: all of the machine's")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    api_key_file: Annotated[str | None, typer.Option(help="keys, one a line; without it everybody may ask")] = None,
    cors: Annotated[list[str] | None, typer.Option(help="origin of pages that may ask, such as https://a.org")] = None,
    task: Annotated[str | None, typer.Option(help="whose words requests are asked in (passages)")] = None,
    replicas: Annotated[
        int, typer.Option(min=1, help="processes by Ray Serve, each with the model, behind one port")
    ] = 1,
    max_concurrency: Annotated[int, typer.Option(min=1, help="requests at once", rich_help_panel=BOUNDS)] = 256,
    max_documents: Annotated[int, typer.Option(min=1, help="of a request", rich_help_panel=BOUNDS)] = 1000,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="of a request", rich_help_panel=BOUNDS)] = 8 * 2**20,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="seconds that a request may take", rich_help_panel=BOUNDS)
    ] = 300,
    max_passage_tokens: MaxPassageTokens = None,
    engine: EngineName = "auto",
    dtype: Dtype = "auto",
    gpu_id: GpuId = 0,
    strategy: Strategy = None,
    mode: AskedFor = None,
    constrain: Constrain = None,
    think: Think = None,
    answer_style: AnswerStyle = None,
    rounds: Rounds = None,
    window: Window = 20,
    step: Step = 10,
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
    """Serve a trained ranker over HTTP.

    It speaks what clients of Cohere, Jina, Voyage, TEI, vLLM, Infinity and Weaviate send to their rerankers.
    """
    import_transformers()
    from pathlib import Path

    from r1ranker.errors import UserError
    from r1ranker.ranking.ranker import Ranker, check_lengths
    from r1ranker.ranking.settings import ShotSettings, WindowSettings
    from r1ranker.reranking.requests import PASSAGES
    from r1ranker.tasks.catalog import get_task

    try:
        from r1ranker.serving.server import read_keys, run_service
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install 'r1ranker[serve]' brings it") from error
    if replicas > 1:
        try:
            from r1ranker.serving.replicas import run_replicas
        except ImportError as error:
            raise UserError(
                f"--replicas: {error.name} is not installed; pip install 'r1ranker[replicas]' brings it"
            ) from error
    from r1ranker.serving.limits import Limits
    from r1ranker.serving.service import Service

    check_lengths(max_tokens, max_model_len)
    words = get_task(task or PASSAGES).name
    keys = read_keys(api_key_file)
    settings = Ranker.settings_of(
        model,
        strategy=strategy,
        trained=mode,
        constrain=constrain,
        think=think,
        answer_style=answer_style,
        rounds=rounds,
        windows=WindowSettings(size=window, step=step, inside=inside),
        max_tokens=max_tokens,
        passage_tokens=max_passage_tokens,
        shots=ShotSettings(thoughts, shots, similarity, embedder, shots_from, shots_show),
    )
    settings.check()
    limits = Limits(max_body_bytes, max_documents, concurrency=max_concurrency, timeout_s=timeout)

    def load() -> Service:
        ranker = Ranker.from_pretrained(
            model, settings=settings, engine=engine, gpu=gpu_id, max_model_len=max_model_len, dtype=dtype
        )
        return Service(ranker, name, words, limits, keys)

    name = Path(model).name
    if replicas > 1:
        run_replicas(load, name, host, port, replicas, bool(keys), cors or ())
        return
    service = load()
    try:
        run_service(service, host, port, cors or ())
    finally:
        service.ranker.engine.close()
