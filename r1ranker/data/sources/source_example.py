"""What every source gives: examples, each with whom or what it is about, so that a split can keep them apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from r1ranker.data.files.tally import Tally
from r1ranker.tasks.example import RankingExample

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True)
class SourceExample:
    """An example on its way into a data set."""

    key: str
    """the user or query; all examples of one key go to one side of the split"""
    example: RankingExample
    split: Split | None = None
    """where the source says it itself"""
    variants: tuple[RankingExample, ...] = ()
    """the same request with other candidates, for the training side alone"""
    graded_tests: bool = True
    """whether a test row keeps its grades; else it is measured by its positive alone"""


Source = Callable[[Tally], Iterator[SourceExample]]
"""reads everything anew at each call, counting as it goes"""
