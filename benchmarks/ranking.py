"""Queries a second, ways of ranking against a plain loop over transformers' generate: each task of a data set, 20 candidates or as many as there are.

python benchmarks/ranking.py MODEL --data BENCH [--queries 4] [--dtype bfloat16] [--engine vllm] [--runs 3]
BENCH is a directory in Ranking-bench's layout (`r1ranker prepare` writes bench/). All sides are asked for labels, with the same prompts:
direct: the whole list in one answer; separate (rounds) and conversation: who goes out, one by one; logits: one pass, no answer.
The loop asks the direct question query by query, greedily, for three tokens a candidate, and is the peer of `direct`. The loop of rounds asks
about pools as large as ours, from which the last candidate goes out, for four tokens each, and is the peer of `separate`.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from statistics import median

import torch
from rich.table import Table
from transformers import PreTrainedModel

from r1ranker.data.sources.ranking_bench import read_ranking_bench
from r1ranker.data.tokenise import encode_chat
from r1ranker.evaluation.table import wide_console
from r1ranker.model.loading import load_causal_lm
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.settings import RankerSettings
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import chat_messages, render_problem

WAYS = ("direct", "separate", "conversation", "logits")
ANSWER_TOKENS = 4
"""of a round: a label and the tags around it"""


def settings_of(model: str, way: str) -> RankerSettings:
    """How a ranker is asked in this way."""
    strategy = {"direct": "direct", "logits": "logits"}.get(way, "iterative")
    trained = "direct" if way == "direct" else "iterative"
    settings = Ranker.settings_of(model, strategy, "candidates", False, "label", 200, trained)  # type: ignore[arg-type]
    return replace(settings, rounds="conversation" if way == "conversation" else "separate")


def plain_loop(model: PreTrainedModel, ranker: Ranker, examples: Sequence[RankingExample]) -> None:
    """Each question that the ranker would ask, by itself, by transformers' generate."""
    mode, asked = ranker.settings.mode, ranker.settings.answer_format
    rounds = mode == "iterative"
    for example in examples:
        for size in range(len(example.candidates), 1, -1) if rounds else [len(example.candidates)]:
            pool = replace(example, candidates=example.candidates[:size], texts=example.texts[:size])
            messages = chat_messages(render_problem(pool, mode, asked.answer_style), asked, mode)
            ids = torch.tensor([encode_chat(ranker.tokenizer, messages)])
            new = ANSWER_TOKENS if rounds else 3 * size
            with torch.inference_mode():
                model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False
                )  # type: ignore[operator]


def main() -> None:
    """Print a row for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--queries", type=int, default=4, help="of each task")
    parser.add_argument("--engine", default="hf", choices=("hf", "vllm"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    by_task: dict[str, list[RankingExample]] = defaultdict(list)
    for _, example in read_ranking_bench(options.data, "direct", "test"):
        by_task[example.task].append(example)
    first = Ranker.from_pretrained(
        options.model, settings=settings_of(options.model, "direct"), engine=options.engine, dtype=options.dtype
    )
    peer = load_causal_lm(options.model, getattr(torch, options.dtype), "sdpa")
    rankers = {way: Ranker(first.engine, first.tokenizer, settings_of(options.model, way)) for way in WAYS}
    sides: dict[str, Callable[[list[RankingExample]], object]] = {
        way: lambda examples, ranker=ranker: list(ranker.rank_many(examples))  # type: ignore[misc]
        for way, ranker in rankers.items()
    }
    sides["plain loop, direct"] = lambda examples: plain_loop(peer, rankers["direct"], examples)
    sides["plain loop, rounds"] = lambda examples: plain_loop(peer, rankers["separate"], examples)
    table = Table(title=f"queries a second, {options.engine}, {options.dtype}")
    for heading in ("task", "candidates", *sides, "direct, of the loop's", "rounds, of the loop's"):
        table.add_column(heading, justify="right")
    for task, examples in sorted(by_task.items()):
        chosen = list(islice(examples, options.queries))
        seconds: dict[str, list[float]] = defaultdict(list)
        for run in range(options.runs + 1):
            for name, ask in sides.items():
                began = time.perf_counter()
                ask(chosen)
                if run:  # the first one warms up
                    seconds[name].append(time.perf_counter() - began)
        rate = {name: len(chosen) / median(values) for name, values in seconds.items()}
        pairs = (("direct", "plain loop, direct"), ("separate", "plain loop, rounds"))
        ratios = [median(b / a for a, b in zip(seconds[one], seconds[other], strict=True)) for one, other in pairs]
        sizes = sorted({len(example.candidates) for example in chosen})
        table.add_row(
            task,
            "-".join(map(str, sizes)),
            *(f"{value:.2f}" for value in rate.values()),
            *(f"{one:.1f}" for one in ratios),
        )
    first.engine.close()
    wide_console().print(table)


if __name__ == "__main__":
    main()
