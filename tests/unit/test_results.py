"""Result files: measured again without a model, compared, written for TREC, taken up after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from r1ranker.errors import UserError
from r1ranker.evaluation.journal import Journal
from r1ranker.evaluation.options import EvaluationOptions
from r1ranker.evaluation.records import metrics_of, record_of, strict_metrics_of, summarise_systems
from r1ranker.evaluation.results import compare_results, randomisation_test, read_result, recompute_metrics, write_trec
from r1ranker.evaluation.runner import run_evaluation
from r1ranker.experiments.summary import ArmResult, summarise_experiment
from r1ranker.ranking.conversation import RankingResult
from r1ranker.ranking.metrics import mean_with_interval
from r1ranker.tasks.example import RankingExample

CUTOFFS = (1, 3, 5)
ROOT = Path(__file__).parents[2]


def record(seed: int, graded: bool = False, unordered: int = 0, fallbacks: int = 0) -> dict[str, Any]:
    """A query of six candidates, ranked at random."""
    rng = random.Random(seed)
    names = tuple(f"n{place}" for place in range(6))
    grades = tuple(float(rng.randint(0, 3)) for _ in names[1:])
    example = RankingExample("Rec-Movie", names, "n0", history=(f"h{seed}",), grades=(3.0, *grades) if graded else ())
    ranking = tuple(rng.sample(names, len(names)))
    ranked = RankingResult(ranking, unordered, calls=5, depth=5, answers=5, valid_answers=4, fallbacks=fallbacks)
    return json.loads(json.dumps(record_of(example, ranked)))


def result(seeds: range, graded: bool = False, **changes: int) -> dict[str, Any]:
    records = [record(seed, graded, **changes) for seed in seeds]
    return {"format": 1, "model": "some/model dir", "tasks": {"Rec-Movie": {"rankings": records}}}


def test_a_record_is_enough_to_measure_a_ranking_again() -> None:
    for graded in (False, True):
        found = recompute_metrics(result(range(8), graded), CUTOFFS)["Rec-Movie"]
        for seed, metrics in enumerate(found):
            one = record(seed, graded)
            judged = one.get("grades") or {name: float(name == "n0") for name in one["candidates"]}
            gains = [[2 ** judged[name] - 1 for name in one["ranking"]]]
            assert metrics["mrr"] == 1 / next(rank for rank, name in enumerate(one["ranking"], 1) if judged[name])
            for k in CUTOFFS:
                assert metrics[f"ndcg@{k}"] == pytest.approx(ndcg_score(gains, [range(6, 0, -1)], k=k), abs=1e-12)


def test_a_top_that_was_not_told_apart_counts_as_its_mean() -> None:
    one = record(3, unordered=4)
    place = one["ranking"].index("n0")
    assert place < 4
    assert metrics_of(one, CUTOFFS)["mrr"] == pytest.approx(np.mean([1, 1 / 2, 1 / 3, 1 / 4]))
    assert metrics_of(one, CUTOFFS)["hit@3"] == pytest.approx(3 / 4)


def test_a_repaired_answer_counts_as_a_miss_where_it_is_strict() -> None:
    whole, repaired = record(1), record(2, fallbacks=1)
    assert strict_metrics_of(whole, CUTOFFS) == metrics_of(whole, CUTOFFS)
    assert set(strict_metrics_of(repaired, CUTOFFS).values()) == {0.0}
    measured = {"model": [metrics_of(one, CUTOFFS) for one in (whole, repaired)]}
    measured["strict"] = [strict_metrics_of(one, CUTOFFS) for one in (whole, repaired)]
    found = summarise_systems(measured, [whole, repaired], 0)
    assert found["strict"]["mrr"]["mean"] == metrics_of(whole, CUTOFFS)["mrr"] / 2
    assert (found["valid_answer_rate"], found["fallback_rate"], found["calls_per_query"]) == (0.8, 0.1, 5)


def test_the_randomisation_test_is_the_exact_one_for_few_queries() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(8), rng.random(8) * 0.7
    differences = first - second
    swaps = [abs(np.mean(differences * signs)) for signs in product((1, -1), repeat=8)]
    exact = np.mean(np.array(swaps) >= abs(differences.mean()) - 1e-12)
    assert randomisation_test(first, second) == pytest.approx(exact)
    assert randomisation_test(first, first) == 1.0
    many = rng.random(500)
    assert randomisation_test(many, many + rng.normal(0.2, 0.1, 500)) < 0.001
    noise = many + rng.normal(0, 0.3, 500)
    assert randomisation_test(many, noise) == randomisation_test(many, noise)


def test_values_of_one_subject_are_swapped_together() -> None:
    rng = np.random.default_rng(3)
    first, second, subjects = rng.random(15), rng.random(15) * 0.8, list("aabbbcdddeefggg")
    differences = first - second
    signs_of = [dict(zip("abcdefg", signs, strict=True)) for signs in product((1, -1), repeat=7)]
    swaps = [
        abs(np.mean([one[name] * value for name, value in zip(subjects, differences, strict=True)])) for one in signs_of
    ]
    exact = np.mean(np.array(swaps) >= abs(differences.mean()) - 1e-12)
    assert randomisation_test(first, second, subjects=subjects) == pytest.approx(exact)
    # a difference that all rows of a user share is one observation, not five
    users = rng.normal(0.1, 0.3, 30)
    rows, nothing, own = np.repeat(users, 5), np.zeros(150), np.repeat(np.arange(30), 5).tolist()
    assert randomisation_test(rows, nothing, subjects=own) == pytest.approx(randomisation_test(users, np.zeros(30)))
    assert randomisation_test(rows, nothing) < randomisation_test(rows, nothing, subjects=own)


def test_a_record_says_what_it_is_about() -> None:
    ranked = RankingResult(("a", "b"), 0, calls=1, depth=1, answers=1, valid_answers=1, fallbacks=0)
    user = RankingExample("Rec-Movie", ("a", "b"), "a", history=("h",), subject="user 7")
    asked = [RankingExample(task, ("a", "b"), "a", query="why?") for task in ("Router-Cost", "Router-Balance")]
    assert record_of(user, ranked)["subject"] == "user 7"
    assert {record_of(one, ranked)["subject"] for one in asked} == {"why?"}  # the same query for two tasks
    assert "subject" not in record_of(RankingExample("Rec-Movie", ("a", "b"), "a", history=("h",)), ranked)
    # two queries, each five times: their pooled interval is that of two, from 0 to 1
    records = [record_of(RankingExample("Passage-5", ("a", "b"), name, query=name), ranked) for name in "ab" * 5]
    values = [{"mrr": float(record["positive"] == "a")} for record in records]
    together = summarise_systems({"model": values, "strict": values}, records, 0)["metrics"]["mrr"]
    assert (together["mean"], together["low"], together["high"]) == (0.5, 0.0, 1.0)
    left = {"format": 1, "model": "one", "tasks": {"Passage-5": {"rankings": records}}}
    right = {
        "format": 1,
        "model": "two",
        "tasks": {"Passage-5": {"rankings": [one | {"ranking": ["b", "a"]} for one in records]}},
    }
    assert compare_results(left, right)["Passage-5"]["p"] == 1.0


def test_an_experiments_intervals_and_tests_keep_what_belongs_together_together() -> None:
    """Ten users of five rows each against as many rows that nobody shares: both tasks' rows are pooled by user."""
    ranked = [RankingResult(tuple("ab" if user % 2 else "ba"), 0, 1, 1, 1, 1, 0) for user in range(10)]
    test, reports, names = {}, {"tasks": {}}, [user for user in range(10) for _ in range(5)]  # type: ignore[var-annotated]
    for task in ("Rec-Movie", "Rec-Game"):
        test[task] = [RankingExample(task, ("a", "b"), "a", history=("h",), subject=f"user {user}") for user in names]
        records = [record_of(one, ranked[user]) for one, user in zip(test[task], names, strict=True)]
        measured = [metrics_of(one, CUTOFFS) for one in records]
        reports["tasks"][task] = summarise_systems({"model": measured, "strict": measured}, records, 0) | {
            "rankings": records
        }
    reports["pooled"] = reports["tasks"]["Rec-Movie"]
    baselines = {"as given": {"mrr": {task: [1.0] * 50 for task in test}}}
    one = ArmResult("one", "after", [reports])
    found, alone = (
        summarise_experiment("", [one], baselines, rows)  # type: ignore[arg-type]
        for rows in (test, {task: [replace(row, subject="") for row in rows] for task, rows in test.items()})
    )
    own = mean_with_interval([1.0 if user % 2 else 0.5 for user in range(10)])
    assert found["rankers"]["one, after"]["all"]["mrr"] == pytest.approx(own)  # of the ten, in which each user is once
    assert found["rankers"]["one, after"]["mrr by task"]["Rec-Game"] == pytest.approx(own)
    assert found["tests"][0]["p"] == 2 * 2**-5  # five users differ: all signs alike, of 2^5
    assert alone["tests"][0]["p"] < 0.001
    assert alone["rankers"]["one, after"]["all"]["mrr"]["low"] > own["low"]


def test_two_results_are_compared_query_by_query() -> None:
    first, second = result(range(40)), result(range(40))
    for one in second["tasks"]["Rec-Movie"]["rankings"]:
        one["ranking"] = ["n0", *(name for name in one["ranking"] if name != "n0")]
    table = compare_results(first, second, "ndcg@3")
    assert table["Rec-Movie"]["queries"] == 40
    assert table["Rec-Movie"]["second"] == 1.0
    assert table["Rec-Movie"]["p"] < 0.001
    with pytest.raises(UserError, match="Rec-Movie: the two results are of different queries"):
        compare_results(first, result(range(1, 41)))
    with pytest.raises(UserError, match="no task in common"):
        compare_results(first, {"tasks": {"Rec-Game": {}}})


def test_trec_files_give_the_same_figures(tmp_path: Path) -> None:
    one = result(range(12), graded=True)
    assert [Path(path).name for path in write_trec(one, str(tmp_path))] == ["Rec-Movie.run", "Rec-Movie.qrels"]
    run = list(ir_measures.read_trec_run(str(tmp_path / "Rec-Movie.run")))
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "Rec-Movie.qrels")))
    found = recompute_metrics(one, CUTOFFS)["Rec-Movie"]
    measures = [ir_measures.RR, ir_measures.Success @ 3]
    expected = {str(name): value for name, value in ir_measures.calc_aggregate(measures, qrels, run).items()}
    assert np.mean([metrics["mrr"] for metrics in found]) == pytest.approx(expected["RR"], abs=1e-12)
    assert np.mean([metrics["hit@3"] for metrics in found]) == pytest.approx(expected["Success@3"], abs=1e-12)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2, "tasks": {}}', '{"format": 1, "tasks": []}'])
def test_other_files_are_no_results(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x.json: not "):
        read_result(str(tmp_path / "x.json"))
    with pytest.raises(UserError, match=r"gone.json: cannot be read"):
        read_result(str(tmp_path / "gone.json"))


def test_a_journal_is_taken_up_line_by_line_and_only_by_the_same_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.part.jsonl"
    with Journal(path, {"model": "m", "tuple": (1, 2)}) as journal:
        for row in range(3):
            journal.add("Rec-Movie", row, record(row))
    whole = path.read_bytes()
    for end in range(len(whole) - 40, len(whole) + 1, 7):
        path.write_bytes(whole[:end])
        with Journal(path, {"model": "m", "tuple": (1, 2)}) as journal:
            assert len(journal.done) == (3 if end == len(whole) else 2)
            for row in range(len(journal.done), 3):
                journal.add("Rec-Movie", row, record(row))
        assert path.read_bytes() == whole
    with Journal(path, {"model": "other"}) as journal:
        assert not journal.done
    assert path.read_bytes().count(b"\n") == 1


EVALUATE = """
import sys, time
from test_results import evaluate
from r1ranker.rollout.hf_batch import ContinuousBatch
whole = ContinuousBatch.step
def slowly(self):
    time.sleep(0.05)
    return whole(self)
ContinuousBatch.step = slowly
evaluate(*sys.argv[1:])
"""


def evaluate(model: str, data: str, output: str) -> None:
    options = EvaluationOptions(data, 6, output_dir=output, strategy="iterative", think=False, constrain="candidates")
    run_evaluation("Rec-Movie,Passage-5,Passage-7", model, options, show=False)


def test_a_killed_evaluation_goes_on_and_ends_as_if_nothing_had_been(
    toy: Path, tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = (tiny_model, str(toy / "bench"))
    killed = subprocess.Popen(
        [sys.executable, "-c", EVALUATE, *of, str(tmp_path / "killed")], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))},
    )  # fmt: skip
    journal = []
    while not journal or journal[0].read_bytes().count(b"\n") < 4:  # some queries of the shortest task are done
        assert killed.poll() is None, killed.stderr.read()  # type: ignore[union-attr]
        journal = list(tmp_path.glob("killed/*.part.jsonl"))
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    evaluate(*of, str(tmp_path / "undisturbed"))
    capsys.readouterr()
    evaluate(*of, str(tmp_path / "killed"))
    assert "queries were ranked before and are taken over" in capsys.readouterr().err
    (file,) = (path for path in (tmp_path / "undisturbed").glob("*.json") if "timing" not in path.name)
    assert (tmp_path / "killed" / file.name).read_bytes() == file.read_bytes()
    assert not list(tmp_path.glob("*/*.part.jsonl"))
    ranked = json.loads(next(tmp_path.glob("killed/*.timing.json")).read_text())["queries"]
    assert 0 < ranked <= 15
