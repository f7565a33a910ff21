"""Strategies of ranking: one answer with the whole order (direct), round after round without the worst (iterative), the
probabilities of the first choice (logits), and parts of a large pool in turn (windows, tournament)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rapidfuzz import fuzz

from r1ranker.ranking.conversation import Conversation, Question, RankingResult, ask, weigh
from r1ranker.ranking.large_pools import rank_by_tournament, rank_by_windows
from r1ranker.ranking.settings import RankerSettings
from r1ranker.tasks.answers import normalise
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.pools import Elimination

AROUND_TURN = 64
"""tokens that a turn may take beside the name in it"""


def converse(
    example: RankingExample,
    settings: RankerSettings,
    progress: RankingResult | None = None,
    room: int | None = None,
) -> Conversation:
    """The conversation that ranks an example as `settings` have it, by prompts of at most `room` tokens (None: any number).

    `progress`: where an elimination, and whatever ranks a pool in one part, writes down what it comes to on the way.
    """
    result = RankingResult() if progress is None else progress
    if settings.strategy == "windows":
        return rank_by_windows(example, settings.windows, lambda pool: _inside(pool, settings, room))
    if settings.strategy == "tournament":
        size, top_k = settings.windows.size, settings.elimination.top_k
        return rank_by_tournament(example, size, top_k, lambda pool: _inside(pool, settings, room))
    if settings.strategy == "logits":
        return _by_logits(example, settings, result)
    return _by_answer(example, settings, result, room)


def _inside(example: RankingExample, settings: RankerSettings, room: int | None) -> Conversation:
    """The ranking of a part of a pool."""
    if settings.windows.inside == "logits":
        return _by_logits(example, settings, RankingResult())
    return _by_answer(example, settings, RankingResult(), room)


def _by_answer(
    example: RankingExample, settings: RankerSettings, result: RankingResult, room: int | None
) -> Conversation:
    if settings.mode == "direct":
        return _direct(example, settings, result)
    if settings.rounds == "conversation":
        return _in_turns(example, settings, result, room)
    return _iterative(example, settings, result)


def _by_logits(example: RankingExample, settings: RankerSettings, result: RankingResult) -> Conversation:
    """The order of the probabilities to be named first; to be named as the worst, the least likely first."""
    logprobs, _ = yield from weigh(Question(example, settings.mode), result)
    worst = settings.mode == "iterative"
    places = sorted(range(len(logprobs)), key=lambda place: logprobs[place] if worst else -logprobs[place])
    chances = [-math.expm1(logprob) if worst else math.exp(logprob) for logprob in logprobs]
    if len(chances) == 1:
        chances = [1.0]
    result.ranking = tuple(example.candidates[place] for place in places)
    result.scores = {example.candidates[place]: chances[place] for place in places}
    return result


def _iterative(example: RankingExample, settings: RankerSettings, result: RankingResult) -> Conversation:
    """Rounds until one candidate (or top_k) is left.

    Where no answer names a candidate, the one closest to it in spelling goes out, the last shown of equals.
    """
    how = settings.elimination
    state, least, rounds = Elimination(example.candidates), _least(settings), 0
    exact = settings.weighs and how.eliminate > 1 and how.votes == 1
    while len(state.pool) > least:
        rounds += 1
        shown = example.with_pool(state.pool)
        if exact:
            logprobs, _ = yield from weigh(Question(shown, "iterative"), result)
            out = _most_likely(logprobs)
        else:
            question = Question(shown, "iterative", how.samples)
            answers = yield from ask(question, settings.answer_format, result)
            named = Counter(answer.named[0] for answer, _ in answers if question.is_answered(answer))
            if not named:
                result.fallbacks += 1
                first, _ = answers[0]
                named[first.named[0] if first.named else closest(first.answer or "", state.pool)] = 1
            out = sorted(named, key=lambda place: (named[place], place), reverse=True)
        for name in [shown.candidates[place] for place in out[: min(how.eliminate, len(state.pool) - least)]]:
            state.eliminate(name)
            result.out_in_round[name] = rounds
    return _end(state, result)


def _in_turns(
    example: RankingExample, settings: RankerSettings, result: RankingResult, room: int | None
) -> Conversation:
    """Rounds as the turns of one conversation, in which the pool is shown once.

    Where no answer names one who is still in, the closest in spelling of these goes out. Of several that go out at once, those that are
    most likely to, each has a turn, as if it had been asked for. What does not fit the engine any more is begun anew with the pool that
    is left.
    """
    state, least, rounds = Elimination(example.candidates), _least(settings), 0
    several = settings.elimination.eliminate
    shown = example
    so_far: tuple[int, ...] = ()
    out: tuple[int, ...] = ()
    named = 0
    while len(state.pool) > least:
        rounds += 1
        question = Question(shown, "iterative", so_far=so_far, out=out, named=named)
        if several > 1:
            logprobs, so_far = yield from weigh(question, result)
            named = min(several, len(state.pool) - least)
            places = _most_likely(logprobs)[:named]
            for name in (shown.candidates[place] for place in places):
                state.eliminate(name)
                result.out_in_round[name] = rounds
            out = (*out, *places)
            if room is not None and len(so_far) + sum(_turn_room(shown.candidates[place]) for place in places) > room:
                shown, so_far, out, named = example.with_pool(state.pool), (), (), 0
            continue
        answers = yield from ask(question, settings.answer_format, result)
        usable = [(answer.named[0], reply) for answer, reply in answers if question.is_answered(answer)]
        if usable:
            place, reply = usable[0]
        else:
            result.fallbacks += 1
            answer, reply = answers[0]
            left = [place for place in range(len(shown.candidates)) if place not in out]
            place = left[closest(answer.answer or "", [shown.candidates[one] for one in left])]
        name = shown.candidates[place]
        state.eliminate(name)
        result.out_in_round[name] = rounds
        so_far, out = reply.token_ids, (*out, place)
        if room is not None and len(so_far) + _turn_room(name) > room:
            shown, so_far, out = example.with_pool(state.pool), (), ()
    return _end(state, result)


def _most_likely(logprobs: Sequence[float]) -> list[int]:
    """Places by their log-probabilities, the most likely first; of equals the last one shown."""
    return sorted(range(len(logprobs)), key=lambda place: (logprobs[place], place), reverse=True)


def _turn_room(name: str) -> int:
    """Tokens that the turn after a candidate went out may take."""
    return len(name.encode("utf-8", "surrogatepass")) + AROUND_TURN


def _least(settings: RankerSettings) -> int:
    """Candidates that an elimination leaves."""
    return max(1, settings.elimination.top_k if settings.strategy == "iterative" else 0)


def _end(state: Elimination, result: RankingResult) -> RankingResult:
    result.ranking = state.ranking()
    result.unordered = len(state.pool) if len(state.pool) > 1 else 0
    return result


def _direct(example: RankingExample, settings: RankerSettings, result: RankingResult) -> Conversation:
    """One answer; candidates that it does not name follow in the order shown."""
    question = Question(example, "direct")
    answers = yield from ask(question, settings.answer_format, result)
    best = max((answer for answer, _ in answers), key=lambda one: (question.is_answered(one), len(one.named)))
    result.fallbacks += not question.is_answered(best)
    named = [example.candidates[place] for place in best.named]
    result.ranking = (*named, *(name for name in example.candidates if name not in set(named)))
    return result


def closest(answer: str, candidates: Sequence[str]) -> int:
    """The candidate most like `answer` in spelling; of equals, as for an empty answer, the last one shown."""
    form = normalise(answer)
    scores = [fuzz.ratio(form, normalise(name)) if form else 0.0 for name in candidates]
    return max(range(len(candidates)), key=lambda place: (scores[place], place))
