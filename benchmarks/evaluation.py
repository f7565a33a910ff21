"""Iterative ranking with vLLM: every query going on by itself against all queries held in step; tokens from the prefix cache.

python benchmarks/evaluation.py [--queries 24] [--candidates 20] [--typical 60] [--runs 5]
A randomly initialised model writes thoughts of uneven length (a length drawn for each question, log-normal, the same on both
sides), and what it wrote decides which candidate goes out, so that both sides have to come to the same rankings.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from r1ranker.model.init import save_hf, train_tokenizer
from r1ranker.ranking.conversation import Question, Reply
from r1ranker.ranking.ranker import Ranker
from r1ranker.rollout.engine import Completion, Request, SamplingParams
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat, chat_messages, render_problem

WORDS = [
    f"{first}{second}"
    for first in ("sil", "gol", "mor", "tan", "ver", "ul")
    for second in ("ent", "den", "ning", "go", "dant")
]
ASKED = AnswerFormat()
LONGEST = 512
"""tokens of an answer"""


class Talkative(Ranker):
    """Answers are as long as is drawn for the question, and name a candidate by a checksum of their tokens."""

    typical = 60

    def _to_request(self, question: Question) -> tuple[Request, SamplingParams]:
        request, params = super()._to_request(question)
        length = round(random.Random(request.seed).lognormvariate(math.log(self.typical), 0.9))
        return request, replace(params, max_tokens=min(max(4, length), LONGEST))

    def _to_replies(self, question: Question, request: Request, completions: Sequence[Completion]) -> list[Reply]:
        (reply,) = super()._to_replies(question, request, completions)
        names = question.example.candidates
        place = zlib.crc32(repr(completions[0].token_ids).encode()) % len(names)
        return [replace(reply, text=f"</think><answer>{names[place]}</answer>")]


def examples(count: int, candidates: int) -> list[RankingExample]:
    """Recommendation requests with a history of 20 made-up titles, of 8 tokens each as titles of films and games have."""
    rng = random.Random(0)

    def titles(many: int) -> tuple[str, ...]:
        found: dict[str, None] = {}
        while len(found) < many:
            found[" ".join(rng.choices(WORDS, k=rng.randint(4, 8))).title()] = None
        return tuple(found)

    rows = []
    for _ in range(count):
        names = titles(20 + candidates)
        rows.append(RankingExample("Rec-Movie", names[20:], names[20], history=names[:20]))
    return rows


def main() -> None:
    """Print both sides' times, run by run, their ratio and the cache's share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=24)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--typical", type=int, default=60, help="median of the answers' lengths, in tokens")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    Talkative.typical = options.typical
    rows = examples(options.queries, options.candidates)
    with tempfile.TemporaryDirectory() as directory:
        texts = [
            message["content"]
            for one in rows
            for message in chat_messages(render_problem(one, "iterative"), ASKED, "iterative")
        ]
        tokenizer = train_tokenizer(texts, 1000)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
            )
        )  # fmt: skip
        model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
        save_hf(directory, model, tokenizer)
        ranker = Talkative.from_pretrained(directory, engine="vllm", max_tokens=LONGEST)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        rankings: dict[bool, list[tuple[str, ...]]] = {}
        shares: dict[bool, float] = {}
        for run in range(options.runs + 1):
            for waves in (False, True):
                ranker.engine.load_weights(model.named_parameters())  # drops the prefix cache
                began = time.perf_counter()
                results = dict(ranker.rank_stream(rows, waves))
                if run:  # the first warms up
                    seconds[waves].append(time.perf_counter() - began)
                rankings[waves] = [results[place].ranking for place in range(len(rows))]
                prompt = sum(one.prompt_tokens for one in results.values())
                shares[waves] = sum(one.cached_tokens for one in results.values()) / prompt
        ranker.engine.close()
    same = rankings[False] == rankings[True]
    print(
        f"{options.queries} queries, {options.candidates} candidates, {prompt / options.queries:,.0f} prompt tokens a query"
    )
    print(f"same rankings: {same}")
    for waves, name in ((False, "each by itself"), (True, "in step")):
        print(
            f"{name}: median {statistics.median(seconds[waves]):.2f} s of {', '.join(f'{one:.2f}' for one in seconds[waves])}; "
            f"{shares[waves]:.1%} of the prompt tokens from the prefix cache"
        )
    ratio = statistics.median(one / other for one, other in zip(seconds[False], seconds[True], strict=True))
    print(f"ratio: {ratio:.2f}")


if __name__ == "__main__":
    main()
