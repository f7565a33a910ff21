"""Reading what a report is made of: metrics.jsonl of training runs and result files of evaluations."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from r1ranker.errors import UserError
from r1ranker.tasks.example import HIGHEST_GRADE

METRICS_FILE = "metrics.jsonl"
WANTED = f"a run directory with {METRICS_FILE}, or an evaluation result (.json), is wanted"
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


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start}); {WANTED}") from error
    except OSError as error:
        raise UserError(f"{file}: {(error.strerror or str(error)).lower()}; {WANTED}") from error


def _parse(text: str, where: Callable[[json.JSONDecodeError | None], str]) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where(error)}: broken JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets without end
        raise UserError(f"{where(None)}: JSON that cannot be read ({error})") from error


def _load_json(file: Path) -> Any:
    return _parse(_read(file), lambda error: f"{file}, line {error.lineno}" if error else str(file))


def _load_run(file: Path) -> Run:
    rows: list[dict[str, float]] = []
    for number, line in enumerate(_read(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        row = _mapping(_parse(line, lambda _, where=where: where), where, _number)  # type: ignore[misc]
        if "step" not in row or not row["step"].is_integer():
            raise UserError(f"{where}: found step {row.get('step')}; a whole number is wanted, and metrics beside it")
        rows.append(row)
    return Run(file, tuple(sorted(rows, key=lambda row: row["step"])))


def _is_result(content: Any) -> bool:
    return isinstance(content, dict) and "model" in content and isinstance(content.get("tasks"), dict)


def _load_result(file: Path, content: Any) -> Result:
    if not _is_result(content):
        raise UserError(f"{file}: not an evaluation result, which has `model` and `tasks`; {WANTED}")
    where = str(file)
    pooled = content.get("pooled")
    return Result(
        file,
        _text(content["model"], f"{where}: model"),
        _text(content.get("data", ""), f"{where}: data"),
        _mapping(content.get("settings", {}), f"{where}: settings", lambda value, _: value),
        _mapping(content["tasks"], f"{where}: tasks", _task_result),
        None if pooled is None else _task_result(pooled, f"{where}: pooled"),
        _text(content.get("source") or "", f"{where}: source"),
    )


def _task_result(value: Any, where: str) -> TaskResult:
    fields = _mapping(value, where, lambda inner, _: inner)

    def metrics(inner: Any, place: str) -> Metrics:
        return _mapping(inner, place, _interval)

    queries = fields.get("queries")
    return TaskResult(
        None if queries is None else _whole(queries, f"{where}.queries"),
        metrics(fields.get("metrics", {}), f"{where}.metrics"),
        metrics(fields.get("strict", {}), f"{where}.strict"),
        _mapping(fields.get("baselines", {}), f"{where}.baselines", metrics),
        {name: _number(fields[name], f"{where}.{name}") for name in COSTS if fields.get(name) is not None},
        _sequence(fields.get("rankings", []), f"{where}.rankings", _ranked),
        *_routing(fields.get("routing") or {}, f"{where}.routing"),
    )


def _routing(value: Any, where: str) -> tuple[dict[str, Metrics], str]:
    fields = _mapping(value, where, lambda inner, _: inner)
    systems = _mapping(
        fields.get("systems", {}), f"{where}.systems", lambda inner, place: _mapping(inner, place, _interval)
    )
    weights = _mapping(fields.get("objective", {}), f"{where}.objective", _number)
    llms = _mapping(fields.get("llms", {}), f"{where}.llms", _text)
    merit = (
        [f"merit is {weights['effect']:g} x quality - {weights['cost']:g} x cost"]
        if {"effect", "cost"} <= weights.keys()
        else []
    )
    return systems, "; ".join([*merit, *(f"{name}: {llm}" for name, llm in llms.items())])


def _interval(value: Any, where: str) -> Interval:
    fields = _mapping(value, where, lambda inner, _: inner)
    mean = _number(fields.get("mean"), f"{where}.mean")
    ends = {name: fields.get(name) for name in ("low", "high")}
    return Interval(mean, **{name: _number(end, f"{where}.{name}") for name, end in ends.items() if end is not None})


def _ranked(value: Any, where: str) -> RankedQuery:
    fields = _mapping(value, where, lambda inner, _: inner)

    def texts(name: str) -> tuple[str, ...]:
        return _sequence(fields.get(name) or [], f"{where}.{name}", _text)

    ranking = texts("ranking")
    if not ranking:
        raise UserError(f"{where}.ranking: found none; candidates, best first, are wanted")
    return RankedQuery(
        ranking,
        _text(fields.get("positive") or "", f"{where}.positive"),
        _text(fields.get("query") or "", f"{where}.query"),
        texts("history"),
        texts("candidates"),
        _mapping(fields.get("grades") or {}, f"{where}.grades", _grade) or None,
        _whole(fields.get("unordered") or 0, f"{where}.unordered"),
        _mapping(fields.get("out_in_round") or {}, f"{where}.out_in_round", _whole) or None,
        texts("thoughts"),
        _text(fields.get("subject") or "", f"{where}.subject"),
    )


def _mapping(value: Any, where: str, read: Callable[[Any, str], T]) -> dict[str, T]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: found {_brief(value)}; an object is wanted")
    return {name: read(inner, f"{where}.{name}") for name, inner in value.items()}


def _sequence(value: Any, where: str, read: Callable[[Any, str], T]) -> tuple[T, ...]:
    if not isinstance(value, list):
        raise UserError(f"{where}: found {_brief(value)}; a list is wanted")
    return tuple(read(inner, f"{where}[{place}]") for place, inner in enumerate(value))


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: found {_brief(value)}; a number is wanted")
    try:
        return float(value)
    except OverflowError as error:
        raise UserError(f"{where}: found a number too large") from error


def _whole(value: Any, where: str) -> int:
    number = _number(value, where)
    if not number.is_integer() or number < 0:
        raise UserError(f"{where}: found {_brief(value)}; a whole number of at least 0 is wanted")
    return int(number)


def _grade(value: Any, where: str) -> float:
    number = _number(value, where)
    if not 0 <= number <= HIGHEST_GRADE:
        raise UserError(f"{where}: found {_brief(value)}; a number from 0 to {HIGHEST_GRADE} is wanted")
    return number


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: found {_brief(value)}; text is wanted")
    return value


def _brief(value: Any) -> str:
    written = json.dumps(value)
    return written if len(written) <= 40 else f"{written[:40]}..."
