"""What training to rank did to a model's other abilities: language tasks through lm-evaluation-harness (extra `harness`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from r1ranker.atomic import atomic_path
from r1ranker.device import pick_device
from r1ranker.errors import UserError
from r1ranker.evaluation.results import randomisation_test
from r1ranker.evaluation.table import format_interval
from r1ranker.ranking.metrics import mean_with_interval


@dataclass(frozen=True)
class Score:
    """A metric of a task."""

    value: float
    questions: tuple[float, ...] = ()
    """of each question, in order; empty where the metric is no mean over questions, such as that of a group of tasks"""


Scores = dict[str, dict[str, Score]]
"""task -> metric, with its filter where it has one -> score"""


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
        raise UserError(f"tasks: lm-evaluation-harness does not know {', '.join(unknown)}")
    found: Any = simple_evaluate(
        model="hf",
        model_args={"pretrained": model},
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        batch_size=8,
        device=str(pick_device()),
    )
    samples = found.get("samples") or {}
    scores = {task: _scores(figures, samples.get(task, ())) for task, figures in found["results"].items()}
    kept = {task: {metric: asdict(score) for metric, score in own.items()} for task, own in scores.items()}
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps({"model": model, "scores": kept}, indent=1) + "\n", encoding="utf-8")
    return scores


def _scores(figures: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Score]:
    scores = {}
    for key, value in figures.items():
        metric, comma, filtered = key.partition(",")
        if not comma or "_stderr" in metric or not isinstance(value, int | float):
            continue
        own = sorted((one for one in samples if one["filter"] == filtered), key=lambda one: one["doc_id"])
        values = [one.get(metric) for one in own]
        numbers = [float(one) for one in values if isinstance(one, int | float)]
        is_mean = bool(numbers) and len(numbers) == len(values) and abs(sum(numbers) / len(numbers) - value) < 1e-9
        name = metric if filtered == "none" else f"{metric} ({filtered})"
        scores[name] = Score(float(value), tuple(numbers) if is_mean else ())
    return scores


def harness_table(scores: Mapping[str, Scores], seed: int = 0) -> Table:
    """A row a task and metric, x 100: each model with its 95% bootstrap interval, and how far it is from the first one, with p.

    p is of the paired randomisation test over questions.
    """
    table = Table(title="language tasks, lm-evaluation-harness (x 100)")
    for heading in ("task", "metric"):
        table.add_column(heading)
    first, *others = scores
    for label in scores:
        table.add_column(label, justify="right")
    for label in others:
        table.add_column(f"{label} - {first}" if len(others) > 1 else "difference", justify="right")
    for task, metrics in scores[first].items():
        for metric in metrics:
            own = [one[task][metric] for one in scores.values()]
            cells = [_cell(score, seed) for score in own]
            table.add_row(task, metric, *cells, *(_difference(own[0], other, seed) for other in own[1:]))
    return table


def _cell(score: Score, seed: int) -> str:
    if not score.questions:
        return f"{100 * score.value:.1f}"
    return format_interval(mean_with_interval(score.questions, seed))


def _difference(first: Score, other: Score, seed: int) -> str:
    difference = f"{100 * (other.value - first.value):+.1f}"
    if not first.questions or len(first.questions) != len(other.questions):
        return difference
    return f"{difference} (p = {randomisation_test(first.questions, other.questions, seed):.4f})"
