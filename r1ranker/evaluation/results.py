"""Result files: reading them, measuring them again, comparing two of them, writing them as TREC does."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r1ranker.atomic import atomic_path
from r1ranker.errors import UserError
from r1ranker.evaluation.identity import about_of, run_tag
from r1ranker.evaluation.records import Metrics, Record, grades_of, metrics_of, subjects_of
from r1ranker.ranking.metrics import Subjects, sums_by_subject

FORMAT = 1
TIMING = ".timing.json"
"""how the name of the file with an evaluation's seconds ends"""
PERMUTATIONS = 10_000


def read_result(path: str) -> dict[str, Any]:
    """A result file; raises UserError where it is none."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); a result file of an evaluation is wanted"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT or not isinstance(result.get("tasks"), dict):
        raise UserError(f"{path}: not a result file of an evaluation (format {FORMAT})")
    return result


def result_files(directory: Path) -> list[Path]:
    """The result files in a directory, by name."""
    return [path for path in sorted(directory.glob("*.json")) if not path.name.endswith(TIMING)]


def recompute_metrics(result: dict[str, Any], cutoffs: Sequence[int]) -> dict[str, list[Metrics]]:
    """Task -> metrics of each query at `cutoffs`, from the rankings alone."""
    return {
        task: [metrics_of(record, cutoffs) for record in figures["rankings"]]
        for task, figures in result["tasks"].items()
    }


def randomisation_test(
    first: Sequence[float], second: Sequence[float], seed: int = 0, subjects: Subjects | None = None
) -> float:
    """Two-sided p of a paired randomisation test of the mean difference (Fisher, 1935; Smucker et al., 2007).

    Under the null hypothesis each query's two values could as well be swapped, those of a subject together; all 2^n ways
    where they are few, else 10,000 drawn ones. Of one subject p is 1: both ways differ by as much.
    """
    from scipy.stats import permutation_test

    sums = tuple(sums_by_subject(values, subjects)[0] for values in (first, second))
    if len(sums[0]) < 2:  # which scipy refuses
        return 1.0

    def difference(one: np.ndarray, other: np.ndarray, axis: int) -> Any:
        return np.mean(one - other, axis=axis)

    found = permutation_test(
        sums,
        difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def compare_results(
    first: dict[str, Any], second: dict[str, Any], metric: str = "mrr", seed: int = 0
) -> dict[str, dict[str, float]]:
    """For each task in both, and 'pooled' over them: queries, both means, and p. Raises UserError where queries differ."""
    if not re.fullmatch(r"mrr|(hit|ndcg)@[1-9][0-9]{0,3}", metric):
        raise UserError(f"--metric: found {metric!r}; mrr, hit@K or ndcg@K is wanted")
    shared = [task for task in first["tasks"] if task in second["tasks"]]
    if not shared:
        raise UserError("the two results have no task in common")
    cutoffs = [int(metric.partition("@")[2])] if "@" in metric else []
    values: dict[str, tuple[list[float], list[float]]] = {}
    subjects: dict[str, Subjects] = {}
    for task in shared:
        rows = [result["tasks"][task]["rankings"] for result in (first, second)]
        if [_asked(record) for record in rows[0]] != [_asked(record) for record in rows[1]]:
            raise UserError(f"{task}: the two results are of different queries; the same rows are wanted")
        values[task] = tuple([metrics_of(record, cutoffs)[metric] for record in one] for one in rows)  # type: ignore[assignment]
        subjects[task] = subjects_of(record.get("subject") for record in rows[0])
    if len(shared) > 1:
        subjects["pooled"] = [subject for task in shared for subject in subjects[task]]
        values["pooled"] = tuple([value for task in shared for value in values[task][side]] for side in (0, 1))  # type: ignore[assignment]
    return {
        task: {
            "queries": len(one),
            "first": float(np.mean(one)),
            "second": float(np.mean(other)),
            "p": randomisation_test(one, other, seed, subjects[task]),
        }
        for task, (one, other) in values.items()
    }


def _asked(record: Record) -> tuple[Any, ...]:
    return record["query"], record["history"], record["candidates"], record["positive"]


def write_trec(result: dict[str, Any], directory: str) -> list[str]:
    """Write TASK.run and TASK.qrels; candidates are called c1, c2, ... in the order shown. Returns the paths.

    Raises UserError for a grade that is no whole number.
    """
    system = run_tag(about_of(result))
    written = []
    for task, figures in result["tasks"].items():
        run, qrels = [], []
        for number, record in enumerate(figures["rankings"], 1):
            name = {candidate: f"c{place}" for place, candidate in enumerate(record["candidates"], 1)}
            count = len(record["ranking"])
            for rank, candidate in enumerate(record["ranking"], 1):
                run.append(f"q{number} Q0 {name[candidate]} {rank} {count + 1 - rank} {system}\n")
            for candidate, grade in grades_of(record).items():
                check_trec_grade(task, number, grade)
                qrels.append(f"q{number} 0 {name[candidate]} {int(grade)}\n")
        for suffix, lines in (("run", run), ("qrels", qrels)):
            path = Path(directory) / f"{task}.{suffix}"
            with atomic_path(path) as temporary:
                temporary.write_text("".join(lines), encoding="utf-8")
            written.append(str(path))
    return written


def check_trec_grade(task: str, number: int, grade: float) -> None:
    """Raise UserError for a grade, of a task's query `number` from 1, that TREC's qrels do not take."""
    if grade != int(grade):
        raise UserError(f"{task}: query {number}: grade {grade:g}; TREC's qrels take whole numbers")
