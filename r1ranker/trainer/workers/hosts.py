"""Ray's processes of a run: they import what they compute with while the driver still reads its data. Imports nothing large itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from threading import Event
from typing import Any, ClassVar

from r1ranker.errors import UserError
from r1ranker.lean_imports import import_transformers
from r1ranker.trainer.config.schema import Config

PLACED_WITHIN = 60.0
"""seconds that Ray has to find places"""


class Host:
    """A process that Ray starts; `create` makes what it holds, and the calls after it go there."""

    module: ClassVar[str] = "r1ranker.trainer.workers.worker"
    name: ClassVar[str] = "Worker"
    """of the class that it holds one of"""

    def __init__(self) -> None:
        import_transformers()
        self._kind = getattr(import_module(self.module), self.name)

    def create(self, config: Config, rank: int) -> None:
        """Make what the process holds."""
        self.process: Any = self._kind(config, rank)

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of it returns."""
        return getattr(self.process, method)(*arguments)

    def stream(self, method: str, *arguments: Any) -> Iterator[Any]:
        """What a generator of it yields."""
        yield from getattr(self.process, method)(*arguments)


class TrainerHost(Host):
    """Of the trainer."""


class RolloutHost(Host):
    """Of a rollout that is placed apart."""

    module, name = "r1ranker.trainer.workers.process", "RolloutProcess"


@dataclass(frozen=True)
class HostSet:
    """Which processes are wanted: `nodes` groups of `per_node`, each on one node, as the key `wanted_by` says."""

    kind: type[Host]
    per_node: int
    nodes: int
    wanted_by: str


@dataclass(frozen=True)
class PlacedHosts:
    """Ray's handles of the processes, in the order of their ranks, and of the places that they hold."""

    actors: list[Any]
    groups: list[Any]
    on_gpu: bool

    def end(self) -> None:
        """End the processes and give their places back."""
        import ray

        for actor in self.actors:
            ray.kill(actor)
        for group in self.groups:
            ray.util.remove_placement_group(group)


def plan_trainer_hosts(config: Config) -> HostSet:
    """The processes of the trainer."""
    return HostSet(TrainerHost, config.trainer.n_gpus_per_node, config.trainer.nnodes, "trainer.n_gpus_per_node")


def plan_rollout_hosts(config: Config) -> HostSet | None:
    """The processes of the rollout, where they are others."""
    rollout = config.actor_rollout_ref.rollout
    size = rollout.tensor_model_parallel_size
    key = "actor_rollout_ref.rollout.n_workers"
    return HostSet(RolloutHost, size, rollout.n_workers // size, key) if rollout.placement == "separate" else None


_begun: dict[HostSet, PlacedHosts] = {}
"""processes that were started before they are taken"""


@contextmanager
def begin_hosts(config: Config, ended: Event) -> Iterator[None]:
    """A run's processes, which begin to import unless it has `ended`; those that nobody took by the end of the block are ended.

    Raises UserError where they do not fit.
    """
    try:
        for wanted in (plan_trainer_hosts(config), plan_rollout_hosts(config)):
            if wanted is not None and not ended.is_set():
                _begun[wanted] = _place(wanted, ended)
        yield
    finally:
        while _begun:
            _begun.popitem()[1].end()


def take_hosts(wanted: HostSet) -> PlacedHosts:
    """Processes that were begun, else new ones; raises UserError where they do not fit."""
    return _begun.pop(wanted, None) or _place(wanted)


def _place(wanted: HostSet, ended: Event | None = None) -> PlacedHosts:
    """Ray's processes, each with a CPU and, where there are any, a GPU. No place is waited for once a run has `ended`."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    # of the cluster, which may have GPUs where the driver's machine has none
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    bundle = {"CPU": 1.0} | ({"GPU": 1.0} if gpus else {})
    groups = [ray.util.placement_group([bundle] * wanted.per_node, strategy="STRICT_PACK") for _ in range(wanted.nodes)]
    placed = PlacedHosts([], groups, gpus > 0)
    until = time.monotonic() + PLACED_WITHIN
    for group in groups:
        while not group.wait(timeout_seconds=1):
            if time.monotonic() > until or (ended is not None and ended.is_set()):
                placed.end()
                raise UserError(
                    f"{wanted.wanted_by}: {wanted.nodes} x {wanted.per_node} processes do not fit; Ray has "
                    f"{dict(ray.cluster_resources())}"
                )
    actor = ray.remote(num_cpus=1, num_gpus=gpus)(wanted.kind)
    for rank in range(wanted.nodes * wanted.per_node):
        place = PlacementGroupSchedulingStrategy(
            groups[rank // wanted.per_node], placement_group_bundle_index=rank % wanted.per_node
        )
        placed.actors.append(actor.options(scheduling_strategy=place).remote())
    return placed
