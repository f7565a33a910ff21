"""Packing: no token lost, budgets kept, nothing but sampled tokens predicted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1ranker.trainer.batch.balance import Budget, PassCost, arrange_micro_batches
from r1ranker.trainer.batch.packing import pack
from r1ranker.trainer.batch.trajectory import Trajectory, deal_by_load


def trajectory(prompt: list[int], response: list[int], allowed: list[list[int]] | None = None) -> Trajectory:
    return Trajectory(
        prompt_ids=prompt,
        response_ids=response,
        rollout_logprobs=np.arange(len(response), dtype=np.float64),
        finish_reason="stop",
        group_id=0,
        allowed=allowed or [],
    )


def batch_of(sizes: list[tuple[int, list[int]]]) -> list[Trajectory]:
    """Groups: tokens of the prompt, and of each response."""
    return [
        trajectory([group] * prompt, [7] * length)
        for group, (prompt, lengths) in enumerate(sizes)
        for length in lengths
    ]


def row_tokens(batch: list[Trajectory], one: list[int], share: bool = True) -> int:
    return pack([batch[index] for index in one], share).input_ids.shape[1] if one else 0


groups = st.lists(
    st.tuples(st.integers(1, 30), st.lists(st.integers(0, 20), min_size=1, max_size=6)), min_size=1, max_size=8
)


@given(groups, st.integers(50, 200), st.one_of(st.none(), st.integers(1, 5)), st.integers(1, 3), st.booleans())
def test_bins_hold_everything_once_within_both_budgets(
    sizes: list[tuple[int, list[int]]], tokens: int, count: int | None, processes: int, share: bool
) -> None:
    batch = batch_of(sizes)
    hands = arrange_micro_batches(batch, processes, Budget(tokens, count, share, PassCost(0.01, 0.1), True))
    assert len(hands) == processes
    assert len({len(hand) for hand in hands}) == 1
    bins = [one for hand in hands for one in hand]
    assert sorted(index for one in bins for index in one) == list(range(len(batch)))
    assert all(row_tokens(batch, one, share) <= tokens for one in bins)
    assert all(count is None or len(one) <= count for one in bins)


def test_a_sequence_over_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="60 tokens"):
        arrange_micro_batches([trajectory([1] * 50, [2] * 10)], 1, Budget(50))


def test_a_group_stays_together_where_that_saves_and_is_split_where_processes_would_wait() -> None:
    batch = batch_of([(400, [64] * 8), (400, [64] * 8)])
    (alone,) = arrange_micro_batches(batch, 1, Budget(1000))
    assert sorted(map(sorted, alone)) == [list(range(8)), list(range(8, 16))]
    four = arrange_micro_batches(batch, 4, Budget(1000))
    assert [len(hand[0]) for hand in four] == [4, 4, 4, 4]
    # six responses of one token: computing the prompt again costs more than it saves
    short = arrange_micro_batches(batch_of([(400, [1] * 6), (400, [1] * 6)]), 2, Budget(1000))
    assert sorted(sorted(hand[0]) for hand in short) == [list(range(6)), list(range(6, 12))]


def test_cost_counts_attention_and_the_output_embedding() -> None:
    cost = PassCost(pair=0.5, sampled=2.0)
    # a prompt of 3: pairs 1 + 2 + 3; a response of 3 feeds two tokens, which attend to 3 + 1 and 3 + 2
    assert cost.of(3, [2, 0], 4) == 3 + 2 + 0.5 * (6 + 9) + 2.0 * 4


def test_long_sequences_are_dealt_by_their_attention_too() -> None:
    batch = batch_of([(1000, [2]), *[(100, [2])] * 10])
    hands = arrange_micro_batches(batch, 2, Budget(2000, cost=PassCost(pair=0.01)))
    assert [0] in [hand[0] for hand in hands], "as many tokens on both sides, but the long one costs five times as much"


@given(st.lists(st.integers(0, 100), max_size=20), st.integers(1, 5))
def test_dealing_gives_every_process_as_many_bins(loads: list[int], hands: int) -> None:
    dealt = deal_by_load(loads, hands)
    assert len(dealt) == hands
    assert len({len(hand) for hand in dealt}) == 1
    assert sorted(index for hand in dealt for index in hand if index >= 0) == list(range(len(loads)))


token_lists = st.lists(st.integers(0, 99), min_size=1, max_size=8)


@given(
    st.lists(st.tuples(token_lists, st.lists(st.integers(0, 99), max_size=6)), min_size=1, max_size=6), st.booleans()
)
def test_a_packed_row_can_be_taken_apart_again(pairs: list[tuple[list[int], list[int]]], share: bool) -> None:
    pairs = [*pairs, (pairs[0][0], [5, 6, 7])]
    batch = pack([trajectory(prompt, response) for prompt, response in pairs], share)
    row, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()
    segment_of = {
        place: number for number, (start, end) in enumerate(batch.layout.spans) for place in range(start, end)
    }
    predicting, targets = batch.predicting.tolist(), batch.targets.tolist()
    for prompt, response in pairs:
        for offset in range(len(response)):
            # what a predicting place attends to is the sequence up to it: its own segment's tokens after its prefix
            place = predicting.pop(0)
            segment = segment_of[place]
            seen = row[batch.layout.spans[segment][0] : place + 1]
            if batch.layout.prefixes[segment] >= 0:
                seen = row[slice(*batch.layout.spans[batch.layout.prefixes[segment]])] + seen
            assert seen == [*prompt, *response][: len(prompt) + offset]
            assert positions[place] == len(seen) - 1
            assert targets.pop(0) == response[offset]
    assert not predicting
    assert not targets
    prompts = {tuple(prompt) for prompt, _ in pairs} if share else [prompt for prompt, _ in pairs]
    assert len(row) == sum(map(len, prompts)) + sum(max(0, len(response) - 1) for _, response in pairs)


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
    batch = [Trajectory([group] * (length - 1), [2], np.zeros(1), "stop", 0) for group, length in enumerate(lengths)]
    loads = [
        sum(row_tokens(batch, one) for one in hand)
        for hand in arrange_micro_batches(batch, 4, Budget(max_tokens=16384))
    ]
    assert sum(loads) == lengths.sum() - 32
    assert max(loads) < 1.15 * lengths.sum() / 4
