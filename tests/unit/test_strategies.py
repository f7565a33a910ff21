"""Strategies over any model: with a perfect one the true order, with a senseless one a permutation, and the calls that they cost."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1ranker.errors import UserError
from r1ranker.ranking.conversation import Branch, Question, RankingResult, Reply
from r1ranker.ranking.large_pools import window_starts
from r1ranker.ranking.schedule import run_conversations
from r1ranker.ranking.settings import EliminationSettings, Inside, RankerSettings, Strategy, WindowSettings
from r1ranker.ranking.strategies import converse
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat, Mode

STRATEGIES: list[tuple[Strategy, Inside]] = [
    ("iterative", "answer"), ("direct", "answer"), ("logits", "answer"), ("windows", "answer"), ("windows", "logits"),
    ("tournament", "answer"), ("tournament", "logits"),
]  # fmt: skip
pools = st.lists(st.integers(0, 10**6), min_size=1, max_size=60, unique=True)
Say = Callable[[Question], str]
Weigh = Callable[[Question], Sequence[float]]


class Session:
    """Answers by functions; names of more than one digit share their first token."""

    def __init__(self, say: Say, weigh: Weigh) -> None:
        self.say, self.weigh, self.open = say, weigh, {}  # type: ignore[var-annotated]

    def add(self, key: int, request: Any, params: Any) -> None:
        assert key not in self.open
        self.open[key] = request

    def step(self, once: bool = False) -> list[tuple[int, Any]]:
        done, self.open = list(self.open.items()), {}
        return done

    def cancel(self, key: int) -> None:
        self.open.pop(key, None)

    def replies(self, question: Question, request: Any, completions: Any) -> list[Reply]:
        if question.begun is None:
            return [Reply(self.say(question), 10, 2)] * question.samples
        labels = [tuple(str(place + 1)) for place in range(len(question.example.candidates))]
        chances = [math.exp(weight) for weight in self.weigh(question)]
        begun = tuple(chr(token) for token in question.begun)
        mass: dict[str, list[int]] = {}
        for place, label in enumerate(labels):
            if place not in question.out and (*label, "]")[: len(begun)] == begun:
                mass.setdefault((*label, "]")[len(begun)], []).append(place)
        total = sum(chances[place] for places in mass.values() for place in places)
        return [
            Reply(
                "",
                10,
                1,
                token_ids=(7,),
                branches=tuple(
                    Branch(
                        (*question.begun, ord(token)),
                        tuple(places),
                        math.log(sum(chances[place] for place in places) / total),
                    )
                    for token, places in mass.items()
                ),
            )
        ]

    def rank(self, example: RankingExample, settings: RankerSettings) -> RankingResult:
        found = run_conversations(
            [converse(example, settings)],
            self,  # type: ignore[arg-type]
            lambda question: (question, question.samples),  # type: ignore[arg-type, return-value]
            self.replies,
        )
        return dict(found)[0]


def true_order(question: Question) -> list[str]:
    best_first = sorted(question.example.candidates, key=int, reverse=True)
    return best_first if question.mode == "direct" else best_first[::-1][:1]


ORACLE = Session(
    lambda question: "\n".join(true_order(question)) + "</answer>",
    lambda question: [(1 if question.mode == "direct" else -1) * int(name) / 1e5 for name in question.example.candidates],
)  # fmt: skip


def settings_of(strategy: Strategy, inside: Inside, mode: Mode, **changes: Any) -> RankerSettings:
    answers = AnswerFormat("name", think=False)
    return RankerSettings(strategy, answers, trained=mode, windows=WindowSettings(inside=inside, **changes))


def example_of(numbers: Sequence[int]) -> RankingExample:
    return RankingExample("Rec-Movie", tuple(map(str, numbers)), history=("x",))


@pytest.mark.parametrize("mode", ["direct", "iterative"])
@pytest.mark.parametrize(("strategy", "inside"), STRATEGIES)
@given(numbers=pools)
def test_a_perfect_model_gives_the_true_order(
    strategy: Strategy, inside: Inside, mode: Mode, numbers: list[int]
) -> None:
    example = example_of(numbers)
    order = tuple(sorted(example.candidates, key=int, reverse=True))
    # windows that move by half of their size bring up as many as that in a pass
    passes = {"passes": math.ceil(len(numbers) / 5)} if strategy == "windows" else {}
    result = ORACLE.rank(example, settings_of(strategy, inside, mode, size=10, step=5, **passes))
    assert result.ranking == order


@pytest.mark.parametrize(("strategy", "inside"), STRATEGIES)
@given(numbers=pools, seed=st.integers(0, 99), mode=st.sampled_from(["direct", "iterative"]))
def test_a_senseless_model_gives_a_permutation(
    strategy: Strategy, inside: Inside, numbers: list[int], seed: int, mode: Mode
) -> None:
    example, rng = example_of(numbers), random.Random(seed)

    def say(question: Question) -> str:
        few = rng.sample(question.example.candidates, rng.randint(0, min(3, len(question.example.candidates))))
        return rng.choice(["", "no idea</answer>", "7</answer>", "\n".join(few), "\n".join(few) + "</answer>"])

    session = Session(say, lambda question: [rng.gauss(0, 3) for _ in question.example.candidates])
    result = session.rank(example, settings_of(strategy, inside, mode, size=7, step=3))
    assert sorted(result.ranking) == sorted(example.candidates)
    assert result.depth <= result.calls
    assert result.valid_answers <= result.answers


@given(numbers=pools, top_k=st.integers(0, 5))
def test_a_conversation_ends_as_separate_rounds_do(numbers: list[int], top_k: int) -> None:
    example = example_of(numbers)
    settings = replace(settings_of("iterative", "answer", "iterative"), elimination=EliminationSettings(top_k=top_k))
    asked: list[Question] = []

    def say(question: Question) -> str:
        asked.append(question)
        names = [name for place, name in enumerate(question.example.candidates) if place not in question.out]
        return min(names, key=int) + "</answer>"

    apart = ORACLE.rank(example, settings)
    found = Session(say, lambda _: ()).rank(example, replace(settings, rounds="conversation"))
    assert (found.ranking, found.unordered, found.out_in_round) == (
        apart.ranking, apart.unordered, apart.out_in_round,
    )  # fmt: skip
    assert (found.calls, found.depth, found.valid_answers) == (apart.calls, apart.depth, apart.valid_answers)
    assert all(question.example == example for question in asked)  # the pool is shown whole, once


@given(numbers=pools, several=st.integers(2, 5), top_k=st.integers(0, 5))
def test_several_go_out_of_a_conversation_by_probability(numbers: list[int], several: int, top_k: int) -> None:
    example = example_of(numbers)
    how = EliminationSettings(eliminate=several, top_k=top_k)
    settings = replace(settings_of("iterative", "answer", "iterative"), elimination=how, constrain="candidates")
    asked: list[Question] = []

    def likely(question: Question) -> list[float]:
        asked.append(question)
        names = sorted(question.example.candidates, key=int)
        return [-float(names.index(name)) for name in question.example.candidates]

    apart = Session(lambda _: "", likely).rank(example, settings)
    asked.clear()
    found = Session(lambda _: "", likely).rank(example, replace(settings, rounds="conversation"))
    assert (found.ranking, found.unordered, found.out_in_round) == (
        apart.ranking, apart.unordered, apart.out_in_round,
    )  # fmt: skip
    first = [question for question in asked if not question.begun]
    for before, after in pairwise(first):
        assert after.example == example
        assert (after.so_far, after.named) == ((7,), several)
        assert after.out[: -after.named] == before.out


@given(numbers=pools, seed=st.integers(0, 99))
def test_a_senseless_conversation_gives_a_permutation(numbers: list[int], seed: int) -> None:
    example, rng = example_of(numbers), random.Random(seed)

    def say(question: Question) -> str:
        return rng.choice(["", "no idea</answer>", rng.choice(question.example.candidates) + "</answer>"])

    settings = replace(settings_of("iterative", "answer", "iterative"), rounds="conversation")
    found = Session(say, lambda _: ()).rank(example, settings)
    assert sorted(found.ranking) == sorted(example.candidates)
    assert found.valid_answers + found.fallbacks == len(numbers) - 1


@given(numbers=pools, top_k=st.integers(1, 12), size=st.integers(2, 12))
def test_a_tournament_plays_for_the_first_places_in_few_calls(numbers: list[int], top_k: int, size: int) -> None:
    example = example_of(numbers)
    settings = RankerSettings(
        "tournament", AnswerFormat("name", False), trained="direct", elimination=EliminationSettings(top_k=top_k),
        windows=WindowSettings(size=size),
    )  # fmt: skip
    result = ORACLE.rank(example, settings)
    order = sorted(example.candidates, key=int, reverse=True)
    top_k = min(top_k, len(order))
    assert list(result.ranking[:top_k]) == order[:top_k]
    assert list(result.ranking[top_k:]) == [name for name in example.candidates if name not in order[:top_k]]
    heights, groups = 0, len(order)
    first = 0
    while groups > 1 or not heights:
        groups, heights = -(-groups // size), heights + 1
        first += groups
    assert result.calls <= first + (top_k - 1) * (heights - 1)
    assert result.depth <= heights + (top_k - 1) * (heights - 1)


def test_what_a_hundred_candidates_cost() -> None:
    example = example_of(random.Random(0).sample(range(1000), 100))
    costs = {}
    for strategy, inside in STRATEGIES:
        for mode in ("iterative", "direct"):
            result = ORACLE.rank(example, settings_of(strategy, inside, mode))  # type: ignore[arg-type]
            costs[strategy, inside, mode] = (result.calls, result.depth)
    assert costs["iterative", "answer", "direct"] == (99, 99)
    assert costs["direct", "answer", "direct"] == (1, 1)
    # numbers of up to three digits: 1, 10 to 19 and 100 begin alike, and so on
    assert costs["logits", "answer", "direct"] == (11, 3)
    assert costs["windows", "answer", "direct"] == (9, 9)
    assert costs["windows", "answer", "iterative"] == (9 * 19, 9 * 19)
    assert costs["tournament", "answer", "direct"] == (
        5 + 1 + 99 - sum_of_last_alone(example),
        2 + 99 - sum_of_last_alone(example),
    )


def sum_of_last_alone(example: RankingExample) -> int:
    """Places that are given without a call, since one group is all that is left."""
    order = sorted(example.candidates, key=int, reverse=True)
    group_of = {name: place // 20 for place, name in enumerate(example.candidates)}
    return sum(len({group_of[left] for left in order[place:]}) == 1 for place in range(1, 100))


def test_windows_go_from_the_back_to_the_front_and_bring_the_best_along() -> None:
    assert window_starts(100, 20, 10) == [80, 70, 60, 50, 40, 30, 20, 10, 0]
    assert window_starts(25, 20, 10) == [5, 0]
    assert window_starts(20, 20, 10) == window_starts(3, 20, 10) == [0]
    assert window_starts(21, 20, 20) == [1, 0]
    example = example_of(range(100))  # the worst order there is
    result = ORACLE.rank(example, settings_of("windows", "logits", "direct"))
    assert result.ranking[:10] == tuple(map(str, range(99, 89, -1)))
    assert result.scores == {}


@pytest.mark.parametrize("mode", ["direct", "iterative"])
def test_scores_are_the_probabilities_of_a_first_choice(mode: Mode) -> None:
    example = example_of([5, 3, 8, 1, *range(10, 22)])
    result = ORACLE.rank(example, settings_of("logits", "answer", mode))
    weights = [math.exp((1 if mode == "direct" else -1) * int(name) / 1e5) for name in example.candidates]
    for name, weight in zip(example.candidates, weights, strict=True):
        chance = weight / sum(weights)
        assert result.scores[name] == pytest.approx(chance if mode == "direct" else 1 - chance, rel=1e-9)
    assert list(result.scores) == list(result.ranking)
    assert list(result.scores.values()) == sorted(result.scores.values(), reverse=True)


def test_eliminating_several_takes_those_that_are_most_likely_to_go() -> None:
    example = example_of(random.Random(1).sample(range(1000), 9))
    settings = RankerSettings(
        "iterative", AnswerFormat("label", False), "candidates", elimination=EliminationSettings(eliminate=4)
    )
    session = Session(lambda question: "never asked", ORACLE.weigh)
    result = session.rank(example, settings)
    assert result.ranking == tuple(sorted(example.candidates, key=int, reverse=True))
    assert result.calls == 2
    assert sorted(result.out_in_round.values()) == [1, 1, 1, 1, 2, 2, 2, 2]
    by_votes = RankerSettings(
        "iterative", AnswerFormat("name", False), "candidates", elimination=EliminationSettings(eliminate=4, votes=4)
    )
    assert ORACLE.rank(example, by_votes).calls == 8  # answers that all name the same one


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RankerSettings("logits"), "--strategy: probabilities of answers want --no-think; found thoughts"),
        (RankerSettings("windows", windows=WindowSettings(inside="logits")), "want --no-think"),
        (RankerSettings(windows=WindowSettings(size=1)), "--window: found 1; at least 2 is wanted"),
        (RankerSettings(windows=WindowSettings(size=5, step=6)), "--step: found 6; at most --window, 5, is wanted"),
        (RankerSettings(windows=WindowSettings(passes=0)), "--passes: found 0; at least 1 is wanted"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: RankerSettings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings.check()
