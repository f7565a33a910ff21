"""The workers, in this process or as Ray actors: the same methods called on all of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from r1ranker.device import has_gpu
from r1ranker.errors import UserError
from r1ranker.trainer.config import Config
from r1ranker.trainer.workers import Worker


class Cluster(Protocol):
    """`size` workers; calls return one result a worker, in the order of their ranks."""

    size: int

    def each(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        """Call `method` on every worker at once, each with its own arguments."""
        ...


def call_all(cluster: Cluster, method: str, *arguments: Any) -> list[Any]:
    """Call `method` on every worker with the same arguments."""
    return cluster.each(method, [arguments] * cluster.size)


class LocalCluster:
    """One worker in this process."""

    size = 1

    def __init__(self, config: Config, total_steps: int) -> None:
        self._worker = Worker(config, rank=0)
        self._worker.setup(None, total_steps)

    def each(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        return [getattr(self._worker, method)(*arguments[0])]


class RayCluster:
    """One Ray actor a process, placed together on as few nodes as hold them."""

    def __init__(self, config: Config, total_steps: int) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._ray = ray
        self.size = config.world_size
        gpus = 1 if has_gpu() else 0
        bundle = {"CPU": 1.0} | ({"GPU": 1.0} if gpus else {})
        self._group = ray.util.placement_group([bundle] * self.size, strategy="PACK")
        if not self._group.wait(timeout_seconds=60):
            raise UserError(
                f"trainer.n_gpus_per_node: {self.size} processes do not fit; Ray has {dict(ray.cluster_resources())}"
            )
        actor = ray.remote(num_cpus=1, num_gpus=gpus)(Worker)
        self._workers: list[Any] = [
            actor.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank)
            ).remote(config, rank)
            for rank in range(self.size)
        ]
        address = self._get([self._workers[0].rendezvous.remote()])[0] if self.size > 1 else None
        self.each("setup", [(address, total_steps)] * self.size)

    def each(self, method: str, arguments: Sequence[Sequence[Any]]) -> list[Any]:
        return self._get(
            [getattr(worker, method).remote(*own) for worker, own in zip(self._workers, arguments, strict=True)]
        )

    def _get(self, references: list[Any]) -> list[Any]:
        try:
            return list(self._ray.get(references))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise

    def close(self) -> None:
        """End the workers and give their place back."""
        for worker in self._workers:
            self._ray.kill(worker)
        self._ray.util.remove_placement_group(self._group)


@contextmanager
def started(config: Config, total_steps: int) -> Iterator[Cluster]:
    """The cluster that `config` asks for, closed at the end. A Ray that was not running is started and stopped."""
    if config.trainer.executor == "local":
        yield LocalCluster(config, total_steps)
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    own = not ray.is_initialized()
    if own and "RAY_ADDRESS" in os.environ:
        ray.init(logging_level=logging.ERROR)
    elif own:
        # processes on the CPU share its cores: Ray is told of as many as there are processes
        ray.init(
            num_cpus=max(config.world_size, os.cpu_count() or 1),
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=True,
        )
    cluster: RayCluster | None = None
    try:
        cluster = RayCluster(config, total_steps)
        yield cluster
    finally:
        if cluster is not None:
            cluster.close()
        if own:
            ray.shutdown()
