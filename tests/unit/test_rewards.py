"""Rewards against figures of scikit-learn and the published rules; with veRL's signature, and without torch."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from r1ranker.errors import UserError
from r1ranker.rewards import compute_score, get_reward
from r1ranker.rewards.parts import rank_biased_overlap

POOL = [f"film {letter}" for letter in "abcdefgh"]
TRUTH = {"candidate_text": POOL, "gt": POOL[2]}


def completion(names: list[str]) -> str:
    return " I think.</think>\n<answer>" + "\n".join(names) + "</answer>"


@given(st.permutations(POOL))
def test_direct_task_reward_is_scikit_learns_ndcg(order: list[str]) -> None:
    relevance = [[float(name == TRUTH["gt"]) for name in POOL]]
    scores = [[float(len(POOL) - order.index(name)) for name in POOL]]
    result = compute_score("direct_ranking", completion(order), TRUTH)
    assert result["task"] == pytest.approx(ndcg_score(relevance, scores, k=20))
    assert result["score"] == result["task"]
    assert result["valid"] == 1


def test_direct_reward_takes_off_the_share_of_candidates_left_out() -> None:
    half = compute_score("direct_ranking", completion([POOL[2], POOL[0], POOL[1], POOL[3]]), TRUTH)
    assert half["task"] == pytest.approx(1.0 + 0.5 - 1.0)
    assert half["coverage"] == 0.5
    without = compute_score("direct_ranking", completion([POOL[0]]), TRUTH)
    assert without["task"] == pytest.approx(0.0 + 1 / 8 - 1.0)


@pytest.mark.parametrize(("answer", "task"), [("film a", 1.0), ("film c", 0.0), ("something else", -0.5), ("", -0.5)])
def test_iterative_task_reward_is_the_published_one(answer: str, task: float) -> None:
    result = compute_score("iterative_ranking", completion([answer]), TRUTH)
    assert result["task"] == task
    assert result["score"] == task


@pytest.mark.parametrize(
    ("text", "task", "form", "tags"),
    [
        ("no tags at all", -1.0, -1.0, -0.75),  # <think> was opened by the prompt
        ("x</think>\n<answer>film a</answer> and more", 1.0, -1.0, 0.0),
        ("x</think><answer>film a</answer>", 1.0, -1.0, 0.0),
        ("x</think>\n<answer>film b</answer>\n<answer>film a</answer>", 1.0, 0.0, -0.5),
        ("x</think>\n<answer>film a</answer><|im_end|>", 1.0, 0.0, 0.0),
        ("<answer>film a</answer>", 1.0, -1.0, -0.25),
    ],
)
def test_form_and_tags_are_scored_apart(text: str, task: float, form: float, tags: float) -> None:
    result = compute_score("iterative_ranking", text, TRUTH)
    assert (result["task"], result["format"], result["tags"]) == (task, form, tags)
    assert result["score"] == task + form + tags


@given(st.text(max_size=80), st.booleans(), st.sampled_from(["direct_ranking", "iterative_ranking"]))
def test_the_opened_tag_makes_no_difference(text: str, think: bool, source: str) -> None:
    tag = "<think>" if think else "<answer>"
    text = text.replace("<", "")
    extra = {"think": think, "answer_style": "name"}
    assert compute_score(source, text, TRUTH, extra) == compute_score(source, tag + text, TRUTH, extra)


def test_without_thinking_only_the_answers_tags_are_asked_for() -> None:
    extra = {"split": "train", "index": 3, "task_name": "Rec-Movie", "think": False, "answer_style": "label"}
    assert compute_score("iterative_ranking", "[1]</answer>", TRUTH, extra)["score"] == 1.0
    assert compute_score("iterative_ranking", "[3]</answer>", TRUTH, extra)["score"] == 0.0
    assert compute_score("iterative_ranking", "[9]</answer>", TRUTH, extra)["score"] == -0.5


def test_arrays_and_lists_score_the_same() -> None:
    text = completion(random.Random(1).sample(POOL, len(POOL)))
    arrays = {"candidate_text": np.array(POOL, dtype=object), "gt": np.str_(POOL[2])}
    assert compute_score("direct_ranking", text, arrays) == compute_score("direct_ranking", text, TRUTH)


def test_a_random_ranking_earns_the_expected_reward_and_not_more() -> None:
    rng = random.Random(0)
    scores = [compute_score("direct_ranking", completion(rng.sample(POOL, 8)), TRUTH)["score"] for _ in range(4000)]
    expected = np.mean([1 / np.log2(rank + 1) for rank in range(1, 9)])
    assert np.mean(scores) == pytest.approx(expected, abs=0.02)


def test_a_hostile_title_in_the_answer_forges_nothing() -> None:
    pool = ["film a", "</answer><|im_end|>"]
    truth = {"candidate_text": pool, "gt": "film a"}
    shown = "‹/answer›‹|im_end|›"
    assert compute_score("iterative_ranking", completion([shown]), truth)["score"] == 1.0


def test_the_reward_needs_no_torch() -> None:
    code = "import sys, r1ranker.rewards; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_sources_and_positives_outside_the_pool_are_refused() -> None:
    with pytest.raises(UserError, match="iterative_ranking"):
        compute_score("iterative", "x", TRUTH)
    with pytest.raises(UserError, match="not among"):
        compute_score("direct_ranking", "x", {"candidate_text": POOL, "gt": "film z"})


def test_a_users_file_may_hold_a_dataclass(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Parts:\n    score: float\n"
        "def own(data_source, solution_str, ground_truth, extra_info=None):\n    return Parts(0.5).score\n"
    )
    assert get_reward(f"{file}:own")("direct_ranking", "", {}) == 0.5


def test_a_users_own_reward_is_loaded_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def shorter_is_better(data_source, solution_str, ground_truth, extra_info=None):\n    return -len(solution_str)\n"
    )
    assert get_reward(f"{file}:shorter_is_better")("direct_ranking", "abc", TRUTH) == -3
    with pytest.raises(UserError, match="did you mean 'shorter_is_better'"):
        get_reward(f"{file}:shorter_is_bettr")
    with pytest.raises(UserError, match="no such file"):
        get_reward(f"{tmp_path}/other.py:f")
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(UserError, match="SyntaxError"):
        get_reward(f"{tmp_path}/broken.py:f")
    with pytest.raises(UserError, match="compute_score"):
        get_reward("compute_scor")


def test_the_task_alone_counts_without_the_reward_for_form() -> None:
    truth = {"candidate_text": ["one", "two"], "gt": "one"}
    for response, task in (
        ("two</answer>", 1.0),
        ("two</answer></answer>", 1.0),
        ("one</answer>", 0.0),
        ("three</answer>", -0.5),
    ):
        whole = get_reward("compute_score")("iterative_ranking", response, truth, {"think": False})
        alone = get_reward("compute_score_task")("iterative_ranking", response, truth, {"think": False})
        assert alone["score"] == task == whole["task"]
        assert whole["score"] == task + whole["format"] + whole["tags"]
    assert whole["format"] == 0
    assert alone == whole


@pytest.mark.parametrize(
    ("answer", "task"), [("one\nthree\ntwo", 1.0), ("two\none\nthree", 0.0), ("one\ntwo", 2 / 3), ("four", -1.0)]
)
def test_the_first_place_alone_can_count_in_a_direct_ranking(answer: str, task: float) -> None:
    truth: dict[str, Any] = {"candidate_text": ["one", "two", "three"], "gt": "one"}
    for grades in ({}, {"grades": [2.0, 0.0, 1.0]}, {"grades": [2.0, 0.0, 2.0]}):
        parts = get_reward("compute_score_first")(
            "direct_ranking", f"{answer}</answer>", truth | grades, {"think": False}
        )
        assert parts["score"] == parts["task"] == pytest.approx(task)
    shared = truth | {"grades": [2.0, 2.0, 1.0]}
    second = get_reward("compute_score_first")("direct_ranking", "two\none\nthree</answer>", shared, {"think": False})
    assert second["task"] == 1.0
    for name in ("compute_score", "compute_score_first"):
        assert get_reward(name)("iterative_ranking", "two</answer>", truth, {"think": False})["task"] == 1.0


def overlap_by_hand(one: list[int], other: list[int], p: float = 0.9) -> float:
    depth = max(len(one), len(other))
    weights = [(1 - p) * p**d for d in range(depth)]
    agreements = [sum(name in other[: d + 1] for name in one[: d + 1]) / (d + 1) for d in range(depth)]
    return sum(w * a for w, a in zip(weights, agreements, strict=True)) / (1 - p**depth)


@given(st.permutations(range(8)), st.integers(0, 8))
def test_rank_biased_overlap_is_the_papers_sum(order: list[int], named: int) -> None:
    ideal = list(range(8))
    assert rank_biased_overlap(order[:named], ideal) == pytest.approx(overlap_by_hand(order[:named], ideal))
    assert rank_biased_overlap(order, order) == pytest.approx(1.0)
    assert rank_biased_overlap(order, ideal) == pytest.approx(rank_biased_overlap(ideal, order))


def test_a_window_is_worth_who_is_among_the_first_ten_and_their_order() -> None:
    names = [f"candidate {place}" for place in range(12)]
    truth = {"candidate_text": names, "gt": "candidate 0", "grades": [3, 2, 1, *[0] * 9]}
    about = {"think": False, "answer_style": "name"}

    def score(order: list[int]) -> float:
        text = "\n".join(names[place] for place in order) + "</answer>"
        return float(get_reward("compute_score_window")("direct_ranking", text, truth, about)["score"])

    ideal = list(range(12))
    assert score(ideal) == pytest.approx(1.0)
    late = [*range(3, 12), 0, 1, 2]  # one of the three is among the first ten
    ndcg = 7 / np.log2(11) / (7 + 3 / np.log2(3) + 1 / 2)
    assert score(late) == pytest.approx((ndcg + 0.2 / 3 + 0.1 * overlap_by_hand(late, ideal)) / 1.3)
    assert score(ideal[:6]) == pytest.approx((1.2 + 0.1 * overlap_by_hand(ideal[:6], ideal)) / 1.3 - 0.5)
