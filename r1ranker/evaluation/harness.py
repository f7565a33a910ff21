"""What training to rank did to a model's other abilities: language tasks through lm-evaluation-harness (extra `harness`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from r1ranker.atomic import atomic_path
from r1ranker.device import pick_device
from r1ranker.errors import UserError

Scores = dict[str, dict[str, float]]
"""task -> metric -> value"""


def run_harness(
    model: str, tasks: Sequence[str], file: Path, include_path: str | None = None, limit: int | None = None
) -> Scores:
    """Scores of a model directory on the harness's tasks, and on those of `include_path`; kept in `file`.

    `limit`: questions a task. Raises UserError where the harness is not installed or does not know a task.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError("lm-evaluation-harness is not installed; pip install 'r1ranker[harness]' brings it") from error
    manager = TaskManager(include_path=include_path)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise UserError(f"harness.tasks: lm-evaluation-harness does not know {', '.join(unknown)}")
    device = str(pick_device())
    found: Any = simple_evaluate(
        model="hf",
        model_args={"pretrained": model},
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        batch_size=8,
        device=device,
    )
    scores = {
        task: {
            metric.partition(",")[0]: float(value)
            for metric, value in figures.items()
            if isinstance(value, int | float) and "_stderr" not in metric and metric.partition(",")[1]
        }
        for task, figures in found["results"].items()
    }
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps({"model": model, "scores": scores}, indent=1) + "\n", encoding="utf-8")
    return scores


def harness_table(scores: Mapping[str, Scores]) -> Table:
    """One row a model, one column a task and metric."""
    columns = list(dict.fromkeys((task, metric) for one in scores.values() for task in one for metric in one[task]))
    table = Table(title="language tasks, lm-evaluation-harness")
    table.add_column("")
    for task, metric in columns:
        table.add_column(f"{task} {metric}", justify="right")
    for label, one in scores.items():
        table.add_row(label, *(f"{one[task][metric]:.3f}" for task, metric in columns))
    return table
