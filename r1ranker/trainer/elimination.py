"""Pools that the policy itself leaves: before a batch is sampled, it takes candidates out of larger pools, round after round.

An elimination ends among the candidates that the ranker takes for the best, where pools drawn at random seldom are. Pools made once
by some ranker do not do: what it liked would stand in them mostly as a negative, and be unlearned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from r1ranker.data.prompts import Prompt
from r1ranker.data.tokenise import encode_chats
from r1ranker.errors import UserError
from r1ranker.rollout.engine import SamplingParams
from r1ranker.tasks.answers import parse_answer
from r1ranker.trainer.cluster import Cluster
from r1ranker.trainer.collect import requests_of
from r1ranker.trainer.config import Config
from r1ranker.trainer.dispatch import generate
from r1ranker.trainer.scoring import response_text, row_of

ROUNDS = 4
"""at most; a pool that is larger still stays as it is then"""

Ask = Callable[[Sequence[Prompt], int], Sequence[Sequence[str]]]
"""(prompts, round from 1 on) -> the texts of each prompt's answers"""


def survivors(prompts: Sequence[Prompt], most: int, ask: Ask, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts with pools of at most `most`; those of direct ranking, and those that are small enough, as they are.

    In a round go out the candidates that the answers name, most often named first; the positive stays.
    """
    left = list(prompts)
    for number in range(1, ROUNDS + 1):
        open_ = [
            place
            for place, prompt in enumerate(left)
            if prompt.mode == "iterative" and len(prompt.candidates) > max(most, 2)
        ]
        if not open_:
            break
        shrunk: dict[int, list[int]] = {}
        for place, texts in zip(open_, ask([left[place] for place in open_], number), strict=True):
            count = len(left[place].candidates)
            out = set(_named(left[place], texts)[: count - most])
            if out:
                shrunk[place] = [candidate for candidate in range(count) if candidate not in out]
        smaller = [_with_candidates(left[place], kept) for place, kept in shrunk.items()]
        for place, prompt, ids in zip(
            shrunk, smaller, encode_chats(tokenizer, [one.messages for one in smaller]), strict=True
        ):
            left[place] = prompt.with_token_ids(ids)
    return left


def asking(
    cluster: Cluster, config: Config, tokenizer: PreTrainedTokenizerBase, params: SamplingParams, step: int
) -> Ask:
    """Asks the rollout engines, sampling as `params` says."""

    def ask(prompts: Sequence[Prompt], number: int) -> list[list[str]]:
        requests = requests_of(config, tokenizer, prompts, step, number)
        size = config.actor_rollout_ref.rollout.tensor_model_parallel_size
        return [
            [response_text(tokenizer, one.token_ids, one.finish_reason == "stop") for one in samples]
            for samples in generate(cluster, requests, params, size)
        ]

    return ask


def _with_candidates(prompt: Prompt, kept: Sequence[int]) -> Prompt:
    try:
        return prompt.with_candidates(kept)
    except UserError as error:
        raise UserError(
            f"{row_of(prompt)}: {error}; actor_rollout_ref.rollout.eliminate_to=null takes it as it is"
        ) from error


def _named(prompt: Prompt, texts: Sequence[str]) -> list[int]:
    """Candidates but for the positive that are named, most often first; of equals the later one."""
    names, positive = prompt.candidates, str(prompt.ground_truth["gt"])
    votes: Counter[int] = Counter()
    for text, count in Counter(texts).items():
        answer = parse_answer(text, names, prompt.mode, prompt.answer_format)
        if answer.usable(prompt.mode, len(names)) and names[answer.named[0]] != positive:
            votes[answer.named[0]] += count
    return sorted(votes, key=lambda candidate: (votes[candidate], candidate), reverse=True)
