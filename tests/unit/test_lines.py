"""Credit by rank: which tokens are a line's, what it is rewarded with, and that a response's lines are one sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from r1ranker.data.prompt_store import Prompt
from r1ranker.rewards import compute_score
from r1ranker.tasks.prompts import AnswerFormat
from r1ranker.trainer.algorithm.estimation import assign_advantages
from r1ranker.trainer.algorithm.kl import KLController
from r1ranker.trainer.batch.chains import chain
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import AlgorithmConfig
from r1ranker.trainer.experience.lines import split_by_rank

POOL = ["Alien", "Heat", "Ran", "Amélie"]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_model)
    return found


def prompt_of(think: bool = False, mode: str = "direct", **truth: Any) -> Prompt:
    return Prompt(
        [5, 6], f"{mode}_ranking", {"candidate_text": POOL, "gt": "Ran", **truth}, {"index": 0, "task_name": "Rec-Movie"},
        mode, AnswerFormat("name", think),  # type: ignore[arg-type]
    )  # fmt: skip


def said(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, text: str, group: int = 0) -> Trajectory:
    """A response with the built-in reward."""
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    about = {"think": prompt.answer_format.think, "answer_style": "name"}
    score = compute_score(prompt.data_source, text, prompt.ground_truth, about)["score"]
    return Trajectory(list(prompt.token_ids), ids, np.arange(len(ids), dtype=float), "stop", group, score=score)


def lines_of(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, text: str, gamma: float = 0.0) -> list[Trajectory]:
    return split_by_rank(tokenizer, [prompt], [said(tokenizer, prompt, text)], gamma)[0]


def test_lines_up_to_the_positive_are_rewarded_each_for_itself(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "Alien\nRan\nHeat\nAmélie</answer>"
    lines = lines_of(tokenizer, prompt_of(), text)
    # nothing can be gained behind the positive
    assert [tokenizer.decode(one.response_ids) for one in lines] == ["Alien\n", "Ran\n"]
    assert [one.score for one in lines] == [pytest.approx(0.0), pytest.approx(1 / np.log2(3))]
    assert [one.turn for one in lines] == [1, 2]
    whole = said(tokenizer, prompt_of(), text)
    assert lines[1].prompt_ids == [5, 6, *lines[0].response_ids]
    assert [*lines[0].response_ids, *lines[1].response_ids] == whole.response_ids[
        : sum(len(one.response_ids) for one in lines)
    ]
    assert np.concatenate([one.rollout_logprobs for one in lines]).tolist() == list(
        range(len(lines[0].response_ids + lines[1].response_ids))
    )
    (sequence,) = chain(lines)
    assert [*sequence.prompt, *sequence.inputs] == [*lines[1].prompt_ids, *lines[1].response_ids[:-1]]


def test_grades_are_gains_of_their_ranks_and_sum_to_ndcg(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = prompt_of(grades=[0, 1, 3, 2])
    text = "Heat\nRan\nAlien\nAmélie</answer>"
    lines = lines_of(tokenizer, prompt, text)
    ideal = 7 + 3 / np.log2(3) + 1 / 2
    assert [one.score for one in lines] == pytest.approx(
        [1 / ideal, 7 / np.log2(3) / ideal, 0.0, 3 / np.log2(5) / ideal]
    )
    assert sum(one.score for one in lines) == pytest.approx(said(tokenizer, prompt, text).score)
    assert lines[-1].response_ids[-1] == tokenizer.eos_token_id


def test_a_thought_has_the_whole_reward_whatever_is_handed_back(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = prompt_of(think=True)
    text = "Old films.</think>\n<answer>\nAlien\nRan\n\nHeat\nAmélie\n</answer>"
    for gamma in (0.0, 0.5, 1.0):
        lines = lines_of(tokenizer, prompt, text, gamma)
        assert [tokenizer.decode(one.response_ids).strip() for one in lines] == [
            "Old films.</think>\n<answer>",
            "Alien",
            "Ran",
        ]
        config = AlgorithmConfig(adv_estimator="reinforce_plus_plus", turn_gamma=gamma)
        assign_advantages(lines, config, KLController(0.0))
        assert lines[0].returns is not None
        assert lines[0].returns[0] == pytest.approx(said(tokenizer, prompt, text).score)


@pytest.mark.parametrize(
    "text",
    [
        "Alien, Ran, Heat, Amélie</answer>",
        "Alien\nAlien\nRan</answer>",
        "Alien\nnobody\nRan</answer>",
        "none",
        "Ran</answer>",
    ],
)
def test_what_is_no_list_of_lines_stays_whole(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    whole = said(tokenizer, prompt_of(), text)
    assert split_by_rank(tokenizer, [prompt_of()], [whole], 0.0) == ([whole], [0])
    iterative = prompt_of(mode="iterative")
    assert split_by_rank(tokenizer, [iterative], [whole], 0.0)[0] == [whole]


def test_what_the_reward_has_beside_ndcg_is_in_every_lines_return_once(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt, text = prompt_of(), "Heat\nAlien\nRan</answer>"  # one is left out, which costs a quarter
    for gamma in (0.0, 0.5, 1.0):
        lines = lines_of(tokenizer, prompt, text, gamma)
        config = AlgorithmConfig(adv_estimator="reinforce_plus_plus", turn_gamma=gamma)
        assign_advantages(lines, config, KLController(0.0))
        for place, one in enumerate(lines):
            assert one.returns is not None
            assert one.returns[0] == pytest.approx(gamma ** (2 - place) / 2 - 0.25)


def test_a_line_is_held_against_the_same_rank_of_its_group(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = prompt_of()
    texts = [
        "Ran\nAlien\nHeat\nAmélie</answer>",
        "Alien\nRan\nHeat\nAmélie</answer>",
        "Heat\nAlien\nRan\nAmélie</answer>",
    ]
    lines, origins = split_by_rank(tokenizer, [prompt], [said(tokenizer, prompt, text) for text in texts], 0.0)
    assert origins == [0, 1, 1, 2, 2, 2]
    assign_advantages(lines, AlgorithmConfig(norm_adv_by_std_in_grpo=False), KLController(0.0))
    found = [float(one.advantages[0]) for one in lines if one.advantages is not None]
    second = 1 / np.log2(3)
    assert found == pytest.approx([2 / 3, -1 / 3, second / 2, -1 / 3, -second / 2, 0.0])
