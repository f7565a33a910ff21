"""A ranker that is served: bodies in, rankings out, whatever asks for them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from r1ranker.errors import UserError
from r1ranker.ranking.conversation import RankingResult
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.settings import MODES, Strategy
from r1ranker.serving.dialects import CLIENT_CLOSED, BadRequest, RerankCall, answer_rerank
from r1ranker.serving.limits import Limits
from r1ranker.serving.scheduler import EngineDead, OnProgress, Scheduler
from r1ranker.tasks.catalog import get_task
from r1ranker.tasks.example import RankingExample, number_passages

Gone = Callable[[], Coroutine[Any, Any, None]]
RETRY_AFTER_S = 1
"""what a refused client is told to wait"""


class Busy(BadRequest):
    """Too much is asked for at once, or the service is ending: the same request may be served a little later."""


@dataclass
class Service:
    """The ranker with its limits."""

    ranker: Ranker
    name: str
    """of the model, as clients see it"""
    task: str
    """whose words requests are asked in"""
    limits: Limits = field(default_factory=Limits)
    keys: frozenset[str] = frozenset()
    is_ending: bool = False
    open_requests: int = 0
    on_ranked: Callable[[RankingResult], None] = lambda result: None
    """called with every ranking that is answered"""

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.ranker)

    async def rerank(self, call: RerankCall, gone: Gone | None = None) -> Any:
        """The body of the answer to a rerank request."""
        names = number_passages(len(call.documents))
        example = RankingExample(self.task, names, query=call.query, texts=call.documents)
        if get_task(self.task).scenario == "recommendation":  # which asks with a history: the lines of the query
            history = tuple(line for line in map(str.strip, call.query.splitlines()) if line)
            example = replace(example, query="", history=history)
        result = await self.rank(example, gone)
        return answer_rerank(call, result, names, self.name, f"rerank-{uuid.uuid4().hex}")

    async def rank(
        self,
        example: RankingExample,
        gone: Gone | None = None,
        strategy: Strategy | None = None,
        on_progress: OnProgress | None = None,
    ) -> RankingResult:
        """A ranking; `gone` ends when the client does, and with it the work. `on_progress` is called in another thread.

        Raises BadRequest for what does not fit the model, Busy where too much is asked for at once or it takes too long.
        """
        if self.scheduler.death is not None:
            raise Busy("the engine has failed; the service is ending", 503, "service_unavailable")
        if self.is_ending:
            raise Busy("the service is ending", 503, "service_unavailable")
        if self.open_requests >= self.limits.concurrency:
            raise Busy(f"{self.open_requests:,} requests are being served; try again later", 429, "overloaded")
        ranker = self._ranker_of(strategy)
        self.open_requests += 1
        job = self.scheduler.submit(example, ranker, on_progress)
        ranked = asyncio.wrap_future(job.future)
        waiting: set[asyncio.Future[Any]] = {ranked}
        if gone is not None:
            waiting.add(asyncio.ensure_future(gone()))
        try:
            done, _ = await asyncio.wait(waiting, timeout=self.limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if ranked in done:
                result = ranked.result()
                self.on_ranked(result)
                return result
            if done:
                raise BadRequest("the client hung up", CLIENT_CLOSED)
            raise Busy(f"it took more than {self.limits.timeout_s:g} s", 503, "timeout")
        except UserError as error:
            raise BadRequest(" ".join(str(error).split())) from error
        except EngineDead as error:
            raise Busy("the engine has failed; the service is ending", 503, "service_unavailable") from error
        finally:
            self.open_requests -= 1
            if not ranked.done():
                self.scheduler.cancel(job)
            for task in waiting - {ranked}:
                task.cancel()

    def _ranker_of(self, strategy: Strategy | None) -> Ranker:
        """The ranker that ranks by a strategy, over the same engine; raises BadRequest for one that does not go with its settings."""
        if strategy is None:
            return self.ranker
        own = self.ranker.settings
        trained = strategy if strategy in MODES else own.trained
        rounds = own.rounds if strategy == "iterative" else "separate"
        settings = replace(own, strategy=strategy, trained=trained, rounds=rounds)
        try:
            settings.check()
        except UserError as error:
            raise BadRequest(f"strategy: {error}") from error
        if settings.is_constrained and not own.is_constrained:
            raise BadRequest(f"strategy: {strategy} wants a service that was started with --constrain candidates")
        return Ranker(self.ranker.engine, self.ranker.tokenizer, settings)
