"""Advantage estimators: pure functions of scores and groups, or of token rewards and values. All in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from r1ranker.trainer.algorithm.statistics import SIGNAL_TOLERANCE, group_statistics

Ragged = list[np.ndarray]
TINY = 1e-12
"""a mean score below counts as this: advantages stay within float32, also where the policy is all but sure of the wrong answer"""


def grpo(scores: Sequence[float], groups: Sequence[int], norm_by_std: bool = True, epsilon: float = 1e-6) -> np.ndarray:
    """Group-relative advantages [N]: (score - mean) / (std + epsilon) within each group (DeepSeekMath, arXiv 2402.03300).

    std is the sample standard deviation (n - 1). Without `norm_by_std` only the mean is taken off (Dr. GRPO,
    arXiv 2503.20783). A group without signal has advantage 0.
    """
    return _relative(scores, groups, lambda values: values.std(ddof=1) + epsilon if norm_by_std else 1.0)


def rloo(scores: Sequence[float], groups: Sequence[int]) -> np.ndarray:
    """Leave-one-out advantages [N]: score minus the mean of the group's others (RLOO, arXiv 2402.14740)."""
    return _relative(scores, groups, lambda values: (len(values) - 1) / len(values))


def maxrl(scores: Sequence[float], groups: Sequence[int]) -> np.ndarray:
    """Advantages [N] for the logarithm of the mean score: (score - mean) / mean within each group (MaxRL, arXiv 2602.02710).

    Where a score is 1 for success and 0 else, the gradient approaches that of the log-likelihood of success as groups
    grow. In the divisor scores below 0 count as 0; a group without any above it has advantage 0, as one without signal.
    """
    return _relative(scores, groups, lambda values: np.maximum(values, 0.0).mean())


def _relative(scores: Sequence[float], groups: Sequence[int], scale: Callable[[np.ndarray], float]) -> np.ndarray:
    """(score - mean) / scale(the group's scores) [N]; 0 in groups without signal, and where the scale is 0."""
    arrays, silent = group_statistics(scores, groups)
    scales = {group: (values.mean(), scale(values)) for group, values in arrays.items() if group not in silent}
    advantages = np.zeros(len(scores))
    for index, (score, group) in enumerate(zip(scores, groups, strict=True)):
        mean, divisor = scales.get(group, (0.0, 0.0))
        if divisor:
            advantages[index] = (float(score) - mean) / divisor
    return advantages


def exact_advantages(
    scores: Sequence[float], groups: Sequence[int], weights: Sequence[float], scale: str, epsilon: float = 1e-6
) -> np.ndarray:
    """Advantages [N] of groups that hold every response there is, of probability proportional to `weights` [N].

    (score - mean) / scale, with the mean over the policy; `scale`: 'std' (GRPO), 'mean' (MaxRL) or 'none' (Dr. GRPO), as
    the functions above approach them with many samples.
    """
    values, shares, members = np.array(scores, dtype=np.float64), np.array(weights, dtype=np.float64), np.array(groups)
    advantages = np.zeros(len(values))
    for group in np.unique(members):
        own = members == group
        if np.ptp(values[own]) < SIGNAL_TOLERANCE:
            continue
        share = shares[own] / shares[own].sum()
        mean = share @ values[own]
        divisor = {
            "std": np.sqrt(share @ (values[own] - mean) ** 2) + epsilon,
            "mean": max(share @ np.maximum(values[own], 0.0), TINY),
            "none": 1.0,
        }[scale]
        advantages[own] = (values[own] - mean) / divisor
    return advantages


def gae(rewards: Ragged, values: Ragged, gamma: float | Ragged, lam: float) -> tuple[Ragged, Ragged]:
    """Generalised advantage estimates and returns, each [L] a response (arXiv 1506.02438).

    delta_t = r_t + gamma_t V_{t+1} - V_t; A_t = delta_t + gamma_t lam A_{t+1}; the return is A_t + V_t. After the last token
    there is no state: V = 0. `gamma`: the same everywhere, or [L] a response.
    """
    advantages: Ragged = []
    returns: Ragged = []
    discounts = [np.full(len(reward), gamma) for reward in rewards] if isinstance(gamma, int | float) else gamma
    for reward, value, discount in zip(rewards, values, discounts, strict=True):
        reward, value = np.asarray(reward, dtype=np.float64), np.asarray(value, dtype=np.float64)
        advantage = np.zeros(len(reward))
        following, next_value = 0.0, 0.0
        for step in range(len(reward) - 1, -1, -1):
            share = discount[step]
            following = reward[step] + share * next_value - value[step] + share * lam * following
            advantage[step], next_value = following, value[step]
        advantages.append(advantage)
        returns.append(advantage + value)
    return advantages, returns


def discounted_returns(rewards: Ragged, gamma: float | Ragged) -> Ragged:
    """Returns [L] of each response: R_t = r_t + gamma_t R_{t+1}, the advantage of REINFORCE++ before whitening."""
    return gae(rewards, [np.zeros(len(reward)) for reward in rewards], gamma, 1.0)[1]


def whiten(ragged: Ragged, valid: Sequence[np.ndarray], epsilon: float = 1e-8) -> Ragged:
    """Zero mean and unit variance over the valid tokens of all responses together; invalid tokens become 0."""
    kept = np.concatenate([array[mask] for array, mask in zip(ragged, valid, strict=True)]) if ragged else np.zeros(0)
    if len(kept) == 0 or np.ptp(kept) < SIGNAL_TOLERANCE:
        return [np.zeros(len(array)) for array in ragged]
    scale = np.sqrt(kept.var() + epsilon)
    return [np.where(mask, (array - kept.mean()) / scale, 0.0) for array, mask in zip(ragged, valid, strict=True)]


def reward_on_last_token(score: float, length: int) -> np.ndarray:
    """Token rewards [L] that are 0 but for the score on the last one; a response of no tokens has no place for it."""
    rewards = np.zeros(length)
    if length:
        rewards[-1] = score
    return rewards
