"""What a ranking and a model say to each other. Each query is a generator of questions, so that any number can go on side by side."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from r1ranker.errors import UserError
from r1ranker.tasks.answers import ParsedAnswer, parse_answer
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat, Mode


@dataclass(frozen=True)
class Question:
    """A pool that the model is asked about."""

    example: RankingExample
    """the request with the candidates that are left"""
    mode: Mode
    samples: int = 1
    is_retry: bool = False
    """the first answer was of no use: another seed is wanted"""
    begun: tuple[int, ...] | None = None
    """token ids that the answer begins with: how likely each way to go on is wanted, instead of an answer"""
    so_far: tuple[int, ...] = ()
    """token ids of a conversation that this question goes on with, its last answer among them"""
    out: tuple[int, ...] = ()
    """places of the candidates that went out in it, the last one last"""
    named: int = 0
    """so many of these went out without having been asked for: `so_far` ends before the first of them, and a turn each is to follow"""

    def is_answered(self, answer: ParsedAnswer) -> bool:
        """Whether the answer can be used as it is: it names those who are asked about."""
        return answer.without(self.out).is_valid(self.mode, len(self.example.candidates))


@dataclass(frozen=True)
class Branch:
    """One way for an answer to go on."""

    begun: tuple[int, ...]
    """token ids of the answer so far"""
    candidates: tuple[int, ...]
    """places of those whose names or labels begin so"""
    logprob: float
    """given what the question's answer began with, among all branches of the question"""


@dataclass(frozen=True)
class Reply:
    """One answer of the model to a question."""

    text: str
    prompt_tokens: int
    """0 for all but the first of several samples: their prompt is computed once"""
    response_tokens: int
    cached_tokens: int = 0
    """of the prompt's: those that the engine had computed before"""
    branches: tuple[Branch, ...] = ()
    """where these were wanted"""
    token_ids: tuple[int, ...] = ()
    """of the prompt and the answer; of the prompt alone where there is none"""


_ADDED = ("calls", "answers", "valid_answers", "fallbacks", "prompt_tokens", "cached_tokens", "response_tokens")
"""fields of a result that its parts' are summed in"""


@dataclass
class RankingResult:
    """A ranking with how it came about."""

    ranking: tuple[str, ...] = ()
    """all candidates, best first"""
    unordered: int = 0
    """so many at the top were not told apart, and stand in the order shown"""
    out_in_round: dict[str, int] = field(default_factory=dict)
    """iterative: the round, from 1, in which a candidate went out"""
    scores: dict[str, float] = field(default_factory=dict)
    """logits: each candidate's probability to be named first, or not to be named as the worst"""
    thoughts: list[str] = field(default_factory=list)
    """the model's, an answer each"""
    calls: int = 0
    """questions put to the model, second tries among them"""
    depth: int = 0
    """questions that had to wait for the answer to the one before"""
    answers: int = 0
    valid_answers: int = 0
    """answers that could be used as they were"""
    fallbacks: int = 0
    """questions whose answers had to be repaired, since the second try was of no use either"""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    response_tokens: int = 0
    parted: int = 0
    """candidates of a part, where the pool was too long for one prompt"""

    def add_costs(self, parts: Sequence[RankingResult]) -> None:
        """Count what `parts`, which went on side by side, took."""
        for key in _ADDED:
            setattr(self, key, getattr(self, key) + sum(getattr(part, key) for part in parts))
        self.depth += max((part.depth for part in parts), default=0)
        self.thoughts += [thought for part in parts for thought in part.thoughts]

    def add_reply(self, reply: Reply) -> None:
        """Count an answer."""
        self.answers += 1
        self.prompt_tokens += reply.prompt_tokens
        self.cached_tokens += reply.cached_tokens
        self.response_tokens += reply.response_tokens


Conversation = Generator[Sequence[Question], Sequence[Sequence[Reply]], RankingResult]
"""yields questions that can be answered side by side, is sent the replies to each of them, returns the ranking"""


def ask(
    question: Question, answer_format: AnswerFormat, result: RankingResult
) -> Generator[Sequence[Question], Sequence[Sequence[Reply]], list[tuple[ParsedAnswer, Reply]]]:
    """The answers to a question, parsed, and to its second try where none of them is of use."""
    answers: list[tuple[ParsedAnswer, Reply]] = []
    names = question.example.candidates
    for again in (False, True):
        (replies,) = yield [replace(question, samples=1, is_retry=True) if again else question]
        result.calls += 1
        result.depth += 1
        for reply in replies:
            parsed = parse_answer(reply.text, names, question.mode, answer_format)
            answers.append((parsed, reply))
            result.thoughts.append(parsed.thought)
            result.add_reply(reply)
            result.valid_answers += question.is_answered(parsed)
        if any(question.is_answered(answer) for answer, _ in answers):
            break
    return answers


def weigh(
    question: Question, result: RankingResult
) -> Generator[Sequence[Question], Sequence[Sequence[Reply]], tuple[list[float], tuple[int, ...]]]:
    """Log-probability of each candidate to be the one that an answer constrained to the pool names (first), -inf of those who are
    out; and the token ids of the prompt.

    One question where the labels differ in their first token; one more for each beginning that several have in common.
    """
    names = question.example.candidates
    if len(names) == 1:
        return [0.0], ()
    found = [-math.inf] * len(names)
    open_branches = [Branch((), tuple(range(len(found))), 0.0)]
    prompt_ids: tuple[int, ...] = ()
    while open_branches:
        answered = yield [replace(question, begun=branch.begun) for branch in open_branches]
        result.depth += 1
        shared: list[Branch] = []
        for before, (reply,) in zip(open_branches, answered, strict=True):
            result.calls += 1
            result.valid_answers += 1
            result.add_reply(reply)
            prompt_ids = prompt_ids or reply.token_ids
            for branch in reply.branches:
                logprob = before.logprob + branch.logprob
                if len(branch.candidates) > 1:
                    shared.append(Branch(branch.begun, branch.candidates, logprob))
                else:
                    found[branch.candidates[0]] = logprob
        open_branches = shared
    return found, prompt_ids


def together(
    conversations: Sequence[Conversation],
) -> Generator[Sequence[Question], Sequence[Sequence[Reply]], list[RankingResult]]:
    """The results of several conversations that go on side by side."""
    results: dict[int, RankingResult] = {}
    asked: dict[int, Sequence[Question]] = {}

    def go_on(place: int, replies: Sequence[Sequence[Reply]] | None) -> None:
        try:
            asked[place] = next(conversations[place]) if replies is None else conversations[place].send(replies)
        except StopIteration as end:
            results[place] = end.value

    for place in range(len(conversations)):
        go_on(place, None)
    while asked:
        now, asked = asked, {}
        answered = iter((yield [question for questions in now.values() for question in questions]))
        for place, questions in now.items():
            go_on(place, [next(answered) for _ in questions])
    return [results[place] for place in range(len(conversations))]


def list_texts(what: str, value: Iterable[str]) -> tuple[str, ...]:
    """The texts of a list, an array or any other sequence.

    Raises UserError, naming `what`, for a text alone, whose letters would pass for a list; for a mapping, a set or a
    table, which have no order of texts; and for a value among them that is no text, such as None or NaN.
    """
    unordered = isinstance(value, str | bytes | Mapping | Set) or getattr(value, "ndim", 1) != 1
    if unordered or not isinstance(value, Iterable):
        raise UserError(f"{what}: found {' '.join(repr(value).split())[:100]}; a list of texts is wanted")
    texts = tuple(value)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{what}: found {text!r:.100} at place {place}; a text is wanted")
    return texts
