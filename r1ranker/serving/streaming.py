"""A ranking as server-sent events: each elimination as it happens, then the whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from r1ranker.ranking.conversation import RankingResult
from r1ranker.serving.dialects import BadRequest, error_body
from r1ranker.serving.rank_calls import RankCall, answer_rank, round_event
from r1ranker.serving.service import Service


async def stream_ranking(service: Service, call: RankCall) -> AsyncIterator[str]:
    """Events `round`, with who went out, and at the end `ranking` or `error`; closing it drops the work."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any]]()

    def tell(progress: RankingResult, told: int) -> None:
        loop.call_soon_threadsafe(events.put_nowait, round_event(progress, told))

    ranking = asyncio.ensure_future(service.rank(call.example, None, call.strategy, tell))
    try:
        while not (ranking.done() and events.empty()):
            waiting = asyncio.ensure_future(events.get())
            await asyncio.wait({ranking, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                yield _event("round", waiting.result())
            else:
                waiting.cancel()
        try:
            yield _event("ranking", answer_rank(call, ranking.result(), service.name))
        except BadRequest as error:
            yield _event("error", error_body("common", str(error), error.kind, error.status))
    finally:
        ranking.cancel()


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
