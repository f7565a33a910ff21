"""A process that computes rewards one by one, which may fail, hang or die. Imports no torch: it needs none."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from types import FrameType

from r1ranker.data.prompt_store import Prompt
from r1ranker.errors import RunError, UserError
from r1ranker.trainer.config.schema import RewardFunctionConfig
from r1ranker.trainer.scoring.outcome import (
    Failure,
    Outcome,
    describe_row,
    find_definition,
    find_place,
    load_reward,
    score_response,
)

LOADING = 120.0
"""seconds that loading the reward may take at least"""
LAST_WORDS = 2.0
"""seconds that a process which hangs has to say where"""
SLICE = 1.0
"""seconds waited at once: a driver that was stopped itself counts no more of it against the reward"""


@dataclass(frozen=True)
class _Died:
    """In place of an answer."""

    how: str


@dataclass(frozen=True)
class _Hangs:
    """What a process that was asked says."""

    place: str


_Answer = Outcome | UserError | _Died | _Hangs | None


class RewardProcess:
    """A process with the reward function loaded, for one call at a time; one that dies or hangs is not used again."""

    def __init__(self, config: RewardFunctionConfig, timeout: float | None = None) -> None:
        """Raises UserError where the function cannot be loaded there, RunError where the process dies of it or hangs."""
        context = get_context("spawn")  # a fork would take the driver's threads' locks with it
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, config), daemon=False)
        self._process.start()
        theirs.close()
        limit = max(LOADING, timeout or 0.0)
        loaded = self._answer(limit)
        if loaded is None:
            self.kill()
            raise RunError(
                f"{config.path or config.name}: the reward was not loaded within {limit:g} s in a process of reward.num_workers"
            )
        if isinstance(loaded, _Died):
            raise RunError(f"a process of reward.num_workers died while it loaded the reward ({loaded.how})")
        if isinstance(loaded, UserError):
            self.kill()
            raise loaded

    @property
    def usable(self) -> bool:
        """Whether it can take another call."""
        return self._process.is_alive() and not self._connection.closed

    def compute(self, prompt: Prompt, text: str, timeout: float | None, place: str) -> Outcome:
        """The reward of a response. One that takes over `timeout` seconds, or dies, is a failure, told at `place` if nowhere better."""
        row = describe_row(prompt)
        with contextlib.suppress(OSError):  # it died: the answer says so
            self._connection.send((prompt, text))
        answer = self._answer(timeout)
        if answer is None:
            said = self._place()
            self.kill()
            return Failure(
                said or place, row, f"no answer within reward.timeout={timeout:g} s; its process was replaced"
            )
        if isinstance(answer, _Died):
            self.kill()
            return Failure(place, row, f"its process died ({answer.how}) and was replaced")
        if isinstance(answer, UserError):
            raise answer
        assert isinstance(answer, dict | Failure)
        return answer

    def _answer(self, timeout: float | None) -> _Answer:
        """What the process says, or how it died; None where it has not said anything in time."""
        left = float("inf") if timeout is None else timeout
        while left > 0:
            ready = connection.wait([self._connection, self._process.sentinel], min(SLICE, left))
            left -= SLICE
            if self._connection.poll():
                try:
                    said: _Answer = self._connection.recv()
                    return said
                except (EOFError, OSError):
                    pass
            elif not ready:
                continue
            self._process.join(LAST_WORDS)
            return _Died(f"exit code {self._process.exitcode}")
        return None

    def _place(self) -> str | None:
        """Where the process hangs, if it can still say so."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid or 0, signal.SIGUSR1)
        said = self._answer(LAST_WORDS)
        return said.place if isinstance(said, _Hangs) else None

    def end(self) -> None:
        """Have it end, and whatever it started; may be called from any thread."""
        pid = self._process.pid
        if pid is not None and self._process.is_alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has no group of its own yet
                os.killpg(pid, signal.SIGKILL)
            self._process.kill()

    def kill(self) -> None:
        """End it, and wait until it is gone."""
        self.end()
        self._process.join()
        self._connection.close()


def _serve(driver: connection.Connection, config: RewardFunctionConfig) -> None:
    os.setsid()  # a group of its own: what it starts is ended with it, and Ctrl-C is the driver's alone
    threading.Thread(target=_end_with_driver, daemon=True).start()
    try:
        reward = load_reward(config)
    except UserError as error:
        driver.send(error)
        return
    signal.signal(signal.SIGUSR1, _say_where(driver, find_definition(reward)))
    driver.send({})  # loaded
    while True:
        try:
            prompt, text = driver.recv()
        except EOFError:
            return
        try:
            driver.send(score_response(reward, prompt, text))
        except UserError as error:
            driver.send(error)


def _say_where(driver: connection.Connection, code: tuple[str, int]) -> Callable[[int, FrameType | None], None]:
    def say(number: int, frame: FrameType | None) -> None:
        frames = []
        while frame is not None:
            frames.append((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
        driver.send(_Hangs(find_place(frames[::-1], code)))

    return say


def _end_with_driver() -> None:
    """A driver that was killed can end nothing, and its processes would wait for work for ever."""
    driver = parent_process()
    assert driver is not None
    connection.wait([driver.sentinel])
    os.killpg(0, signal.SIGKILL)
