"""The task reward of one elimination: was the worst candidate named, or the one to be kept?"""

from __future__ import annotations

from collections.abc import Sequence


def iterative_task_score(named: Sequence[int], positive: int) -> float:
    """-0.5 if the answer names none of the pool, 0 if it names the positive, 1 if it names another one."""
    if not named:
        return -0.5
    return 0.0 if named[0] == positive else 1.0
