"""Results as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_results(reports: Sequence[dict[str, Any]], files: Sequence[str]) -> None:
    """A table a task: metrics down, models and baselines across, with 95% intervals of the MRR; then all tasks together."""
    console = Console()
    labels = _labels(reports)
    for task, result in reports[0]["tasks"].items():
        systems = {label: report["tasks"][task] for label, report in zip(labels, reports, strict=True)}
        table = Table(title=f"{task}: {result['queries']} queries, {reports[0]['settings']['strategy']}")
        table.add_column("x 100", no_wrap=True)
        for name in (*systems, *result["baselines"]):
            table.add_column(name, justify="right")
        orders = list(result["baselines"].values())
        for metric in result["metrics"]:
            means = [one["metrics"][metric] for one in systems.values()] + [order[metric] for order in orders]
            table.add_row(metric, *(_cell(mean, metric) for mean in means))
        table.add_row(
            "mrr, unusable answers as misses", *(_cell(one["strict"]["mrr"], "mrr") for one in systems.values())
        )
        table.add_row("valid answers", *(f"{100 * one['valid_answer_rate']:.1f}%" for one in systems.values()))
        console.print(table)
    if len(reports[0]["tasks"]) > 1 or len(reports) > 1:
        console.print(compare_table(list(zip(labels, reports, strict=True))))
    costs = Table(title="cost of a query")
    costs.add_column("")
    for name in ("calls", "one after the other", "prompt tokens", "response tokens"):
        costs.add_column(name, justify="right")
    for label, report in zip(labels, reports, strict=True):
        pooled = report["pooled"]
        keys = ("calls", "depth", "prompt_tokens", "response_tokens")
        costs.add_row(label, *(f"{pooled[f'{key}_per_query']:,.1f}" for key in keys))
    console.print(costs)
    for report, file in zip(reports, files, strict=True):
        console.print(f"{report['model']}: every ranking is in {file}", highlight=False, markup=False)
    console.print("95% bootstrap intervals", highlight=False)


def _labels(reports: Sequence[dict[str, Any]]) -> list[str]:
    """A short name for each model: the last part of its path in which it differs from the others."""
    if len(reports) == 1:
        return ["model"]
    paths = [[part for part in report["model"].rstrip("/").split("/") if part != "actor"] for report in reports]
    for count in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [report["model"] for report in reports]


def _cell(metric: dict[str, float], name: str) -> str:
    return _with_interval(metric) if name == "mrr" else f"{100 * metric['mean']:.1f}"


def _with_interval(metric: dict[str, float]) -> str:
    return f"{100 * metric['mean']:.1f} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"


def compare_table(reports: Sequence[tuple[str, dict[str, Any]]], metrics: Sequence[str] = ("mrr", "ndcg@10")) -> Table:
    """One row a labelled report, means over all its queries, and a row for each order that needs no model."""
    table = Table(title="mean over all test queries, x 100, with 95% bootstrap intervals")
    table.add_column("")
    for name in (*metrics, "valid answers"):
        table.add_column(name, justify="right")
    for label, report in reports:
        pooled = report["pooled"]
        cells = [_with_interval(pooled["metrics"][metric]) for metric in metrics]
        table.add_row(label, *cells, f"{100 * pooled['valid_answer_rate']:.1f}%")
    for name, baseline in reports[0][1]["pooled"]["baselines"].items():
        table.add_row(name, *(_with_interval(baseline[metric]) for metric in metrics), "")
    return table
