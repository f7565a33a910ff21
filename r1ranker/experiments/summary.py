"""What an experiment found: means over seeds with intervals over users and queries, paired tests, and what it cost."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from r1ranker.evaluation.baselines.likelihood import QueryLikelihood, has_texts_to_ask_of
from r1ranker.evaluation.baselines.orders import (
    MostFrequentLabel,
    fit_baselines,
    given_order_metrics,
    random_order_metrics,
)
from r1ranker.evaluation.baselines.scoring import OF_PRETRAINED
from r1ranker.evaluation.records import metrics_of, subject_of, subjects_of
from r1ranker.evaluation.results import randomisation_test
from r1ranker.evaluation.routing import BEST_SINGLE, NearestMerits
from r1ranker.ranking.metrics import Interval, Subjects, mean_with_interval
from r1ranker.tasks.catalog import get_task
from r1ranker.tasks.example import RankingExample

METRICS = ("mrr", "ndcg@10")
_PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
Values = dict[str, dict[str, list[float]]]
"""metric -> task -> a value a query"""


@dataclass
class ArmResult:
    """An arm before or after training."""

    label: str
    when: str
    reports: list[dict[str, Any]] = field(default_factory=list)
    """result files, one a seed"""
    runs: list[Path] = field(default_factory=list)
    """directories of its training runs"""
    curves: list[list[dict[str, float]]] = field(default_factory=list)
    """points of each training: step, tokens, seconds, mrr"""


def baselines_of(
    test: Mapping[str, Sequence[RankingExample]],
    train: Mapping[str, Sequence[RankingExample]],
    pretrained: str | None = None,
) -> dict[str, Values]:
    """Name -> its metrics on each query, of the baselines that suit the tasks; query likelihood is by the model `pretrained`."""
    found: dict[str, Values] = {}
    likelihood = None if pretrained is None else QueryLikelihood(pretrained, OF_PRETRAINED)
    for task, examples in test.items():
        cutoffs = get_task(task).cutoffs
        systems: dict[str, Any] = {
            "random": random_order_metrics,
            "order as given": given_order_metrics,
            "most frequent label": MostFrequentLabel(train[task]),
            **{one.name: one for one in fit_baselines(train[task], task)},
        }
        if likelihood is not None and all(map(has_texts_to_ask_of, examples)):
            systems[likelihood.name] = likelihood
        for name, system in systems.items():
            queries = [system(example, cutoffs) for example in examples]
            for metric in METRICS:
                if metric in queries[0]:
                    values = found.setdefault(name, {}).setdefault(metric, {})
                    values[task] = [query[metric] for query in queries]
    return found


def summarise_experiment(
    title: str,
    measured: Sequence[ArmResult],
    baselines: Mapping[str, Values],
    test: Mapping[str, Sequence[RankingExample]],
    course: int | None = None,
) -> dict[str, Any]:
    """{"title", "rankers", "baselines", "tests", "courses", "peak_memory_gib"}; MRR and NDCG lie between 0 and 1.

    test: what all of it was measured on. course: into how many parts a training is divided, of which means are taken; None: into none.
    """
    subjects = {task: subjects_of(map(subject_of, rows)) for task, rows in test.items()}
    values = {f"{one.label}, {one.when}": _values(one.reports) for one in measured}
    rankers = {
        name: _figures(found, subjects) | _costs(one)
        for (name, found), one in zip(values.items(), measured, strict=True)
    }
    tests = []
    trained = [name for name in values if name.endswith(", after")]
    for place, name in enumerate(trained):
        for other, against in (*baselines.items(), *((one, values[one]) for one in trained[:place])):
            tasks = [task for task in values[name]["mrr"] if task in against["mrr"]]
            if not tasks:
                continue
            own, others = (_joined(one["mrr"], tasks) for one in (values[name], against))
            p = randomisation_test(own, others, subjects=_joined(subjects, tasks))
            tests.append(
                {
                    "first": name,
                    "second": other,
                    "tasks": tasks,
                    "difference": float(np.mean(own) - np.mean(others)),
                    "p": p,
                }
            )
    return {
        "title": title,
        "seeds": len(measured[0].reports),
        "queries": {task: len(rows) for found in values.values() for task, rows in found["mrr"].items()},
        "rankers": rankers,
        "baselines": {name: _figures(found, subjects) for name, found in baselines.items()},
        "tests": tests,
        "routing": routing_of(measured),
        "courses": {one.label: course_of(one.runs, course) for one in measured if one.runs and course is not None},
        "curves": {one.label: one.curves for one in measured if one.curves},
        "peak_memory_gib": max(resource.getrusage(who).ru_maxrss for who in _PROCESSES) / 2**20,
    }


def _values(reports: Sequence[dict[str, Any]]) -> Values:
    """A value a query: the mean over the seeds."""
    found: Values = {metric: {} for metric in METRICS}
    for task in reports[0]["tasks"]:
        cutoffs = get_task(task).cutoffs
        seeds = [[metrics_of(record, cutoffs) for record in report["tasks"][task]["rankings"]] for report in reports]
        for metric in METRICS:
            if metric in seeds[0][0]:
                found[metric][task] = np.mean([[query[metric] for query in one] for one in seeds], axis=0).tolist()
    return found


def _joined(values: Mapping[str, Sequence[Any]], tasks: Sequence[str]) -> list[Any]:
    return [value for task in tasks for value in values[task]]


def _figures(values: Values, subjects: Mapping[str, Subjects]) -> dict[str, Any]:
    """Of all queries together, and of each task's."""

    def interval(found: Mapping[str, list[float]], tasks: Sequence[str]) -> Interval:
        return mean_with_interval(_joined(found, tasks), subjects=_joined(subjects, tasks))

    together = {metric: interval(found, list(found)) for metric, found in values.items() if found}
    by_task = {task: interval(values["mrr"], [task]) for task in values["mrr"]}
    return {"all": together, "mrr by task": by_task}


def _costs(one: ArmResult) -> dict[str, Any]:
    """Each seed's MRR, and the means over seeds of valid answers, calls and tokens a query, and of training."""
    keys = ("valid_answer_rate", "calls_per_query", "prompt_tokens_per_query", "response_tokens_per_query")
    costs: dict[str, Any] = {key: float(np.mean([report["pooled"][key] for report in one.reports])) for key in keys}
    costs["mrr by seed"] = [report["pooled"]["metrics"]["mrr"]["mean"] for report in one.reports]
    runs = [training_costs(read_metrics(run)) for run in one.runs]
    for name in ("seconds", "tokens"):
        costs[f"training_{name}"] = float(np.mean([run[name] for run in runs])) if runs else None
    return costs


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of a training run's metrics, one a step."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def training_costs(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Seconds and tokens of the steps whose metrics these are; a prompt counts for each of its samples."""
    keys = {"seconds": "timing_s/step", "tokens": "perf/total_num_tokens"}
    return {name: float(sum(line.get(key, 0.0) for line in lines)) for name, key in keys.items()}


COURSE = {
    "reward": "critic/score/mean",
    "valid answers": "reward/valid/mean",
    "entropy": "actor/entropy",
    "KL": "actor/kl_loss",
    "clipped": "actor/pg_clipfrac",
    "gradient": "actor/grad_norm",
    "tokens": "response_length/mean",
}
"""what is shown of a training's course -> its metric"""


def course_of(runs: Sequence[Path], parts: int) -> list[dict[str, Any]]:
    """Of each of `parts` equal parts of the trainings: {"step": its last one, name: each run's mean over its steps, in order}."""
    lines = [[line for line in read_metrics(run) if COURSE["reward"] in line] for run in runs]
    found = []
    for part in range(parts):
        pieces = [one[len(one) * part // parts : len(one) * (part + 1) // parts] for one in lines]
        if all(pieces):
            means = {
                name: [float(np.mean([line[key] for line in piece if key in line])) for piece in pieces]
                for name, key in COURSE.items()
                if all(any(key in line for line in piece) for piece in pieces)
            }
            found.append({"step": pieces[0][-1]["step"]} | means)
    return found


def routing_of(measured: Sequence[ArmResult]) -> dict[str, dict[str, dict[str, Any]]]:
    """task -> system -> what its first choices were worth; of rankers the mean over seeds, with each seed's gain, and paired
    tests of the merit against the nearest queries' choice and the best single LLM's."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for one in measured:
        for task in one.reports[0]["tasks"]:
            seeds = [report["tasks"][task].get("routing") for report in one.reports]
            if not seeds[0]:
                continue
            table = found.setdefault(task, {})
            own = [seed["systems"]["model"] for seed in seeds]
            merits = np.mean([seed["merits"]["model"] for seed in seeds], axis=0)
            others = {name: np.asarray(seeds[0]["merits"][name]) for name in (NearestMerits.name, BEST_SINGLE)}
            table[f"{one.label}, {one.when}"] = {
                **{name: {"mean": float(np.mean([seed[name]["mean"] for seed in own]))} for name in own[0]},
                "merit": mean_with_interval(merits.tolist()),
                "gain": mean_with_interval((merits - others[BEST_SINGLE]).tolist()),
                "gain by seed": [seed["gain"]["mean"] for seed in own],
                "tests": {
                    name: {
                        "difference": float(np.mean(merits - other)),
                        "p": randomisation_test(merits.tolist(), other.tolist()),
                    }
                    for name, other in others.items()
                },
            }
            for name, worth in seeds[0]["systems"].items():
                if name != "model":
                    table.setdefault(name, worth)
    return found


def mean_curve(curves: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Means over the seeds at each step that all of them have; one that was interrupted has another state there."""
    by_step = [{point["step"]: point for point in points} for points in curves]
    steps = sorted(set.intersection(*(set(points) for points in by_step)))
    return [
        {key: float(np.mean([points[step][key] for points in by_step])) for key in by_step[0][step]} for step in steps
    ]
