"""A served ranker under load: lost and wrong answers, seconds of a request, and requests a second against one by one.

python benchmarks/serving.py MODEL [--engine vllm] [--seconds 60] [--concurrency 200] [--documents 20] [--queries 200]
Every answer is held against the one that the Ranker gives alone, on the same engine, after the load.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from rich.table import Table

from r1ranker.data.sources.toy import REMARKS, SOURCES, TOPICS
from r1ranker.evaluation.table import wide_console
from r1ranker.ranking.ranker import Ranker
from r1ranker.reranking.requests import PASSAGES
from r1ranker.tasks.example import RankingExample, number_passages


@dataclass
class Outcome:
    """What came of the load."""

    orders: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    """query and places of its documents, best first, of each answer"""
    seconds: list[float] = field(default_factory=list)
    lost: int = 0


def make_queries(count: int, documents: int, seed: int = 0) -> list[dict[str, Any]]:
    """Bodies of rerank requests about the built-in world's topics."""
    rng = random.Random(seed)
    texts = [f"{source} on {topic}: {remark}" for source in SOURCES for topic in TOPICS for remark in REMARKS]
    return [
        {"query": f"{rng.choice(TOPICS)}, {rng.choice(REMARKS)}", "documents": rng.sample(texts, documents)}
        for _ in range(count)
    ]


def start(model: str, engine: str, strategy: str, concurrency: int, *options: str) -> tuple[subprocess.Popen[str], str]:
    """A service's process and its address, once it answers; `options` are further ones of `r1ranker serve`."""
    command = [
        sys.executable, "-m", "r1ranker.cli", "serve", model, "--port", "0", "--engine", engine, "--strategy", strategy, "--no-think",
        "--constrain", "candidates", "--max-concurrency", str(2 * concurrency), *options,
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"is served at (\S+)", line):
            break
    else:
        raise SystemExit("the service did not start")
    drain(process)
    with httpx.Client(base_url=found[1]) as client:
        while True:
            try:
                if client.get("/health").status_code == 200:
                    return process, found[1]
            except httpx.TransportError:
                time.sleep(0.1)


def drain(process: subprocess.Popen[str]) -> None:
    """Read a process's stderr away, so that it never waits for a reader."""
    threading.Thread(target=lambda: process.stderr and process.stderr.read(), daemon=True).start()


async def load(address: str, bodies: list[dict[str, Any]], concurrency: int, seconds: float) -> Outcome:
    """`concurrency` clients that ask one request after the other until `seconds` have passed."""
    outcome, end = Outcome(), time.perf_counter() + seconds
    numbers = iter(range(10**9))
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:

        async def ask() -> None:
            while time.perf_counter() < end:
                query = next(numbers) % len(bodies)
                began = time.perf_counter()
                try:
                    answer = await client.post("/rerank", json=bodies[query])
                    order = tuple(one["index"] for one in answer.json()["results"])
                except (httpx.HTTPError, KeyError, ValueError) as error:
                    outcome.lost += 1
                    print(f"lost after {time.perf_counter() - began:.1f} s: {error!r}", file=sys.stderr)
                else:
                    outcome.orders.append((query, order))
                    outcome.seconds.append(time.perf_counter() - began)

        await asyncio.gather(*(ask() for _ in range(concurrency)))
    return outcome


def rank_alone(
    model: str, engine: str, strategy: Any, bodies: list[dict[str, Any]], timed: int
) -> tuple[list[tuple[int, ...]], float]:
    """The order of each body by the Ranker, one after the other, and requests a second over the first `timed` of them."""
    ranker = Ranker.from_pretrained(model, strategy, "candidates", think=False, engine=engine)
    orders, began, per_second = [], time.perf_counter(), 0.0
    for number, body in enumerate(bodies, 1):
        names = number_passages(len(body["documents"]))
        example = RankingExample(PASSAGES, names, query=body["query"], texts=tuple(body["documents"]))
        (result,) = ranker.rank_many([example])
        orders.append(tuple(names.index(name) for name in result.ranking))
        if number == timed:
            per_second = timed / (time.perf_counter() - began)
    ranker.engine.close()
    return orders, per_second


def main() -> None:
    """Print a table of one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--engine", default="hf", choices=("hf", "vllm"))
    parser.add_argument("--strategy", default="direct")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--queries", type=int, default=200)
    asked = parser.parse_args()
    bodies = make_queries(asked.queries, asked.documents)
    process, address = start(asked.model, asked.engine, asked.strategy, asked.concurrency)
    try:
        asyncio.run(load(address, bodies[:8], 8, 1))  # what is made on first use
        began = time.perf_counter()
        outcome = asyncio.run(load(address, bodies, asked.concurrency, asked.seconds))
        seconds = time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    alone, per_second = rank_alone(asked.model, asked.engine, asked.strategy, bodies, min(50, len(bodies)))
    wrong = sum(order != alone[query] for query, order in outcome.orders)
    served = len(outcome.orders) / seconds
    table = Table(title=f"{asked.concurrency} clients, {asked.documents} documents, {asked.engine}, {asked.strategy}")
    p50, p99 = np.quantile(outcome.seconds, (0.5, 0.99))
    cells = {
        "answers": f"{len(outcome.orders):,}",
        "lost": f"{outcome.lost:,}",
        "wrong": f"{wrong:,}",
        "p50, s": f"{p50:.2f}",
        "p99, s": f"{p99:.2f}",
        "requests/s": f"{served:.1f}",
        "one by one, requests/s": f"{per_second:.2f}",
        "ratio": f"{served / per_second:.1f}",
    }
    for heading in cells:
        table.add_column(heading, justify="right")
    table.add_row(*cells.values())
    wide_console().print(table)


if __name__ == "__main__":
    main()
