"""Responses that repeat themselves: seen as vLLM sees them, and ended by our engine where it is asked to."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1ranker.rollout.engine import EngineSettings, Request, SamplingParams
from r1ranker.rollout.hf import HFEngine
from r1ranker.rollout.loops import LONGEST, SHORTEST, TIMES, ends_in_loop


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
