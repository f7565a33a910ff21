"""Truncated importance sampling against the difference between the engine that sampled and the policy that learns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import RolloutCorrectionConfig

_BOUND = 20.0
"""of a log-ratio: an outlier must not overflow"""


def importance_weights(trainer: np.ndarray, engine: np.ndarray, level: str, threshold: float) -> np.ndarray:
    """Weights [L] of a response's tokens from both log-probabilities [L].

    token: min(exp(trainer - engine), threshold) of each token (Yao et al., 2025, "Your efficient RL framework secretly brings
    you off-policy RL training"); sequence: the same of the sum over the response, on every token of it. A token whose
    log-probability is not known counts for nothing and weighs 1.
    """
    difference = trainer - engine
    known = np.isfinite(difference)
    difference = np.where(known, difference, 0.0)
    if level == "sequence":
        difference = np.full(len(difference), difference.sum())
    weights = np.minimum(np.exp(np.clip(difference, -_BOUND, _BOUND)), threshold)
    return np.where(known, weights, 1.0)


def apply_importance_weights(trajectories: Sequence[Trajectory], config: RolloutCorrectionConfig) -> dict[str, float]:
    """Multiply the weights into the advantages, before any loss sees them: a policy loss is proportional to its advantage.

    Needs old_logprobs, the trainer's own. Returns the metrics of the weights.
    """
    assert config.rollout_is is not None
    every: list[np.ndarray] = []
    for trajectory in trajectories:
        assert trajectory.old_logprobs is not None
        assert trajectory.advantages is not None
        weights = importance_weights(
            trajectory.old_logprobs, trajectory.rollout_logprobs, config.rollout_is, config.rollout_is_threshold
        )
        trajectory.advantages = trajectory.advantages * weights
        every.append(weights[trajectory.valid])
    flat = np.concatenate(every)
    if not len(flat):
        return {}
    return {
        "rollout_corr/rollout_is_mean": float(flat.mean()),
        "rollout_corr/rollout_is_max": float(flat.max()),
        "rollout_corr/rollout_is_min": float(flat.min()),
        "rollout_corr/rollout_is_truncated": float((flat >= config.rollout_is_threshold).mean()),
    }
