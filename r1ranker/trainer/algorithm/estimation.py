"""Advantages put on a batch of trajectories by the configured estimator, with the KL in the reward where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from r1ranker.trainer.algorithm.advantages import (
    Ragged,
    discounted_returns,
    exact_advantages,
    gae,
    grpo,
    maxrl,
    reward_on_last_token,
    rloo,
    whiten,
)
from r1ranker.trainer.algorithm.kl import KLController, kl_estimate
from r1ranker.trainer.algorithm.losses import loss_weights
from r1ranker.trainer.algorithm.statistics import summarise
from r1ranker.trainer.algorithm.turns import join_turns, order_turns, split_turns, turn_discounts, turn_returns
from r1ranker.trainer.batch.trajectory import Trajectory, number_groups
from r1ranker.trainer.config.schema import ActorConfig, AlgorithmConfig


def assign_advantages(
    trajectories: Sequence[Trajectory], algorithm: AlgorithmConfig, kl_control: KLController, every_answer: bool = False
) -> dict[str, float]:
    """Set advantages and returns of every trajectory; returns the metrics of the rewards after the KL term.

    `every_answer`: groups hold every answer there is.
    """
    rewards, metrics = _token_rewards(trajectories, algorithm, kl_control)
    valid = [trajectory.valid for trajectory in trajectories]
    returns: Ragged
    if algorithm.adv_estimator in ("gae", "reinforce_plus_plus"):
        conversations = order_turns(trajectories)
        joined = join_turns(rewards, conversations)
        gammas = turn_discounts(rewards, conversations, algorithm.gamma, algorithm.turn_gamma)
        if algorithm.adv_estimator == "gae":
            values = join_turns([one.values for one in trajectories], conversations)  # type: ignore[misc]
            raw, of_turns = gae(joined, values, gammas, algorithm.lam)
        else:
            raw = of_turns = discounted_returns(joined, gammas)
        returns = split_turns(of_turns, rewards, conversations)
        advantages = whiten(split_turns(raw, rewards, conversations), valid)
    else:
        whole = _response_advantages(trajectories, algorithm, every_answer)
        advantages = [
            np.full(len(trajectory.response_ids), value) for trajectory, value in zip(trajectories, whole, strict=True)
        ]
        returns = advantages
    for trajectory, advantage, value in zip(trajectories, advantages, returns, strict=True):
        trajectory.advantages, trajectory.returns = advantage, value
    return metrics


def _response_advantages(
    trajectories: Sequence[Trajectory], algorithm: AlgorithmConfig, every_answer: bool
) -> np.ndarray:
    """An advantage [N] a response, within its group."""
    scores = turn_returns([one.score for one in trajectories], order_turns(trajectories), algorithm.turn_gamma)
    groups = number_groups(trajectories)
    if every_answer:
        of_grpo = "std" if algorithm.norm_adv_by_std_in_grpo else "none"
        scale = {"grpo": of_grpo, "maxrl": "mean"}[algorithm.adv_estimator]
        return exact_advantages(scores, groups, [trajectory.sample_weight for trajectory in trajectories], scale)
    if algorithm.adv_estimator == "grpo":
        return grpo(scores, groups, algorithm.norm_adv_by_std_in_grpo)
    return {"rloo": rloo, "maxrl": maxrl}[algorithm.adv_estimator](scores, groups)


def assign_loss_weights(trajectories: Sequence[Trajectory], mode: str, longest: int = 1) -> None:
    """Set every token's share in the loss of the mini-batch that these are, as `loss_weights` has it."""
    shares = loss_weights([trajectory.valid for trajectory in trajectories], mode, longest)
    for trajectory, share in zip(trajectories, shares, strict=True):
        trajectory.weights = share * trajectory.sample_weight


def drop_without_gradient(trajectories: Sequence[Trajectory], actor: ActorConfig) -> list[Trajectory]:
    """Those that the policy learns from: without any advantage, nothing but a KL or an entropy term has a gradient.

    Their tokens' shares in the loss are fixed before, so that the others' count stays as it is.
    """
    if actor.use_kl_loss or actor.entropy_coeff:
        return list(trajectories)
    return [trajectory for trajectory in trajectories if np.any(trajectory.advantages)]


def _token_rewards(
    trajectories: Sequence[Trajectory], algorithm: AlgorithmConfig, kl_control: KLController
) -> tuple[Ragged, dict[str, float]]:
    """Rewards [L] a response: the score on the last token, less the KL of every token where it is in the reward."""
    rewards = [reward_on_last_token(trajectory.score, len(trajectory.response_ids)) for trajectory in trajectories]
    metrics: dict[str, float] = {}
    if algorithm.use_kl_in_reward:
        penalties = [_kl_penalty(trajectory, algorithm.kl_penalty) for trajectory in trajectories]
        metrics["actor/kl_coef"] = kl_control.value
        rewards = [reward - kl_control.value * kl for reward, kl in zip(rewards, penalties, strict=True)]
        tokens = max(1, sum(int(trajectory.valid.sum()) for trajectory in trajectories))
        metrics["actor/reward_kl_penalty"] = float(sum(kl.sum() for kl in penalties) / tokens)
        episodes = {one.episode for one in trajectories if one.episode >= 0}
        alone = sum(one.episode < 0 for one in trajectories)
        kl_control.update(metrics["actor/reward_kl_penalty"], alone + len(episodes))
    standing = np.array([trajectory.sample_weight for trajectory in trajectories])
    return rewards, metrics | summarise("critic/rewards", np.array([reward.sum() for reward in rewards]), standing)


def _kl_penalty(trajectory: Trajectory, kind: str) -> np.ndarray:
    assert trajectory.old_logprobs is not None
    assert trajectory.ref_logprobs is not None
    estimate = kl_estimate(torch.from_numpy(trajectory.old_logprobs), torch.from_numpy(trajectory.ref_logprobs), kind)
    return np.where(trajectory.valid, estimate.numpy(), 0.0)
