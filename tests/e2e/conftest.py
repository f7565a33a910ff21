"""A Ray for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from r1ranker.trainer.cluster import ray_running
from r1ranker.trainer.config_load import load_config


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """Ray for all tests of a file: each starting its own takes several seconds of processor time a run."""
    files = [f"{key}=x" for key in ("data.train_files", "data.val_files", "actor_rollout_ref.model.path")]
    with ray_running(load_config("quickstart", [*files, "trainer.executor=ray", "trainer.n_gpus_per_node=4"])):
        yield
