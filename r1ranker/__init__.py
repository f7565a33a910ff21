"""r1ranker: make a language model rank."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from r1ranker.tasks.example import RankingExample

if TYPE_CHECKING:
    from r1ranker.ranking.ranker import Ranker

__all__ = ["Ranker", "RankingExample", "load_examples"]

# where torchao is, transformers imports it, and all that both say is of kernels for GPUs
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def load_examples(source: str, split: str = "test", config: str = "direct") -> list[RankingExample]:
    """Examples of a directory in Ranking-bench's layout, or of the hub data set."""
    from r1ranker.data.sources.ranking_bench import read_ranking_bench

    return [example for _, example in read_ranking_bench(source, config, split)]  # type: ignore[arg-type]


def __getattr__(name: str) -> Any:
    """Ranker needs torch, which is loaded at its first use only."""
    if name == "Ranker":
        from r1ranker.ranking.ranker import Ranker

        return Ranker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
