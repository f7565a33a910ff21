"""Metrics against ir-measures, baselines against known figures, decoding against a scripted engine."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from itertools import chain, permutations, product
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from r1ranker.data.sources.ranking_bench import read_ranking_bench
from r1ranker.errors import UserError
from r1ranker.evaluation.baselines.orders import MostFrequentLabel, given_order_metrics, random_order_metrics
from r1ranker.evaluation.options import EvaluationOptions
from r1ranker.evaluation.results import read_result
from r1ranker.evaluation.runner import resolve_tasks, run_evaluation
from r1ranker.ranking.conversation import Question, RankingResult, Reply
from r1ranker.ranking.metrics import bootstrap_interval, expected_metrics, metrics_of_ranking, summarise
from r1ranker.ranking.ranker import Ranker
from r1ranker.ranking.schedule import run_conversations
from r1ranker.ranking.settings import EliminationSettings, RankerSettings
from r1ranker.ranking.strategies import closest, converse
from r1ranker.tasks.catalog import TASK_NAMES
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import Mode

CUTOFFS = (3, 5, 10, 20)


@given(st.permutations([f"d{number}" for number in range(12)]), st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_metrics_are_those_of_ir_measures_and_scikit_learn(ranking: list[str], grades: list[int]) -> None:
    run = {"q": {name: float(len(ranking) - place) for place, name in enumerate(ranking)}}
    judged = {f"d{number}": grade for number, grade in enumerate(grades)}
    measures = [ir_measures.RR, *(ir_measures.Success @ k for k in CUTOFFS)]
    expected = {str(name): value for name, value in ir_measures.calc_aggregate(measures, {"q": judged}, run).items()}
    example = RankingExample("Rec-Movie", tuple(judged), grades=tuple(map(float, grades)))
    found = metrics_of_ranking(ranking, example, CUTOFFS)
    assert found["mrr"] == pytest.approx(expected["RR"], abs=1e-12)
    gains = np.array([[2.0 ** judged[name] - 1 for name in ranking]])
    for k in CUTOFFS:
        assert found[f"ndcg@{k}"] == pytest.approx(ndcg_score(gains, [range(12, 0, -1)], k=k), abs=1e-12)
        assert found[f"hit@{k}"] == pytest.approx(expected[f"Success@{k}"], abs=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 7, 12])
def test_with_one_relevant_candidate_metrics_are_the_published_ones(rank: int) -> None:
    names = tuple(map(str, range(1, 13)))
    found = metrics_of_ranking(names, RankingExample("Rec-Movie", names, str(rank)), CUTOFFS)
    assert found["mrr"] == 1 / rank
    for k in CUTOFFS:
        assert found[f"hit@{k}"] == (rank <= k)
        assert found[f"ndcg@{k}"] == pytest.approx((rank <= k) / math.log2(rank + 1), abs=1e-12)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=2))
def test_blocks_of_equals_give_the_mean_over_their_orders(blocks: list[list[int]]) -> None:
    orders = [[*chain(*parts)] for parts in product(*(permutations(block) for block in blocks))]
    found = expected_metrics(blocks, (1, 3))
    for name, value in found.items():
        each = [expected_metrics([[grade] for grade in order], (1, 3))[name] for order in orders]
        assert value == pytest.approx(np.mean(each), abs=1e-12)


@pytest.mark.parametrize(("size", "mrr"), [(20, 17.99), (10, 29.29), (5, 45.67), (7, 37.04), (9, 31.43)])
def test_the_random_baseline_is_the_exact_expectation(size: int, mrr: float) -> None:
    example = RankingExample("Rec-Movie", tuple(map(str, range(size))), "0", history=("x",))
    exact = random_order_metrics(example, CUTOFFS)
    assert 100 * exact["mrr"] == pytest.approx(mrr, abs=0.006)
    rng = random.Random(0)
    ranked = [[[float(place == rank)] for place in range(size)] for rank in range(size)]
    drawn = [expected_metrics(rng.choice(ranked), CUTOFFS) for _ in range(20000)]
    for name, value in exact.items():
        assert np.mean([one[name] for one in drawn]) == pytest.approx(value, abs=0.015)


def test_the_most_frequent_label_comes_first_and_ties_are_shared() -> None:
    train = [RankingExample("Router-Cost", ("a", "b", "c"), gold, query="q") for gold in "aab"]
    rank = MostFrequentLabel(train)
    test = RankingExample("Router-Cost", ("c", "b", "a", "d"), "b", query="q")
    assert rank(test, (3,))["mrr"] == 0.5
    unseen = RankingExample("Router-Cost", ("c", "b", "a", "d"), "d", query="q")
    assert rank(unseen, (3,))["mrr"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert given_order_metrics(test, (3,))["mrr"] == 0.5


def test_label_frequency_on_the_real_data_is_what_its_notes_say(mini: Path) -> None:
    train = MostFrequentLabel([example for _, example in read_ranking_bench(str(mini), "direct", "train")])
    test = [example for _, example in read_ranking_bench(str(mini), "direct", "test")]
    for task, expected in (("Router-Performance", 72.1), ("Router-Balance", 53.8), ("Router-Cost", 71.4)):
        values = [train(example, (3,))["mrr"] for example in test if example.task == task]
        assert len(values) == 40
        assert 100 * np.mean(values) == pytest.approx(expected, abs=0.6)  # ties there are broken, here shared


def test_bootstrap_intervals_hold_the_mean_and_shrink_with_more_queries() -> None:
    values = np.random.default_rng(0).random(400)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)  # the normal approximation
    assert bootstrap_interval(values) == (low, high)
    few = bootstrap_interval(values[:40])
    assert few[1] - few[0] > high - low
    assert summarise([{"mrr": 1.0}, {"mrr": 0.5}])["mrr"]["mean"] == 0.75


def test_rows_of_one_subject_are_drawn_together() -> None:
    rng = np.random.default_rng(1)
    values = rng.random(200)
    subjects = [f"user {place}" for place in range(200)]
    assert bootstrap_interval(values, subjects=subjects) == bootstrap_interval(values)
    # what stands there five times says no more than once
    five = bootstrap_interval(np.repeat(values, 5), subjects=np.repeat(subjects, 5).tolist())
    assert five == pytest.approx(bootstrap_interval(values), abs=1e-12)
    sizes = rng.integers(1, 6, 200)
    levels = np.repeat(rng.normal(0, 1, 200), sizes)
    rows, own = levels + rng.normal(0, 0.3, len(levels)), np.repeat(np.arange(200), sizes)
    low, high = bootstrap_interval(rows, subjects=own.tolist())
    # the sandwich variance of a mean with clusters (Liang and Zeger, 1986)
    residuals = np.bincount(own, weights=rows - rows.mean())
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt((residuals**2).sum()) / len(rows), rel=0.1)
    alone = bootstrap_interval(rows)
    assert high - low > 1.4 * (alone[1] - alone[0])


QUALITY = {name: place for place, name in enumerate("hgfedcba")}


class Scripted:
    """A session that answers by a function, and completes what is open in an order of its own."""

    def __init__(self, answer: Callable[[Question, int], str], seed: int = 0) -> None:
        self.answer, self.rng = answer, random.Random(seed)
        self.open: dict[int, tuple[Question, int]] = {}
        self.asked: list[Question] = []

    def add(self, key: int, request: Any, params: Any) -> None:
        assert key not in self.open
        self.open[key] = (request, params)

    def step(self, once: bool = False) -> list[tuple[int, list[str]]]:
        chosen = self.rng.sample(sorted(self.open), min(len(self.open), self.rng.randint(1, 3)))
        done = []
        for key in chosen:
            question, samples = self.open.pop(key)
            self.asked.append(question)
            done.append((key, [self.answer(question, number) for number in range(samples)]))
        return done

    def cancel(self, key: int) -> None:
        self.open.pop(key, None)

    def rank(self, mode: Mode, waves: bool = False, **settings: int) -> list[RankingResult]:
        conversations = [
            converse(one, RankerSettings(mode, elimination=EliminationSettings(**settings))) for one in pools()
        ]
        found = run_conversations(
            conversations,
            self,  # type: ignore[arg-type]
            lambda question: (question, question.samples),  # type: ignore[arg-type, return-value]
            lambda question, request, texts: [Reply(text, 10 * (not n), 3) for n, text in enumerate(texts)],  # type: ignore[misc]
            waves,
        )
        results = dict(found)
        return [results[place] for place in range(len(results))]


def worst(question: Question, number: int) -> str:
    return f"hm</think>\n<answer>{min(question.example.candidates, key=QUALITY.__getitem__)}</answer>"


def pools() -> list[RankingExample]:
    rng = random.Random(0)
    return [
        RankingExample("Rec-Movie", tuple(rng.sample("abcdefgh", size)), history=("x",)) for size in (2, 5, 8, 1, 3)
    ]


@pytest.mark.parametrize("waves", [False, True])
def test_eliminating_the_worst_each_round_ranks_by_quality(waves: bool) -> None:
    for example, result in zip(pools(), Scripted(worst).rank("iterative", waves), strict=True):
        assert result.ranking == tuple(sorted(example.candidates, key=QUALITY.__getitem__, reverse=True))
        assert result.calls == result.depth == result.answers == result.valid_answers == len(example.candidates) - 1
        assert result.out_in_round == {name: place for place, name in enumerate(reversed(result.ranking[1:]), 1)}
        assert result.thoughts == ["hm"] * result.calls
        assert result.prompt_tokens == 10 * result.calls
        assert result.unordered == result.fallbacks == 0


def test_a_query_goes_on_without_waiting_for_the_others() -> None:
    """A session that completes the first open request alone would, in waves, ask the first query again last."""

    class First(Scripted):
        def step(self, once: bool = False) -> list[tuple[int, list[str]]]:
            key = min(self.open, default=None)
            if key is None:
                return []
            question, _ = self.open.pop(key)
            self.asked.append(question)
            return [(key, [self.answer(question, 0)])]

    sizes = {}
    for waves in (False, True):
        session = First(worst)
        session.rank("iterative", waves)
        sizes[waves] = [len(question.example.candidates) for question in session.asked]
    assert sizes[False] == [2, *range(5, 1, -1), *range(8, 1, -1), 3, 2]
    assert sizes[True] == [2, 5, 8, 3, 4, 7, 2, 3, 6, 2, 5, 4, 3, 2]


def test_answers_that_name_nothing_are_asked_for_again_then_repaired_and_counted() -> None:
    session = Scripted(lambda question, number: "no idea")
    for example, result in zip(pools(), session.rank("iterative"), strict=True):
        assert result.ranking == example.candidates  # the last shown goes out first
        assert result.fallbacks == len(example.candidates) - 1
        assert result.calls == result.depth == 2 * result.fallbacks
        assert result.valid_answers == 0
    assert [question.is_retry for question in session.asked].count(True) == len(session.asked) / 2
    second = Scripted(lambda question, number: worst(question, number) if question.is_retry else "no idea")
    for example, result in zip(pools(), second.rank("iterative"), strict=True):
        assert result.ranking == tuple(sorted(example.candidates, key=QUALITY.__getitem__, reverse=True))
        assert result.fallbacks == 0
        assert result.calls == 2 * result.valid_answers
    assert closest("golden qwest", ["Silver Lake", "Golden Quest", "Old"]) == 1


def test_a_direct_answer_is_completed_in_the_order_shown() -> None:
    def two_best(question: Question, number: int) -> str:
        best = sorted(question.example.candidates, key=QUALITY.__getitem__, reverse=True)[: 2 + question.is_retry]
        return "</think>\n<answer>" + "\n".join(best) + "</answer>"

    for example, result in zip(pools(), Scripted(two_best).rank("direct"), strict=True):
        best = sorted(example.candidates, key=QUALITY.__getitem__, reverse=True)[:3]  # the second try names more
        assert result.ranking == (*best, *(name for name in example.candidates if name not in best))
        assert result.fallbacks == (len(example.candidates) > 3)
        assert result.calls == 1 + (len(example.candidates) > 2)


def test_several_go_out_a_round_by_votes_and_the_top_is_left_unordered() -> None:
    def vote(question: Question, number: int) -> str:
        """Of five answers two name the worst, two the second worst and one the best."""
        names = sorted(question.example.candidates, key=QUALITY.__getitem__)
        return f"</think>\n<answer>{names[[0, 1, 0, 1, -1][number] if len(names) > 1 else 0]}</answer>"

    for example, result in zip(pools(), Scripted(vote).rank("iterative", eliminate=2, votes=5, top_k=3), strict=True):
        size = len(example.candidates)
        rounds = max(0, math.ceil((size - 3) / 2))
        assert result.calls == result.depth == rounds
        assert result.answers == 5 * rounds
        assert result.prompt_tokens == 10 * rounds  # a prompt is computed once for all its answers
        best = set(sorted(example.candidates, key=QUALITY.__getitem__, reverse=True)[:3])
        assert set(result.ranking[:3]) == best
        assert list(result.ranking[: min(3, size)]) == [name for name in example.candidates if name in best]
        assert result.unordered == (min(3, size) if size > 1 else 0)
    few = Scripted(lambda question, number: worst(question, 0)).rank("iterative", eliminate=3)
    for example, result in zip(pools(), few, strict=True):  # all three answers name the same one
        assert result.ranking == tuple(sorted(example.candidates, key=QUALITY.__getitem__, reverse=True))
        assert result.calls == len(example.candidates) - 1


def test_names_of_tasks() -> None:
    assert resolve_tasks("all", "a/hub-id") == list(TASK_NAMES)
    assert resolve_tasks("Rec-Movie,Passage-5", "") == ["Rec-Movie", "Passage-5"]
    with pytest.raises(UserError, match="Router-Balance"):
        resolve_tasks("Rec-Film", "")


def test_results_asked_for_in_other_ways_have_files_of_their_own(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    for changes in ({}, {"think": False}, {"constrain": "candidates"}, {"answer_style": "label"}):
        options = EvaluationOptions(
            str(toy / "bench"), 1, output_dir=str(tmp_path), strategy="direct", max_tokens=32, **changes
        )
        run_evaluation("Rec-Movie", tiny_model, options, show=False)
    assert len([path for path in tmp_path.iterdir() if "timing" not in path.name]) == 4


@pytest.mark.parametrize(
    "change",
    [{"strategy": "foo"}, {"answer_style": "bar"}, {"max_response_length": "64"}, {"think": 1}, {"constrain": None}],
)
def test_settings_of_a_model_that_make_no_sense_are_refused(change: dict, tmp_path: Path) -> None:
    good = {"strategy": "direct", "answer_style": "name", "think": True, "constrain": "none", "max_response_length": 64}
    (tmp_path / "r1ranker.json").write_text(json.dumps(good))
    assert RankerSettings.from_pretrained(str(tmp_path)).max_tokens == 64
    (tmp_path / "r1ranker.json").write_text(json.dumps(good | change))
    with pytest.raises(UserError, match=next(iter(change))):
        RankerSettings.from_pretrained(str(tmp_path))


def test_a_ranker_says_what_it_ranks_for(tiny_model: str) -> None:
    ranker = Ranker.from_pretrained(tiny_model, constrain="candidates", think=False)
    with pytest.raises(UserError, match="Rec-Movie ranks for a list of texts"):
        ranker.rank("a film for a rainy day", ["A", "B"])
    with pytest.raises(UserError, match="Passage-5 ranks for a text"):
        ranker.rank(["a"], ["passage 0", "passage 1"], "Passage-5")


@pytest.mark.parametrize("strategy", ["iterative", "direct"])
def test_an_evaluation_keeps_every_ranking_and_repeats_itself(
    toy: Path, tiny_model: str, tmp_path: Path, strategy: Mode
) -> None:
    def run(name: str) -> dict:
        options = EvaluationOptions(
            str(toy / "bench"),
            4,
            strategy=strategy,
            output_dir=str(tmp_path / name),
            constrain="candidates",
            think=False,
        )
        return run_evaluation("Rec-Movie,Passage-5", tiny_model, options, show=name == "a")[0]

    report = run("a")
    (file,) = (path for path in (tmp_path / "a").iterdir() if "timing" not in path.name)
    saved = read_result(str(file))
    for task in ("Rec-Movie", "Passage-5"):
        result = saved["tasks"][task]
        assert result["queries"] == len(result["rankings"]) == 4
        assert result["valid_answer_rate"] == 1
        ranks = [one["ranking"].index(one["positive"]) + 1 for one in result["rankings"]]
        assert result["metrics"]["mrr"]["mean"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
        assert set(result["baselines"]) == {"random", "order as given", "most frequent label"}
    assert run("b") == report == saved
    assert saved["source"] == "toy"
    assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()
