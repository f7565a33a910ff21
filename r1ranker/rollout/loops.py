"""Responses that go round in circles: a model that has said the same thing several times in a row says nothing else any more."""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST, LONGEST = 8, 128
"""tokens of what is repeated; a shorter pattern is seen when it is repeated as often as makes one of these"""
TIMES = 4
"""how often it stands there, one right after the other"""


def ends_in_loop(tokens: Sequence[int]) -> bool:
    """Whether the last tokens are the same SHORTEST to LONGEST ones TIMES times over.

    As vLLM's repetition detection has it, which is given the same numbers.
    """
    end = len(tokens)
    for period in range(SHORTEST, min(LONGEST, end // TIMES) + 1):
        compared = (TIMES - 1) * period
        # most periods are ruled out by the last token
        if tokens[-1] == tokens[-1 - period] and tokens[-compared:] == tokens[-compared - period : -period]:
            return True
    return False
