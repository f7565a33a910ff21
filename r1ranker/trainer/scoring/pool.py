"""Rewards as completions come: in the driver, or in processes of their own, of which one that hangs or dies costs one sample."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from r1ranker.data.prompt_store import Prompt
from r1ranker.trainer.config.schema import RewardFunctionConfig
from r1ranker.trainer.scoring.outcome import Outcome, find_definition, load_reward, score_response
from r1ranker.trainer.scoring.process import RewardProcess


class RewardPool:
    """The configured reward function, in `num_workers` processes; with none of them, in this one."""

    def __init__(self, config: RewardFunctionConfig, num_workers: int = 0, timeout: float | None = None) -> None:
        """No process starts before the first response. Raises UserError for a function that cannot be loaded.

        `timeout`: seconds that a call may take in a process of its own.
        """
        self._reward = load_reward(config)
        self._config, self._timeout = config, timeout
        # a thread a process, which starts it, waits for it, and puts another in its place
        self._threads = ThreadPoolExecutor(num_workers, "reward") if num_workers else None
        self._own = threading.local()
        self._processes: set[RewardProcess] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def submit(self, prompt: Prompt, text: str) -> Future[Outcome]:
        """Have the reward of a response computed: here and at once, or there and soon.

        The result is its parts or a Failure; it raises UserError where the function does, and RunError where processes
        cannot be started.
        """
        if self._threads is not None:
            return self._threads.submit(self._compute, replace(prompt, token_ids=[], messages=[]), text)
        done: Future[Outcome] = Future()
        done.set_result(score_response(self._reward, prompt, text))
        return done

    def _compute(self, prompt: Prompt, text: str) -> Outcome:
        process: RewardProcess | None = getattr(self._own, "process", None)
        if process is None or not process.usable:
            process = self._own.process = self._started(process)
        return process.compute(prompt, text, self._timeout, ":".join(map(str, find_definition(self._reward))))

    def _started(self, instead_of: RewardProcess | None) -> RewardProcess:
        process = RewardProcess(self._config, self._timeout)
        with self._lock:
            if instead_of is not None:
                self._processes.discard(instead_of)
            self._processes.add(process)
            if self._is_closed:
                process.end()
        return process

    def close(self) -> None:
        """End the processes, whatever they are at; what they have not computed is not computed."""
        if self._threads is None:
            return
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._is_closed = True
            for process in self._processes:
                process.end()
        self._threads.shutdown()
        for process in self._processes:
            process.kill()
