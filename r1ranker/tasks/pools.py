"""Sub-pools of a query for iterative training, and the state of an elimination."""

from __future__ import annotations

import random
from collections.abc import Sequence

from r1ranker.tasks.example import RankingExample


def sample_sub_pools(example: RankingExample, rng: random.Random, sizes: range | None = None) -> list[tuple[str, ...]]:
    """One random sub-pool of each size from 2 to n, each in random order: one that holds the positive, or of graded candidates one
    that holds any of a grade above 0. (Were the positive in all of these, the others would look worse than they are without it.)

    With `sizes` only those of these sizes, the same ones as without; the whole pool where it is smaller than all of them.
    """
    others = [name for name in example.candidates if name != example.positive]
    pools = []
    for size in range(2, len(example.candidates) + 1):
        if any(example.grades):
            pool = rng.sample(example.candidates, size)
            while not any(map(example.grade_of, pool)):
                pool = rng.sample(example.candidates, size)
        else:
            pool = [example.positive, *rng.sample(others, size - 1)]
            rng.shuffle(pool)
        pools.append(tuple(pool))
    return pools if sizes is None else [pool for pool in pools if len(pool) in sizes] or pools[-1:]


class Elimination:
    """A pool from which one candidate goes out a round, until one is left."""

    def __init__(self, candidates: Sequence[str]) -> None:
        self.pool = tuple(candidates)
        self.eliminated: list[str] = []

    def eliminate(self, name: str) -> None:
        """Take `name` out; raises ValueError where it is not in the pool."""
        if name not in self.pool:
            raise ValueError(f"{name!r} is not in the pool")
        self.pool = tuple(other for other in self.pool if other != name)
        self.eliminated.append(name)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to decide."""
        return len(self.pool) <= 1

    def ranking(self) -> tuple[str, ...]:
        """Best first: who is left, then the eliminated, last out first."""
        return (*self.pool, *reversed(self.eliminated))
