"""Truncated importance weights against a loop over tokens, and that they reach the advantages."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1ranker.trainer.algorithm.correction import apply_importance_weights, importance_weights
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import RolloutCorrectionConfig

LOGPROBS = st.floats(-30, 0)


@given(st.lists(st.tuples(LOGPROBS, LOGPROBS), min_size=1, max_size=6), st.floats(0.5, 10))
def test_weights_are_truncated_ratios(pairs: list[tuple[float, float]], threshold: float) -> None:
    trainer, engine = (np.array(column) for column in zip(*pairs, strict=True))
    token = importance_weights(trainer, engine, "token", threshold)
    for weight, (new, old) in zip(token, pairs, strict=True):
        assert weight == pytest.approx(min(math.exp(max(-20.0, min(20.0, new - old))), threshold))
    sequence = importance_weights(trainer, engine, "sequence", threshold)
    whole = max(-20.0, min(20.0, sum(new - old for new, old in pairs)))
    assert sequence == pytest.approx([min(math.exp(whole), threshold)] * len(pairs))


def test_an_unknown_token_weighs_one_and_counts_for_nothing() -> None:
    trainer, engine = np.array([-1.0, -2.0, -0.5]), np.array([-1.5, np.nan, -0.5])
    assert importance_weights(trainer, engine, "token", 2.0).tolist() == [pytest.approx(math.exp(0.5)), 1.0, 1.0]
    assert importance_weights(trainer, engine, "sequence", 2.0)[0] == pytest.approx(math.exp(0.5))


def test_the_weights_reach_the_advantages_and_nothing_else() -> None:
    returns = np.array([1.0, -2.0])
    trajectory = Trajectory([1], [2, 3], np.array([-1.0, -3.0]), "stop", 0)
    trajectory.old_logprobs, trajectory.advantages, trajectory.returns = np.array([-1.2, -1.0]), returns, returns
    metrics = apply_importance_weights([trajectory], RolloutCorrectionConfig("token", 2.0))
    assert trajectory.advantages.tolist() == [pytest.approx(math.exp(-0.2)), -4.0]
    assert trajectory.returns.tolist() == [1.0, -2.0]
    assert metrics["rollout_corr/rollout_is_max"] == 2
    assert metrics["rollout_corr/rollout_is_truncated"] == 0.5
