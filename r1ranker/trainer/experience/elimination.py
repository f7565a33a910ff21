"""Pools that the policy itself leaves: before a batch is sampled, it takes candidates out of larger pools, round after round.

An elimination ends among the candidates that the ranker takes for the best, where pools drawn at random seldom are. Pools made once
by some ranker do not do: what it liked would stand in them mostly as a negative, and be unlearned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from r1ranker.data.files.parquet import row_to_example
from r1ranker.data.prompt_store import Prompt
from r1ranker.data.tokenise import decode_response, encode_chats
from r1ranker.rollout.engine import Completion, SamplingParams
from r1ranker.tasks.answers import parse_answer
from r1ranker.tasks.prompts import render_problem, user_message
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.experience.collect import build_requests
from r1ranker.trainer.experience.enumeration import answer_probabilities, enumerate_answers
from r1ranker.trainer.workers.cluster import Cluster
from r1ranker.trainer.workers.dispatch import generate

MAX_ROUNDS = 4
"""at most; a pool that is larger still stays as it is then"""

Worst = Callable[[Sequence[Prompt], int], Sequence[Sequence[int]]]
"""(prompts, round from 1 on) -> each prompt's candidates that may go out, worst first"""


def eliminate_to_pool(
    cluster: Cluster,
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    *when: int,
) -> tuple[list[Prompt], int]:
    """A batch on the pools that the policy leaves, and the tokens that its answers took, each with its prompt.

    `when`: the step, and the number of the batch drawn for it. With rollout.every_answer those that are most likely to go out go, at
    once; else those that sampled answers name.
    """
    rollout, spent = config.actor_rollout_ref.rollout, [0]
    assert rollout.eliminate_to is not None

    def count(asked: Sequence[Prompt], answers: Sequence[Sequence[Completion]]) -> None:
        for prompt, own in zip(asked, answers, strict=True):
            spent[0] += sum(len(prompt.token_ids) + len(one.token_ids) for one in own)

    def by_votes(prompts: Sequence[Prompt], number: int) -> list[list[int]]:
        requests = build_requests(config, tokenizer, prompts, *when, number)
        answers = generate(cluster, requests, params, rollout.tensor_model_parallel_size)
        count(prompts, answers)
        return [
            count_votes(
                prompt, [decode_response(tokenizer, one.token_ids, one.finish_reason == "stop") for one in samples]
            )
            for prompt, samples in zip(prompts, answers, strict=True)
        ]

    def by_probability(prompts: Sequence[Prompt], number: int) -> list[list[int]]:
        answers = enumerate_answers(cluster, config, tokenizer, prompts)
        count(prompts, answers)
        return [np.argsort(-answer_probabilities(own), kind="stable").tolist() for own in answers]

    worst = by_probability if rollout.every_answer else by_votes
    return eliminate(prompts, rollout.eliminate_to, worst, tokenizer), spent[0]


def eliminate(prompts: Sequence[Prompt], most: int, worst: Worst, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts with pools of at most `most`; those of direct ranking, and those that are small enough, as they are.

    In a round go out the candidates that `worst` gives; the positive stays.
    """
    left = list(prompts)
    for number in range(1, MAX_ROUNDS + 1):
        large = [
            place for place, one in enumerate(left) if one.mode == "iterative" and len(one.candidates) > max(most, 2)
        ]
        if not large:
            break
        shrunk: dict[int, Prompt] = {}
        for place, order in zip(large, worst([left[place] for place in large], number), strict=True):
            names, positive = left[place].candidates, str(left[place].ground_truth["gt"])
            count = len(names)
            out = set([candidate for candidate in order if names[candidate] != positive][: count - most])
            if out:
                kept = [candidate for candidate in range(count) if candidate not in out]
                shrunk[place] = narrow_pool(left[place], kept)
        tokens = encode_chats(tokenizer, [one.messages for one in shrunk.values()])
        for (place, prompt), ids in zip(shrunk.items(), tokens, strict=True):
            if len(ids) <= len(prompt.token_ids):  # wording that is not known would get its pool once more
                left[place] = replace(prompt, token_ids=ids)
    return left


def narrow_pool(prompt: Prompt, kept: Sequence[int]) -> Prompt:
    """The same request, worded for the candidates at the places `kept` alone; its token ids are still those of before."""
    form, truth = prompt.answer_format, prompt.ground_truth
    pool = tuple(prompt.candidates[place] for place in kept)
    example = row_to_example(prompt.as_row()).with_pool(pool)
    asked = user_message(render_problem(example, prompt.mode, form.answer_style), form, prompt.mode)
    place = next(place for place, message in enumerate(prompt.messages) if message["role"] == "user")
    messages = [*prompt.messages[:place], asked, *prompt.messages[place + 1 :]]
    grades = {} if truth.get("grades") is None else {"grades": list(example.grades)}
    return replace(prompt, messages=messages, ground_truth={**truth, "candidate_text": list(pool), **grades})


def count_votes(prompt: Prompt, texts: Sequence[str]) -> list[int]:
    """Candidates that answers name, most often named first; of equals the later one."""
    names = prompt.candidates
    votes: Counter[int] = Counter()
    for text, count in Counter(texts).items():
        answer = parse_answer(text, names, prompt.mode, prompt.answer_format)
        if answer.is_valid(prompt.mode, len(names)):
            votes[answer.named[0]] += count
    return sorted(votes, key=lambda candidate: (votes[candidate], candidate), reverse=True)
