"""One Ray for all tests that need no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from shared_ray import SharedRay


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[SharedRay]:
    """For fixtures of a module, which start it themselves."""
    ray = SharedRay()
    yield ray
    ray.stop()


@pytest.fixture
def one_ray(shared_ray: SharedRay) -> None:
    """The Ray that tests share is running."""
    shared_ray.start()


@pytest.fixture
def no_ray(shared_ray: SharedRay) -> None:
    """No Ray is running: the test starts another."""
    shared_ray.stop()
