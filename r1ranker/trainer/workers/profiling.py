"""torch's profiler over a process's share of chosen steps: a trace to open in a browser, and a summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import profiler

from r1ranker.atomic import atomic_path

DIRECTORY = "profile"
"""in the run's directory"""
ROWS = 12
"""operations of a summary, those that took longest by themselves"""


class StepProfiler:
    """The profiler of one process, begun and ended with a step."""

    def __init__(self) -> None:
        self._running: Any = None

    def start(self) -> None:
        """Note down every operation from here on."""
        self._running = profiler.profile(activities=profiler.supported_activities())
        self._running.start()

    def stop(self, directory: str, step: int, rank: int) -> str:
        """Write the trace of `step` to `directory`; returns what took longest, in words."""
        running, self._running = self._running, None
        running.stop()
        file = Path(directory) / f"step_{step}_process_{rank}.json.gz"
        with atomic_path(file) as temporary:
            running.export_chrome_trace(str(temporary))
        found = sorted(running.key_averages(), key=_own_time, reverse=True)
        total = sum(map(_own_time, found)) or 1.0
        lines = [f"  {_own_time(one) / 1e6:8.3f} s  {_own_time(one) / total:4.0%}  {one.key}" for one in found[:ROWS]]
        return "\n".join([f"step {step}, process {rank}: {total / 1e6:.3f} s of operations; {file}", *lines])


def _own_time(event: Any) -> float:
    """Microseconds on the device where there is one, else on the CPU, without what an operation calls."""
    return float(event.self_device_time_total or event.self_cpu_time_total)
