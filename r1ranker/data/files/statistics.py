"""What is measured of the rows written: candidates a row, tokens a prompt, and where the positives stand."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

LEAST_EXPECTED = 5.0
"""rows that a place has to expect for the chi-square test; places below are put together"""


@dataclass
class TaskStatistics:
    """Of the rows of one task."""

    sizes: Counter[int] = field(default_factory=Counter)
    """candidates -> rows"""
    places: Counter[int] = field(default_factory=Counter)
    """place of the positive, from 0 -> rows"""
    tokens: array[int] = field(default_factory=lambda: array("i"))
    """of each prompt; empty without a tokenizer"""

    def add(self, candidates: int, place: int) -> None:
        """Count a row."""
        self.sizes[candidates] += 1
        self.places[place] += 1

    def position_p_value(self) -> float:
        """p of the chi-square test that every place of a pool is as likely to hold the positive; 1 where nothing can be said."""
        from scipy.stats import chisquare

        longest = max(self.sizes, default=0)
        expected = np.array(
            [sum(n / size for size, n in self.sizes.items() if size > place) for place in range(longest)]
        )
        observed = np.array([self.places[place] for place in range(longest)], dtype=np.float64)
        few = expected < LEAST_EXPECTED
        if few.any():
            expected = np.append(expected[~few], expected[few].sum())
            observed = np.append(observed[~few], observed[few].sum())
        if len(expected) < 2:
            return 1.0
        return float(chisquare(observed, expected).pvalue)

    def token_figures(self, most: int) -> tuple[float, float, float] | None:
        """Median, 99th percentile and the share over `most` tokens; None without a tokenizer."""
        if not self.tokens:
            return None
        lengths = np.frombuffer(self.tokens, dtype=np.intc)
        return float(np.median(lengths)), float(np.percentile(lengths, 99)), float((lengths > most).mean())


@dataclass
class RowStatistics:
    """Of the rows of one configuration, by task."""

    tasks: dict[str, TaskStatistics] = field(default_factory=dict)
    most_tokens: int = 0
    """the limit that the share of too long prompts refers to"""

    def for_task(self, task: str) -> TaskStatistics:
        """Those of `task`, new where it had none."""
        if task not in self.tasks:
            self.tasks[task] = TaskStatistics()
        return self.tasks[task]
