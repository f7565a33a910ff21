"""Ranking with an engine: one answer with the whole order (direct), or round after round without the worst (iterative)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rapidfuzz import fuzz

from r1ranker.tasks.answers import ParsedAnswer, normalise, parse_answer
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.pools import Elimination
from r1ranker.tasks.prompts import AnswerFormat, Mode


@dataclass(frozen=True)
class Reply:
    """An engine's answer to one prompt."""

    text: str
    prompt_tokens: int
    response_tokens: int


Ask = Callable[[Sequence[RankingExample], Mode], list[Reply]]
"""words each example in the given mode, and has the engine complete it"""


@dataclass
class RankingResult:
    """A ranking with how it came about."""

    ranking: tuple[str, ...] = ()
    """all candidates, best first"""
    out_in_round: dict[str, int] = field(default_factory=dict)
    """iterative: the round, from 1, in which a candidate went out"""
    thoughts: list[str] = field(default_factory=list)
    """the model's, a call each"""
    calls: int = 0
    valid_answers: int = 0
    """answers that could be used as they were"""
    fallbacks: int = 0
    """calls whose answer had to be repaired"""
    prompt_tokens: int = 0
    response_tokens: int = 0

    def count(self, reply: Reply, parsed: ParsedAnswer, valid: bool) -> None:
        """Add one call."""
        self.thoughts.append(parsed.thought)
        self.calls += 1
        self.valid_answers += valid
        self.fallbacks += not valid
        self.prompt_tokens += reply.prompt_tokens
        self.response_tokens += reply.response_tokens


def rank_iterative(
    examples: Sequence[RankingExample],
    ask: Ask,
    answer_format: AnswerFormat,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[RankingResult]:
    """Eliminate one candidate a round, all unfinished queries together; `on_done` hears how many queries were finished.

    An answer that names no candidate is replaced by the candidate closest to it in spelling, the last shown of equals.
    """
    states = [Elimination(example.candidates) for example in examples]
    results = [RankingResult() for _ in examples]
    going = [index for index, state in enumerate(states) if not state.done]
    on_done(len(examples) - len(going))
    while going:
        shown = [examples[index].with_pool(states[index].pool) for index in going]
        for index, example, reply in zip(going, shown, ask(shown, "iterative"), strict=True):
            parsed = parse_answer(reply.text, example.candidates, "iterative", answer_format)
            results[index].count(reply, parsed, valid=parsed.usable("iterative", len(example.candidates)))
            place = parsed.named[0] if parsed.named else closest(parsed.answer or "", example.candidates)
            name = example.candidates[place]
            states[index].eliminate(name)
            results[index].out_in_round[name] = results[index].calls
        finished = [index for index in going if states[index].done]
        on_done(len(finished))
        going = [index for index in going if not states[index].done]
    for result, state in zip(results, states, strict=True):
        result.ranking = state.ranking()
    return results


def rank_direct(
    examples: Sequence[RankingExample],
    ask: Ask,
    answer_format: AnswerFormat,
    on_done: Callable[[int], None] = lambda count: None,
    batch_size: int = 64,
) -> list[RankingResult]:
    """One answer a query; candidates that it does not name follow in the order shown."""
    results = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        for example, reply in zip(batch, ask(batch, "direct"), strict=True):
            parsed = parse_answer(reply.text, example.candidates, "direct", answer_format)
            result = RankingResult()
            result.count(reply, parsed, valid=parsed.usable("direct", len(example.candidates)))
            named = [example.candidates[place] for place in parsed.named]
            result.ranking = (*named, *(name for name in example.candidates if name not in set(named)))
            results.append(result)
        on_done(len(batch))
    return results


def closest(answer: str, candidates: Sequence[str]) -> int:
    """The candidate most like `answer` in spelling; of equals, as for an empty answer, the last one shown."""
    form = normalise(answer)
    scores = [fuzz.ratio(form, normalise(name)) if form else 0.0 for name in candidates]
    return max(range(len(candidates)), key=lambda place: (scores[place], place))
