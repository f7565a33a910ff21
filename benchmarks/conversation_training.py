"""What an update costs where eliminations are asked anew, and where they are turns of a conversation, for as many rewards of steps.

python benchmarks/conversation_training.py MODEL [--candidates 10 20 50] [--samples 8] [--dtype bfloat16] [--runs 0]
Films with a history of 20, answers by letters. Eliminations are made up; nothing is generated. Each way has the same step rewards: all
rounds of every request, of which all answers are known (one elimination a request), or some answers are sampled (an elimination each).
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Sequence
from statistics import median

import numpy as np
import torch
from conversation import make_examples
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from r1ranker.data.tokenise import encode_chat
from r1ranker.data.turns import encode_next_turn
from r1ranker.evaluation.table import wide_console
from r1ranker.model.execution import ExecutionOptions
from r1ranker.pretrained import load_tokenizer
from r1ranker.rollout.constraint import build_constraint
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat, chat_messages, next_round, render_problem
from r1ranker.trainer.algorithm.estimation import assign_loss_weights
from r1ranker.trainer.algorithm.policy_losses import ClipRange
from r1ranker.trainer.batch.chains import chain, count_row_tokens
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.learners.policy import Policy, PolicyLoss
from r1ranker.trainer.workers.process import join_process_group

FORMAT = AnswerFormat("letter", think=False)


def prompt_of(tokenizer: PreTrainedTokenizerBase, example: RankingExample) -> tuple[list[int], tuple[str, ...], str]:
    """Token ids of a request, the roles of its messages, and what its answer begins with."""
    messages = chat_messages(render_problem(example, "iterative", "letter"), FORMAT, "iterative")
    return encode_chat(tokenizer, messages), tuple(one["role"] for one in messages), messages[-1]["content"]


def answers_of(
    tokenizer: PreTrainedTokenizerBase, example: RankingExample, prompt: list[int], out: Sequence[int], group: int, chosen: Sequence[int]
) -> list[Trajectory]:  # fmt: skip
    """An answer for each of the candidates at the places `chosen`."""
    constraint = build_constraint(tokenizer, example.candidates, "iterative", FORMAT)
    left = constraint.without(out).final_ids
    made = []
    for place in chosen:
        ids = list(constraint.final_ids[place])
        allowed = [
            sorted({one[depth] for one in left if one[:depth] == tuple(ids[:depth])}) for depth in range(len(ids))
        ]
        made.append(Trajectory(prompt, ids, np.full(len(ids), -1.0), "stop", group, allowed=allowed))
    return made


def separate(
    tokenizer: PreTrainedTokenizerBase, example: RankingExample, orders: Sequence[Sequence[int]], samples: int
) -> list[Trajectory]:
    """Rounds asked anew, each with the pool that an order leaves: `samples` answers each, or all (0)."""
    made: list[Trajectory] = []
    order, size = orders[0], len(example.candidates)
    for turn in range(size - 1):
        pool = tuple(example.candidates[place] for place in sorted(set(range(size)) - set(order[:turn])))
        shown = example.with_pool(pool)
        prompt, _, _ = prompt_of(tokenizer, shown)
        chosen = [place % len(pool) for place in range(samples or len(pool))]
        made += answers_of(tokenizer, shown, prompt, (), turn, chosen)
    return made


def conversation(
    tokenizer: PreTrainedTokenizerBase, example: RankingExample, orders: Sequence[Sequence[int]], samples: int
) -> list[Trajectory]:
    """The same as conversations, one an order; of every turn the answer that it went on with, or all (samples = 0)."""
    made: list[Trajectory] = []
    first, roles, begun = prompt_of(tokenizer, example)
    whole = build_constraint(tokenizer, example.candidates, "iterative", FORMAT).final_ids
    for number, order in enumerate(orders):
        prompt = first
        for turn in range(len(order) - 1):
            left = sorted(set(range(len(order))) - set(order[:turn]))
            turns = answers_of(tokenizer, example, prompt, order[:turn], turn, [order[turn]] if samples else left)
            for one in turns:
                one.episode, one.turn, one.root_length = number, turn, len(first)
            made += turns
            following = next_round(example, order[turn], "letter")
            prompt = encode_next_turn(tokenizer, roles, [*prompt, *whole[order[turn]]], following, begun)
    return made


def main() -> None:
    """Print a row for each number of candidates and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--candidates", nargs="+", type=int, default=[10, 20])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--runs", type=int, default=3, help="that are timed, after one that is not; 0: tokens alone")
    asked = parser.parse_args()
    tokenizer, device = load_tokenizer(asked.model), torch.device("cpu")
    join_process_group(None, 0, 1, device, 600)
    policy = Policy(asked.model, device, 1.0, ExecutionOptions(1, dtype=asked.dtype))
    loss = PolicyLoss(ClipRange())
    table = Table(title="an update of one request")
    for heading in (
        "candidates",
        "answers",
        "rounds",
        "step rewards",
        "tokens",
        "s",
        "tokens, of separate",
        "s, of separate",
    ):
        table.add_column(heading, justify="right")
    for candidates in asked.candidates:
        (example,) = make_examples(1, candidates)
        for samples in (0, asked.samples):
            rng = random.Random(1)
            orders = [rng.sample(range(candidates), candidates) for _ in range(samples or 1)]
            seconds: dict[str, list[float]] = {"separate": [], "conversation": []}
            batches = {
                way: make(tokenizer, example, orders, samples)
                for way, make in (("separate", separate), ("conversation", conversation))
            }
            for run in range(asked.runs and asked.runs + 1):
                for way, batch in batches.items():
                    assign_loss_weights(batch, "token-mean")
                    for one in batch:
                        one.advantages = np.ones(len(one.response_ids))
                    began = time.perf_counter()
                    policy.accumulate_gradients([batch], loss)
                    if run:
                        seconds[way].append(time.perf_counter() - began)
                    policy.module.zero_grad(set_to_none=True)
            tokens = {way: count_row_tokens(chain(batch, forced_ends=False)) for way, batch in batches.items()}
            took = {way: median(some) if some else math.nan for way, some in seconds.items()}
            for way, batch in batches.items():
                table.add_row(
                    str(candidates),
                    f"{samples} sampled" if samples else "every answer",
                    way,
                    str(len({(one.group_id, one.episode) for one in batch}) if not samples else len(batch)),
                    f"{tokens[way]:,}",
                    f"{took[way]:.2f}",
                    f"{tokens[way] / tokens['separate']:.2f}",
                    f"{took[way] / took['separate']:.2f}",
                )
    wide_console().print(table)


if __name__ == "__main__":
    main()
