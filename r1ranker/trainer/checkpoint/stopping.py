"""SIGTERM and Ctrl-C end a run after the step under way, with its state saved; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Stopping:
    """Within the block `is_asked` says whether the run was asked to end."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._number: int | None = None

    @property
    def is_asked(self) -> bool:
        """Whether a signal has come."""
        return self._number is not None

    def end_process(self) -> None:
        """End as the signal would have ended the process."""
        if self._number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._number is not None:
            raise SystemExit(128 + self._number)

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        self._give_back()
        text = f"{signal.Signals(number).name}: ending after this step, with its state saved; once more: at once\n"
        os.write(2, text.encode())  # a print that was interrupted could not be entered again

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
