"""What the service did, for Prometheus and for the access log. Neither holds a text."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from r1ranker.ranking.conversation import RankingResult

if TYPE_CHECKING:
    from r1ranker.serving.service import Service

PATHS = ("/rerank", "/v1/rank", "/v1/models", "/info", "/health", "/ping", "/metrics", "/docs", "/openapi.json")
"""others are counted together, so that nobody can make series"""
COSTS = {
    "calls": "questions put to the model",
    "fallbacks": "answers that had to be repaired",
    "prompt_tokens": "tokens of prompts",
    "cached_tokens": "of them, those that the engine had computed before",
    "response_tokens": "tokens of answers",
}
"""of a ranking"""
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

LOG = logging.getLogger("r1ranker.access")


class Measures:
    """Counters of one service."""

    def __init__(self, service: Service) -> None:
        self._registry = registry = CollectorRegistry()
        labels = ["path", "dialect", "status"]
        self._requests = Counter("r1ranker_requests", "requests", labels, registry=registry)
        self._seconds = Histogram(
            "r1ranker_request_seconds", "seconds a request", ["path"], buckets=SECONDS, registry=registry
        )
        open_requests = Gauge("r1ranker_open_requests", "requests that are ranked or wait", registry=registry)
        open_requests.set_function(lambda: service.open_requests)
        self._costs = {name: Counter(f"r1ranker_{name}", what, registry=registry) for name, what in COSTS.items()}
        service.on_ranked = self.add_costs

    def add_costs(self, result: RankingResult) -> None:
        """Of a ranking."""
        for name, counter in self._costs.items():
            counter.inc(getattr(result, name))

    def count(self, path: str, dialect: str, status: int, began: float) -> None:
        """A request that is answered; `began` as time.perf_counter has it."""
        known, seconds = path if path in PATHS else "other", time.perf_counter() - began
        self._requests.labels(known, dialect, str(status)).inc()
        self._seconds.labels(known).observe(seconds)
        LOG.info("path=%s dialect=%s status=%d seconds=%.3f", known, dialect or "-", status, seconds)

    def response(self) -> Response:
        """All of them in Prometheus' text format."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)
