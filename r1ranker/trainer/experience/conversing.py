"""Eliminations as conversations: what is asked of the engines, and which of the turns that come back are learned from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from r1ranker.data.prompt_store import Prompt, PromptStore
from r1ranker.data.turns import encode_next_turn
from r1ranker.errors import UserError
from r1ranker.rollout.constraint import build_constraint
from r1ranker.rollout.episodes import EpisodeRequest, EpisodeRules, Turn
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import next_round
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.scoring.outcome import describe_row


def build_episodes(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    each: int,
    *when: int,
    to_learn: bool = False,
) -> list[EpisodeRequest]:
    """`each` episodes of every prompt, one after another, with a seed each; `when` as in build_requests.

    `to_learn`: as long as nothing is learned from what the positive's going out would say, it stays. Raises UserError for a prompt of a direct ranking.
    """
    seeds = np.random.SeedSequence([config.trainer.seed, *when]).generate_state(each * len(prompts), dtype=np.uint64)
    constrain = config.actor_rollout_ref.rollout.constrain == "candidates"
    requests = []
    for place, prompt in enumerate(prompts):
        check_iterative(prompt)
        example, rules = pool_of(prompt), rules_of(config, prompt)
        if to_learn:
            rules = replace(rules, kept_until=_kept_until(config, prompt))
        constraint = (
            build_constraint(tokenizer, prompt.candidates, prompt.mode, prompt.answer_format) if constrain else None
        )
        requests += [
            EpisodeRequest(prompt.token_ids, example, int(seed), constraint, rules)
            for seed in seeds[each * place : each * (place + 1)]
        ]
    return requests


def check_iterative(prompt: Prompt) -> None:
    """Raise UserError for a prompt of a direct ranking, which has one answer."""
    if prompt.mode != "iterative":
        raise UserError(
            f"{describe_row(prompt)}: data.rounds=conversation is of iterative_ranking rows; separate is wanted"
        )


def pool_of(prompt: Prompt) -> RankingExample:
    """The candidates of a prompt, and what is known of them."""
    truth = prompt.ground_truth
    grades = tuple(float(grade) for grade in truth.get("grades") or ())
    return RankingExample(prompt.task, tuple(prompt.candidates), positive=str(truth["gt"]), grades=grades)


def rules_of(config: Config, prompt: Prompt) -> EpisodeRules:
    """How episodes of a prompt go."""
    return EpisodeRules(
        prompt.answer_format,
        tuple(message["role"] for message in prompt.messages),
        prompt.messages[-1]["content"],
        config.actor_rollout_ref.rollout.max_turns,
        config.data.max_prompt_length,
        config.data.keep_thoughts,
    )


def _kept_until(config: Config, prompt: Prompt) -> int:
    rollout = config.actor_rollout_ref.rollout
    if rollout.every_answer and not prompt.ground_truth.get("grades"):
        return 1  # what every answer is worth is known anyway, and without the positive there is no more to learn
    return rollout.eliminate_to or 0


@dataclass(frozen=True)
class ConversationLength:
    """How long a prompt's conversation may become, where each answer is as long as may be."""

    most: int
    """turns that there are"""
    added: int
    """tokens between an answer and the next one"""
    fit: int
    """turns that data.max_prompt_length holds"""

    def __str__(self) -> str:
        return f"{self.most} turns of the first prompt, with {self.added} tokens between answers; {self.fit} of them fit at least"


def describe_conversation(config: Config, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> ConversationLength:
    """The length of a prompt's conversation; raises UserError for a chat template that writes earlier turns anew."""
    rules, example = rules_of(config, prompt), pool_of(prompt)
    most = min(len(example.candidates) - 1, rules.max_turns or len(example.candidates))
    wording = next_round(example, len(example.candidates) - 1, prompt.answer_format.answer_style)
    following = encode_next_turn(tokenizer, rules.roles, prompt.token_ids, wording, rules.begun)
    added = len(following) - len(prompt.token_ids)
    room = config.data.max_prompt_length - len(prompt.token_ids)
    return ConversationLength(most, added, min(most, 1 + room // (added + config.data.max_response_length)))


def describe_turns(config: Config, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[str]:
    """A line where the longest prompt's conversation does not fit data.max_prompt_length with answers as long as may be.

    Raises UserError for rows and templates that conversations cannot be had with.
    """
    check_iterative(prompts[0])
    longest = prompts[int(np.argmax(prompts.lengths))] if isinstance(prompts, PromptStore) else prompts[0]
    found = describe_conversation(config, tokenizer, longest)
    if found.fit >= found.most:
        return []
    return [
        f"data.max_prompt_length={config.data.max_prompt_length:,} holds {found.fit} of the {found.most} turns of the longest prompt's conversation, "
        f"with answers of data.max_response_length={config.data.max_response_length:,} tokens; an episode ends where it is full"
    ]


def learned_turns(
    config: Config, prompts: Sequence[Prompt], each: int, arriving: Iterator[tuple[int, list[Turn]]]
) -> Iterator[tuple[int, list[Turn]]]:
    """What arrives, without the turns on pools larger than rollout.eliminate_to: they only make these smaller."""
    most = config.actor_rollout_ref.rollout.eliminate_to
    for place, turns in arriving:
        pool = len(prompts[place // each].candidates)
        yield place, [turn for turn in turns if most is None or pool - len(turn.out) <= most]
