"""The task reward of one elimination: was the worst candidate named, or the one to be kept?"""

from __future__ import annotations

from collections.abc import Sequence


def iterative_task_score(named: Sequence[int], positive: int, grades: Sequence[float] = ()) -> float:
    """-0.5 if the answer names none of the pool; else 1 less what going without the named one costs, from 0 to 1.

    Without grades: 0 for the positive, 1 for another. With grades 1 - (grade - worst) / best of the pool, which is the same
    where only the positive has one. What is lost counts against the best, not against best - worst, which would make the
    smallest difference among candidates that are nearly equal worth as much as one between right and wrong.
    """
    if not named:
        return -0.5
    if not grades:
        return 0.0 if named[0] == positive else 1.0
    best, worst = max(grades), min(grades)
    return 1.0 - (grades[named[0]] - worst) / best if best > 0 else 1.0
