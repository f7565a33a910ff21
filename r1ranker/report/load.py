"""Reading what a report is made of: metrics.jsonl of training runs and result files of evaluations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from r1ranker.errors import UserError
from r1ranker.report.fields import (
    METRICS_FILE,
    WANTED,
    as_grade,
    as_mapping,
    as_number,
    as_sequence,
    as_text,
    as_whole,
    parse_json,
    read_lines,
    read_text,
)

COSTS = (
    "valid_answer_rate", "fallback_rate", "calls_per_query", "depth_per_query", "answers_per_query",
    "prompt_tokens_per_query", "response_tokens_per_query", "seconds_per_query",
)  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A training run."""

    file: Path
    rows: tuple[dict[str, float], ...]
    """metric -> value, `step` among them, in the order of the steps"""


@dataclass(frozen=True)
class Interval:
    """A mean over queries, from 0 to 1, with its 95% interval where there is one."""

    mean: float
    low: float | None = None
    high: float | None = None


Metrics = dict[str, Interval]


@dataclass(frozen=True)
class RankedQuery:
    """One query's ranking and how it came about; fields as in the result file, empty where it has none."""

    ranking: tuple[str, ...]
    """best first"""
    positive: str = ""
    query: str = ""
    history: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    """in the order shown"""
    grades: dict[str, float] | None = None
    unordered: int = 0
    """how many at the top were not told apart"""
    out_in_round: dict[str, int] | None = None
    thoughts: tuple[str, ...] = ()
    subject: str = ""
    """whom or what it is about"""


@dataclass(frozen=True)
class TaskResult:
    """A task's figures, or those over all queries."""

    queries: int | None
    metrics: Metrics
    strict: Metrics
    """an answer that cannot be used counted as a miss"""
    baselines: dict[str, Metrics]
    costs: dict[str, float]
    """those of COSTS that the file has"""
    rankings: tuple[RankedQuery, ...]
    routing: dict[str, Metrics] = field(default_factory=dict)
    """system -> what the LLMs that it puts first are worth"""
    routing_note: str = ""
    """the objective, and the LLMs of systems that always choose the same"""


@dataclass(frozen=True)
class Result:
    """An evaluation result file."""

    file: Path
    model: str
    data: str
    settings: dict[str, Any]
    tasks: dict[str, TaskResult]
    pooled: TaskResult | None
    source: str = ""
    """of the data, where the file names it"""


def load_inputs(inputs: Sequence[str]) -> tuple[list[Run], list[Result]]:
    """Runs and results in the order named, each file once; a directory is searched for both.

    Raises UserError where a path is not there, a directory holds neither, or a file is broken or of another kind.
    """
    if not inputs:
        raise UserError(f"nothing to report on; {WANTED}")
    runs: dict[Path, Run] = {}
    results: dict[Path, Result] = {}
    for name in inputs:
        path = Path(name)
        if os.path.isdir(path):  # False for a name that the system cannot have, too
            _load_directory(path, runs, results)
        elif path.suffix == ".jsonl":
            runs.setdefault(path.resolve(), _load_run(path))
        elif path.suffix == ".json":
            results.setdefault(path.resolve(), _load_result(path, _load_json(path)))
        elif os.path.exists(path):
            raise UserError(f"{path}: found a file of another kind; {WANTED}")
        else:
            raise UserError(f"{path}: no such file or directory; {WANTED}")
    return list(runs.values()), list(results.values())


def _load_directory(directory: Path, runs: dict[Path, Run], results: dict[Path, Result]) -> None:
    logs = sorted(directory.rglob(METRICS_FILE))
    found = len(logs)
    for file in logs:
        runs.setdefault(file.resolve(), _load_run(file))
    for file in sorted(directory.rglob("*.json")):
        content = _load_json(file)
        if _is_result(content):  # a model's directory has JSON files of its own
            found += 1
            results.setdefault(file.resolve(), _load_result(file, content))
    if not found:
        raise UserError(f"{directory}: holds neither {METRICS_FILE} nor an evaluation result; {WANTED}")


def _load_json(file: Path) -> Any:
    return parse_json(read_text(file), lambda error: f"{file}, line {error.lineno}" if error else str(file))


def _load_run(file: Path) -> Run:
    return Run(file, tuple(sorted(read_lines(file, _step), key=lambda row: row["step"])))


def _step(value: Any, where: str) -> dict[str, float]:
    row = as_mapping(value, where, as_number)
    if "step" not in row or not row["step"].is_integer():
        raise UserError(f"{where}: found step {row.get('step')}; a whole number is wanted, and metrics beside it")
    return row


def _is_result(content: Any) -> bool:
    return isinstance(content, dict) and "model" in content and isinstance(content.get("tasks"), dict)


def _load_result(file: Path, content: Any) -> Result:
    if not _is_result(content):
        raise UserError(f"{file}: not an evaluation result, which has `model` and `tasks`; {WANTED}")
    where = str(file)
    pooled = content.get("pooled")
    return Result(
        file,
        as_text(content["model"], f"{where}: model"),
        as_text(content.get("data", ""), f"{where}: data"),
        as_mapping(content.get("settings", {}), f"{where}: settings", lambda value, _: value),
        as_mapping(content["tasks"], f"{where}: tasks", _task_result),
        None if pooled is None else _task_result(pooled, f"{where}: pooled"),
        as_text(content.get("source") or "", f"{where}: source"),
    )


def _task_result(value: Any, where: str) -> TaskResult:
    fields = as_mapping(value, where, lambda inner, _: inner)

    def metrics(inner: Any, place: str) -> Metrics:
        return as_mapping(inner, place, _interval)

    queries = fields.get("queries")
    return TaskResult(
        None if queries is None else as_whole(queries, f"{where}.queries"),
        metrics(fields.get("metrics", {}), f"{where}.metrics"),
        metrics(fields.get("strict", {}), f"{where}.strict"),
        as_mapping(fields.get("baselines", {}), f"{where}.baselines", metrics),
        {name: as_number(fields[name], f"{where}.{name}") for name in COSTS if fields.get(name) is not None},
        as_sequence(fields.get("rankings", []), f"{where}.rankings", _ranked),
        *_routing(fields.get("routing") or {}, f"{where}.routing"),
    )


def _routing(value: Any, where: str) -> tuple[dict[str, Metrics], str]:
    fields = as_mapping(value, where, lambda inner, _: inner)
    systems = as_mapping(
        fields.get("systems", {}), f"{where}.systems", lambda inner, place: as_mapping(inner, place, _interval)
    )
    weights = as_mapping(fields.get("objective", {}), f"{where}.objective", as_number)
    llms = as_mapping(fields.get("llms", {}), f"{where}.llms", as_text)
    merit = (
        [f"merit is {weights['effect']:g} x quality - {weights['cost']:g} x cost"]
        if {"effect", "cost"} <= weights.keys()
        else []
    )
    return systems, "; ".join([*merit, *(f"{name}: {llm}" for name, llm in llms.items())])


def _interval(value: Any, where: str) -> Interval:
    fields = as_mapping(value, where, lambda inner, _: inner)
    mean = as_number(fields.get("mean"), f"{where}.mean")
    ends = {name: fields.get(name) for name in ("low", "high")}
    return Interval(mean, **{name: as_number(end, f"{where}.{name}") for name, end in ends.items() if end is not None})


def _ranked(value: Any, where: str) -> RankedQuery:
    fields = as_mapping(value, where, lambda inner, _: inner)

    def texts(name: str) -> tuple[str, ...]:
        return as_sequence(fields.get(name) or [], f"{where}.{name}", as_text)

    ranking = texts("ranking")
    if not ranking:
        raise UserError(f"{where}.ranking: found none; candidates, best first, are wanted")
    return RankedQuery(
        ranking,
        as_text(fields.get("positive") or "", f"{where}.positive"),
        as_text(fields.get("query") or "", f"{where}.query"),
        texts("history"),
        texts("candidates"),
        as_mapping(fields.get("grades") or {}, f"{where}.grades", as_grade) or None,
        as_whole(fields.get("unordered") or 0, f"{where}.unordered"),
        as_mapping(fields.get("out_in_round") or {}, f"{where}.out_in_round", as_whole) or None,
        texts("thoughts"),
        as_text(fields.get("subject") or "", f"{where}.subject"),
    )
