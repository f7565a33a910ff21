"""Packing: no token lost, budgets kept, nothing but sampled tokens predicted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1ranker.trainer.dispatch import Budget, arrange
from r1ranker.trainer.trajectory import Trajectory, bins_of, deal, pack


def trajectory(prompt: list[int], response: list[int], allowed: list[list[int]] | None = None) -> Trajectory:
    return Trajectory(
        prompt_ids=prompt,
        response_ids=response,
        rollout_logprobs=np.arange(len(response), dtype=np.float64),
        finish_reason="stop",
        group_id=0,
        allowed=allowed or [],
    )


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(50, 120), st.one_of(st.none(), st.integers(1, 5)))
def test_bins_hold_everything_once_within_both_budgets(lengths: list[int], tokens: int, count: int | None) -> None:
    bins = bins_of(lengths, tokens, count)
    assert sorted(index for one in bins for index in one) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in one) <= tokens for one in bins)
    assert all(count is None or len(one) <= count for one in bins)


def test_a_sequence_over_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="60 tokens"):
        bins_of([10, 60], 50)


@given(st.lists(st.integers(0, 100), max_size=20), st.integers(1, 5))
def test_dealing_gives_every_process_as_many_bins(loads: list[int], hands: int) -> None:
    dealt = deal(loads, hands)
    assert len(dealt) == hands
    assert len({len(hand) for hand in dealt}) == 1
    assert sorted(index for hand in dealt for index in hand if index >= 0) == list(range(len(loads)))


token_lists = st.lists(st.integers(0, 99), min_size=1, max_size=8)


@given(st.lists(st.tuples(token_lists, st.lists(st.integers(0, 99), max_size=6)), min_size=1, max_size=6))
def test_a_packed_row_can_be_taken_apart_again(pairs: list[tuple[list[int], list[int]]]) -> None:
    trajectories = [trajectory(prompt, response) for prompt, response in pairs]
    batch = pack(trajectories)
    row, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()
    bounds = batch.cu_seqlens.tolist()
    predicting, targets = batch.predicting.tolist(), batch.targets.tolist()
    place = 0
    for (prompt, response), start, end in zip(pairs, bounds, bounds[1:], strict=False):
        assert row[start:end] == prompt + response
        assert positions[start:end] == list(range(end - start))
        for offset, token in enumerate(response):
            # the logits at a place predict the token after it
            assert predicting[place] == start + len(prompt) + offset - 1
            assert row[predicting[place] + 1] == token == targets[place]
            place += 1
    assert place == len(targets) == len(batch.columns["rollout_logprobs"])
    assert batch.max_seqlen == max(len(one) for one in trajectories)


def test_constraints_follow_their_tokens() -> None:
    batch = pack([trajectory([1], [2, 3]), trajectory([4], [5, 6], allowed=[[], [6, 7]])])
    assert batch.constrained.tolist() == [3]
    assert batch.allowed.tolist() == [[6, 7]]


def test_nothing_packs_into_a_filler_without_targets() -> None:
    batch = pack([])
    assert batch.is_filler
    assert len(batch.targets) == 0
    assert batch.input_ids.shape == (1, 1)


def test_processes_share_the_work_however_large_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(300, 1700, 32)
    batch = [Trajectory([1] * (length - 1), [2], np.zeros(1), "stop", 0) for length in lengths]
    loads = [
        sum(lengths[index] for one in hand for index in one) for hand in arrange(batch, 4, Budget(max_tokens=16384))
    ]
    assert sum(loads) == lengths.sum()
    assert max(loads) < 1.15 * lengths.sum() / 4
