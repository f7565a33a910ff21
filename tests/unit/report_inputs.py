"""Runs and results for the tests of the report, in the shapes that training and evaluation write."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.1}


def record(rng: random.Random, size: int, eliminated: bool) -> dict[str, Any]:
    """A query with its ranking, in the shape of a result file."""
    shown = [f"item {number}" for number in rng.sample(range(100), size)]
    ranking = rng.sample(shown, size)
    return {
        "query": "which?",
        "history": ["one", "two"],
        "candidates": shown,
        "positive": rng.choice(shown),
        "ranking": ranking,
        "unordered": 0,
        "out_in_round": {name: place for place, name in enumerate(reversed(ranking[1:]), 1)} if eliminated else {},
        "thoughts": [f"thought {place}" for place in range(1, size)] if eliminated else ["one thought"],
        "fallbacks": 0,
    }


def result(model: str, strategy: str, tasks: dict[str, int], seed: int = 0) -> dict[str, Any]:
    """A result file's content: task -> size of its pools, twelve queries each."""
    rng = random.Random(seed)
    content: dict[str, Any] = {"format": 1, "model": model, "data": "data/bench", "seed": 0, "tasks": {}}
    content["settings"] = {"strategy": strategy, "answer_format": {"answer_style": "name", "think": True}}
    for place, (task, size) in enumerate(tasks.items()):
        content["tasks"][task] = {
            "queries": 12,
            "metrics": {"mrr": interval(0.5 + place / 100 + seed / 10), "ndcg@5": interval(0.4)},
            "strict": {"mrr": interval(0.45 + place / 100), "ndcg@5": interval(0.35)},
            "baselines": {"random": {"mrr": interval(0.3), "ndcg@5": interval(0.2)}},
            "valid_answer_rate": 0.875,
            "calls_per_query": 4.0,
            "rankings": [record(rng, size, strategy == "iterative") for _ in range(12)],
        }
    figures = {name: value for name, value in content["tasks"][next(iter(tasks))].items() if name != "rankings"}
    return content | {"pooled": figures}


def metrics(steps: int, seed: int = 0) -> list[dict[str, float]]:
    """Lines of metrics.jsonl: a validation at step 0, then `steps` steps."""
    rng = random.Random(seed)
    lines: list[dict[str, float]] = [{"step": 0, "val-core/Rec-Movie/reward/mean": 0.25, "timing_s/testing": 2.0}]
    for step in range(1, steps + 1):
        gen, update = rng.uniform(1, 2), rng.uniform(1, 2)
        lines.append(
            {
                "step": step,
                "reward/score/mean": rng.random(),
                "reward/task/mean": rng.random(),
                "actor/kl_loss": rng.random(),
                "actor/entropy": rng.random(),
                "actor/pg_clipfrac": rng.random(),
                "response_length/mean": rng.uniform(10, 20),
                "timing_s/gen": gen,
                "timing_s/update_actor": update,
                "timing_s/step": gen + update + 0.5,
            }
        )
    lines[-1]["val-core/Rec-Movie/reward/mean"] = 0.75
    return lines


def write_json(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def write_run(directory: Path, lines: list[dict[str, float]]) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(directory)


def two_of_each(directory: Path) -> list[str]:
    """Two runs, and two results: one of the second run's model, one of another."""
    tasks = {"Rec-Movie": 6, "Passage-5": 5, "my own": 6}
    return [
        write_run(directory / "runs" / "first", metrics(60)),
        write_run(directory / "runs" / "second", metrics(20, 1)),
        write_json(directory / "a.json", result("runs/second/actor", "iterative", tasks)),
        write_json(directory / "b.json", result("runs/base", "direct", tasks, 1)),
    ]
