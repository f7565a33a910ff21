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
    ray.close()


@pytest.fixture
def one_ray(shared_ray: SharedRay) -> None:
    """The Ray that tests share is running."""
    shared_ray.start()


@pytest.fixture
def forking(shared_ray: SharedRay) -> Iterator[None]:
    """The Ray that the test starts itself forks its workers; no other is running."""
    with shared_ray.forking():
        yield
