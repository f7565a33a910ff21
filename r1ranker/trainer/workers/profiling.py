"""torch's profiler over a process's share of chosen steps: a trace to open in a browser, and a summary."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import profiler
from torch.autograd import DeviceType

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
        times = _own_times(running.key_averages())
        total = sum(times.values()) or 1.0
        longest = sorted(times, key=lambda name: -times[name])[:ROWS]
        lines = [f"  {times[name] / 1e6:8.3f} s  {times[name] / total:4.0%}  {name}" for name in longest]
        return "\n".join([f"step {step}, process {rank}: {total / 1e6:.3f} s of operations; {file}", *lines])


def _own_times(events: Iterable[Any]) -> dict[str, float]:
    """Microseconds of each operation without what it calls: of a GPU's kernels where there are any, else on the CPU."""
    on_cpu, on_device = dict[str, float](), dict[str, float]()
    for one in events:
        if one.device_type == DeviceType.CPU:
            on_cpu[one.key] = float(one.self_cpu_time_total)
        elif not one.is_user_annotation:  # the operations that started kernels have their times as well
            on_device[one.key] = float(one.self_device_time_total)
    return on_device or on_cpu
