"""Seconds of a request to a served ranker that nobody else asks, by documents and strategy.

python benchmarks/serving_latency.py MODEL [--engine hf] [--strategies direct logits iterative] [--documents 5 20 100] [--requests 5]
    [--answer-style label-after] [--dtype bfloat16]
The service is a process of its own; what is made on first use is not counted. A prompt's beginning may be cached from the request before.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import time

import httpx
from rich.table import Table
from serving import make_queries, start

from r1ranker.evaluation.table import wide_console


def main() -> None:
    """Print a row a strategy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--engine", default="hf", choices=("hf", "vllm"))
    parser.add_argument("--strategies", nargs="+", default=["direct", "logits", "iterative"])
    parser.add_argument("--documents", nargs="+", type=int, default=[5, 20, 100])
    parser.add_argument("--answer-style", default="label-after")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=5)
    asked = parser.parse_args()
    table = Table(title=f"seconds of a request, {asked.engine}, median of {asked.requests}")
    for heading in ("strategy", *(f"{count} documents" for count in asked.documents)):
        table.add_column(heading, justify="right")
    for strategy in asked.strategies:
        process, address = start(
            asked.model, asked.engine, strategy, 1, "--answer-style", asked.answer_style, "--dtype", asked.dtype
        )
        try:
            with httpx.Client(base_url=address, timeout=600) as client:
                cells = [f"{median_seconds(client, count, asked.requests):.2f}" for count in asked.documents]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
        table.add_row(strategy, *cells)
    wide_console().print(table)


def median_seconds(client: httpx.Client, documents: int, requests: int) -> float:
    """Of `requests` with as many documents each, after one that is not counted."""
    seconds = []
    for body in make_queries(requests + 1, documents):
        began = time.perf_counter()
        client.post("/rerank", json=body).raise_for_status()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
