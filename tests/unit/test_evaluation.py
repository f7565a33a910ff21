"""Metrics against ir-measures, baselines against known figures, decoding against a scripted engine."""

from __future__ import annotations

import json
import math
import random
from itertools import chain, permutations, product
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from r1ranker.data.sources.ranking_bench import read_ranking_bench
from r1ranker.errors import UserError
from r1ranker.evaluation.baselines import MostFrequentLabel, as_given, random_order
from r1ranker.evaluation.metrics import bootstrap_interval, expected_metrics, metrics_of_ranking, summarise
from r1ranker.evaluation.runner import run_evaluation, tasks_of
from r1ranker.ranking.decode import Reply, closest, rank_direct, rank_iterative
from r1ranker.ranking.ranker import Ranker, RankerSettings
from r1ranker.tasks.catalog import TASK_NAMES
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat, Mode

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
    exact = random_order(example, CUTOFFS)
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
    assert as_given(test, (3,))["mrr"] == 0.5


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


QUALITY = {name: place for place, name in enumerate("hgfedcba")}


def scripted(answer_for: dict[Mode, object]) -> object:
    """An engine's stand-in that answers by the candidates' hidden quality."""

    def ask(examples: list[RankingExample], mode: Mode) -> list[Reply]:
        function = answer_for[mode]
        return [Reply(function(example), 10, 3) for example in examples]  # type: ignore[operator]

    return ask


def pools() -> list[RankingExample]:
    rng = random.Random(0)
    return [
        RankingExample("Rec-Movie", tuple(rng.sample("abcdefgh", size)), history=("x",)) for size in (2, 5, 8, 1, 3)
    ]


def test_eliminating_the_worst_each_round_ranks_by_quality() -> None:
    def worst(example: RankingExample) -> str:
        return f"hm</think>\n<answer>{min(example.candidates, key=QUALITY.__getitem__)}</answer>"

    finished: list[int] = []
    results = rank_iterative(pools(), scripted({"iterative": worst}), AnswerFormat(), finished.append)  # type: ignore[arg-type]
    for example, result in zip(pools(), results, strict=True):
        assert result.ranking == tuple(sorted(example.candidates, key=QUALITY.__getitem__, reverse=True))
        assert result.calls == result.valid_answers == len(example.candidates) - 1
        assert result.out_in_round == {name: place for place, name in enumerate(reversed(result.ranking[1:]), 1)}
        assert result.thoughts == ["hm"] * result.calls
    assert sum(finished) == len(results)


def test_answers_that_name_nothing_fall_back_and_are_counted() -> None:
    results = rank_iterative(pools(), scripted({"iterative": lambda example: "no idea"}), AnswerFormat())  # type: ignore[arg-type]
    for example, result in zip(pools(), results, strict=True):
        assert result.ranking == example.candidates  # the last shown goes out first
        assert result.fallbacks == result.calls == len(example.candidates) - 1
    assert closest("golden qwest", ["Silver Lake", "Golden Quest", "Old"]) == 1


def test_a_direct_answer_is_completed_in_the_order_shown() -> None:
    def two_best(example: RankingExample) -> str:
        best = sorted(example.candidates, key=QUALITY.__getitem__, reverse=True)[:2]
        return "</think>\n<answer>" + "\n".join(best) + "</answer>"

    for example, result in zip(
        pools(), rank_direct(pools(), scripted({"direct": two_best}), AnswerFormat()), strict=True
    ):  # type: ignore[arg-type]
        best = sorted(example.candidates, key=QUALITY.__getitem__, reverse=True)[:2]
        rest = [name for name in example.candidates if name not in best]
        assert result.ranking == (*best, *rest)
        assert result.valid_answers == (len(example.candidates) <= 2)


def test_names_of_tasks() -> None:
    assert tasks_of("all", "a/hub-id") == list(TASK_NAMES)
    assert tasks_of("Rec-Movie,Passage-5", "") == ["Rec-Movie", "Passage-5"]
    with pytest.raises(UserError, match="Router-Balance"):
        tasks_of("Rec-Film", "")


def test_results_asked_for_in_other_ways_have_files_of_their_own(toy: Path, tiny_model: str, tmp_path: Path) -> None:
    for changes in ({}, {"think": False}, {"constrain": "candidates"}, {"answer_style": "label"}):
        run_evaluation(
            "Rec-Movie", tiny_model, str(toy / "bench"), "direct", limit=1, output_dir=str(tmp_path), show=False, **changes,
        )  # fmt: skip
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    "change",
    [{"strategy": "foo"}, {"answer_style": "bar"}, {"max_response_length": "64"}, {"think": 1}, {"constrain": None}],
)
def test_settings_of_a_model_that_make_no_sense_are_refused(change: dict, tmp_path: Path) -> None:
    good = {"strategy": "direct", "answer_style": "name", "think": True, "constrain": "none", "max_response_length": 64}
    (tmp_path / "r1ranker.json").write_text(json.dumps(good))
    assert RankerSettings.of_model(str(tmp_path)).max_tokens == 64
    (tmp_path / "r1ranker.json").write_text(json.dumps(good | change))
    with pytest.raises(UserError, match=next(iter(change))):
        RankerSettings.of_model(str(tmp_path))


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
        return run_evaluation(
            "Rec-Movie,Passage-5", tiny_model, str(toy / "bench"), strategy, limit=4, output_dir=str(tmp_path / name),
            constrain="candidates", think=False, show=name == "a",
        )  # fmt: skip

    report = run("a")
    (file,) = (tmp_path / "a").iterdir()
    saved = json.loads(file.read_text())
    for task in ("Rec-Movie", "Passage-5"):
        result = saved["tasks"][task]
        assert result["queries"] == len(result["rankings"]) == 4
        assert result["valid_answer_rate"] == 1
        ranks = [one["ranking"].index(one["positive"]) + 1 for one in result["rankings"]]
        assert result["metrics"]["mrr"]["mean"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
        assert set(result["baselines"]) == {"random", "order as given", "most frequent label"}
    again = run("b")
    for task in report["tasks"]:
        assert report["tasks"][task]["rankings"] == again["tasks"][task]["rankings"]
