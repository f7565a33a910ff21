"""Responses that repeat themselves: seen as vLLM sees them, and ended by our engine where it is asked to."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1ranker.ranking.conversation import Question
from r1ranker.ranking.ranker import Ranker
from r1ranker.rollout.constraint import build_constraint
from r1ranker.rollout.engine import EngineSettings, Request, SamplingParams
from r1ranker.rollout.hf import HFEngine
from r1ranker.rollout.loops import LONGEST, SHORTEST, TIMES, ends_in_loop
from r1ranker.tasks.example import RankingExample
from r1ranker.tasks.prompts import AnswerFormat
from r1ranker.trainer.config.load import load_config
from r1ranker.trainer.experience.validation import validate
from r1ranker.trainer.loop import Run


@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed; '.[cpu]' brings it")
@given(
    start=st.lists(st.integers(0, 3), max_size=9),
    period=st.lists(st.integers(0, 2), min_size=1, max_size=20),
    times=st.integers(1, 40),
    cut=st.integers(0, 5),
)
def test_loops_are_those_of_vllm(start: list[int], period: list[int], times: int, cut: int) -> None:
    from vllm.sampling_params import RepetitionDetectionParams
    from vllm.v1.core.sched.utils import check_sequence_repetition

    tokens = start + period * times
    tokens = tokens[: len(tokens) - cut]
    expected = check_sequence_repetition(tokens, RepetitionDetectionParams(LONGEST, SHORTEST, TIMES))
    assert ends_in_loop(tokens) == expected


def test_short_patterns_have_to_come_often() -> None:
    assert not ends_in_loop([])
    assert not ends_in_loop([1, 2] * 15)
    assert ends_in_loop([1, 2] * 16)
    assert not ends_in_loop(list(range(100)) * 3)
    assert ends_in_loop(list(range(100)) * 4)
    assert not ends_in_loop(list(range(129)) * 4)


def test_a_greedy_response_that_goes_round_in_circles_ends_there(tiny_model: str) -> None:
    engine = HFEngine.from_pretrained(tiny_model, torch.device("cpu"), EngineSettings(max_num_seqs=2))
    requests = [Request([5 + seed, 9, 11], seed) for seed in range(4)]  # two wait until the others have ended
    whole = [one.token_ids for (one,) in engine.generate(requests, SamplingParams(temperature=0, max_tokens=200))]
    asked = SamplingParams(temperature=0, max_tokens=200, end_loops=True)
    ended = [one for (one,) in engine.generate(requests, asked)]
    assert any(len(one.token_ids) < 200 for one in ended)
    for answer, one in zip(whole, ended, strict=True):
        first = next((end for end in range(1, 201) if ends_in_loop(answer[:end])), 200)
        assert one.token_ids == answer[:first]
        assert one.finish_reason == "length"
        assert len(one.logprobs) == first


@pytest.mark.parametrize(
    ("think", "constrain", "ends"),
    [(True, "none", True), (True, "candidates", True), (False, "none", True), (False, "candidates", False)],
)
def test_rankings_and_validations_end_loops_unless_names_alone_can_be_said(
    think: bool, constrain: Any, ends: bool, tiny_model: str, toy: Path, tmp_path: Path
) -> None:
    ranker = Ranker.from_pretrained(tiny_model, "iterative", constrain, think=think)
    example = RankingExample("Rec-Movie", ("Silent Harbour", "Silent Mirror"), history=("Golden Station",))
    assert ranker._to_request(Question(example, "iterative"))[1].end_loops == ends
    rows = [f"{toy}/iterative_ranking/{split}.parquet" for split in ("train", "test")]
    values = {
        "data.train_files": rows[0], "data.val_files": rows[1], "actor_rollout_ref.model.path": tiny_model, "data.think": think,
        "actor_rollout_ref.rollout.constrain": constrain, "trainer.default_local_dir": str(tmp_path),
    }  # fmt: skip
    run = Run(load_config("quickstart", values=values))
    asked = []

    def send(cluster: Any, prompts: Any, requests: Any, params: SamplingParams, version: int) -> None:
        asked.append(params.end_loops)
        raise _AskedError

    run.sampler.send = send  # type: ignore[assignment,method-assign]
    with pytest.raises(_AskedError):
        validate(None, run.sampler, run.validation[:2], 0, print, run.rollouts, 0)  # type: ignore[arg-type]
    run.close()
    assert asked == [ends]


class _AskedError(Exception):
    """Nothing is to be sampled."""


def test_samples_of_a_prompt_end_their_loops_each_for_itself_before_the_answer(tiny_model: str) -> None:
    """With thoughts before a constrained answer; what was allowed stays as long as the response."""
    engine = HFEngine.from_pretrained(tiny_model, torch.device("cpu"))
    form = AnswerFormat("name", think=True)
    constraint = build_constraint(engine.tokenizer, ("Silent Harbour", "Silent Mirror"), "iterative", form)
    requests = [Request([5 + seed, 9, 11], seed, constraint) for seed in range(3)]
    params = SamplingParams(n=2, temperature=0.05, max_tokens=200, end_loops=True)
    answers = [one for samples in engine.generate(requests, params) for one in samples]
    assert any(len(one.token_ids) < 200 for one in answers)
    for one in answers:
        assert ends_in_loop(one.token_ids) or len(one.token_ids) == 200
        assert len(one.allowed) == len(one.logprobs) == len(one.token_ids)
