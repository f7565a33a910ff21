"""Eliminations sampled as conversations, many at once over one session, each at its own pace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from r1ranker.data.chat_template import ChatTemplate, chat_template_of
from r1ranker.data.tokenise import decode_response
from r1ranker.data.turns import drop_thought, go_on
from r1ranker.rollout.constraint import PoolConstraint
from r1ranker.rollout.engine import Completion, Request, SamplingParams, Session
from r1ranker.tasks.answers import parse_answer, prepend_prefill
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat, next_round


@dataclass(frozen=True)
class Turn:
    """One answer: a sample of a prompt, or a turn of a conversation."""

    prompt_ids: list[int]
    """all that came before it"""
    completion: Completion
    out: tuple[int, ...] = ()
    """places of the candidates that had gone out, the last one last"""


@dataclass(frozen=True)
class EpisodeRules:
    """What is the same for all episodes of a batch."""

    answer_format: AnswerFormat
    roles: tuple[str, ...]
    """of the conversation that a prompt is"""
    begun: str
    """what each answer begins with"""
    max_turns: int | None = None
    """None: until one candidate is left"""
    max_prompt_length: int | None = None
    """tokens; where the next turn would have more before it, the episode ends"""
    keep_thoughts: bool = True
    """earlier turns stand in the conversation with their thoughts"""
    kept_until: int = 0
    """candidates; while more are left the positive cannot be named, so that it is among those who are left then"""


@dataclass(frozen=True)
class EpisodeRequest:
    """A pool to be made smaller by one answer after another."""

    token_ids: list[int]
    """of the first prompt"""
    example: RankingExample
    seed: int
    constraint: PoolConstraint | None
    """of the whole pool; None: anything may be sampled"""
    rules: EpisodeRules


@dataclass
class _Open:
    """An episode under way."""

    asked: EpisodeRequest
    prompt_ids: list[int]
    out: tuple[int, ...] = ()
    turns: list[Turn] = field(default_factory=list)

    @property
    def positive(self) -> int:
        return self.asked.example.candidates.index(self.asked.example.positive)

    @property
    def is_kept(self) -> bool:
        """Whether the positive cannot be named in this turn."""
        return len(self.asked.example.candidates) - len(self.out) > self.asked.rules.kept_until > 0

    def request(self) -> Request:
        """The next turn's."""
        constraint = self.asked.constraint
        if constraint is not None:
            constraint = constraint.without({*self.out, self.positive} if self.is_kept else self.out)
        state = np.random.SeedSequence([self.asked.seed, len(self.turns)]).generate_state(1, dtype=np.uint64)
        return Request(self.prompt_ids, int(state[0]), constraint, is_continued=True)

    def take(self, template: ChatTemplate, completion: Completion) -> bool:
        """Take an answer down; whether another one is wanted.

        None is where the answer cannot be used, the positive went out and no grades tell what is good of the rest, one is left,
        or the conversation is as long as it may be.
        """
        rules, example = self.asked.rules, self.asked.example
        self.turns.append(Turn(self.prompt_ids, completion, self.out))
        stopped = completion.finish_reason == "stop"
        text = decode_response(template.tokenizer, completion.token_ids, stopped)
        answer = parse_answer(
            prepend_prefill(text, rules.answer_format.think), example.candidates, "iterative", rules.answer_format
        ).without(self.out)
        if not stopped or not answer.is_valid("iterative", len(example.candidates)):
            return False
        (place,) = answer.named
        if place == self.positive and not example.grades:
            return False
        self.out = (*self.out, place)
        if len(example.candidates) - len(self.out) < 2 or len(self.turns) == rules.max_turns:
            return False
        said = completion.token_ids if rules.keep_thoughts else drop_thought(template.tokenizer, completion.token_ids)
        following = next_round(example, place, rules.answer_format.answer_style)
        self.prompt_ids = go_on(template, rules.roles, [*self.prompt_ids, *said], following, rules.begun)
        return rules.max_prompt_length is None or len(self.prompt_ids) <= rules.max_prompt_length


def sample_episodes(
    session: Session, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EpisodeRequest], params: SamplingParams
) -> Iterator[tuple[int, list[Turn]]]:
    """(place of a request, its turns) as each episode ends; turn t of one draws from a stream that its seed and t fix."""
    template = chat_template_of(tokenizer)
    episodes = {place: _Open(asked, asked.token_ids) for place, asked in enumerate(requests)}
    for place, one in episodes.items():
        session.add(place, one.request(), params)
    while episodes:
        for place, (completion,) in session.step():
            one = episodes[place]
            if one.take(template, completion):
                session.add(place, one.request(), params)
                continue
            session.cancel(place)  # what is kept of it nobody goes on with
            del episodes[place]
            yield place, one.turns
