"""Results as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_results(report: dict[str, Any], file: str) -> None:
    """A table a task: metrics down, the model and the baselines across, with 95% intervals of the MRR."""
    console = Console()
    for task, result in report["tasks"].items():
        table = Table(title=f"{task}: {result['queries']} queries, {report['settings']['strategy']}")
        table.add_column("x 100")
        systems = {"model": result["metrics"], **result["baselines"]}
        for name in systems:
            table.add_column(name, justify="right")
        for metric in result["metrics"]:
            table.add_row(metric, *(_cell(metrics[metric], metric) for metrics in systems.values()))
        table.add_row("valid answers", f"{100 * result['valid_answer_rate']:.1f}%")
        console.print(table)
    console.print(f"model: {report['model']}\n95% bootstrap intervals; every ranking is in {file}", highlight=False)


def _cell(metric: dict[str, float], name: str) -> str:
    mean = f"{100 * metric['mean']:.1f}"
    return f"{mean} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]" if name == "mrr" else mean


def pooled(report: dict[str, Any], metric: str, baseline: str | None = None) -> float:
    """Mean of a metric over all queries of all tasks."""
    tasks = report["tasks"].values()
    total = sum(task["queries"] for task in tasks)
    return (
        sum(
            task["queries"] * (task["baselines"][baseline] if baseline else task["metrics"])[metric]["mean"]
            for task in tasks
        )
        / total
    )


def valid_rate(report: dict[str, Any]) -> float:
    """Share of usable answers over all calls."""
    tasks = report["tasks"].values()
    calls = sum(task["queries"] * task["calls_per_query"] for task in tasks)
    return float(sum(task["queries"] * task["calls_per_query"] * task["valid_answer_rate"] for task in tasks) / calls)


def compare_table(reports: Sequence[tuple[str, dict[str, Any]]], metrics: Sequence[str] = ("mrr", "ndcg@10")) -> Table:
    """One row a labelled report, means over all its queries, and a row for the random order on the same rows."""
    table = Table(title="mean over all test queries, x 100")
    table.add_column("")
    for name in (*metrics, "valid answers"):
        table.add_column(name, justify="right")
    for label, report in reports:
        cells = [f"{100 * pooled(report, metric):.1f}" for metric in metrics]
        table.add_row(label, *cells, f"{100 * valid_rate(report):.1f}%")
    for baseline in ("random", "order as given", "most frequent label"):
        table.add_row(baseline, *(f"{100 * pooled(reports[0][1], metric, baseline):.1f}" for metric in metrics), "")
    return table
