"""Results as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from r1ranker.evaluation.baselines.scoring import BY_MODEL
from r1ranker.evaluation.identity import short_names
from r1ranker.evaluation.results import compare_results, read_result
from r1ranker.ranking.metrics import Interval

WIDEST = 130
"""characters of a table"""


def print_results(reports: Sequence[dict[str, Any]], files: Sequence[str]) -> None:
    """A table a task, models and baselines down, metrics across; then all tasks together, p between models, and what it cost."""
    console = wide_console()
    try:
        _print_tables(console, _labels(reports, files), reports)
    finally:  # whatever becomes of the tables, the results are there
        for report, file in zip(reports, files, strict=True):
            line = f"{report['model']}: every ranking is in {file}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_tables(console: Console, labels: Sequence[str], reports: Sequence[dict[str, Any]]) -> None:
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


def wide_console() -> Console:
    """As wide as the tables are: a narrow terminal breaks lines, where rich would cut figures off."""
    return Console(width=max(WIDEST, Console().width), markup=False, emoji=False)


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
        if name not in BY_MODEL:
            table.add_row(name, *(_cell(baseline[metric], metric) for metric in metrics), "")
    for name, baseline in _by_model(labels, [result["baselines"] for result in results]):
        table.add_row(name, *(_cell(baseline[metric], metric) for metric in metrics), "")
    return table


def _by_model(labels: Sequence[str], baselines: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Rows of the baselines that each model has of its own; one model's once."""
    shown: list[Any] = []
    for name in BY_MODEL:
        for label, own in zip(labels, baselines, strict=True):
            if name in own and own[name] not in shown:
                shown.append(own[name])
                yield name if len(labels) == 1 else f"{name} ({label})", own[name]


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


def _labels(reports: Sequence[dict[str, Any]], files: Sequence[str]) -> list[str]:
    """A short name for each result: as much of its model's path as tells it apart; of one model what its file's name adds."""
    if len(reports) == 1:
        return ["model"]
    (names,) = short_names([[report["model"] for report in reports]])
    if len(set(names)) == len(names):
        return names
    words = [Path(file).stem.split("_") for file in files]
    common = set.intersection(*map(set, words))
    names = [
        " ".join([name, *(word for word in own if word not in common)]) for name, own in zip(names, words, strict=True)
    ]
    return names if len(set(names)) == len(names) else [f"{name} ({place})" for place, name in enumerate(names, 1)]


def _cell(metric: Interval, name: str) -> str:
    return format_interval(metric) if name == "mrr" else f"{100 * metric['mean']:.1f}"


def format_interval(metric: Interval, scale: int = 100, decimals: int = 1) -> str:
    """`mean [low, high]`, scaled; `mean [-]` where there is no interval."""
    mean, *ends = (
        None if value is None else f"{scale * value:.{decimals}f}"
        for value in (metric["mean"], metric["low"], metric["high"])
    )
    return f"{mean} [-]" if None in ends else f"{mean} [{', '.join(map(str, ends))}]"


def compare_table(reports: Sequence[tuple[str, dict[str, Any]]]) -> Table:
    """One row a labelled report, means over all its queries, and a row for each order that they are held against.

    MRR, and NDCG@10 or at the last cut-off that all tasks share.
    """
    shared = [name for name in reports[0][1]["pooled"]["metrics"] if name.startswith("ndcg@")]
    metrics = ["mrr", *(["ndcg@10"] if "ndcg@10" in shared else shared[-1:])]
    table = _table("mean over all test queries, x 100, with 95% bootstrap intervals", [*metrics, "valid answers"])
    for label, report in reports:
        pooled = report["pooled"]
        cells = [format_interval(pooled["metrics"][metric]) for metric in metrics]
        table.add_row(label, *cells, f"{100 * pooled['valid_answer_rate']:.1f}%")
    own = _by_model([label for label, _ in reports], [report["pooled"]["baselines"] for _, report in reports])
    baselines = reports[0][1]["pooled"]["baselines"].items()
    for name, baseline in [*((name, one) for name, one in baselines if name not in BY_MODEL), *own]:
        table.add_row(name, *(format_interval(baseline[metric]) for metric in metrics), "")
    return table


def print_comparison(files: Sequence[str], metric: str = "mrr", seed: int = 0) -> None:
    """The results of two files side by side, with p; raises UserError where one is none, or they are of different queries."""
    first, second = map(read_result, files)
    labels = _labels([first, second], files)
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
    wide_console().print(table)
