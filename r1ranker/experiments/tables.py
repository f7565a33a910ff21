"""An experiment's summary as Markdown: rankers and baselines, tests, routing, courses, curves, costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from r1ranker.atomic import atomic_path
from r1ranker.evaluation.routing import BEST_SINGLE, NearestMerits
from r1ranker.evaluation.table import format_interval
from r1ranker.experiments.summary import COURSE, METRICS, mean_curve

SUMMARY, TABLES = "summary.json", "summary.md"


def write_summary(summary: dict[str, Any], output: Path) -> None:
    """summary.json, and the same as tables in summary.md."""
    for name, text in ((SUMMARY, json.dumps(summary, indent=1) + "\n"), (TABLES, as_markdown(summary))):
        with atomic_path(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """The tables on the terminal."""
    console.print(Markdown(as_markdown(summary)))


def as_markdown(summary: dict[str, Any]) -> str:
    """Tables: rankers and baselines, by task where there are several, tests, routing, curves, costs."""
    count, seeds = sum(summary["queries"].values()), summary["seeds"]
    parts = [
        f"{count:,} test queries, {seeds} seed{'s' * (seeds > 1)}; MRR and NDCG x 100 with 95% bootstrap intervals over users and queries, a query's value being the mean over the seeds.",
        _all_table(summary),
        *([_task_table(summary)] if len(summary["queries"]) > 1 else []),
        *([_test_table(summary["tests"])] if summary["tests"] else []),
        *(_routing_table(task, systems) for task, systems in summary["routing"].items()),
        *(_course_table(label, course) for label, course in summary["courses"].items()),
        *(_curve_table(label, curves) for label, curves in summary["curves"].items()),
        _cost_table(summary["rankers"]),
        f"Most memory of a process: {summary['peak_memory_gib']:.1f} GiB.",
    ]
    return "\n\n".join(parts) + "\n"


def _all_table(summary: Mapping[str, Any]) -> str:
    """Rankers, and the baselines that rank every task."""
    rows = [[name, *_cells(figures["all"]), _seeds(figures)] for name, figures in summary["rankers"].items()]
    for name, one in summary["baselines"].items():
        if len(one["mrr by task"]) == len(summary["queries"]):
            rows.append([name, *_cells(one["all"]), ""])
    return markdown_table(["", "MRR", "NDCG@10", "MRR by seed"], rows)


def _task_table(summary: Mapping[str, Any]) -> str:
    tasks = list(summary["queries"])
    rows = [
        [name, *(format_interval(one["mrr by task"][task]) if task in one["mrr by task"] else "" for task in tasks)]
        for name, one in {**summary["rankers"], **summary["baselines"]}.items()
    ]
    return markdown_table(["MRR", *tasks], rows)


def _test_table(tests: Sequence[Mapping[str, Any]]) -> str:
    """A row a ranker, a column an opponent."""
    found = {(one["first"], one["second"]): _test(one) for one in tests}
    first, second = (list(dict.fromkeys(pair[side] for pair in found)) for side in (0, 1))
    rows = [[name, *(found.get((name, other), "") for other in second)] for name in first]
    return markdown_table(["difference of MRR (p, paired randomisation test)", *(f"to {one}" for one in second)], rows)


def _routing_table(task: str, systems: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, worth in systems.items():
        figures = [_worth(worth, key) for key in ("quality", "merit", "gain")]
        tests = worth.get("tests", {})
        p = f"{tests[BEST_SINGLE]['p']:.4f}" if tests else ""
        nearest = _test(tests[NearestMerits.name]) if tests else ""
        by_seed = ", ".join(f"{100 * gain:+.1f}" for gain in worth.get("gain by seed", ()))
        rows.append([name, *figures, by_seed, p, nearest, _dollars(worth)])
    over = ["merit over the best single LLM's", "by seed", "p", "over the nearest queries' (p)"]
    return markdown_table([task, "quality", "merit", *over, "$ per 1,000 queries"], rows)


def _test(found: Mapping[str, Any]) -> str:
    return f"{100 * found['difference']:+.1f} ({found['p']:.4f})"


def _course_table(label: str, course: Sequence[Mapping[str, Any]]) -> str:
    """Means over the seeds, with the lowest and the highest of them."""
    names = [name for name in COURSE if all(name in part for part in course)]
    rows = []
    for part in course:
        cells = (f"{np.mean(part[name]):.3g} ({min(part[name]):.3g} to {max(part[name]):.3g})" for name in names)
        rows.append([f"{part['step']:,.0f}", *cells])
    return markdown_table([f"{label}, up to step", *names], rows)


def _curve_table(label: str, curves: Sequence[Sequence[Mapping[str, float]]]) -> str:
    rows = []
    for mean in mean_curve(curves):
        figures = f"{100 * mean['mrr']:.1f}", f"{mean['seconds']:,.0f}", f"{mean['tokens'] / 1e6:,.1f}"
        rows.append([f"{mean['step']:,.0f}", *figures])
    return markdown_table([f"{label}, step", "MRR", "training, s", "training tokens, million"], rows)


def _cost_table(rankers: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, one in rankers.items():
        training = ["", ""]
        if one["training_seconds"] is not None:
            training = [f"{one['training_seconds']:,.0f}", f"{one['training_tokens'] / 1e6:,.1f}"]
        keys = ("calls_per_query", "prompt_tokens_per_query", "response_tokens_per_query")
        rows.append([name, *training, *(f"{one[key]:,.1f}" for key in keys), f"{100 * one['valid_answer_rate']:.1f}%"])
    head = ["", "training, s", "training tokens, million"]
    return markdown_table([*head, "calls a query", "prompt tokens", "response tokens", "valid answers"], rows)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def _cells(figures: Mapping[str, Any]) -> list[str]:
    return [format_interval(figures[metric]) if metric in figures else "" for metric in METRICS]


def _worth(worth: Mapping[str, Any], key: str) -> str:
    return format_interval(worth[key]) if "low" in worth[key] else f"{100 * worth[key]['mean']:.1f}"


def _dollars(worth: Mapping[str, Any]) -> str:
    return f"{worth['usd_per_1000_queries']['mean']:.2f}" if "usd_per_1000_queries" in worth else ""


def _seeds(figures: Mapping[str, Any]) -> str:
    return ", ".join(f"{100 * value:.1f}" for value in figures["mrr by seed"])
