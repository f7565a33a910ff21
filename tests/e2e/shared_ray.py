"""A Ray that stays when a test ends: each starting its own takes several seconds of a core, and so does each of its workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from forked_workers import ForkServer
from runs import config_of

from r1ranker.trainer.workers.ray_session import start_ray


class SharedRay:
    """Starts when it is first asked for."""

    def __init__(self) -> None:
        self._server: ForkServer | None = None
        self._running: ExitStack | None = None

    @contextmanager
    def forking(self) -> Iterator[None]:
        """Have a Ray that is started meanwhile fork its workers; no other is running."""
        self.stop()
        self._server = self._server or ForkServer("r1ranker.trainer.workers.worker")
        with self._server.in_place_of_setup():
            yield

    def start(self) -> None:
        """Have it run, with room for four processes."""
        if self._running is None:
            running = ExitStack()
            with self.forking():
                config = config_of("x", "trainer.executor=ray", "trainer.n_gpus_per_node=4")
                running.enter_context(start_ray(config))
            self._running = running

    def stop(self) -> None:
        """Have none run."""
        if self._running is not None:
            self._running.close()
        self._running = None

    def close(self) -> None:
        """End it for good."""
        self.stop()
        if self._server is not None:
            self._server.close()
