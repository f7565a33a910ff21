"""What a batch needs before its advantages: log-probabilities of the reference and the old policy, and values."""

from __future__ import annotations

from collections.abc import Sequence

from r1ranker.trainer.batch.balance import Budget
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.monitoring.metrics import timed
from r1ranker.trainer.workers import dispatch
from r1ranker.trainer.workers.cluster import Cluster


def prepare(
    cluster: Cluster, config: Config, trajectories: Sequence[Trajectory], policy_version: int, timing: dict[str, float]
) -> None:
    """Set ref_logprobs, values and old_logprobs of the trajectories, each only where it is needed."""
    role = config.actor_rollout_ref
    if config.needs_reference:
        with timed(timing, "ref"):
            budget = Budget.of_role(config, role.ref)
            dispatch.fill(cluster, trajectories, "ref_logprobs", budget, "logprobs", "reference")
    if config.needs_critic:
        with timed(timing, "values"):
            dispatch.fill(cluster, trajectories, "values", Budget.of_critic(config), "values")
    wanted, stale = role.actor.recompute_old_log_probs, is_stale(trajectories, policy_version)
    at_ratio_one = config.on_policy and not config.algorithm.use_kl_in_reward and not config.corrects
    if at_ratio_one and wanted == "auto" and not stale:
        return  # the ratio is 1: the update's own log-probabilities, detached, are the old ones
    # of a stale batch the trainer cannot compute them any more: the engine's are the policy's that sampled, and a
    # correction, which has the engine's as well, takes the trainer's of now and carries the difference itself
    if config.corrects or (not stale and (wanted == "true" or (wanted == "auto" and _rounds(config, cluster)))):
        with timed(timing, "old_log_prob"):
            budget = Budget.of_role(config, role.rollout)
            dispatch.fill(cluster, trajectories, "old_logprobs", budget, "logprobs", "policy")
    else:
        for trajectory in trajectories:
            trajectory.old_logprobs = trajectory.rollout_logprobs


def is_stale(trajectories: Sequence[Trajectory], policy_version: int) -> bool:
    """Whether another policy than the one that learns sampled any of them."""
    return any(trajectory.policy_version != policy_version for trajectory in trajectories)


def _rounds(config: Config, cluster: Cluster) -> bool:
    """Whether engine and trainer compute in a type whose rounding makes their log-probabilities differ."""
    dtype = config.actor_rollout_ref.model.dtype
    return cluster.on_gpu if dtype == "auto" else dtype != "float32"
