"""One Ray for all tests that need no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from forked_workers import ray_forks
from runs import config_of

from r1ranker.trainer.workers.cluster import start_ray


class SharedRay:
    """A Ray that stays when a test ends: each starting its own takes several seconds of a core, and so does each of its workers."""

    def __init__(self) -> None:
        self._running = ExitStack()
        self._modules = ""

    def start(self, modules: str = "r1ranker.trainer.workers.worker") -> None:
        """Have a Ray whose workers have `modules` imported."""
        if modules == self._modules:
            return
        self.stop()
        self._running.enter_context(ray_forks(modules))
        self._running.enter_context(start_ray(config_of("x", "trainer.executor=ray", "trainer.n_gpus_per_node=4")))
        self._modules = modules

    def stop(self) -> None:
        self._running.close()
        self._modules = ""


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[SharedRay]:
    """For fixtures of a module, which start it themselves."""
    ray = SharedRay()
    yield ray
    ray.stop()


@pytest.fixture
def one_ray(shared_ray: SharedRay) -> None:
    """The Ray that tests share."""
    shared_ray.start()


@pytest.fixture
def no_ray(shared_ray: SharedRay) -> None:
    """No Ray, for a test that starts another."""
    shared_ray.stop()
