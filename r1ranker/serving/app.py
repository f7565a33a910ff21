"""The HTTP side: paths, who may ask, and errors in the dialect of the asker."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, StreamingResponse

from r1ranker.serving.dialects import CLIENT_CLOSED, BadRequest, Dialect, dialect_of, error_body, parse_rerank
from r1ranker.serving.limits import check_key, check_size, read_body
from r1ranker.serving.measures import Measures
from r1ranker.serving.rank_calls import answer_rank, parse_rank
from r1ranker.serving.schemas import RANK_BODY, RERANK_BODY
from r1ranker.serving.service import RETRY_AFTER_S, Busy, Service
from r1ranker.serving.streaming import stream_ranking

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
OPEN_PATHS = ("/health", "/ping", "/metrics", *PAGE_FILES)
"""without a key"""
_PREFIX = re.compile(r"/(tei|voyage|infinity)(?=/|$)")
_RERANK = re.compile(r"(/v1)?(/v[12])?/rerank")
"""some clients put their own version behind a base that has one"""


class TidyPaths:
    """Doubled and trailing slashes are passed over, and a prefix names the dialect: clients join paths in many ways."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            path = re.sub(r"/+", "/", scope["path"]).rstrip("/") or "/"
            prefix = _PREFIX.match(path)
            if prefix:
                path = path[prefix.end() :] or "/"
            if _RERANK.fullmatch(path):
                path = "/rerank"
            scope = {**scope, "path": path, "raw_path": path.encode(), "dialect_prefix": prefix[1] if prefix else ""}
        await self._app(scope, receive, send)


def create_app(service: Service, origins: Sequence[str] = ()) -> FastAPI:
    """The application, whose scheduler lives as long as it does; pages of `origins` may ask it."""

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        service.scheduler.start()
        yield
        service.is_ending = True
        service.scheduler.stop(service.limits.timeout_s)

    app = FastAPI(title="r1ranker", description=f"Rankings by {service.name}", lifespan=live)
    measures = Measures(service)

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.perf_counter()
        try:
            if request.url.path not in OPEN_PATHS:
                check_key(request.headers, service.keys)
            response = await go_on(request)
        except BadRequest as error:
            response = refuse(error, "common")
        measures.count(request.url.path, getattr(request.state, "dialect", ""), response.status_code, began)
        return response

    @app.post("/rerank", openapi_extra=RERANK_BODY, summary="Order documents by a query")
    async def rerank(request: Request) -> Response:
        prefix = request.scope.get("dialect_prefix", "")
        dialect: Dialect = dialect_of({}, prefix)
        try:
            body = await read_body(request.stream(), request.headers, service.limits)
            if isinstance(body, dict):
                dialect = dialect_of(body, prefix)
            request.state.dialect = dialect
            call = parse_rerank(body, prefix)
            check_size([call.query], call.documents, service.limits)
            return JSONResponse(await service.rerank(call, partial(_hung_up, request)))
        except BadRequest as error:
            return refuse(error, dialect)

    @app.post("/v1/rank", openapi_extra=RANK_BODY, summary="Rank candidates for a query or a history")
    async def rank(request: Request) -> Response:
        request.state.dialect = "own"
        try:
            body = await read_body(request.stream(), request.headers, service.limits)
            call = parse_rank(body, service.task)
            example = call.example
            check_size([example.query, *example.history, *example.texts], example.candidates, service.limits)
            if call.stream:
                return StreamingResponse(stream_ranking(service, call), media_type="text/event-stream")
            result = await service.rank(example, partial(_hung_up, request), call.strategy)
            return JSONResponse(answer_rank(call, result, service.name))
        except BadRequest as error:
            return refuse(error, "common")

    @app.get("/health", summary="200 as long as rankings can be had")
    @app.get("/ping", include_in_schema=False)
    async def health() -> Response:
        return Response(status_code=200 if service.scheduler.death is None and not service.is_ending else 503)

    @app.get("/", include_in_schema=False)
    @app.get("/page.css", include_in_schema=False)
    @app.get("/page.js", include_in_schema=False)
    async def page(request: Request) -> Response:
        name, kind = PAGE_FILES[request.url.path]
        headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
        return Response((PAGE / name).read_bytes(), media_type=kind, headers=headers)

    @app.get("/info", summary="The model, as TEI's clients ask for it")
    async def info() -> dict[str, Any]:
        limits = service.limits
        return {
            "model_id": service.name,
            "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
            "max_input_length": service.ranker.engine.max_model_len or 0,
            "max_client_batch_size": limits.documents,
            "max_concurrent_requests": limits.concurrency,
        }

    @app.get("/v1/models", summary="The model, as OpenAI's clients ask for it")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": service.name, "object": "model", "owned_by": "r1ranker"}]}

    @app.get("/metrics", summary="Prometheus' text format")
    async def metrics() -> Response:
        return measures.response()

    app.add_middleware(TidyPaths)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    return app


def refuse(error: BadRequest, dialect: Dialect) -> Response:
    """An error as the asker's client reads it."""
    if error.status == CLIENT_CLOSED:
        return Response(status_code=CLIENT_CLOSED)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if isinstance(error, Busy) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = error_body(dialect, str(error), error.kind, error.status)
    content = json.dumps(body, ensure_ascii=True)  # texts of clients may hold what UTF-8 cannot
    return Response(content, error.status, headers, "application/json")


async def _hung_up(request: Request) -> None:
    """Ends when the client does; the body has been read, so nothing else comes."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
