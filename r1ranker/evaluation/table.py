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
    if len(report["tasks"]) > 1:
        console.print(compare_table([("model", report)]))
    console.print(f"model: {report['model']}\n95% bootstrap intervals; every ranking is in {file}", highlight=False)


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
