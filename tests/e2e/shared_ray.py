"""A Ray that stays when a test ends: each starting its own takes several seconds of a core, and so does each of its workers."""

from __future__ import annotations

from contextlib import ExitStack

from forked_workers import ray_forks
from runs import config_of

from r1ranker.trainer.workers.cluster import start_ray


class SharedRay:
    """Starts when it is first asked for."""

    def __init__(self) -> None:
        self._running = ExitStack()
        self._modules = ""

    def start(self, modules: str = "r1ranker.trainer.workers.worker") -> None:
        """Have a Ray whose workers have `modules` (comma-separated) imported."""
        if modules == self._modules:
            return
        self.stop()
        self._running.enter_context(ray_forks(modules))
        self._running.enter_context(start_ray(config_of("x", "trainer.executor=ray", "trainer.n_gpus_per_node=4")))
        self._modules = modules

    def stop(self) -> None:
        """Have none, so that a test can start another."""
        self._running.close()
        self._modules = ""
