"""Truncated importance weights against a loop over tokens, and that they reach the advantages."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1ranker.errors import UserError
from r1ranker.trainer.algorithm.correction import (
    apply_importance_weights,
    importance_weights,
    reject_tokens,
    rejected_tokens,
)
from r1ranker.trainer.algorithm.estimation import assign_loss_weights
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.correction import parse_bounds, parse_rejections
from r1ranker.trainer.config.schema import RolloutCorrectionConfig

LOGPROBS = st.floats(-30, 0)


@given(st.lists(st.tuples(LOGPROBS, LOGPROBS), min_size=1, max_size=6), st.floats(0.5, 10))
def test_weights_are_truncated_ratios(pairs: list[tuple[float, float]], threshold: float) -> None:
    trainer, engine = (np.array(column) for column in zip(*pairs, strict=True))
    token = importance_weights(trainer, engine, "token", (None, threshold))
    for weight, (new, old) in zip(token, pairs, strict=True):
        assert weight == pytest.approx(min(math.exp(max(-20.0, min(20.0, new - old))), threshold))
    sequence = importance_weights(trainer, engine, "sequence", (None, threshold))
    whole = max(-20.0, min(20.0, sum(new - old for new, old in pairs)))
    assert sequence == pytest.approx([min(math.exp(whole), threshold)] * len(pairs))


def test_an_unknown_token_weighs_one_and_counts_for_nothing() -> None:
    trainer, engine = np.array([-1.0, -2.0, -0.5]), np.array([-1.5, np.nan, -0.5])
    assert importance_weights(trainer, engine, "token", (None, 2.0)).tolist() == [
        pytest.approx(math.exp(0.5)),
        1.0,
        1.0,
    ]
    assert importance_weights(trainer, engine, "sequence", (None, 2.0))[0] == pytest.approx(math.exp(0.5))


def test_the_weights_reach_the_advantages_and_nothing_else() -> None:
    returns = np.array([1.0, -2.0])
    trajectory = Trajectory([1], [2, 3], np.array([-1.0, -3.0]), "stop", 0)
    trajectory.old_logprobs, trajectory.advantages, trajectory.returns = np.array([-1.2, -1.0]), returns, returns
    metrics = apply_importance_weights([trajectory], RolloutCorrectionConfig("token", 2.0))
    assert trajectory.advantages.tolist() == [pytest.approx(math.exp(-0.2)), -4.0]
    assert trajectory.returns.tolist() == [1.0, -2.0]
    assert metrics["rollout_corr/rollout_is_max"] == 2
    assert metrics["rollout_corr/rollout_is_truncated"] == 0.5


@given(st.lists(st.tuples(LOGPROBS, LOGPROBS), min_size=1, max_size=6))
def test_outside_two_bounds_a_token_weighs_nothing(pairs: list[tuple[float, float]]) -> None:
    trainer, engine = (np.array(column) for column in zip(*pairs, strict=True))
    for weight, (new, old) in zip(importance_weights(trainer, engine, "token", (0.5, 2.0)), pairs, strict=True):
        ratio = math.exp(max(-20.0, min(20.0, new - old)))
        assert weight == pytest.approx(ratio if 0.5 <= ratio <= 2.0 else 0.0)


RATIOS = [-0.9, 0.3, 0.1, -0.2]
"""log(trainer / engine) of four tokens, of which the last is not known"""


@pytest.mark.parametrize(
    ("option", "bounds", "expected"),
    [
        ("token_k1", (0.5, 2.0), [True, False, False]),  # 0.9 is over log 2
        ("token_k1", (None, 3.0), [False, False, False]),
        ("token_k2", (None, 0.04), [True, True, False]),  # 0.405, 0.045, 0.005
        ("token_k3", (None, 0.1), [True, False, False]),  # exp(-0.9) - 1 + 0.9 = 0.307; 0.0499
        ("seq_sum_k1", (0.5, 2.0), [False] * 3),  # 0.5 is under log 2 = 0.69
        ("seq_sum_k1", (0.7, 1.5), [True] * 3),  # and over log 1.5 = 0.41
        ("seq_mean_k2", (None, 0.16), [False] * 3),  # 0.455 / 3 = 0.152
        ("seq_mean_k2", (None, 0.15), [True] * 3),
        ("seq_max_k3", (None, 0.3), [True] * 3),
        ("seq_max_k3", (None, 0.31), [False] * 3),
    ],
)
def test_tokens_and_responses_that_are_too_far_are_rejected(
    option: str, bounds: tuple[float | None, float], expected: list[bool]
) -> None:
    engine = np.full(4, -1.0)
    trainer = engine + np.array(RATIOS)
    engine[3] = np.nan
    assert rejected_tokens(trainer, engine, option, bounds).tolist() == [*expected, False]


def test_what_is_rejected_is_in_no_loss_and_no_denominator() -> None:
    def made() -> list[Trajectory]:
        return [
            Trajectory([1], [2, 3], np.array([-1.0, -1.0]), "stop", 0, score=score, old_logprobs=np.array([-1.0, old]))
            for score, old in ((1.0, -1.0), (0.0, -3.0))
        ]

    batch = made()
    metrics = reject_tokens(batch, RolloutCorrectionConfig(rollout_rs="token_k1", rollout_rs_threshold="0.5_2.0"))
    assert metrics == {
        "rollout_corr/rollout_rs_masked_fraction": 0.25,
        "rollout_corr/rollout_rs_seq_masked_fraction": 0.5,
    }
    assign_loss_weights(batch, "token-mean")
    assert [one.weights.tolist() for one in batch if one.weights is not None] == [[1 / 3, 1 / 3], [1 / 3, 0.0]]
    both = made()
    config = RolloutCorrectionConfig(rollout_rs="token_k1,seq_max_k2", rollout_rs_threshold="0.5_2.0,1.9")
    reject_tokens(both, config)
    assert [one.valid.tolist() for one in both] == [[True, True], [False, False]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rollout_rs": "token_k4"}, "found 'token_k4' \\(did you mean 'token_k"),
        ({"rollout_rs": "token_k1"}, "rollout_rs_threshold: found None; one bound"),
        (
            {"rollout_rs": "token_k1,seq_max_k2", "rollout_rs_threshold": "1,2,3"},
            "one for each of token_k1, seq_max_k2",
        ),
        ({"rollout_rs": "token_k2", "rollout_rs_threshold": "0.5_2.0"}, "found two bounds for token_k2"),
        ({"rollout_rs": "token_k1", "rollout_rs_threshold": "2.0_0.5"}, "the smaller one first"),
        ({"rollout_rs": "token_k1", "rollout_rs_threshold": "few"}, "found 'few'"),
        ({"rollout_rs": "token_k1", "rollout_rs_threshold": "0.5"}, "found 0.5 alone for token_k1"),
    ],
)
def test_options_and_bounds_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_rejections(RolloutCorrectionConfig(**changes))
    with pytest.raises(UserError, match="found True"):
        parse_bounds("rollout_is_threshold", True)
