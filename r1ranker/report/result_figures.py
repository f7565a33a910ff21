"""Charts of evaluation results: figures with intervals, pool sizes, places in the list, rounds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from r1ranker.evaluation.records import subjects_of
from r1ranker.ranking.metrics import bootstrap_interval
from r1ranker.report.entries import ALL_TASKS, Entry
from r1ranker.report.figure import (
    GREY,
    WIDEST_LABEL,
    Figure,
    Section,
    Trace,
    axes,
    distinct,
    error_bars,
    label,
    meta,
    rounded,
)
from r1ranker.report.load import RankedQuery, Result
from r1ranker.report.paper import PAPER, RANKERS, paper_beside
from r1ranker.report.queries import (
    KEPT,
    by_pool_size,
    count_elimination_rounds,
    mean_rank_by_position,
    position_against_rank,
    random_reciprocal_rank,
    reciprocal_rank,
)
from r1ranker.report.systems import Comparison, System

MOST_TICKS = 12
"""pool sizes that are all written at the axis"""


def comparison_section(comparisons: Iterable[Comparison]) -> Section:
    """A chart a task: a bar a system with its interval, a diamond for a model's strict figure."""
    section = Section()
    for comparison in comparisons:
        notes = [label(system.note, WIDEST_LABEL) for system in comparison.systems]
        names = [label(system.name, WIDEST_LABEL) for system in comparison.systems]
        rows = distinct("<br>".join(filter(None, parts)) for parts in zip(names, notes, strict=True))
        traces = [trace for system, row in zip(comparison.systems, rows, strict=True) for trace in _bars(system, row)]
        if traces:
            traces += _paper_bars(comparison)
            layout = axes("mean x 100, 95% interval", "", xaxis_rangemode="tozero", yaxis_autorange="reversed")
            section.figures.append(Figure(comparison.title, traces, layout, task=comparison.task, row_height=34))
    if not section.figures:
        section.missing.append("Left out: no evaluation result with metrics was given.")
    return section


def _bars(system: System, row: str) -> Iterator[Trace]:
    for metric, value in system.metrics.items():
        hover = f"{label(system.name)} {label(system.note)}<br>{label(metric)} %{{x:.2f}}"
        bar: Trace = {
            "type": "bar",
            "orientation": "h",
            "name": row,
            "y": [row],
            "x": rounded([100 * value.mean]),
            "marker": {"color": system.colour},
            "meta": meta(system.entries, metric=metric),
        }
        if value.low is not None and value.high is not None:
            bar["error_x"] = error_bars([100 * value.mean], [(100 * value.low, 100 * value.high)])
            hover += f" [{100 * value.low:.2f}, {100 * value.high:.2f}]"
        yield bar | {"hovertemplate": f"{hover}<extra></extra>"}
        if metric in system.strict and not system.all_valid:
            strict = 100 * system.strict[metric].mean
            yield {
                "type": "scatter",
                "mode": "markers",
                "name": f"{row}, strict",
                "y": [row],
                "x": rounded([strict]),
                "marker": {"symbol": "diamond", "size": 9, "color": "#fff", "line": {"color": "#111", "width": 1.5}},
                "hovertemplate": f"{label(system.name)}, strict: {strict:.2f}<extra></extra>",
                "meta": meta(system.entries, metric=metric),
            }


def _paper_bars(comparison: Comparison) -> Iterator[Trace]:
    figures = paper_beside(comparison)
    for model in RANKERS if figures else ():
        yield {
            "type": "bar",
            "orientation": "h",
            "name": f"{model}, {PAPER}",
            "y": [f"{model}<br>the paper"],
            "x": [figures[model]],
            "marker": {
                "color": "#fff",
                "line": {"color": GREY, "width": 1},
                "pattern": {"shape": "/", "fgcolor": GREY},
            },
            "hovertemplate": f"{model}<br>{PAPER}<br>MRR %{{x:.2f}}<extra></extra>",
            "meta": meta(metric="mrr"),
        }


def pool_size_section(results: Sequence[Entry[Result]], tasks: dict[str, str]) -> Section:
    """MRR by number of candidates, with bootstrap intervals, a line a result, beside the random order's."""
    section = Section(missing=without_rankings(results))
    ranked = [entry for entry in results if any(task.rankings for task in entry.source.tasks.values())]
    traces: list[Trace] = []
    for task_id in (ALL_TASKS, *tasks.values()):
        every: list[RankedQuery] = []
        for entry in ranked:
            rankings = rankings_of(entry, task_id, tasks)
            every += rankings
            groups = {
                size: (list(map(reciprocal_rank, group)), subjects_of(one.subject for one in group))
                for size, group in by_pool_size(rankings).items()
            }
            if not groups:
                continue
            means = [100 * statistics.fmean(values) for values, _ in groups.values()]
            shares = [bootstrap_interval(values, subjects=subjects) for values, subjects in groups.values()]
            # a point without an interval has a bar of no length
            ends = [
                (100 * own[0], 100 * own[1]) if own else (mean, mean) for own, mean in zip(shares, means, strict=True)
            ]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": label(entry.label),
                    "x": list(groups),
                    "y": rounded(means),
                    "error_y": error_bars(means, ends, entry.colour),
                    "text": [f"{len(values)} queries" for values, _ in groups.values()],
                    "hovertemplate": f"{label(entry.label)}<br>%{{x}} candidates: %{{y:.2f}}, %{{text}}<extra></extra>",
                    "line": {"color": entry.colour, "width": 1.6},
                    "meta": meta([entry.id], task_id),
                }
            )
        if every:
            chance = by_pool_size(every)
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": "random order",
                    "x": list(chance),
                    "y": rounded(100 * statistics.fmean(map(random_reciprocal_rank, own)) for own in chance.values()),
                    "line": {"color": GREY, "dash": "dot"},
                    "marker": {"symbol": "line-ew-open", "size": 12},
                    "meta": meta([entry.id for entry in ranked], task_id),
                }
            )
    if traces:
        layout = axes("candidates", "MRR x 100", yaxis_rangemode="tozero")
        sizes = sorted({size for trace in traces for size in trace["x"]})
        if len(sizes) <= MOST_TICKS:
            layout["xaxis"]["tickvals"] = sizes
        section.figures.append(Figure("MRR by number of candidates", traces, layout, height=380))
    return section


def position_section(results: Sequence[Entry[Result]], tasks: dict[str, str]) -> Section:
    """A chart a result: how many queries have their positive at a position of the list shown and at a rank."""
    section = Section(missing=without_rankings(results))
    absent = []
    for entry in results:
        traces: list[Trace] = []
        for task_id in (ALL_TASKS, *tasks.values()):
            counts = position_against_rank(rankings_of(entry, task_id, tasks))
            if not counts:
                continue
            size = max(max(pair) for pair in counts)
            places = list(range(1, size + 1))
            means = mean_rank_by_position(counts)
            traces += [
                {
                    "type": "heatmap",
                    "x": places,
                    "y": places,
                    "z": [rounded(counts.get((position, rank), 0.0) for position in places) for rank in places],
                    "colorscale": [[0, "#f6f8fa"], [1, entry.colour]],
                    "colorbar": {"thickness": 10, "title": {"text": "queries"}},
                    "hovertemplate": "shown at %{x}, ranked %{y}: %{z} queries<extra></extra>",
                    "meta": meta(task=task_id),
                },
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": "mean rank",
                    "x": list(means),
                    "y": rounded(means.values()),
                    "line": {"color": "#111", "width": 1.2},
                    "marker": {"size": 4},
                    "hovertemplate": "shown at %{x}: mean rank %{y:.2f}<extra></extra>",
                    "meta": meta(task=task_id),
                },
            ]
        if traces:
            layout = axes("position in the list shown", "rank", yaxis_autorange="reversed")
            section.figures.append(Figure(entry.label, traces, layout, entries=(entry.id,)))
        elif any(task.rankings for task in entry.source.tasks.values()):
            absent.append(entry.label)
    if absent:
        section.missing.append(f"Left out, since the file does not keep the order shown: {'; '.join(absent)}.")
    return section


def round_section(results: Sequence[Entry[Result]], tasks: dict[str, str]) -> Section:
    """A chart a result of eliminations: the share of positives thrown out in each round, and of those kept."""
    section = Section(missing=without_rankings(results))
    absent = []
    for entry in results:
        traces: list[Trace] = []
        for task_id in (ALL_TASKS, *tasks.values()):
            rounds = count_elimination_rounds(rankings_of(entry, task_id, tasks))
            if not rounds:
                continue
            shown = [*range(1, max(rounds) + 1), 0]
            traces.append(
                {
                    "type": "bar",
                    "x": [str(number) if number else KEPT for number in shown],
                    "y": rounded(100 * rounds[number] / rounds.total() for number in shown),
                    "text": [f"{rounds[number]} of {rounds.total()}" for number in shown],
                    "textposition": "none",
                    "hovertemplate": "round %{x}: %{y:.1f}%, %{text} queries<extra></extra>",
                    "marker": {"color": [entry.colour if number else GREY for number in shown]},
                    "meta": meta(task=task_id),
                }
            )
        if traces:
            layout = axes("round in which the positive goes out", "% of queries", xaxis_type="category")
            section.figures.append(Figure(entry.label, traces, layout, entries=(entry.id,)))
        elif any(task.rankings for task in entry.source.tasks.values()):
            absent.append(entry.label)
    if absent:
        section.missing.append(f"Left out, since nothing was eliminated in rounds: {'; '.join(absent)}.")
    return section


def rankings_of(entry: Entry[Result], task_id: str, tasks: dict[str, str]) -> list[RankedQuery]:
    """A task's rankings, or those of all tasks."""
    return [
        ranked
        for task, own in entry.source.tasks.items()
        if task_id in (ALL_TASKS, tasks[task])
        for ranked in own.rankings
    ]


def without_rankings(results: Sequence[Entry[Result]]) -> list[str]:
    """A sentence on the results that keep no rankings, or on there being no result."""
    if not results:
        return ["Left out: no evaluation result was given."]
    absent = [entry.label for entry in results if not any(task.rankings for task in entry.source.tasks.values())]
    return [f"Left out, since the file holds no rankings: {'; '.join(absent)}."] if absent else []
