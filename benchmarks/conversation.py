"""Elimination as one conversation against separate rounds: tokens computed and seconds a query, by candidates.

python benchmarks/conversation.py MODEL [--engine vllm] [--candidates 10 20 50 100] [--queries 8] [--dtype bfloat16]
    [--ways separate conversation fresh]
Films with a history of 20, answers by labels, constrained to the pool. Both ways are asked in turn over one engine, each after a run
that is not counted. `fresh`: separate rounds on the transformers engine without what it keeps between rounds.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace

from rich.table import Table

from r1ranker.evaluation.table import wide_console
from r1ranker.ranking.conversation import RankingResult
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.settings import Rounds
from r1ranker.rollout import hf_kept
from r1ranker.tasks.example import RankingExample

HISTORY = 20
WORDS = [
    "amber",
    "bridge",
    "cedar",
    "delta",
    "ember",
    "forest",
    "garden",
    "harbour",
    "island",
    "jungle",
    "kettle",
    "lantern",
    "meadow",
    "night",
    "orchard",
    "prairie",
]


def make_examples(count: int, candidates: int, seed: int = 0) -> list[RankingExample]:
    """Requests for films with titles of three words, all different."""
    rng = random.Random(seed)
    examples = []
    for _ in range(count):
        titles: set[str] = set()
        while len(titles) < candidates + HISTORY:
            titles.add(" ".join(rng.choices(WORDS, k=3)).title())
        shown = rng.sample(sorted(titles), len(titles))
        examples.append(RankingExample("Rec-Movie", tuple(shown[HISTORY:]), history=tuple(shown[:HISTORY])))
    return examples


def measure(ranker: Ranker, examples: list[RankingExample]) -> tuple[float, list[RankingResult]]:
    """Seconds for all examples at once, and their results."""
    began = time.perf_counter()
    results = list(ranker.rank_many(examples))
    return time.perf_counter() - began, results


def main() -> None:
    """Print a row for each number of candidates and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--engine", default="hf", choices=("hf", "vllm"))
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--candidates", nargs="+", type=int, default=[10, 20, 50, 100])
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--ways", nargs="+", default=["separate", "conversation"], help="and fresh, with --engine hf")
    asked = parser.parse_args()
    settings = Ranker.settings_of(asked.model, "iterative", "candidates", False, "label", max_tokens=12)
    first = Ranker.from_pretrained(
        asked.model, settings=settings, engine=asked.engine, dtype=asked.dtype, max_model_len=4096
    )
    table = Table(title=f"{asked.engine}, {asked.queries} queries, history of {HISTORY}")
    for heading in (
        "candidates",
        "rounds",
        "prompt tokens",
        "computed tokens",
        "s a query",
        "tokens, of separate",
        "s, of separate",
    ):
        table.add_column(heading, justify="right")
    room = hf_kept.KEPT_TOKENS
    for candidates in asked.candidates:
        examples = make_examples(asked.queries, candidates)
        of_separate: tuple[float, float] | None = None
        for way in asked.ways:
            hf_kept.KEPT_TOKENS = 0 if way == "fresh" else room
            rounds: Rounds = "conversation" if way == "conversation" else "separate"
            ranker = Ranker(first.engine, first.tokenizer, replace(settings, rounds=rounds))
            measure(ranker, make_examples(1, candidates, seed=1))
            seconds, results = measure(ranker, examples)
            computed = sum(one.prompt_tokens - one.cached_tokens + one.response_tokens for one in results)
            of_separate = of_separate or (computed, seconds)
            table.add_row(
                str(candidates),
                way,
                f"{sum(one.prompt_tokens for one in results) / len(results):,.0f}",
                f"{computed / len(results):,.0f}",
                f"{seconds / len(results):.3f}",
                f"{computed / of_separate[0]:.2f}",
                f"{seconds / of_separate[1]:.2f}",
            )
    first.engine.close()
    wide_console().print(table)


if __name__ == "__main__":
    main()
