"""What is done about the difference between the engine that sampled and the policy that learns: importance weights, and rejection.

Keys, options and bounds are veRL's (verl.trainer.ppo.rollout_corr_helper).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.correction import Bounds, parse_bounds, parse_rejections
from r1ranker.trainer.config.schema import RolloutCorrectionConfig

_BOUND = 20.0
"""of a log-ratio: an outlier must not overflow"""
_DIVERGENCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "k1": lambda ratio: -ratio,
    "k2": lambda ratio: 0.5 * ratio**2,
    "k3": lambda ratio: np.exp(ratio) - 1.0 - ratio,
}
"""of the engine's policy from the trainer's, a token, from log(trainer / engine)"""
_LEVELS: dict[str, Callable[[np.ndarray], float]] = {"seq_sum": np.sum, "seq_mean": np.mean, "seq_max": np.max}


def importance_weights(trainer: np.ndarray, engine: np.ndarray, level: str, bounds: Bounds) -> np.ndarray:
    """Weights [L] of a response's tokens from both log-probabilities [L].

    token: exp(trainer - engine) of each token, at most the upper bound (Yao et al., 2025, "Your efficient RL framework secretly
    brings you off-policy RL training"); with a lower one, 0 outside the two (IcePop, arXiv 2510.18855); sequence: the same of the
    sum over the response, on every token of it. A token whose log-probability is not known counts for nothing and weighs 1.
    """
    lower, upper = bounds
    difference, known = _log_ratio(trainer, engine)
    if level == "sequence":
        difference = np.full(len(difference), difference.sum())
    raw = np.exp(np.clip(difference, -_BOUND, _BOUND))
    weights = np.minimum(raw, upper) if lower is None else np.where((raw >= lower) & (raw <= upper), raw, 0.0)
    return np.where(known, weights, 1.0)


def rejected_tokens(trainer: np.ndarray, engine: np.ndarray, option: str, bounds: Bounds) -> np.ndarray:
    """Tokens [L] of a response that are too far from the engine's policy by `option`, one of REJECTIONS.

    token_*: each for itself; seq_*: all of them, by the sum, the mean or the largest. k1 is -log(trainer / engine), and lies between
    the logarithms of both bounds (alone, the upper one and its reciprocal); k2 = k1^2 / 2 and k3 = r - 1 - log r are at most the upper
    one. A token whose log-probability is not known counts for nothing.
    """
    level, _, kind = option.rpartition("_")
    difference, known = _log_ratio(trainer, engine)
    found = _DIVERGENCES[kind](np.clip(difference, -_BOUND, _BOUND))
    if level != "token":
        whole = _LEVELS[level](found[known]) if known.any() else 0.0
        found = np.full(len(found), whole)
    lower, upper = bounds
    if kind == "k1":
        least, most = math.log(1.0 / upper if lower is None else lower), math.log(upper)
        return known & ((found < least) | (found > most))
    return known & (found > upper)


def _log_ratio(trainer: np.ndarray, engine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log(trainer / engine), 0 where it is not known; where it is known)."""
    difference = trainer - engine
    known = np.isfinite(difference)
    return np.where(known, difference, 0.0), known


def reject_tokens(trajectories: Sequence[Trajectory], config: RolloutCorrectionConfig) -> dict[str, float]:
    """Take tokens out of the loss that any option of rollout_rs rejects; needs old_logprobs. Returns the shares that are out."""
    options = parse_rejections(config)
    out, tokens, responses = 0, 0, 0
    for one in trajectories:
        assert one.old_logprobs is not None
        known = one.valid
        rejected = np.zeros(len(known), dtype=bool)
        for option, bounds in options.items():
            rejected |= rejected_tokens(one.old_logprobs, one.rollout_logprobs, option, bounds)
        one.rejected = rejected
        out, tokens, responses = out + int(rejected.sum()), tokens + int(known.sum()), responses + bool(rejected.any())
    return {
        "rollout_corr/rollout_rs_masked_fraction": out / max(1, tokens),
        "rollout_corr/rollout_rs_seq_masked_fraction": responses / max(1, len(trajectories)),
    }


def apply_importance_weights(trajectories: Sequence[Trajectory], config: RolloutCorrectionConfig) -> dict[str, float]:
    """Multiply the weights into the advantages, before any loss sees them: a policy loss is proportional to its advantage.

    Needs old_logprobs, the trainer's own. Returns the metrics of the weights.
    """
    assert config.rollout_is is not None
    lower, upper = bounds = parse_bounds("rollout_is_threshold", config.rollout_is_threshold)
    every: list[np.ndarray] = []
    for trajectory in trajectories:
        assert trajectory.old_logprobs is not None
        assert trajectory.advantages is not None
        weights = importance_weights(trajectory.old_logprobs, trajectory.rollout_logprobs, config.rollout_is, bounds)
        trajectory.advantages = trajectory.advantages * weights
        every.append(weights[trajectory.valid])
    flat = np.concatenate(every)
    if not len(flat):
        return {}
    return {
        "rollout_corr/rollout_is_mean": float(flat.mean()),
        "rollout_corr/rollout_is_max": float(flat.max()),
        "rollout_corr/rollout_is_min": float(flat.min()),
        "rollout_corr/rollout_is_truncated": float((flat >= upper if lower is None else flat == 0).mean()),
    }
