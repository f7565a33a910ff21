"""Ranking as a conversation with a model: one answer with the whole order (direct), or round after round without the worst
(iterative). Each query is a generator of questions, so that any number of them can go on side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from rapidfuzz import fuzz

from r1ranker.errors import UserError
from r1ranker.tasks.answers import ParsedAnswer, normalise, parse_answer
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.pools import Elimination
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


@dataclass(frozen=True)
class Reply:
    """One answer of the model to a question."""

    text: str
    prompt_tokens: int
    """0 for all but the first of several samples: their prompt is computed once"""
    response_tokens: int
    cached_tokens: int = 0
    """of the prompt's: those that the engine had computed before"""


@dataclass(frozen=True)
class EliminationSettings:
    """How an elimination goes."""

    eliminate: int = 1
    """candidates that go out a round: those named most often, as far as so many were named"""
    votes: int = 1
    """answers sampled a round; as many as `eliminate` at least"""
    top_k: int = 0
    """stop when so few are left, without telling them apart; 0: rank all"""

    @property
    def samples(self) -> int:
        """Answers a round."""
        return max(self.votes, self.eliminate)


@dataclass
class RankingResult:
    """A ranking with how it came about."""

    ranking: tuple[str, ...] = ()
    """all candidates, best first"""
    unordered: int = 0
    """so many at the top were not told apart, and stand in the order shown"""
    out_in_round: dict[str, int] = field(default_factory=dict)
    """iterative: the round, from 1, in which a candidate went out"""
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


Conversation = Generator[Question, Sequence[Reply], RankingResult]
"""yields questions, is sent the answers to each, returns the ranking"""


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


def converse(
    example: RankingExample, mode: Mode, answer_format: AnswerFormat, settings: EliminationSettings | None = None
) -> Conversation:
    """The conversation that ranks an example."""
    if mode == "direct":
        return _direct(example, answer_format)
    return _iterative(example, answer_format, settings or EliminationSettings())


def _iterative(example: RankingExample, answer_format: AnswerFormat, settings: EliminationSettings) -> Conversation:
    """Rounds until one candidate (or top_k) is left.

    Where no answer names a candidate, the one closest to it in spelling goes out, the last shown of equals.
    """
    state, result = Elimination(example.candidates), RankingResult()
    least, rounds = max(1, settings.top_k), 0
    while len(state.pool) > least:
        rounds += 1
        shown = example.with_pool(state.pool)
        parsed = yield from _ask(Question(shown, "iterative", settings.samples), answer_format, result)
        named = Counter(answer.named[0] for answer in parsed if answer.is_valid("iterative", len(state.pool)))
        if not named:
            result.fallbacks += 1
            first = parsed[0]
            named[first.named[0] if first.named else closest(first.answer or "", state.pool)] = 1
        out = sorted(named, key=lambda place: (named[place], place), reverse=True)
        for name in [shown.candidates[place] for place in out[: min(settings.eliminate, len(state.pool) - least)]]:
            state.eliminate(name)
            result.out_in_round[name] = rounds
    result.ranking = state.ranking()
    result.unordered = len(state.pool) if len(state.pool) > 1 else 0
    return result


def _direct(example: RankingExample, answer_format: AnswerFormat) -> Conversation:
    """One answer; candidates that it does not name follow in the order shown."""
    result = RankingResult()
    parsed = yield from _ask(Question(example, "direct"), answer_format, result)
    best = max(parsed, key=lambda answer: (answer.is_valid("direct", len(example.candidates)), len(answer.named)))
    result.fallbacks += not best.is_valid("direct", len(example.candidates))
    named = [example.candidates[place] for place in best.named]
    result.ranking = (*named, *(name for name in example.candidates if name not in set(named)))
    return result


def _ask(
    question: Question, answer_format: AnswerFormat, result: RankingResult
) -> Generator[Question, Sequence[Reply], list[ParsedAnswer]]:
    """The parsed answers to a question, and to its second try where none of them is of use."""
    answers: list[ParsedAnswer] = []
    names = question.example.candidates
    for again in (False, True):
        replies = yield Question(question.example, question.mode, 1 if again else question.samples, again)
        result.calls += 1
        result.depth += 1
        for reply in replies:
            parsed = parse_answer(reply.text, names, question.mode, answer_format)
            answers.append(parsed)
            result.thoughts.append(parsed.thought)
            result.answers += 1
            result.valid_answers += parsed.is_valid(question.mode, len(names))
            result.prompt_tokens += reply.prompt_tokens
            result.cached_tokens += reply.cached_tokens
            result.response_tokens += reply.response_tokens
        if any(answer.is_valid(question.mode, len(names)) for answer in answers):
            break
    return answers


def closest(answer: str, candidates: Sequence[str]) -> int:
    """The candidate most like `answer` in spelling; of equals, as for an empty answer, the last one shown."""
    form = normalise(answer)
    scores = [fuzz.ratio(form, normalise(name)) if form else 0.0 for name in candidates]
    return max(range(len(candidates)), key=lambda place: (scores[place], place))
