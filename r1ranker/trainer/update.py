"""Updates of critic and actor from a batch, mini-batch by mini-batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from r1ranker.trainer.algorithm.estimation import assign_loss_weights, drop_without_gradient
from r1ranker.trainer.batch.balance import Budget
from r1ranker.trainer.batch.trajectory import Trajectory
from r1ranker.trainer.config.schema import Config
from r1ranker.trainer.monitoring.metrics import merge_updates, timed
from r1ranker.trainer.monitoring.non_finite import NonFiniteError
from r1ranker.trainer.workers import dispatch
from r1ranker.trainer.workers.cluster import Cluster


@dataclass(frozen=True)
class UpdatePlan:
    """How a model is updated in a step."""

    model: Literal["actor", "critic"]
    mini_batch: int
    """prompts"""
    epochs: int
    loss_agg_mode: str
    budget: Budget


def plan_updates(config: Config) -> Iterator[UpdatePlan]:
    """How the critic, where there is one, and then the actor are updated; what a critic's key leaves open is the actor's."""
    actor, critic = config.actor_rollout_ref.actor, config.critic
    if config.needs_critic:
        size, epochs = critic.ppo_mini_batch_size or actor.ppo_mini_batch_size, critic.ppo_epochs or actor.ppo_epochs
        yield UpdatePlan("critic", size, epochs, critic.loss_agg_mode, Budget.of_critic(config))
    yield UpdatePlan("actor", actor.ppo_mini_batch_size, actor.ppo_epochs, actor.loss_agg_mode, Budget.of_actor(config))


class Updater:
    """Updates the models, and counts the updates of the policy."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.policy_version = 0
        """updates of the policy so far"""

    def update(
        self, cluster: Cluster, trajectories: Sequence[Trajectory], step: int, timing: dict[str, float]
    ) -> dict[str, float]:
        """Update the critic, and the actor once its warm-up is over; raises NonFiniteError before an update that is not finite."""
        metrics: dict[str, float] = {}
        for plan in plan_updates(self._config):
            if plan.model == "actor" and step <= self._config.trainer.critic_warmup:
                continue
            with timed(timing, f"update_{plan.model}"):
                metrics |= self._run(cluster, trajectories, step, plan)
        return metrics

    def _run(
        self, cluster: Cluster, trajectories: Sequence[Trajectory], step: int, plan: UpdatePlan
    ) -> dict[str, float]:
        """Every epoch's mini-batches, whole groups dealt anew each time."""
        order = np.random.default_rng([self._config.trainer.seed, step])
        groups = sorted({trajectory.group_id for trajectory in trajectories})
        parts: list[dict[str, float]] = []
        for _ in range(plan.epochs):
            dealt = order.permutation(groups) if self._config.actor_rollout_ref.actor.shuffle else np.array(groups)
            for start in range(0, len(dealt), plan.mini_batch):
                chosen = set(dealt[start : start + plan.mini_batch].tolist())
                batch = [trajectory for trajectory in trajectories if trajectory.group_id in chosen]
                parts.append(self._step(cluster, batch, plan))
        metrics = merge_updates(parts)
        if plan.model == "actor":
            # only the first update is by the policy that sampled: later ones differ for a good reason
            metrics["rollout/logprob_diff_mean"] = parts[0]["rollout/logprob_diff"]
            metrics["rollout/logprob_diff_max"] = parts[0]["rollout/logprob_diff_max"]
            metrics["rollout/kl"] = parts[0]["rollout/kl"]
            del metrics["rollout/logprob_diff"]
        return metrics

    def _step(self, cluster: Cluster, batch: Sequence[Trajectory], plan: UpdatePlan) -> dict[str, float]:
        assign_loss_weights(batch, plan.loss_agg_mode, self._config.data.max_response_length)
        of = "policy" if plan.model == "actor" else "critic"
        if plan.model == "actor":
            batch = drop_without_gradient(batch, self._config.actor_rollout_ref.actor)
        metrics = dispatch.update(cluster, batch, plan.budget, f"update_{of}")
        if not np.isfinite(metrics[f"{plan.model}/grad_norm"]):
            dispatch.fill(cluster, batch, "loss", plan.budget, "losses", of)
            offending = [one for one in batch if one.loss is not None and not np.isfinite(one.loss)]
            raise NonFiniteError(f"the {plan.model}'s loss or gradient is not finite", batch, offending)
        self.policy_version += plan.model == "actor"
        return metrics
