"""Rewards as completions come: in the driver, or in processes of their own. Imports no torch: those processes need none."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import connection, get_context, parent_process

from r1ranker.data.prompts import Prompt
from r1ranker.errors import RunError
from r1ranker.trainer.config import RewardFunctionConfig
from r1ranker.trainer.scoring import RewardFunction, breakdown, reward_function

Pending = Callable[[], dict[str, float]]
"""waits for a reward and returns its parts; raises what computing it raised"""


class RewardPool:
    """The configured reward function, in `num_workers` processes; with none of them, in this one."""

    def __init__(self, config: RewardFunctionConfig, num_workers: int = 0) -> None:
        """No process starts before the first response. Raises UserError for a function that cannot be loaded."""
        self._reward = reward_function(config)
        self._pool: ProcessPoolExecutor | None = None
        if num_workers:
            # spawned: a fork would take the driver's threads' locks with it
            self._pool = ProcessPoolExecutor(num_workers, get_context("spawn"), _begin, (config,))

    def submit(self, prompt: Prompt, text: str) -> Pending:
        """Have the reward of a response computed: here and at once, or there and soon.

        What is returned, or without processes this itself, raises UserError where the function fails or gives no finite
        number, and RunError where a process died.
        """
        if self._pool is None:
            parts = breakdown(self._reward, prompt, text)
            return lambda: parts
        try:
            future = self._pool.submit(_computed, replace(prompt, token_ids=[]), text)
        except BrokenProcessPool as error:
            raise _died(error) from error
        return partial(_result, future.result)

    def close(self) -> None:
        """End the processes; what they have not begun is not computed."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _result(wait: Pending) -> dict[str, float]:
    try:
        return wait()
    except BrokenProcessPool as error:
        raise _died(error) from error


def _died(error: BrokenProcessPool) -> RunError:
    return RunError(f"a process of reward.num_workers died ({error})")


_loaded: RewardFunction | None = None
"""of a process of the pool"""


def _begin(config: RewardFunctionConfig) -> None:
    global _loaded
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver ends the pool
    threading.Thread(target=_end_with_driver, daemon=True).start()
    _loaded = reward_function(config)


def _end_with_driver() -> None:
    """A driver that was killed can end nothing, and its pool would wait for work for ever."""
    driver = parent_process()
    assert driver is not None
    connection.wait([driver.sentinel])
    os._exit(1)


def _computed(prompt: Prompt, text: str) -> dict[str, float]:
    assert _loaded is not None
    return breakdown(_loaded, prompt, text)
