"""What became of the rows of a source: read, left out and why, and what is worth knowing of those that were kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class TaskTally:
    """The counts of one task."""

    read: Counter[str] = field(default_factory=Counter)
    """kind of row -> how many were read"""
    left_out: Counter[str] = field(default_factory=Counter)
    """reason -> how many"""
    noted: Counter[str] = field(default_factory=Counter)
    """of rows that were kept"""
    written: Counter[str] = field(default_factory=Counter)
    """'direct train', ... -> rows"""


@dataclass
class Tally:
    """The counts of all tasks."""

    tasks: dict[str, TaskTally] = field(default_factory=dict)

    def for_task(self, task: str) -> TaskTally:
        """The counts of `task`, new where it had none."""
        if task not in self.tasks:
            self.tasks[task] = TaskTally()
        return self.tasks[task]
