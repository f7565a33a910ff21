"""Trajectories to processes and back: packed into bins, dealt by load, results put where they belong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from r1ranker.rollout.engine import Completion, Request, SamplingParams
from r1ranker.rollout.episodes import EpisodeRequest, Turn
from r1ranker.trainer.batch.balance import Budget, arrange_micro_batches
from r1ranker.trainer.batch.trajectory import Trajectory, deal_by_load
from r1ranker.trainer.workers.cluster import Cluster


def _bins(trajectories: Sequence[Trajectory], arranged: list[list[list[int]]]) -> list[list[list[Trajectory]]]:
    return [[[trajectories[index] for index in one] for one in hand] for hand in arranged]


def fill(
    cluster: Cluster, trajectories: Sequence[Trajectory], attribute: str, budget: Budget, method: str, *arguments: Any
) -> None:
    """Set `attribute` [L] of every trajectory to what `method` of the workers gives for it."""
    arranged = arrange_micro_batches(trajectories, cluster.size, budget)
    results = cluster.each(method, [(bins, *arguments) for bins in _bins(trajectories, arranged)])
    for hand, per_bin in zip(arranged, results, strict=True):
        for indices, arrays in zip(hand, per_bin, strict=True):
            for index, array in zip(indices, arrays, strict=True):
                setattr(trajectories[index], attribute, array)


def update(cluster: Cluster, trajectories: Sequence[Trajectory], budget: Budget, method: str) -> dict[str, float]:
    """One optimizer step on a mini-batch; the workers' metrics brought together and divided by its tokens."""
    arranged = arrange_micro_batches(trajectories, cluster.size, budget)
    parts = cluster.each(method, [(bins,) for bins in _bins(trajectories, arranged)])
    tokens = max(
        1, sum(int((trajectory.weights > 0).sum()) for trajectory in trajectories if trajectory.weights is not None)
    )
    merged: dict[str, float] = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if name.endswith(("grad_norm", "_max")) or name.startswith("perf/"):
            merged[name] = max(values)
        elif name.endswith("_loss") and not name.endswith("kl_loss"):
            merged[name] = sum(values)  # shares in the loss are already divided
        else:
            merged[name] = sum(values) / tokens
    return merged


def stream(
    cluster: Cluster, requests: Sequence[Request], params: SamplingParams, engine_size: int = 1
) -> Iterator[tuple[int, list[Completion]]]:
    """(index of a request, its completions) as they are complete, in no fixed order; Ray's processes begin with the call.

    Requests are dealt by prompt length to engines that span `engine_size` workers each.
    """
    return _stream(cluster, "generate", requests, params, engine_size)


def stream_episodes(
    cluster: Cluster, requests: Sequence[EpisodeRequest], params: SamplingParams, engine_size: int = 1
) -> Iterator[tuple[int, list[Turn]]]:
    """(index of a request, the turns of its episode), likewise."""
    return _stream(cluster, "converse", requests, params, engine_size)


def _stream(
    cluster: Cluster,
    method: str,
    requests: Sequence[Request] | Sequence[EpisodeRequest],
    params: SamplingParams,
    engine_size: int,
) -> Iterator[tuple[int, Any]]:
    workers = cluster.rollout
    lengths = [len(request.token_ids) for request in requests]
    hands = [[i for i in hand if i >= 0] for hand in deal_by_load(lengths, workers.size // engine_size)]
    arriving = workers.stream(
        method,
        [([requests[index] for index in hands[rank // engine_size]], params) for rank in range(workers.size)],
    )
    return ((hands[rank // engine_size][place], samples) for rank, done in arriving for place, samples in done)


def generate(
    cluster: Cluster, requests: Sequence[Request], params: SamplingParams, engine_size: int = 1
) -> list[list[Completion]]:
    """Completions of the requests, in their order, once all are complete."""
    completions = dict(stream(cluster, requests, params, engine_size))
    return [completions[index] for index in range(len(requests))]
