"""The ways in which an answer may go on, as token ids: candidates are parted by the first token in which they differ."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from r1ranker.ranking.conversation import Branch, Question
from r1ranker.rollout.constraint import PoolConstraint, build_constraint
from r1ranker.rollout.engine import Completion, Request, SamplingParams
from r1ranker.tasks.prompts import AnswerFormat

WEIGHED = SamplingParams(max_tokens=1, choices=True)
"""of a question for probabilities: nothing is sampled that is used"""


@dataclass(frozen=True)
class Paths:
    """Where the answers of a pool part next."""

    begun: tuple[int, ...]
    """what those that are asked about have in common"""
    tokens: dict[int, tuple[int, ...]]
    """what may follow -> places of the candidates whose answers go on so"""


@dataclass(frozen=True)
class WeighingRequest(Request):
    """A request for the probabilities of ways to go on."""

    paths: Paths = field(default_factory=lambda: Paths((), {}))


def weighing_request(
    tokenizer: PreTrainedTokenizerBase, prompt: list[int], question: Question, answer_format: AnswerFormat
) -> WeighingRequest:
    """The request of a question for probabilities, behind the prompt and what the answers have in common."""
    paths = branch_out(tokenizer, question, answer_format)
    one_token = PoolConstraint((), tuple((token,) for token in paths.tokens), answer_open=True)
    return WeighingRequest([*prompt, *paths.begun], constraint=one_token, paths=paths)


def branch_out(tokenizer: PreTrainedTokenizerBase, question: Question, answer_format: AnswerFormat) -> Paths:
    """Where the answers to a question go on from what they have begun with; what is certain is taken as begun."""
    pool = build_constraint(tokenizer, question.example.candidates, question.mode, answer_format)
    answers = pool.opening_ids
    begun = tuple(question.begun or ())
    while True:
        tokens: dict[int, list[int]] = {}
        for place, ids in enumerate(answers):
            if place not in question.out and ids[: len(begun)] == begun:
                tokens.setdefault(ids[len(begun)], []).append(place)
        if len(tokens) > 1:
            return Paths(begun, {token: tuple(places) for token, places in sorted(tokens.items())})
        begun += tuple(tokens)


def branches_of(paths: Paths, weighed: Completion) -> tuple[Branch, ...]:
    """The branches, as likely as an engine found them to be."""
    (allowed, *_), chances = weighed.allowed, weighed.choices
    return tuple(
        Branch((*paths.begun, token), paths.tokens[token], chance)
        for token, chance in zip(allowed, chances, strict=True)
    )
