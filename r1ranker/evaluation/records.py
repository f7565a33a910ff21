"""What is kept of each ranked query, and the figures that follow from it: a result can be measured again without a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from r1ranker.ranking.conversation import RankingResult
from r1ranker.ranking.metrics import Subjects, expected_metrics, summarise
from r1ranker.tasks.example import RankingExample

Record = dict[str, Any]
"""a query as it was asked, and its ranking; as JSON takes it"""
Metrics = dict[str, float]
_UNSTEADY = ("cached_tokens",)
"""what hangs on the order in which queries happened to run"""
_COUNTED = ("calls", "depth", "answers", "prompt_tokens", "response_tokens")


def record_of(example: RankingExample, result: RankingResult) -> Record:
    """The record of a query."""
    record: Record = {
        "query": example.query or example.request,
        "history": list(example.history),
        "candidates": list(example.candidates),
        "positive": example.positive,
    }
    if subject := subject_of(example):
        record["subject"] = subject
    if example.grades:
        record["grades"] = dict(zip(example.candidates, example.grades, strict=True))
    kept = {key: value for key, value in asdict(result).items() if key not in _UNSTEADY}
    return record | kept | {"ranking": list(result.ranking)}


def subject_of(example: RankingExample) -> str:
    """Whom or what an example is about, so that those that belong together stay together; empty where that is not known.

    Without a name of its own it is the query, which several tasks may ask.
    """
    return example.subject or example.query


def subjects_of(names: Iterable[str | None]) -> Subjects:
    """The subjects of queries by their names: one without a name is one's own, also beside those of other tasks."""
    return [name or object() for name in names]


def grades_of(record: Record) -> dict[str, float]:
    """How relevant each candidate of a record is."""
    return record.get("grades") or {name: float(name == record["positive"]) for name in record["candidates"]}


def metrics_of(record: Record, cutoffs: Sequence[int]) -> Metrics:
    """Metrics of a record's ranking; those not told apart at its top count as their expectation over all orders."""
    grades, together = grades_of(record), record["unordered"]
    ranking = [grades[name] for name in record["ranking"]]
    head = [ranking[:together]] if together else []
    return expected_metrics([*head, *([grade] for grade in ranking[together:])], cutoffs)


def strict_metrics_of(record: Record, cutoffs: Sequence[int]) -> Metrics:
    """The same, with nothing for a query in which an answer had to be repaired."""
    metrics = metrics_of(record, cutoffs)
    return dict.fromkeys(metrics, 0.0) if record["fallbacks"] else metrics


def summarise_systems(systems: Mapping[str, Sequence[Metrics]], records: Sequence[Record], seed: int) -> dict[str, Any]:
    """Means with intervals of the model, repaired and strict, and of the baselines; and what the answers cost.

    `systems` holds the metrics of each query, of 'model', 'strict' and the baselines.
    """
    subjects = subjects_of(record.get("subject") for record in records)
    summaries = {name: summarise(queries, seed, subjects) for name, queries in systems.items()}
    queries, totals = len(records), {key: sum(record[key] for record in records) for key in _COUNTED}
    answers, calls = max(1, totals["answers"]), max(1, totals["calls"])
    return {
        "queries": queries,
        "metrics": summaries.pop("model"),
        "strict": summaries.pop("strict"),
        "baselines": summaries,
        "valid_answer_rate": sum(record["valid_answers"] for record in records) / answers,
        "fallback_rate": sum(record["fallbacks"] for record in records) / calls,
        **{f"{key}_per_query": total / queries for key, total in totals.items()},
    }
