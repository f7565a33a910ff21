"""The task reward of one elimination: was the worst candidate named, or the one to be kept?"""

from __future__ import annotations

from collections.abc import Sequence


def iterative_task_score(named: Sequence[int], positive: int, grades: Sequence[float] = ()) -> float:
    """-0.5 if the answer names none of the pool; else how far below the best of the pool the named one is, from 0 to 1.

    Without grades: 0 for the positive, 1 for another. With grades (best - grade) / (best - worst), which is the same
    where only the positive has one; 1 in a pool of equals.
    """
    if not named:
        return -0.5
    if not grades:
        return 0.0 if named[0] == positive else 1.0
    best, worst = max(grades), min(grades)
    return (best - grades[named[0]]) / (best - worst) if best > worst else 1.0
