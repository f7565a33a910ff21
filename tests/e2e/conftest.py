"""A Ray for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from runs import config_of

from r1ranker.trainer.workers.cluster import ray_running


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """Ray for all tests of a file: each starting its own takes several seconds of processor time a run."""
    with ray_running(config_of("x", "trainer.executor=ray", "trainer.n_gpus_per_node=4")):
        yield
