"""Trajectories to processes and back: packed into bins, dealt by load, results put where they belong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from r1ranker.rollout.engine import Completion, Request, SamplingParams
from r1ranker.trainer.cluster import Cluster
from r1ranker.trainer.config import Config, RefConfig, RolloutConfig
from r1ranker.trainer.trajectory import Trajectory, bins_of, deal


@dataclass(frozen=True)
class Budget:
    """Bounds of a micro-batch."""

    max_tokens: int
    max_sequences: int | None = None

    @classmethod
    def of(
        cls, config: Config, tokens: int | None, sequences: int | None, sequences_each: int | None, dynamic: bool | None
    ) -> Budget:
        """The bounds that a role's keys give; what they leave open is the actor's."""
        actor = config.actor_rollout_ref.actor
        max_tokens = tokens or actor.ppo_max_token_len_per_gpu
        if actor.use_dynamic_bsz if dynamic is None else dynamic:
            return cls(max_tokens)
        each = sequences_each or (sequences // config.world_size if sequences else None)
        actors = actor.ppo_micro_batch_size_per_gpu or (actor.ppo_micro_batch_size or 1) // config.world_size
        return cls(max_tokens, max(1, each or actors))

    @classmethod
    def of_role(cls, config: Config, role: RefConfig | RolloutConfig) -> Budget:
        """The bounds of computing log-probabilities for `role`."""
        return cls.of(
            config,
            role.log_prob_max_token_len_per_gpu,
            role.log_prob_micro_batch_size,
            role.log_prob_micro_batch_size_per_gpu,
            None,
        )


def arrange(trajectories: Sequence[Trajectory], processes: int, budget: Budget) -> list[list[list[int]]]:
    """For each process its bins of indices of `trajectories`; all have as many bins, some of them empty."""
    lengths = [len(trajectory) for trajectory in trajectories]
    # no more tokens than a process's share, with some slack to pack: else one would do everything and the others wait
    share = math.ceil(1.05 * sum(lengths) / processes)
    bins = bins_of(lengths, min(budget.max_tokens, max(share, *lengths)), budget.max_sequences)
    hands = deal([sum(lengths[index] for index in one) for one in bins], processes)
    return [[bins[place] if place >= 0 else [] for place in hand] for hand in hands]


def _bins(trajectories: Sequence[Trajectory], arranged: list[list[list[int]]]) -> list[list[list[Trajectory]]]:
    return [[[trajectories[index] for index in one] for one in hand] for hand in arranged]


def fill(
    cluster: Cluster, trajectories: Sequence[Trajectory], attribute: str, budget: Budget, method: str, *arguments: Any
) -> None:
    """Set `attribute` [L] of every trajectory to what `method` of the workers gives for it."""
    arranged = arrange(trajectories, cluster.size, budget)
    results = cluster.each(method, [(bins, *arguments) for bins in _bins(trajectories, arranged)])
    for hand, per_bin in zip(arranged, results, strict=True):
        for indices, arrays in zip(hand, per_bin, strict=True):
            for index, array in zip(indices, arrays, strict=True):
                setattr(trajectories[index], attribute, array)


def update(cluster: Cluster, trajectories: Sequence[Trajectory], budget: Budget, method: str) -> dict[str, float]:
    """One optimizer step on a mini-batch; the workers' metrics brought together and divided by its tokens."""
    arranged = arrange(trajectories, cluster.size, budget)
    parts = cluster.each(method, [(bins,) for bins in _bins(trajectories, arranged)])
    tokens = max(
        1, sum(int((trajectory.weights > 0).sum()) for trajectory in trajectories if trajectory.weights is not None)
    )
    merged: dict[str, float] = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if name.endswith(("grad_norm", "_max")):
            merged[name] = max(values)
        elif name.endswith("_loss") and not name.endswith("kl_loss"):
            merged[name] = sum(values)  # shares in the loss are already divided
        else:
            merged[name] = sum(values) / tokens
    return merged


def generate(
    cluster: Cluster, requests: Sequence[Request], params: SamplingParams, engine_size: int = 1
) -> list[list[Completion]]:
    """Completions of the requests, dealt by prompt length to engines that span `engine_size` workers each."""
    workers = cluster.rollout
    lengths = [len(request.token_ids) for request in requests]
    hands = [[i for i in hand if i >= 0] for hand in deal(lengths, workers.size // engine_size)]
    results = workers.each(
        "generate",
        [([requests[index] for index in hands[rank // engine_size]], params) for rank in range(workers.size)],
    )
    completions: list[list[Completion]] = [[] for _ in requests]
    for hand, own in zip(hands, results[::engine_size], strict=True):
        for index, samples in zip(hand, own, strict=True):
            completions[index] = samples
    return completions
