"""Saving states while training goes on: processes write their parts, the driver puts the whole in its place."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1ranker.errors import RunError
from r1ranker.trainer.checkpoint import state as states_on_disk
from r1ranker.trainer.checkpoint.state import Say
from r1ranker.trainer.workers.cluster import Cluster, call_all


class StateSaver:
    """At most one state is under way; a failure is said when the next step ends, and older states stay."""

    def __init__(self, states: Path, keep: int | None, say: Say, whole: int) -> None:
        """`whole`: the step of the newest whole state; 0: none."""
        self._states, self._keep, self._say = states, keep, say
        self._under_way: tuple[int, Path] | None = None
        self.whole = whole
        self.failure: str | None = None
        """of the last save; None where it is whole"""

    def begin(self, cluster: Cluster, step: int, driver: Mapping[str, Any]) -> None:
        """Begin to save the state of `step` as it is now; waits for the one before."""
        self.finish(cluster)
        try:
            directory = states_on_disk.begin_state(self._states, step, driver)
        except OSError as error:
            self._fail(step, f"{self._states}: {error.strerror}")
        else:
            self._under_way = step, directory
            call_all(cluster, "save_state", str(directory))

    def poll(self, cluster: Cluster, wait: bool = False) -> None:
        """Put a state in its place once every process has written its part."""
        if self._under_way is None:
            return
        parts = call_all(cluster, "state_result", wait)
        if any(part is None for part in parts):
            return
        (step, directory), self._under_way = self._under_way, None
        failures = [part for part in parts if isinstance(part, str)]
        try:
            if not failures:
                whole = states_on_disk.publish_state(
                    directory, {name: one for part in parts for name, one in part.items()}
                )
                self.whole, self.failure = step, None
                states_on_disk.prune_states(self._states, whole, self._keep)
        except OSError as error:
            failures = [f"{self._states}: {error.strerror}"]
        if failures:
            self._fail(step, failures[0])

    def finish(self, cluster: Cluster) -> None:
        """Wait for the state that is under way."""
        self.poll(cluster, wait=True)

    def finish_after_failure(self, cluster: Cluster, seconds: float) -> None:
        """Wait for the state that is under way while every process answers, at most so many `seconds`; it is given up otherwise."""
        until = time.monotonic() + seconds
        why = f"it was not written within trainer.timeout = {seconds:g} seconds"
        try:
            self.poll(cluster)  # without waiting in the processes: one that hangs does not even say that it is not done
            while self._under_way is not None and time.monotonic() < until:
                time.sleep(0.05)
                self.poll(cluster)
        except RunError as error:
            why = str(error)
        if self._under_way is not None:
            (step, _), self._under_way = self._under_way, None
            self._fail(step, why)

    def require_saved(self, cluster: Cluster) -> None:
        """Wait for the last state; raises RunError where it could not be saved."""
        self.finish(cluster)
        if self.failure is not None:
            raise RunError(self.failure)

    def _fail(self, step: int, why: str) -> None:
        states_on_disk.clear_unfinished(self._states)
        left = f"step_{self.whole} is the last whole one" if self.whole else "there is none yet"
        self.failure = f"the state of step {step} could not be saved ({why}); {left}"
        self._say(self.failure)
