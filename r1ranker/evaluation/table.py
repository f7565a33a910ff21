"""Results as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from r1ranker.evaluation.results import compare_results

WIDEST = 130
"""characters of a table"""


def print_results(reports: Sequence[dict[str, Any]], files: Sequence[str]) -> None:
    """A table a task, models and baselines down, metrics across; then all tasks together, p between models, and what it cost."""
    console = _console()
    labels = _labels(reports)
    for task, result in reports[0]["tasks"].items():
        figures = [report["tasks"][task] for report in reports]
        console.print(_task_table(task, reports[0]["settings"]["strategy"], result["baselines"], labels, figures))
        if "routing" in result:
            console.print(_routing_table(task, labels, figures))
    if len(reports[0]["tasks"]) > 1 or len(reports) > 1:
        console.print(compare_table(list(zip(labels, reports, strict=True))))
    for label, report in list(zip(labels, reports, strict=True))[1:]:
        found = list(compare_results(reports[0], report).values())[-1]
        console.print(
            f"{label} against {labels[0]}, MRR over all queries: p = {found['p']:.4f} (paired randomisation test)"
        )
    console.print(_costs(labels, reports))
    for report, file in zip(reports, files, strict=True):
        console.print(f"{report['model']}: every ranking is in {file}", highlight=False, markup=False, soft_wrap=True)


def _console() -> Console:
    """As wide as the tables are: a narrow terminal breaks lines, where rich would cut figures off."""
    return Console(width=max(WIDEST, Console().width))


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _task_table(
    task: str, strategy: str, baselines: dict[str, Any], labels: Sequence[str], results: Sequence[dict[str, Any]]
) -> Table:
    metrics = list(results[0]["metrics"])
    table = _table(f"{task}: {results[0]['queries']} queries, {strategy} (x 100, 95% intervals)", [*metrics, "valid"])
    for label, result in zip(labels, results, strict=True):
        valid = f"{100 * result['valid_answer_rate']:.1f}%"
        table.add_row(label, *(_cell(result["metrics"][metric], metric) for metric in metrics), valid)
        strict = [_cell(result["strict"][metric], metric) for metric in metrics]
        table.add_row("  unusable: a miss", *strict, "", style="dim")
    for name, baseline in baselines.items():
        table.add_row(name, *(_cell(baseline[metric], metric) for metric in metrics), "")
    return table


def _routing_table(task: str, labels: Sequence[str], results: Sequence[dict[str, Any]]) -> Table:
    """What the LLM that each system puts first is worth; models, then baselines, whose MRR is that of the other table."""
    routing = results[0]["routing"]
    a, b = (routing["objective"][name] for name in ("effect", "cost"))
    dollars = "usd_per_1000_queries" in routing["systems"]["model"]
    columns = ["mrr", "quality", *(["$ / 1,000 queries"] if dollars else []), "cost", "merit", "gain"]
    table = _table(f"{task}: the LLM that is put first (x 100 but for $, 95% intervals)", columns)
    fixed = ", ".join(f"{name}: {llm}" for name, llm in routing["llms"].items())
    table.caption = f"merit: {a:g} quality - {b:g} cost; gain: merit over that of the best single LLM\n{fixed}"
    models = [
        (label, result["metrics"], result["routing"]["systems"]["model"])
        for label, result in zip(labels, results, strict=True)
    ]
    baselines = [
        (name, results[0]["baselines"].get(name), worth)
        for name, worth in routing["systems"].items()
        if name != "model"
    ]
    for name, metrics, worth in [*models, *baselines]:
        usd = [format_interval(worth["usd_per_1000_queries"], 1, 2)] if dollars else []
        mrr = f"{100 * metrics['mrr']['mean']:.1f}" if metrics else ""
        intervals = [format_interval(worth[metric]) for metric in ("quality", "merit", "gain")]
        table.add_row(name, mrr, intervals[0], *usd, f"{100 * worth['cost']['mean']:.1f}", *intervals[1:])
    return table


def _costs(labels: Sequence[str], reports: Sequence[dict[str, Any]]) -> Table:
    table = _table("cost of a query", ["calls", "one after the other", "prompt tokens", "response tokens"])
    for label, report in zip(labels, reports, strict=True):
        keys = ("calls", "depth", "prompt_tokens", "response_tokens")
        table.add_row(label, *(f"{report['pooled'][f'{key}_per_query']:,.1f}" for key in keys))
    return table


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
    return format_interval(metric) if name == "mrr" else f"{100 * metric['mean']:.1f}"


def format_interval(metric: dict[str, float], scale: int = 100, decimals: int = 1) -> str:
    """`mean [low, high]`, scaled."""
    mean, low, high = (f"{scale * metric[name]:.{decimals}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def compare_table(reports: Sequence[tuple[str, dict[str, Any]]], metrics: Sequence[str] = ("mrr", "ndcg@10")) -> Table:
    """One row a labelled report, means over all its queries, and a row for each order that needs no model."""
    table = _table("mean over all test queries, x 100, with 95% bootstrap intervals", [*metrics, "valid answers"])
    for label, report in reports:
        pooled = report["pooled"]
        cells = [format_interval(pooled["metrics"][metric]) for metric in metrics]
        table.add_row(label, *cells, f"{100 * pooled['valid_answer_rate']:.1f}%")
    for name, baseline in reports[0][1]["pooled"]["baselines"].items():
        table.add_row(name, *(format_interval(baseline[metric]) for metric in metrics), "")
    return table


def print_comparison(first: dict[str, Any], second: dict[str, Any], metric: str = "mrr", seed: int = 0) -> None:
    """Two results side by side, with p."""
    labels = _labels([first, second])
    table = _table(f"{metric} x 100, paired randomisation test", ["queries", *labels, "difference", "p"])
    for task, row in compare_results(first, second, metric, seed).items():
        means = [100 * row["first"], 100 * row["second"]]
        table.add_row(
            task,
            f"{row['queries']:,}",
            *(f"{mean:.1f}" for mean in means),
            f"{means[1] - means[0]:+.1f}",
            f"{row['p']:.4f}",
        )
    _console().print(table)
