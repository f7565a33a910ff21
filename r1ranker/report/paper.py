"""The paper's results (arXiv 2506.21638), to stand beside one's own. They were measured on other test rows."""

from __future__ import annotations

from r1ranker.report.systems import Comparison

TASKS = (
    "Rec-Movie", "Rec-Music", "Rec-Game", "Router-Performance", "Router-Cost", "Router-Balance", "Passage-5", "Passage-7",
    "Passage-9",
)  # fmt: skip
"""the columns of the table"""

_MRR: dict[str, tuple[float, ...]] = {
    "BM25": (17.56, 18.09, 14.96, 18.41, 13.52, 13.39, 53.63, 44.95, 39.69),
    "Contriever": (18.29, 17.04, 23.98, 20.75, 16.29, 16.74, 41.91, 36.41, 33.10),
    "Qwen2.5-3B-Instruct direct": (16.92, 16.68, 13.17, 10.00, 10.00, 10.00, 38.08, 22.47, 15.94),
    "Qwen2.5-7B-Instruct direct": (16.59, 17.29, 18.63, 13.38, 13.51, 18.41, 44.57, 23.69, 17.79),
    "Qwen2.5-3B-Instruct iterative": (22.01, 21.97, 29.49, 20.87, 20.22, 12.42, 57.74, 43.47, 39.40),
    "Qwen2.5-7B-Instruct iterative": (22.11, 23.36, 33.14, 19.13, 21.06, 26.09, 62.01, 50.94, 48.74),
    "DRanker-3B": (18.71, 15.70, 15.77, 20.63, 9.06, 13.38, 43.85, 22.86, 16.11),
    "IRanker-3B": (34.69, 29.18, 42.49, 23.62, 30.39, 24.44, 60.98, 53.22, 49.96),
}
RANKERS = ("DRanker-3B", "IRanker-3B")
"""the two models that the paper is about"""


PAPER = "the paper, other data and a 3B model"
MODELS = tuple(_MRR)


def paper_beside(comparison: Comparison) -> dict[str, float]:
    """`paper_mrr` of a comparison's task; empty for the built-in world, whose tasks share no more than their names."""
    return {} if comparison.built_in else paper_mrr(comparison.title)


def paper_mrr(task: str) -> dict[str, float]:
    """MRR x 100 of each model of the paper; empty for a task that the paper does not have."""
    if task not in TASKS:
        return {}
    return {model: figures[TASKS.index(task)] for model, figures in _MRR.items()}


def origin(model: str) -> str:
    """What sets a row of the paper apart from a row of one's own."""
    if "-3B" in model:
        return PAPER
    return "the paper, other data and a 7B model" if "-7B" in model else "the paper, other data"
